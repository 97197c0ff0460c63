"""Whole networks wider, pruned to the count of a small one: a GPT-2 of characters, and deep MLPs.

The GPT-2 learns Python's own library, the MLPs CIFAR-100's embeddings. Each network has its own learning
rate, chosen on validation data; the test data are used once. About eight hours on two cores; runs are stored
in docs/evidence/runs, and found there again by the same code.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from budget import arrays
from common import OUT, RESULTS, run_all
from torch import Tensor, nn
from torch.nn import functional as F

import fpe
from fpe._util.files import read_json, write_json
from fpe.compare.runner import one_thread
from fpe.sklearn import FPEClassifier
from fpe.training.folds import hold_out
from fpe.training.loop import Cosine, accuracy, adam, train
from fpe_reproduction.text import CHARACTERS, library

STORED = RESULTS.parent / "evidence" / "runs"
SEEDS = range(5)
#: The small GPT-2; all have as many heads and blocks.
WIDTH, HEADS, BLOCKS, CONTEXT, BATCH, STEPS = 64, 4, 3, 64, 32, 1500
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
#: Dense networks, by their count as multiples of the small one's, and pruned ones, by their share of zeros.
GPTS: dict[str, float] = {
    **{f"dense-{size:g}": size for size in (1, 1.5, 2, 3)},
    **{f"zeros-{share:g}": share for share in (0.5, 0.75, 0.875)},
}
LENGTHS = (1, 4)
#: Deep MLPs: hidden layers and widths; wider ones are pruned to the count of the first.
LAYERS, WIDTHS = (5, 7, 9), (4, 8, 16, 32, 64)
MLPS = {
    **{f"dense-{size:g}": size for size in (1, 1.5, 2, 3)},
    **{f"wider-{size:g}": size for size in (2, 3, 4)},
    "residual": 1,
    "shallow": 1,
}
MLP_RATES, MLP_EPOCHS, MLP_BATCH = (3e-3, 1e-2, 3e-2), 20, 500


def gpt(width: int, seed: int) -> nn.Module:
    """Return an untrained GPT-2 whose MLPs are as wide as its residual sums."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(CHARACTERS), n_positions=CONTEXT, n_embd=width, n_layer=BLOCKS, n_head=HEADS,
        n_inner=width, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        use_cache=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def sizes(width: int) -> tuple[int, int]:
    """Return the count of a GPT-2's parameters, and of the weights of its blocks, which can be pruned."""
    weights = BLOCKS * 6 * width * width
    rest = (len(CHARACTERS) + CONTEXT + 2) * width + BLOCKS * (4 + 3 + 1 + 1 + 1) * width
    return weights + rest, weights


def width_of(network: str) -> int:
    """Return the width of a network: that of a count, or of a share of zeros at the small one's count."""
    kind, value = network.rsplit("-", 1)
    budget = sizes(WIDTH)[0]

    def miss(width: int) -> float:
        total, weights = sizes(width)
        if kind == "dense":
            return abs(total / budget - float(value))
        return abs((total - budget) / weights - float(value))

    return min(range(WIDTH, 8 * WIDTH, HEADS), key=miss)


def measure_gpt(network: str, lr: float, seed: int, length: int) -> dict[str, Any]:
    """Train a GPT-2 of characters; return its losses in nats per character, and what training took."""
    text, steps, width = library(), STEPS * length, width_of(network)
    learned = text["learn"]
    with one_thread():
        start = time.process_time()
        model = fpe.with_masks(gpt(width, seed), "transformer.h.*")
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, fused=True)
        pruner = None
        if network.startswith("zeros"):
            pruner = fpe.GradualPruner(model, optimizer, budget=sizes(WIDTH)[0], steps=steps)
        for step in range(steps):
            # Up over 100 steps, down over the last fifth.
            rate = lr * min(1.0, (step + 1) / 100, (steps - step) / (steps / 5))
            for group in optimizer.param_groups:
                group["lr"] = rate
            drawn = np.random.default_rng((seed, step)).integers(0, len(learned) - CONTEXT - 1, BATCH)
            windows = torch.stack([learned[i : i + CONTEXT + 1] for i in drawn]).long()
            loss = _loss(model, windows)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if pruner is not None:
                pruner.step()
        losses = {part: _mean_loss(model, text[part][:400_000]) for part in ("validation", "test")}
    nonzero, total = fpe.count_nonzero(model), sum(p.numel() for p in model.parameters())
    tokens = steps * BATCH * CONTEXT
    return {
        **losses,
        "width": width,
        "nonzero": nonzero,
        "zeros": (total - nonzero) / sizes(width)[1],
        "flops": 6.0 * total * tokens,  # as computed: masked weights, too
        "process_seconds": time.process_time() - start,
    }


def _loss(model: nn.Module, windows: Tensor) -> Tensor:
    return F.cross_entropy(model(windows[:, :-1]).logits.flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def _mean_loss(model: nn.Module, text: Tensor) -> float:
    """Return the mean loss in windows that do not overlap."""
    model.eval()
    count = (len(text) - 1) // CONTEXT
    x = text[: count * CONTEXT].view(count, CONTEXT).long()
    y = text[1 : count * CONTEXT + 1].view(count, CONTEXT).long()
    total = sum(
        F.cross_entropy(model(a).logits.flatten(0, 1), b.flatten(), reduction="sum").item()
        for a, b in zip(x.split(256), y.split(256), strict=True)
    )
    return total / y.numel()


class Residual(nn.Module):
    """A layer that adds to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.layer(self.norm(x)))


def deep(layers: int, width: int, residual: bool, inputs: int, classes: int, seed: int) -> nn.Module:
    """Return an untrained MLP with layer norms, as in the paper's appendix A.7, or with residual sums."""
    torch.manual_seed(seed)
    if residual:
        blocks = [Residual(width) for _ in range(layers - 1)]
        return nn.Sequential(
            nn.Linear(inputs, width), *blocks, nn.LayerNorm(width), nn.Linear(width, classes)
        )
    modules: list[nn.Module] = []
    for before in [inputs] + [width] * (layers - 1):
        modules += [nn.Linear(before, width), nn.LayerNorm(width), nn.ReLU()]
    return nn.Sequential(*modules, nn.Linear(width, classes))


def measure_mlp(layers: int, hidden: int, network: str, seed: int) -> dict[str, Any]:
    """Choose the rate of a deep MLP on a held-out fifth, train it on all, and return its test accuracy."""
    X, y, X_test, y_test = arrays("cifar100")
    X, X_test, classes = X * 10, X_test * 10, int(y.max()) + 1
    budget = fpe.count_nonzero(deep(layers, hidden, False, X.shape[1], classes, seed))
    with one_thread():
        if network == "shallow":
            made = FPEClassifier(budget=budget, epochs=MLP_EPOCHS, batch_size=MLP_BATCH, random_state=seed)
            made.fit(X.numpy(), y.numpy())
            score = float(made.score(X_test.numpy(), y_test.numpy()))
            return {"accuracy": score, "nonzero": made.n_nonzero_, "network": made.search_[0].candidate.name}
        rows, held = hold_out(y.numpy(), 0.2, seed)
        width = round(MLPS[network] * hidden)

        def trained(lr: float, X: Tensor, y: Tensor) -> nn.Module:
            model = deep(layers, width, network == "residual", X.shape[1], classes, seed)
            pruner = None
            if network.startswith("wider"):
                model = fpe.with_masks(model)
            optimizer = adam(model, lr)
            if network.startswith("wider"):
                steps = MLP_EPOCHS * math.ceil(len(X) / MLP_BATCH)
                pruner = fpe.GradualPruner(model, optimizer, budget=budget, steps=steps)
            generator = torch.Generator().manual_seed(seed)
            how: dict[str, Any] = {"rewirer": pruner, "decay": Cosine(MLP_EPOCHS, 0)}
            how |= {"optimizer": optimizer, "generator": generator}
            train(model, X, y, epochs=MLP_EPOCHS, batch_size=MLP_BATCH, **how)
            return model

        scores = {lr: accuracy(trained(lr, X[rows], y[rows]), X[held], y[held]) for lr in MLP_RATES}
        best = max(scores, key=lambda lr: scores[lr])
        model = trained(best, X, y)
        return {"accuracy": accuracy(model, X_test, y_test), "nonzero": fpe.count_nonzero(model), "lr": best}


def _kept(work: Any, tasks: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, dict[str, Any]]:
    """Run tasks that are stored neither in fpe-out nor in docs/evidence/runs; store all of them there."""
    file = STORED / f"{name}.json"
    for task, record in (read_json(file) or {}).items():
        if not (path := OUT / name / f"{task}.json").exists():
            write_json(path, record)
    try:
        found = run_all(work, tasks, name)
    finally:
        records = {path.stem: read_json(path) for path in sorted((OUT / name).glob("*.json"))}
        write_json(file, records)
    return {task: {**tasks[task], **record} for task, record in found.items()}


def run(page: str) -> None:
    tasks = {
        f"l{layers}-h{hidden}-{network}-{seed}": {
            "layers": layers, "hidden": hidden, "network": network, "seed": seed,
        }
        for seed in SEEDS
        for layers in LAYERS
        for hidden in WIDTHS
        for network in MLPS
    }  # fmt: skip
    _kept(measure_mlp, tasks, "whole-mlp")
    tuning = {
        f"{network}-{lr:g}-tuning": {"network": network, "lr": lr, "seed": 100, "length": 1}
        for network in GPTS
        for lr in RATES
    }
    tuned = _kept(measure_gpt, tuning, "whole-gpt").values()
    best = {
        network: min((r for r in tuned if r["network"] == network), key=lambda r: r["validation"])["lr"]
        for network in GPTS
    }
    tasks = {
        f"{network}-{length}-{seed}": {
            "network": network, "lr": best[network], "seed": seed, "length": length,
        }
        for length in LENGTHS
        for seed in SEEDS
        for network in GPTS
    }  # fmt: skip
    _kept(measure_gpt, tasks, "whole-gpt")


if __name__ == "__main__":
    run("whole")
