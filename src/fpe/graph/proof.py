"""The permutation check: neurons that can be expanded can be put in any order.

Put the rows of the producers, and all that stands over them, in another order, and the columns of
the consumers likewise: the output of the network must not move. An operation that mixes neurons,
a reader that was missed, or a norm that was forgotten moves it.

No weight is copied for longer than one operation: while the model runs, each use of a tensor
concerned, wherever it happens, sees a reordered one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from fpe.errors import ModelError
from fpe.graph.groups import Group, columns_of_runs, default_runs
from fpe.graph.inputs import as_call, tensors_in
from fpe.graph.layers import is_transposed, neuron_tensors, norm_blocks, size_of
from fpe.masked import mask_names

_Change = Callable[[Tensor], Tensor]


def prove(model: nn.Module, groups: Group | Sequence[Group], example_inputs: Any) -> None:
    """Check by a permutation of their neurons that groups are what they are taken for.

    Parameters
    ----------
    model : nn.Module
        Run in evaluation mode without gradients, with other tensors in place of some of its own; it is
        left as it was, and its weights are not copied.
    groups : Group or sequence of Group
        The neurons. All are permuted at once; only if the output moves are they tried one by one.
    example_inputs : Tensor, tuple or dict
        One batch: the model's input, its positional arguments, or its keyword arguments.

    Raises
    ------
    ModelError
        If the output moves, so that expanding the groups would make a wrong network. It names the first
        such group.
    """
    groups = [groups] if isinstance(groups, Group) else list(groups)
    if not groups:
        return
    moved, anything = _movement(model, groups, example_inputs)
    if not anything:
        raise ModelError(
            f"the neurons of {groups[0].name!r} cannot be proved to be a group: {type(model).__name__} "
            "returns no floating-point tensor that could move. Give a model that returns its logits."
        )
    if moved <= 1:
        return
    for group in groups:
        moved, _ = _movement(model, [group], example_inputs)
        if not moved <= 1:
            raise ModelError(
                f"the neurons of {group.name!r} cannot be expanded: when they are put in another order, "
                f"with the inputs of {', '.join(map(repr, group.consumers))} to match, the output moves by "
                f"{moved:.3g} times what rounding explains. Something between them mixes neurons, or "
                "another module reads them."
            )


def _movement(model: nn.Module, groups: Sequence[Group], example_inputs: Any) -> tuple[float, bool]:
    """Return how far the output moves, in units of what rounding explains, and if there is any output."""
    args, kwargs = as_call(example_inputs)
    worst, anything = 0.0, False
    for sign in (1, -1):
        common = _unlike(model, groups) + _signed(model, groups, sign)
        old = _run(model, common, args, kwargs)
        new = _run(model, common + _permuted(model, groups), args, kwargs)
        for a, b in zip(old, new, strict=True):
            if a.numel():
                anything = True
                worst = max(worst, _distance(a, b))
    return worst, anything


def _distance(old: Tensor, new: Tensor) -> float:
    """Return the largest change, in units of what reordered sums may make of it; infinite for a NaN."""
    eps = torch.finfo(old.dtype).eps
    same = (old == new) | (old.isnan() & new.isnan())
    change = torch.where(same, 0, (old - new).abs()).max()
    finite = old[old.isfinite()]
    scale = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
    allowed = (1e3 if eps < 1e-5 else 16) * eps * scale
    return float("inf") if change.isnan() else float(change) / allowed


class _Substitute(TorchFunctionMode):
    """Lets every operation see changed tensors in the place of some of the model's own."""

    def __init__(self, changes: dict[int, list[_Change]]) -> None:
        super().__init__()
        self.changes = changes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def seen(value: Any) -> Any:
            if isinstance(value, Tensor) and id(value) in self.changes:
                for change in self.changes[id(value)]:
                    value = change(value)
            return value

        return func(*tree_map(seen, args), **tree_map(seen, kwargs or {}))


def _run(
    model: nn.Module, changes: list[tuple[Tensor, _Change]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Tensor]:
    by_tensor: dict[int, list[_Change]] = {}
    for tensor, change in changes:
        by_tensor.setdefault(id(tensor), []).append(change)
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]), _Substitute(by_tensor):
        torch.manual_seed(0)
        output = model(*args, **kwargs)
        return [t.clone() for t in tensors_in(output) if t.is_floating_point()]


def _unlike(model: nn.Module, groups: Sequence[Group]) -> list[tuple[Tensor, _Change]]:
    """Make the entries of other tensors with one entry for each neuron unlike each other.

    The entries of an untrained norm are all alike, so that a permutation would not show that it was
    forgotten.
    """
    own = tuple(f"{name}." for group in groups for name in (*group.producers, *group.between))
    widths = {size_of(model, group.name)[0] for group in groups}

    def add_noise(tensor: Tensor) -> Tensor:
        noise = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0))
        return tensor + 0.1 * noise.to(tensor)

    return [
        (tensor, add_noise)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if tensor.dim() == 1
        and len(tensor) in widths
        and tensor.is_floating_point()
        and not name.startswith(own)
    ]


def _signed(model: nn.Module, groups: Sequence[Group], sign: int) -> list[tuple[Tensor, _Change]]:
    """Change the producers' signs: each neuron is to be seen on both sides of zero.

    A forgotten PReLU shows only where what it gets is negative.
    """
    if sign == 1:
        return []
    producers = [model.get_submodule(name) for group in groups for name in group.producers]
    return [(p, torch.neg) for producer in producers for p in producer.parameters(recurse=False)]


def _permuted(model: nn.Module, groups: Sequence[Group]) -> list[tuple[Tensor, _Change]]:
    """Put the neurons of the groups into orders that leave none in place."""
    changes: list[tuple[Tensor, _Change]] = []
    for group in groups:
        neurons, _ = size_of(model, group.name)
        between = [model.get_submodule(name) for name in group.between]
        order = _order(neurons, norm_blocks(between, neurons))
        for name in group.producers:
            layer = model.get_submodule(name)
            axis = 1 if is_transposed(layer) else 0
            for key, tensor in _floats(layer):
                changes.append((tensor, _taking(order, 0 if key.startswith("bias") else axis)))
        for module in between:
            for tensor in neuron_tensors(module, neurons).values():
                changes.append((tensor, _taking(order, 0)))
        for position, name in enumerate(group.consumers):
            layer = model.get_submodule(name)
            inputs = size_of(model, name)[1]
            runs = group.columns[position] if group.columns else default_runs(neurons, inputs)
            columns = columns_of_runs(runs, order, neurons)
            axis = 0 if is_transposed(layer) else 1
            changes += [(t, _taking(columns, axis)) for key, t in _floats(layer) if key != "bias"]
    return changes


def _floats(layer: nn.Module) -> list[tuple[str, Tensor]]:
    return [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]


def _taking(index: Tensor, axis: int) -> _Change:
    return lambda tensor: tensor.index_select(axis, index.to(tensor.device))


def _order(neurons: int, blocks: int) -> Tensor:
    """Return an order that moves every neuron, within each of `blocks` runs of adjacent ones."""
    size = neurons // blocks
    shuffled = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    order = torch.empty_like(shuffled)
    order[shuffled] = shuffled.roll(1)
    return (torch.arange(blocks)[:, None] * size + order).flatten()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, and undo afterwards what a forward pass leaves behind in the modules.

    No dropout is drawn and no running mean moves; attributes that a forward pass sets, and buffers that
    it counts in, are put back.
    """
    modules = list(model.modules())
    attributes = [dict(vars(m)) for m in modules]
    buffers = [dict(m._buffers) for m in modules]
    masks = mask_names(model)
    values = [(b, b.clone()) for name, b in model.named_buffers() if name not in masks]
    model.eval()
    try:
        yield
    finally:
        for module, own, tensors in zip(modules, attributes, buffers, strict=True):
            vars(module).clear()
            vars(module).update(own)
            module._buffers.clear()
            module._buffers.update(tensors)
        for buffer, value in values:
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)
