"""What many networks answer, computed together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fpe.ensemble.batches import batches
from fpe.ensemble.program import losses_of
from fpe.ensemble.stack import Stack, architecture, forward
from fpe.errors import ArgumentError
from fpe.training import accuracy_of

#: Samples that go through all networks of a batch at a time.
_SAMPLES = 512


def per_network(values: Tensor | Sequence[Tensor], networks: int, name: str) -> list[Tensor]:
    """Give each network its own tensor: one for all, or one of as many as there are networks.

    Raises
    ------
    ArgumentError
        If there are more or fewer.
    """
    if isinstance(values, Tensor):
        return [values] * networks
    if len(values) != networks:
        raise ArgumentError(
            f"{name} has {len(values)} tensors for {networks} networks; give one for each, or one for all."
        )
    return list(values)


@torch.no_grad()
def predict_logits(networks: Sequence[nn.Module], X: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Return the logits of each network for all its samples.

    Parameters
    ----------
    networks : sequence of nn.Module
        ``nn.Sequential``, as for `train`; unchanged.
    X : Tensor or sequence of Tensor
        Inputs, (samples, features), the same for all networks or one tensor for each.

    Returns
    -------
    list of Tensor
        One for each network, (samples, outputs).

    Raises
    ------
    ArgumentError, ModelError
        If the number of inputs is not that of the networks, or a network cannot be stacked.
    """
    inputs = per_network(X, len(networks), "X")
    keys = [(architecture(n), x.shape, x.dtype, x.device) for n, x in zip(networks, inputs, strict=True)]
    logits: list[Tensor] = [torch.empty(0)] * len(networks)
    for batch in batches(networks, keys, [id(x) for x in inputs], _SAMPLES):
        stack = Stack.of([networks[i] for i in batch])
        for i, result in zip(batch, stack_logits(stack, [inputs[i] for i in batch]), strict=True):
            logits[i] = result
    return logits


def stack_logits(stack: Stack, inputs: Sequence[Tensor]) -> Tensor:
    """Return the logits of a stack for samples of its networks, (M, samples, outputs)."""
    starts = range(0, len(inputs[0]), _SAMPLES)
    return torch.cat([_forward_rows(stack, inputs, slice(start, start + _SAMPLES)) for start in starts], 1)


def _forward_rows(stack: Stack, inputs: Sequence[Tensor], rows: slice) -> Tensor:
    return forward(stack.layers, stack.parameters, stack.masks, torch.stack([x[rows] for x in inputs]))


def validation_losses(
    stack: Stack, inputs: Sequence[Tensor], labels: Sequence[Tensor], weights: Sequence[Tensor | None]
) -> list[float]:
    """Return each network's mean loss on its held-out samples, weighted where there are weights."""
    losses = losses_of(stack_logits(stack, inputs), stack.labels(torch.stack(list(labels))))
    means = []
    for loss, weight in zip(losses, weights, strict=True):
        total = None if weight is None else weight.sum().clamp_min(torch.finfo(loss.dtype).tiny)
        means.append(float(loss.mean() if total is None else (loss * weight).sum() / total))
    return means


def accuracies(
    networks: Sequence[nn.Module], X: Tensor | Sequence[Tensor], y: Tensor | Sequence[Tensor]
) -> list[float]:
    """Return the share of samples, 0 to 1, whose class each network predicts.

    Parameters
    ----------
    networks, X
        As for `predict_logits`.
    y : Tensor or sequence of Tensor
        Class numbers, (samples,).
    """
    labels = per_network(y, len(networks), "y")
    return [accuracy_of(logits, own) for logits, own in zip(predict_logits(networks, X), labels, strict=True)]
