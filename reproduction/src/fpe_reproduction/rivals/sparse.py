"""Methods whose networks have zeros."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fpe.expansion.expand import expand
from fpe.expansion.init import reinitialize_
from fpe.expansion.whole import prune_to_
from fpe.masked import MaskedLinear, count_nonzero
from fpe.rewiring.gradual import PruningSchedule
from fpe.rewiring.model_masks import random_masks_, with_masks
from fpe.rewiring.pruner import GradualPruner
from fpe.rewiring.rewirer import Rewirer
from fpe.rewiring.schedule import RewiringSchedule
from fpe.sklearn import FPEClassifier
from fpe.training.candidates import Candidate
from fpe.training.search import dense_count
from fpe_reproduction.rivals.methods import METHODS, REGULARIZED, Cell, Method, fit, method, network


def sparse(
    cell: Cell, factor: int, activation: str = "relu", scope: str = "network", last: float | None = 1.0
) -> nn.Module:
    """Return an untrained network, `factor` times as wide, with random masks.

    `last` is the density of the output layer, which has half of the weights at most; None for that of the
    other layer.
    """
    wide = with_masks(network(cell, factor * cell.hidden, activation=activation))
    if last is None:
        return random_masks_(wide, cell.budget, scope=scope, seed=cell.seed)
    layers = [module for module in wide.modules() if isinstance(module, MaskedLinear)]
    biases, sizes = [layer.bias.numel() for layer in layers], [layer.weight.numel() for layer in layers]
    weights = cell.budget - sum(biases)
    of_last = min(round(last * sizes[1]), weights // 2)
    of_first = min(weights - of_last, sizes[0])
    counts = (of_first, min(weights - of_first, sizes[1]))
    for layer, count, bias in zip(layers, counts, biases, strict=True):
        random_masks_(nn.Sequential(layer), count + bias, scope=scope, seed=cell.seed)
    return wide


@method(
    "random masks",
    {"factor": 2},
    {"factor": 8},
    {"activation": "silu"},
    {"scope": "neuron"},
    {"last": 0.5},
    {"last": None},
    {"smoothing": 0.1},
    {"l2": 1e-4},
)
def static(
    cell: Cell,
    lr: float,
    factor: int = 4,
    activation: str = "relu",
    scope: str = "network",
    last: float | None = 1.0,
    **how: Any,
) -> nn.Module:
    """Train a wide network with random masks that do not change (Golubeva et al., 2021)."""
    return fit(cell, sparse(cell, factor, activation, scope, last), lr, **how)


_REWIRED: tuple[dict[str, Any], ...] = (
    {"factor": 2},
    {"factor": 8},
    {"last": 0.5},
    {"last": None},
    {"share": 0.5},
    {"until": 0.9},
    {"smoothing": 0.1},
    {"l2": 1e-4},
)


def rewired(
    cell: Cell,
    lr: float,
    policy: str,
    factor: int = 4,
    last: float | None = 1.0,
    share: float = 0.3,
    until: float = 0.75,
    **how: Any,
) -> nn.Module:
    """Train a wide network whose masks are random at first and change by a policy."""
    schedule = RewiringSchedule(every=max(1, min(100, cell.steps // 20)), share=share, until=until)

    def rewirer(model: nn.Module, optimizer: torch.optim.Optimizer) -> Rewirer:
        return Rewirer(model, optimizer, policy, steps=cell.steps, schedule=schedule, seed=cell.seed)

    return fit(cell, sparse(cell, factor, last=last), lr, rewirer=rewirer, **how)


@method("SET", *_REWIRED)
def random_growth(cell: Cell, lr: float, **how: Any) -> nn.Module:
    """Grow weights at random (Mocanu et al., 2018)."""
    return rewired(cell, lr, "set", **how)


@method("RigL", *_REWIRED)
def rigl(cell: Cell, lr: float, **how: Any) -> nn.Module:
    """Grow weights by their gradients (Evci et al., 2020)."""
    return rewired(cell, lr, "rigl", **how)


@method("rewired (fpe)", {"factor": 2}, {"factor": 3}, {"factor": 6}, {"factor": 8}, *REGULARIZED)
def moved(cell: Cell, lr: float, factor: int = 4, **how: Any) -> nn.Module:
    """Expand an untrained network, and let the masks change by gradients that are gathered."""
    wide = expand(network(cell, cell.hidden), factor, prune="balanced", seed=cell.seed)
    wide = reinitialize_(wide, seed=cell.seed)

    def rewirer(model: nn.Module, optimizer: torch.optim.Optimizer) -> Rewirer:
        return Rewirer(model, optimizer, "accumulated", steps=cell.steps, seed=cell.seed)

    return fit(cell, wide, lr, rewirer=rewirer, **how)


@method(
    "expanded once (fpe)",
    {"factor": 3},
    {"factor": 4},
    {"split": "gram"},
    {"split": "shared", "prune": "columns"},
    {"split": "shared", "prune": "columns", "factor": 3},
    {"at": 0.25},
    {"smoothing": 0.1},
    {"l2": 1e-4},
)
def one_shot(
    cell: Cell,
    lr: float,
    factor: int = 2,
    split: str = "random",
    prune: str = "magnitude",
    at: float = 0.5,
    **how: Any,
) -> nn.Module:
    """Expand a dense network within its training, as the paper does."""
    half = max(1, round(at * cell.epochs))
    parent = fit(cell, network(cell, cell.hidden), lr, epochs=(0, half), **how)
    wide = expand(parent.train(), factor, split=split, prune=prune, seed=cell.seed)
    return fit(cell, wide, lr, epochs=(half, cell.epochs), **how)


class _Mean(nn.ModuleList):
    """The mean of the logits of several networks."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([model(x) for model in self]).mean(0)


@method(
    "average of expansions",
    {"networks": 3},
    {"networks": 4},
    {"factor": 3},
    {"factor": 4},
    {"split": "gram"},
    {"at": 0.25},
    {"smoothing": 0.1},
    {"l2": 1e-4},
)
def average(
    cell: Cell,
    lr: float,
    networks: int = 2,
    at: float = 0.5,
    factor: int = 2,
    split: str = "random",
    **how: Any,
) -> nn.Module:
    """Average several expansions of one parent, each pruned to its part of the budget."""
    share = cell.budget // networks
    small = next(n for n in range(1, cell.hidden + 1) if _count(cell, n) >= share)
    half = max(1, round(at * cell.epochs))
    parent = fit(cell, network(cell, small), lr, epochs=(0, half), **how).train()
    made = []
    for number in range(networks):
        wide = prune_to_(expand(parent, factor, split=split, seed=cell.seed + number), share)
        made.append(fit(replace(cell, seed=cell.seed + number), wide, lr, epochs=(half, cell.epochs), **how))
    return _Mean(made)


def _count(cell: Cell, hidden: int) -> int:
    return dense_count(cell.inputs, hidden, cell.classes)


def pruned(
    cell: Cell, candidate: Candidate, lr: float, end: float = 0.6, scope: str = "network", **how: Any
) -> nn.Module:
    """Train a network and prune it gradually to the budget."""
    wide = network(cell, candidate.hidden, direct=candidate.direct, activation=candidate.activation)
    schedule = PruningSchedule(begin=0.05, end=end, every=max(1, cell.steps // 50))
    if count_nonzero(wide) <= cell.budget:
        return fit(cell, wide, lr, **how)

    def rewirer(model: nn.Module, optimizer: torch.optim.Optimizer) -> GradualPruner:
        own: dict[str, Any] = {"score": candidate.score, "schedule": schedule, "scope": scope}
        return GradualPruner(model, optimizer, budget=cell.budget, steps=cell.steps, **own)

    return fit(cell, with_masks(wide), lr, rewirer=rewirer, **how)


@method(
    "no hidden layer", {"score": "magnitude"}, {"score": "fisher"}, {"end": 0.3}, {"end": 0.85}, *REGULARIZED
)
def linear(cell: Cell, lr: float, score: str = "moment", **how: Any) -> nn.Module:
    """Prune softmax regression gradually."""
    return pruned(cell, Candidate(0, False, cell.budget, score=score), lr, **how)


@method(
    "pruned gradually (fpe)",
    {"factor": 2},
    {"factor": 4},
    {"factor": 6},
    {"end": 0.85},
    {"scope": "layer"},
    {"activation": "silu"},
    *REGULARIZED[:2],
)
def gradual(
    cell: Cell, lr: float, factor: int = 3, score: str = "moment", activation: str = "relu", **how: Any
) -> nn.Module:
    """Prune a wide network gradually, by weights and the moments of their gradients."""
    own = Candidate(factor * cell.hidden, False, cell.budget, score=score, activation=activation)
    return pruned(cell, own, lr, **how)


@method(
    "pruned by magnitude",
    {"factor": 2},
    {"factor": 4},
    {"factor": 6},
    {"score": "fisher"},
    {"end": 0.85},
    {"activation": "silu"},
    *REGULARIZED[:2],
)
def by_magnitude(cell: Cell, lr: float, score: str = "magnitude", **how: Any) -> nn.Module:
    """Prune a wide network gradually by published scores (Zhu and Gupta, 2017; Theis et al., 2018)."""
    return cast(nn.Module, gradual(cell, lr, score=score, **how))


@method(
    "constant fan-in",
    {"factor": 2},
    {"factor": 4},
    {"factor": 6},
    {"score": "magnitude"},
    {"end": 0.85},
    {"activation": "silu"},
    *REGULARIZED[:2],
)
def fan_in(cell: Cell, lr: float, **how: Any) -> nn.Module:
    """Prune a wide network gradually, to equally many inputs of each neuron."""
    return cast(nn.Module, gradual(cell, lr, scope="neuron", **how))


@method(
    "with direct connections (fpe)",
    {"hidden": 8},
    {"hidden": 32},
    {"hidden": 64},
    {"hidden": 96},
    {"activation": "silu"},
    {"end": 0.85},
    *REGULARIZED[:2],
)
def direct(
    cell: Cell, lr: float, hidden: int = 16, score: str = "moment", activation: str = "relu", **how: Any
) -> nn.Module:
    """Prune a network with connections from inputs to outputs gradually."""
    own = Candidate(hidden, True, cell.budget, score=score, activation=activation)
    return pruned(cell, own, lr, **how)


class _Largest(nn.Module):
    """Sets all but the largest weights of two layers to zero; all get the gradients (straight-through)."""

    mask: Tensor

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (weight * self.mask - weight).detach()


class _ChooseLargest:
    """Chooses the largest weights before each forward pass, of all layers together or of each layer.

    With `anneal`, from all of them in the first step to the budget after that many steps, as a cube.
    """

    def __init__(self, layers: list[nn.Linear], kept: int, scope: str, anneal: int) -> None:
        self.kept, self.scope, self.anneal, self.step = kept, scope, anneal, 0
        self.own: list[tuple[_Largest, Tensor]] = []
        for layer in layers:
            largest = _Largest()
            parametrize.register_parametrization(layer, "weight", largest, unsafe=True)
            self.own.append((largest, cast(Any, layer.parametrizations).weight.original))

    @torch.no_grad()
    def __call__(self, model: nn.Module, args: Any = None) -> None:
        sizes = [weight.numel() for _, weight in self.own]
        left = max(0.0, 1 - self.step / self.anneal) ** 3 if self.anneal else 0.0
        kept = round(self.kept + left * (sum(sizes) - self.kept))
        self.step += model.training
        parts = [self.own] if self.scope == "network" else [[one] for one in self.own]
        for part in parts:
            weights = torch.cat([weight.abs().flatten() for _, weight in part])
            count = kept if self.scope == "network" else int(kept * len(weights) / sum(sizes))
            places = weights.topk(min(max(1, count), len(weights)), sorted=False).indices
            masks = torch.zeros_like(weights).index_fill_(0, places, 1)
            for (chosen, weight), mask in zip(
                part, torch.split(masks, [w.numel() for _, w in part]), strict=True
            ):
                chosen.mask = mask.view_as(weight)


@method(
    "straight-through",
    {"factor": 2},
    {"factor": 4},
    {"factor": 6},
    {"activation": "silu"},
    {"anneal": 0.0},
    {"scope": "layer"},
    {"smoothing": 0.1},
    {"l2": 1e-4},
)
def straight_through(
    cell: Cell,
    lr: float,
    factor: int = 3,
    activation: str = "relu",
    scope: str = "network",
    anneal: float = 0.6,
    **how: Any,
) -> nn.Module:
    """Use the largest weights in the forward pass, fewer and fewer, and train all."""
    model = network(cell, factor * cell.hidden, activation=activation)
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    kept = cell.budget - (count_nonzero(model) - sum(layer.weight.numel() for layer in layers))
    if kept >= sum(layer.weight.numel() for layer in layers):
        return fit(cell, model, lr, **how)
    choose = _ChooseLargest(layers, kept, scope, round(anneal * cell.steps))
    hook = model.register_forward_pre_hook(choose)
    fit(cell, model, lr, **how)
    choose(model)
    hook.remove()
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight")
    return model


def searched(cell: Cell, lr: float) -> FPEClassifier:
    """Let fpe search for a network of the budget."""
    how: dict[str, Any] = {"epochs": cell.epochs, "batch_size": cell.batch_size, "random_state": cell.seed}
    return FPEClassifier(budget=cell.budget, **how).fit(cell.X.numpy(), cell.y.numpy())


METHODS["searched"] = Method("searched (fpe)", searched, ())
