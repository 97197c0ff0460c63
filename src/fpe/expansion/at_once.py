"""Verify all groups of a plan at once: in a wide model with its neurons in another order, beside others.

The wide model has one copy of each neuron, and other neurons of which two at a time cancel in the consumers.
If it computes what the model does, each neuron reaches the output only through the inputs of the consumers,
by the same function as every other neuron, and their number does not matter. So one comparison shows what
permuting the neurons and copying them show apart.

Where it fails, or shows nothing, it does not say why: then `unverified` and `width_problems` judge each
group.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from fpe.expansion.copies import Arrangement, widened
from fpe.expansion.plan import LayerPlan
from fpe.graph.inputs import as_call
from fpe.graph.layers import orient_
from fpe.graph.verification import Trial, distance


def verified_at_once(
    model: nn.Module, layers: Sequence[LayerPlan], batch: Any, exported: bool
) -> list[torch.Size] | None:
    """Return the shapes of the model's outputs in evaluation mode if all groups can be expanded, else None.

    A copy is run as it is in training mode, and wide in both modes. If all three compute the same, it is
    not run as it is in evaluation mode where the groups were found in that: in an export of it (`exported`).
    """
    if any(layer.factor < 2 or layer.neurons < 2 or layer.chosen is not None for layer in layers):
        return None
    groups = [layer.group for layer in layers]
    orient_(model, groups)
    with suppress(Exception):  # the user's own code may fail in any way
        trial = Trial(model, groups, as_call(batch), everywhere=True, run=False)
        # A mean over neurons changes beside others.
        if not trial.probe.faithful or not trial.shows_all(True, measure=True):
            return None
        # Groups in different orders, so that a consumer of another group shows.
        arranged = {
            layer.group.name: Arrangement.beside_others(layer, seed=number % 2)
            for number, layer in enumerate(layers)
        }
        wide = widened(trial.copy, layers, arranged)
        if distance(trial.whole[True], trial.outputs({}, True, instead=wide)) > trial.rounding:
            return None
        found = trial.outputs({}, False, instead=wide)
        alike = exported and distance(trial.whole[True], found) <= trial.rounding
        if alike or (trial.shows_all(False) and distance(trial.whole[False], found) <= trial.rounding):
            return [output.shape for output in found]
    return None
