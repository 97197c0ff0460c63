"""Which networks are trained as one batch: those that fit together, and as many as fit the cache."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import TypeVar

import torch
from torch import nn

T = TypeVar("T")

#: What a step of one batch may touch on a CPU, in bytes. A step reads its mini-batches and activations
#: several times; above this they come from main memory each time, far below it the calls cost more.
CACHE = 16 * 2**20

#: The share of a GPU's free memory that a batch may take.
MEMORY_SHARE = 0.25


def batches(
    networks: Sequence[nn.Module],
    keys: Sequence[Hashable],
    readings: Sequence[Hashable],
    batch_size: int,
) -> list[list[int]]:
    """Group networks into batches.

    Networks of one batch have the same key and widths between the same powers of two, 8 the least, so
    that little is padded and few programs are compiled. Those that read the same mini-batches stay
    together as far as there is room, for one product then serves them all.

    Parameters
    ----------
    networks : sequence of nn.Module
        Of any shapes.
    keys : sequence of hashable
        What must be the same within a batch, one for each network.
    readings : sequence of hashable
        What is the same for networks that read the same mini-batches, one for each network.
    batch_size : int
        Samples in a mini-batch.

    Returns
    -------
    list of list of int
        Numbers of the networks; each network is in one batch.
    """
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for i, (network, key) in enumerate(zip(networks, keys, strict=True)):
        widths = _widths(network)
        rounded = tuple(max(8, 2 ** (width - 1).bit_length()) for width in widths[1:-1])
        alike[key, widths[0], rounded, widths[-1]].append(i)
    return [
        part
        for group in alike.values()
        for part in _parts(group, readings, _most([networks[i] for i in group], batch_size))
    ]


def _widths(network: nn.Module) -> list[int]:
    """Return inputs, hidden widths and outputs."""
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    return [linear[0].in_features, *(m.out_features for m in linear)]


def _most(networks: Sequence[nn.Module], batch_size: int) -> int:
    """Return how many networks like these there is room for."""
    widest = max(networks, key=lambda network: sum(_widths(network)))
    parameter = next(widest.parameters())
    entries = batch_size * (2 * sum(_widths(widest)) + _widths(widest)[-1])
    entries += 5 * sum(p.numel() for p in widest.parameters())
    room = CACHE
    if parameter.device.type == "cuda":
        room = int(MEMORY_SHARE * torch.cuda.mem_get_info(parameter.device)[0])
    return max(1, room // (entries * parameter.element_size()))


def _parts(group: list[int], readings: Sequence[Hashable], most: int) -> list[list[int]]:
    """Cut a group into parts of `most` networks at the most, each of equally many of every reading."""
    together: dict[Hashable, list[int]] = defaultdict(list)
    for i in group:
        together[readings[i]].append(i)
    pieces: dict[int, list[list[int]]] = defaultdict(list)
    for readers in together.values():
        for piece in _evenly(readers, most):
            pieces[len(piece)].append(piece)
    return [
        [i for piece in part for i in piece]
        for size, of_size in pieces.items()
        for part in _evenly(of_size, most // size)
    ]


def _evenly(values: list[T], most: int) -> list[list[T]]:
    """Cut a list into as few parts as may be, of nearly one size."""
    count = -(-len(values) // most)
    return [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
