"""The networks that a search compares: what each is, how it is trained, and how it scores."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import joblib
import torch
from torch import Tensor, nn

from fpe.errors import ArgumentError, FPEError
from fpe.expansion.planner import plan
from fpe.masked import count_nonzero
from fpe.models import mlp
from fpe.training import ensemble
from fpe.training.folds import MOST_FOLDS, Fold
from fpe.training.losses import CLASSES, Objective, loss_of
from fpe.training.recipe import Recipe
from fpe.training.trials import Trial, train_trials

#: The learning rate of the first rounds.
RATE = 1e-2


@dataclass(frozen=True)
class Candidate:
    """A network and its training; with `hidden` 0 it has no hidden layer.

    It is pruned to `budget` while it is trained, if it has more weights. With `blocks` a dense network of
    `hidden` neurons is expanded into dense blocks before it is trained, whose inputs are exchanged meanwhile.
    """

    hidden: int
    direct: bool
    budget: int
    lr: float = RATE
    smoothing: float = 0.0
    score: str = "moment"
    activation: str = "relu"
    l2: float = 0.0
    blocks: bool = False

    @property
    def kind(self) -> tuple[bool, bool]:
        """Whether it has hidden neurons, and direct connections."""
        return self.hidden > 0, self.direct

    @property
    def program(self) -> tuple[Any, ...]:
        """What is equal for networks that are trained together."""
        return *self.kind, self.hidden.bit_length(), self.smoothing, self.activation, self.l2, self.blocks

    @property
    def name(self) -> str:
        """Describe the network in a few words."""
        if self.hidden == 0:
            return "no hidden layer"
        neurons = f"{self.hidden} hidden neuron{'s' if self.hidden > 1 else ''}"
        neurons += "" if self.activation == "relu" else f" ({self.activation})"
        neurons += ", expanded in blocks" if self.blocks else ""
        return f"{neurons} and direct connections" if self.direct else neurons

    def recipe(self, epochs: int, batch_size: int | None, objective: Objective, l2: float = 0.0) -> Recipe:
        """Return how it is trained."""
        own = objective._replace(smoothing=self.smoothing)
        if self.blocks:
            how: dict[str, Any] = {"epochs": epochs, "lr": self.lr, "batch_size": batch_size}
            return replace(Recipe.choose(rewire="columns", **how, l2=l2 + self.l2), objective=own)
        return Recipe(
            factor=1,
            warmup_epochs=0,
            epochs=epochs,
            lr=self.lr,
            decay=True,
            batch_size=batch_size,
            l2=l2 + self.l2,
            gradual=True,
            score=self.score,
            budget=self.budget,
            objective=own,
        )


@dataclass
class Entry:
    """A candidate and its scores, one for each fold; the higher, the better.

    `nonzero` is its count, `share` the share of all epochs that it was trained for, `reason` says why it
    has no scores, and is empty otherwise.
    """

    candidate: Candidate
    share: float
    nonzero: int = 0
    scores: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    reason: str = ""

    @property
    def score(self) -> float:
        """The mean over the folds; −∞ after a failure."""
        return statistics.fmean(self.scores) if self.scores else -math.inf

    @property
    def rank(self) -> tuple[float, float]:
        """Sorts entries of one round, the best first."""
        loss = statistics.fmean(self.losses) if self.losses else math.inf
        return (loss, -self.score) if self.by_loss else (-self.score, loss)

    @property
    def by_loss(self) -> bool:
        """Whether entries are ranked by their losses: with few samples accuracies are too coarse."""
        return len(self.losses) == MOST_FOLDS

    @property
    def dense(self) -> bool:
        """Whether it is a network that was neither pruned nor expanded."""
        return 0 < self.nonzero < self.candidate.budget and not self.candidate.blocks

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return asdict(self)

    @staticmethod
    def from_dict(record: dict[str, Any]) -> Entry:
        """Make the entry again from what `to_dict` returned."""
        return Entry(**{**record, "candidate": Candidate(**record["candidate"])})


@dataclass(frozen=True)
class Task:
    """One fold for each network of a candidate, and how networks are trained, in so many processes.

    `evaluate` returns the score of outputs, (samples, outputs), for targets.
    """

    folds: Sequence[Fold]
    outputs: int
    batch_size: int | None
    seed: int
    evaluate: Callable[[Tensor, Tensor], float]
    objective: Objective = CLASSES
    l2: float = 0.0
    jobs: int = 1

    @property
    def inputs(self) -> int:
        """The number of features."""
        return self.folds[0].X.shape[1]

    def network(self, candidate: Candidate, seed: int) -> nn.Sequential:
        """Return the untrained network of a candidate."""
        X = self.folds[0].X
        how: dict[str, Any] = {"direct": candidate.direct, "activation": candidate.activation}
        return mlp(self.inputs, candidate.hidden, self.outputs, seed=seed, dtype=X.dtype, **how).to(X.device)

    def expands(self, candidate: Candidate) -> bool:
        """Tell whether the network of a candidate can be expanded as its recipe says."""
        recipe = candidate.recipe(1, self.batch_size, self.objective)
        try:
            plan(self.network(candidate, 0), recipe.factor, split=recipe.split, prune=recipe.prune)
        except FPEError:
            return False
        return True


def trained(
    task: Task,
    candidates: Sequence[Candidate],
    epochs: int,
    share: float = 1.0,
    on_epoch: Callable[[list[Any]], None] | None = None,
) -> Iterator[list[Entry]]:
    """Train candidates, and yield the entries of each that is finished; of several at once with many folds.

    `on_epoch` gets a list with an item for each network that has finished an epoch.
    """
    many = len(task.folds) > 2  # small networks, which are trained together; others one by one
    groups: dict[Any, list[Candidate]] = {}
    for c in candidates:
        groups.setdefault(c.program if many else c, []).append(c)
    parts = [replace(task, folds=[fold], seed=task.seed + i) for i, fold in enumerate(task.folds)]
    parts, here = [task] if many else parts, task.jobs == 1
    work = [
        (part, own, epochs, share, on_epoch if here else None) for own in groups.values() for part in parts
    ]
    if not work:  # all are known: no processes are started
        return
    made = joblib.Parallel(task.jobs, return_as="generator", batch_size=1)(
        joblib.delayed(_train)(*each) for each in work
    )
    found: list[list[Entry]] = []
    try:
        for entries in made:  # to its end: joblib warns of a generator that is left before
            found.append(entries)
            if len(found) < len(parts):
                continue
            if not here and on_epoch is not None:
                on_epoch([None] * (epochs * len(entries) * len(task.folds)))
            yield [_joined(own) for own in zip(*found, strict=True)]
            found = []
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # joblib's, of what it cancels after Ctrl-C
            made.close()


def _joined(entries: Sequence[Entry]) -> Entry:
    """Return the entry of a candidate from those of its folds."""
    first, reason = entries[0], next((entry.reason for entry in entries if entry.reason), "")
    if reason:
        return Entry(first.candidate, first.share, reason=reason)
    scores, losses = ([n for e in entries for n in getattr(e, name)] for name in ("scores", "losses"))
    return replace(first, scores=scores, losses=losses)


def _train(
    task: Task, candidates: Sequence[Candidate], epochs: int, share: float, on_epoch: Any
) -> list[Entry]:
    """Train candidates together; if that diverges, one by one, so that only those fail that do."""
    try:
        return _train_together(task, candidates, epochs, share, on_epoch)
    except ArgumentError as error:
        if len(candidates) == 1:
            return [Entry(candidates[0], share, reason=str(error))]
    return [entry for c in candidates for entry in _train(task, [c], epochs, share, on_epoch)]


def _train_together(
    task: Task, candidates: Sequence[Candidate], epochs: int, share: float, on_epoch: Any
) -> list[Entry]:
    trials, generators = [], [torch.Generator().manual_seed(task.seed + i) for i in range(len(task.folds))]
    for candidate in candidates:
        recipe = candidate.recipe(epochs, task.batch_size, task.objective, task.l2)
        for i, generator in enumerate(generators):  # equal orders of mini-batches are shared
            trial = Trial.start(recipe, task.network(candidate, task.seed + i), task.seed + i)
            trial.generator = generator
            trials.append(trial)
    data = [task.folds[i % len(task.folds)] for i in range(len(trials))]
    weights = [fold.weight for fold in data] if data[0].weight is not None else None
    inputs, targets = [fold.X for fold in data], [fold.y for fold in data]
    train_trials(trials, inputs, targets, sample_weight=weights, on_epoch=on_epoch)
    outputs = ensemble.predict_logits([trial.model for trial in trials], [fold.X_val for fold in data])
    plain, found = Objective(task.objective.kind), []
    for number, candidate in enumerate(candidates):
        entry = Entry(candidate, share, count_nonzero(trials[number * len(task.folds)].model))
        for i, fold in enumerate(task.folds):
            logits = outputs[number * len(task.folds) + i]
            entry.scores.append(task.evaluate(logits, fold.y_val))
            entry.losses.append(float(loss_of(logits, fold.y_val, objective=plain)))
        found.append(entry)
    return found
