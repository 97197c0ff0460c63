"""Inputs that are active together stay together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fpe.errors import ArgumentError
from fpe.expansion.clusters import clustered, correlations


@dataclass(frozen=True)
class CorrelationSplit:
    """Inputs that are correlated on data go to one child: features found without their labels.

    A child can combine its own inputs only; what belongs to one feature must therefore stay together. On
    Boolean formulas the variables of a clause are on together more often than others, and this split finds
    the clauses. On real data it is not better than a random split.

    The sizes of a neuron's children differ by at most one. Each neuron draws its own partition, from 32
    in wide layers, by swaps that raise the sum of correlations within children.

    Parameters
    ----------
    shared : bool, default False
        One draw for all neurons of the layer, instead of one for each neuron.

    Examples
    --------
    >>> import torch, fpe
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> batch = torch.randn(100, 4).repeat_interleave(2, dim=1)  # inputs 0 and 1 are equal
    >>> wide = fpe.expand(model, split=fpe.CorrelationSplit(), example_inputs=batch)
    """

    shared: bool = False

    def problem(self, inputs: int, factor: int) -> str | None:
        """Any layer can be split so."""
        return None

    def on(self, inputs: Tensor) -> Clustered:
        """Return the split for a layer that reads these inputs, (samples, inputs)."""
        return Clustered(correlations(inputs), self.shared)

    def assign(self, weight: Tensor, factor: int, rng: np.random.Generator) -> Tensor:
        """Refuse: without data there is nothing to go by; use ``on(inputs).assign``."""
        raise ArgumentError(f"split {self!r} needs data; give on(inputs) the layer's inputs first.")


@dataclass(frozen=True, eq=False)
class Clustered:
    """A split by an affinity of inputs, (inputs, inputs): balanced clusters of it."""

    affinity: np.ndarray
    shared: bool = False

    def problem(self, inputs: int, factor: int) -> str | None:
        """Say that the affinity is of another number of inputs."""
        if len(self.affinity) != inputs:
            return f"the affinity is of {len(self.affinity)} inputs, but the layer has {inputs}"
        return None

    def assign(self, weight: Tensor, factor: int, rng: np.random.Generator) -> Tensor:
        """Return the cluster of each input, shape (neurons, inputs)."""
        neurons, inputs = weight.shape[:2]
        child = clustered(self.affinity, 1 if self.shared else neurons, factor, rng)
        return torch.from_numpy(child).expand(neurons, inputs)
