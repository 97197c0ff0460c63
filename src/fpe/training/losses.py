"""Activations as functions, and losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Element-wise layers without parameters, as functions.
ACTIVATIONS: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: F.relu,
    nn.GELU: F.gelu,
    nn.SiLU: F.silu,
    nn.Tanh: torch.tanh,
    nn.Sigmoid: torch.sigmoid,
    nn.Identity: lambda x: x,
}


class Objective(NamedTuple):
    """What is minimized.

    Parameters
    ----------
    kind : str, default "classes"
        ``"classes"``: cross-entropy, binary for one logit (2.1); targets are class numbers, (batch,), or with
        several logits probabilities, (batch, classes). ``"labels"``: binary cross-entropy for each output;
        targets are 0 and 1, (batch, outputs). ``"squared"``: the squared error; targets (batch, outputs).
    smoothing : float, default 0.0
        Share of the target that is spread evenly over the classes, or over yes and no.
    """

    kind: str = "classes"
    smoothing: float = 0.0

    def each(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the loss of each sample, (…, batch), from outputs, (…, batch, outputs), and targets."""
        if self.kind == "squared":
            return (outputs - y).square().mean(dim=-1)
        if self.kind == "labels":
            y = y * (1 - self.smoothing) + self.smoothing / 2
            return F.binary_cross_entropy_with_logits(outputs, y, reduction="none").mean(dim=-1)
        if outputs.shape[-1] == 1:
            y = y * (1 - self.smoothing) + self.smoothing / 2
            return F.binary_cross_entropy_with_logits(outputs[..., 0], y.to(outputs.dtype), reduction="none")
        logs = outputs.log_softmax(dim=-1)
        soft = y.dim() == outputs.dim()
        own = -((y * logs).sum(dim=-1) if soft else logs.gather(-1, y.unsqueeze(-1)).squeeze(-1))
        return own if not self.smoothing else torch.lerp(own, -logs.mean(dim=-1), self.smoothing)


CLASSES = Objective()


def loss_of(
    outputs: Tensor, y: Tensor, weight: Tensor | None = None, objective: Objective = CLASSES
) -> Tensor:
    """Return the (weighted) mean loss over a batch of outputs, (batch, outputs), and targets."""
    if weight is None and objective.kind == "classes" and outputs.shape[1] > 1:  # torch's own is faster
        return F.cross_entropy(outputs, y, label_smoothing=objective.smoothing)
    return mean_of(objective.each(outputs, y), weight)


def mean_of(losses: Tensor, weight: Tensor | None) -> Tensor:
    """Return the (weighted) mean of losses over their last axis; 0 if all weights are 0."""
    if weight is None:
        return losses.mean(dim=-1)
    return (losses * weight).sum(dim=-1) / weight.sum(dim=-1).clamp_min(torch.finfo(losses.dtype).tiny)
