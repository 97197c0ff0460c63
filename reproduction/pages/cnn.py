"""Train a small CNN on Fashion-MNIST, dense and expanded; write docs/results/cnn.md and its data.

Usage: python reproduction/pages/cnn.py        (``make results`` does it; about half an hour on two cores)

Runs go to fpe-out/cnn and resume there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pages import commits
from torch import Tensor, nn

import fpe
from fpe._util.files import write_atomically, write_json
from fpe.compare.runner import one_thread, run_tasks
from fpe.compare.statistics import mean
from fpe.compare.store import provenance
from fpe.data import load
from fpe_reproduction.report.text import markdown_table

HERE = Path(__file__).parents[2] / "docs" / "results"
OUT = Path("fpe-out", "cnn")
SEEDS = (0, 1, 2)
CHANNELS = (2, 4, 8)  # of the first convolution; the second has twice as many, the classifier four times
EPOCHS, BATCH = 6, 100

ALL = ("conv1", "conv2", "hidden")
#: Name → arguments of `fpe.expand`; the dense network has none.
KINDS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "dense, optimizer anew": None,
    "default layers": {},
    "convolutions and classifier": {"layers": ALL},
    "all, taps shared out": {"layers": ALL, "convolutions": "taps"},
    "all, half of the neurons": {"layers": ALL, "target_fraction": 0.5},
}


class Network(nn.Module):
    """Two convolutions with BatchNorm, a hidden layer, a head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.BatchNorm2d(2 * channels)
        self.hidden, self.head = nn.Linear(2 * channels * 49, 4 * channels), nn.Linear(4 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 1, 28, 28) to (batch, 10)."""
        x = torch.max_pool2d(torch.relu(self.norm1(self.conv1(x))), 2)
        x = torch.max_pool2d(torch.relu(self.norm2(self.conv2(x))), 2)
        return self.head(torch.relu(self.hidden(x.flatten(1))))


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, X: Tensor, y: Tensor, seed: int, epochs: range
) -> None:
    """Train in place; the order of an epoch depends on the seed and the epoch alone."""
    model.train()
    for epoch in epochs:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (EPOCHS - epoch) / (EPOCHS / 4))
        order = torch.randperm(len(X), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for batch in order.split(BATCH):
            loss = nn.functional.cross_entropy(model(X[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, X: Tensor, y: Tensor) -> float:
    """Return the share of images put into their class."""
    model.eval()
    hits = [(model(a).argmax(1) == b).sum() for a, b in zip(X.split(500), y.split(500), strict=True)]
    return float(sum(hits)) / len(y)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """Return Adam; its rate is set epoch by epoch."""
    return torch.optim.Adam(model.parameters())


def run(channels: int, seed: int) -> dict[str, Any]:
    """Train one dense network, expand it halfway in each way, and train all of them to the end."""
    data = load("fashion-mnist")
    X, X_test = (torch.from_numpy(x).float().view(-1, 1, 28, 28) for x in (data.X_train, data.X_test))
    y, y_test = (torch.from_numpy(v).long() for v in (data.y_train, data.y_test))
    with one_thread():
        torch.manual_seed(seed)
        dense = Network(channels)
        optimizer, half = adam(dense), EPOCHS // 2
        train(dense, optimizer, X, y, seed, range(half))
        record: dict[str, Any] = {"channels": channels, "seed": seed, "half": accuracy(dense, X_test, y_test)}
        sample = X[:2]
        ways = {
            kind: fpe.expand(dense, 2, **how, example_inputs=sample, seed=seed)
            for kind, how in KINDS.items()
            if how is not None
        }
        ways["dense, optimizer anew"] = fpe.expand(dense, 1, example_inputs=sample)
        record["kinds"] = {}
        for kind in KINDS:
            model = dense if kind == "dense" else ways[kind]
            train(model, optimizer if kind == "dense" else adam(model), X, y, seed, range(half, EPOCHS))
            record["kinds"][kind] = {
                "test": accuracy(model, X_test, y_test),
                "training": accuracy(model, X[:10000], y[:10000]),
                "nonzero": fpe.count_nonzero(model),
            }
        return record


def main() -> None:
    """Run what is not done yet, and write the table."""
    tasks = {f"c{c}-s{seed}": {"channels": c, "seed": seed} for c in CHANNELS for seed in SEEDS}
    identity = f"{EPOCHS} epochs"
    records = run_tasks(run, tasks, OUT, identity, on_finished=lambda name, _: print(name, flush=True))
    rows = []
    for channels in CHANNELS:
        mine = [r for r in records.values() if r["channels"] == channels]
        for kind in KINDS:
            values = [100 * r["kinds"][kind]["test"] for r in mine]
            gains = [v - 100 * r["kinds"]["dense"]["test"] for r, v in zip(mine, values, strict=True)]
            counts = {r["kinds"][kind]["nonzero"] for r in mine}
            rows.append([
                f"{channels}, {2 * channels}, {4 * channels}", kind,
                f"{counts.pop():,}" if len(counts) == 1 else "differ",
                mean(values).text(digits=2, sign=False),
                "" if kind == "dense" else mean(gains).text(digits=2),
            ])  # fmt: skip
    columns = ["widths", "network", "non-zeros", "test % [95 %]", "more than dense [95 %]"]
    made = provenance()
    write_json(HERE / "cnn.json", {"runs": list(records.values()), "provenance": made})
    runs = commits(list(records.values()))
    page = PAGE.format(commits=runs, table="\n".join(markdown_table(columns, rows)), epochs=EPOCHS, **made)
    write_atomically(HERE / "cnn.md", lambda temporary: temporary.write_text(page, encoding="utf-8"))


PAGE = """# A CNN on Fashion-MNIST: convolutions and classifier expanded

Made by `python reproduction/pages/cnn.py`, with torch {torch}, Python {python}, on
{machine}. {commits}
Every run is in [cnn.json](cnn.json).

Two convolutions of 3 × 3 with BatchNorm, ReLU and pooling, a hidden layer and a head learn Fashion-MNIST for
{epochs} epochs of mini-batches of 100. Halfway the dense network is expanded by 2 (random split, magnitude);
both go on with the same mini-batches and learning rates. The expanded network starts with a new Adam, so a
dense network with a new one stands beside it. The first convolution reads one channel, so its children share
out taps. Widths are the channels of the two convolutions and the neurons of the hidden layer. Test accuracy
in per cent, mean over three seeds with Student's t interval; differences are paired.

{table}
"""


if __name__ == "__main__":
    main()
