"""Measure one case in this process: times taken in turns, peak memory, limits of the machine."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import logging
import math
import random
import time
import timeit
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity
from torch.utils import benchmark

from fpe.packing.fused import chain_of
from fpe.packing.layers import bytes_of
from fpe.rewiring.block_rewirer import BlockRewirer
from fpe.rewiring.schedule import RewiringSchedule
from fpe_reproduction.bench.cases import DENSE, MASKED, MOVING, PACKED, SPARSE, BenchConfig
from fpe_reproduction.bench.rows import Row
from fpe_reproduction.bench.subjects import Subjects, file_sizes, subjects

#: A sample is as many calls in a row as take this long, at least one.
SAMPLE_SECONDS = 0.005
MAX_CALLS = 500
#: A fast call is warmed up for so long.
WARM_SECONDS = 0.02
#: Pause before a sample, in which waiting threads of other libraries fall asleep.
REST_SECONDS = 0.003
#: What is recorded of a row.
RECORDED = ("name", "over", "stored", "useful")
#: Exchanges inputs after each step, the largest share that there is by default.
EACH_STEP = RewiringSchedule(every=1, until=1.0, decay="constant")


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    seconds: float,
    seed: int = 0,
    always: Container[str] = (DENSE, PACKED),
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Time calls in turns, one sample of each per round, in a new random order each time.

    What slows the machine slows all calls of a round alike, so ratios are taken within rounds. A call that
    would take more than `seconds` in all takes part in fewer rounds, evenly spread, but in three at least;
    those of `always` take part in all.

    Returns the seconds of one call, an array over the rounds with NaN where it took no part, and the calls in
    a sample.
    """
    repeats, turns = {}, {}
    for name, call in calls.items():
        once = _warm_up(call, seconds)
        repeats[name] = max(1, min(MAX_CALLS, math.ceil(SAMPLE_SECONDS / max(once, 1e-9))))
        most = min(rounds, seconds / (once * repeats[name] + REST_SECONDS))
        count = rounds if name in always else max(min(3, rounds), int(most))
        turns[name] = {i * rounds // count for i in range(count)}
    order, draw = list(calls), random.Random(seed)
    taken = {name: np.full(rounds, np.nan) for name in calls}
    for number in range(rounds):
        draw.shuffle(order)
        for name in order:
            if number in turns[name]:
                time.sleep(REST_SECONDS)
                taken[name][number] = _seconds(calls[name], repeats[name]) / repeats[name]
    return taken, repeats


def _warm_up(call: Callable[[], object], seconds: float) -> float:
    """Call untimed, and return about how long a call takes: the least, which is disturbed least."""
    first = _seconds(call)
    taken = [first if first > seconds else _seconds(call)]  # a second call may cost too much
    while first + sum(taken) < WARM_SECONDS and len(taken) < MAX_CALLS:
        taken.append(_seconds(call))
    return min(taken)


def _seconds(call: Callable[[], object], repeats: int = 1) -> float:
    """Return the seconds of some calls in a row: in a process that uses a GPU, by the GPU's own events."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return timeit.timeit(call, timer=benchmark.timer, number=repeats)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def median_of(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Return the median, its 95 % interval by order statistics, and the number of values that are not NaN.

    The interval needs no assumption on the noise; of fewer than six values it is their range.
    """
    from scipy.stats import binom

    ordered = np.sort(np.asarray(values, dtype=float))
    ordered = ordered[~np.isnan(ordered)]
    cut = max(int(binom.ppf(0.025, len(ordered), 0.5)), 1)
    low, high = float(ordered[cut - 1]), float(ordered[-cut])
    return {"median": float(np.median(ordered)), "low": low, "high": high, "samples": len(ordered)}


def add_times(
    records: list[dict[str, Any]], batch: int, taken: Mapping[str, np.ndarray], repeats: Mapping[str, int]
) -> None:
    """Add seconds, and ratios within rounds to the row that each is compared to."""
    for record in records:
        own = taken[record["name"]]
        times = {"calls": repeats[record["name"]], "seconds": median_of(own)}
        if record["over"] in taken:
            times["ratio"] = median_of(own / taken[record["over"]])
        record["batches"][str(batch)] = times


def read_rate(size: int, most: int) -> float:
    """Return the bytes a second that the CPU reads of a tensor of `size` bytes, of which `most` are tried.

    That of the faster of a sum and a product with a vector, the best of several; small tensors are cached.
    """
    width = 256
    source = torch.ones(max(1, min(size, most) // (4 * width)), width)
    vector = torch.ones(width)
    best = math.inf
    for call in (source.sum, lambda: torch.mv(source, vector)):
        once = _warm_up(call, WARM_SECONDS)
        repeats = max(1, min(MAX_CALLS, math.ceil(SAMPLE_SECONDS / 5 / max(once, 1e-9))))
        best = min(best, *(_seconds(call, repeats) / repeats for _ in range(5)))
    return source.nbytes / best


def bound(row: Mapping[str, Any], batch: int, machine: Mapping[str, float], most: int) -> dict[str, Any]:
    """Return the least seconds of a call that the machine allows on a CPU, and what limits it (roofline).

    Stored bytes are read once; two operations for each weight and sample take the time of a matrix product's.
    That each weight without structure also picks its own input is not in it.
    """
    found = {
        "arithmetic": 2 * row["useful"] * batch / machine["matrix"],
        "reading the weights": row["stored"] / read_rate(row["stored"], most),
    }
    by = max(found, key=lambda name: found[name])
    return {"seconds": found[by], "by": by}


def machine_limits(device: str, stream: int) -> dict[str, float]:
    """Measure the machine: bytes read and copied, and operations of a matrix product, in a second.

    A copy counts reading and writing. CUDA computes in float16, the CPU in float32, where PyTorch's product
    or that of blocks is faster.
    """
    kind = torch.float16 if device == "cuda" else torch.float32
    source = torch.zeros(stream // kind.itemsize, dtype=kind, device=device)
    target = torch.empty_like(source)
    side = min(4096, int((stream / 64) ** 0.5))
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))

    def best(call: Callable[[], object]) -> float:
        return min(_seconds(call) for _ in range(6))

    seconds = best(lambda: a @ b)
    if device == "cpu":
        layer = chain_of([nn.Linear(side, side)])
        with torch.inference_mode():
            seconds = min(seconds, best(lambda: layer(a)))
    return {
        "read": source.nbytes / best(source.sum),
        "copy": 2 * source.nbytes / best(lambda: target.copy_(source)),
        "matrix": 2 * side**3 / seconds,
    }


def training_step(
    network: nn.Module, x: Tensor, labels: Tensor, moving: bool = False
) -> tuple[Callable[[], None], Any]:
    """Return a step (forward, cross-entropy, backward, Adam, gradients to None), and its optimizer.

    If `moving`, blocks exchange inputs in each step.
    """
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-4)

    rewirer = BlockRewirer(network, optimizer, steps=10**9, schedule=EACH_STEP) if moving else None

    def step() -> None:
        F.cross_entropy(network(x), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if rewirer is not None:
            rewirer.step()
        optimizer.zero_grad()  # last, so that no gradients stay in memory while others are timed

    return step, optimizer


def spread_out(plain: np.ndarray, rewired: np.ndarray) -> np.ndarray:
    """Return the mean time of steps of which one is followed by a rewiring, as often as by default."""
    mean: np.ndarray = plain + (rewired - plain) / RewiringSchedule().every
    return mean


def peak_bytes(network: nn.Module, x: Tensor, labels: Tensor, moving: bool = False) -> int:
    """Return the most bytes of tensors that live at once in the second training step.

    Counts parameters, buffers, Adam's moments, the batch, and every block of PyTorch's allocator, temporary
    ones in its kernels included; not what libraries of matrix products keep for themselves.
    """
    step, optimizer = training_step(network, x, labels, moving)
    step()
    moments = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    lasting = bytes_of(network) + sum(t.nbytes for t in (*moments, x, labels))
    if x.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        others = torch.cuda.memory_allocated() - lasting
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - others
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    results: Any = profiled.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    live = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return lasting + max(0, int(live.max(initial=0)))


def run_case_quietly(case: dict[str, Any], config: BenchConfig) -> dict[str, Any]:
    """Measure a case in a process of its own, without what other libraries print there."""
    warnings.simplefilter("ignore")  # beta states of sparse tensors, exporters' remarks
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return run_case(case, config)


def run_case(case: dict[str, Any], config: BenchConfig) -> dict[str, Any]:
    """Measure a case, one of ``config.cases()``."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if case["kind"] == "files":
        return {**case, "forward": [], "training": [], "files": file_sizes(case, config)}
    limits = [machine_limits(case["device"], config.stream)]
    made = subjects(case, config)
    if case["device"] == "cuda":
        made.notes["GPU"] = torch.cuda.get_device_name()
    free_memory()
    forward = _forward(made, config)
    made.rows.clear()
    free_memory()
    training = _training(made, config)
    limits.append(machine_limits(case["device"], config.stream))
    machine = {key: max(limits[0][key], limits[1][key]) for key in limits[0]}
    if case["device"] == "cpu":
        for record in forward:
            for batch, times in record["batches"].items():
                times["bound"] = bound(record, int(batch), machine, config.stream)
    measured = {"machine": machine, "threads": torch.get_num_threads(), "notes": made.notes}
    return {**case, **measured, "forward": forward, "training": training}


@torch.inference_mode()
def _forward(made: Subjects, config: BenchConfig) -> list[dict[str, Any]]:
    """Time the rows whose outputs are right; note the others."""
    problems = {row.name: row.problem(made.probe) for row in made.rows}
    made.notes |= {name: why for name, why in problems.items() if why is not None}
    rows = [row for row in made.rows if problems[row.name] is None]
    records: list[dict[str, Any]] = [
        {**{key: getattr(r, key) for key in RECORDED}, "batches": {}} for r in rows
    ]
    how: dict[str, Any] = {"rounds": config.rounds, "seconds": config.seconds, "seed": config.seed}
    how["always"] = {PACKED, SPARSE, *(row.over for row in rows)}
    for batch in config.batches:
        x = _inputs(batch, made)
        add_times(records, batch, *interleave({r.name: partial(r.call, x) for r in rows}, **how))
    return records


def _training(made: Subjects, config: BenchConfig) -> list[dict[str, Any]]:
    """Time and weigh training steps of the networks that compute what the masked one does."""
    networks = dict(made.networks)
    if not networks:
        return []
    with torch.no_grad():
        expected = networks[MASKED](made.probe)
        for name in networks.keys() - {DENSE, MASKED}:
            problem = Row(name, networks[name], 0, 0, expected).problem(made.probe)
            if problem is not None:
                made.notes[f"training: {name}"] = problem
                del networks[name]
    records: list[dict[str, Any]] = [
        {"name": n, "over": DENSE, "stored": bytes_of(net), "batches": {}} for n, net in networks.items()
    ]
    rounds = max(3, math.ceil(config.rounds / 2))
    how: dict[str, Any] = {"rounds": rounds, "seconds": 2 * config.seconds, "seed": config.seed}
    for batch in config.training_batches:
        x = _inputs(batch, made)
        labels = torch.randint(expected.shape[1], (batch,), device=x.device)
        peaks = {}
        for name, network in networks.items():
            peaks[name] = peak_bytes(network, x, labels, name == MOVING)
            free_memory()  # else what is left of one step splits the memory of the next
        calls = {name: training_step(net, x, labels, name == MOVING)[0] for name, net in networks.items()}
        taken, repeats = interleave(calls, **how)
        rewiring = taken.get(MOVING)
        if rewiring is not None:
            taken[MOVING] = spread_out(taken[PACKED], rewiring)
        add_times(records, batch, taken, repeats)
        for record in records:
            times = record["batches"][str(batch)]
            times["peak"] = peaks[record["name"]]
            if record["name"] == MOVING and rewiring is not None:
                times["rewiring"] = median_of(rewiring)
        del calls
        free_memory()
    return records


def _inputs(batch: int, made: Subjects) -> Tensor:
    return torch.randn(batch, made.probe.shape[1]).to(made.probe)


def free_memory() -> None:
    """Return free memory to the system, which the allocator of a case keeps."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other systems than Linux with glibc
        ctypes.CDLL(None).malloc_trim(0)
