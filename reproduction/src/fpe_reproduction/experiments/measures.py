"""Networks that are trained side by side, and what is measured of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fpe.masked import count_nonzero
from fpe.metrics import mean_cosine_similarity, total_capacity
from fpe.rewiring.rewirer import Rewirer
from fpe.training import ensemble
from fpe.training.loop import accuracy


@dataclass
class Network:
    """A network in training; those of a trial share the generator of the order of their mini-batches."""

    kind: str
    trial: int
    seed: int
    generator: torch.Generator
    width: int  # of the dense parent
    model: nn.Sequential
    optimizer: torch.optim.Adam
    y: Tensor  # labels, or the targets of distillation
    rewirer: Rewirer | None = None


def train_together(
    networks: Sequence[Network], X: Tensor | Sequence[Tensor], epochs: int, **options: Any
) -> None:
    """Train networks in place; `X` and `options` are as for `fpe.training.ensemble.train`."""
    ensemble.train(
        [n.model for n in networks],
        X,
        [n.y for n in networks],
        epochs=epochs,
        optimizers=[n.optimizer for n in networks],
        generators=[n.generator for n in networks],
        rewirers=[n.rewirer for n in networks],
        **options,
    )


def records(
    networks: Sequence[Network], train: tuple[Any, Any], test: tuple[Any, Any]
) -> list[dict[str, Any]]:
    """Return kind, trial, count and accuracies of each network; data are as for `train_together`."""
    models = [n.model for n in networks]
    found = zip(
        networks, ensemble.accuracies(models, *test), ensemble.accuracies(models, *train), strict=True
    )
    return [
        {
            "trial": n.trial,
            "seed": n.seed,
            "kind": n.kind,
            "nonzero": count_nonzero(n.model),
            "accuracy": test_accuracy,
            "train_accuracy": train_accuracy,
        }
        for n, test_accuracy, train_accuracy in found
    ]


def interference(weight: Tensor) -> dict[str, float]:
    """Return feature capacity and mean cosine similarity of the first layer's weight."""
    return {"cosine": mean_cosine_similarity(weight), "capacity": total_capacity(weight)}


def measured(network: nn.Sequential, X_test: Tensor, y_test: Tensor) -> dict[str, Any]:
    """Return neurons, accuracy after rounding to few bits, and interference of the first layer."""
    weight = network.get_submodule("0").get_parameter("weight").detach()
    return {
        "neurons": len(weight),
        **{f"accuracy_int{bits}": accuracy(rounded(network, bits), X_test, y_test) for bits in (8, 4)},
        **interference(weight),
    }


class _RoundedInput(nn.Module):
    """A linear layer whose inputs are rounded to 8 bits, each sample on its own grid."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs) to (batch, outputs)."""
        outputs: Tensor = self.layer(rounded_rows(x, 8))
        return outputs


def rounded_rows(values: Tensor, bits: int) -> Tensor:
    """Round each row to ``2^bits − 1`` levels, symmetric about 0; zeros stay zeros."""
    levels = 2 ** (bits - 1) - 1
    step = values.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny) / levels
    nearest: Tensor = (values / step).round() * step
    return nearest


@torch.no_grad()
def rounded(network: nn.Sequential, bits: int = 8) -> nn.Sequential:
    """Return a copy with linear weights of `bits` bits, by neuron, and their inputs of 8 bits, by sample.

    Products of such numbers are those of integer arithmetic, up to float32; biases and norms stay as they
    are.
    """
    layers: list[nn.Module] = []
    for module in copy.deepcopy(network):
        if isinstance(module, nn.Linear):
            module.weight.copy_(rounded_rows(module.weight, bits))
            module = _RoundedInput(module)
        layers.append(module)
    return nn.Sequential(*layers)
