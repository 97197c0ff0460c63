"""The networks that the experiments on real data compare, each made from a dense parent of one trial.

All of them hold at most as many non-zeros as the parent, but for `Doubled`, which is what they would like
to be.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpe.expansion.expand import expand
from fpe.expansion.pruning import InputPruning, MagnitudePruning
from fpe.masked import MaskedLinear
from fpe.models import mlp
from fpe.training.losses import loss_of
from fpe_reproduction.experiments.moving import MOVING, STARTS
from fpe_reproduction.experiments.tried import LEARNED, TRIED, tried
from fpe_reproduction.experiments.tried.learned import train_steps
from fpe_reproduction.experiments.tried.sight import Sight
from fpe_reproduction.experiments.variant import Start, Variant


@dataclass(frozen=True)
class Dense(Variant):
    """The parent, trained on as it is."""

    goes_on = True


@dataclass(frozen=True)
class Doubled(Variant):
    """A dense network of `times` as many neurons, and parameters, trained from the start.

    Attributes
    ----------
    times : int
        How many times the parent's neurons it has.
    lr : float or None
        A learning rate of its own, which does not fall; None for that of all others.
    """

    times: int = 2
    lr: float | None = None

    def make(self, start: Start) -> nn.Sequential:
        """Return the network."""
        inputs, hidden, outputs = sizes(start.parent)
        return mlp(inputs, self.times * hidden, outputs, seed=start.seed)


@dataclass(frozen=True)
class Expanded(Variant):
    """The parent, expanded by `fpe.expand`.

    Attributes
    ----------
    factor, split, prune, layers
        As for `fpe.expand`.
    at : float
        Share of the whole training that lies before the expansion.
    rewired : float
        Share of the weights that move after each epoch; see `fpe_reproduction.experiments.rewiring`.
    """

    factor: int = 2
    split: str = "random"
    prune: str | InputPruning = "magnitude"
    at: float = 0.5
    rewired: float = 0.0
    layers: tuple[str, ...] | None = None

    def make(self, start: Start) -> nn.Sequential:
        """Return the network."""
        parent = start.parent
        how: dict[str, Any] = {"layers": self.layers, "seed": start.seed}
        if self.ranks_by == "activation":
            how["example_inputs"] = start.X
        if self.ranks_by == "gradient":
            parent = _with_gradients(start)
        wide = expand(parent, self.factor, self.split, self.prune, **how)
        assert isinstance(wide, nn.Sequential)
        return wide

    @property
    def ranks_by(self) -> str | None:
        """By what inputs are ranked, where that is not the usual."""
        return self.prune.by if isinstance(self.prune, InputPruning) else None


@dataclass(frozen=True)
class Tried(Variant):
    """The parent, expanded by a split that was tried; see `fpe_reproduction.experiments.tried`."""

    kind: str
    factor: int = 2
    at: float = 0.5

    def make(self, start: Start) -> nn.Sequential:
        """Return the network."""
        X, y = (start.all_X, start.all_y) if self.kind in LEARNED else (start.X, start.y)
        assert X is not None
        assert y is not None
        split = tried(self.kind, Sight(start.parent, X, y, start.lr), self.factor, start.seed)
        wide = expand(start.parent, self.factor, split, seed=start.seed)
        assert isinstance(wide, nn.Sequential)
        return wide


@dataclass(frozen=True)
class Ahead(Variant):
    """The parent, expanded at random and trained for as many steps more as a learnt split costs."""

    factor: int = 2
    at: float = 0.5

    def make(self, start: Start) -> nn.Sequential:
        """Return the network."""
        assert start.all_X is not None
        assert start.all_y is not None
        wide = expand(start.parent, self.factor, seed=start.seed)
        assert isinstance(wide, nn.Sequential)
        train_steps(wide, start.all_X, start.all_y, start.lr, start.seed)
        return wide


@dataclass(frozen=True)
class Overlapping(Variant):
    """Children that draw their inputs each for itself, so that siblings may have some in common."""

    factor: int = 2
    at: float = 0.5

    def make(self, start: Start) -> nn.Sequential:
        """Return the network."""
        inputs, hidden, outputs = sizes(start.parent)
        rng = np.random.default_rng(start.seed)
        mask = torch.zeros(hidden * self.factor, inputs)
        for row in range(len(mask)):  # children share the parent's count out evenly, to the last input
            own = inputs // self.factor + (row % self.factor < inputs % self.factor)
            mask[row, torch.from_numpy(rng.permutation(inputs)[:own])] = 1
        first, last = _linear(start.parent)
        rows = torch.arange(hidden).repeat_interleave(self.factor)
        weights = [first.weight.detach()[rows] * mask, last.weight.detach()[:, rows].contiguous()]
        masks = [mask, torch.ones_like(weights[1])]
        MagnitudePruning().prune_(weights, masks, (self.factor - 1) * hidden * (outputs + 1), self.factor)
        biases = [first.bias.detach()[rows], last.bias.detach().clone()]
        return _masked(weights, biases, masks)


@dataclass(frozen=True)
class FromScratch(Variant):
    """A network of the shape and masks of the expanded one, trained from random weights.

    Its masks are those of the expansion of a parent that had its warm-up. A weight's range is PyTorch's
    for the inputs that its neuron really has.
    """

    factor: int = 2
    needs_scout = True

    def make(self, start: Start) -> nn.Sequential:
        """Return the network."""
        assert start.scout is not None
        inputs, hidden, outputs = sizes(start.parent)
        masks = [layer.fpe_mask for layer in _linear(expand(start.scout, self.factor, seed=start.seed))]
        fresh = _linear(mlp(inputs, hidden * self.factor, outputs, seed=start.seed))
        weights = []
        for layer, mask in zip(fresh, masks, strict=True):
            reads = mask.sum(dim=1, keepdim=True).clamp_min(1)
            weights.append(layer.weight.detach() * mask * (layer.in_features / reads).sqrt())
        return _masked(weights, [layer.bias.detach() for layer in fresh], [m.clone() for m in masks])


@dataclass(frozen=True)
class FewerInputs(Variant):
    """The plain rival: a dense network of `factor` times the neurons that reads fewer inputs.

    Attributes
    ----------
    factor : int
        How many times the parent's neurons it has.
    by : str
        How its inputs are chosen: "variance", the largest in the training data; "random"; or "norm",
        the largest norm of a column of the first weight of a parent that had its warm-up.
    """

    factor: int = 2
    by: str = "variance"

    @property
    def needs_scout(self) -> bool:  # type: ignore[override]
        """Whether a parent after its warm-up must be known."""
        return self.by == "norm"

    def possible(self, inputs: int, outputs: int) -> bool:
        """Tell whether it can read one input at least; for a parent of any width it is the same."""
        return self.reads(inputs, 1, outputs) > 0

    def reads(self, inputs: int, hidden: int, outputs: int) -> int:
        """Return how many inputs the parent's count pays for; 0 if none."""
        budget, wide = hidden * (inputs + 1 + outputs), self.factor * hidden
        return max(0, (budget - wide * (1 + outputs)) // wide)

    def make(self, start: Start) -> nn.Sequential:
        """Return the network."""
        inputs, hidden, outputs = sizes(start.parent)
        read = self.reads(inputs, hidden, outputs)
        if self.by == "random":
            score = torch.from_numpy(np.random.default_rng(start.seed).random(inputs))
        elif self.by == "norm":
            assert start.scout is not None
            score = _linear(start.scout)[0].weight.detach().norm(dim=0)
        else:
            assert start.variance is not None
            score = start.variance
        network = mlp(read, hidden * self.factor, outputs, seed=start.seed)
        chosen = score.argsort(descending=True, stable=True)[:read]
        first, last = _linear(network)
        mask = torch.zeros(first.out_features, inputs)
        mask[:, chosen] = 1
        weight = torch.zeros_like(mask)
        weight[:, chosen] = first.weight.detach()
        weights = [weight, last.weight.detach()]
        return _masked(
            weights, [first.bias.detach(), last.bias.detach()], [mask, torch.ones_like(weights[1])]
        )


@dataclass(frozen=True)
class DropConnect(Variant):
    """The parent, going on with a fresh random share `drops` of its first weights at zero in each step."""

    drops: float = 0.5
    at = None
    goes_on = True


class DroppingLinear(nn.Linear):
    """A linear layer, with the parameters of another, of which each step of training sees a part only."""

    def __init__(self, layer: nn.Linear, rate: float) -> None:
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias, self.rate = layer.weight, layer.bias, rate

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs) to (batch, outputs)."""
        return F.linear(x, F.dropout(self.weight, self.rate, self.training), self.bias)


@dataclass(frozen=True)
class Distilled(Variant):
    """Another variant, which learns after its birth what a large dense teacher answers, too."""

    student: Dense | Expanded = Dense()
    at = None
    distilled = True

    @property
    def goes_on(self) -> bool:  # type: ignore[override]
        """Whether the student is the parent itself."""
        return self.student.goes_on

    def make(self, start: Start) -> nn.Sequential:
        """Return the student."""
        return self.student.make(start)


#: All variants by the kind that stands in results.
VARIANTS: dict[str, Variant] = {
    "dense": Dense(),
    "dense-x2": Doubled(),
    "restart": Expanded(factor=1),
    **{f"random{x}": Expanded(f) for f, x in ((2, ""), (3, "-x3"), (4, "-x4"), (8, "-x8"))},
    "gram": Expanded(split="gram"),
    "two-four": Expanded(split="2:4"),
    "shared": Expanded(split="shared"),
    **{f"shared{x}": Expanded(f, "shared") for f, x in ((3, "-x3"), (4, "-x4"))},
    **{f"columns{x}": Expanded(f, "shared", "columns") for f, x in ((2, ""), (3, "-x3"), (4, "-x4"))},
    **{
        f"columns-{by}{x}": Expanded(f, "shared", InputPruning(by))
        for by in ("activation", "gradient")
        for f, x in ((2, ""), (3, "-x3"), (4, "-x4"))
    },
    **{f"{kind}{x}": Tried(kind, f) for kind in TRIED for f, x in ((2, ""), (4, "-x4"))},
    **{f"ahead{x}": Ahead(f) for f, x in ((2, ""), (4, "-x4"))},
    "random-first": Expanded(layers=("0",)),
    "columns-first": Expanded(split="shared", prune="columns", layers=("0",)),
    **{f"random-at-{100 * at:.0f}": Expanded(at=at) for at in (0.0, 0.1, 0.25, 0.75, 0.9)},
    "overlap": Overlapping(),
    "overlap-x4": Overlapping(4),
    "scratch": FromScratch(),
    **{
        f"fewer-{by}{x}": FewerInputs(f, by)
        for f, x in ((2, ""), (3, "-x3"), (4, "-x4"))
        for by in ("variance", "random", "norm")
    },
    **{f"rewired-{100 * share:.0f}": Expanded(rewired=share) for share in (0.05, 0.1, 0.2, 0.3)},
    **{f"dropconnect-{100 * rate:.0f}": DropConnect(rate) for rate in (0.1, 0.25, 0.5)},
    **MOVING,
    **STARTS,
    "steady": Doubled(1, lr=3e-3),
    "steady-x2": Doubled(lr=3e-3),
    "distilled-dense": Distilled(),
    "distilled-random": Distilled(Expanded()),
    "distilled-columns": Distilled(Expanded(split="shared", prune="columns")),
}


def sizes(network: nn.Sequential) -> tuple[int, int, int]:
    """Return inputs, hidden neurons and outputs of a network with one hidden layer."""
    first, last = _linear(network)
    return first.in_features, first.out_features, last.out_features


def _with_gradients(start: Start) -> nn.Sequential:
    """Return a copy of the parent as one backward pass over some of the training data leaves it."""
    assert start.X is not None
    assert start.y is not None
    network = copy.deepcopy(start.parent)
    loss_of(network(start.X), start.y).backward()  # type: ignore[no-untyped-call]
    return network


def _linear(network: nn.Module) -> list[MaskedLinear]:
    """Return the linear layers; those of a dense network have no mask."""
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)]  # type: ignore[misc]


def _masked(weights: list[Tensor], biases: list[Tensor], masks: list[Tensor]) -> nn.Sequential:
    first, last = (
        MaskedLinear.from_arrays(w * m, b, m) for w, b, m in zip(weights, biases, masks, strict=True)
    )
    return nn.Sequential(first, nn.ReLU(), last)
