"""The paper's classifier (section 2.1), and its deep form with LayerNorm (A.7)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fpe.errors import ArgumentError


def mlp(
    inputs: int,
    hidden: int | Sequence[int],
    outputs: int,
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Build Linear → ReLU → Linear; with several hidden layers, LayerNorm before each ReLU (A.7).

    Parameters
    ----------
    inputs, outputs : int
        Features that come in and logits that come out, at least 1.
    hidden : int or sequence of int
        Neurons of the hidden layer, or of each.
    seed : int, optional
        Makes the weights the same each time; torch's own random state is then neither read nor moved.
    dtype : torch.dtype, default torch.float32
        Type of the weights.

    Returns
    -------
    nn.Sequential
        A model that maps (batch, inputs) to (batch, outputs).

    Raises
    ------
    ArgumentError
        If a size is below 1.
    """
    widths = [hidden] if isinstance(hidden, int) else list(hidden)
    if not widths or min(inputs, outputs, *widths) < 1:
        raise ArgumentError(
            f"mlp: sizes are {inputs} inputs, {hidden} hidden, {outputs} outputs; each must be at least 1."
        )
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in zip([inputs, *widths[:-1]], widths, strict=True):
            layers.append(nn.Linear(before, after, dtype=dtype))
            if len(widths) > 1:
                layers.append(nn.LayerNorm(after, dtype=dtype))
            layers.append(nn.ReLU())
        layers.append(nn.Linear(widths[-1], outputs, dtype=dtype))
    return nn.Sequential(*layers)
