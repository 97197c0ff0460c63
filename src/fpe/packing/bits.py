"""Small integers in few bits: the masks of packed layers, and who owns which weight.

Bit planes: column s·Q + q of a row of 8·Q entries is bit s of byte q. Unpacked entries that are neighbours
come from neighbouring bytes, so that eight shifts unpack a row without moving anything.
"""

from __future__ import annotations

import torch
from torch import Tensor


def width_in_bytes(columns: int) -> int:
    """Return how many bytes one bit for each of so many columns takes."""
    return -(-columns // 8)


def pack_bits(values: Tensor, bits: int = 1) -> Tensor:
    """Store integers in few bits each.

    Parameters
    ----------
    values : Tensor
        Integers or booleans, 0 … 2^bits − 1, of shape (rows, columns).
    bits : int, default 1
        Bits for each.

    Returns
    -------
    Tensor
        uint8 of shape (bits, rows, ⌈columns / 8⌉).
    """
    rows, columns = values.shape
    whole = values.new_zeros((rows, 8 * width_in_bytes(columns)), dtype=torch.uint8)
    whole[:, :columns] = values
    shifts = _shifts(values.device)
    planes = [(((whole >> plane) & 1).view(rows, 8, -1) << shifts).sum(1) for plane in range(bits)]
    return torch.stack(planes).to(torch.uint8)


def unpack_bits(packed: Tensor, columns: int) -> Tensor:
    """Return what `pack_bits` stored: uint8 of shape (rows, columns)."""
    if torch.compiler.is_exporting():
        return _unpack_by_comparing(packed, columns)
    shifts = _shifts(packed.device)
    rows = packed.shape[1]
    values = (packed[0].unsqueeze(1) >> shifts) & 1
    for plane in range(1, len(packed)):
        values = values | (((packed[plane].unsqueeze(1) >> shifts) & 1) << plane)
    return values.reshape(rows, -1)[:, :columns]


def _unpack_by_comparing(packed: Tensor, columns: int) -> Tensor:
    """Do the same without shifts, which ONNX has not for these bytes."""
    bits = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=packed.device).unsqueeze(1)
    planes = [(plane.unsqueeze(1) & bits != 0).to(torch.uint8) for plane in packed.unbind(0)]
    values = planes[0]
    for place, plane in enumerate(planes[1:], start=1):
        values = values + plane * (1 << place)
    return values.reshape(packed.shape[1], -1)[:, :columns]


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device).unsqueeze(1)
