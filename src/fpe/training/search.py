"""The best network for a budget of weights, by successive halving (Jamieson and Talwalkar, 2016).

Round by round fewer networks are trained from the start for more epochs, each with its whole schedule, so
that pruning has ended when they are compared. The first round compares networks without a hidden layer, with
one of several widths, and with direct connections beside it; the second the best of each kind, also with
SiLU. The last trains the best, the best of another kind and the simple rivals for all epochs, and then the
best ones at another rate, which is raised further if that helps, and the best one with label smoothing. No
hidden layer wins if it is within a standard error of the best. Otherwise a network whose weights are dense
blocks wins, where it is asked for, if it is within a standard error of the paired difference to the best.

With few samples all networks have the L2 penalty of scikit-learn's logistic regression, one over the number
of samples; with very few they are compared by their losses, as their accuracies are too coarse.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fpe.errors import ArgumentError
from fpe.training.candidates import RATE, Candidate, Entry, Task, trained
from fpe.training.folds import MOST_FOLDS
from fpe.training.loop import default_batch_size

#: About how many steps a network is trained for by default, within these numbers of epochs.
STEPS, EPOCHS = 3000, (15, 300)
#: Widths of pruned networks, as multiples of the widest dense network's within the budget.
MULTIPLES = (2, 3, 4, 6)
#: Widths beside direct connections.
BESIDE_DIRECT = (8, 16, 32, 64, 128)
#: Non-zeros for each neuron, at least, in networks that are pruned.
LEAST_EACH = 8
#: If training twice as long avoided less than this share of the mistakes, the networks of the last round are
#: trained at the first factor of the rate, and the best ones also at the second.
FACTORS = ((0.05, (0.25, 0.0625)), (0.1, (1.0, 0.25)), (0.2, (1.0, 2.0)), (1.0, (2.0, 4.0)))
#: Label smoothing and the activation that the best networks are trained with too.
SMOOTHING, ACTIVATION = 0.1, "silu"
#: Bytes that the training of a network may take, and weights for each row without a warning.
MOST_BYTES, MOST_FOR_EACH = 1 << 34, 100
#: Shares of the epochs, and how many networks enter the second round.
ROUNDS = (0.125, 0.25, 1.0)
ENTER_SECOND = 4


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
    dense, most = widest(inputs, outputs, budget), budget // LEAST_EACH
    widths = sorted({math.ceil(k * max(1, dense)) for k in MULTIPLES} - {dense})
    found = [Candidate(0, False, budget)]
    found += [Candidate(dense, False, budget)] if dense else []
    found += [Candidate(width, False, budget) for width in widths if dense < width <= most]
    return found + [Candidate(width, True, budget) for width in BESIDE_DIRECT if width <= most]


def check_budget(budget: int, task: Task) -> None:
    """Refuse a budget whose networks take too much memory, and warn of one with many weights for each row."""
    fold, direct = task.folds[0], task.inputs * task.outputs
    hidden = max(c.hidden for c in structures(task.inputs, task.outputs, budget))
    # Beside weights there are their gradients, and two moments.
    memory = 4 * fold.X.element_size() * (dense_count(task.inputs, hidden, task.outputs) + direct)
    if memory > MOST_BYTES:
        raise ArgumentError(
            f"a search for {budget:,} non-zeros would train a network of {hidden:,} hidden neurons, which "
            f"takes {memory / 2**30:,.0f} GiB of memory, and {MOST_BYTES // 2**30} are allowed: give a "
            "smaller budget."
        )
    rows = len(fold.X) + len(fold.X_val)
    if budget > MOST_FOR_EACH * max(rows, direct):
        warnings.warn(
            f"the budget has more than {MOST_FOR_EACH} weights for each of the {rows:,} rows; a smaller one "
            "may be as accurate, and takes less time.",
            stacklevel=5,
        )


def search(
    task: Task,
    budget: int,
    epochs: int,
    known: Sequence[Entry] = (),
    on_entries: Callable[[list[Entry]], None] | None = None,
    on_epoch: Callable[[str, int, int], None] | None = None,
    prefer_blocks: bool = False,
) -> list[Entry]:
    """Return the entries of all rounds, the best of the last round first.

    `known` are entries of an interrupted search, which are not trained again; `on_entries` gets all entries
    so far as soon as there are new ones. After each epoch `on_epoch` gets a text, the epochs of networks so
    far, and their estimated total. With `prefer_blocks` a winner with hidden neurons is compared with a
    network of dense blocks, trained like it, if there are several folds.
    """
    first = structures(task.inputs, task.outputs, budget)
    if len(task.folds) > 1:
        first = [replace(c, l2=1 / len(task.folds[0].X)) for c in first]
    plan = [len(first), min(ENTER_SECOND, len(first)) + 3, 7]
    lengths = [max(1, round(share * epochs)) for share in ROUNDS]
    total = sum(n * length for n, length in zip(plan, lengths, strict=True)) * len(task.folds)
    stored = {(entry.candidate, entry.share): entry for entry in known}
    entries: list[Entry] = []
    done = 0

    def run(candidates: Sequence[Candidate], number: int) -> list[Entry]:
        nonlocal done
        before, share = done, ROUNDS[number]

        def advance(records: list[Any]) -> None:
            nonlocal done
            done += len(records)
            if on_epoch is not None:
                on_epoch(f"round {number + 1} of {len(ROUNDS)}", min(done, total), total)

        new = [c for c in candidates if (c, share) not in stored]
        for made in trained(task, new, lengths[number], share, advance):
            stored.update({(entry.candidate, share): entry for entry in made})
            if on_entries is not None:
                here = [stored[c, share] for c in candidates if (c, share) in stored]
                on_entries([*entries, *here])
        done = before + len(candidates) * lengths[number] * len(task.folds)
        found = [stored[c, share] for c in candidates]
        entries.extend(found)
        return sorted(found, key=lambda entry: entry.rank)

    ranked = run(first, 0)
    entering = _entering(ranked)
    smoothed = replace(entering[0], smoothing=SMOOTHING)
    # Hidden neurons get no other activation where none are better by more than a standard error.
    close = [e.candidate for e in ranked if entering[0].hidden or _as_good(task, e, ranked[0])]
    others = [replace(c, activation=ACTIVATION) for c in _of_kinds([c for c in entering if c in close])]
    others += [smoothed] if task.objective.kind != "squared" else []
    second = run([*entering, *others], 1)
    ranked = [entry for entry in second if entry.candidate != smoothed]
    leader = _simplest(task, ranked)
    plain = replace(leader.candidate, activation="relu")
    before, after = (entry.score for entry in entries if entry.candidate == plain)
    rate, next_rate = _rates(before, after)
    finalists = [leader.candidate]
    finalists += [e.candidate for e in ranked if e.candidate.kind != leader.candidate.kind][:1]
    # The simple rivals are trained as long.
    rivals = [replace(c, lr=rate) for c in first if _simple(task, c) and c not in finalists]
    finalists = [replace(c, lr=rate) for c in finalists]
    last = run([*finalists, *rivals], 2)
    leader = _simplest(task, last)
    again = [leader.candidate]
    if leader.candidate.hidden:  # also the best of the other kind
        again = _of_kinds([entry.candidate for entry in last if entry.candidate in finalists])
    last += run([replace(c, lr=next_rate) for c in again], 2)

    def best() -> Entry:  # the first, if several are as good
        return min(last, key=lambda entry: entry.rank)

    if best().candidate.lr == next_rate > rate:
        last += run([replace(best().candidate, lr=next_rate * next_rate / rate)], 2)
    plain_entry = next(entry for entry in ranked if entry.candidate == entering[0])
    if any(entry.rank <= plain_entry.rank for entry in second if entry.candidate == smoothed):
        last += run([replace(best().candidate, smoothing=SMOOTHING)], 2)
    last.sort(key=lambda entry: entry.rank)
    winner = _simplest(task, last)
    width = widest(task.inputs, task.outputs, budget)
    if prefer_blocks and len(task.folds) > 1 and winner.candidate.hidden and width:
        blocks = replace(winner.candidate, hidden=width, direct=False, blocks=True)
        last += run([blocks], 2) if task.expands(blocks) else []
        winner = next((e for e in last if e.candidate.blocks and _paired(e, winner)), winner)
    if not winner.scores:
        failed = next((entry for entry in entries if entry.reason), None)
        raise ArgumentError(f"all candidates diverged: {failed.reason if failed else ''}")
    last = [winner, *(entry for entry in last if entry is not winner)]
    return last + [entry for entry in entries if entry not in last]


def _entering(ranked: Sequence[Entry]) -> list[Candidate]:
    """Return what enters the second round, the best first: the best of each kind, and the next best."""
    kinds = dict.fromkeys(entry.candidate.kind for entry in ranked)
    best = [next(entry for entry in ranked if entry.candidate.kind == kind) for kind in kinds]
    chosen = [*best, *(entry for entry in ranked if entry not in best)][:ENTER_SECOND]
    return [entry.candidate for entry in sorted(chosen, key=lambda entry: entry.rank)]


def _of_kinds(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the first with hidden neurons alone, and the first with direct connections beside them."""
    return list({c.kind: c for c in reversed(candidates) if c.hidden}.values())[::-1]


def _simplest(task: Task, ranked: Sequence[Entry]) -> Entry:
    """Return the best entry, or the best without hidden neurons within a standard error (Breiman, 1984)."""
    best = ranked[0]
    return next((e for e in ranked if not e.candidate.hidden and _as_good(task, e, best)), best)


def _as_good(task: Task, entry: Entry, best: Entry) -> bool:
    """Tell whether an entry is within a standard error of the best."""
    if len(best.losses) == len(entry.losses) == MOST_FOLDS:
        return _paired(entry, best)
    return entry.score >= best.score - _error(task, best.score)


def _paired(entry: Entry, best: Entry) -> bool:
    """Tell whether an entry is within a standard error of the paired difference to the best.

    Differences are those of the folds, of what entries are ranked by; one fold tells nothing.
    """
    by_loss = len(best.losses) == MOST_FOLDS
    pairs = (entry.losses, best.losses) if by_loss else (best.scores, entry.scores)
    if not 1 < len(pairs[0]) == len(pairs[1]):
        return False
    worse = np.subtract(*pairs)
    return bool(worse.mean() <= worse.std(ddof=1) / len(worse) ** 0.5)


def _error(task: Task, score: float) -> float:
    """Return the standard error of a score, of at most 1."""
    samples, missed = sum(len(fold.y_val) for fold in task.folds), max(0.0, 1 - score)
    if task.objective.kind == "squared":  # the share of the variance that is not explained
        return missed * math.sqrt(2 / samples)
    return math.sqrt(missed * max(0.0, score) / samples)


def _rates(before: float, after: float) -> tuple[float, float]:
    """Return two learning rates for the last round, from scores of two lengths of training at `RATE`.

    Where longer training avoids few mistakes, or makes more, or diverges, a lower rate is better, and
    conversely.
    """
    avoided = (after - before) / max(1e-9, 1 - before) if math.isfinite(after) else 0.0
    first, second = next((factors for most, factors in FACTORS if avoided < most), FACTORS[-1][1])
    return first * RATE, second * RATE


def _simple(task: Task, candidate: Candidate) -> bool:
    """Tell whether it has no hidden layer, or is a dense network."""
    size = dense_count(task.inputs, candidate.hidden, task.outputs)
    return not candidate.direct and (candidate.hidden == 0 or size <= candidate.budget)
