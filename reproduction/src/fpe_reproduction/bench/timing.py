"""Times of several calls, taken by turns so that whatever slows the machine slows all of them."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

#: A sample is as many calls in a row as take this long, at least one.
SAMPLE_SECONDS = 0.005
MOST_CALLS = 500
#: A fast call is warmed up for so long.
WARM_SECONDS = 0.02
#: Rest before a sample, in which the waiting threads of another library go to sleep.
REST_SECONDS = 0.003
FEWEST = 3


@dataclass(frozen=True)
class Samples:
    """Seconds of a call in the rounds in which it took part, and how many calls made a sample."""

    seconds: dict[int, float]
    calls: int

    def over(self, other: Samples) -> list[float]:
        """Return the ratios to another call's seconds, in the rounds of both."""
        return [t / other.seconds[r] for r, t in self.seconds.items() if r in other.seconds]


def interleave(
    calls: dict[str, Callable[[], object]],
    rounds: int,
    seconds: float,
    always: Sequence[str] = (),
    device: str = "cpu",
    seed: int = 0,
) -> dict[str, Samples]:
    """Time each call, one sample in each round, in an order that is drawn anew each time.

    Parameters
    ----------
    calls : dict of str to callable
        What is timed, after each has been called untimed.
    rounds : int
        How many.
    seconds : float
        What a call may take of all rounds; a slower one takes part in fewer, at least in three,
        evenly spread.
    always : sequence of str
        These take part in every round.
    device : str, default "cpu"
        ``"cuda"`` times by CUDA events.
    seed : int, default 0
        Of the order.

    Returns
    -------
    dict of str to Samples
        In the order of `calls`.
    """
    clock = _cuda_seconds if device == "cuda" else _seconds
    repeats, turns = {}, {}
    for name, call in calls.items():
        once = _warmed_up(call, clock, seconds)
        repeats[name] = max(1, min(MOST_CALLS, math.ceil(SAMPLE_SECONDS / max(once, 1e-9))))
        may = rounds if name in always else int(seconds / (once * repeats[name] + REST_SECONDS))
        count = max(min(FEWEST, rounds), min(rounds, may))
        turns[name] = {i * rounds // count for i in range(count)}
    order, draw = list(calls), random.Random(seed)
    taken: dict[str, dict[int, float]] = {name: {} for name in calls}
    for number in range(rounds):
        draw.shuffle(order)
        for name in order:
            if number in turns[name]:
                time.sleep(REST_SECONDS)
                taken[name][number] = clock(calls[name], repeats[name]) / repeats[name]
    return {name: Samples(taken[name], repeats[name]) for name in calls}


def _warmed_up(call: Callable[[], object], clock: Callable[..., float], seconds: float) -> float:
    """Call untimed, and return about how long a call takes: the least, which is lengthened least."""
    first = spent = clock(call, 1)
    if first > seconds:  # a second time would cost too much
        return first
    taken = [clock(call, 1)]
    while spent < WARM_SECONDS and len(taken) < MOST_CALLS:
        taken.append(clock(call, 1))
        spent += taken[-1]
    return min(taken)


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - start


def _cuda_seconds(call: Callable[[], object], repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def summed_up(values: Sequence[float]) -> dict[str, Any]:
    """Return the median, a 95 % interval of it, and how many values there are.

    The interval is that of order statistics, which needs no assumption on the noise; of fewer than six
    values it is their range.
    """
    ordered, count = sorted(values), len(values)
    cut, below = 0, 0.0  # below: the chance that fewer than `cut` values lie under the true median
    while 2 * (below + math.comb(count, cut) / 2**count) <= 0.05:
        below += math.comb(count, cut) / 2**count
        cut += 1
    low = max(cut, 1) - 1
    return {
        "median": statistics.median(ordered),
        "low": ordered[low],
        "high": ordered[count - 1 - low],
        "samples": count,
    }
