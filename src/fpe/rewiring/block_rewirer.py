"""`BlockRewirer`: changes the inputs of packed blocks while they are trained, in the memory of the parent."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fpe._util.modules import check_module, unwrapped
from fpe.errors import ArgumentError, CheckpointError, ModelError, raise_problems
from fpe.expansion.index_maps import index_map_of
from fpe.packing.bits import are_rows
from fpe.packing.blocks import BlockLayer
from fpe.rewiring.drop_and_grow import exchange
from fpe.rewiring.policies import RewiringPolicy
from fpe.rewiring.rewirer import PATIENCE
from fpe.rewiring.schedule import RewiringSchedule, argument_problems
from fpe.rewiring.sites import average_

#: Drop the inputs whose weights would change the loss least, grow those of the largest gradient.
BLOCKS = RewiringPolicy(drop="movement", unit="column")
#: Entries of a gradient for all inputs that are made at a time.
CHUNK = 1 << 20


@dataclass(frozen=True)
class _Slots:
    """Some inputs of one block: a slice of the columns of its layer, and the rows of a parameter."""

    block: int
    columns: slice
    parameter: nn.Parameter
    part: int  # of the parameter: (parts, inputs, neurons)
    padding: Tensor  # which of them only make blocks equal
    batch: int


class BlockRewirer:
    """Exchange inputs of packed blocks while they are trained; each block keeps its number of inputs.

    Every ``schedule.every`` steps, some inputs of each block are dropped, and as many that it does not have
    are grown, with weights 0. Nothing is stored but what `fpe.pack` stores: memory is that of the dense
    parent, while `fpe.Rewirer` needs the wide layer's. Only the steps before a rewiring cost more, the
    product of a wide layer's gradient.

    Parameters
    ----------
    model : nn.Module
        What `fpe.pack` returned, with linear layers of blocks (``split="shared", prune="columns"``). Not
        compiled, not sharded.
    optimizer : Optimizer or sequence of Optimizer
        Trains it.
    policy : RewiringPolicy, optional
        With ``unit="column"``, ``partition="free"`` and ``grow="gradient"`` (the default) or ``"random"``.
    steps : int
        Steps of the optimizer, all in all, to which the schedule refers.
    schedule : RewiringSchedule, optional
        As for `fpe.Rewirer`.
    seed : int, default 0
        Seed of random growth.

    Attributes
    ----------
    taken, rewirings : int
        Steps, and rewirings, so far.
    grown : dict of str to int
        The inputs grown so far, over all blocks, by layer.

    Raises
    ------
    ArgumentError
        For arguments that are not allowed, or an optimizer that does not train the blocks.
    ModelError
        If the model has no blocks whose inputs could be exchanged.

    Examples
    --------
    >>> import torch, fpe
    >>> wide = fpe.expand(fpe.mlp(64, 8, 3), factor=2, split="shared", prune="columns")
    >>> packed = fpe.pack(wide)
    >>> optimizer = torch.optim.Adam(packed.parameters())
    >>> rewirer = fpe.BlockRewirer(packed, optimizer, steps=100)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     packed(torch.randn(16, 64)).square().mean().backward()
    ...     optimizer.step()
    ...     rewirer.step()
    >>> rewirer.rewirings, fpe.count_nonzero(fpe.unpack(packed)) <= fpe.count_nonzero(wide)
    (44, True)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        policy: RewiringPolicy = BLOCKS,
        *,
        steps: int,
        schedule: RewiringSchedule | None = None,
        seed: int = 0,
    ) -> None:
        problems = argument_problems(steps, seed, schedule)
        if (
            not isinstance(policy, RewiringPolicy)
            or (policy.unit, policy.partition) != ("column", "free")
            or policy.grow not in ("gradient", "random")
        ):
            problems.append(
                f"policy is {policy!r}; give fpe.RewiringPolicy(unit='column', grow='gradient' or 'random', "
                "drop='movement' or 'magnitude')."
            )
        raise_problems(problems, ArgumentError, "the rewirer")
        self.policy, self.steps = policy, steps
        self.schedule = schedule or RewiringSchedule.for_steps(steps)
        self.model = unwrapped(model)
        self.layers = find_blocks(self.model)
        self.optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        check_trained(self.layers, self.optimizers)
        self.taken = self.rewirings = 0
        self.grown = dict.fromkeys(self.layers, 0)
        self.generator = torch.Generator().manual_seed(seed)
        self.late = False  # whether a rewiring waits for finite gradients
        self._waited = 0
        self._handles: list[Any] = []
        self._squares: dict[str, Tensor] = {}
        self._gather()

    def step(self) -> None:
        """Count a step of the optimizer, and exchange inputs if it is time; call it after each step.

        If gradients are not finite, as when a gradient scaler skips a step, those of the next step are used.

        Raises
        ------
        ModelError
            If no gradient has reached the blocks.
        """
        self.taken += 1
        if self.late or self.schedule.rewires(self.taken, self.steps):
            self._rewire()
        self._gather()

    def _gather(self) -> None:
        """Let layers gather the gradients for all inputs if the next step needs them."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._squares = [], {}
        coming = self.late or self.schedule.rewires(self.taken + 1, self.steps)
        if self.policy.grow == "gradient" and coming:
            for name, layer in self.layers.items():
                self._handles.append(layer.register_forward_hook(self._observer(name)))

    def _observer(self, name: str) -> Any:
        def observe(layer: BlockLayer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].detach().reshape(-1, layer.shape.inputs)

            def add(gradient: Tensor) -> None:
                own = gradient.detach().reshape(len(x), -1)
                found = squared_norms(layer, x, own)
                self._squares[name] = self._squares[name] + found if name in self._squares else found

            if output.requires_grad:
                output.register_hook(add)  # type: ignore[no-untyped-call]

        return observe

    @torch.no_grad()
    def _rewire(self) -> None:
        scores = {}
        for name, layer in self.layers.items():
            if all(own.parameter.grad is None for own in slots_of(layer)):
                raise ModelError(
                    f"no gradient has reached the blocks of {name!r}. Call step() after backward and the "
                    "optimizer's step, and before zero_grad()."
                )
            size = len(layer.sizes), layer.shape.inputs
            if self.policy.grow == "random":
                grow = torch.rand(size, generator=self.generator).to(layer.rows.device)
            elif name in self._squares:
                grow = average_(self._squares[name]).sqrt()
            else:
                raise ModelError(
                    f"the gradients of all inputs of {name!r} were not seen: the model was compiled, copied "
                    "or not called. Rewire the model that is trained, without torch.compile."
                )
            scores[name] = self._drop_scores(layer), grow
        self.late = not all(bool(own.isfinite().all()) for pair in scores.values() for own in pair)
        self._waited = self._waited + 1 if self.late else 0
        if self._waited == PATIENCE:
            warnings.warn(
                f"gradients have been NaN or infinite in the last {PATIENCE} steps: training has diverged.",
                RuntimeWarning,
                stacklevel=3,
            )
        if self.late:
            return
        share = self.schedule.share_at(self.taken, self.steps)
        for name, layer in self.layers.items():
            self.grown[name] += exchange_inputs_(layer, *scores[name], share, self.optimizers)
        self.rewirings += 1

    def _drop_scores(self, layer: BlockLayer) -> Tensor:
        """Return the norm of each input's weights, or of weights times gradients: (blocks, inputs)."""
        found = layer.rows.new_zeros((len(layer.sizes), layer.shape.inputs), dtype=torch.float32)
        for own in slots_of(layer):
            weight = own.parameter[own.part]
            if self.policy.drop == "movement" and own.parameter.grad is not None:
                weight = weight * own.parameter.grad[own.part]
            norms = weight.float().square().sum(1).sqrt()
            found[own.block, columns_of(layer)[own.columns]] = norms
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to resume, beside the states of the model and the optimizer."""
        return {
            "policy": vars(self.policy).copy(),
            "schedule": vars(self.schedule).copy(),
            "steps": self.steps,
            "taken": self.taken,
            "rewirings": self.rewirings,
            "late": self.late,
            "grown": dict(self.grown),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the `state_dict` of a rewirer of the same model, policy, schedule and steps.

        The state of another rewirer is refused with a CheckpointError; nothing is changed then.
        """
        own = self.state_dict()
        problems = [
            f"{key} is {state.get(key)!r} in the state, and {own[key]!r} here."
            for key in ("policy", "schedule", "steps")
            if state.get(key) != own[key]
        ]
        if list(state.get("grown", {})) != list(self.grown):
            problems.append(f"the state is of layers {list(state.get('grown', {}))}, not {list(self.grown)}.")
        raise_problems(problems, CheckpointError, "the rewirer's state")
        self.taken, self.rewirings, self.late = state["taken"], state["rewirings"], state["late"]
        self.grown = dict(state["grown"])
        self.generator.set_state(state["generator"].cpu())
        self._gather()

    def __repr__(self) -> str:
        return (
            f"BlockRewirer({self.policy}, {self.schedule}, step {self.taken:,} of {self.steps:,}, "
            f"{self.rewirings:,} rewirings, {sum(self.grown.values()):,} inputs grown)"
        )


def find_blocks(model: Any) -> dict[str, BlockLayer]:
    """Return the layers of packed blocks whose inputs can be exchanged, by name."""
    check_module(model, give="a model that fpe.pack returned")
    found = {
        name: module
        for name, module in model.named_modules()
        if type(module) is BlockLayer
        and not module.shape.taps
        and module.columns is not None
        and (index_map_of(module) is not None or len(module.sizes) > 1)
        and any(own.parameter.requires_grad for own in slots_of(module))
    }
    if not found:
        raise ModelError(
            "this model has no linear layer of packed blocks; give fpe.pack(fpe.expand(model, factor, "
            "split='shared', prune='columns')), or use fpe.Rewirer for masks."
        )
    return found


def check_trained(layers: Mapping[str, BlockLayer], optimizers: Sequence[Optimizer]) -> None:
    """Raise if the optimizers do not train the weights of all layers."""
    trained = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
    for name, layer in layers.items():
        if any(id(own.parameter) not in trained for own in slots_of(layer)):
            raise ArgumentError(
                f"the optimizer does not train the blocks of {name!r}; make it from the parameters of the "
                "packed model."
            )


def columns_of(layer: BlockLayer) -> Tensor:
    """Return the inputs of the blocks, batch by batch."""
    assert layer.columns is not None
    return layer.columns.long()


def slots_of(layer: BlockLayer) -> Iterator[_Slots]:
    """Yield the inputs of each block, batch by batch as they are stored."""
    start = 0
    for number, batch in enumerate(layer.batches):
        parameter = layer.get_parameter(f"weight_{number}")
        positions = layer._buffers[f"zero_positions_{number}"]
        padding = torch.zeros(len(batch.blocks), batch.inputs, dtype=torch.bool, device=parameter.device)
        if positions is not None and are_rows(positions):
            padding.view(-1)[positions.flatten().long()] = True
        for part, block in enumerate(batch.blocks):
            columns = slice(start, start + batch.inputs)
            yield _Slots(block, columns, parameter, part, padding[part], number)
            start += batch.inputs


@torch.no_grad()
def squared_norms(layer: BlockLayer, x: Tensor, gradient: Tensor) -> Tensor:
    """Return the squared norm of the gradient of each block's weights for every input: (blocks, inputs).

    `x` has the layer's inputs, (samples, inputs), and `gradient` the gradients of its outputs.
    """
    if layer.restore is not None:
        gradient = gradient.index_select(1, layer.rows.long())
    found = x.new_zeros((len(layer.sizes), layer.shape.inputs), dtype=torch.float32)
    step = max(1, CHUNK // layer.shape.inputs)
    blocks = torch.split(gradient, [neurons for neurons, _ in layer.sizes], dim=1)
    for norms, own in zip(found, blocks, strict=True):
        for some in torch.split(own, step, dim=1):
            norms += (some.t() @ x).float().square().sum(0)
    return found


@torch.no_grad()
def exchange_inputs_(
    layer: BlockLayer, drop: Tensor, grow: Tensor, share: float, optimizers: Sequence[Optimizer]
) -> int:
    """Exchange a share of the inputs of each block, in place; return how many were grown.

    `drop` and `grow` are scores, (blocks, inputs). The input of the largest score of each block stays.
    """
    free, padding = torch.zeros_like(drop, dtype=torch.bool), torch.zeros_like(drop, dtype=torch.bool)
    columns, slots = columns_of(layer), list(slots_of(layer))
    for own in slots:
        free[own.block, columns[own.columns]] = True
        padding[own.block, columns[own.columns]] = own.padding
    real = free & ~padding
    best = torch.where(real, drop, -torch.inf).argmax(dim=1, keepdim=True)
    droppable = real.scatter(1, best, False)
    counts = [int(share * count) for count in real.sum(1).tolist()]
    dropped, grown = exchange(real, droppable, drop, grow, counts, lambda remaining: ~free)
    # The replacement of each dropped input, in order.
    new = torch.arange(drop.shape[1], device=drop.device).repeat(len(drop), 1)
    for block in range(len(drop)):
        new[block, dropped[block]] = grown[block].nonzero().flatten()
    for own in slots:
        here = columns[own.columns]
        changed = dropped[own.block, here]
        columns[own.columns] = new[own.block, here]
        tensors = [own.parameter.data, own.parameter.grad]
        states = [o.state.get(own.parameter, {}).values() for o in optimizers]
        tensors += [t for state in states for t in state if isinstance(t, Tensor) and t.dim() == 3]
        for tensor in tensors:
            if tensor is not None:
                tensor[own.part, changed] = 0
    assert layer.columns is not None
    layer.columns.copy_(columns)
    return int(grown.sum())
