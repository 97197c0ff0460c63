"""Products of blocks: outputs seen block by block, and two or three samples, for which libraries are slow."""

from __future__ import annotations

import torch
from torch import Tensor

#: Numbers of samples for which a matrix product takes twice its time, unless it is cut into short ones.
FEW = (2, 3)
#: Inputs in each of those.
SHORT = 32


def by_block(x: Tensor, size: int) -> Tensor:
    """See (samples, blocks × size) as (blocks, samples, size)."""
    return x.view(x.shape[0], x.shape[1] // size, size).transpose(0, 1)


def multiply_few(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """Multiply (blocks, samples, inputs) by (blocks, inputs, neurons), some inputs at a time."""
    samples, inputs = x.shape[1:]
    whole = inputs - inputs % SHORT
    for part, own, y in zip(x, weight, out, strict=True):
        short = part[:, :whole].reshape(samples, -1, SHORT).transpose(0, 1)
        torch.sum(torch.bmm(short, own[:whole].view(-1, SHORT, own.shape[1])), dim=0, out=y)
        if whole < inputs:
            y.addmm_(part[:, whole:], own[whole:])
