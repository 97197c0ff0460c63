"""`GradualPruner`: prunes a model to a budget while it is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fpe._util.modules import unwrapped
from fpe.errors import ArgumentError, BudgetError, CheckpointError, ModelError, raise_problems
from fpe.graph.groups import NeuronGroup, layout_for, layout_neurons
from fpe.graph.layers import size_of
from fpe.graph.symbolic import follow_symbolically
from fpe.masked import check_masks, placed_like
from fpe.rewiring.gradual import SCOPES, Link, Prunable, PruningSchedule, power_of, prune_to, score_of
from fpe.rewiring.policies import RewiringPolicy, as_policy
from fpe.rewiring.rewirer import Rewirer
from fpe.rewiring.sites import (
    Site,
    check_optimizers,
    check_present,
    count_unmasked,
    set_bias_mask_,
    set_mask_,
    trained_sites,
    whole,
)

#: Decay of the running mean of squared gradients that a pruner keeps where the optimizer has none; Adam's.
DECAY = 0.999
#: Under which names optimizers keep a running mean of squared gradients.
SECOND_MOMENTS = ("exp_avg_sq", "square_avg")


class GradualPruner:
    """Prune a model to a budget of non-zero parameters while it is trained.

    From ``schedule.begin`` to ``schedule.end`` of all steps the weights of the smallest scores are masked,
    every ``schedule.every`` steps, until the model has as many non-zero parameters as the budget allows; then
    the masks stay. Before that the model has more: what is fixed is the final count.

    Parameters
    ----------
    model : nn.Module
        With masked layers: what `fpe.with_masks` returned, or `fpe.expand` with `fpe.open_masks_`; also
        wrapped by ``torch.compile``, DDP or FSDP2. `step` changes masks and weights of the layers that are
        not frozen.
    optimizer : Optimizer or sequence of Optimizer
        Trains it.
    budget : int
        Non-zero parameters of the whole model in the end, biases included.
    steps : int
        Steps of the optimizer, all in all, to which the schedule refers.
    score : str or float, default "moment"
        The power p in the score |w| · v^p: ``"magnitude"`` is 0, ``"moment"`` ¼, ``"fisher"`` ½. v is the
        running mean of squared gradients that Adam, AdamW (``exp_avg_sq``) and RMSprop (``square_avg``) keep;
        for other optimizers, such as SGD, the pruner keeps its own, and `step` must be called before the
        gradients are cleared.
    schedule : PruningSchedule, optional
        By default ``PruningSchedule``, with an interval of a fiftieth of the steps.
    scope : str, default "network"
        Which weights are ranked together: those of the ``"network"``, of each ``"group"`` of neurons with
        their consumers, or of each ``"layer"``, all at one density. With ``"neuron"`` layers do so, too, and
        the neurons of each keep equally many inputs, up to one, as long as none dies.
    least : int, default 0
        Inputs that each neuron keeps at least; not with `then`.
    then : str or RewiringPolicy, optional
        How the masks change after the budget is reached, at a constant count; see `fpe.Rewirer`.
    seed : int, default 0
        Of random growth in that phase.

    Attributes
    ----------
    taken : int
        Steps so far.
    start : int
        Non-zero parameters at the beginning: the most that the model ever has.

    Raises
    ------
    ArgumentError
        For arguments that are not allowed, or an optimizer that does not train the model.
    BudgetError
        If the budget is larger than the model, or too small for what cannot be pruned.
    ModelError
        If no layer is masked, or if masked weights are not zero.

    Notes
    -----
    A hidden neuron that has no inputs or no consumers left is dead: all its weights and its bias are masked,
    and other weights stay instead. Neurons with a norm after them, and those of models that cannot be traced
    symbolically, are left as they are.

    If several processes train one model, all must call `step`.

    Examples
    --------
    >>> import torch, fpe
    >>> model = fpe.with_masks(fpe.mlp(8, 16, 2))
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> pruner = fpe.GradualPruner(model, optimizer, budget=60, steps=100)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(16, 8)).square().mean().backward()
    ...     optimizer.step()
    ...     pruner.step()
    >>> pruner.start, fpe.count_nonzero(model)
    (178, 60)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        budget: int,
        steps: int,
        score: str | float = "moment",
        schedule: PruningSchedule | None = None,
        scope: str = "network",
        least: int = 0,
        then: str | RewiringPolicy | None = None,
        seed: int = 0,
    ) -> None:
        problems = [
            f"{name} is {value!r}; give an integer of at least {lowest}."
            for name, value, lowest in (
                ("budget", budget, 1),
                ("steps", steps, 1),
                ("least", least, 0),
                ("seed", seed, 0),
            )
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest
        ]
        if not isinstance(schedule, PruningSchedule | None):
            problems.append(f"schedule is {schedule!r}; give an fpe.PruningSchedule(begin=…, end=…).")
        if scope not in SCOPES:
            problems.append(f"scope is {scope!r}; give {', '.join(map(repr, SCOPES))}.")
        try:
            self.power = power_of(score)
            self.then = None if then is None else as_policy(then)
        except ArgumentError as error:
            problems.append(str(error))
        if least and then is not None and not problems:
            problems.append(
                f"least is {least} and then is {then!r}, which would drop such inputs; give either."
            )
        raise_problems(problems, ArgumentError, "the pruner")
        self.budget, self.steps, self.scope, self.least, self.seed = budget, steps, scope, least, seed
        self.schedule = schedule or PruningSchedule.for_steps(steps)
        self.model = unwrapped(model)
        check_masks(self.model, "the model is pruned")
        self.sites = trained_sites(self.model)
        self.optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        check_optimizers(self.optimizers, self.sites)
        self.links = _links(self.model, self.sites)
        self.scopes = _scopes(scope, self.links, len(self.sites))
        for i in {i for link in self.links for i in link.producers}:
            layer = self.sites[i].layer
            if layer.bias is not None and layer.bias.requires_grad and layer.fpe_bias_mask is None:
                layer.fpe_bias_mask = torch.ones(layer.bias.shape, device=layer.bias.device).to(
                    layer.fpe_mask
                )
        self.taken, self.start = 0, self._count()
        self.rewirer: Rewirer | None = None
        self._moments: list[Tensor | None] = [None] * len(self.sites)
        self._check_budget()

    def _count(self) -> int:
        """Count the non-zero parameters of the whole model, also of one that is sharded."""
        return count_unmasked(self.model)

    def _check_budget(self) -> None:
        layers = self._prunable()
        free = sum(int(layer.mask.sum()) for layer in layers)
        biases = sum(int(layer.bias_mask.sum()) for layer in layers if layer.bias_mask is not None)
        kept = sum(int(layer.mask[0].flatten(1).sum(1).clamp_max(self.least).sum()) for layer in layers)
        fixed = self.start - free - (biases if self.least == 0 else 0)
        if self.budget > self.start:
            raise BudgetError(
                f"budget is {self.budget:,}, and the model has {self.start:,} non-zero parameters; give a "
                "smaller budget, or a wider model."
            )
        if self.budget < fixed + kept:
            raise BudgetError(
                f"budget is {self.budget:,}, and {fixed + kept:,} parameters cannot be pruned: biases, "
                "norms, layers that are not masked or frozen, and least=… inputs of each neuron; give a "
                "larger budget."
            )

    @property
    def finished(self) -> bool:
        """Whether the budget is reached."""
        return self.taken >= self.schedule.last(self.steps)

    def count_at(self, step: int) -> int:
        """Return how many non-zero parameters the model has after a step, from 0 to `steps`."""
        return self.schedule.count_at(step, self.steps, self.start, self.budget)

    def step(self) -> None:
        """Count a step of the optimizer, and prune if it is time; call it after each step.

        Raises
        ------
        ModelError
            If layers of the model have been replaced since, or are not trained.
        """
        check_present(self.model, self.sites, "pruner")
        self.taken += 1
        if self.rewirer is not None:
            self.rewirer.step()
            return
        last = self.schedule.last(self.steps)
        if self.power > 0 and self.taken <= last:
            self._update_moments()
        if self.schedule.prunes(self.taken, self.steps):
            self._prune()
        if self.taken == last and self.then is not None and last < self.steps:
            self.rewirer = self._rewirer()

    def _rewirer(self) -> Rewirer:
        left = self.steps - self.schedule.last(self.steps)
        return Rewirer(self.model, self.optimizers, self.then or "rigl", steps=left, seed=self.seed)

    def project(self) -> None:
        """Set weights and moments to zero where masks, changed by something else, are zero; in place."""
        for site in self.sites:
            set_mask_(site.layer, whole(site.layer.fpe_mask), self.optimizers)
            bias = site.layer.fpe_bias_mask
            set_bias_mask_(site.layer, None if bias is None else whole(bias), self.optimizers)
        if self.rewirer is not None:
            self.rewirer.project()

    def second_moment(self, i: int) -> Tensor | None:
        """Return the running mean of squared gradients of a site's weight, whole; None if there is none."""
        weight = self.sites[i].layer.weight
        states = [optimizer.state.get(weight, {}) for optimizer in self.optimizers]
        known = [state[name] for state in states for name in SECOND_MOMENTS if name in state]
        found = known[0] if known else self._moments[i]
        return None if found is None else whole(found)

    def _update_moments(self) -> None:
        """Update the own running means of squared gradients, where the optimizer has none."""
        for i, site in enumerate(self.sites):
            weight = site.layer.weight
            known = any(name in o.state.get(weight, {}) for o in self.optimizers for name in SECOND_MOMENTS)
            if known or weight.grad is None or not bool(whole(weight.grad).isfinite().all()):
                continue
            gradient = weight.grad.detach()
            mean = self._moments[i]
            if mean is None:
                mean = self._moments[i] = torch.zeros_like(gradient)
            mean.mul_(DECAY).addcmul_(gradient, gradient, value=1 - DECAY)

    @torch.no_grad()
    def _prunable(self) -> list[Prunable]:
        linked = {i for link in self.links for i in link.producers}
        layers = []
        for i, site in enumerate(self.sites):
            layer, moment = site.layer, self.second_moment(i) if self.power > 0 and self.taken else None
            if self.power > 0 and self.taken and moment is None:
                raise ModelError(
                    f"no gradient has reached layer {site.name!r}, or gradients are cleared before step() is "
                    "called. Call step() after backward and the optimizer's step; or give score='magnitude'."
                )
            bias = None
            if i in linked and layer.bias is not None and layer.bias.requires_grad:
                bias = torch.ones(len(layer.bias), device=layer.bias.device)
                bias = (bias if layer.fpe_bias_mask is None else whole(layer.fpe_bias_mask))[None] != 0
            score = score_of(whole(layer.weight), moment, self.power)
            layers.append(Prunable(score[None], whole(layer.fpe_mask)[None] != 0, bias))
        return layers

    def _prune(self) -> None:
        layers = self._prunable()
        if not all(bool(layer.score.isfinite().all()) for layer in layers):
            raise ModelError(
                "weights or their squared gradients are NaN or infinite, so that none can be ranked: "
                "training has diverged. Use a smaller learning rate, or scale the inputs."
            )
        now, goal = self._count(), self.count_at(self.taken)
        own = sum(int(layer.mask.sum()) for layer in layers)
        own += sum(int(layer.bias_mask.sum()) for layer in layers if layer.bias_mask is not None)
        found = prune_to(
            layers, self.links, [own - (now - goal)], self.scopes, self.scope == "neuron", self.least
        )
        for site, layer, (free, bias) in zip(self.sites, layers, found, strict=True):
            set_mask_(site.layer, free[0].to(site.layer.fpe_mask.dtype), self.optimizers)
            if bias is not None and layer.bias_mask is not None and not torch.equal(bias, layer.bias_mask):
                set_bias_mask_(site.layer, bias[0], self.optimizers)

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to resume, without the model's masks; all processes must call this."""
        return {
            **self._settings(),
            "taken": self.taken,
            "start": self.start,
            "moments": [None if m is None else whole(m).clone() for m in self._moments],
            "rewirer": None if self.rewirer is None else self.rewirer.state_dict(),
        }

    def _settings(self) -> dict[str, Any]:
        names = ("budget", "steps", "power", "scope", "least")
        then = None if self.then is None else vars(self.then).copy()
        layers = [site.name for site in self.sites]
        own = {name: getattr(self, name) for name in names}
        return {**own, "schedule": vars(self.schedule).copy(), "then": then, "layers": layers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the `state_dict` of a pruner of the same model and settings.

        Load the model's and the optimizer's states first. The state of another pruner is refused with a
        CheckpointError; nothing is changed then.
        """
        problems = [
            f"{name} is {state.get(name)!r} in the state, and {own!r} here."
            for name, own in self._settings().items()
            if state.get(name) != own
        ]
        raise_problems(problems, CheckpointError, "the pruner's state")
        self.taken, self.start = state["taken"], state["start"]
        self._moments = [
            None if m is None else placed_like(m.clone(), site.layer.weight)
            for m, site in zip(state["moments"], self.sites, strict=True)
        ]
        self.rewirer = None
        if state["rewirer"] is not None:
            self.rewirer = self._rewirer()
            self.rewirer.load_state_dict(state["rewirer"])

    def __repr__(self) -> str:
        score = f"|w|·v^{self.power:g}" if self.power else "|w|"
        return (
            f"GradualPruner(step {self.taken:,} of {self.steps:,}, {self._count():,} of {self.start:,} "
            f"non-zero parameters, budget {self.budget:,}, score {score})"
        )


def _links(model: nn.Module, sites: Sequence[Site]) -> list[Link]:
    """Return the groups of neurons between prunable layers alone, whose dead neurons can be masked."""
    number = {site.name: i for i, site in enumerate(sites)}
    try:
        groups: Iterable[NeuronGroup] = follow_symbolically(model).groups
    except ModelError:
        groups = ()
    links = []
    for group in groups:
        names = (*group.producers, *group.consumers)
        if group.between or not all(name in number for name in names):
            continue
        neurons = size_of(model, group.name)[0]
        inputs = [size_of(model, name)[1] for name in group.consumers]
        maps = tuple(
            layout_neurons(layout_for(group, name, neurons, width), neurons)
            for name, width in zip(group.consumers, inputs, strict=True)
        )
        links.append(
            Link(
                tuple(map(number.__getitem__, group.producers)),
                tuple(map(number.__getitem__, group.consumers)),
                maps,
            )
        )
    return links


def _scopes(scope: str, links: Sequence[Link], count: int) -> list[list[int]]:
    if scope == "network":
        return [list(range(count))]
    root = list(range(count))
    for link in links if scope == "group" else ():
        joined = {root[i] for i in (*link.producers, *link.consumers)}
        root = [min(joined) if r in joined else r for r in root]
    return [[i for i, r in enumerate(root) if r == first] for first in sorted(set(root))]
