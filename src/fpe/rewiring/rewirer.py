"""`Rewirer`: lets the masks of a model move while it is trained."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fpe._util.modules import unwrapped
from fpe.errors import ArgumentError, CheckpointError, ModelError, raise_problems
from fpe.expansion.plan import text_table
from fpe.masked import check_masks
from fpe.rewiring.gathering import average, local, put, whole
from fpe.rewiring.moves import Tensors, new_masks
from fpe.rewiring.policies import RewiringPolicy, as_policy
from fpe.rewiring.schedule import RewiringSchedule
from fpe.rewiring.sites import find_sites

#: Steps without finite gradients after which a rewirer warns; a gradient scaler skips fewer in a row.
PATIENCE = 20


class Rewirer:
    """Lets the masks of an expanded model move while it is trained, at a constant count of non-zeros.

    Every ``schedule.every`` steps some free weights of each scope of the policy are set to zero and held
    there, and as many held ones are freed, starting at 0. The optimizer's moments of both are set to 0. What
    the policy needs of gradients it gathers in the steps before; in all other steps training costs what it
    costs without a rewirer.

    Parameters
    ----------
    model : nn.Module
        What `fpe.expand` or `fpe.load` returned, also wrapped by ``torch.compile``, DDP or FSDP2. Its masks
        and weights change in `step`. Layers that are not trained do not move.
    optimizer : Optimizer or sequence of Optimizer
        What trains it.
    policy : str or Policy, default "rigl"
        What counts: ``"paper"`` and ``"set"`` (random growth), ``"rigl"``, ``"accumulated"``,
        ``"momentum"``, ``"columns"`` (whole inputs of the blocks of a shared split, which stay packable), or
        an `fpe.RewiringPolicy`.
    steps : int
        How many steps of the optimizer lie ahead in all, to which the schedule refers.
    schedule : Schedule, optional
        When, and how much; by default ``RewiringSchedule()``, with a shorter interval for fewer than 3400 steps.
    seed : int, default 0
        Of random growth; the same on all processes.

    Attributes
    ----------
    taken : int
        Steps so far.
    rewirings : int
        How often masks have moved so far.
    moved : dict of str to int
        For each layer, the weights that were freed so far.

    Raises
    ------
    ArgumentError
        For arguments that are not allowed, or an optimizer that does not train the model.
    ModelError
        For a model in which nothing can move: not expanded, packed, or not in whole columns where columns
        are asked for; or whose weights are not zero where its masks are (see `fpe.project_`). Nothing is
        changed then.

    Notes
    -----
    Where several processes train one model, gradients are averaged over all of them, and each process
    moves the same weights. Call `step` on all of them.

    With a ``torch.amp.GradScaler`` call `step` after ``scaler.update()``, also where the scaler has skipped
    the step. Gradients are ranked as they are scaled, which changes no order within a step.

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
        problems = []
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            problems.append(f"steps is {steps!r}; give the number of all steps of the optimizer, at least 1.")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            problems.append(f"seed is {seed!r}; give an integer of at least 0.")
        if not isinstance(schedule, RewiringSchedule | None):
            problems.append(f"schedule is {schedule!r}; give an fpe.RewiringSchedule(every=…, share=…).")
        try:
            self.policy = as_policy(policy)
        except ArgumentError as error:
            problems.append(str(error))
        raise_problems(problems, ArgumentError, "the rewirer")
        self.steps, self.schedule = steps, schedule or RewiringSchedule.for_steps(steps)
        self.model = unwrapped(model)
        check_masks(self.model, "the masks move")
        self.sites, self.scopes = find_sites(self.model, self.policy)
        self.optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        self._check_optimizers()
        self.taken = self.rewirings = 0
        self.moved = {self.sites[i].name: 0 for scope in self.scopes for i in scope}
        self.generator = torch.Generator().manual_seed(seed)
        self._late = False  # the last rewiring is still to come, for want of finite gradients
        self._waited = 0  # steps that it has waited for them
        self._gathering: list[int] = []  # the layers that gather the whole gradient at present
        self._seen = self._sums()
        self._watch()

    @torch.no_grad()
    def step(self) -> None:
        """Count a step of the optimizer, and let masks move if it is time; call it after each.

        A rewiring whose gradients are not finite, as they may be when a gradient scaler skips a step, comes
        one step later, by the gradients of that step. After 20 such steps in a row there is a warning.

        Raises
        ------
        ModelError
            If the layers that it knows are no longer the model's, or no longer trained.
        """
        self._check_layers()
        self.taken += 1
        if self._late or self.schedule.rewires(self.taken, self.steps):
            self._rewire()
        elif self.policy.keeps < 1:
            for i in self._gathering:
                gradient = self._gathered(i)
                if gradient is not None:
                    gradient.mul_(self.policy.keeps)
        self._watch()

    def hold(self) -> None:
        """Set weights and moments to zero where the masks, changed by others, hold them; in place."""
        for i, site in enumerate(self.sites):
            put(site.layer, whole(site.layer.fpe_mask), self.optimizers)
            if i in self._gathering:
                self._forget(i)

    def noise(self, i: int) -> Tensor:
        """Draw uniform noise for the entries of a layer."""
        return torch.rand(self.sites[i].layer.weight.shape, generator=self.generator)

    def count(self, i: int, moved: int) -> None:
        """Note that so many weights of a layer have been freed."""
        self.moved[self.sites[i].name] += moved

    def _rewire(self) -> None:
        share = self.schedule.share_at(self.taken, self.steps)
        gradients = self._gradients()
        self._late = gradients is None
        self._waited = self._waited + 1 if self._late else 0
        if self._waited == PATIENCE:
            warnings.warn(
                f"gradients have been NaN or infinite in the last {PATIENCE} steps, so that no mask has "
                "changed: training has diverged. Use a smaller learning rate, or scale the inputs.",
                RuntimeWarning,
                stacklevel=4,
            )
        if gradients is None:
            return
        for scope in self.scopes:
            tensors = [self._tensors(i, gradients.get(i)) for i in scope]
            for i, own, mask in zip(scope, tensors, new_masks(self.policy, tensors, share), strict=True):
                self.count(i, int((mask > own.mask).sum()))
                put(self.sites[i].layer, mask[0], self.optimizers)
        self.rewirings += 1
        self._seen = self._sums()

    def _tensors(self, i: int, gradient: Tensor | None) -> Tensors:
        layer = self.sites[i].layer
        weight, mask = whole(layer.weight), whole(layer.fpe_mask)
        noise = self.noise(i).to(weight.device) if self.policy.grow == "random" else None
        return Tensors(
            weight=weight.unsqueeze(0),
            mask=mask.unsqueeze(0),
            gradient=None if gradient is None else gradient.unsqueeze(0),
            noise=None if noise is None else noise.unsqueeze(0),
            children=self.sites[i].children,
            blocks=self.sites[i].blocks,
        )

    def _gradients(self) -> dict[int, Tensor] | None:
        """Return the averaged whole gradients, none for a policy without; None if some are not finite."""
        if not self._gathering:
            if self.schedule.every > 1 and self._seen == self._sums():
                if not self._overflowed():
                    raise ModelError(_NOT_TRAINED)
                return None  # a gradient scaler has skipped all steps
            return {}
        found = {i: self._gathered(i) for i in self._gathering}
        if all(gradient is None for gradient in found.values()):
            raise ModelError(_NOT_TRAINED)
        gradients = {}
        for i, gradient in found.items():  # a layer that no sample has reached has none
            mask = self.sites[i].layer.fpe_mask
            gradients[i] = average(torch.zeros_like(whole(mask)) if gradient is None else gradient)
        finite = torch.stack([g.isfinite().all() for g in gradients.values()])
        for i in self._gathering:
            self._forget(i)
        return gradients if bool(finite.all()) else None

    def _overflowed(self) -> bool:
        """Tell whether a gradient that is left from the last step is not finite."""
        gradients = [site.layer.weight.grad for site in self.sites]
        return any(g is not None and not bool(local(g).isfinite().all()) for g in gradients)

    def _watch(self) -> None:
        """Let the layers gather the whole gradient in the next step if it is needed, or stop it."""
        window, coming = self.policy.window(self.schedule.every), self.taken + 1
        wanted = window > 0 and (self._late or self.schedule.looks(coming, self.steps, window))
        if wanted == bool(self._gathering):
            return
        self._gathering = [i for scope in self.scopes for i in scope] if wanted else []
        for scope in self.scopes:
            for i in scope:
                self._forget(i)

    def _gathered(self, i: int) -> Tensor | None:
        probe = self.sites[i].layer._probe
        return None if probe is None else probe.grad

    def _forget(self, i: int, but: Tensor | None = None) -> None:
        """Let a layer gather from nothing, or from a given sum, or not at all."""
        layer = self.sites[i].layer
        if i in self._gathering:
            mask = whole(layer.fpe_mask)
            layer._probe = mask.new_zeros(()).expand(mask.shape).requires_grad_()
            layer._probe.grad = None if but is None else but.to(layer._probe).clone()
        else:
            layer._probe = None

    def _sums(self) -> list[float]:
        """Return numbers that change when an optimizer changes weights; fused ones leave no other trace."""
        return [float(local(site.layer.weight).sum(dtype=torch.float64)) for site in self.sites]

    def _check_layers(self) -> None:
        for site in self.sites:
            try:
                here = self.model.get_submodule(site.name) is site.layer
            except AttributeError:
                here = False
            if not here:
                raise ModelError(
                    f"layer {site.name!r} is another than when this rewirer was made: it has been packed, "
                    "or replaced. What is packed does not move; make a new rewirer for the model that is "
                    "trained, fpe.unpack(model) if it is packed."
                )

    def _check_optimizers(self) -> None:
        for optimizer in self.optimizers:
            if not isinstance(optimizer, Optimizer):
                raise ArgumentError(
                    f"optimizer is a {type(optimizer).__name__}; give a torch.optim.Optimizer."
                )
        trained = {id(p) for o in self.optimizers for group in o.param_groups for p in group["params"]}
        missing = [site.name for site in self.sites if id(site.layer.weight) not in trained]
        if missing:
            raise ArgumentError(
                f"the optimizer does not train the weights of {', '.join(map(repr, missing))}; make it from "
                "the expanded model's parameters, or give all optimizers in a list."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return all that a rewirer needs to go on as if it had not been stopped.

        The masks are the model's, and in its ``state_dict``. On several processes all must call this.
        """
        gathered = {self.sites[i].name: self._gathered(i) for i in self._gathering}
        return {
            "policy": vars(self.policy).copy(),
            "schedule": vars(self.schedule).copy(),
            "steps": self.steps,
            "taken": self.taken,
            "rewirings": self.rewirings,
            "late": self._late,
            "moved": dict(self.moved),
            "generator": self.generator.get_state(),
            "gathered": {n: average(g.clone()) for n, g in gathered.items() if g is not None},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another rewirer of the same model, policy, schedule and steps was.

        Parameters
        ----------
        state : dict
            What `state_dict` returned. The model's and the optimizer's are loaded by themselves.

        Raises
        ------
        CheckpointError
            If it is of another rewirer; nothing is changed then.
        """
        problems = []
        for name in ("policy", "schedule", "steps"):
            own = getattr(self, name)
            mine = own if name == "steps" else vars(own)
            if state.get(name) != mine:
                problems.append(f"{name} is {state.get(name)!r} in the state, and {mine!r} here.")
        if list(state.get("moved", {})) != list(self.moved):
            problems.append(
                f"the state is of layers {list(state.get('moved', {}))}, and this rewirer "
                f"of {list(self.moved)}."
            )
        raise_problems(problems, CheckpointError, "the rewirer's state")
        self.taken, self.rewirings, self._late = state["taken"], state["rewirings"], state["late"]
        self.moved = dict(state["moved"])
        self.generator.set_state(state["generator"].cpu())
        self._watch()
        for i in self._gathering:
            self._forget(i, state["gathered"].get(self.sites[i].name))

    def __getstate__(self) -> dict[str, Any]:
        """Take along what layers have gathered, which they leave behind when they are copied."""
        return {**vars(self), "_kept": {i: self._gathered(i) for i in self._gathering}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        kept = state.pop("_kept")
        vars(self).update(state)
        for i, gradient in kept.items():
            self._forget(i, gradient)

    def __repr__(self) -> str:
        return (
            f"Rewirer({self.policy}, {self.schedule}, step {self.taken:,} of {self.steps:,}, "
            f"{self.rewirings:,} rewirings, {sum(self.moved.values()):,} weights freed)"
        )

    def summary(self) -> str:
        """Return a table of what has been done: the weights freed so far, layer by layer."""
        rows = []
        for site in self.sites:
            mask = whole(site.layer.fpe_mask)
            moved = f"{self.moved[site.name]:,}" if site.name in self.moved else "stays"
            rows.append((site.name, f"{int(mask.sum(dtype=torch.float64)):,}", f"{mask.numel():,}", moved))
        head = ("layer", "free", "of", "freed so far")
        scope = {"layer": "each layer", "group": "each group", "network": "the network"}[self.policy.scope]
        return "\n".join([repr(self), *text_table(head, rows), f"the count of {scope} is constant"])


_NOT_TRAINED = (
    "no gradient has reached this rewirer's layers since the last rewiring. Call step() after backward and "
    "the optimizer's step; if the model was packed or copied, make a new rewirer for the one that is trained "
    "(fpe.unpack(model) if it is packed)."
)
