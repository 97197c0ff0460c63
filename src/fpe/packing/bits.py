"""Bit planes for small integers, and the positions of stored weights that are masked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def width_in_bytes(columns: int) -> int:
    """Return how many bytes one bit for each column takes."""
    return -(-columns // 8)


def pack_bits(values: Tensor, bits: int = 1) -> Tensor:
    """Store integers 0 … 2^bits − 1, shape (rows, columns), as uint8 of shape (bits, rows, ⌈columns / 8⌉).

    Plane p holds bit p of each integer. In a row of Q bytes, bit s of byte q belongs to column s·Q + q, so
    that eight shifts unpack the row without moving anything.
    """
    rows, columns = values.shape
    whole = values.new_zeros((rows, 8 * width_in_bytes(columns)), dtype=torch.uint8)
    whole[:, :columns] = values
    shifts = byte_shifts(values.device)
    planes = [(((whole >> plane) & 1).view(rows, 8, -1) << shifts).sum(1) for plane in range(bits)]
    return torch.stack(planes).to(torch.uint8)


def unpack_bits(packed: Tensor, columns: int) -> Tensor:
    """Return what `pack_bits` stored: uint8 of shape (rows, columns)."""
    if torch.compiler.is_exporting():  # ONNX has no shifts for these bytes
        ones = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=packed.device)
        planes = [(plane.unsqueeze(1) & ones.unsqueeze(1) != 0).to(torch.uint8) for plane in packed.unbind(0)]
    else:
        planes = [(plane.unsqueeze(1) >> byte_shifts(packed.device)) & 1 for plane in packed.unbind(0)]
    values = planes[0]
    for place, plane in enumerate(planes[1:], start=1):
        values = values + plane * (1 << place)
    return values.reshape(packed.shape[1], -1)[:, :columns]


def byte_shifts(device: torch.device) -> Tensor:
    """Return 0 … 7 as a column of uint8."""
    return torch.arange(8, dtype=torch.uint8, device=device).unsqueeze(1)


def pack_zeros(free: Tensor) -> Tensor | None:
    """Store where a weight is masked, in the smallest of three layouts; return None if it is nowhere.

    The number of axes tells the layouts of ``zero_positions`` apart: (n, 1), int32, the numbers of rows of
    the last axis that are masked as a whole, such as inputs that fill up a block; (n,), int32, flat positions
    of masked entries; (1, rows, bytes), uint8, `pack_bits` of the free entries. `free` is boolean.
    """
    masked = (~free).flatten().nonzero().flatten()
    if not len(masked):
        return None
    rows = free.flatten(1)
    most = len(rows) * width_in_bytes(rows.shape[1]) // 4
    whole_rows = (~free.any(-1)).flatten().nonzero()
    if len(masked) == len(whole_rows) * free.shape[-1] and len(whole_rows) <= most:
        return whole_rows.to(torch.int32)
    if len(masked) <= most and free.numel() < 1 << 31:
        return masked.to(torch.int32)
    return pack_bits(rows)


def are_rows(zero_positions: Tensor) -> bool:
    """Tell whether these are the numbers of whole rows."""
    return zero_positions.dim() == 2


def unpack_zeros(zero_positions: Tensor, shape: torch.Size) -> Tensor:
    """Return the mask of this shape that `pack_zeros` stored: uint8, 0 where the weight is masked."""
    if zero_positions.dim() == 3:
        return unpack_bits(zero_positions, shape[1:].numel()).view(shape)
    free = torch.ones(shape.numel(), dtype=torch.uint8, device=zero_positions.device)
    (free.view(-1, shape[-1]) if are_rows(zero_positions) else free)[zero_positions.flatten().long()] = 0
    return free.view(shape)


class MaskStored(torch.autograd.Function):
    """Identity forward; backward no gradient at the weight's zero positions."""

    @staticmethod
    def forward(weight: Tensor, zero_positions: Tensor) -> Tensor:  # noqa: D102
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: D102
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: D102
        (zero_positions,) = ctx.saved_tensors
        return grad * unpack_zeros(zero_positions, grad.shape), None
