"""Which entries of a stored weight are held at zero: a list where they are few, else a bit for each."""

from __future__ import annotations

import torch
from torch import Tensor

from fpe.packed.bits import pack_bits, unpack_bits, width_in_bytes


def pack_holes(free: Tensor) -> Tensor | None:
    """Store where a weight is held at zero.

    Parameters
    ----------
    free : Tensor
        Booleans of the weight's shape, at least two axes.

    Returns
    -------
    Tensor or None
        None where all is free; the flat places of the holes (int32, one axis), or bits (uint8, three axes)
        where these are smaller.
    """
    held = (~free).flatten().nonzero().flatten()
    if not len(held):
        return None
    rows = free.flatten(1)
    if 4 * len(held) <= len(rows) * width_in_bytes(rows.shape[1]) and free.numel() < 1 << 31:
        return held.to(torch.int32)
    return pack_bits(rows)


def free_of(holes: Tensor, shape: torch.Size) -> Tensor:
    """Return a mask of this shape, 0 where `holes` are."""
    if holes.dim() == 1:
        free = torch.ones(shape.numel(), dtype=torch.uint8, device=holes.device)
        free[holes.long()] = 0
        return free.view(shape)
    return unpack_bits(holes, shape[1:].numel()).view(shape)


def without_holes(grad: Tensor, holes: Tensor) -> Tensor:
    """Return a gradient that is zero where `holes` are."""
    if holes.dim() == 1:
        places = torch.unravel_index(holes.long(), grad.shape)
        return grad.clone().index_put_(places, grad.new_zeros(()))
    return grad * free_of(holes, grad.shape)
