"""The settings of the paper's recipe (A.3.1): warm up a dense network, expand it, train on.

All defaults and all constraints stand here; `fpe.training.trials` runs a recipe.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fpe.errors import ArgumentError, raise_problems
from fpe.expansion.expand import expand
from fpe.expansion.init import reinitialize_
from fpe.expansion.pruning import Pruning, as_pruning
from fpe.expansion.splits import Split, as_split
from fpe.masked import count_nonzero
from fpe.rewiring.gradual import PruningSchedule, power_of
from fpe.rewiring.model_masks import open_masks_, shrink_, with_masks
from fpe.rewiring.policies import POLICIES, RewiringPolicy, as_policy
from fpe.rewiring.pruner import GradualPruner
from fpe.rewiring.rewirer import Rewirer
from fpe.training.loop import Cosine, default_batch_size
from fpe.training.losses import CLASSES, Objective


def _integer(value: Any, least: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)


def _number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)


def _sizes(value: Any) -> bool:
    sizes = value if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) else [value]
    return _integer(value, 0) or (len(sizes) > 0 and all(_integer(size, 1) for size in sizes))


#: When an expanded network whose masks are opened is pruned back; its rate; by what its weights shrink.
BACK = PruningSchedule(begin=0.0, end=0.85)
LATE_LR = 2e-2
SHRINK = 0.3

#: What tells whether a value is allowed, and what is allowed.
Constraint = tuple[Callable[[Any], bool], str]


def at_least(least: int, why: str = "") -> Constraint:
    """Return the constraint of an integer."""
    return lambda value: _integer(value, least), f"an integer of at least {least}{why}"


_POSITIVE, _COUNT = at_least(1), at_least(0)
#: Allowed values of the parameters of a recipe and of its users.
CONSTRAINTS: dict[str, Constraint] = {
    "hidden": (_sizes, "an integer of at least 1, or a list of such; 0 for no hidden layer"),
    "factor": _POSITIVE,
    "warmup_epochs": _COUNT,
    "epochs": _COUNT,
    "batch_size": _POSITIVE,
    "patience": _POSITIVE,
    "lr": (lambda value: _number(value) and value > 0, "a number above 0"),
    "l2": (lambda value: _number(value) and value >= 0, "a number of at least 0"),
    "decay": (lambda value: isinstance(value, bool | np.bool_), "True or False"),
    "trials": _POSITIVE,
    "budget": _POSITIVE,
    "gradual": (lambda value: isinstance(value, bool | np.bool_), "True or False"),
    "direct": (lambda value: isinstance(value, bool | np.bool_), "True or False"),
    "prefer_blocks": (lambda value: isinstance(value, bool | np.bool_), "True or False"),
    "label_smoothing": (lambda value: _number(value) and 0 <= value < 1, "a share from 0 to below 1"),
    "scale": (lambda value: value is None or value == "auto", "'auto' or None"),
    "validation_fraction": (lambda value: _number(value) and 0 < value < 1, "a share between 0 and 1"),
}
#: Parameters that may be None.
OPTIONAL = {
    "hidden", "factor", "warmup_epochs", "epochs", "batch_size", "patience", "lr", "decay", "budget",
}  # fmt: skip


def check_parameters(
    given: Mapping[str, Any], what: str, constraints: Mapping[str, Constraint] | None = None
) -> None:
    """Check parameters by `CONSTRAINTS`, and ``split``, ``prune``, ``rewire``; raise all problems at once.

    The caller's `constraints` come before these; then None is not allowed.
    """
    problems, own = [], constraints or {}
    for name, (allowed, text) in {**CONSTRAINTS, **own}.items():
        value = given.get(name)
        if name in given and not allowed(value) and not (value is None and name in OPTIONAL - own.keys()):
            problems.append(f"{name} is {value!r}; give {text}.")
    split, prune = given.get("split"), given.get("prune")
    for check in (
        lambda: split is None or as_split(split),
        lambda: prune is None or as_pruning(prune),
        lambda: _chosen_policy(given.get("rewire"), prune),
        lambda: power_of(given.get("score", "moment")),
    ):
        try:
            check()
        except ArgumentError as error:
            problems.append(str(error))
    raise_problems(list(dict.fromkeys(problems)), ArgumentError, what)


@dataclass(frozen=True)
class Recipe:
    """An expansion, and the training before and after it; `Recipe.choose` supplies defaults.

    Attributes
    ----------
    factor, split, prune
        As for `fpe.expand`; with factor 1 the dense network is trained for all epochs.
    warmup_epochs, epochs : int
        Passes over the data before and after the expansion.
    lr : float
        Adam's initial learning rate.
    decay : bool
        Whether it falls to 0 as half a cosine over all epochs.
    late_lr : float or None
        Adam's learning rate after the warm-up, which falls to 0 as half a cosine over the epochs that are
        left; the warm-up's rate is then constant. None for one rate over all epochs.
    batch_size : int or None
        Samples in a mini-batch; None for `default_batch_size`.
    l2 : float
        Weight of the penalty ``l2 / 2 · Σ w²`` over all parameters.
    policy : RewiringPolicy or None
        How masks change after the expansion; None for fixed masks.
    reinitialize : bool
        Whether the expanded network is reinitialized; see `fpe.reinitialize_`.
    gradual : PruningSchedule or bool
        Whether, and when, weights are pruned gradually after the warm-up: an expanded network whose masks
        are opened, or with factor 1 the network itself.
    score, budget
        As for `fpe.GradualPruner`; by default the budget is the count of the dense network.
    shrink : float
        By what the weights are multiplied after the expansion; see `fpe.open_masks_`.
    objective : Objective
        What is minimized.
    """

    factor: int = 2
    split: str | Split = "random"
    prune: str | Pruning = "magnitude"
    warmup_epochs: int = 25
    epochs: int = 25
    lr: float = 1e-3
    decay: bool = False
    batch_size: int | None = None
    l2: float = 0.0
    policy: RewiringPolicy | None = None
    reinitialize: bool = False
    gradual: PruningSchedule | bool = False
    score: str | float = "moment"
    budget: int | None = None
    objective: Objective = CLASSES
    late_lr: float | None = None
    shrink: float = 1.0

    @classmethod
    def choose(
        cls,
        *,
        factor: int | None = None,
        split: str | Split | None = None,
        prune: str | Pruning | None = None,
        rewire: bool | str | RewiringPolicy = False,
        warmup_epochs: int | None = None,
        epochs: int | None = None,
        lr: float | None = None,
        decay: bool | None = None,
        batch_size: int | None = None,
        l2: float = 0.0,
        budget: int | None = None,
        gradual: bool = False,
        score: str | float = "moment",
        default_epochs: tuple[int, int] = (25, 25),
    ) -> Recipe:
        """Return a recipe; whatever is None gets its default.

        With fixed masks the defaults are the paper's: factor 2, a random split, magnitude pruning, a constant
        rate of 1e-3. With dynamic masks they come from this project's experiments (docs/results/rewiring.md):
        expand by 4 before any training, reinitialize, and train for all epochs at a rate that falls from
        1e-2. With input pruning the factor is 3 and the split shared in 8 groups of neurons. After a warm-up
        at 1e-2, the weights of the expanded network are multiplied by 0.3, and the rate falls from 2e-2 to 0
        (docs/how-to/trained.md): at a smaller one grown weights stay too small beside those of the
        trained network.

        With a budget a network is pruned from the beginning, at a rate that falls from 1e-2 to 0. With
        ``gradual=True`` a network that was trained at 1e-2 is expanded by 4, its weights are multiplied by
        0.3, its masks are opened, and weights are pruned until 85 % of the epochs that are left, at a rate
        that falls from 2e-2 to 0. Whether that is better than training the network on as it is, and which
        factor and rate are the best, `fpe.training.late.decide` says.

        Parameters
        ----------
        factor, split, prune, warmup_epochs, epochs, lr, decay, batch_size, l2
            As the attributes of `Recipe`.
        rewire : bool, str or RewiringPolicy, default False
            False for fixed masks; a policy or its name for dynamic ones. True is ``"columns"`` with input
            pruning, and ``"accumulated"`` otherwise.
        budget, gradual, score
            Gradual pruning to this count, or to that of the dense network; see `fpe.GradualPruner`.
        default_epochs : (int, int), default (25, 25)
            Epochs before and after the expansion if they are None.

        Raises
        ------
        ArgumentError
            For values that are not allowed, all at once.
        """
        check_parameters({k: v for k, v in locals().items() if k != "cls"}, "the recipe")
        policy = _chosen_policy(rewire, prune)
        if budget is not None:
            return cls(
                factor=_or(factor, 1), split=_or(split, "random"), prune=_or(prune, "magnitude"),
                warmup_epochs=_or(warmup_epochs, 0), epochs=_or(epochs, sum(default_epochs)),
                lr=_or(lr, 1e-2), decay=_or(decay, True), batch_size=batch_size, l2=l2,
                gradual=True, score=score, budget=budget,
            )  # fmt: skip
        if gradual:
            return cls(
                factor=_or(factor, 4), split=_or(split, "random"), prune=_or(prune, "magnitude"),
                warmup_epochs=_or(warmup_epochs, default_epochs[0]), epochs=_or(epochs, default_epochs[1]),
                lr=_or(lr, 1e-2), decay=_or(decay, False), batch_size=batch_size, l2=l2,
                gradual=BACK, score=score, late_lr=_or(lr, LATE_LR) if decay is None else None, shrink=SHRINK,
            )  # fmt: skip
        dynamic = policy is not None
        if prune is None:
            prune = "magnitude" if policy is None else "columns" if policy.unit == "column" else "balanced"
        shared = as_pruning(prune).needs_shared
        warmup = _or(warmup_epochs, 0 if dynamic else default_epochs[0])
        fresh = dynamic and warmup == 0
        return cls(
            factor=_or(factor, (3 if shared else 4) if dynamic else 2),
            split=_or(split, ("shared-8" if dynamic else "shared") if shared else "random"),
            prune=prune,
            warmup_epochs=warmup,
            epochs=_or(epochs, sum(default_epochs) if fresh else default_epochs[1]),
            lr=_or(lr, 1e-2 if dynamic else 1e-3),
            decay=_or(decay, fresh),
            batch_size=batch_size,
            l2=l2,
            policy=policy,
            reinitialize=fresh,
            late_lr=_or(lr, LATE_LR) if dynamic and not fresh and decay is None else None,
            shrink=SHRINK if dynamic and not fresh else 1.0,
        )

    @classmethod
    def of(
        cls, given: Mapping[str, Any], what: str = "the recipe", default_epochs: tuple[int, int] = (25, 25)
    ) -> Recipe:
        """Check parameters by `check_parameters`, and `choose` by those that it has."""
        check_parameters(given, what)
        names = inspect.signature(cls.choose).parameters
        return cls.choose(**{k: v for k, v in given.items() if k in names}, default_epochs=default_epochs)

    @property
    def total_epochs(self) -> int:
        """Epochs before and after the expansion together."""
        return self.warmup_epochs + self.epochs

    @property
    def expands(self) -> bool:
        """Whether there is another network after the warm-up than before."""
        return self.factor > 1 or bool(self.gradual)

    def expand(self, dense: nn.Module, seed: int) -> nn.Module:
        """Return the expanded network; `dense` is not changed."""
        wide = dense
        if self.factor > 1:
            wide = expand(dense, self.factor, split=self.split, prune=self.prune, seed=seed)
        if self.reinitialize and self.factor > 1:
            wide = reinitialize_(wide, seed=seed)
        if self.gradual:
            return open_masks_(with_masks(wide), shrink=self.shrink)
        return shrink_(wide, self.shrink)

    def rewirer(
        self, network: nn.Module, optimizer: torch.optim.Adam, samples: int, seed: int, budget: int
    ) -> Rewirer | GradualPruner | None:
        """Return what changes the masks of an expanded network; None if nothing does.

        It depends on the number of samples, and on the budget where the recipe has none.
        """
        steps = self.epochs * -(-samples // (self.batch_size or default_batch_size(samples)))
        if self.gradual:
            budget = self.budget or budget
            if steps == 0 or count_nonzero(network) <= budget:
                return None
            schedule = self.gradual if isinstance(self.gradual, PruningSchedule) else None
            return GradualPruner(
                network, optimizer, budget=budget, steps=steps, score=self.score, schedule=schedule
            )
        if self.policy is None or self.factor == 1 or steps == 0:
            return None
        return Rewirer(network, optimizer, self.policy, steps=steps, seed=seed)

    def cosine(self, epoch: int) -> Cosine | None:
        """Return how the learning rate falls after `epoch` epochs; None if it is constant."""
        if self.late_lr is not None:
            behind = epoch - self.warmup_epochs
            return Cosine(self.epochs, behind) if behind >= 0 and self.epochs else None
        return Cosine(self.total_epochs, epoch) if self.decay and self.total_epochs else None


def _chosen_policy(rewire: Any, prune: str | Pruning | None) -> RewiringPolicy | None:
    """Resolve `rewire` to a policy, given the pruning method."""
    if rewire is None or rewire is False:
        return None
    named = None if rewire is True else as_policy(rewire)
    shared = prune is not None and as_pruning(prune).needs_shared
    policy = named or POLICIES["columns" if shared else "accumulated"]
    if policy.unit == "column" and prune is not None and not shared:
        raise ArgumentError(
            f"rewire is {rewire!r}, which exchanges whole inputs, and prune is {prune!r}; give "
            "split='shared' and prune='columns', or another policy."
        )
    return policy


def _or(given: Any, default: Any) -> Any:
    return default if given is None else given
