"""The machine's own limits, by the same clock: how fast it reads memory, and multiplies matrices."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

REPEATS = 5


def machine_limits(device: str, stream: int) -> dict[str, float]:
    """Measure memory and matrix rates.

    Parameters
    ----------
    device : str
        ``"cpu"`` (float32) or ``"cuda"`` (float16).
    stream : int
        Bytes of the tensor that is read.

    Returns
    -------
    dict of str to float
        Medians: ``read`` and ``copy`` in bytes a second (a copy reads and writes), ``matrix`` in
        floating-point operations a second of a product of 4096 × 4096, or less where `stream` is small.
    """
    kind = torch.float16 if device == "cuda" else torch.float32
    source = torch.zeros(stream // kind.itemsize, dtype=kind, device=device)
    target = torch.empty_like(source)
    side = min(4096, int((stream / 64) ** 0.5))
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    return {
        "read": source.nbytes / _median(source.sum, device),
        "copy": 2 * source.nbytes / _median(lambda: target.copy_(source), device),
        "matrix": 2 * side**3 / _median(lambda: a @ b, device),
    }


def _median(call: Callable[[], object], device: str) -> float:
    taken = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def middle(measured: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of what was measured before and after."""
    return {key: statistics.mean(each[key] for each in measured) for key in measured[0]}
