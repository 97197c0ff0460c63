"""The best network for a budget of weights, by successive halving (Jamieson and Talwalkar, 2016).

Round by round fewer candidates are trained from the start for more epochs, each with its whole schedule, so
that pruning has ended when they are compared.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fpe.errors import ArgumentError
from fpe.masked import count_nonzero
from fpe.models import mlp
from fpe.training import ensemble
from fpe.training.loop import default_batch_size
from fpe.training.losses import CLASSES, Objective, loss_of
from fpe.training.recipe import Recipe
from fpe.training.trials import Trial, train_trials

#: Samples below which candidates are compared on several parts of the data.
FEW, VERY_FEW = 5000, 1000
#: About how many steps a network is trained for by default, within these numbers of epochs.
STEPS, EPOCHS = 3000, (15, 300)
#: Widths of pruned networks, as multiples of the widest dense network's within the budget.
MULTIPLES = (1.5, 2, 3, 4, 6)
#: Widths beside direct connections.
BESIDE_DIRECT = (8, 16, 32, 64, 128)
#: Learning rates, and label smoothing, that the second round tries for each structure.
RATES = (2.5e-3, 5e-3, 1e-2, 2e-2)
SMOOTHING = 0.1
#: Factor of the rate that the third round tries too: longer training may want a lower one.
LOWER = 0.25
#: Shares of the epochs, and how many structures enter the second round.
ROUNDS = (0.125, 0.25, 1.0)
ENTER_SECOND = 3


@dataclass(frozen=True)
class Candidate:
    """A network and its training; with `hidden` 0 it has no hidden layer.

    It is pruned to `budget` while it is trained, if it has more weights.
    """

    hidden: int
    direct: bool
    budget: int
    lr: float = 1e-2
    smoothing: float = 0.0
    score: str = "moment"

    @property
    def kind(self) -> tuple[bool, bool]:
        """Whether it has hidden neurons, and direct connections."""
        return self.hidden > 0, self.direct

    @property
    def name(self) -> str:
        """Describe the network in a few words."""
        if self.hidden == 0:
            return "no hidden layer"
        neurons = f"{self.hidden} hidden neurons"
        return f"{neurons} and direct connections" if self.direct else neurons

    def recipe(self, epochs: int, batch_size: int | None, objective: Objective, l2: float = 0.0) -> Recipe:
        """Return how it is trained."""
        own = objective._replace(smoothing=self.smoothing)
        return Recipe(
            factor=1,
            warmup_epochs=0,
            epochs=epochs,
            lr=self.lr,
            decay=True,
            batch_size=batch_size,
            l2=l2,
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
        return -self.score, statistics.fmean(self.losses) if self.losses else math.inf

    @property
    def dense(self) -> bool:
        """Whether it is a network that was not pruned."""
        return 0 < self.nonzero < self.candidate.budget

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return asdict(self)

    @staticmethod
    def from_dict(record: dict[str, Any]) -> Entry:
        """Make the entry again from what `to_dict` returned."""
        return Entry(**{**record, "candidate": Candidate(**record["candidate"])})


@dataclass(frozen=True)
class Fold:
    """A part of the data to train on, and the part to compare on: (samples, features) and targets."""

    X: Tensor
    y: Tensor
    X_val: Tensor
    y_val: Tensor
    weight: Tensor | None = None


@dataclass(frozen=True)
class Task:
    """One fold for each network of a candidate, and how networks are trained.

    `evaluate` returns the score of outputs, (samples, outputs), for targets.
    """

    folds: Sequence[Fold]
    outputs: int
    batch_size: int | None
    seed: int
    evaluate: Callable[[Tensor, Tensor], float]
    objective: Objective = CLASSES
    l2: float = 0.0

    @property
    def inputs(self) -> int:
        """The number of features."""
        return self.folds[0].X.shape[1]

    def network(self, candidate: Candidate, seed: int) -> nn.Sequential:
        """Return the untrained network of a candidate."""
        X = self.folds[0].X
        how: dict[str, Any] = {"seed": seed, "dtype": X.dtype, "direct": candidate.direct}
        return mlp(self.inputs, candidate.hidden, self.outputs, **how).to(X.device)


def hold_out(codes: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the samples to train on, and of those held out.

    Of each class number in `codes` the fraction is held out, at least one sample, but never all of them.
    """
    rng = np.random.default_rng(seed)
    held = []
    for code in range(codes.max() + 1):
        own = rng.permutation(np.flatnonzero(codes == code))
        held.append(own[: min(max(1, round(fraction * len(own))), len(own) - 1)])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(codes)), out), out


def fold_count(samples: int) -> int:
    """Return on how many parts of the data candidates are compared: more if there are few samples."""
    return 5 if samples < VERY_FEW else 2 if samples < FEW else 1


def default_epochs(samples: int, batch_size: int | None = None) -> int:
    """Return the epochs of about 3000 steps, at least 15 and at most 300."""
    steps = -(-samples // (batch_size or default_batch_size(samples)))
    return int(np.clip(round(STEPS / steps), *EPOCHS))


def dense_count(inputs: int, hidden: int, outputs: int) -> int:
    """Return the number of parameters of a dense network of one hidden layer, biases included."""
    return hidden * (inputs + 1 + outputs) + outputs


def widest(inputs: int, outputs: int, budget: int) -> int:
    """Return the number of hidden neurons of the widest dense network within a budget of parameters, or 0."""
    return max(0, (budget - outputs) // (inputs + 1 + outputs))


def structures(inputs: int, outputs: int, budget: int) -> list[Candidate]:
    """Return the networks that the first round compares, the simplest first."""
    dense = widest(inputs, outputs, budget)
    widths = sorted({math.ceil(k * max(1, dense)) for k in MULTIPLES} - {dense})
    found = [Candidate(0, False, budget)]
    found += [Candidate(dense, False, budget)] if dense else []
    found += [Candidate(width, False, budget) for width in widths if width > dense]
    return found + [Candidate(width, True, budget) for width in BESIDE_DIRECT]


def search(
    task: Task,
    budget: int,
    epochs: int,
    known: Sequence[Entry] = (),
    on_entries: Callable[[list[Entry]], None] | None = None,
    on_epoch: Callable[[str, int, int], None] | None = None,
) -> list[Entry]:
    """Return the entries of all rounds, the best of the last round first.

    `known` are entries of an interrupted search, which are not trained again; `on_entries` gets all entries
    so far as soon as there are new ones. After each epoch `on_epoch` gets a text, the epochs of networks so
    far, and their estimated total.
    """
    first = structures(task.inputs, task.outputs, budget)
    plan = [len(first), ENTER_SECOND * (len(RATES) + 1), 6]
    lengths = [max(1, round(share * epochs)) for share in ROUNDS]
    total = sum(n * length for n, length in zip(plan, lengths, strict=True)) * len(task.folds)
    stored = {(entry.candidate, entry.share): entry for entry in known}
    entries: list[Entry] = []
    done = 0

    def run(candidates: Sequence[Candidate], number: int) -> list[Entry]:
        nonlocal done
        before, found = done, []
        for kind in dict.fromkeys(c.kind for c in candidates):  # one program each
            some = [c for c in candidates if c.kind == kind]
            new = [c for c in some if (c, ROUNDS[number]) not in stored]

            def finished(records: list[dict[str, Any]]) -> None:
                nonlocal done
                done += len(records)
                if on_epoch is not None:
                    on_epoch(f"round {number + 1} of {len(ROUNDS)}", min(done, total), total)

            if new:
                made = _train(task, new, lengths[number], ROUNDS[number], finished)
                stored.update({(entry.candidate, entry.share): entry for entry in made})
            found += [stored[c, ROUNDS[number]] for c in some]
            if new and on_entries is not None:
                on_entries([*entries, *found])
        done = before + len(candidates) * lengths[number] * len(task.folds)
        entries.extend(found)
        return sorted(found, key=lambda entry: entry.rank)

    ranked = run(first, 0)
    entering = [entry.candidate for entry in ranked[:ENTER_SECOND]]
    if (simplest := _simplest(task, ranked).candidate) not in entering:
        entering[-1] = simplest
    tried = [replace(c, lr=rate) for c in entering for rate in RATES]
    tried += [replace(c, smoothing=SMOOTHING) for c in entering if _smoothable(task)]
    ranked = run(tried, 1)
    best = _simplest(task, ranked).candidate
    lower = replace(best, lr=LOWER * best.lr)
    finalists = [best, lower]
    if _smoothable(task):
        finalists.append(replace(lower, smoothing=SMOOTHING - best.smoothing))
    others = [entry.candidate for entry in ranked if entry.candidate.kind != best.kind]
    others += [
        c.candidate for c in ranked if (c.candidate.hidden, c.candidate.direct) != (best.hidden, best.direct)
    ]
    finalists += others[:1]
    # The simple rivals are trained as long, unless they are among these.
    rivals = [c for c in first if not c.direct and (c.hidden == 0 or not _pruned(task, c))]
    known_kinds = {(c.hidden, c.direct) for c in finalists}
    last = run(finalists + [c for c in rivals if (c.hidden, c.direct) not in known_kinds], 2)
    if not last or not last[0].scores:
        failed = next((entry for entry in entries if entry.reason), None)
        raise ArgumentError(f"all candidates diverged: {failed.reason if failed else ''}")
    return last + [entry for entry in entries if entry not in last]


def _simplest(task: Task, ranked: Sequence[Entry]) -> Entry:
    """Return the best entry of the simplest structure within a standard error of the best (Breiman, 1984).

    Without direct connections is simpler than with them, fewer neurons than more.
    """
    best, samples = ranked[0].score, sum(len(fold.y_val) for fold in task.folds)
    missed = max(0.0, 1 - best)  # the share of mistakes, or of the variance that is not explained
    error = missed * (2 / samples) ** 0.5
    if task.objective.kind != "squared":
        error = (missed * max(0.0, best) / samples) ** 0.5
    close = [entry for entry in ranked if entry.score >= best - error]
    return min(close or ranked, key=lambda entry: (entry.candidate.direct, entry.candidate.hidden))


def _smoothable(task: Task) -> bool:
    return task.objective.kind != "squared"


def _pruned(task: Task, candidate: Candidate) -> bool:
    return count_nonzero(task.network(candidate, 0)) > candidate.budget


def _train(
    task: Task, candidates: Sequence[Candidate], epochs: int, share: float, finished: Callable[..., None]
) -> list[Entry]:
    """Train candidates together; if that diverges, one by one, so that only those fail that do."""
    try:
        return _trained(task, candidates, epochs, share, finished)
    except ArgumentError as error:
        if len(candidates) == 1:
            return [Entry(candidates[0], share, reason=str(error))]
    return [entry for c in candidates for entry in _train(task, [c], epochs, share, finished)]


def _trained(
    task: Task, candidates: Sequence[Candidate], epochs: int, share: float, finished: Callable[..., None]
) -> list[Entry]:
    trials, generators = [], [torch.Generator().manual_seed(task.seed + i) for i in range(len(task.folds))]
    for candidate in candidates:
        recipe = candidate.recipe(epochs, task.batch_size, task.objective, task.l2)
        for i, generator in enumerate(generators):  # equal orders of mini-batches are shared
            trial = Trial.start(recipe, task.network(candidate, task.seed + i), task.seed + i)
            trial.generator = generator
            trials.append(trial)
    data = [task.folds[i % len(task.folds)] for i in range(len(trials))]
    weights = [fold.weight for fold in data] if task.folds[0].weight is not None else None
    train_trials(trials, [f.X for f in data], [f.y for f in data], sample_weight=weights, on_epoch=finished)
    outputs = ensemble.predict_logits([trial.model for trial in trials], [fold.X_val for fold in data])
    plain, found = Objective(task.objective.kind), []
    for number, candidate in enumerate(candidates):
        entry = Entry(candidate, share, count_nonzero(trials[number * len(task.folds)].model))
        for i, fold in enumerate(task.folds):
            own = outputs[number * len(task.folds) + i]
            entry.scores.append(task.evaluate(own, fold.y_val))
            entry.losses.append(float(loss_of(own, fold.y_val, objective=plain)))
        found.append(entry)
    return found
