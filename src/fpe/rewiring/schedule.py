"""When masks move, and how much of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fpe.errors import ArgumentError, raise_problems

#: How the share falls from the first step to the last rewiring: its value at 0 … 1 of the way.
DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda way: (1 + math.cos(math.pi * way)) / 2,
    "linear": lambda way: 1 - way,
    "constant": lambda way: 1.0,
}


@dataclass(frozen=True)
class RewiringSchedule:
    """When masks move, and which share of the free weights does.

    Parameters
    ----------
    every : int, default 100
        Steps of the optimizer from one rewiring to the next.
    share : float, default 0.3
        Share of the free weights that move in a rewiring, at the start; above 0, at most 1.
    until : float, default 0.9
        Share of all steps after which the masks stay as they are; above 0, at most 1.
    decay : str, default "cosine"
        How the share falls on the way there: ``"cosine"`` and ``"linear"`` to 0, ``"constant"`` not at all.

    Raises
    ------
    ArgumentError
        For values that are not allowed, all at once.

    Notes
    -----
    The interval and the end are those that were chosen in this project's experiments on small networks
    (docs/results/rewiring.md). Share and decay are those of RigL (Evci et al., 2020), which ends after three
    quarters.
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
        """Return the usual schedule for so many steps: every 100, or some 30 times where they are few."""
        return RewiringSchedule(every=max(1, min(100, steps // 34)))

    def rewires(self, step: int, steps: int) -> bool:
        """Tell whether masks move after step `step` (from 1) of `steps`."""
        return step > 0 and step % self.every == 0 and step < self.until * steps

    def share_at(self, step: int, steps: int) -> float:
        """Return the share of the free weights that move after step `step` of `steps`."""
        return self.share * DECAYS[self.decay](min(1.0, step / (self.until * steps)))

    def looks(self, step: int, steps: int, window: int) -> bool:
        """Tell whether step `step` is one of the last `window` steps up to a rewiring."""
        coming = -(-step // self.every) * self.every
        return coming - step < window and self.rewires(coming, steps)
