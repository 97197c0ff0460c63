"""What the callbacks of all trainers warn of: that they will do nothing, or have done nothing."""

from __future__ import annotations

import warnings

from torch import nn

from fpe.masked import MaskedLayer
from fpe.rewiring.rewirer import Rewirer


def has_masks(model: nn.Module) -> bool:
    """Tell whether a model has been expanded, so that there are masks that could move."""
    return any(isinstance(module, MaskedLayer) for module in model.modules())


def warn_too_late(epoch: float, end: str) -> None:
    """Warn that training ends before the epoch of an `Expand`."""
    warnings.warn(
        f"Expand(epoch={epoch:g}) does not expand the model in this training: {end}. Give an earlier epoch, "
        "counted from 0.",
        stacklevel=3,
    )


def warn_expanded_already() -> None:
    """Warn that an `Expand` leaves a model as it is."""
    warnings.warn(
        "the model is expanded already, and Expand leaves it as it is. To train another model, as for the "
        "next fold, give the trainer a new dense one.",
        stacklevel=3,
    )


def warn_no_masks() -> None:
    """Warn that a `Rewire` has done nothing."""
    warnings.warn(
        "Rewire has moved no masks: no layer of the model has one. Expand the model first, by fpe.expand or "
        "an Expand callback that stands before Rewire.",
        stacklevel=3,
    )


def warn_unless_moving(rewirer: Rewirer) -> None:
    """Warn if the steps of a rewirer are too few for its schedule."""
    schedule = rewirer.schedule
    if not schedule.rewires(schedule.every, rewirer.steps):
        warnings.warn(
            f"Rewire moves no masks in {rewirer.steps:,} steps: {schedule} moves them every "
            f"{schedule.every:,} steps, before step {schedule.until * rewirer.steps:g}. Give a shorter "
            "interval, or train longer.",
            stacklevel=3,
        )
