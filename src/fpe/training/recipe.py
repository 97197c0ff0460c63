"""How a network is expanded and trained, and what of it follows from the rest where it is left open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fpe.expansion.expand import expand
from fpe.expansion.init import reinitialize_
from fpe.expansion.pruning import Pruning, as_pruning
from fpe.expansion.splits import Split
from fpe.rewiring.policies import RewiringPolicy, chosen_policy
from fpe.rewiring.rewirer import Rewirer
from fpe.rewiring.schedule import RewiringSchedule
from fpe.training.loop import Cosine, fitting_batch_size


@dataclass(frozen=True)
class Recipe:
    """An expansion, and the training before and after it.

    Attributes
    ----------
    factor, split, prune
        As for `fpe.expand`; factor 1 is a dense network.
    warmup_epochs, epochs : int
        Passes over the data before and after the expansion.
    lr : float
        Adam's learning rate at the start.
    decay : bool
        Whether it falls as half a cosine to 0, over all epochs.
    policy : Policy or None
        What moves the masks; None for none.
    schedule : Schedule or None
        When they move; None for what `RewiringSchedule.fitting` says.
    redraw : bool
        Whether the weights of the expanded network are drawn anew; see `fpe.reinitialize_`.
    """

    factor: int
    split: str | Split
    prune: str | Pruning
    warmup_epochs: int
    epochs: int
    lr: float
    decay: bool
    policy: RewiringPolicy | None = None
    schedule: RewiringSchedule | None = None
    redraw: bool = False

    @staticmethod
    def of(given: Any, epochs: tuple[int, int]) -> Recipe:
        """Fill in what is left open.

        Without moving masks that is the paper's recipe: a random split into two, magnitudes pay, a
        constant rate of 1e-3. With them it is what was chosen in this project's experiments
        (docs/results/rewiring.md): the network is expanded by 4 before it is trained and its weights are
        drawn anew, all epochs come after, at a rate that falls from 1e-2; or, where whole columns
        move, by 3, in 8 groups of neurons that have blocks of their own. After a warm-up, that is, for a
        trained network, the rate is a constant 1e-2: one that falls over all epochs is too small for
        the masks to adapt by the time that they begin to change.

        Parameters
        ----------
        given : object
            Has the attributes ``rewire``, as for `fpe.sklearn.FPEClassifier`, and ``factor``, ``split``,
            ``prune``, ``warmup_epochs``, ``epochs``, ``lr`` and ``decay``, each of which may be None.
        epochs : (int, int)
            Before and after the expansion, by default.

        Raises
        ------
        ArgumentError
            As `chosen_policy`.
        """
        policy = chosen_policy(given.rewire, given.prune)
        moves = policy is not None
        if policy is None:
            prune = _or(given.prune, "magnitude")
        else:
            prune = _or(given.prune, "columns" if policy.unit == "column" else "balanced")
        columns = as_pruning(prune).needs_shared
        warmup = _or(given.warmup_epochs, 0 if moves else epochs[0])
        redraw = moves and warmup == 0
        return Recipe(
            factor=_or(given.factor, (3 if columns else 4) if moves else 2),
            split=_or(given.split, ("shared-8" if moves else "shared") if columns else "random"),
            prune=prune,
            warmup_epochs=warmup,
            epochs=_or(given.epochs, sum(epochs) if redraw else epochs[1]),
            lr=_or(given.lr, 1e-2 if moves else 1e-3),
            decay=_or(given.decay, redraw),
            policy=policy,
            redraw=redraw,
        )

    def expand(self, dense: nn.Module, seed: int) -> nn.Module:
        """Return the expanded network, to be trained; the dense one is not changed."""
        wide = expand(dense, self.factor, self.split, self.prune, seed=seed)
        return reinitialize_(wide, seed) if self.redraw and self.factor > 1 else wide

    def rewirer(
        self, network: nn.Module, optimizer: torch.optim.Adam, samples: int, batch_size: int | None, seed: int
    ) -> Rewirer | None:
        """Return what moves the masks of an expanded network; None where nothing moves.

        Parameters
        ----------
        network, optimizer
            What is trained, and by what.
        samples : int
            It learns from so many.
        batch_size : int or None
            Samples in a mini-batch; None for what `fpe.training.loop.fitting_batch_size` says.
        seed : int
            Of random growth.
        """
        steps = self.epochs * -(-samples // (batch_size or fitting_batch_size(samples)))
        if self.policy is None or self.factor == 1 or steps == 0:
            return None
        return Rewirer(network, optimizer, self.policy, steps=steps, schedule=self.schedule, seed=seed)

    def cosine(self, behind: int) -> Cosine | None:
        """Return how the learning rate falls after so many epochs; None where it does not."""
        total = self.warmup_epochs + self.epochs
        return Cosine(total, behind) if self.decay and total else None


def _or(given: Any, default: Any) -> Any:
    return default if given is None else given
