"""A network of an ensemble with all that belongs to it, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fpe.errors import ArgumentError, raise_problems
from fpe.rewiring.rewirer import Rewirer
from fpe.training.ensemble.evaluation import per_network
from fpe.training.ensemble.program import Adam
from fpe.training.ensemble.rewiring import rewirer_problem, rewiring_key
from fpe.training.ensemble.stack import architecture
from fpe.training.loop import Cosine, EarlyStopping, Record


@dataclass
class Member:
    """A network, what trains it, what it learns from, and how that went.

    Attributes
    ----------
    number : int
        Its place among the networks of the call.
    network, optimizer, generator, X, y, weight, early_stopping, rewirer, decay
        As given to `fpe.training.ensemble.train`.
    history : list of dict
        One record for each finished epoch.
    lowest : float
        The lowest loss on held-out data so far.
    best_epoch : int
        The epoch of it; 0 before the first.
    best : list of Tensor
        The parameters of that epoch, and the masks where they move.
    """

    number: int
    network: nn.Module
    optimizer: torch.optim.Adam
    generator: torch.Generator
    X: Tensor
    y: Tensor
    weight: Tensor | None
    early_stopping: EarlyStopping | None
    rewirer: Rewirer | None = None
    decay: Cosine | None = None
    history: list[Record] = field(default_factory=list)
    lowest: float = float("inf")
    best_epoch: int = 0
    best: list[Tensor] = field(default_factory=list)

    @property
    def adam(self) -> Adam:
        """The constants of its optimizer."""
        group = self.optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        return Adam(float(beta1), float(beta2), group["eps"], group["weight_decay"])

    @property
    def key(self) -> tuple[Any, ...]:
        """What it has in common with the networks that it can be trained with."""
        held_out = None if self.early_stopping is None else self.early_stopping.X.shape
        return (
            *(architecture(self.network), self.adam, held_out, self.weight is None),
            *(self.X.shape, self.X.dtype, self.X.device, self.y.shape[1:]),
            *(rewiring_key(self.rewirer), self.decay),
        )

    @property
    def source(self) -> tuple[int, ...]:
        """What is the same for networks that learn from the same data."""
        return id(self.X), id(self.y), id(self.weight)

    @property
    def reading(self) -> tuple[int, ...]:
        """What is the same for networks that see the same mini-batches."""
        return *self.source, id(self.generator)

    @property
    def steps(self) -> int:
        """Steps that its optimizer has taken."""
        state = self.optimizer.state.get(next(self.network.parameters()))
        return int(state["step"]) if state else 0


def check_members(
    networks: Sequence[nn.Module],
    X: Tensor | Sequence[Tensor],
    y: Tensor | Sequence[Tensor],
    optimizers: Sequence[torch.optim.Adam],
    generators: Sequence[torch.Generator],
    sample_weight: Tensor | Sequence[Tensor] | None,
    early_stopping: EarlyStopping | Sequence[EarlyStopping] | None,
    rewirers: Sequence[Rewirer | None] | None = None,
    decay: Cosine | Sequence[Cosine | None] | None = None,
) -> list[Member]:
    """Put together what belongs together; see `fpe.training.ensemble.train` for the arguments and the errors."""
    count = len(networks)
    rewirers = [None] * count if rewirers is None else rewirers
    decays = [decay] * count if decay is None or isinstance(decay, Cosine) else decay
    each = {"optimizers": optimizers, "generators": generators, "rewirers": rewirers, "decay": decays}
    problems = [
        f"{name} has {len(values)} for {count} networks; give one for each."
        for name, values in each.items()
        if len(values) != count
    ]
    raise_problems(problems, ArgumentError, "the ensemble")
    inputs, labels = per_network(X, count, "X"), per_network(y, count, "y")
    weights: Sequence[Tensor | None] = [None] * count
    if sample_weight is not None:
        weights = per_network(sample_weight, count, "sample_weight")
    stops: Sequence[EarlyStopping | None] = [None] * count
    if isinstance(early_stopping, EarlyStopping):
        stops = [early_stopping] * count
    elif early_stopping is not None:
        stops = early_stopping
        if len(stops) != count:
            raise ArgumentError(f"early_stopping has {len(stops)} for {count} networks; give one for each.")
    members = []
    for i in range(count):
        problem = _problem(networks[i], optimizers[i], inputs[i], labels[i])
        problem = problem or rewirer_problem(rewirers[i], networks[i], optimizers[i])
        if problem is not None:
            problems.append(f"network {i}: {problem}")
        data = inputs[i], labels[i], weights[i]
        how = stops[i], rewirers[i], decays[i]
        members.append(Member(i, networks[i], optimizers[i], generators[i], *data, *how))
    raise_problems(problems, ArgumentError, "the ensemble")
    return members


def _problem(network: nn.Module, optimizer: torch.optim.Optimizer, X: Tensor, y: Tensor) -> str | None:
    """Say why this cannot be trained together."""
    architecture(network)
    first, outputs = next(network.parameters()), list(network.parameters())[-1].shape[0]
    if y.dim() == 2 and y.is_floating_point():  # probabilities of the classes
        if outputs < 2 or y.shape[1] != outputs or y.dtype != first.dtype:
            return (
                f"y has shape {tuple(y.shape)} and type {y.dtype}; probabilities must be "
                f"(samples, {outputs}), of type {first.dtype}, for two logits or more."
            )
        y = y[:, 0]
    if X.dim() != 2 or X.shape[1] != first.shape[1] or y.shape != X.shape[:1] or not len(X):
        return (
            f"X has shape {tuple(X.shape)} and y {tuple(y.shape)}; give (samples, {first.shape[1]}) and "
            "(samples,), at least one sample."
        )
    if X.dtype != first.dtype or X.device != first.device:
        return f"X is {X.dtype} on {X.device}, its weights {first.dtype} on {first.device}; they must agree."
    groups = optimizer.param_groups
    if type(optimizer) is not torch.optim.Adam or len(groups) != 1 or groups[0]["amsgrad"]:
        return f"its optimizer is {type(optimizer).__name__}; give fpe.training.adam(network)."
    if groups[0]["maximize"] or groups[0].get("decoupled_weight_decay"):
        return "its optimizer maximizes or decays weights apart; give fpe.training.adam(network)."
    if [id(p) for p in groups[0]["params"]] != [id(p) for p in network.parameters()]:
        return "its optimizer is not over its parameters; give fpe.training.adam(network)."
    return None
