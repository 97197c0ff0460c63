"""`Rewirer`: changes the masks of a model while it is trained."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fpe._util.modules import unwrapped
from fpe._util.terminal import text_table
from fpe.errors import ArgumentError, CheckpointError, ModelError, raise_problems
from fpe.masked import check_masks
from fpe.rewiring.drop_and_grow import LayerBatch, drop_and_grow
from fpe.rewiring.policies import RewiringPolicy, as_policy
from fpe.rewiring.schedule import RewiringSchedule, argument_problems
from fpe.rewiring.sites import (
    average_,
    check_optimizers,
    check_present,
    find_sites,
    local,
    set_mask_,
    whole,
)

#: Steps without finite gradients after which a rewirer warns; a gradient scaler skips fewer in a row.
PATIENCE = 20


class Rewirer:
    """Change the masks of an expanded model while it is trained, at a constant count of non-zeros.

    Every ``schedule.every`` steps some free weights of each scope of the policy are dropped: set to zero and
    masked; and as many masked ones are grown: they become free, with the value 0. The optimizer's moments of
    both become 0. Only the steps that gather gradients for the policy cost more than without a rewirer.

    Parameters
    ----------
    model : nn.Module
        What `fpe.expand` or `fpe.load` returned, also wrapped by ``torch.compile``, DDP or FSDP2. `step`
        changes masks and weights of the layers that are not frozen.
    optimizer : Optimizer or sequence of Optimizer
        Trains it.
    policy : str or RewiringPolicy, default "rigl"
        ``"paper"`` and ``"set"`` (random growth), ``"rigl"``, ``"accumulated"``, ``"momentum"``,
        ``"columns"`` (whole inputs of a shared split), or an `fpe.RewiringPolicy`.
    steps : int
        Steps of the optimizer, all in all, to which the schedule refers.
    schedule : RewiringSchedule, optional
        By default ``RewiringSchedule()``, with a shorter interval for fewer than 3400 steps.
    seed : int, default 0
        Seed of random growth; the same on all processes.

    Attributes
    ----------
    taken, rewirings : int
        Steps, and rewirings, so far.
    grown : dict of str to int
        The weights grown so far, by layer.

    Raises
    ------
    ArgumentError
        For arguments that are not allowed, or an optimizer that does not train the model.
    ModelError
        If the model is not expanded, is packed or has no whole columns, or if masked weights are not zero.

    Notes
    -----
    If several processes train one model, all must call `step`: gradients are averaged, and all change the
    same weights. With a ``torch.amp.GradScaler`` call `step` after ``scaler.update()``, also if the scaler
    has skipped the step.

    Examples
    --------
    >>> import torch, fpe
    >>> wide = fpe.expand(fpe.mlp(8, 4, 2), factor=2)
    >>> optimizer = torch.optim.Adam(wide.parameters())
    >>> rewirer = fpe.Rewirer(wide, optimizer, "rigl", steps=100, schedule=fpe.RewiringSchedule(every=10))
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     wide(torch.randn(16, 8)).square().mean().backward()
    ...     optimizer.step()
    ...     rewirer.step()
    >>> rewirer.rewirings, fpe.count_nonzero(wide) == fpe.count_nonzero(fpe.mlp(8, 4, 2))
    (8, True)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        policy: str | RewiringPolicy = "rigl",
        *,
        steps: int,
        schedule: RewiringSchedule | None = None,
        seed: int = 0,
    ) -> None:
        problems = argument_problems(steps, seed, schedule)
        try:
            self.policy = as_policy(policy)
        except ArgumentError as error:
            problems.append(str(error))
        raise_problems(problems, ArgumentError, "the rewirer")
        self.steps, self.schedule = steps, schedule or RewiringSchedule.for_steps(steps)
        self.model = unwrapped(model)
        check_masks(self.model, "the masks change")
        self.sites, self.scopes = find_sites(self.model, self.policy)
        self.optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        check_optimizers(self.optimizers, self.sites)
        self.taken = self.rewirings = 0
        self.grown = {self.sites[i].name: 0 for scope in self.scopes for i in scope}
        self.generator = torch.Generator().manual_seed(seed)
        self.late = False  # whether a rewiring waits for finite gradients
        self._waited = 0  # steps for which it has waited
        self._gathering: list[int] = []  # the sites that gather the whole gradient in the next step
        self._sums = self._weight_sums()
        self._gather()

    def step(self) -> None:
        """Count a step of the optimizer, and change masks if it is time; call it after each step.

        If the gradients of a rewiring are not finite, as when a gradient scaler skips a step, those of the
        next step are used; after 20 such steps in a row there is a warning.

        Raises
        ------
        ModelError
            If layers of the model have been replaced since, or are no longer trained.
        """
        check_present(self.model, self.sites, "rewirer")
        self.taken += 1
        if self.late or self.schedule.rewires(self.taken, self.steps):
            self._rewire()
        elif self.policy.keeps < 1:
            for gradient in self.gathered().values():
                gradient.mul_(self.policy.keeps)
        self._gather()

    def project(self) -> None:
        """Set weights and moments to zero where masks, changed by something else, are zero; in place."""
        for i, site in enumerate(self.sites):
            set_mask_(site.layer, whole(site.layer.fpe_mask), self.optimizers)
            if i in self._gathering:
                self._gather_from(i)

    def gathered(self) -> dict[str, Tensor]:
        """Return this process's sums of gradients since the last rewiring, by layer; not copied."""
        probes = {self.sites[i].name: self.sites[i].layer._probe for i in self._gathering}
        return {n: probe.grad for n, probe in probes.items() if probe is not None and probe.grad is not None}

    @torch.no_grad()
    def _rewire(self) -> None:
        gradients = self._gradients()
        self.late = gradients is None
        self._waited = self._waited + 1 if self.late else 0
        if self._waited == PATIENCE:
            warnings.warn(
                f"gradients have been NaN or infinite in the last {PATIENCE} steps, so that no mask has "
                "changed: training has diverged. Use a smaller learning rate, or scale the inputs.",
                RuntimeWarning,
                stacklevel=4,
            )
        if gradients is None:
            return
        share = self.schedule.share_at(self.taken, self.steps)
        for scope in self.scopes:
            layers = [self._batch(i, gradients.get(i)) for i in scope]
            for i, own, mask in zip(scope, layers, drop_and_grow(self.policy, layers, share), strict=True):
                self.grown[self.sites[i].name] += int((mask > own.mask).sum())
                set_mask_(self.sites[i].layer, mask[0], self.optimizers)
        self.rewirings += 1
        self._sums = self._weight_sums()

    def _batch(self, i: int, gradient: Tensor | None) -> LayerBatch:
        site = self.sites[i]
        weight, noise = whole(site.layer.weight), None
        if self.policy.grow == "random":
            noise = torch.rand(weight.shape, generator=self.generator).to(weight.device).unsqueeze(0)
        return LayerBatch(
            weight.unsqueeze(0),
            whole(site.layer.fpe_mask).unsqueeze(0),
            None if gradient is None else gradient.unsqueeze(0),
            noise,
            children=site.children,
            blocks=site.blocks,
        )

    def _gradients(self) -> dict[int, Tensor] | None:
        """Return the averaged whole gradients, empty for a policy without; None if some are not finite."""
        if not self._gathering:
            if self.schedule.every > 1 and self._sums == self._weight_sums():
                last = [site.layer.weight.grad for site in self.sites]
                if all(g is None or bool(local(g).isfinite().all()) for g in last):
                    raise ModelError(_NOT_TRAINED)
                return None  # a gradient scaler has skipped all steps
            return {}
        found = self.gathered()
        if not found:
            raise ModelError(_NOT_TRAINED)
        gradients = {}
        for i in self._gathering:  # a layer that no sample has reached has none
            site = self.sites[i]
            own = found.get(site.name)
            gradients[i] = average_(torch.zeros_like(whole(site.layer.fpe_mask)) if own is None else own)
            self._gather_from(i)
        finite = torch.stack([g.isfinite().all() for g in gradients.values()])
        return gradients if bool(finite.all()) else None

    def _gather(self) -> None:
        """Let layers gather the whole gradient if the next step needs it."""
        window = self.policy.window(self.schedule.every)
        wanted = window > 0 and (self.late or self.schedule.in_window(self.taken + 1, self.steps, window))
        if wanted != bool(self._gathering):
            every = [i for scope in self.scopes for i in scope]
            self._gathering = every if wanted else []
            for i in every:
                self._gather_from(i)

    def _gather_from(self, i: int, initial: Tensor | None = None) -> None:
        """Reset the sum of gradients that a layer gathers, if it does."""
        layer = self.sites[i].layer
        layer._probe = None
        if i in self._gathering:
            mask = whole(layer.fpe_mask)
            layer._probe = mask.new_zeros(()).expand(mask.shape).requires_grad_()
            layer._probe.grad = None if initial is None else initial.to(mask).clone()

    def _weight_sums(self) -> list[float]:
        """Return numbers that change when an optimizer, even a fused one, changes weights."""
        return [float(local(site.layer.weight).sum(dtype=torch.float64)) for site in self.sites]

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to resume, without the model's masks; all processes must call this."""
        return {
            **self._settings(),
            "taken": self.taken,
            "rewirings": self.rewirings,
            "late": self.late,
            "moved": dict(self.grown),
            "generator": self.generator.get_state(),
            "gathered": {name: average_(g.clone()) for name, g in self.gathered().items()},
        }

    def _settings(self) -> dict[str, Any]:
        return {
            "policy": vars(self.policy).copy(),
            "schedule": vars(self.schedule).copy(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the `state_dict` of a rewirer of the same model, policy, schedule and steps.

        Load the model's and the optimizer's states separately. The state of another rewirer is refused with a
        CheckpointError; nothing is changed then.
        """
        problems = [
            f"{name} is {state.get(name)!r} in the state, and {own!r} here."
            for name, own in self._settings().items()
            if state.get(name) != own
        ]
        layers = list(state.get("moved", {}))
        if layers != list(self.grown):
            problems.append(f"the state is of layers {layers}, and this rewirer of {list(self.grown)}.")
        raise_problems(problems, CheckpointError, "the rewirer's state")
        self.rewirings, self.grown = state["rewirings"], dict(state["moved"])
        self.generator.set_state(state["generator"].cpu())
        self.resume(state["taken"], state["late"], state["gathered"])

    def resume(self, taken: int, late: bool, gathered: Mapping[str, Tensor]) -> None:
        """Continue after `taken` steps, with a rewiring waiting or not, and with these sums of gradients."""
        self.taken, self.late = taken, late
        self._gather()
        for i in self._gathering:
            self._gather_from(i, gathered.get(self.sites[i].name))
        self._sums = []

    def __getstate__(self) -> dict[str, Any]:
        """Add the gathered gradients, which layers drop when they are copied."""
        return {**vars(self), "_gathered": self.gathered()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        gathered = state.pop("_gathered")
        vars(self).update(state)
        for i in self._gathering:
            self._gather_from(i, gathered.get(self.sites[i].name))

    def __repr__(self) -> str:
        return (
            f"Rewirer({self.policy}, {self.schedule}, step {self.taken:,} of {self.steps:,}, "
            f"{self.rewirings:,} rewirings, {sum(self.grown.values()):,} weights grown)"
        )

    def summary(self) -> str:
        """Return a table of the weights grown so far, layer by layer."""
        rows = []
        for site in self.sites:
            mask = whole(site.layer.fpe_mask)
            grown = f"{self.grown[site.name]:,}" if site.name in self.grown else "fixed"
            rows.append((site.name, f"{int(mask.sum(dtype=torch.float64)):,}", f"{mask.numel():,}", grown))
        head = ("layer", "free", "of", "grown so far")
        scope = {"layer": "each layer", "group": "each group", "network": "the network"}[self.policy.scope]
        return "\n".join([repr(self), *text_table(head, rows), f"the count of {scope} is constant"])


_NOT_TRAINED = (
    "no gradient has reached this rewirer's layers since the last rewiring. Call step() after backward and "
    "the optimizer's step; if the model was packed or copied, make a new rewirer for the one that is trained."
)
