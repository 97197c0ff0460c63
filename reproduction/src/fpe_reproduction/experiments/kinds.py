"""Kinds of networks that the experiments on real data compare; `networks` declares each with its label.

All have at most as many non-zeros as the dense parent that they are made from, except `Doubled`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fpe.expansion.expand import expand
from fpe.expansion.init import reinitialize_
from fpe.expansion.pruning import InputPruning, MagnitudePruning, Pruning
from fpe.expansion.splits import Split
from fpe.masked import MaskedLinear
from fpe.models import mlp
from fpe.rewiring.policies import RewiringPolicy
from fpe.rewiring.rewirer import Rewirer
from fpe.rewiring.schedule import RewiringSchedule
from fpe.training.losses import loss_of
from fpe_reproduction.experiments.splits import SPLITS, Parent, fixed_split, train_steps_

#: The ridge of `Expanded.outgoing` "corrected", as a share of the mean square of an activation.
RIDGE = 1e-3
#: The policy and the schedule that were chosen (docs/results/rewiring.md).
ACCUMULATED, CHOSEN = RewiringPolicy(grow="accumulated"), RewiringSchedule(every=100, until=0.9)


@dataclass(frozen=True)
class Kind:
    """A kind of network: when in the training it is made, from what, and how it is trained."""

    label: str  # in tables and figures
    factor: int = 2  # its hidden neurons, in multiples of the dense parent's
    at: float | None = 0.0  # share of the whole training before it is made; None for the end of the warm-up
    continues: bool = False  # whether it is the parent itself, with its optimizer
    needs_warm: bool = False  # whether it needs the parent after its warm-up
    lr: float | None = None  # a constant learning rate of its own; None for that of all others
    distilled: bool = False  # whether it also learns the answers of a large dense teacher
    dropped: float = 0.0  # share of the first weights that each step of its training drops (DropConnect)
    rewired: float = 0.0  # share of the weights that move at random after each epoch, as in the paper (A.7)
    policy: RewiringPolicy | None = None  # as for `fpe.Rewirer`; None keeps the masks as they are
    schedule: RewiringSchedule = CHOSEN

    def possible(self, inputs: int, outputs: int) -> bool:
        """Tell whether such a network fits into the parent's count."""
        return True

    def make(self, parent: Parent) -> nn.Sequential:
        """Return the network."""
        raise NotImplementedError

    def rewirer(
        self, network: nn.Module, optimizer: torch.optim.Adam, steps: int, seed: int
    ) -> Rewirer | None:
        """Return what changes its masks in this number of steps, if they are dynamic."""
        if self.policy is None:
            return None
        return Rewirer(network, optimizer, self.policy, steps=steps, schedule=self.schedule, seed=seed)


@dataclass(frozen=True)
class Doubled(Kind):
    """A dense network of `factor` times the neurons, and parameters, trained from the start."""

    def make(self, parent: Parent) -> nn.Sequential:
        """Return the network."""
        return untrained(parent, self.factor)


@dataclass(frozen=True)
class Expanded(Kind):
    """The parent, expanded by `fpe.expand`."""

    at: float | None = 0.5
    split: str | Split = "random"  # as for `fpe.expand`; a split may also be one of `SPLITS`
    prune: str | Pruning = "magnitude"
    layers: tuple[str, ...] | None = None
    # Whether it gets the steps that learning a split takes before it is trained with the others.
    ahead: bool = False
    # The weights of the consumer: "copied", "divided" by the factor, or "corrected" by least squares to
    # the parent's outputs.
    outgoing: str = "copied"

    def make(self, parent: Parent) -> nn.Sequential:
        """Return the network."""
        how: dict[str, Any] = {"layers": self.layers, "prune": self.prune, "seed": parent.seed}
        ranked_by = self.prune.by if isinstance(self.prune, InputPruning) else None
        if ranked_by == "activation":
            how["example_inputs"] = parent.some_X
        model = _with_gradients(parent) if ranked_by == "gradient" else parent.model
        split = self.split
        if isinstance(split, str) and split in SPLITS:
            split = fixed_split(split, parent, self.factor)
        wide = expand(model, self.factor, split=split, **how)
        assert isinstance(wide, nn.Sequential)
        if self.outgoing == "divided":
            with torch.no_grad():
                wide[-1].weight.div_(self.factor)  # type: ignore[operator]
        elif self.outgoing == "corrected":
            correct_(wide, parent.model, parent.some_X)
        return train_steps_(wide, parent, parent.seed) if self.ahead else wide  # type: ignore[return-value]


@dataclass(frozen=True)
class Overlapping(Kind):
    """Children that each draw their own inputs, so that siblings may share some."""

    at: float | None = 0.5

    def make(self, parent: Parent) -> nn.Sequential:
        """Return the network."""
        inputs, hidden, outputs = dimensions(parent.model)
        rng = np.random.default_rng(parent.seed)
        mask = torch.zeros(hidden * self.factor, inputs)
        for row in range(len(mask)):  # siblings have the parent's count in all, to the last input
            own = inputs // self.factor + (row % self.factor < inputs % self.factor)
            mask[row, torch.from_numpy(rng.permutation(inputs)[:own])] = 1
        rows = torch.arange(hidden).repeat_interleave(self.factor)
        wide = untrained(parent, self.factor)
        (first, last), (narrow, head) = linear_layers(wide), linear_layers(parent.model)
        weights, masks = [first.weight.data, last.weight.data], [mask, torch.ones_like(last.weight)]
        weights[0].copy_(narrow.weight.data[rows] * mask)
        weights[1].copy_(head.weight.data[:, rows])
        first.bias.data, last.bias.data = narrow.bias.data[rows], head.bias.data.clone()
        MagnitudePruning().prune_(weights, masks, (self.factor - 1) * hidden * (outputs + 1), self.factor)
        return masked(wide, masks)


@dataclass(frozen=True)
class FromScratch(Kind):
    """The shape and masks of an expansion of the warm parent, with random weights, trained from the start.

    The range of a weight is PyTorch's for the number of inputs that its neuron has.
    """

    needs_warm: bool = True

    def make(self, parent: Parent) -> nn.Sequential:
        """Return the network."""
        assert parent.warm is not None
        masks = [
            layer.fpe_mask for layer in linear_layers(expand(parent.warm, self.factor, seed=parent.seed))
        ]
        network = untrained(parent, self.factor)
        for layer, mask in zip(linear_layers(network), masks, strict=True):
            layer.weight.data *= (layer.in_features / mask.sum(dim=1, keepdim=True).clamp_min(1)).sqrt()
        return masked(network, masks)


@dataclass(frozen=True)
class FewerInputs(Kind):
    """The plain rival: a dense network of `factor` times the neurons and fewer inputs, at the same count."""

    # Which inputs it has: those of the largest "variance" in the training data, "random" ones, or those
    # of the largest "norm" of the first weight of the parent after its warm-up.
    by: str = "variance"

    def possible(self, inputs: int, outputs: int) -> bool:
        """Tell whether the count allows one input at least; the parent's width does not matter."""
        return self.inputs_for(inputs, 1, outputs) > 0

    def inputs_for(self, inputs: int, hidden: int, outputs: int) -> int:
        """Return the number of inputs at the count of a dense network; 0 if it allows none."""
        budget, wide = hidden * (inputs + 1 + outputs), self.factor * hidden
        return max(0, (budget - wide * (1 + outputs)) // wide)

    def make(self, parent: Parent) -> nn.Sequential:
        """Return the network."""
        inputs, hidden, outputs = dimensions(parent.model)
        if self.by == "random":
            score = torch.from_numpy(np.random.default_rng(parent.seed).random(inputs))
        elif self.by == "norm":
            assert parent.warm is not None
            score = linear_layers(parent.warm)[0].weight.detach().norm(dim=0)
        else:
            score = parent.X.var(dim=0)
        count = self.inputs_for(inputs, hidden, outputs)
        chosen = score.argsort(descending=True, stable=True)[:count]
        network = untrained(parent, self.factor, count)
        first, last = linear_layers(network)
        weight, mask = torch.zeros(2, first.out_features, inputs)
        weight[:, chosen], mask[:, chosen] = first.weight.data, 1
        first.weight.data = weight
        return masked(network, [mask, torch.ones_like(last.weight)])


@dataclass(frozen=True)
class Dynamic(Expanded):
    """An expansion whose masks change while it is trained."""

    factor: int = 4
    at: float | None = 0.0
    prune: str | Pruning = "balanced"
    # "expanded": an expansion of the parent. "uniform": random masks, all layers of one density. "erk":
    # random masks of densities in proportion to (inputs + outputs) / (inputs × outputs) (Evci et al.,
    # 2020).
    begin: str = "expanded"
    reinitialized: bool = True  # whether an expansion gets fresh weights; see `fpe.reinitialize_`
    policy: RewiringPolicy | None = ACCUMULATED

    def possible(self, inputs: int, outputs: int) -> bool:
        """Tell whether pruning whole inputs can save what the copies cost; single weights always can."""
        return self.prune != "columns" or (self.factor - 1) * (outputs + 1) <= inputs - self.factor

    def make(self, parent: Parent) -> nn.Sequential:
        """Return the network."""
        network = super().make(parent) if self.begin == "expanded" else self._random(parent)
        return reinitialize_(network, seed=parent.seed) if self.reinitialized else network  # type: ignore[return-value]

    def _random(self, parent: Parent) -> nn.Sequential:
        inputs, hidden, outputs = dimensions(parent.model)
        generator = torch.Generator().manual_seed(parent.seed)
        network = untrained(parent, self.factor)
        weights = [layer.weight for layer in linear_layers(network)]
        budget = hidden * (inputs + 1 + outputs) - hidden * self.factor
        parts = [sum(w.shape) if self.begin == "erk" else w.numel() for w in weights]
        second = min(round(budget * float(parts[1]) / float(sum(parts))), weights[1].numel())
        masks = []
        for weight, count in zip(weights, (budget - second, second), strict=True):
            mask = torch.zeros(weight.numel())
            mask[torch.randperm(len(mask), generator=generator)[:count]] = 1
            masks.append(mask.view(weight.shape))
        return masked(network, masks)


@torch.no_grad()
def correct_(wide: nn.Sequential, parent: nn.Sequential, X: Tensor) -> nn.Sequential:
    """Fit the free outgoing weights to the parent's outputs by ridge regression, each output on its own."""
    last = wide[-1]
    assert isinstance(last, MaskedLinear)
    activations, outputs = wide[:-1](X), parent(X) - last.bias
    products, wanted = activations.t() @ activations, activations.t() @ outputs
    ridge = RIDGE * float(products.diagonal().mean())
    for row in range(len(last.weight)):
        inputs = last.fpe_mask[row].nonzero().flatten()
        own = products[inputs][:, inputs] + ridge * torch.eye(len(inputs))
        last.weight[row, inputs] = torch.linalg.solve(own, wanted[inputs, row])
    return wide


def dimensions(network: nn.Sequential) -> tuple[int, int, int]:
    """Return inputs, hidden neurons and outputs of a network with one hidden layer."""
    first, last = linear_layers(network)
    return first.in_features, first.out_features, last.out_features


def linear_layers(network: nn.Module) -> list[MaskedLinear]:
    """Return the linear layers; those of a dense network have no mask."""
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)]  # type: ignore[misc]


def _with_gradients(parent: Parent) -> nn.Sequential:
    network = copy.deepcopy(parent.model)
    loss_of(network(parent.some_X), parent.some_y).backward()  # type: ignore[no-untyped-call]
    return network


def untrained(parent: Parent, factor: int, inputs: int | None = None) -> nn.Sequential:
    """Return a dense network of `factor` times the parent's neurons, perhaps of other inputs."""
    own, hidden, outputs = dimensions(parent.model)
    return mlp(inputs or own, factor * hidden, outputs, seed=parent.seed)


def masked(network: nn.Sequential, masks: Sequence[Tensor]) -> nn.Sequential:
    """Return a network with masks, around the tensors of a dense one."""
    first, last = (
        MaskedLinear.from_arrays(layer.weight.data * mask, layer.bias.data, mask)
        for layer, mask in zip(linear_layers(network), masks, strict=True)
    )
    return nn.Sequential(first, nn.ReLU(), last)
