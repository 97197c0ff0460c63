"""What rewiring costs: training with masks that move every 50 steps, by turns with training without.

Usage: python reproduction/benchmarks/rewiring.py [--seconds N] [--policies rigl columns …] [--record]

``--record`` writes what is printed to docs/results/rewiring-cost.md, too.

On one thread, in seconds of the processor, so that what else the machine does plays no part. Both sides train
the same expanded networks, in turns of 100 steps (ensembles: 200), two rewirings to each 100. How much longer
the rewired side took is the median over n rounds of two turns, with its 95 % interval by order statistics;
there are as many rounds as fit into the seconds for each row, at least seven. Compiling is not counted.

- Ensembles: 50 networks as one program, mini-batches of 500 of 4,000 samples.
- A GPT-2 of three blocks, width 64, on 32 windows of 64 tokens, in an ordinary loop.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from torch import nn

import fpe
from fpe.compare.store import provenance
from fpe.training import ensemble
from fpe.training.loop import adam
from fpe_reproduction.bench.measure import median_of

NETWORKS, SAMPLES, BATCH, STEPS = 50, 4000, 500, 100
#: Moves the full share every time, and never ends.
SCHEDULE = fpe.RewiringSchedule(every=50, share=0.3, until=1.0, decay="constant")
FOREVER = 10**9
#: Rounds of a row.
FEWEST, MOST = 7, 60


def how(policy: str) -> dict[str, Any]:
    return {"split": "shared", "prune": "columns"} if policy == "columns" else {}


def of_ensemble(sizes: tuple[int, int, int], policy: str | None) -> Callable[[], float]:
    """Return what trains 50 networks for `STEPS` steps and returns the seconds."""
    inputs, hidden, outputs = sizes
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(SAMPLES, inputs, generator=generator)
    y = torch.randint(max(2, outputs), (SAMPLES,), generator=generator)
    networks = [
        fpe.expand(fpe.mlp(inputs, hidden, outputs, seed=seed), 2, seed=seed, **how(policy or "rigl"))
        for seed in range(NETWORKS)
    ]
    optimizers = [adam(network, 1e-3) for network in networks]
    rewirers = None
    if policy is not None:
        each = zip(networks, optimizers, strict=True)
        rewirers = [fpe.Rewirer(n, o, policy, steps=FOREVER, schedule=SCHEDULE) for n, o in each]
    options: dict[str, Any] = {"optimizers": optimizers, "rewirers": rewirers, "batch_size": BATCH}
    options["generators"] = [torch.Generator().manual_seed(seed) for seed in range(NETWORKS)]

    def run() -> float:
        start = time.process_time()
        ensemble.train(networks, X, y, epochs=200 // (SAMPLES // BATCH), compile=True, **options)
        return (time.process_time() - start) / 2

    return run


def of_gpt2(policy: str | None) -> Callable[[], float]:
    """Return what trains a GPT-2 for `STEPS` steps in an ordinary loop and returns the seconds."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=96, n_positions=64, n_embd=64, n_layer=3, n_head=4, n_inner=256, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, use_cache=False,
    )  # fmt: skip
    windows = torch.randint(96, (32, 64))
    sample = {"input_ids": windows[:1]}
    model = fpe.expand(GPT2LMHeadModel(config), 2, example_inputs=sample, **how(policy or "rigl"))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    rewirer = None
    if policy is not None:
        rewirer = fpe.Rewirer(model, optimizer, policy, steps=FOREVER, schedule=SCHEDULE)

    def run() -> float:
        start = time.process_time()
        for _ in range(STEPS):
            optimizer.zero_grad()
            logits = model(windows[:, :-1]).logits
            nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).backward()
            optimizer.step()
            if rewirer is not None:
                rewirer.step()
        return time.process_time() - start

    return run


def compare(make: Callable[[str | None], Callable[[], float]], policy: str, seconds: float) -> str:
    """Return a row: seconds without and with, and how much more that is."""
    without, rewired = make(None), make(policy)
    without(), rewired()  # compiles
    begin = time.perf_counter()
    without(), rewired()
    once = time.perf_counter() - begin
    pairs = []
    for turn in range(max(FEWEST, min(MOST, int(seconds / once)))):
        order = (without, rewired) if turn % 2 else (rewired, without)
        taken = {run: run() for run in order}
        pairs.append((taken[without], taken[rewired]))
    more = median_of([100 * (b / a - 1) for a, b in pairs])
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    interval = f"[{more['low']:+.1f}, {more['high']:+.1f}], n = {len(pairs)}"
    return f"{a:.2f} | {b:.2f} | {more['median']:+.1f} % {interval}"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=90, help="for each row")
    parser.add_argument("--policies", nargs="+", default=["rigl", "set", "momentum", "accumulated"])
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases: dict[str, Callable[[str | None], Callable[[], float]]] = {
        f"{NETWORKS} networks, {d} → {2 * h} → {k}": lambda policy, sizes=(d, h, k): of_ensemble(
            sizes, policy
        )
        for d, h, k in ((32, 8, 1), (128, 32, 1), (384, 16, 77))
    }
    cases["GPT-2"] = of_gpt2
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    say("| | policy | seconds for 100 steps, without | rewired | more |")
    say("| --- | --- | --- | --- | --- |")
    for policy in arguments.policies:
        for name, make in cases.items():
            say(f"| {name} | {policy} | {compare(make, policy, arguments.seconds)} |")
    made = provenance()
    say(f"\ntorch {made['torch']}, {made['machine']}, one thread, commit `{made['commit']}`.")
    if arguments.record:
        command = f"python reproduction/benchmarks/rewiring.py --seconds {arguments.seconds:g} --policies "
        about = (__doc__ or "").partition("too.\n\n")[2].strip()
        made_by = f"Made by `{command}{' '.join(arguments.policies)} --record`."
        head = f"# What rewiring costs\n\n{made_by}\n\n{about}\n"
        page = Path(__file__).parents[2] / "docs" / "results" / "rewiring-cost.md"
        page.write_text("\n".join([head, *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
