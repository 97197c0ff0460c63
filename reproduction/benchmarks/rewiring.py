"""What rewiring costs: training with dynamic masks, by turns with training without, on one thread.

Usage: python reproduction/benchmarks/rewiring.py [--seconds 90] [--policies rigl columns …] [--record]

``--record`` writes what is printed to docs/results/rewiring-cost.md, which says how it is measured.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from common import by_turns, made, options, record, seconds
from torch import nn

import fpe
from fpe.training import ensemble
from fpe.training.loop import adam
from fpe_reproduction.bench.measure import median_of

NETWORKS, SAMPLES, BATCH, STEPS = 50, 4000, 500, 100
#: Moves the full share every time, and never ends.
SCHEDULE = fpe.RewiringSchedule(every=50, share=0.3, until=1.0, decay="constant")


def rewirer(network: nn.Module, optimizer: torch.optim.Optimizer, policy: str) -> fpe.Rewirer:
    return fpe.Rewirer(network, optimizer, policy, steps=10**9, schedule=SCHEDULE)


def how(policy: str | None) -> dict[str, Any]:
    return {"split": "shared", "prune": "columns"} if policy == "columns" else {}


def of_ensemble(
    inputs: int, hidden: int, outputs: int, policy: str | None, rewired: bool
) -> Callable[[], float]:
    """Return a function that trains 50 networks for twice `STEPS` steps and returns half of the seconds."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(SAMPLES, inputs, generator=generator)
    y = torch.randint(max(2, outputs), (SAMPLES,), generator=generator)
    networks = [
        fpe.expand(fpe.mlp(inputs, hidden, outputs, seed=seed), 2, seed=seed, **how(policy))
        for seed in range(NETWORKS)
    ]
    own: dict[str, Any] = {"optimizers": [adam(network, 1e-3) for network in networks]}
    if rewired:
        own["rewirers"] = [rewirer(n, o, policy) for n, o in zip(networks, own["optimizers"], strict=True)]
    own["generators"] = [torch.Generator().manual_seed(seed) for seed in range(NETWORKS)]
    epochs = 2 * STEPS // (SAMPLES // BATCH)
    train = partial(ensemble.train, networks, X, y, epochs=epochs, batch_size=BATCH, compile=True, **own)
    return lambda: seconds(train, time.process_time) / 2


def of_gpt2(policy: str | None, rewired: bool) -> Callable[[], float]:
    """Return a function that trains a GPT-2 for `STEPS` steps in an ordinary loop and returns the seconds."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=96, n_positions=64, n_embd=64, n_layer=3, n_head=4, n_inner=256, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, use_cache=False,
    )  # fmt: skip
    windows = torch.randint(96, (32, 64))
    sample = {"input_ids": windows[:1]}
    model = fpe.expand(GPT2LMHeadModel(config), 2, example_inputs=sample, **how(policy))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    moves = rewirer(model, optimizer, policy) if rewired else None

    def train() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            logits = model(windows[:, :-1]).logits
            nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).backward()
            optimizer.step()
            if moves is not None:
                moves.step()

    return lambda: seconds(train, time.process_time)


def row(make: Callable[..., Callable[[], float]], policy: str, limit: float) -> str:
    """Return seconds without and with rewiring, and how much more that is."""
    runs = {"without": make(policy, False), "rewired": make(policy, True)}
    by_turns(runs, 1)  # compiles
    once = seconds(lambda: by_turns(runs, 1))
    taken = by_turns(runs, max(7, min(60, int(limit / once))))
    more = median_of(100 * (taken["rewired"] / taken["without"] - 1))
    interval = f"[{more['low']:+.1f}, {more['high']:+.1f}], n = {more['samples']}"
    without, rewired = (np.median(values) for values in taken.values())
    return f"{without:.2f} | {rewired:.2f} | {more['median']:+.1f} % {interval}"


def main() -> None:
    given = options(__doc__, seconds=90.0, policies=["rigl", "set", "momentum", "accumulated"])
    torch.set_num_threads(1)
    cases: dict[str, Callable[..., Callable[[], float]]] = {
        f"{NETWORKS} networks, {d} → {2 * h} → {k}": partial(of_ensemble, d, h, k)
        for d, h, k in ((32, 8, 1), (128, 32, 1), (384, 16, 77))
    }
    cases["GPT-2"] = of_gpt2
    policies = " ".join(given.policies)
    lines = [f"Made by `python reproduction/benchmarks/rewiring.py --seconds {given.seconds:g} --policies "
             f"{policies} --record`.", "", "| | policy | seconds for 100 steps, without | rewired | more |",
             "| --- | --- | --- | --- | --- |"]  # fmt: skip
    for policy in given.policies:
        for name, make in cases.items():
            lines.append(f"| {name} | {policy} | {row(make, policy, given.seconds)} |")
            print(lines[-1], flush=True)
    if given.record:
        record("rewiring-cost", "\n".join([*lines, "", made()]))


if __name__ == "__main__":
    main()
