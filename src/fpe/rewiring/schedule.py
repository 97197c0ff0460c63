"""When masks change while training, and how much of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fpe.errors import ArgumentError, raise_problems

#: How the share falls from the first step (0) to the last rewiring (1).
DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda way: (1 + math.cos(math.pi * way)) / 2,
    "linear": lambda way: 1 - way,
    "constant": lambda way: 1.0,
}


@dataclass(frozen=True)
class RewiringSchedule:
    """When masks change, and which share of the free weights is dropped and grown.

    Parameters
    ----------
    every : int, default 100
        Steps of the optimizer from one rewiring to the next.
    share : float, default 0.3
        Initial share of the free weights; above 0, at most 1.
    until : float, default 0.9
        Share of all steps after which the masks are fixed; above 0, at most 1.
    decay : str, default "cosine"
        How the share falls until then: ``"cosine"`` and ``"linear"`` to 0, ``"constant"`` not at all.

    Notes
    -----
    Defaults of `every` and `until` come from this project's experiments (docs/results/rewiring.md), those of
    `share` and `decay` from RigL (Evci et al., 2020), which ends after 0.75.
    """

    every: int = 100
    share: float = 0.3
    until: float = 0.9
    decay: str = "cosine"

    def __post_init__(self) -> None:
        problems = []
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            problems.append(f"every is {self.every!r}; give an integer of at least 1, in steps.")
        for name in ("share", "until"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
                problems.append(f"{name} is {value!r}; give a number above 0 and at most 1.")
        if self.decay not in DECAYS:
            problems.append(f"decay is {self.decay!r}; give {', '.join(map(repr, DECAYS))}.")
        raise_problems(problems, ArgumentError, "the schedule")

    @staticmethod
    def for_steps(steps: int) -> RewiringSchedule:
        """Return the default schedule for a number of steps: every 100 steps, or some 30 rewirings if few."""
        return RewiringSchedule(every=max(1, min(100, steps // 34)))

    def rewires(self, step: int, steps: int) -> bool:
        """Tell whether masks change after step `step` (from 1) of `steps`."""
        return step > 0 and step % self.every == 0 and step < self.until * steps

    def share_at(self, step: int, steps: int) -> float:
        """Return the share of the free weights that is dropped after step `step` of `steps`."""
        return self.share * DECAYS[self.decay](min(1.0, step / (self.until * steps)))

    def in_window(self, step: int, steps: int, window: int) -> bool:
        """Tell whether step `step` is one of the last `window` steps up to a rewiring."""
        coming = -(-step // self.every) * self.every
        return coming - step < window and self.rewires(coming, steps)


def argument_problems(steps: object, seed: object, schedule: object) -> list[str]:
    """Return what is wrong with the arguments that all rewirers have."""
    problems = []
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        problems.append(f"steps is {steps!r}; give the number of all steps of the optimizer, at least 1.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        problems.append(f"seed is {seed!r}; give an integer of at least 0.")
    if not isinstance(schedule, RewiringSchedule | None):
        problems.append(f"schedule is {schedule!r}; give an fpe.RewiringSchedule(every=…, share=…).")
    return problems
