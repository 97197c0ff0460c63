"""Successive halving: train all candidates a little, the better half twice as long, and so on."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fpe.budget.candidates import Settings
from fpe.errors import ArgumentError, BudgetError, ModelError
from fpe.expansion.planner import plan
from fpe.masked import count_nonzero
from fpe.models import mlp
from fpe.training import ensemble
from fpe.training.trials import Trial, train_trials

#: How often candidates are compared; each time the better half is kept.
ROUNDS = 3


@dataclass
class Entry:
    """What became of one candidate: its accuracies on the held-out part, one for each seed.

    `nonzero` is 0 if it could not be made; `rounds` counts its comparisons. `reason` says why it could not be
    made, or how it diverged, and is empty otherwise.
    """

    name: str
    settings: Settings
    nonzero: int = 0
    rounds: int = 0
    accuracies: list[float] = field(default_factory=list)
    reason: str = ""

    @property
    def accuracy(self) -> float:
        """The mean over the seeds; NaN after a failure."""
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
    """Training and held-out data, (samples, features) and class numbers, and how networks are trained."""

    X: Tensor
    y: Tensor
    X_held: Tensor
    y_held: Tensor
    outputs: int
    batch_size: int | None
    seeds: Sequence[int]


Field = list[tuple[Entry, list[Trial]]]


def halve(
    candidates: Sequence[tuple[str, Settings]],
    task: Task,
    epochs: int,
    on_epoch: Callable[[str, int, int], None] | None = None,
) -> list[Entry]:
    """Train candidates, and drop the worse half in each round, until the last have had all epochs.

    Of equal candidates the earlier, simpler one is kept. Learning rates and schedules are those of the full
    length from the start, so that a candidate that stays simply trains on. A candidate that cannot be made,
    or diverges, loses; if all diverge, raise `ArgumentError`. After each epoch `on_epoch` gets a text, the
    epochs of networks so far, and their total. Return the best first, failed ones last.
    """
    entries = [Entry(name, settings) for name, settings in candidates]
    alive = [(entry, trials) for entry in entries if (trials := _start(entry, task))]
    ends = [epochs >> (ROUNDS - number) for number in range(1, ROUNDS + 1)]
    total, remaining, begin, done = 0, len(alive), 0, 0
    for end in ends:
        total += remaining * (end - begin) * len(task.seeds)
        remaining, begin = math.ceil(remaining / 2), end

    def finished(records: list[dict[str, Any]]) -> None:
        nonlocal done
        done = min(total, done + len(records))
        if on_epoch is not None:
            on_epoch(f"{len(alive)} candidates", done, total)

    for number, end in enumerate(ends, 1):
        alive = _train(alive, task, end, finished)
        if not alive:
            failed = next(entry for entry in entries if entry.nonzero)
            raise ArgumentError(f"all candidates diverged; {failed.name}: {failed.reason}")
        _compare(alive, task, number)
        alive.sort(key=lambda each: -each[0].accuracy)  # stable: of equals the simpler one stays
        alive = alive[: math.ceil(len(alive) / 2)] if number < ROUNDS else alive
    return sorted(entries, key=lambda e: (bool(e.reason), -e.rounds, -e.accuracy if e.accuracies else 0.0))


def _start(entry: Entry, task: Task) -> list[Trial]:
    """Make the networks of a candidate, one for each seed; none, and the reason, if that is impossible."""
    recipe, hidden = replace(entry.settings.recipe, batch_size=task.batch_size), entry.settings.hidden
    inputs, dtype = task.X.shape[1], task.X.dtype
    dense = [mlp(inputs, hidden, task.outputs, seed=seed, dtype=dtype) for seed in task.seeds]
    try:
        if recipe.factor > 1:
            plan(dense[0], recipe.factor, split=recipe.split, prune=recipe.prune, seed=task.seeds[0])
        trials = [Trial.start(recipe, d, seed) for d, seed in zip(dense, task.seeds, strict=True)]
        if recipe.warmup_epochs == 0:
            for trial in trials:
                trial.expand(len(task.X))
    except (BudgetError, ModelError) as error:
        entry.reason = str(error)
        return []
    entry.nonzero = count_nonzero(trials[0].model)
    return trials


def _train(alive: Field, task: Task, end: int, finished: Callable[[list[dict[str, Any]]], None]) -> Field:
    """Train all candidates to an epoch together; if that diverges, one by one, and drop those that do."""
    before = copy.deepcopy([trials for _, trials in alive])
    try:
        every = [trial for _, trials in alive for trial in trials]
        train_trials(every, task.X, task.y, until=end, on_epoch=finished)
        return alive
    except ArgumentError:
        kept: Field = []
    for (entry, _), trials in zip(alive, before, strict=True):
        try:
            train_trials(trials, task.X, task.y, until=end, on_epoch=finished)
            kept.append((entry, trials))
        except ArgumentError as error:
            entry.reason, entry.accuracies = str(error), []
    return kept


def _compare(alive: Field, task: Task, number: int) -> None:
    models = [trial.model for _, trials in alive for trial in trials]
    found = torch.tensor(ensemble.accuracies(models, task.X_held, task.y_held), dtype=torch.float64)
    for (entry, _), accuracies in zip(alive, found.view(len(alive), -1).tolist(), strict=True):
        entry.rounds, entry.accuracies = number, accuracies
