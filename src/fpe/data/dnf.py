"""The paper's symbolic task: is a monotone read-once DNF formula satisfied (2.2.1 and A.2.1)?

A formula is an OR of clauses, a clause an AND of its own `literals` variables. Variables of one clause
are adjacent: clause c has the inputs ``c · literals … (c + 1) · literals − 1``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fpe.errors import ArgumentError, raise_problems

#: Draws of a negative sample after which the settings are called impossible.
_TRIES = 1000


class DNF(NamedTuple):
    """Samples of a formula: inputs, labels, and the clause of each input."""

    #: (samples, clauses × literals), float32.
    X: np.ndarray
    #: 1 where the formula is satisfied and 0 elsewhere, (samples,), int64; half of each.
    y: np.ndarray
    #: (clauses × literals,), as `fpe.LabelSplit` takes it.
    labels: np.ndarray


def dnf(
    clauses: int,
    *,
    literals: int = 4,
    samples: int = 4000,
    seed: int = 0,
    active: tuple[float, float] = (0.25, 0.5),
    true: tuple[float, float] = (0.9, 1.0),
    false: tuple[float, float] = (0.0, 0.1),
) -> DNF:
    """Draw samples of a monotone read-once DNF formula, exactly half of them satisfied (A.2.1).

    A positive sample has all literals of a random clause on, and further ones until its count of active
    variables, drawn between the bounds, is reached. Half of the negative samples are drawn in the same way,
    and then one literal of each satisfied clause is turned off; the other half are drawn until no clause is
    satisfied.

    Parameters
    ----------
    clauses, literals : int
        Clauses of the formula, and variables of each; `literals` is 4 by default.
    samples : int, default 4000
        Number of samples, even; they are in random order.
    seed : int, default 0
        The same seed gives the same samples.
    active : (float, float), default (0.25, 0.5)
        Least and greatest share of the variables that are on before literals are turned off. The paper's text
        does not give the bounds; these are ours, as are the ranges below.
    true, false : (float, float), default (0.9, 1) and (0, 0.1)
        Range from which the value of a variable that is on, or off, is drawn.

    Returns
    -------
    DNF
        ``X``, ``y`` and the clause of each input.

    Raises
    ------
    ArgumentError
        If an argument is out of range, or no sample of a kind can be drawn with these bounds.

    Examples
    --------
    >>> from fpe.data import dnf
    >>> X, y, labels = dnf(clauses=8, samples=1000)
    >>> X.shape, int(y.sum()), labels[:5].tolist()
    ((1000, 32), 500, [0, 0, 0, 0, 1])
    """
    integers = {"clauses": (clauses, 1), "literals": (literals, 1), "samples": (samples, 4)}
    problems = [
        f"{name} is {value!r}; give an integer of at least {least}."
        for name, (value, least) in integers.items()
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least
    ]
    for name, bounds in (("active", active), ("true", true), ("false", false)):
        if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] <= 1:
            problems.append(f"{name} is {bounds!r}; give two numbers from 0 to 1, the smaller one first.")
    raise_problems(problems, ArgumentError, "dnf")
    if samples % 2:
        problems.append(f"samples is {samples}; give an even number, of which half are satisfied.")
    if false[1] >= true[0]:
        problems.append(f"false ends at {false[1]} and true begins at {true[0]}; they must not overlap.")
    variables, largest = clauses * literals, clauses * (literals - 1)  # one literal of each clause is off
    least, most = int(np.ceil(active[0] * variables)), int(np.floor(active[1] * variables))
    if most < literals:
        problems.append(
            f"at most {most} of {variables} variables may be on (active {active}), too few for a clause of "
            f"{literals}; raise the upper bound to {literals / variables:.3g} or more."
        )
    elif least > most:
        problems.append(f"no whole number of {variables} variables lies within active {active}; widen it.")
    elif least > largest:
        problems.append(
            f"at least {least} of {variables} variables must be on (active {active}), but {largest} are the "
            f"most without a satisfied clause; lower the lower bound to {largest / variables:.3g} or less."
        )
    raise_problems(problems, ArgumentError, "dnf")
    rng = np.random.default_rng(seed)

    def drawn(count: int, least: int, first: np.ndarray | None = None) -> np.ndarray:
        return _turn_on(rng.integers(least, most + 1, count), variables, rng, first)

    def satisfying(count: int) -> np.ndarray:
        chosen = rng.integers(0, clauses, count)[:, None] * literals + np.arange(literals)
        return drawn(count, max(least, literals), chosen)

    positive, negative = satisfying(samples // 2), satisfying(samples // 4)
    sample, clause = np.nonzero(satisfied(negative, literals))
    negative[sample, clause * literals + rng.integers(0, literals, len(sample))] = False
    others = np.empty((samples - len(positive) - len(negative), variables), dtype=bool)
    rest = np.arange(len(others))
    for _ in range(_TRIES):
        others[rest] = drawn(rest.size, least)
        rest = rest[satisfied(others[rest], literals).any(axis=1)]
        if not rest.size:
            break
    else:
        raise ArgumentError(
            f"{rest.size} of {len(others)} samples satisfied a clause in each of {_TRIES} draws; lower the "
            "bounds of active, or give clauses more literals."
        )
    order = rng.permutation(samples)
    on, y = np.concatenate([positive, negative, others])[order], (order < len(positive)).astype(np.int64)
    X, bit, ranges = rng.random(on.shape, dtype=np.float32), on.view(np.uint8), np.array([false, true], float)
    X *= np.diff(ranges)[:, 0].astype(np.float32)[bit]
    X += ranges[:, 0].astype(np.float32)[bit]
    return DNF(X, y, np.repeat(np.arange(clauses), literals))


def satisfied(on: np.ndarray, literals: int) -> np.ndarray:
    """Return which clauses have all their literals on: (samples, variables) to (samples, clauses)."""
    return np.asarray(np.all(on.reshape(len(on), -1, literals), axis=2))


def _turn_on(
    counts: np.ndarray, variables: int, rng: np.random.Generator, first: np.ndarray | None = None
) -> np.ndarray:
    """Turn `counts` variables on in each row, those of `first`, (rows, few), before all others."""
    keys = rng.integers(2**31, 2**32, (len(counts), variables), dtype=np.uint32)
    if first is not None:
        np.put_along_axis(keys, first, np.take_along_axis(keys, first, 1) - np.uint32(2**31), 1)
    threshold = np.take_along_axis(np.sort(keys, axis=1), np.maximum(counts, 1)[:, None] - 1, 1)
    on = np.asarray((keys <= threshold) & (counts > 0)[:, None])
    tied = np.flatnonzero(on.sum(axis=1) != counts)  # two equal keys, in one of ten million rows
    if tied.size:
        on[tied] = _turn_on(counts[tied], variables, rng, None if first is None else first[tied])
    return on
