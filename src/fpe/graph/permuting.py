"""Other weights for a model whose groups are verified: random ones, and those of permuted neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fpe.graph.groups import (
    Layout,
    NeuronGroup,
    layout_for,
    layout_neurons,
    layout_places,
    layout_sources,
    layout_width,
)
from fpe.graph.layers import (
    is_transposed,
    is_turned,
    neuron_tensors,
    neurons_of,
    oriented_weight,
    over_neurons,
    size_of,
)
from fpe.graph.stacked import StackedLinear
from fpe.masked import MaskedLayer

#: So many random numbers are drawn for a tensor; a prime number, so that rows do not repeat.
MOST_DRAWN = 1_000_003
#: Parameters and buffers, each with the value that it is to have instead.
Values = dict[Tensor, Tensor]


class Shared:
    """Tensors that are made of others, each once: equal layers of a model share the same random weights."""

    def __init__(self) -> None:
        self.made: dict[Any, tuple[Tensor, Tensor]] = {}

    def of(self, source: Tensor, how: Any, make: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what `make` makes of a tensor; `how` tells it apart from anything else made of it."""
        place = source.data_ptr(), source.shape, source.stride(), source.dtype, how
        if place not in self.made:
            self.made[place] = make(source), source  # which is kept, so that no other gets its memory
        return self.made[place][0]


def to_randomize(
    model: nn.Module, groups: Sequence[NeuronGroup], everywhere: bool
) -> Iterator[tuple[Tensor, bool]]:
    """Yield the tensors that `randomize_` changes, and whether nothing stays of their values."""
    producers = {name for group in groups for name in group.producers}
    widths = {neurons_of(model, group) for group in groups}
    widths |= {
        layout_width(group.entries_of(name), neurons_of(model, group))
        for group in groups
        for name in group.between
    }
    seen: set[int] = set()
    for name, module in model.named_modules():
        buffers = (buffer for buffer in module.buffers(recurse=False) if _is_vector(buffer, widths))
        for tensor in (*module.parameters(recurse=False), *buffers):
            if id(tensor) in seen or not tensor.is_floating_point() or not tensor.numel():
                continue
            seen.add(id(tensor))
            anew = name in producers or (everywhere and not _is_vector(tensor))
            if anew or everywhere or _is_vector(tensor, widths):
                yield tensor, anew


def randomize_(model: nn.Module, groups: Sequence[NeuronGroup], everywhere: bool) -> None:
    """Give weights a healthy scale, everywhere or in the producers only; masked weights become free.

    A neuron does not show behind a head of zeros, nor a missing norm whose entries are all alike, nor a
    missing PReLU over neurons that are always positive: of each pair of neurons, one is negative where the
    other is positive. Norms over the neurons lose their statistics, which only whole copies of all neurons
    keep. Weights of one shape share their memory.
    """
    for module in model.modules():
        if isinstance(module, MaskedLayer):
            module.fpe_mask.fill_(1)
    pairs: dict[Tensor, list[tuple[int, Layout, int]]] = {}
    for group in groups:
        for tensor, axis, layout in tensors_of(model, group, group.producers):
            pairs.setdefault(tensor, []).append((axis, layout, neurons_of(model, group)))
    embeddings = (m for m in model.modules() if isinstance(m, nn.Embedding) and m.max_norm is None)
    tables = {m.weight for m in embeddings if m.weight.numel() > MOST_DRAWN and m.weight not in pairs}
    inputs = {m.weight: oriented_weight(m).shape[1] for m in model.modules() if isinstance(m, StackedLinear)}
    drawn: dict[Any, Tensor] = {}
    for tensor, anew in to_randomize(model, groups, everywhere):
        if not anew:
            generator = torch.Generator(tensor.device).manual_seed(tensor.numel())
            about_one = torch.empty_like(tensor.data).uniform_(0.5, 1.5, generator=generator)
            tensor.data = (tensor.data + 0.3 * (tensor.data.abs() < 0.1)) * about_one
            continue
        own = pairs.pop(tensor, [])
        fan_in = inputs.get(tensor, tensor[0].numel() if tensor.dim() > 1 else 10)
        key = tensor.shape, tensor.dtype, tensor.device, tuple(own), fan_in
        if key not in drawn:
            scale = (2 / fan_in) ** 0.5
            drawn[key] = _overlapping(tensor, scale) if tensor in tables else _normal(tensor).mul_(scale)
            _opposed_(drawn[key], own)
        tensor.data = drawn[key]
    for tensor, own in pairs.items():
        _opposed_(tensor.data, own)
    for group in groups:
        for name in group.between:
            module = model.get_submodule(name)
            if over_neurons(module):
                cast(Any, module).__class__ = _without_statistics(type(module), neurons_of(model, group))


def _opposed_(tensor: Tensor, pairs: Sequence[tuple[int, Layout, int]]) -> Tensor:
    """Make the entries of every second neuron the opposite of those before, in place."""
    for axis, layout, neurons in pairs:
        rows, places = tensor.movedim(axis, 0), layout_places(layout, neurons)
        rows[places[1::2]] = -1.3 * rows[places[: len(places) // 2 * 2 : 2]]
    return tensor


def _is_vector(tensor: Tensor, widths: set[int] | None = None) -> bool:
    """Tell whether a tensor has one axis at most; if `widths` are given, also one entry for each neuron."""
    length = max(tensor.shape, default=1)
    return tensor.numel() == length and tensor.is_floating_point() and (widths is None or length in widths)


def _normal(tensor: Tensor) -> Tensor:
    """Return random numbers of a tensor's shape, the same for each tensor of a size; many repeat."""
    generator = torch.Generator(tensor.device).manual_seed(tensor.numel())
    count = min(tensor.numel(), MOST_DRAWN)
    drawn = torch.empty(count, dtype=tensor.dtype, device=tensor.device).normal_(generator=generator)
    return drawn.repeat(-(-tensor.numel() // count))[: tensor.numel()].view(tensor.shape)


def _overlapping(tensor: Tensor, scale: float) -> Tensor:
    """Return random rows for a table, each a part of one sequence, which is all that takes memory."""
    rows, columns = tensor.shape
    step = max(1, (MOST_DRAWN - columns) // rows)
    sequence = _normal(tensor.new_empty(rows * step + columns)).mul_(scale)
    return sequence.as_strided((rows, columns), (step, 1))


class _WithoutStatistics(TorchFunctionMode):
    """Let norms over neurons do only what they do to each neuron alone: weight and bias.

    In a norm written by hand, means along an axis of this length are 1.
    """

    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.neurons = neurons

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name not in ("layer_norm", "rms_norm", "group_norm"):
            result = func(*args, **kwargs)
            if name in ("mean", "var", "std") and isinstance(result, Tensor):
                x = args[0] if args else kwargs["input"]
                axis = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
                axes = [axis] if isinstance(axis, int) else axis or ()
                if any(isinstance(a, int) and x.shape[a] == self.neurons for a in axes):
                    return torch.ones_like(result)
            return result
        order = ("input", "size", "weight", "bias") if name != "rms_norm" else ("input", "size", "weight")
        given = dict(zip(order, args, strict=False)) | kwargs
        x, shape = given["input"], (-1, *[1] * (given["input"].dim() - 2)) if name == "group_norm" else (-1,)
        weight, bias = (given.get(key) for key in ("weight", "bias"))
        x = x if weight is None else x * weight.view(shape)
        return x if bias is None else x + bias.view(shape)


def _without_statistics(kind: type[nn.Module], neurons: int) -> type[nn.Module]:
    """Return a subclass whose forward pass takes no statistics over the neurons."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _WithoutStatistics(neurons):
            return kind.forward(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward})


def silenced(
    model: nn.Module,
    groups: Sequence[NeuronGroup],
    odd: int,
    values: Values | None = None,
    shared: Shared | None = None,
) -> Values:
    """Return values with which the neurons of even (or odd) number have no outgoing weights."""
    values, shared = dict(values or {}), shared or Shared()
    for group in groups:
        neurons = neurons_of(model, group)
        for weight, axis, layout in tensors_of(model, group, group.consumers):

            def silent(weight: Tensor, axis: int = axis, layout: Layout = layout, n: int = neurons) -> Tensor:
                neuron = layout_neurons(layout, n).to(weight.device)
                places = ((neuron >= 0) & (neuron % 2 == odd)).nonzero().flatten()
                return weight.index_fill(axis, places, 0)

            how = "silent", axis, layout, neurons, odd
            values[weight] = shared.of(values.get(weight, weight.data), how, silent)
    return values


def shuffled(model: nn.Module, groups: Sequence[NeuronGroup], odd: int) -> Values:
    """Return values like those of `silenced`, with other silent neurons, and all neurons in another order.

    Beside a neuron that matters, its silent neighbor exceeds it, so that a maximum over neurons moves.
    """
    values: Values = {}
    shared = Shared()
    for group in groups:
        neurons = neurons_of(model, group)
        for tensor, axis, layout in tensors_of(model, group, group.producers):

            def other(tensor: Tensor, axis: int = axis, layout: Layout = layout, n: int = neurons) -> Tensor:
                new, places = tensor.clone(), layout_places(layout, n)
                rows = new.movedim(axis, 0)
                rows[places[odd::2]] = fresh_rows(rows[places[odd::2]], rows[places[1 - odd :: 2]])
                return new

            how = "other", axis, layout, neurons, odd
            values[tensor] = shared.of(values.get(tensor, tensor.data), how, other)
    values = silenced(model, groups, odd, values, shared)
    for number, group in enumerate(groups):
        names = (*group.producers, *group.consumers, *group.between)
        values = permuted(model, group, names, values, number % 2, shared)
    return values


def fresh_rows(rows: Tensor, others: Tensor) -> Tensor:
    """Return other rows for silent neurons, each of which exceeds one of the `others`."""
    fresh = _normal(rows) * (rows.std(correction=0) + 0.1)
    fresh[: len(others)] += 3 * others[: len(fresh)]
    return fresh


def one_cycle(order: Tensor) -> Tensor:
    """Return the permutation that takes each number to the one before it: none stays in its place."""
    return order.roll(1)[order.argsort()]


def permuted(
    model: nn.Module,
    group: NeuronGroup,
    names: Sequence[str],
    values: Values | None = None,
    seed: int = 0,
    shared: Shared | None = None,
) -> Values:
    """Return values with which the neurons stand in another order in these modules of a group.

    Groups with different seeds get different orders, so that a consumer of another group shows.
    """
    neurons = neurons_of(model, group)
    order = torch.randperm(neurons, generator=torch.Generator().manual_seed(seed))
    order[0::2], order[1::2] = order[order % 2 == 0], order[order % 2 == 1]
    order = one_cycle(order)  # which puts even ones in all odd places
    values, shared = dict(values or {}), shared or Shared()
    for tensor, axis, layout in tensors_of(model, group, names):

        def moved(tensor: Tensor, axis: int = axis, layout: Layout = layout) -> Tensor:
            return tensor.index_select(axis, layout_sources(layout, order, neurons).to(tensor.device))

        how = "moved", axis, layout, neurons, seed
        values[tensor] = shared.of(values.get(tensor, tensor.data), how, moved)
    return values


def tensors_of(
    model: nn.Module, group: NeuronGroup, names: Sequence[str]
) -> Iterator[tuple[Tensor, int, Layout]]:
    """Yield the tensors over a group's neurons in modules of these names, each with its axis and layout."""
    neurons = neurons_of(model, group)
    for name in names:
        module = model.get_submodule(name)
        if name in group.between:
            layout = group.entries_of(name)
            own = neuron_tensors(module, layout_width(layout, neurons))
            yield from ((tensor, axis, layout) for tensor, axis in own.values())
            continue
        consumes, weight = name in group.consumers, module.get_parameter("weight")
        axis = int(consumes != (is_transposed(module) or is_turned(module)))
        stacked = isinstance(module, StackedLinear)
        if isinstance(module, StackedLinear):
            axis = module.axes()[int(consumes)]
        if consumes:
            yield weight, axis, layout_for(group, name, neurons, size_of(model, name)[1])
            continue
        layout = group.outputs_of(name)
        yield weight, axis, layout
        if (bias := getattr(module, "bias", None)) is not None:
            yield bias, int(stacked), layout
