"""Successive halving: all candidates are trained a little, the better half twice as long, and so on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fpe.budget.candidates import Settings
from fpe.errors import BudgetError, ModelError
from fpe.expansion.planner import plan
from fpe.masked import count_nonzero
from fpe.models import mlp
from fpe.training import ensemble
from fpe.training.trials import Trial, train_trials

#: How often candidates are compared; each time all but the better half are dropped.
ROUNDS = 3


@dataclass
class Entry:
    """What became of one candidate.

    Attributes
    ----------
    name : str
        What tables call it.
    settings : Settings
        What makes it.
    nonzero : int
        Its non-zero parameters; 0 if it could not be made.
    rounds : int
        How many it was compared in.
    accuracies : list of float
        Of each seed on the held-out part, 0 to 1, at its last comparison.
    reason : str
        Why it could not be made; empty if it could.
    """

    name: str
    settings: Settings
    nonzero: int = 0
    rounds: int = 0
    accuracies: list[float] = field(default_factory=list)
    reason: str = ""

    @property
    def accuracy(self) -> float:
        """The mean over the seeds; NaN if it could not be made."""
        return statistics.fmean(self.accuracies) if self.accuracies else math.nan

    @property
    def spread(self) -> float | None:
        """The standard deviation over the seeds; None for fewer than two."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        accuracy = self.accuracy if self.accuracies else None
        return {**asdict(self), "accuracy": accuracy, "spread": self.spread}


@dataclass(frozen=True)
class Task:
    """What is learnt, and on what it is seen how well.

    Attributes
    ----------
    X, y, X_held, y_held : Tensor
        Inputs, (samples, features), and class numbers, to learn from and held out.
    outputs : int
        Logits: one for two classes.
    batch_size : int or None
        As for `fpe.training.loop.train`.
    seeds : sequence of int
        Of the networks of each candidate.
    """

    X: Tensor
    y: Tensor
    X_held: Tensor
    y_held: Tensor
    outputs: int
    batch_size: int | None
    seeds: Sequence[int]


def halve(
    candidates: Sequence[tuple[str, Settings]],
    task: Task,
    epochs: int,
    on_epoch: Callable[[str, int, int], None] | None = None,
) -> list[Entry]:
    """Train and drop candidates until the last ones have been trained for all epochs.

    Learning rates and moving masks follow their full length from the start, so that those who stay simply
    train on.

    Parameters
    ----------
    candidates : sequence of (str, Settings)
        Names and settings, the simpler first.
    task : Task
        What is learnt.
    epochs : int
        Of the last round, in all; at least 8.
    on_epoch : callable, optional
        Gets, after each epoch of some networks, a text, the epochs of networks so far, and of how many.

    Returns
    -------
    list of Entry
        The best first: by rounds, then by mean accuracy. Those that could not be made are last.
    """
    entries = [Entry(name, settings) for name, settings in candidates]
    fields = [(entry, _start(entry, task)) for entry in entries]
    alive = [(entry, trials) for entry, trials in fields if trials]
    ends = [epochs >> (ROUNDS - number) for number in range(1, ROUNDS + 1)]
    total, left, begin = 0, len(alive), 0
    for end in ends:
        total, left, begin = total + left * (end - begin), math.ceil(left / 2), end
    total, done = total * len(task.seeds), 0

    def finished(records: list[dict[str, Any]]) -> None:
        nonlocal done
        done += len(records)
        if on_epoch is not None:
            on_epoch(f"{len(alive)} candidates", done, total)

    for number, end in enumerate(ends, 1):
        every = [trial for _, trials in alive for trial in trials]
        train_trials(every, task.X, task.y, until=end, on_epoch=finished)
        _compare(alive, task, number)
        # Stable: of equals the simpler one stays.
        alive.sort(key=lambda each: -each[0].accuracy)
        alive = alive[: math.ceil(len(alive) / 2)] if number < ROUNDS else alive
    return sorted(entries, key=lambda e: (-e.rounds, -e.accuracy if e.accuracies else 0.0))


def _start(entry: Entry, task: Task) -> list[Trial]:
    """Make the networks of a candidate; note down why if that cannot be."""
    recipe, hidden = replace(entry.settings.recipe, batch_size=task.batch_size), entry.settings.hidden
    inputs, dtype = task.X.shape[1], task.X.dtype
    dense: list[nn.Module] = [mlp(inputs, hidden, task.outputs, seed=s, dtype=dtype) for s in task.seeds]
    try:
        if recipe.factor > 1:
            plan(dense[0], recipe.factor, recipe.split, recipe.prune, seed=task.seeds[0])
        trials = [Trial.start(recipe, d, s) for d, s in zip(dense, task.seeds, strict=True)]
        if recipe.warmup_epochs == 0:
            for trial in trials:
                trial.expand(len(task.X))
    except (BudgetError, ModelError) as error:
        entry.reason = str(error)
        return []
    entry.nonzero = count_nonzero(trials[0].model)
    return trials


def _compare(alive: Sequence[tuple[Entry, list[Trial]]], task: Task, number: int) -> None:
    """Measure all that are left on the held-out part."""
    models = [trial.model for _, trials in alive for trial in trials]
    found = torch.tensor(ensemble.accuracies(models, task.X_held, task.y_held), dtype=torch.float64)
    for (entry, _), accuracies in zip(alive, found.view(len(alive), -1).tolist(), strict=True):
        entry.rounds, entry.accuracies = number, accuracies
