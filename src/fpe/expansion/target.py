"""Which neurons of a layer are the most polysemantic, so that a part of it can be expanded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fpe.errors import ArgumentError
from fpe.expansion.ranking import input_scales
from fpe.graph import NeuronGroup
from fpe.graph.inputs import inputs_for
from fpe.graph.layers import oriented_weight
from fpe.metrics import crowding, participation_ratio

TARGETS = ("participation", "capacity")


def most_polysemantic(
    model: nn.Module, group: NeuronGroup, fraction: float, target: str, example_inputs: Any
) -> tuple[int, ...] | None:
    """Choose the neurons of a group that are to be expanded.

    Parameters
    ----------
    model : nn.Module
        Run once on the data if `target` is ``"capacity"``; left as it was.
    group : Group
        Its neurons. A gated pair's neurons have the weights of all producers.
    fraction : float
        Share of them, above 0 and at most 1; rounded, and at least one neuron.
    target : str
        ``"participation"``: by the participation ratio of the incoming weights (how many inputs a neuron
        effectively reads). ``"capacity"``: by how little feature capacity the inputs that it reads have,
        with each input scaled by its root mean square on the data.
    example_inputs : Tensor, tuple or dict, optional
        The data.

    Returns
    -------
    tuple of int or None
        Indices in ascending order; None for all.

    Raises
    ------
    ArgumentError
        If data are needed and not given.
    """
    producers = [model.get_submodule(name) for name in group.producers]
    weight = torch.cat([oriented_weight(p).detach().flatten(1) for p in producers], dim=1)
    chosen = max(1, round(fraction * len(weight)))
    if chosen == len(weight):
        return None
    if target == "participation":
        score = participation_ratio(weight)
    else:
        if example_inputs is None:
            example_inputs = inputs_for(model)
        if example_inputs is None:
            raise ArgumentError(
                "target='capacity' measures the features of the data; give example_inputs=…, a batch of them."
            )
        scale = input_scales(model, [group.name], example_inputs)[group.name]
        taps = weight.shape[1] // (len(producers) * len(scale))
        score = crowding(weight * scale.repeat_interleave(taps).repeat(len(producers)).to(weight))
    best = score.argsort(descending=True, stable=True)[:chosen]
    return tuple(sorted(best.tolist()))
