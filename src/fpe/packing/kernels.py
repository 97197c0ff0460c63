"""What layers of codes compute in one pass over values and bits, compiled where there is a compiler.

Bits are multiplied by, not chosen by: that is what compilers turn into vector instructions. A weight that
nobody has is 0, so that it does not matter whose it is said to be.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Least number of values for which kernels are compiled, which takes seconds.
WORTH_COMPILING = 1 << 18


def _bits(codes: Tensor, factor: int, shifts: Tensor) -> list[Tensor]:
    """Return the bits that tell `factor` children apart, each (parents, 8, columns / 8)."""
    return [(codes[plane].unsqueeze(1) >> shifts) & 1 for plane in range((factor - 1).bit_length())]


def _product(values: Tensor, codes: Tensor, x: Tensor, factor: int, shifts: Tensor) -> Tensor:
    """Return what each child makes of one sample: (parents, columns) and (columns,) to (parents, factor).

    Sums over the entries that have all of some bits set are cheaper than sums over one child's entries: for
    two children one multiplication each instead of two. Differences of them are the children's.
    """
    terms = values.view(len(values), 8, -1) * x.view(8, -1)
    having = [terms]
    for bit in _bits(codes, factor, shifts):
        having += [own * bit for own in having]
    sums = [own.sum(2).sum(1) for own in having]  # in two steps: compilers then make all of them in one loop
    for plane in range((factor - 1).bit_length()):
        for some in range(len(sums)):
            if not some >> plane & 1:
                sums[some] = sums[some] - sums[some | 1 << plane]
    return torch.stack(sums[:factor], dim=1)


def _spread(values: Tensor, codes: Tensor, factor: int, shifts: Tensor) -> Tensor:
    """Give each child its own: (parents, columns) to (parents × factor, columns)."""
    children = [values.view(len(values), 8, -1)]
    for bit in reversed(_bits(codes, factor, shifts)):
        children = [own * side for own in children for side in (1 - bit, bit)]
    return torch.stack(children[:factor], dim=1).view(-1, values.shape[1])


@dataclass(frozen=True)
class Kernels:
    """The compiled kernels for one number of children and of columns.

    Attributes
    ----------
    product, spread : callable
        As `_product` and `_spread`, for any number of parents.
    """

    product: Callable[..., Tensor]
    spread: Callable[..., Tensor]


def kernels_for(values: Tensor, factor: int) -> Kernels | None:
    """Return the kernels for a layer's values; None if it is too small, or if nothing can be compiled."""
    if values.numel() < WORTH_COMPILING or values.shape[1] % 8:
        return None
    return _compiled(factor, values.shape[1], values.dtype, values.device)


@functools.cache
def _compiled(factor: int, columns: int, dtype: torch.dtype, device: torch.device) -> Kernels | None:
    shifts = torch.arange(8, dtype=torch.uint8, device=device).unsqueeze(1)

    def product(values: Tensor, codes: Tensor, x: Tensor) -> Tensor:
        return _product(values, codes, x, factor, shifts)

    def spread(values: Tensor, codes: Tensor) -> Tensor:
        return _spread(values, codes, factor, shifts)

    fast = []
    for function in (product, spread):
        # The compiler keeps what it has compiled by code object, and few for each.
        function.__code__ = function.__code__.replace()
        fast.append(torch.compile(function, fullgraph=True))
    try:
        planes = (factor - 1).bit_length()
        values = torch.ones(4, columns, dtype=dtype, device=device)
        codes = torch.zeros(planes, 4, columns // 8, dtype=torch.uint8, device=device)
        torch._dynamo.mark_dynamic(values, 0)
        torch._dynamo.mark_dynamic(codes, 1)
        fast[0](values, codes, values[0])
        fast[1](values, codes)
    except Exception as error:  # compilers fail in many ways
        warnings.warn(
            f"layers of codes are computed without a compiler, several times as slowly ({error}).",
            stacklevel=4,
        )
        return None
    return Kernels(*fast)
