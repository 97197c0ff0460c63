"""Give a model other weights for a while: drawn anew, or with the neurons of its groups permuted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fpe.graph.groups import NeuronGroup, default_layout, layout_neurons, layout_sources
from fpe.graph.layers import OVER_NEURONS, bias_of, is_transposed, neuron_tensors, size_of
from fpe.masked import MaskedLayer

#: Parameters and buffers, each with the value that it is to have instead.
Change = dict[Tensor, Tensor]


def draw(model: nn.Module, groups: Sequence[NeuronGroup], everywhere: bool) -> None:
    """Give weights a healthy scale, so that all neurons of the groups matter to the output.

    A neuron cannot be seen behind a head of zeros, a forgotten norm whose entries are all alike does not
    show, nor does a forgotten PReLU over neurons that are always positive.

    Parameters
    ----------
    model : nn.Module
        Changed in place; masked weights become free. The norms over the neurons of the groups lose their
        statistics, which copies of all neurons leave as they are, but other changes of neurons do not.
    groups : sequence of Group
        Of each pair of their neurons one is negative where the other is positive.
    everywhere : bool
        Whether all weights are drawn anew, or only those of the groups' producers.
    """
    producers = {name for group in groups for name in group.producers}
    widths = {size_of(model, group.name)[0] for group in groups}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, MaskedLayer):
            module.fpe_mask.fill_(1)
        parameters = module.parameters(recurse=False)
        buffers = (buffer for buffer in module.buffers(recurse=False) if _is_vector(buffer, widths))
        for tensor in (*parameters, *buffers):
            if id(tensor) in seen or not tensor.is_floating_point() or not tensor.numel():
                continue
            seen.add(id(tensor))
            if name in producers or (everywhere and not _is_vector(tensor)):
                fan = tensor[0].numel() if tensor.dim() > 1 else 10
                tensor.data = _normal(tensor) * (2 / fan) ** 0.5
            elif everywhere or _is_vector(tensor, widths):
                about_one = torch.empty_like(tensor.data).uniform_(0.5, 1.5, generator=_generator(tensor))
                tensor.data = (tensor.data + 0.3 * (tensor.data.abs() < 0.1)) * about_one
    for group in groups:
        for name in group.producers:
            for tensor, axis in _rows(model.get_submodule(name)):
                rows = tensor.data.movedim(axis, 0)
                rows[1::2] = -1.3 * rows[: len(rows) // 2 * 2 : 2]
        for name in group.between:
            module = model.get_submodule(name)
            if type(module) in OVER_NEURONS:
                module.__class__ = _AFFINE[type(module)]


def _is_vector(tensor: Tensor, widths: set[int] | None = None) -> bool:
    """Tell whether a tensor has one axis at most; if `widths` are given, also one entry for each neuron."""
    length = max(tensor.shape, default=1)
    return tensor.numel() == length and tensor.is_floating_point() and (widths is None or length in widths)


def _generator(tensor: Tensor) -> torch.Generator:
    return torch.Generator(tensor.device).manual_seed(tensor.numel())


def _normal(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor.data).normal_(generator=_generator(tensor))


class _AffineLayerNorm(nn.LayerNorm):
    """What a norm does to each neuron alone."""

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.weight is None else x * self.weight
        return x if bias_of(self) is None else x + self.bias


class _AffineRMSNorm(nn.RMSNorm):
    """What a norm does to each neuron alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.weight is None else x * self.weight


class _AffineGroupNorm(nn.GroupNorm):
    """What a norm does to each neuron alone."""

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.dim() - 2))
        x = x if self.weight is None else x * self.weight.view(shape)
        return x if self.bias is None else x + self.bias.view(shape)


_AFFINE: dict[type[nn.Module], type[nn.Module]] = {
    nn.LayerNorm: _AffineLayerNorm,
    nn.RMSNorm: _AffineRMSNorm,
    nn.GroupNorm: _AffineGroupNorm,
}


def halved(model: nn.Module, groups: Sequence[NeuronGroup], odd: int, permuted: bool = False) -> Change:
    """Take the outgoing weights from half of the neurons; what else they are is then of no account.

    Parameters
    ----------
    model : nn.Module
        Only read.
    groups : sequence of Group
        The neurons.
    odd : int
        1 for the neurons of odd number, 0 for the others.
    permuted : bool, default False
        Whether these neurons get other incoming weights too, and all then stand in another order, with the
        tensors over them and the inputs of the consumers to match: to the output it is all the same.

    Returns
    -------
    dict of Tensor to Tensor
        For `changed`.
    """
    change: Change = {}

    def now(tensor: Tensor) -> Tensor:
        return change.get(tensor, tensor.data)

    for group in groups if permuted else ():
        for name in group.producers:
            for tensor, axis in _rows(model.get_submodule(name)):
                other = now(tensor).clone()
                fresh = other.movedim(axis, 0)[odd::2]
                fresh.copy_(_normal(fresh) * (fresh.std(correction=0) + 0.1))
                change[tensor] = other
    for group in groups:
        neurons, _ = size_of(model, group.name)
        for weight, axis, runs in _columns(model, group):
            neuron = layout_neurons(runs, neurons).to(weight.device)
            silent = (neuron >= 0) & (neuron % 2 == odd)
            change[weight] = now(weight).index_fill(axis, silent.nonzero().flatten(), 0)
    for group in groups if permuted else ():
        neurons, _ = size_of(model, group.name)
        order = _order(neurons)
        rows = [found for name in group.producers for found in _rows(model.get_submodule(name))]
        for name in group.between:
            rows += [(t, 0) for t in neuron_tensors(model.get_submodule(name), neurons).values()]
        for tensor, axis in rows:
            change[tensor] = now(tensor).index_select(axis, order.to(tensor.device))
        for weight, axis, runs in _columns(model, group):
            columns = layout_sources(runs, order, neurons).to(weight.device)
            change[weight] = now(weight).index_select(axis, columns)
    return change


def alone(model: nn.Module, group: NeuronGroup, name: str) -> Change:
    """Permute a single producer or consumer of a group, and leave all else as it is."""
    neurons, _ = size_of(model, group.name)
    order = _order(neurons)
    if name in group.producers:
        rows = _rows(model.get_submodule(name))
        return {t: t.data.index_select(axis, order.to(t.device)) for t, axis in rows}
    weight, axis, runs = list(_columns(model, group))[group.consumers.index(name)]
    columns = layout_sources(runs, order, neurons).to(weight.device)
    return {weight: weight.data.index_select(axis, columns)}


@contextmanager
def changed(change: Change) -> Iterator[None]:
    """Let tensors have other values for a while."""
    before = {tensor: tensor.data for tensor in change}
    for tensor, value in change.items():
        tensor.data = value
    try:
        yield
    finally:
        for tensor, value in before.items():
            tensor.data = value


def _rows(layer: nn.Module) -> list[tuple[Tensor, int]]:
    """Return weight and bias of a layer, each with the axis of its neurons."""
    weight, bias = layer.get_parameter("weight"), bias_of(layer)
    return [(weight, 1 if is_transposed(layer) else 0), *([] if bias is None else [(bias, 0)])]


def _columns(model: nn.Module, group: NeuronGroup) -> Iterator[tuple[Tensor, int, tuple[int, ...]]]:
    """Yield the weight of each consumer, the axis of its inputs, and how they are laid out."""
    neurons, _ = size_of(model, group.name)
    for position, name in enumerate(group.consumers):
        layer = model.get_submodule(name)
        runs = default_layout(neurons, size_of(model, name)[1])
        yield (
            layer.get_parameter("weight"),
            0 if is_transposed(layer) else 1,
            group.input_layouts[position] if group.input_layouts else runs,
        )


def _order(neurons: int) -> Tensor:
    """Return an order that leaves no neuron in its place."""
    shuffled = torch.randperm(neurons, generator=torch.Generator().manual_seed(0))
    order = torch.empty_like(shuffled)
    order[shuffled] = shuffled.roll(1)
    return order
