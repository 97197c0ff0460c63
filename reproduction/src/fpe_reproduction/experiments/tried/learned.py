"""Splits that are learnt by gradient descent, from the parent with copied outputs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpe.training.learned_split import learn_split, most_wanted
from fpe.training.loop import adam, train
from fpe_reproduction.experiments.tried.sight import Sight

#: Steps that are taken to learn a split, and samples of each.
STEPS, BATCH = 1000, 250


def train_steps(network: nn.Module, X: Tensor, y: Tensor, lr: float, seed: int) -> None:
    """Train a network in place for about as many steps as it takes to learn a split, whole epochs."""
    epochs = max(1, round(STEPS * BATCH / len(X)))
    generator = torch.Generator().manual_seed(seed)
    train(network, X, y, epochs=epochs, batch_size=BATCH, optimizer=adam(network, lr), generator=generator)


def learned(sight: Sight, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Learn who gets which weight by Gumbel-softmax, as `fpe.training.learn_split`."""
    how = {"steps": STEPS, "batch_size": BATCH, "seed": int(rng.integers(2**31))}
    return learn_split(sight.parent, sight.X, sight.y, factor, lr=sight.lr, **how).children


def scout(sight: Sight, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Let dense children run ahead for some steps; each input goes to the one that weighs it most.

    They start as a random split, with the inputs that they lack at zero but free.
    """
    first, last = sight.parent[0], sight.parent[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    neurons, inputs = first.weight.shape
    even = np.arange(inputs) % factor
    child = torch.from_numpy(np.stack([rng.permutation(even) for _ in range(neurons)]))
    mask = F.one_hot(child, factor).movedim(-1, 1).flatten(0, 1)
    rows = torch.arange(neurons).repeat_interleave(factor)
    network = nn.Sequential(
        nn.Linear(inputs, neurons * factor), nn.ReLU(), nn.Linear(neurons * factor, last.out_features)
    )
    state = [first.weight[rows] * mask, first.bias[rows], last.weight[:, rows], last.bias]
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), state, strict=True):
            parameter.copy_(value)
    train_steps(network, sight.X, sight.y, sight.lr, int(rng.integers(2**31)))
    weights = network[0].weight.detach().abs().double().numpy().reshape(neurons, factor, inputs)  # type: ignore[operator]
    return np.stack([most_wanted(w) for w in weights])
