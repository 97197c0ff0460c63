"""A network of an ensemble with everything that belongs to it, checked before anything is trained."""

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
    """A network, how it is trained, and how that went: ``history``, and the lowest loss on held-out data.

    ``number`` is its place in the call; ``best`` are the parameters of ``best_epoch``, and the masks if
    dynamic.
    """

    number: int
    network: nn.Module
    X: Tensor
    y: Tensor
    optimizer: torch.optim.Adam
    generator: torch.Generator
    weight: Tensor | None
    early_stopping: EarlyStopping | None
    rewirer: Rewirer | None
    decay: Cosine | None
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
        """What networks that are trained together have in common."""
        held_out = None if self.early_stopping is None else self.early_stopping.X.shape
        return (
            *(architecture(self.network), self.adam, held_out, self.weight is None),
            *(self.X.shape, self.X.dtype, self.X.device, self.y.shape[1:]),
            *(rewiring_key(self.rewirer), self.decay),
        )

    @property
    def source(self) -> tuple[int, ...]:
        """The same for networks that learn from the same data."""
        return id(self.X), id(self.y), id(self.weight)

    @property
    def reading(self) -> tuple[int, ...]:
        """The same for networks that see the same mini-batches."""
        return *self.source, id(self.generator)

    @property
    def steps(self) -> int:
        """Steps that its optimizer has taken."""
        state = self.optimizer.state.get(next(self.network.parameters()))
        return int(state["step"]) if state else 0


def check_members(networks: Sequence[nn.Module], given: dict[str, Any]) -> list[Member]:
    """Return the members of an ensemble; see `fpe.training.ensemble.train` for the arguments and errors.

    `given` are the arguments ``X``, ``y``, ``optimizers``, ``generators``, ``sample_weight``,
    ``early_stopping``, ``rewirers`` and ``decay``, in this order.
    """
    problems, columns = [], []
    for name, values in given.items():
        try:
            columns.append(per_network(values, len(networks), name))
        except ArgumentError as error:
            problems.append(str(error))
    raise_problems(problems, ArgumentError, "the ensemble")
    members = [Member(i, n, *own) for i, (n, *own) in enumerate(zip(networks, *columns, strict=True))]
    problems = [f"network {member.number}: {p}" for member in members if (p := _problem(member)) is not None]
    raise_problems(problems, ArgumentError, "the ensemble")
    return members


def _problem(member: Member) -> str | None:
    """Say why a network cannot be trained together with others."""
    network, optimizer, X, y = member.network, member.optimizer, member.X, member.y
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
    groups, advice = optimizer.param_groups, "give fpe.training.adam(network)."
    if type(optimizer) is not torch.optim.Adam or len(groups) != 1 or groups[0]["amsgrad"]:
        return f"its optimizer is {type(optimizer).__name__}; {advice}"
    if groups[0]["maximize"] or groups[0].get("decoupled_weight_decay"):
        return f"its optimizer maximizes or decays weights apart; {advice}"
    if [id(p) for p in groups[0]["params"]] != [id(p) for p in network.parameters()]:
        return f"its optimizer is not over its parameters; {advice}"
    return rewirer_problem(member.rewirer, network, optimizer)
