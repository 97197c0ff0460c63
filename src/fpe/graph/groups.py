"""The group: neurons that multiply together, with all that must change when they do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: How the inputs of a consumer are laid out: a positive run k is one cycle through all neurons with k
#: adjacent inputs each, a negative run −k is k inputs of others.
Runs = tuple[int, ...]

#: The reason for which a network's last layer is left alone.
HEAD = "it is a head: its neurons are outputs of the network"


@dataclass(frozen=True)
class NeuronGroup:
    """Neurons that can be expanded together, by the names of the modules concerned.

    Parameters
    ----------
    producers : tuple of str
        The layers whose outputs are the neurons: one, or several that read the same input and meet in
        a product, as gate and up of a gated MLP. One name may be given as a plain string.
    consumers : tuple of str
        The layers that read them.
    between : tuple of str, default ()
        Norms, PReLU and depthwise convolutions over the neurons.
    columns : tuple of tuple of int, optional
        For each consumer which of its inputs are whose: a positive number k is a cycle through all
        neurons with k adjacent inputs each (16 after a 4 × 4 map was flattened), a negative number −k
        is k inputs of something else (in a concatenation). By default the inputs of a consumer are
        shared out evenly in one cycle.
    """

    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    between: tuple[str, ...] = ()
    columns: tuple[Runs, ...] = ()

    def __post_init__(self) -> None:
        for field in ("producers", "consumers", "between"):
            value = getattr(self, field)
            object.__setattr__(self, field, (value,) if isinstance(value, str) else tuple(value))
        object.__setattr__(self, "columns", tuple(tuple(runs) for runs in self.columns))

    @property
    def name(self) -> str:
        """The first producer's name, which stands for the group."""
        return self.producers[0]

    @staticmethod
    def from_dict(record: dict[str, Any]) -> NeuronGroup:
        """Make the group again from its fields as JSON keeps them."""
        return NeuronGroup(**record)


@dataclass(frozen=True)
class Skipped:
    """A layer that is left alone, and why, in a clause that can stand alone."""

    name: str
    reason: str


@dataclass(frozen=True)
class Found:
    """What was found in a model.

    Attributes
    ----------
    groups : tuple of Group
        In the order of the forward pass.
    skipped : tuple of Skipped
        Every other layer, with the reason.
    attention : bool
        Whether the model has attention, which is to say that it is a transformer.
    """

    groups: tuple[NeuronGroup, ...]
    skipped: tuple[Skipped, ...]
    attention: bool = False


def default_runs(neurons: int, inputs: int) -> Runs:
    """Return the layout of a consumer in which each neuron has as many adjacent inputs as the others."""
    return (max(1, inputs // neurons),)


def width_of_runs(runs: Runs, neurons: int) -> int:
    """Return how many inputs a layout covers."""
    return sum(k * neurons if k > 0 else -k for k in runs)


def columns_of_runs(runs: Runs, parent: Tensor, neurons: int) -> Tensor:
    """Return for each input of the wide consumer the input of the old one that it comes from.

    Parameters
    ----------
    runs : tuple of int
        The layout of the old consumer.
    parent : Tensor
        The neuron from which each wide neuron comes, in the order in which the wide ones stand; also
        any order of the neurons.
    neurons : int
        How many there were.

    Returns
    -------
    Tensor
        Indices into the old inputs.
    """
    pieces, start = [], 0
    for k in runs:
        if k > 0:
            pieces.append((start + parent[:, None] * k + torch.arange(k)).flatten())
        else:
            pieces.append(start + torch.arange(-k))
        start += k * neurons if k > 0 else -k
    return torch.cat(pieces)


def neuron_of_columns(runs: Runs, neurons: int) -> Tensor:
    """Return for each input of a consumer its neuron, −1 for an input of something else."""
    cycle = torch.arange(neurons)
    return torch.cat([cycle.repeat_interleave(k) if k > 0 else torch.full((-k,), -1) for k in runs])


def runs_of_columns(neuron: Tensor, neurons: int) -> Runs:
    """Return the layout in which inputs have these neurons: the inverse of `neuron_of_columns`."""
    values, lengths = torch.unique_consecutive(neuron, return_counts=True)
    runs, position = [], 0
    while position < len(values):
        length = int(lengths[position])
        own = int(values[position]) >= 0
        runs.append(length if own else -length)
        position += neurons if own else 1
    return tuple(runs)
