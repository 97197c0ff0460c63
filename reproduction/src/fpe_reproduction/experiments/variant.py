"""What a variant is, and what its networks are made from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fpe.rewiring.rewirer import Rewirer

#: Samples on which inputs are measured that are ranked by activation or gradient.
MEASURED = 2000


@dataclass(frozen=True)
class Start:
    """What the networks of one trial are made from.

    Attributes
    ----------
    parent : nn.Sequential
        The dense network, as far as it is trained by now. Not changed.
    seed : int
        The trial's.
    variance : Tensor or None
        Of each input in the training data.
    scout : nn.Sequential or None
        The parent after its warm-up, for variants that begin before but must know it.
    X, y : Tensor or None
        Some of the training data and its classes, for variants that measure the parent on it; see
        `some_of`.
    lr : float
        The rate at which the parent is trained.
    all_X, all_y : Tensor or None
        All of the training data, for variants that learn something of their own.
    """

    parent: nn.Sequential
    seed: int
    variance: Tensor | None = None
    scout: nn.Sequential | None = None
    X: Tensor | None = None
    y: Tensor | None = None
    lr: float = 1e-2
    all_X: Tensor | None = None
    all_y: Tensor | None = None


def some_of(data: Tensor) -> Tensor:
    """Return about `MEASURED` of the samples, evenly spread: a data set may be sorted by its classes."""
    return data[:: max(1, len(data) // MEASURED)][:MEASURED]


class Variant:
    """A kind of network: when in the training it is born, how it is made, and how it learns.

    Attributes
    ----------
    at : float or None
        Share of the whole training that lies before its birth; None for the end of the warm-up.
    needs_scout : bool
        Whether a parent after its warm-up must be known.
    goes_on : bool
        Whether it is the parent itself, which keeps its optimizer.
    lr : float or None
        A learning rate of its own, which does not fall; None for that of all others.
    distilled : bool
        Whether it learns what a teacher answers, too.
    drops : float
        Share of the first weights that each step of its training leaves out.
    rewired : float
        Share of the weights that move at random after each epoch; see `fpe_reproduction.experiments.rewiring`.
    """

    at: float | None = 0.0
    needs_scout: bool = False
    goes_on: bool = False
    lr: float | None = None
    distilled: bool = False
    drops: float = 0.0
    rewired: float = 0.0

    def possible(self, inputs: int, outputs: int) -> bool:
        """Tell whether the parent's count pays for such a network."""
        return True

    def make(self, start: Start) -> nn.Sequential:
        """Return the network."""
        raise NotImplementedError

    def rewirer(
        self, network: nn.Sequential, optimizer: torch.optim.Adam, steps: int, seed: int
    ) -> Rewirer | None:
        """Return what moves its masks in so many steps, if they move."""
        return None
