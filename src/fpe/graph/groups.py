"""Groups of neurons that can be expanded together, and how the inputs of their consumers are laid out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

#: The inputs of a consumer in order: a positive number k is one cycle through all neurons with k adjacent
#: inputs each, a negative number −k is k inputs that are not these neurons.
Layout = tuple[int, ...]

#: Why the last layer of a network is not expanded.
HEAD = "it is a head: its neurons are outputs of the network"
#: Why a layer is not expanded that the analyzed forward pass does not call.
NOT_CALLED = "it is not called as a layer where the forward pass could be followed"
#: Why a layer is not expanded that is called without gradients alone.
NO_GRAD = "it is called under torch.no_grad, where no training could make up for pruned weights"
#: All reasons for which a layer may be found in training mode though not in evaluation mode.
UNSEEN = (NOT_CALLED, NO_GRAD)
#: Why a layer is not expanded whose neurons nothing depends on.
NOT_CONSUMED = "no layer consumes its neurons"


@dataclass(frozen=True)
class NeuronGroup:
    """Neurons that can be expanded together, by the names of the modules concerned.

    Parameters
    ----------
    producers : tuple of str
        The layers whose outputs are the neurons: one, or several that meet in a product, as gate and up of a
        gated MLP, or channels and what they are gated by. One name may be given as a plain string.
    consumers : tuple of str
        The layers whose inputs are the neurons.
    between : tuple of str, default ()
        Norms, PReLU and depthwise convolutions over the neurons.
    between_layouts : tuple of tuple of int, optional
        For each module between, which of its entries, or output channels, are which neurons, as in
        `input_layouts`: a norm may be over a concatenation. By default they are the first producer's outputs.
    input_layouts : tuple of tuple of int, optional
        For each consumer, which of its inputs are which neurons: a positive number k is a cycle through all
        neurons with k adjacent inputs each (16 after a 4 × 4 map was flattened), a negative number −k
        is k other inputs (in a concatenation). By default the inputs of a consumer are divided evenly
        among the neurons in one cycle.
    parts : int or tuple of int, default 1
        Into how many equal parts the outputs of each producer are divided, as by ``chunk``: 2 for gate and up
        in one layer. A neuron is one output of each part. The outputs of a convolution in groups have as many
        parts at least, and so have the inputs: then the layout of a consumer is that of each group's inputs.
        Where producers differ, one number for each: (1, 2) for channels and their scale and shift.
    transposed : tuple of str, default ()
        Those of the layers that are stacked experts and store (experts, inputs, outputs).
    interleaved : bool, default False
        Whether the parts of the producers' outputs, stacked experts, alternate instead.
    """

    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    between: tuple[str, ...] = ()
    input_layouts: tuple[Layout, ...] = ()
    parts: int | tuple[int, ...] = 1
    transposed: tuple[str, ...] = ()
    interleaved: bool = False
    between_layouts: tuple[Layout, ...] = ()

    def __post_init__(self) -> None:
        for own in ("producers", "consumers", "between", "transposed"):
            value = getattr(self, own)
            object.__setattr__(self, own, (value,) if isinstance(value, str) else tuple(value))
        for own in ("input_layouts", "between_layouts"):
            object.__setattr__(self, own, tuple(tuple(layout) for layout in getattr(self, own)))
        if isinstance(self.parts, list | tuple):
            each = tuple(self.parts)
            object.__setattr__(self, "parts", each[0] if len({*each}) == 1 else each)

    @property
    def name(self) -> str:
        """The first producer's name, which stands for the group."""
        return self.producers[0]

    def parts_of(self, producer: str) -> int:
        """Return into how many parts the outputs of a producer are divided."""
        own = self.parts
        return own[self.producers.index(producer)] if isinstance(own, tuple) else own

    def outputs_of(self, producer: str) -> Layout:
        """Return which outputs of a producer are which neurons."""
        parts = self.parts_of(producer)
        return (parts,) if self.interleaved else (1,) * parts

    def entries_of(self, module: str) -> Layout:
        """Return which entries of a module between layers are which neurons."""
        if self.between_layouts:
            return self.between_layouts[self.between.index(module)]
        return self.outputs_of(self.name)

    def under(self, prefix: str) -> NeuronGroup:
        """Return the group in the names of a larger model, of which its own is the part `prefix`."""
        fields = ("producers", "consumers", "between", "transposed")
        names: dict[str, Any] = {f: tuple(f"{prefix}.{name}" for name in getattr(self, f)) for f in fields}
        return replace(self, **names)

    def within(self, part: str) -> NeuronGroup:
        """Return the group in the names of a part that has all of it; inverts `under`."""
        fields = ("producers", "consumers", "between", "transposed")
        start = len(f"{part}.")
        names: dict[str, Any] = {f: tuple(name[start:] for name in getattr(self, f)) for f in fields}
        return replace(self, **names)

    @staticmethod
    def from_dict(record: dict[str, Any]) -> NeuronGroup:
        """Make a group from its fields as stored in JSON, also by version 0.1."""
        return NeuronGroup(**{"input_layouts" if k == "columns" else k: v for k, v in record.items()})


@dataclass(frozen=True)
class Skipped:
    """A layer that is not expanded, and the reason as a clause that can stand alone."""

    name: str
    reason: str


@dataclass(frozen=True)
class Found:
    """The neurons of a model that can be expanded.

    Attributes
    ----------
    groups : tuple of NeuronGroup
        In the order of the forward pass.
    skipped : tuple of Skipped
        Every other layer, with the reason.
    attention : bool
        Whether the model has attention, as a transformer does.
    linear : frozenset of str
        Names of groups whose neurons reach the consumers as they are, or scaled, as the rank of LoRA does.
    exported : bool
        Whether the groups were found in an export of the whole forward pass in evaluation mode.
    """

    groups: tuple[NeuronGroup, ...]
    skipped: tuple[Skipped, ...]
    attention: bool = False
    linear: frozenset[str] = frozenset()
    exported: bool = False


@dataclass
class Growing:
    """A group while it is being found."""

    #: The names of the producers, each with the number of parts of its outputs.
    producers: dict[str, int]
    node: fx.Node
    reason: str | None = None
    consumers: dict[str, Layout] = field(default_factory=dict)
    between: dict[str, Layout] = field(default_factory=dict)
    #: The products or convolutions of the producers, in order.
    calls: list[fx.Node] = field(default_factory=list)
    #: Whether nothing but scales stands between producers and consumers.
    linear: bool = True
    #: Whether the parts alternate.
    interleaved: bool = False
    #: In how many calls each consumer, or module between, takes these neurons.
    uses: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """The first producer's name."""
        return next(iter(self.producers))

    @property
    def own(self) -> set[Layout]:
        """Where each neuron is among the outputs of the producers."""
        return {self.outputs_of(name) for name in self.producers}

    def outputs_of(self, producer: str) -> Layout:
        """Return where each neuron is among the outputs of a producer."""
        parts = self.producers[producer]
        return (parts,) if self.interleaved else (1,) * parts

    def beside(self, other: Growing) -> bool:
        """Tell whether no producer of this group or another computes from what another one has computed."""
        calls = {*self.calls, *other.calls}
        left, seen = [n for call in calls for n in call.all_input_nodes], set()
        while left:
            node = left.pop()
            if node in calls:
                return False
            if node not in seen:
                seen.add(node)
                left += node.all_input_nodes
        return True


def group_of(
    producers: dict[str, int], consumers: dict[str, Layout], between: dict[str, Layout]
) -> NeuronGroup:
    """Make a group, given the parts of producers and the layouts of others, left out if all are plain."""
    layouts = tuple(consumers.values()) if set(consumers.values()) != {(1,)} else ()
    names = tuple(producers), tuple(consumers), tuple(between)
    group = NeuronGroup(*names, layouts, tuple(producers.values()))
    plain = (1,) * group.parts_of(group.name)
    return replace(group, between_layouts=tuple(between.values()) if {*between.values()} - {plain} else ())


def merged(found: Found, training: Found) -> Found:
    """Combine what evaluation and training mode show: a group has the consumers of both."""
    matches = {group.name: group for group in training.groups}
    reasons = {skip.name: skip.reason for skip in training.skipped}
    groups, skipped = [], list(found.skipped)
    for group in found.groups:
        match, reason = matches.get(group.name), reasons.get(group.name)
        same = ("producers", "parts", "transposed", "interleaved")
        if match and all(getattr(match, field) == getattr(group, field) for field in same):
            own, other = (
                dict(zip(g.consumers, g.input_layouts or ((1,),) * len(g.consumers), strict=True))
                for g in (group, match)
            )
            between = {n: g.entries_of(n) for g in (match, group) for n in g.between}
            joint = group_of({n: group.parts_of(n) for n in group.producers}, own | other, between)
            groups.append(replace(joint, transposed=group.transposed, interleaved=group.interleaved))
        elif reason in (*UNSEEN, NOT_CONSUMED):
            groups.append(group)
        else:
            why = f"in training mode {reason or 'its neurons meet others in a product'}"
            skipped += [Skipped(name, why) for name in group.producers]
    return Found(tuple(groups), tuple(skipped), found.attention, found.linear)


def layout_for(group: NeuronGroup, consumer: str, neurons: int, inputs: int) -> Layout:
    """Return the layout of a consumer's inputs; by default, every neuron has equally many adjacent ones."""
    if group.input_layouts:
        return group.input_layouts[group.consumers.index(consumer)]
    return (max(1, inputs // neurons),)


def layout_width(layout: Layout, neurons: int) -> int:
    """Return how many inputs a layout covers."""
    return sum(k * neurons if k > 0 else -k for k in layout)


def layout_neurons(layout: Layout, neurons: int) -> Tensor:
    """Return the neuron of each input of a consumer, −1 for other inputs."""
    cycle = torch.arange(neurons)
    return torch.cat([cycle.repeat_interleave(k) if k > 0 else torch.full((-k,), -1) for k in layout])


def layout_places(layout: Layout, neurons: int) -> Tensor:
    """Return the places of each neuron, (neurons, places of each)."""
    neuron = layout_neurons(layout, neurons)
    places = neuron.argsort(stable=True)
    return places[(neuron < 0).sum() :].view(neurons, -1)


def layout_of(neuron: Tensor, neurons: int) -> Layout:
    """Return the layout in which inputs belong to these neurons; inverts `layout_neurons`."""
    values, lengths = torch.unique_consecutive(neuron, return_counts=True)
    layout, position = [], 0
    while position < len(values):
        length, own = int(lengths[position]), int(values[position]) >= 0
        layout.append(length if own else -length)
        position += neurons if own else 1
    return tuple(layout)


def layout_sources(layout: Layout, parent: Tensor, neurons: int) -> Tensor:
    """Return the old input from which each input of a wider consumer is copied, given each child's parent."""
    pieces, start = [], 0
    for k in layout:
        piece = (parent[:, None] * k + torch.arange(k)).flatten() if k > 0 else torch.arange(-k)
        pieces.append(start + piece)
        start += k * neurons if k > 0 else -k
    return torch.cat(pieces)
