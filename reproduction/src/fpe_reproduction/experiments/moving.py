"""Networks whose masks move: where they begin, and what moves them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fpe.expansion.expand import expand
from fpe.expansion.init import reinitialize_
from fpe.expansion.pruning import Pruning
from fpe.expansion.splits import SharedSplit, Split
from fpe.masked import MaskedLinear
from fpe.models import mlp
from fpe.rewiring.policies import RewiringPolicy
from fpe.rewiring.rewirer import Rewirer
from fpe.rewiring.schedule import RewiringSchedule
from fpe_reproduction.experiments.variant import Start, Variant

#: The policy and the schedule that were chosen (docs/results/rewiring.md), and others that they were
#: compared with.
FREE, CHOSEN = RewiringPolicy(grow="accumulated"), RewiringSchedule(every=100, until=0.9)
COLUMNS = RewiringPolicy(grow="accumulated", unit="column")
MOVEMENT = RewiringPolicy(grow="accumulated", drop="movement", unit="column")
RIGL = RewiringSchedule(every=50, until=0.75)
#: Of the mean square of an activation, what is added where outgoing weights are corrected.
RIDGE = 1e-3


@dataclass(frozen=True)
class Moving(Variant):
    """A network of `factor` times the parent's neurons at the parent's count.

    Attributes
    ----------
    factor : int
        Children of each neuron.
    begin : str
        Where masks and weights come from. "expanded": an expansion of the parent. "uniform": drawn at random,
        all layers of one density. "erk": drawn at random, densities in proportion to (inputs + outputs) /
        (inputs × outputs), as for RigL (Evci et al., 2020).
    at : float
        Share of the whole training that lies before the expansion.
    split, prune
        Of an expansion, as for `fpe.expand`.
    redrawn : bool
        Whether the weights of an expansion are drawn anew; see `fpe.reinitialize_`.
    copies : str
        What becomes of the outgoing weights of an expansion: "copied", "divided" by the factor, or
        "corrected", so that on some data the outputs are as near to the parent's as they can be.
    policy : Policy or None
        What moves the masks; None for none.
    schedule : Schedule
        When.
    """

    factor: int = 4
    begin: str = "expanded"
    at: float = 0.0
    split: str | Split = "random"
    prune: str | Pruning = "balanced"
    redrawn: bool = True
    copies: str = "copied"
    policy: RewiringPolicy | None = FREE
    schedule: RewiringSchedule = CHOSEN

    def possible(self, inputs: int, outputs: int) -> bool:
        """Tell whether columns can pay for the copies; single weights always can."""
        return self.prune != "columns" or (self.factor - 1) * (outputs + 1) <= inputs - self.factor

    def make(self, start: Start) -> nn.Sequential:
        """Return the network; corrected on some of the training data."""
        parent, seed = start.parent, start.seed
        if self.begin != "expanded":
            return self._drawn(parent, seed)
        wide = expand(parent, self.factor, self.split, self.prune, seed=seed)
        assert isinstance(wide, nn.Sequential)
        if self.copies == "divided":
            with torch.no_grad():
                wide[-1].weight.div_(self.factor)  # type: ignore[operator]
        elif self.copies == "corrected":
            assert start.X is not None
            correct(wide, parent, start.X)
        return reinitialize_(wide, seed) if self.redrawn else wide  # type: ignore[return-value]

    def rewirer(
        self, network: nn.Sequential, optimizer: torch.optim.Adam, steps: int, seed: int
    ) -> Rewirer | None:
        """Return what moves its masks in so many steps."""
        if self.policy is None:
            return None
        return Rewirer(network, optimizer, self.policy, steps=steps, schedule=self.schedule, seed=seed)

    def _drawn(self, parent: nn.Sequential, seed: int) -> nn.Sequential:
        first, last = (layer for layer in parent if isinstance(layer, nn.Linear))
        inputs, hidden, outputs = first.in_features, first.out_features, last.out_features
        wide = mlp(inputs, hidden * self.factor, outputs, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        layers = [layer for layer in wide if isinstance(layer, nn.Linear)]
        budget = hidden * (inputs + 1 + outputs) - hidden * self.factor
        masks = []
        for layer, count in zip(layers, self._counts(layers, budget), strict=True):
            mask = torch.zeros(layer.weight.numel())
            mask[torch.randperm(len(mask), generator=generator)[:count]] = 1
            masks.append(mask.view(layer.weight.shape))
        made = [_masked(layer, mask) for layer, mask in zip(layers, masks, strict=True)]
        return reinitialize_(nn.Sequential(made[0], nn.ReLU(), made[1]), seed)  # type: ignore[return-value]

    def _counts(self, layers: list[nn.Linear], budget: int) -> list[int]:
        """Share the weights that the budget pays for out over the layers."""
        sizes = [layer.weight.numel() for layer in layers]
        if self.begin == "erk":
            parts = [float(sum(layer.weight.shape)) for layer in layers]
        else:
            parts = [float(size) for size in sizes]
        second = min(round(budget * parts[1] / sum(parts)), sizes[1])
        return [budget - second, second]


@torch.no_grad()
def correct(wide: nn.Sequential, parent: nn.Sequential, X: Tensor) -> None:
    """Set the free outgoing weights, in place, to those of least squares to the parent's outputs.

    Each output is a regression of its own on the neurons that its mask lets it read, with as much ridge as
    keeps it solvable.
    """
    last = wide[-1]
    assert isinstance(last, MaskedLinear)
    activations, outputs = wide[:-1](X), parent(X) - last.bias
    products, wanted = activations.t() @ activations, activations.t() @ outputs
    ridge = RIDGE * float(products.diagonal().mean())
    for row in range(len(last.weight)):
        read = last.fpe_mask[row].nonzero().flatten()
        own = products[read][:, read] + ridge * torch.eye(len(read))
        last.weight[row, read] = torch.linalg.solve(own, wanted[read, row])


def _masked(layer: nn.Linear, mask: Tensor) -> MaskedLinear:
    weight, bias = layer.weight.detach() * mask, layer.bias.detach()
    return MaskedLinear.from_arrays(weight, bias, mask)


def _columns(factor: int, groups: int = 1, policy: RewiringPolicy | None = COLUMNS) -> Moving:
    """Return a network of dense blocks, `groups` times `factor` of them, whose columns move."""
    return Moving(factor, split=SharedSplit(groups), prune="columns", policy=policy)


#: Networks with moving masks by the kind that stands in results.
MOVING: dict[str, Moving] = {
    "moved": Moving(),
    "moved-x2": Moving(2),
    "moved-x3": Moving(3),
    "moved-x6": Moving(6),
    "moved-x8": Moving(8),
    "moved-columns": _columns(3),
    "moved-columns-x2": _columns(2),
    "moved-columns-x4": _columns(4),
    "moved-columns-x6": _columns(6),
    "moved-columns-movement": _columns(3, policy=MOVEMENT),
    "moved-blocks": _columns(3, 8, MOVEMENT),
    "moved-blocks-x6": _columns(6, 8, MOVEMENT),
    "moved-blocks-magnitude": _columns(3, 8),
    "moved-blocks-4": _columns(3, 4, MOVEMENT),
    "still": Moving(policy=None),
    "still-columns": _columns(3, policy=None),
    "rigl": Moving(begin="uniform", policy=RewiringPolicy(), schedule=RIGL),
    "rigl-erk": Moving(begin="erk", policy=RewiringPolicy(), schedule=RIGL),
    "moved-uniform": Moving(begin="uniform"),
    "moved-set": Moving(policy=RewiringPolicy(grow="random")),
    "moved-gradient": Moving(policy=RewiringPolicy()),
    "moved-momentum": Moving(policy=RewiringPolicy(grow="momentum")),
    "moved-movement": Moving(policy=RewiringPolicy(grow="accumulated", drop="movement")),
    "moved-network": Moving(policy=RewiringPolicy(grow="accumulated", scope="network")),
    "moved-kept": Moving(policy=RewiringPolicy(grow="accumulated", partition="kept")),
    "moved-every-25": Moving(schedule=RewiringSchedule(every=25, until=0.9)),
    "moved-every-50": Moving(schedule=RewiringSchedule(every=50, until=0.9)),
    "moved-every-200": Moving(schedule=RewiringSchedule(every=200, until=0.9)),
    "moved-share-10": Moving(schedule=RewiringSchedule(every=100, share=0.1, until=0.9)),
    "moved-share-50": Moving(schedule=RewiringSchedule(every=100, share=0.5, until=0.9)),
    "moved-until-75": Moving(schedule=RewiringSchedule(every=100, until=0.75)),
    "moved-copied": Moving(redrawn=False),
    "moved-divided": Moving(redrawn=False, copies="divided"),
    "moved-joint": Moving(prune="magnitude"),
    "moved-at-10": Moving(at=0.1, redrawn=False),
    "moved-at-25": Moving(at=0.25, redrawn=False),
    "moved-at-50": Moving(at=0.5, redrawn=False),
    "moved-at-50-joint": Moving(at=0.5, redrawn=False, prune="magnitude"),
}

#: The paper's expansion, masks fixed, with different starts.
STARTS: dict[str, Moving] = {
    f"start-{copies}": Moving(
        2, at=0.5, prune="magnitude", redrawn=False, copies=copies, policy=None, schedule=CHOSEN
    )
    for copies in ("copied", "divided", "corrected")
}
