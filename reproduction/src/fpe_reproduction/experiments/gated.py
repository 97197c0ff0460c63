"""Gated classifiers, as in the MLPs of transformers, expanded while they are trained by the plain loop."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fpe.compare.runner import one_thread
from fpe.expansion.pruning import InputPruning
from fpe.training.loop import as_tensor
from fpe_reproduction.experiments.networks import NetworksConfig, Source, data_of
from fpe_reproduction.experiments.plain_trial import run_plain_trial
from fpe_reproduction.experiments.variant import some_of

#: Kind → how `fpe.expand` makes it; the dense network goes on as it is.
EXPANSIONS: dict[str, dict[str, Any]] = {
    "random": {},
    "shared": {"split": "shared"},
    "columns": {"split": "shared", "prune": "columns"},
    "columns-activation": {"split": "shared", "prune": InputPruning("activation")},
}


class Network(nn.Module):
    """SwiGLU with biases: ``down(silu(gate(x)) · up(x))`` (Shazeer, 2020)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(inputs, hidden), nn.Linear(inputs, hidden)
        self.down = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs) to (batch, classes)."""
        logits: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return logits


def run_gated(
    source: Source, config: NetworksConfig, hidden: Sequence[int], trials: Sequence[int]
) -> dict[str, Any]:
    """Train gated classifiers, dense and expanded, and measure them. On one thread.

    Parameters
    ----------
    source : Source
        What to learn and to test on.
    config : NetworksConfig
        How.
    hidden : sequence of int
        Hidden neurons of the dense classifier.
    trials : sequence of int
        Numbers of the trials.

    Returns
    -------
    dict
        ``networks``: as `fpe_reproduction.experiments.networks.run_networks` returns them, with ``network`` "gated".
    """
    with one_thread():
        dataset = data_of(source)
        X = as_tensor(dataset.X_train)
        ways = {kind: {"example_inputs": some_of(X), **how} for kind, how in EXPANSIONS.items()}
        networks = []
        for width in hidden:
            build = functools.partial(Network, X.shape[1], width)
            about = {"hidden": width, "network": "gated"}
            for number in trials:
                networks += run_plain_trial(dataset, config, number, build, "gate", ways, about)
        return {"networks": networks}
