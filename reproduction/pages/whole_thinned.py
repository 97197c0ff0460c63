"""Whole GPT-2s wider, with random masks at first, and pruned late to the count of a small one."""

from __future__ import annotations

import math
from typing import Any

from whole_text import STEPS, WIDTH, adamw, data_of, gpt, mean_loss, measured, sizes, train, width_of

import fpe

#: Shares of all steps from which, and until which, weights are pruned.
BEGIN, END = 0.5, 0.9


def measure(network: str, lr: float, seed: int, length: int = 1, text: str = "characters") -> dict[str, Any]:
    """Train a wide GPT-2; return its losses, and what training took.

    Random masks leave the geometric mean of the small network's count and the wide one's. While there are
    more weights than the budget, the rate is smaller, by the root of their ratio.
    """
    data, budget, steps = data_of(text), sizes(WIDTH, text)[0], STEPS * length
    model = fpe.with_masks(gpt(width_of(network, text), seed, text), "transformer.h.*")
    begun = math.isqrt(budget * fpe.count_nonzero(model))
    fpe.random_masks_(model, begun, seed=seed)
    optimizer = adamw(model, lr)
    schedule = fpe.PruningSchedule(begin=BEGIN, end=END, every=max(1, steps // 50))
    pruner = fpe.GradualPruner(model, optimizer, budget=budget, steps=steps, schedule=schedule)
    counts = [pruner.count_at(step) for step in range(steps + 1)]

    def set_rate(step: int) -> None:
        optimizer.param_groups[0]["share"] = (budget / counts[step]) ** 0.5

    def after(step: int) -> None:
        pruner.step()
        set_rate(step + 1)

    with measured(model, budget, steps) as found:
        found["counts"] = counts[:-1]
        set_rate(0)
        train(model, optimizer, data["learn"], steps, seed, after)
        found |= {part: mean_loss(model, data[part]) for part in ("validation", "test")}
    return found
