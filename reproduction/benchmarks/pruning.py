"""What gradual pruning costs: training a wide network with it, by turns with training it without.

Usage: python reproduction/benchmarks/pruning.py [--seconds 90]
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
from common import by_turns, made, options, seconds
from torch import nn

import fpe
from fpe.training.loop import Cosine, adam, train
from fpe.training.recipe import Recipe
from fpe.training.trials import Trial, train_trials
from fpe_reproduction.bench.measure import median_of

#: How a wide network is trained: as it is, with masked layers that are all open, pruned to a third.
WAYS = ("wide", "masked", "pruned")
#: 50 epochs of as many samples as Banking77 has.
SAMPLES, BATCH, STEPS = 10_000, 250, 2000


def data(inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(SAMPLES, inputs, generator=generator)
    return X, torch.randint(outputs, (SAMPLES,), generator=generator)


def of_mlp(inputs: int, hidden: int, outputs: int, way: str) -> float:
    """Train a network in a loop for `STEPS` steps; return the processor seconds."""
    X, y = data(inputs, outputs)
    model: nn.Module = fpe.mlp(inputs, hidden, outputs, seed=0)
    budget = fpe.count_nonzero(model) // 3
    model = model if way == "wide" else fpe.with_masks(model)
    optimizer = adam(model, 1e-2)
    pruner = fpe.GradualPruner(model, optimizer, budget=budget, steps=STEPS) if way == "pruned" else None
    epochs = STEPS * BATCH // SAMPLES
    how: dict[str, Any] = {"optimizer": optimizer, "rewirer": pruner, "decay": Cosine(epochs, 0)}
    how["generator"] = torch.Generator().manual_seed(0)
    run = partial(train, model, X, y, epochs=epochs, batch_size=BATCH, **how)
    return seconds(run, time.process_time)


def of_ensemble(inputs: int, hidden: int, outputs: int, way: str) -> float:
    """Train ten networks as one program for `STEPS` steps; return the processor seconds."""
    X, y = data(inputs, outputs)
    network = fpe.mlp(inputs, hidden, outputs, seed=0)
    count = fpe.count_nonzero(network)
    how: dict[str, Any] = {"gradual": True, "budget": count // 3} if way == "pruned" else {}
    epochs = STEPS * BATCH // SAMPLES
    recipe = Recipe(factor=1, warmup_epochs=0, epochs=epochs, lr=1e-2, decay=True, batch_size=BATCH, **how)

    def start(seed: int) -> Trial:
        model = fpe.mlp(inputs, hidden, outputs, seed=seed)
        return Trial.start(recipe, fpe.with_masks(model) if way == "masked" else model, seed)

    trials = [start(seed) for seed in range(10)]
    return seconds(lambda: train_trials(trials, X, y), time.process_time)


def of_gpt2(way: str) -> float:
    """Train a GPT-2 whose blocks are pruned for a tenth of `STEPS`; return the processor seconds."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=96, n_positions=64, n_embd=64, n_layer=3, n_head=4, n_inner=256, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, use_cache=False,
    )  # fmt: skip
    windows, steps = torch.randint(96, (32, 64)), STEPS // 10
    model: nn.Module = GPT2LMHeadModel(config)
    budget = fpe.count_nonzero(model) // 3
    model = model if way == "wide" else fpe.with_masks(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    pruner = fpe.GradualPruner(model, optimizer, budget=budget, steps=steps) if way == "pruned" else None

    def run() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            logits = model(windows[:, :-1]).logits
            nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).backward()
            optimizer.step()
            if pruner is not None:
                pruner.step()

    return seconds(run, time.process_time)


def row(run: Callable[[str], float], limit: float) -> str:
    """Return the seconds of each way, and how much more the last two take than the first."""
    runs = {way: partial(run, way) for way in WAYS}
    by_turns(runs, 1)  # warms up
    once = seconds(lambda: by_turns(runs, 1))
    taken = by_turns(runs, max(7, min(40, int(limit / once))))
    cells = [f"{np.median(taken[way]):.2f}" for way in WAYS]
    for way, other in (("masked", "wide"), ("pruned", "masked"), ("pruned", "wide")):
        more = median_of(100 * (taken[way] / taken[other] - 1))
        cells.append(f"{more['median']:+.1f} % [{more['low']:+.1f}, {more['high']:+.1f}]")
    return " | ".join([*cells, f"{len(taken['wide'])}"])


def main() -> None:
    given = options(__doc__, seconds=90.0)
    torch.set_num_threads(1)
    cases: dict[str, Callable[[str], float]] = {
        "MLP, 384 → 48 → 77": partial(of_mlp, 384, 48, 77),
        "MLP, 1,280 → 256 → 100": partial(of_mlp, 1280, 256, 100),
        "10 MLPs together, 384 → 48 → 77": partial(of_ensemble, 384, 48, 77),
        "GPT-2": of_gpt2,
    }
    print("| | wide, seconds | masked | pruned | masks | pruning | both | rounds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, run in cases.items():
        print(f"| {name} | {row(run, given.seconds)} |", flush=True)
    print(made())


if __name__ == "__main__":
    main()
