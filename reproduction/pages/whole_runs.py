"""The runs that whole.py stores, by the way of training, and how their numbers are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import whole
import whole_text
from common import same_code

from fpe._util.files import read_json
from fpe_reproduction.statistics import Interval, mean

#: Dense networks that large sparse ones equal, by their zeros (Frantar et al., 2024, for T5 and ViT alike).
KNOWN = {0.5: 1.6, 0.75: 2.16, 0.875: 2.63}
ZEROS = tuple(KNOWN)
#: Lengths of training, in those of the shortest.
LENGTHS = (1, 4)


def stored(name: str) -> list[dict[str, Any]]:
    """Return the stored runs of an experiment, each with its name."""
    records = read_json(whole.STORED / f"{name}.json")
    if records is None:
        raise FileNotFoundError(f"docs/evidence/runs/{name}.json is missing: run whole.py first")
    same_code(records.values(), name)
    return [{**record, "task": task} for task, record in records.items()]


class Runs:
    """The runs of networks, each at its best rate, as arrays over the seeds."""

    def __init__(self, *names: str) -> None:
        self.all = {record["task"]: record for name in names for record in stored(name)}

    def of(self, way: str) -> list[dict[str, Any]]:
        """Return the runs of a way of training, by seed, at its best rate."""
        by_rate: dict[str, dict[int, dict[str, Any]]] = {}
        for task, record in self.all.items():
            own, rate, seed = _split(task)
            if own == way:
                by_rate.setdefault(rate, {})[seed] = record
        tried = [runs for runs in by_rate.values() if all(seed in runs for seed in whole.TUNING)]
        found = min(tried, key=lambda runs: sum(runs[seed]["validation"] for seed in whole.TUNING))
        return [found[seed] for seed in sorted(found)]

    def complete(self, way: str) -> bool:
        """Say whether all seeds of a way of training are there, at one of its rates at least."""
        rates = [rate for own, rate, _ in map(_split, self.all) if own == way]
        return any(rates.count(rate) == len(whole.SEEDS) for rate in rates)

    def values(self, way: str, key: str = "test") -> np.ndarray:
        """Return a measure, by seed."""
        return np.array([record[key] for record in self.of(way)])

    def curve(self, ways: Sequence[str], key: str = "test") -> tuple[list[int], np.ndarray]:
        """Return the counts of networks, and a measure, (seeds, networks)."""
        counts = [self.of(way)[0]["nonzero"] for way in ways]
        return counts, np.stack([self.values(way, key) for way in ways], axis=1)


def _split(task: str) -> tuple[str, str, int]:
    """Split the name of a run into the way of training, its rate and its seed."""
    way, rate, seed = task.rsplit("-", 2)
    return way, rate, int(seed)


def rate_of(record: Mapping[str, Any]) -> str:
    """Return the rate of a run, as its name has it."""
    return _split(record["task"])[1]


def nats(found: Interval) -> str:
    """Write a loss, or a difference of losses, in nats."""
    return found.text(1, 3, sign=False)


def times(found: Interval, size: float) -> str:
    """Write a size as a multiple of another."""
    bounds = (found.value, found.low, found.high)
    return Interval(*(bound / size for bound in bounds)).text(1, 2, sign=False)


def difference(runs: Runs, way: str, other: str, key: str = "test") -> Interval:
    """Return by how much a way's measure is above another's, over the seeds."""
    return mean(runs.values(way, key) - runs.values(other, key))


def percent(values: Iterable[float]) -> str:
    return mean(values).text(100, 1, sign=False)


#: How the weights of wider networks are chosen: pruned while they are trained, at random from the start, or
#: some at random, of which others are pruned late.
KINDS = {"zeros": "pruned", "fixed": "random masks", "thinned": "random, then pruned"}


def text_runs() -> Runs:
    """Return the runs of GPT-2s of texts."""
    return Runs("whole-text", "whole-wider", "whole-fixed", "whole-thinned")


def dense_of(runs: Runs, length: int) -> list[str]:
    """Return the dense networks of characters, by size, all of whose runs of a length are stored."""
    dense = [own for own in whole_text.NETWORKS if own.startswith("dense")]
    return [*dense, *(own for own in whole.LARGER if runs.complete(f"{own}-characters-{length}"))]


def lengths_of(runs: Runs, kind: str) -> list[int]:
    """Return the lengths of training at which dense networks and a kind of wider ones have all seeds."""
    dense = [own for own in whole_text.NETWORKS if own.startswith("dense")]
    networks = [*dense, *(f"{kind}-{z:g}" for z in ZEROS)]
    return [n for n in LENGTHS if all(runs.complete(f"{own}-characters-{n}") for own in networks)]
