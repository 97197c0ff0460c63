"""The outputs of many networks, computed together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fpe.errors import ArgumentError
from fpe.training.ensemble.stack import Stack, architecture, batches, forward
from fpe.training.loop import predicted
from fpe.training.losses import Objective, mean_of

#: Samples that all networks of a batch process at a time.
_SAMPLES = 512


def per_network(values: Any, networks: int, name: str) -> list[Any]:
    """Return one value for each network."""
    if not isinstance(values, Sequence):
        return [values] * networks
    if len(values) != networks:
        raise ArgumentError(f"{name} has {len(values)} for {networks} networks; give one for each.")
    return list(values)


@torch.no_grad()
def predict_logits(networks: Sequence[nn.Module], X: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Return the logits of each network for all its samples, (samples, outputs).

    Parameters
    ----------
    networks : sequence of nn.Module
        ``nn.Sequential``, as for `train`; unchanged.
    X : Tensor or sequence of Tensor
        Inputs, (samples, features), the same for all networks or one tensor for each.
    """
    inputs = per_network(X, len(networks), "X")
    logits: list[Tensor] = [torch.empty(0)] * len(networks)
    for batch, stack in _stacks(networks, inputs):
        for i, result in zip(batch, stack_logits(stack, [inputs[i] for i in batch]), strict=True):
            logits[i] = result
    return logits


def _stacks(networks: Sequence[nn.Module], inputs: Sequence[Tensor]) -> Iterator[tuple[list[int], Stack]]:
    keys = [(architecture(n), x.shape, x.dtype, x.device) for n, x in zip(networks, inputs, strict=True)]
    for batch in batches(networks, keys, [id(x) for x in inputs], _SAMPLES):
        yield batch, Stack([networks[i] for i in batch])


def stack_logits(stack: Stack, inputs: Sequence[Tensor]) -> Tensor:
    """Return the logits of a stack for samples of its networks, (M, samples, outputs)."""
    return torch.cat([logits for _, logits in _parts(stack, inputs)], 1)


def _parts(stack: Stack, inputs: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(inputs[0]), _SAMPLES):
        rows = slice(start, start + _SAMPLES)
        if len({id(x) for x in inputs}) == 1:
            x, sharing = inputs[0][rows].unsqueeze(0), len(inputs)
        else:
            x, sharing = torch.stack([x[rows] for x in inputs]), 1
        yield rows, forward(stack.layers, stack.parameters, stack.masks, x, sharing)


def validation_losses(
    stack: Stack,
    inputs: Sequence[Tensor],
    labels: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    objective: Objective,
) -> list[float]:
    """Return each network's (weighted) mean loss on its validation samples."""
    losses = objective.each(stack_logits(stack, inputs), stack.labels(torch.stack(list(labels))))
    return [float(mean_of(loss, weight)) for loss, weight in zip(losses, weights, strict=True)]


@torch.no_grad()
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
    inputs, labels = per_network(X, len(networks), "X"), per_network(y, len(networks), "y")
    shares = [0.0] * len(networks)
    for batch, stack in _stacks(networks, inputs):
        hits = torch.zeros(len(batch), dtype=torch.long, device=inputs[batch[0]].device)
        for rows, logits in _parts(stack, [inputs[i] for i in batch]):  # all at once may be too many
            hits += (predicted(logits) == torch.stack([labels[i][rows] for i in batch])).sum(dim=1)
        for i, hit in zip(batch, hits.tolist(), strict=True):
            shares[i] = hit / len(inputs[i])
    return shares
