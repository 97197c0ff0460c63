"""Which entries of a stored weight are held at zero: a list where they are few, else a bit for each.

Where whole rows of the last axis are held, such as those of inputs that fill a block up, the list is of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fpe.packing.bits import pack_bits, unpack_bits, width_in_bytes


def pack_holes(free: Tensor) -> Tensor | None:
    """Store where a weight is held at zero.

    Parameters
    ----------
    free : Tensor
        Booleans of the weight's shape, at least two axes.

    Returns
    -------
    Tensor or None
        None where all is free; of whole rows of the last axis their numbers (int32, two axes: rows, 1);
        else the flat places of the holes (int32, one axis), or bits (uint8, three axes) where these are
        smaller.
    """
    held = (~free).flatten().nonzero().flatten()
    if not len(held):
        return None
    rows = free.flatten(1)
    most = len(rows) * width_in_bytes(rows.shape[1]) // 4
    whole = (~free.any(-1)).flatten().nonzero()
    if len(held) == len(whole) * free.shape[-1] and len(whole) <= most:
        return whole.to(torch.int32)
    if len(held) <= most and free.numel() < 1 << 31:
        return held.to(torch.int32)
    return pack_bits(rows)


def free_of(holes: Tensor, shape: torch.Size) -> Tensor:
    """Return a mask of this shape, 0 where `holes` are."""
    if holes.dim() < 3:
        free = torch.ones(shape.numel(), dtype=torch.uint8, device=holes.device)
        (free.view(-1, shape[-1]) if are_rows(holes) else free)[holes.flatten().long()] = 0
        return free.view(shape)
    return unpack_bits(holes, shape[1:].numel()).view(shape)


def are_rows(holes: Tensor) -> bool:
    """Tell whether these are numbers of whole rows."""
    return holes.dim() == 2


def without_holes(grad: Tensor, holes: Tensor) -> Tensor:
    """Return a gradient that is zero where `holes` are."""
    if are_rows(holes):
        return grad.flatten(0, -2).index_fill(0, holes.flatten().long(), 0).view(grad.shape)
    if holes.dim() == 1:
        places = torch.unravel_index(holes.long(), grad.shape)
        return grad.clone().index_put_(places, grad.new_zeros(()))
    return grad * free_of(holes, grad.shape)
