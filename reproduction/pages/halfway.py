"""Train a dense network halfway, expand it in several ways, and train all to the end: a GPT-2 and a CNN."""

from __future__ import annotations

import math
import os
from typing import Any, ClassVar

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from common import made_by, run_all, store, stored, table, trained_at
from torch import Tensor, nn
from torch.nn import functional as F

import fpe
from fpe.compare.runner import one_thread
from fpe.compare.store import provenance
from fpe.data import load
from fpe_reproduction.statistics import mean

NEW_OPTIMIZER = "dense, new optimizer"
ALL = ("conv1", "conv2", "hidden")


class CharLM:
    """A GPT-2 of three blocks learns the characters of Python's own help, `pydoc_data.topics`."""

    size, sizes, steps = "neurons", (32, 64, 256), 1500  # neurons of each MLP; GPT-2 has four times its width
    ways: ClassVar[dict[str, dict[str, Any]]] = {
        "random, α = 2": {"factor": 2},
        "random, α = 4": {"factor": 4},
        "shared, α = 2": {"factor": 2, "split": "shared"},
        "shared, child pruning, α = 2": {"factor": 2, "split": "shared", "prune": "children"},
        "shared, child pruning, α = 4": {"factor": 4, "split": "shared", "prune": "children"},
        "random, α = 2, budget of the network": {"factor": 2, "budget": "network"},
    }
    optimizer = torch.optim.AdamW

    def __init__(self) -> None:
        from pydoc_data import topics

        joined = "\n".join(topics.topics[name] for name in sorted(topics.topics))
        characters = sorted(set(joined))
        numbers = torch.tensor([characters.index(c) for c in joined])
        cut = len(numbers) * 9 // 10
        self.learned, self.held_out, self.characters = numbers[:cut], numbers[cut:], len(characters)
        self.sample = {"input_ids": self.held_out[None, :64]}

    def network(self, neurons: int) -> nn.Module:
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=self.characters, n_positions=64, n_embd=64, n_layer=3, n_head=4, n_inner=neurons,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, use_cache=False,
        )  # fmt: skip
        return GPT2LMHeadModel(config)

    def train(self, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, steps: range) -> None:
        """Train; the batch of a step depends on the seed and the step alone."""
        model.train()
        for step in steps:
            # Up over 100 steps, down over the last fifth.
            rate = 2e-3 * min(1.0, (step + 1) / 100, (self.steps - step) / (self.steps / 5))
            drawn = np.random.default_rng((seed, step)).integers(0, len(self.learned) - 65, 32)
            windows = torch.stack([self.learned[i : i + 65] for i in drawn])
            logits = model(windows[:, :-1]).logits
            loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
            descend(model, optimizer, loss, rate, clip=1.0)

    def loss(self, model: nn.Module, data: Tensor) -> float:
        """Return the mean loss per character, in nats, in windows that do not overlap."""
        count = (len(data) - 1) // 64
        x, y = data[: count * 64].view(count, 64), data[1 : count * 64 + 1].view(count, 64)
        losses = [
            F.cross_entropy(model(a).logits.flatten(0, 1), b.flatten(), reduction="sum").item()
            for a, b in zip(x.split(64), y.split(64), strict=True)
        ]
        return sum(losses) / y.numel()

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float]:
        model.eval()
        learned = self.learned[: len(self.held_out)]
        return {"validation": self.loss(model, self.held_out), "training": self.loss(model, learned)}


class ConvNet(nn.Module):
    """Two convolutions with BatchNorm, a hidden layer, a head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.BatchNorm2d(2 * channels)
        self.hidden, self.head = nn.Linear(2 * channels * 49, 4 * channels), nn.Linear(4 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.norm1(self.conv1(x))), 2)
        x = torch.max_pool2d(torch.relu(self.norm2(self.conv2(x))), 2)
        return self.head(torch.relu(self.hidden(x.flatten(1))))


class CNN:
    """A small CNN learns Fashion-MNIST."""

    size, sizes, steps = "channels", (2, 4, 8), 6  # channels of the first convolution; epochs
    ways: ClassVar[dict[str, dict[str, Any]]] = {
        "default layers": {"factor": 2},
        "convolutions and classifier": {"factor": 2, "layers": ALL},
        "all, taps shared out": {"factor": 2, "layers": ALL, "convolutions": "taps"},
        "all, half of the neurons": {"factor": 2, "layers": ALL, "target_fraction": 0.5},
    }
    network, optimizer = ConvNet, torch.optim.Adam

    def __init__(self) -> None:
        data = load("fashion-mnist")
        X, X_test = (torch.from_numpy(x).float().view(-1, 1, 28, 28) for x in (data.X_train, data.X_test))
        y, y_test = (torch.from_numpy(v).long() for v in (data.y_train, data.y_test))
        self.learned, self.held_out, self.sample = (X, y), (X_test, y_test), X[:2]

    def train(self, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, epochs: range) -> None:
        """Train; the order of an epoch depends on the seed and the epoch alone."""
        X, y = self.learned
        model.train()
        for epoch in epochs:
            rate = 2e-3 * min(1.0, (self.steps - epoch) / (self.steps / 4))
            order = torch.randperm(len(X), generator=torch.Generator().manual_seed(1000 * seed + epoch))
            for batch in order.split(100):
                descend(model, optimizer, F.cross_entropy(model(X[batch]), y[batch]), rate)

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, float]:
        model.eval()
        first, shares = [part[:10000] for part in self.learned], {}
        for name, (X, y) in {"test": self.held_out, "training": first}.items():
            hits = [(model(a).argmax(1) == b).sum() for a, b in zip(X.split(500), y.split(500), strict=True)]
            shares[name] = float(sum(hits)) / len(y)
        return shares


EXPERIMENTS = {"charlm": CharLM, "cnn": CNN}


def descend(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rate: float, clip: float = math.inf
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


def compare(page: str, size: int, seed: int) -> dict[str, Any]:
    """Train one dense network, expand it halfway in each way, and train all of them to the end."""
    task: Any = EXPERIMENTS[page]()
    with one_thread():
        torch.manual_seed(seed)
        dense = task.network(size)
        optimizer, half = task.optimizer(dense.parameters()), task.steps // 2
        task.train(dense, optimizer, seed, range(half))
        half_way = next(iter(task.measure(dense).values()))
        record: dict[str, Any] = {task.size: size, "seed": seed, "half": half_way, "kinds": {}}
        models = {"dense": dense, NEW_OPTIMIZER: fpe.expand(dense, 1, example_inputs=task.sample)}
        for name, way in task.ways.items():
            models[name] = fpe.expand(dense, **way, example_inputs=task.sample, seed=seed)
        for name, model in models.items():
            own = optimizer if name == "dense" else task.optimizer(model.parameters())
            task.train(model, own, seed, range(half, task.steps))
            record["kinds"][name] = {**task.measure(model), "nonzero": fpe.count_nonzero(model)}
        return record


def run(page: str) -> None:
    task = EXPERIMENTS[page]
    runs = [{"page": page, "size": size, "seed": seed} for size in task.sizes for seed in range(3)]
    tasks = {f"{task.size[0]}{own['size']}-s{own['seed']}": own for own in runs}
    records = run_all(compare, tasks, page)
    store(page, {"runs": list(records.values()), "provenance": provenance()})


def parts(page: str) -> dict[str, dict[str, str]]:
    task, result, rows = EXPERIMENTS[page], stored(page), []
    measure, sign, digits = ("validation", -1, 3) if page == "charlm" else ("test", 100, 2)
    for size in task.sizes:
        runs = [r["kinds"] for r in result["runs"] if r[task.size] == size]
        widths = f"{size}" if page == "charlm" else f"{size}, {2 * size}, {4 * size}"
        for kind in runs[0]:
            values = [abs(sign) * r[kind][measure] for r in runs]
            gains = [sign * (r[kind][measure] - r["dense"][measure]) for r in runs]
            (count,) = {r[kind]["nonzero"] for r in runs}
            gain = "" if kind == "dense" else mean(gains).text(digits=digits)
            rows.append([widths, kind, f"{count:,}", mean(values).text(digits=digits, sign=False), gain])
    heads = ("neurons", "validation loss", "less") if page == "charlm" else ("widths", "test %", "more")
    columns = [heads[0], "network", "non-zeros", f"{heads[1]} [95 %]", f"{heads[2]} than dense [95 %]"]
    made = f"{made_by(result, 'torch', 'python')}. {trained_at(result['runs'])}"
    return {page: {"made": made, "table": table(columns, rows)}}
