"""Activations as functions, and the losses of classifiers (section 2.1)."""

from __future__ import annotations

from collections.abc import Callable

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


def loss_of(logits: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the (weighted) mean loss: binary cross-entropy for one logit, cross-entropy for several (2.1).

    `y` is class numbers, (batch,), or with several logits probabilities of the classes, (batch, classes).
    """
    reduction = "mean" if weight is None else "none"
    if logits.shape[1] == 1:
        loss = F.binary_cross_entropy_with_logits(logits[:, 0], y.to(logits.dtype), reduction=reduction)
    else:
        loss = F.cross_entropy(logits, y, reduction=reduction)
    return loss if weight is None else mean_of(loss, weight)


def mean_of(losses: Tensor, weight: Tensor | None) -> Tensor:
    """Return the (weighted) mean of losses over their last axis; 0 if all weights are 0."""
    if weight is None:
        return losses.mean(dim=-1)
    return (losses * weight).sum(dim=-1) / weight.sum(dim=-1).clamp_min(torch.finfo(losses.dtype).tiny)
