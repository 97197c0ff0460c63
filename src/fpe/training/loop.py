"""One plain training loop, for a dense network and for an expanded one.

The paper's recipe (A.3.1) is three calls: `train` the dense network for the warm-up, `fpe.expand` it, `train`
the wide one. The dense baseline is trained for as long in total.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from fpe.errors import ArgumentError
from fpe.masked import mask_names
from fpe.rewiring.pruner import GradualPruner
from fpe.rewiring.rewirer import Rewirer
from fpe.training.losses import CLASSES, Objective, loss_of

#: One epoch: ``{"epoch": …, "loss": …}`` and, with validation data, ``"validation_loss"``.
Record = dict[str, Any]
#: Advice on training that diverges.
DIVERGED = "use a smaller learning rate, or scale the inputs."


def adam(model: nn.Module, lr: float = 1e-3, l2: float = 0.0) -> Adam:
    """Return the paper's optimizer (A.3.1): Adam with the penalty ``l2 / 2 · Σ w²`` over all parameters."""
    fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    return Adam(model.parameters(), lr=lr, weight_decay=l2, fused=fused)


def default_batch_size(samples: int) -> int:
    """Return a thirtieth of the samples, from 64 to the paper's 500 (A.3.1)."""
    return min(500, max(64, samples // 30))


def as_tensor(array: np.ndarray) -> Tensor:
    """Return an array as a tensor; a copy if it is read-only or has negative strides."""
    shared = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if shared else array.copy())


@dataclass(frozen=True)
class Cosine:
    """A learning rate that falls to 0 as half a cosine over `epochs` (Loshchilov and Hutter, 2017).

    Training begins after `begin` of them.
    """

    epochs: int
    begin: int = 0

    def factor(self, epochs: float) -> float:
        """Return the factor of the learning rate after `epochs` more epochs."""
        return (1 + math.cos(math.pi * min(1.0, (self.begin + epochs) / self.epochs))) / 2


@dataclass(frozen=True)
class EarlyStopping:
    """Stop after `patience` epochs without a new lowest validation loss, and restore the best parameters.

    Epochs before a `GradualPruner` has reached its budget do not count.

    `X`, `y` and `weight` are validation data as for `train`.
    """

    X: Tensor
    y: Tensor
    patience: int
    weight: Tensor | None = None


def train(
    model: nn.Module,
    X: Tensor,
    y: Tensor,
    *,
    epochs: int,
    optimizer: Optimizer,
    generator: torch.Generator,
    batch_size: int | None = None,
    sample_weight: Tensor | None = None,
    early_stopping: EarlyStopping | None = None,
    rewirer: Rewirer | GradualPruner | None = None,
    decay: Cosine | None = None,
    objective: Objective = CLASSES,
    on_epoch: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Train a model in place for some epochs; return a record of each.

    After Ctrl-C or an error, model, optimizer, generator and rewirer are as after the last finished epoch.
    Training modes and learning rates do not change.

    Parameters
    ----------
    model : nn.Module
        Maps (batch, features) to logits.
    X, y : Tensor
        Inputs, (samples, features), and class numbers, (samples,), or probabilities, (samples, classes).
    epochs : int
        Passes over the data.
    optimizer : Optimizer
        Over the model's parameters.
    generator : torch.Generator
        Orders the mini-batches; the same state gives the same result on the same machine.
    batch_size : int, optional
        Samples in a mini-batch; by default `default_batch_size`.
    sample_weight : Tensor, optional
        Weight of each sample, (samples,).
    early_stopping : EarlyStopping, optional
        By default all epochs are trained.
    rewirer : Rewirer or GradualPruner, optional
        Changes the masks of the model while it trains.
    decay : Cosine, optional
        How the learning rate falls, step by step. By default it is constant.
    objective : Objective, default Objective()
        What is minimized: by default the cross-entropy.
    on_epoch : callable, optional
        Gets the record of each finished epoch.

    Raises
    ------
    ArgumentError
        If training diverges: the loss, a parameter or a moment of the optimizer becomes NaN or infinite.
    """
    history: list[Record] = []
    batch_size = batch_size or default_batch_size(len(X))
    best, restore = _snapshot(model, optimizer, generator, rewirer)
    lowest, best_epoch = float("inf"), 0
    for epoch in range(1, epochs + 1):
        now = None if decay is None else replace(decay, begin=decay.begin + epoch - 1)
        try:
            loss = run_epoch(
                model, optimizer, X, y, batch_size, generator, sample_weight, rewirer, now, objective
            )
            record: Record = {"epoch": epoch, "loss": loss}
            if early_stopping is not None:
                data = early_stopping.X, early_stopping.y, early_stopping.weight
                record["validation_loss"] = evaluate_loss(model, *data, Objective(objective.kind))
            moments = (value for state in optimizer.state.values() for value in state.values())
            trained = [*model.parameters(), *(value for value in moments if torch.is_tensor(value))]
            problem = divergence(record, trained)
            if problem is not None:
                raise ArgumentError(f"{problem} in epoch {epoch}; {DIVERGED}")
        except BaseException:
            restore()
            raise
        state, restore = _snapshot(model, optimizer, generator, rewirer)
        pruning = isinstance(rewirer, GradualPruner) and not rewirer.finished
        if early_stopping is not None and (pruning or record["validation_loss"] < lowest):
            lowest = float("inf") if pruning else record["validation_loss"]
            best, best_epoch = state, epoch
        history.append(record)
        if on_epoch is not None:
            on_epoch(record)
        if early_stopping is not None and epoch - best_epoch >= early_stopping.patience:
            break
    if early_stopping is not None:
        model.load_state_dict(best, strict=False)
        if rewirer is not None:
            rewirer.project()
    return history


def run_epoch(
    model: nn.Module,
    optimizer: Optimizer,
    X: Tensor,
    y: Tensor,
    batch_size: int,
    generator: torch.Generator,
    sample_weight: Tensor | None = None,
    rewirer: Rewirer | GradualPruner | None = None,
    decay: Cosine | None = None,
    objective: Objective = CLASSES,
) -> float:
    """Train for one epoch, as `train` does; return the mean loss over the samples before their steps."""
    order = torch.randperm(len(X), generator=generator).to(X.device)
    total = torch.zeros((), dtype=torch.float64, device=X.device)
    batches = torch.split(order, batch_size)
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        with _mode(model, training=True):
            for number, batch in enumerate(batches):
                if decay is not None:
                    factor = decay.factor(number / len(batches))
                    _set_rates(optimizer, [factor * rate for rate in rates])
                weight = None if sample_weight is None else sample_weight[batch]
                optimizer.zero_grad()
                loss = loss_of(model(X[batch]), y[batch], weight, objective)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                if rewirer is not None:
                    rewirer.step()
                total += loss.detach() * len(batch)
    finally:
        _set_rates(optimizer, rates)
    return float(total) / len(X)


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put all modules into training or evaluation mode within the block."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was in before:
            module.training = was


def _set_rates(optimizer: Optimizer, rates: Sequence[float]) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _snapshot(
    model: nn.Module,
    optimizer: Optimizer,
    generator: torch.Generator,
    rewirer: Rewirer | GradualPruner | None,
) -> tuple[dict[str, Tensor], Callable[[], None]]:
    """Copy everything that training changes; return the model's state, and a function that restores all."""
    fixed = mask_names(model) if rewirer is None else ()
    state = copy.deepcopy({k: value for k, value in model.state_dict().items() if k not in fixed})
    moments, order = copy.deepcopy(optimizer.state_dict()), generator.get_state()
    masks = {} if rewirer is None else rewirer.state_dict()

    def restore() -> None:
        model.load_state_dict(state, strict=False)
        optimizer.load_state_dict(moments)
        generator.set_state(order)
        if rewirer is not None:
            rewirer.load_state_dict(masks)

    return state, restore


def divergence(record: Record, trained: Iterable[Tensor]) -> str | None:
    """Say what became NaN or infinite in an epoch; None if nothing did.

    `trained` includes the optimizer's moments: after a gradient that overflows, the loss may be finite, but
    with infinite moments a weight never changes again.
    """
    for name in ("loss", "validation_loss"):
        if not record.get(name, 0.0) < float("inf"):
            return f"the {name.replace('_', ' ')} became {record[name]}"
    return None if all(map(finite, trained)) else "a gradient became NaN or infinite"


def finite(tensor: Tensor) -> bool:
    """Tell whether all numbers are finite; the sum is a fast check."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def predict_logits(model: nn.Module, X: Tensor, batch_size: int = 4096) -> Tensor:
    """Return the logits of all samples, (samples, outputs), in evaluation mode."""
    with _mode(model, training=False), torch.no_grad():
        return torch.cat([model(batch) for batch in torch.split(X, batch_size)])


def evaluate_loss(
    model: nn.Module, X: Tensor, y: Tensor, weight: Tensor | None = None, objective: Objective = CLASSES
) -> float:
    """Return the mean loss over all samples, weighted if there are weights, in evaluation mode."""
    return float(loss_of(predict_logits(model, X), y, weight, objective))


def accuracy(model: nn.Module, X: Tensor, y: Tensor) -> float:
    """Return the share of samples whose class is predicted, 0 to 1, in evaluation mode."""
    return accuracy_of(predict_logits(model, X), y)


def accuracy_of(logits: Tensor, y: Tensor) -> float:
    """Return the share of samples, 0 to 1, whose class is predicted by their logits, (samples, outputs)."""
    return float((predicted(logits) == y).double().mean())


def predicted(logits: Tensor) -> Tensor:
    """Return the class that logits, (…, outputs), predict; one logit predicts class 1 if it is positive."""
    return (logits[..., 0] > 0).long() if logits.shape[-1] == 1 else logits.argmax(dim=-1)
