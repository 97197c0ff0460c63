"""Learn by gradient descent which input each child gets, before the expansion."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpe.errors import ArgumentError, ModelError, raise_problems
from fpe.expansion.splits import FixedSplit
from fpe.training.losses import ACTIVATIONS, loss_of

#: Learning rate and initial spread of the logits of the assignment, and final temperature of their softmax.
LOGIT_RATE, SPREAD, COOLEST = 5e-2, 0.1, 0.3


def learn_split(
    model: nn.Module,
    X: Tensor,
    y: Tensor,
    factor: int = 2,
    *,
    steps: int = 1000,
    batch_size: int = 250,
    lr: float = 1e-2,
    seed: int = 0,
) -> FixedSplit:
    """Learn a split for a network with one hidden layer; `model` is not changed.

    In a copy of the network every weight has a logit for each child; each step assigns it to one child by the
    Gumbel-softmax with straight-through gradients (Jang et al., 2017; Maddison et al., 2017), at a
    temperature that falls from 1 to 0.3. Adam trains logits and weights together. At last each neuron's
    inputs are assigned to the children by their logits, equally many to each.

    A step costs about as much as one of the expanded network, so this helps only if the training that follows
    is much longer (``fpe reproduce splits``).

    Parameters
    ----------
    model : nn.Module
        ``nn.Sequential`` of a linear layer, an activation and a linear layer, as `fpe.mlp` makes it, already
        trained for some epochs.
    X, y : Tensor
        Training data as for `fpe.training.train`.
    factor : int, default 2
        Children of each neuron, as for `fpe.expand`.
    steps, batch_size : int, default 1000 and 250
        Mini-batches, and the most samples in each.
    lr : float, default 1e-2
        Adam's rate for the weights.
    seed : int, default 0
        Seed of logits, mini-batches and draws.

    Returns
    -------
    FixedSplit
        For ``fpe.expand(model, factor, split=…)``.

    Raises
    ------
    ArgumentError, ModelError
        For bad numbers or data, training that diverges, or another model.

    Examples
    --------
    >>> import torch, fpe
    >>> model = fpe.mlp(8, 4, 2, seed=0)
    >>> X, y = torch.randn(100, 8), torch.arange(100) % 2
    >>> wide = fpe.expand(model, split=fpe.training.learn_split(model, X, y, steps=10))
    """
    first, activation, last = _layers(model)
    _check(X, y, first.in_features, factor, steps, batch_size, lr)
    generator = torch.Generator().manual_seed(seed)
    shape = first.out_features, factor, first.in_features
    logits = (SPREAD * torch.randn(shape, generator=generator)).to(first.weight).requires_grad_()
    weights = [first.weight, first.bias, last.weight.repeat_interleave(factor, dim=1), last.bias]
    w1, b1, w2, b2 = (None if w is None else w.detach().clone().requires_grad_() for w in weights)
    trained = [w for w in (w1, b1, w2, b2) if w is not None]
    groups = [{"params": trained, "lr": lr}, {"params": [logits], "lr": LOGIT_RATE}]
    optimizer = torch.optim.Adam(groups)
    for step, rows in enumerate(itertools.islice(_batches(len(X), batch_size, generator), steps)):
        temperature = max(COOLEST, 1 - step / steps)
        mask = _draw(logits, temperature, generator)
        weight = (w1[:, None] * mask).flatten(0, 1)
        bias = None if b1 is None else b1.repeat_interleave(factor)
        rows = rows.to(X.device)
        hidden = activation(F.linear(X[rows], weight, bias))
        optimizer.zero_grad()
        loss_of(F.linear(hidden, w2, b2), y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    moments = [moment for state in optimizer.state.values() for moment in state.values()]
    if not all(bool(tensor.isfinite().all()) for tensor in (logits, *trained, *moments)):
        raise ArgumentError(
            f"learn_split: weights or gradients became NaN or infinite in {steps} steps; use a smaller lr "
            f"than {lr}, or scale the inputs."
        )
    return FixedSplit(np.stack([best_assignment(score) for score in logits.detach().cpu().double().numpy()]))


def best_assignment(score: np.ndarray) -> np.ndarray:
    """Assign inputs to children, equally many to each, with the greatest sum of `score`, (factor, inputs)."""
    from scipy.optimize import linear_sum_assignment

    slots = np.arange(score.shape[1]) % len(score)
    inputs, slot = linear_sum_assignment(-score.T[:, slots])
    child = np.empty(score.shape[1], dtype=int)
    child[inputs] = slots[slot]
    return child


def _batches(samples: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the rows of mini-batches without end, each epoch in a new order."""
    while True:
        order = torch.randperm(samples, generator=generator)
        yield from (order[start : start + size] for start in range(0, samples, size))


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Draw a child for each weight, 1 or 0 forward, the softmax backward; the children are axis 1."""
    uniform = torch.rand(logits.shape, generator=generator).clamp_min(1e-20).to(logits)
    soft = ((logits - (-uniform.log()).clamp_min(1e-20).log()) / temperature).softmax(dim=1)
    hard = F.one_hot(soft.argmax(dim=1), soft.shape[1]).movedim(-1, 1).to(soft)
    return hard + soft - soft.detach()


def _layers(model: nn.Module) -> tuple[nn.Linear, nn.Module, nn.Linear]:
    if isinstance(model, nn.Sequential) and len(model) == 3:
        first, activation, last = model
        if type(first) is nn.Linear and type(last) is nn.Linear and type(activation) in ACTIVATIONS:
            return first, activation, last
    known = ", ".join(kind.__name__ for kind in ACTIVATIONS)
    raise ModelError(
        f"learn_split: the model is a {type(model).__name__}; give nn.Sequential(Linear, activation, Linear) "
        f"with an activation of {known}, or a split of your own as fpe.FixedSplit(children)."
    )


def _check(X: Tensor, y: Tensor, inputs: int, factor: int, steps: int, batch_size: int, lr: float) -> None:
    problems = []
    if X.dim() != 2 or X.shape[1] != inputs:
        problems.append(f"X has shape {tuple(X.shape)}; give (samples, {inputs}).")
    if len(X) != len(y) or len(X) == 0:
        problems.append(f"X has {len(X)} samples and y has {len(y)}; give equally many, and at least one.")
    if not 1 <= factor <= inputs:
        problems.append(f"factor is {factor}; give 1 to {inputs}, the inputs of the layer.")
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            problems.append(f"{name} is {value}; give at least 1.")
    if not 0 < lr < float("inf"):
        problems.append(f"lr is {lr}; give a number above 0.")
    raise_problems(problems, ArgumentError, "the arguments of learn_split")
