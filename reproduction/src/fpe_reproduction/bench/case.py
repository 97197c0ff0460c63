"""One case, measured in this process: its rows forward, its networks trained."""

from __future__ import annotations

import ctypes
import gc
import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from fpe_reproduction.bench import rows as names
from fpe_reproduction.bench.config import BenchConfig
from fpe_reproduction.bench.machine import machine_limits, middle
from fpe_reproduction.bench.models import subjects_of
from fpe_reproduction.bench.rows import Row, Subjects
from fpe_reproduction.bench.timing import Samples, interleave, summed_up
from fpe_reproduction.bench.training import bytes_of, peak_bytes, training_step

#: Rows that take part in every round, for they are what all others are compared with.
ALWAYS = (names.DENSE, names.PACKED)


def steps_of(config: BenchConfig) -> int:
    """Return how often `run_case` calls `advance`."""
    return 1 + len(config.batches) + len(config.training_batches)


def run_case(case: dict[str, Any], config: BenchConfig, advance: Callable[[str], object]) -> dict[str, Any]:
    """Measure a case.

    Parameters
    ----------
    case : dict
        One of ``config.cases()``.
    config : BenchConfig
        How long, and at which batch sizes.
    advance : callable
        Gets a short text after each step.

    Returns
    -------
    dict
        The case, with ``machine`` (its limits), ``forward`` and ``training`` (rows), ``notes``.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    before = machine_limits(case["device"], config.stream)
    made = subjects_of(case, config)
    rows = _checked(made)
    give_back_memory()
    what = f"{case['name']} α={case['factor']}"
    advance(f"{what}: made")
    forward: dict[str, dict[str, Any]] = {
        row.name: {"name": row.name, "stored": row.stored, "useful": row.useful, "batches": {}}
        for row in rows
    }
    for batch in config.batches:
        for name, times in _forward(rows, batch, made, config).items():
            forward[name]["batches"][str(batch)] = times
        advance(f"{what}: batch {batch}")
    del rows
    made.rows.clear()
    give_back_memory()
    training = _training(made, config, advance, what)
    machine = middle([before, machine_limits(case["device"], config.stream)])
    for row in forward.values():
        _add_shares(row, machine)
    return {
        **case,
        "machine": machine,
        "threads": torch.get_num_threads(),
        "notes": made.notes,
        "forward": list(forward.values()),
        "training": training,
    }


def give_back_memory() -> None:
    """Hand what is free back to the system, which the allocator of a case never does by itself."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)


def _checked(made: Subjects) -> list[Row]:
    """Return the rows that compute what they should; note the others."""
    right = []
    with torch.inference_mode():
        for row in made.rows:
            problem = row.problem(made.probe)
            if problem is None:
                right.append(row)
            else:
                made.notes[row.name] = problem
    return right


def _forward(rows: list[Row], batch: int, made: Subjects, config: BenchConfig) -> dict[str, dict[str, Any]]:
    x = _inputs(batch, made)
    with torch.inference_mode():
        calls: dict[str, Callable[[], object]] = {row.name: partial(row.call, x) for row in rows}
        always = [row.name for row in rows if not row.slow]
        samples = interleave(calls, config.rounds, config.seconds, always, x.device.type, config.seed)
    return _summaries(samples)


def _inputs(batch: int, made: Subjects) -> torch.Tensor:
    return torch.randn(batch, made.probe.shape[1]).to(made.probe)


def _summaries(samples: dict[str, Samples]) -> dict[str, dict[str, Any]]:
    """Sum up seconds, and how many times as long it takes as the dense parent and the packed layer."""
    summaries = {}
    for name, own in samples.items():
        summaries[name] = {
            "calls": own.calls,
            "seconds": summed_up(list(own.seconds.values())),
            "ratio": summed_up(own.over(samples[names.DENSE])),
        }
        if names.PACKED in samples:
            summaries[name]["to_packed"] = summed_up(own.over(samples[names.PACKED]))
    return summaries


def _add_shares(row: dict[str, Any], machine: dict[str, float]) -> None:
    """Add the share of the machine's limits: of bandwidth by stored bytes, of rate by useful work."""
    for batch, times in row["batches"].items():
        seconds = times["seconds"]["median"]
        times["bandwidth"] = row["stored"] / seconds / machine["read"]
        times["rate"] = 2 * row["useful"] * int(batch) / seconds / machine["matrix"]


def _training(
    made: Subjects, config: BenchConfig, advance: Callable[[str], object], what: str
) -> list[dict[str, Any]]:
    """Measure bytes and steps of the networks that still compute the same."""
    networks = _trainable(made)
    rows: dict[str, dict[str, Any]] = {
        name: {"name": name, "stored": bytes_of(network), "batches": {}} for name, network in networks.items()
    }
    for batch in config.training_batches:
        x = _inputs(batch, made)
        with torch.no_grad():
            outputs = next(iter(networks.values()))(x).shape[1]
        labels = torch.randint(outputs, (batch,), device=x.device)
        for name, network in networks.items():
            rows[name]["batches"][str(batch)] = {"peak": peak_bytes(network, x, labels)}
            give_back_memory()  # else what one step leaves lies between what the next one takes
        steps: dict[str, Callable[[], object]] = {
            n: training_step(net, x, labels)[0] for n, net in networks.items()
        }
        rounds, seconds = max(3, math.ceil(config.rounds / 2)), 2 * config.seconds
        times = _summaries(interleave(steps, rounds, seconds, ALWAYS, x.device.type, config.seed))
        for name in networks:
            rows[name]["batches"][str(batch)] |= times[name]
        del steps
        give_back_memory()
        advance(f"{what}: training, batch {batch}")
    return list(rows.values())


@torch.no_grad()
def _trainable(made: Subjects) -> dict[str, nn.Module]:
    """Return the dense network, and those that compute what the masked one does; note the others."""
    networks = {}
    expected = made.networks[names.MASKED](made.probe)
    for name, network in made.networks.items():
        own = Row(name, network, 0, 0, None if name in (names.DENSE, names.MASKED) else expected)
        problem = own.problem(made.probe)
        if problem is None:
            networks[name] = network
        else:
            made.notes[f"training: {name}"] = problem
    return networks
