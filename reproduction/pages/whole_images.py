"""A CNN with residual sums and a vision transformer of Fashion-MNIST: dense, and wider and pruned.

Each network has its own learning rate, chosen by the loss on a held-out sixth of the training images; it
learns the other five sixths, and the test images are measured once.
"""

from __future__ import annotations

import functools
import math
import os
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fpe
from fpe.compare.runner import one_thread
from fpe.data import load
from fpe.masked import MaskedLayer
from fpe.training.folds import hold_out

#: Widths of the small networks, and by what other widths are divisible.
MODELS = {"cnn": (8, 1), "vit": (32, 4)}
NETWORKS = ("dense-1", "dense-1.5", "dense-2", "dense-3", "zeros-0.5", "zeros-0.75")
EPOCHS, BATCH = 5, 100


class Block(nn.Module):
    """Two convolutions, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


def cnn(channels: int) -> nn.Module:
    """Return a residual network: 14 × 14 places of some channels, then 7 × 7 of twice as many."""

    def strided(into: int, out: int) -> list[nn.Module]:
        conv = nn.Conv2d(into, out, 3, stride=2, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(out), nn.ReLU()]

    first, second = [Block(channels)], [Block(2 * channels), Block(2 * channels)]
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * channels, 10)]
    return nn.Sequential(*strided(1, channels), *first, *strided(channels, 2 * channels), *second, *end)


class ViT(nn.Module):
    """A vision transformer of transformers: 16 patches of 7 × 7, three blocks of four heads."""

    def __init__(self, width: int) -> None:
        from transformers import ViTConfig, ViTForImageClassification

        super().__init__()
        config = ViTConfig(
            image_size=28, patch_size=7, num_channels=1, hidden_size=width, num_hidden_layers=3,
            num_attention_heads=4, intermediate_size=2 * width, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, num_labels=10,
        )  # fmt: skip
        self.model = ViTForImageClassification(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits


@functools.cache
def sizes(model: str, width: int) -> tuple[int, int]:
    """Return the count of a network's parameters, and of the weights that can be pruned."""
    made = fpe.with_masks(build(model, width, 0))
    prunable = sum(m.weight.numel() for m in made.modules() if isinstance(m, MaskedLayer))
    return sum(p.numel() for p in made.parameters()), prunable


def build(model: str, width: int, seed: int) -> nn.Module:
    """Return an untrained network."""
    torch.manual_seed(seed)
    return cnn(width) if model == "cnn" else ViT(width)


def width_of(model: str, network: str) -> int:
    """Return the width of a network: that of a count, or of a share of zeros at the small one's count."""
    kind, value = network.rsplit("-", 1)
    small, divisor = MODELS[model]
    budget = sizes(model, small)[0]

    def miss(width: int) -> float:
        total, weights = sizes(model, width)
        if kind == "zeros":
            return abs((total - budget) / weights - float(value))
        return abs(total / budget - float(value))

    return min(range(small, 3 * small, divisor), key=miss)


@functools.cache
def images() -> list[Tensor]:
    """Return images and classes to learn, held-out ones, and those of the test."""
    data = load("fashion-mnist")
    X, X_test = (torch.from_numpy(x).float().view(-1, 1, 28, 28) for x in (data.X_train, data.X_test))
    X, X_test = (X - X.mean()) / X.std(), (X_test - X.mean()) / X.std()
    y, y_test = (torch.from_numpy(v).long() for v in (data.y_train, data.y_test))
    rows, held = hold_out(y.numpy(), 1 / 6, 0)
    return [X[rows], y[rows], X[held], y[held], X_test, y_test]


def measure(model: str, network: str, lr: float, seed: int) -> dict[str, Any]:
    """Train a network; return its losses and test accuracy."""
    X, y, X_held, y_held, X_test, y_test = images()
    budget = sizes(model, MODELS[model][0])[0]
    width = width_of(model, network)
    own = build(model, width, seed)
    steps = EPOCHS * math.ceil(len(X) / BATCH)
    with one_thread():
        pruner = None
        own = fpe.with_masks(own) if network.startswith("zeros") else own
        optimizer = torch.optim.AdamW(own.parameters(), lr=lr, weight_decay=0.01, fused=True)
        if network.startswith("zeros"):
            pruner = fpe.GradualPruner(own, optimizer, budget=budget, steps=steps)
        own.train()
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * min((step + 1) / 100, (1 + math.cos(math.pi * step / steps)) / 2)
            epoch, place = divmod(step * BATCH, len(X))
            if place == 0:
                order = np.random.default_rng((seed, epoch)).permutation(len(X))
            batch = torch.from_numpy(order[place : place + BATCH])
            optimizer.zero_grad()
            F.cross_entropy(own(X[batch]), y[batch]).backward()
            nn.utils.clip_grad_norm_(own.parameters(), 1.0)
            optimizer.step()
            if pruner is not None:
                pruner.step()
        validation, _ = score(own, X_held, y_held)
        loss, accuracy = score(own, X_test, y_test)
    return {
        "validation": validation,
        "test": loss,
        "accuracy": accuracy,
        "budget": budget,
        "width": width,
        "nonzero": fpe.count_nonzero(own),
        "total": sizes(model, width)[0],
    }


@torch.no_grad()
def score(model: nn.Module, X: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the mean loss and the accuracy."""
    model.eval()
    outputs = torch.cat([model(part) for part in X.split(1000)])
    return float(F.cross_entropy(outputs, y)), float((outputs.argmax(1) == y).float().mean())
