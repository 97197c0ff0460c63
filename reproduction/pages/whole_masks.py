"""Whole GPT-2s wider, with masks that are random from the start: any, or so that they can be packed."""

from __future__ import annotations

from typing import Any

from whole_text import STEPS, WIDTH, adamw, data_of, gpt, mean_loss, measured, sizes, train, width_of

import fpe

#: Which weights are kept: the arguments of `fpe.random_masks_`.
MASKS: dict[str, dict[str, Any]] = {
    "any": {"scope": "network"},
    "neuron": {"scope": "neuron"},
    "group-4": {"scope": "group", "groups": 4},
    "group-8": {"scope": "group", "groups": 8},
}


def measure(
    network: str, lr: float, seed: int, masks: str = "any", length: int = 1, text: str = "characters"
) -> dict[str, Any]:
    """Train a wide GPT-2 with fixed masks; return its losses, and what training took."""
    data, budget, steps = data_of(text), sizes(WIDTH, text)[0], STEPS * length
    model = fpe.with_masks(gpt(width_of(network, text), seed, text), "transformer.h.*")
    fpe.random_masks_(model, budget, seed=seed, **MASKS[masks])
    with measured(model, budget, steps) as found:
        train(model, adamw(model, lr), data["learn"], steps, seed)
        found |= {part: mean_loss(model, data[part]) for part in ("validation", "test")}
    return found
