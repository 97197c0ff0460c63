"""Train small GPT-2s on characters, dense and expanded; write docs/results/charlm.md and its data.

Usage: python reproduction/pages/charlm.py        (``make results`` does it; about an hour on two cores)

The text is Python's own help, ``pydoc_data.topics``. Runs go to fpe-out/charlm and resume there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from pages import commits
from torch import nn

import fpe
from fpe._util.files import write_atomically, write_json
from fpe.compare.runner import one_thread, run_tasks
from fpe.compare.statistics import mean
from fpe.compare.store import provenance
from fpe_reproduction.report.text import markdown_table

HERE = Path(__file__).parents[2] / "docs" / "results"
OUT = Path("fpe-out", "charlm")
SEEDS = (0, 1, 2)
WIDTHS = (32, 64, 256)  # neurons of each MLP; GPT-2 has four times the width of 64
STEPS, BATCH, CONTEXT = 1500, 32, 64

#: Name → arguments of `fpe.expand`; the dense network has none.
KINDS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "dense, optimizer anew": None,
    "random, α = 2": {"factor": 2},
    "random, α = 4": {"factor": 4},
    "shared, α = 2": {"factor": 2, "split": "shared"},
    "shared, whole children, α = 2": {"factor": 2, "split": "shared", "prune": "children"},
    "shared, whole children, α = 4": {"factor": 4, "split": "shared", "prune": "children"},
    "random, α = 2, network pays": {"factor": 2, "budget": "network"},
}


def text() -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return the text as numbers, the last tenth apart, and how many characters there are."""
    from pydoc_data import topics

    joined = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    characters = sorted(set(joined))
    place = {c: i for i, c in enumerate(characters)}
    numbers = torch.tensor([place[c] for c in joined])
    cut = len(numbers) * 9 // 10
    return numbers[:cut], numbers[cut:], len(characters)


def network(neurons: int, characters: int, seed: int) -> nn.Module:
    """Return a GPT-2 of three blocks, width 64 and four heads."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=characters, n_positions=CONTEXT, n_embd=64, n_layer=3, n_head=4, n_inner=neurons,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, use_cache=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def rate(step: int) -> float:
    """Return the share of the full learning rate: up over 100 steps, down over the last fifth."""
    return min(1.0, (step + 1) / 100, (STEPS - step) / (STEPS / 5))


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: torch.Tensor, seed: int, steps: range
) -> None:
    """Train in place; the batch of a step depends on the seed and the step alone."""
    model.train()
    for step in steps:
        drawn = np.random.default_rng((seed, step)).integers(0, len(data) - CONTEXT - 1, BATCH)
        windows = torch.stack([data[i : i + CONTEXT + 1] for i in drawn])
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * rate(step)
        logits = model(windows[:, :-1]).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def loss_on(model: nn.Module, data: torch.Tensor) -> float:
    """Return the mean loss per character, in nats, over the whole text in windows that do not overlap."""
    model.eval()
    count = (len(data) - 1) // CONTEXT
    x = data[: count * CONTEXT].view(count, CONTEXT)
    y = data[1 : count * CONTEXT + 1].view(count, CONTEXT)
    losses = [
        nn.functional.cross_entropy(model(a).logits.flatten(0, 1), b.flatten(), reduction="sum").item()
        for a, b in zip(x.split(64), y.split(64), strict=True)
    ]
    return sum(losses) / y.numel()


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW; its rate is set step by step."""
    return torch.optim.AdamW(model.parameters(), weight_decay=0.01)


def run(neurons: int, seed: int) -> dict[str, Any]:
    """Train one dense network, expand it halfway in each way, and train all of them to the end."""
    with one_thread():
        learn, held_out, characters = text()
        dense = network(neurons, characters, seed)
        optimizer = adam(dense)
        half = STEPS // 2
        train(dense, optimizer, learn, seed, range(half))
        record: dict[str, Any] = {
            "neurons": neurons,
            "seed": seed,
            "half": loss_on(dense, held_out),
            "kinds": {},
        }
        sample = {"input_ids": held_out[None, :CONTEXT]}
        ways = {
            k: fpe.expand(dense, **how, example_inputs=sample, seed=seed) for k, how in KINDS.items() if how
        }
        ways["dense, optimizer anew"] = fpe.expand(dense, 1, example_inputs=sample)
        for kind in KINDS:
            if kind == "dense":
                model, steps = dense, optimizer
            else:
                model = ways[kind]
                steps = adam(model)
            train(model, steps, learn, seed, range(half, STEPS))
            record["kinds"][kind] = {
                "validation": loss_on(model, held_out),
                "training": loss_on(model, learn[: len(held_out)]),
                "nonzero": fpe.count_nonzero(model),
            }
        return record


def main() -> None:
    """Run what is not done yet, and write the table."""
    tasks = {f"n{n}-s{seed}": {"neurons": n, "seed": seed} for n in WIDTHS for seed in SEEDS}
    records = run_tasks(
        run, tasks, OUT, f"{STEPS} steps", on_finished=lambda name, _: print(name, flush=True)
    )
    rows = []
    for neurons in WIDTHS:
        mine = [r for r in records.values() if r["neurons"] == neurons]
        for kind in KINDS:
            losses = [r["kinds"][kind]["validation"] for r in mine]
            gains = [r["kinds"]["dense"]["validation"] - loss for r, loss in zip(mine, losses, strict=True)]
            counts = {r["kinds"][kind]["nonzero"] for r in mine}
            rows.append([
                f"{neurons}", kind, f"{counts.pop():,}" if len(counts) == 1 else "differ",
                mean(losses).text(digits=3, sign=False),
                "" if kind == "dense" else mean(gains).text(digits=3),
            ])  # fmt: skip
    columns = ["neurons", "network", "non-zeros", "validation loss [95 %]", "less than dense [95 %]"]
    made = provenance()
    write_json(HERE / "charlm.json", {"runs": list(records.values()), "provenance": made})
    runs = commits(list(records.values()))
    page = PAGE.format(commits=runs, table="\n".join(markdown_table(columns, rows)), steps=STEPS, **made)
    write_atomically(HERE / "charlm.md", lambda temporary: temporary.write_text(page, encoding="utf-8"))


PAGE = """# A character model: GPT-2's MLPs expanded

Made by `python reproduction/pages/charlm.py`, with torch {torch}, Python {python}, on
{machine}. {commits}
Every run is in [charlm.json](charlm.json).

A GPT-2 of three blocks, width 64 and four heads learns the characters of Python's own help
(`pydoc_data.topics`; the last tenth is held out) for {steps:,} steps of 32 windows of 64 characters. Halfway
all MLPs of the dense network are expanded; both go on with the same mini-batches and learning rates. The
expanded network starts with a new AdamW, so a dense network with a new one stands beside it. Where whole
children pay (`prune="children"`), the first layer of each MLP packs into dense blocks and the second stays
dense, at the dense network's bytes. Loss in nats per character, mean over three seeds with Student's t
interval; differences are paired. Runs of earlier versions were kept where the dense network's losses were
the same to the last digit.

{table}
"""


if __name__ == "__main__":
    main()
