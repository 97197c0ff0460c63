"""`BlockPruner`: prunes the inputs of packed blocks to a budget while they are trained, and their memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fpe._util.modules import unwrapped
from fpe.errors import ArgumentError, BudgetError, CheckpointError, ModelError, raise_problems
from fpe.masked import count_nonzero
from fpe.packing.bits import pack_zeros
from fpe.packing.blocks import BlockLayer, block_layout
from fpe.packing.layers import bytes_of
from fpe.packing.summary import Packing
from fpe.rewiring.block_rewirer import check_trained, columns_of, find_blocks, slots_of
from fpe.rewiring.gradual import PruningSchedule, power_of, score_of
from fpe.rewiring.pruner import SECOND_MOMENTS
from fpe.rewiring.schedule import argument_problems


class BlockPruner:
    """Prune whole inputs of packed blocks to a budget while they are trained; their memory falls with them.

    From ``schedule.begin`` to ``schedule.end`` of all steps the inputs of the smallest scores are removed
    from each block, every ``schedule.every`` steps. Every block keeps the same share of the most inputs that
    a block of its layer had, rounded down, but at least one. So the blocks of a layer stay one batched
    product, and the count ends below the budget by less than one input of each block. Parameters keep their
    identity and become smaller, and so do the optimizer's moments.

    Parameters
    ----------
    model : nn.Module
        What `fpe.pack` returned, with linear layers of blocks: of a parent that is larger than the budget,
        expanded with ``split="shared", prune="columns"``. Not compiled, not sharded.
    optimizer : Optimizer or sequence of Optimizer
        Trains it.
    budget : int
        Non-zero parameters of the whole model in the end, at most; biases and other layers included.
    steps : int
        Steps of the optimizer, all in all, to which the schedule refers.
    score : str or float, default "moment"
        The power p in the score of an input, the norm of |w| · v^p over the neurons of its block:
        ``"magnitude"`` is 0, ``"moment"`` ¼, ``"fisher"`` ½. v is Adam's running mean of squared gradients;
        an optimizer that has none needs ``"magnitude"``.
    schedule : PruningSchedule, optional
        By default ``PruningSchedule``, with an interval of a fiftieth of the steps.

    Attributes
    ----------
    taken : int
        Steps so far.
    start : int
        Non-zero parameters at the beginning.

    Raises
    ------
    ArgumentError
        For arguments that are not allowed, or an optimizer that does not train the blocks.
    BudgetError
        If the budget is larger than the model, or too small for what is not an input of a block.
    ModelError
        If the model has no blocks whose inputs could be removed.

    Examples
    --------
    >>> import torch, fpe
    >>> wide = fpe.expand(fpe.mlp(64, 16, 3), factor=2, split="shared", prune="columns")
    >>> packed = fpe.pack(wide)
    >>> optimizer = torch.optim.Adam(packed.parameters())
    >>> pruner = fpe.BlockPruner(packed, optimizer, budget=600, steps=100)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     packed(torch.randn(16, 64)).square().mean().backward()
    ...     optimizer.step()
    ...     pruner.step()
    >>> pruner.start, fpe.count_nonzero(packed), packed[0].sizes
    (1091, 579, [(16, 14), (16, 14)])
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
    ) -> None:
        problems = argument_problems(steps, 0, None)
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            problems.append(f"budget is {budget!r}; give an integer of at least 1.")
        if not isinstance(schedule, PruningSchedule | None):
            problems.append(f"schedule is {schedule!r}; give an fpe.PruningSchedule(begin=…, end=…).")
        try:
            self.power = power_of(score)
        except ArgumentError as error:
            problems.append(str(error))
        raise_problems(problems, ArgumentError, "the pruner")
        self.budget, self.steps = budget, steps
        self.schedule = schedule or PruningSchedule.for_steps(steps)
        self.model = unwrapped(model)
        self.layers = find_blocks(self.model)
        self.optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        check_trained(self.layers, self.optimizers)
        self.taken, self.start = 0, count_nonzero(self.model)
        #: The most inputs that a block of each layer had.
        self.most = {name: max(own for _, own in layer.sizes) for name, layer in self.layers.items()}
        if budget > self.start:
            raise BudgetError(
                f"budget is {budget:,}, and the model has {self.start:,} non-zero parameters; give a smaller "
                "budget, or pack a wider model."
            )
        free, _ = self._ranked(power=0)
        least = self._others(free) + sum(int(own.amax(1).sum()) for own in free.values())
        if budget < least:
            raise BudgetError(
                f"budget is {budget:,}, and {least:,} parameters cannot be removed: biases, other layers, "
                "and one input of each block; give a larger budget."
            )

    @property
    def finished(self) -> bool:
        """Whether the budget is reached."""
        return self.taken >= self.schedule.last(self.steps)

    def count_at(self, step: int) -> int:
        """Return how many non-zero parameters the model has, at most, after a step, from 0 to `steps`."""
        return self.schedule.count_at(step, self.steps, self.start, self.budget)

    def step(self) -> None:
        """Count a step of the optimizer, and prune if it is time; call it after each step.

        Raises
        ------
        ModelError
            If no gradient has reached the blocks, or if the scores are not finite.
        """
        self.taken += 1
        if self.schedule.prunes(self.taken, self.steps):
            self._prune()

    @torch.no_grad()
    def _prune(self) -> None:
        free, scores = self._ranked(self.power)
        if not all(bool(own.isfinite().all()) for own in scores.values()):
            raise ModelError(
                "weights or their squared gradients are NaN or infinite, so that no input can be ranked: "
                "training has diverged. Use a smaller learning rate, or scale the inputs."
            )
        goal = self.count_at(self.taken) - self._others(free)
        order = {name: _best_first(own, free[name]) for name, own in scores.items()}
        ranked = {name: free[name].gather(1, own) for name, own in order.items()}
        every = sorted({Fraction(k, most) for most in self.most.values() for k in range(1, most + 1)})
        # The largest share whose count is within the goal; counts rise with the share.
        place = bisect_right(every, goal, key=lambda share: _total(ranked, self._inputs(share)))
        for name, inputs in self._inputs(every[max(0, place - 1)]).items():
            if inputs >= max(own for _, own in self.layers[name].sizes):
                continue
            kept = torch.zeros_like(free[name], dtype=torch.bool)
            kept.scatter_(1, order[name][:, :inputs], True)
            kept &= free[name] > 0
            keep_inputs_(self.layers[name], kept, self.optimizers)
        self._summarize()

    def _inputs(self, share: Fraction) -> dict[str, int]:
        """Return how many inputs each block of each layer keeps, if it has so many."""
        return {name: max(1, int(share * most)) for name, most in self.most.items()}

    def _others(self, free: dict[str, Tensor]) -> int:
        """Count the parameters that are not those of blocks, whose free weights are given."""
        return count_nonzero(self.model) - sum(int(own.sum()) for own in free.values())

    @torch.no_grad()
    def _ranked(self, power: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the number of free weights of each input of each block, and its score: (blocks, inputs)."""
        counts, scores = {}, {}
        for name, layer in self.layers.items():
            columns, size = columns_of(layer), (len(layer.sizes), layer.shape.inputs)
            count = torch.zeros(size, dtype=torch.int64, device=columns.device)
            score = torch.zeros(size, device=columns.device)
            for own in slots_of(layer):
                moment = None if power == 0 else self._second_moment(name, own.parameter)[own.part]
                norms = score_of(own.parameter[own.part], moment, power).square().sum(1).sqrt()
                score[own.block, columns[own.columns]] = norms.to(score)
                free = layer.free(f"weight_{own.batch}")
                neurons = layer.sizes[own.block][0]
                count[own.block, columns[own.columns]] = neurons if free is None else free[own.part].sum(1)
            counts[name], scores[name] = count, score
        return counts, scores

    def _second_moment(self, name: str, parameter: nn.Parameter) -> Tensor:
        states = [optimizer.state.get(parameter, {}) for optimizer in self.optimizers]
        known = [state[key] for state in states for key in SECOND_MOMENTS if key in state]
        if not known:
            raise ModelError(
                f"the optimizer has no running mean of squared gradients of {name!r}: call step() after its "
                "step, use Adam or RMSprop, or give score='magnitude'."
            )
        return cast(Tensor, known[0])

    def _summarize(self) -> None:
        """Bring the model's summary of its packing up to date."""
        packing = vars(self.model).get("fpe_packing")
        if not isinstance(packing, Packing):
            return
        rows = []
        for row in packing.rows:
            layer = self.layers.get(row.name)
            if layer is not None:
                nonzero = count_nonzero(layer)
                parameter = next(slots_of(layer)).parameter
                sizes = (nonzero * parameter.element_size(), row.bytes[1], bytes_of(layer))
                why = f"{len(layer.sizes)} blocks, pruned to {max(own for _, own in layer.sizes):,} inputs"
                row = replace(row, nonzero=nonzero, bytes=sizes, why=why)
            rows.append(row)
        self.model.fpe_packing = Packing(tuple(rows))

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to resume, beside the states of the model and the optimizer."""
        return {**self._settings(), "taken": self.taken, "start": self.start, "most": dict(self.most)}

    def _settings(self) -> dict[str, Any]:
        own = {"budget": self.budget, "steps": self.steps, "power": self.power}
        return {**own, "schedule": vars(self.schedule).copy(), "layers": list(self.layers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the `state_dict` of a pruner of the same settings.

        Make this one for the model that `fpe.load` returned, or a copy of the one that was trained: its
        blocks have as many inputs as they had. The state of another pruner is refused with a CheckpointError;
        nothing is changed then.
        """
        problems = [
            f"{name} is {state.get(name)!r} in the state, and {own!r} here."
            for name, own in self._settings().items()
            if state.get(name) != own
        ]
        raise_problems(problems, CheckpointError, "the pruner's state")
        self.taken, self.start, self.most = state["taken"], state["start"], dict(state["most"])

    def __repr__(self) -> str:
        score = f"|w|·v^{self.power:g}" if self.power else "|w|"
        return (
            f"BlockPruner(step {self.taken:,} of {self.steps:,}, {count_nonzero(self.model):,} of "
            f"{self.start:,} non-zero parameters, budget {self.budget:,}, score {score})"
        )


def _best_first(scores: Tensor, free: Tensor) -> Tensor:
    """Return the inputs of each block, (blocks, inputs), the best first; those that it does not have last."""
    return torch.where(free > 0, scores, -1).argsort(dim=1, descending=True, stable=True)


def _total(ranked: dict[str, Tensor], inputs: dict[str, int]) -> int:
    """Count the free weights of the first inputs of each block."""
    return sum(int(own[:, : inputs[name]].sum()) for name, own in ranked.items())


@torch.no_grad()
def keep_inputs_(layer: BlockLayer, kept: Tensor, optimizers: Sequence[Optimizer]) -> None:
    """Remove all inputs of blocks but those that are marked, (blocks, inputs), from a layer, in place.

    Each block must have the inputs that are marked, and at least one. Parameters become smaller, and so do
    their gradients and what optimizers keep for each weight; where blocks become equal, there are fewer.
    """
    columns = [block.columns for block in layer.blocks()]
    chosen = [kept[number, own].nonzero().flatten() for number, own in enumerate(columns)]
    sizes = [(neurons, len(own)) for (neurons, _), own in zip(layer.sizes, chosen, strict=True)]
    batches = block_layout(sizes, together=True)
    old = [layer.get_parameter(f"weight_{number}") for number in range(len(layer.batches))]

    def compact(stored: Sequence[Tensor]) -> list[Tensor]:
        parts = [own[:, here] for own, here in zip(layer._by_block(stored), chosen, strict=True)]
        return [
            layer._stored([parts[b][:, batch.first : batch.first + batch.inputs] for b in batch.blocks])
            for batch in batches
        ]

    weights = compact([parameter.data for parameter in old])
    masks = [layer.free(f"weight_{number}") for number in range(len(old))]
    free = compact([torch.ones_like(p) if m is None else m.to(p) for p, m in zip(old, masks, strict=True)])
    given = [p.grad for p in old if p.grad is not None]
    gradients = compact(given) if len(given) == len(old) else None
    states: list[tuple[Optimizer, str, list[Tensor]]] = []
    for optimizer in optimizers:
        for name, value in optimizer.state.get(old[0], {}).items():
            if isinstance(value, Tensor) and value.shape == old[0].shape:
                states.append((optimizer, name, compact([optimizer.state[p][name] for p in old])))
            elif isinstance(value, Tensor) and value.dim() > 0:
                raise ModelError(
                    f"{type(optimizer).__name__} keeps {name!r} of another shape than the weights, which "
                    "cannot become smaller with them; use Adam, RMSprop or SGD."
                )
    for number, parameter in enumerate(old[len(batches) :], start=len(batches)):
        _forget(parameter, optimizers)
        delattr(layer, f"weight_{number}")
        delattr(layer, f"zero_positions_{number}")
    for number, weight in enumerate(weights):
        parameter = old[number]
        parameter.grad = None
        # A change of the type, unlike one of the shape, lets torch forget the old shape of gradients.
        parameter.data = weight.new_empty(0, dtype=torch.complex64)
        parameter.data = weight
        parameter.grad = None if gradients is None else gradients[number]
        layer._buffers[f"zero_positions_{number}"] = pack_zeros(free[number] != 0)
        for optimizer, name, values in states:
            optimizer.state[parameter][name] = values[number]
    assert layer.columns is not None
    picked = [own[here] for own, here in zip(columns, chosen, strict=True)]
    order = [picked[b][t.first : t.first + t.inputs] for t in batches for b in t.blocks]
    layer.sizes, layer.batches, layer.columns = sizes, batches, torch.cat(order).to(layer.columns.dtype)
    layer.weight_names = layer.weight_names[: len(batches)]


def _forget(parameter: nn.Parameter, optimizers: Sequence[Optimizer]) -> None:
    """Remove a parameter from optimizers."""
    for optimizer in optimizers:
        optimizer.state.pop(parameter, None)
        for group in optimizer.param_groups:
            group["params"] = [own for own in group["params"] if own is not parameter]
