"""Which child gets which input: each split assigns the inputs of a layer's neurons to their children.

``assign(weight, factor, rng)`` returns integers of shape (neurons, inputs): for each parent and each input
the child ``0 … factor − 1`` that keeps the weight. In a weight of shape (neurons, inputs, depth) several
entries of an input stay together. Children therefore never overlap, and together they are the parent (section
2.3).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpe.errors import ArgumentError, did_you_mean


class Split:
    """The base of all splits; a user's own may derive from it, or have `shared`, `problem` and `assign`."""

    shared: bool = False  # whether all neurons of a layer have one partition: `factor` dense blocks
    needs_inputs: bool = False  # whether `on` is called with a layer's inputs before `assign`

    def problem(self, inputs: int, factor: int) -> str | None:
        """Say, in a clause, why a layer of that many inputs cannot be split; None if it can."""
        return None

    def num_groups(self, neurons: int) -> int:
        """Return how many groups of adjacent neurons have a partition each, if it is shared."""
        return 1

    def on(self, inputs: Tensor) -> Split:
        """Return the split for a layer with these inputs, (samples, inputs)."""
        return self

    def assign(self, weight: Tensor, factor: int, rng: np.random.Generator) -> Tensor:
        """Return the child of each weight, integers of shape (neurons, inputs)."""
        raise NotImplementedError


class _OwnSplit(Split):
    """A user's object that has no more than ``shared``, ``problem``, ``assign`` and, for data, ``on``."""

    def __init__(self, own: Any) -> None:
        self.own, self.shared, self.needs_inputs = own, bool(own.shared), hasattr(own, "on")
        vars(self).update(problem=own.problem, assign=own.assign)

    def __repr__(self) -> str:
        return repr(self.own)

    def on(self, inputs: Tensor) -> Split:
        return as_split(self.own.on(inputs))


def child_dtype(factor: int) -> Any:
    """Return the smallest common type for the numbers of that many children."""
    return np.uint8 if factor <= 256 else np.int32


def balanced(neurons: int, inputs: int, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Assign the inputs of each neuron evenly, by a draw of its own; all partitions are equally likely.

    Every input draws a child; then inputs picked at random move from children that have too many to those
    that have too few. For large layers this is several times as fast as a permutation of each row.
    """
    child: np.ndarray = rng.integers(0, factor, (neurons, inputs), dtype=child_dtype(factor))
    wanted = np.full(factor, inputs // factor)
    wanted[: inputs % factor] += 1
    excess = np.stack([np.count_nonzero(child == c, axis=1) for c in range(factor - 1)], axis=1)
    excess = np.column_stack([excess, inputs - excess.sum(axis=1)]) - wanted
    uneven = np.flatnonzero(excess.any(axis=1))
    while uneven.size:
        picked = rng.integers(0, inputs, uneven.size)
        crowded = excess[uneven, child[uneven, picked]] > 0
        row, column = uneven[crowded], picked[crowded]
        smallest = excess[row].argmin(axis=1)
        excess[row, child[row, column]] -= 1
        excess[row, smallest] += 1
        child[row, column] = smallest
        uneven = uneven[excess[uneven].any(axis=1)]
    return child


@dataclass(frozen=True)
class RandomSplit(Split):
    """Each neuron draws its own balanced partition of its inputs (section 2.3)."""

    def assign(self, weight: Tensor, factor: int, rng: np.random.Generator) -> Tensor:
        """Return a balanced random child for each weight, shape (neurons, inputs)."""
        return torch.from_numpy(balanced(weight.shape[0], weight.shape[1], factor, rng))


@dataclass(frozen=True)
class SharedSplit(Split):
    """One balanced random partition for all neurons of a layer, or of a group, which is then dense blocks.

    Parameters
    ----------
    groups : int, default 1
        How many groups of adjacent neurons, all of one size, draw a partition each: the layer is then
        ``groups * factor`` blocks. If it does not divide the number of neurons, the largest smaller divisor
        is taken, which the plan says.

    Examples
    --------
    >>> import fpe
    >>> network = fpe.mlp(384, 16, 77)
    >>> wide = fpe.expand(network, factor=2, split=fpe.SharedSplit(groups=4), prune="columns")
    >>> print(fpe.pack(wide).fpe_packing.rows[0].why)
    8 blocks, all of it free
    """

    groups: int = 1

    shared = True

    def __post_init__(self) -> None:
        if isinstance(self.groups, bool) or not isinstance(self.groups, int) or self.groups < 1:
            raise ArgumentError(f"SharedSplit: groups is {self.groups!r}; give an integer of at least 1.")

    def __repr__(self) -> str:
        return "SharedSplit()" if self.groups == 1 else f"SharedSplit(groups={self.groups})"

    def num_groups(self, neurons: int) -> int:
        """Return the largest number of groups, at most `groups`, that divides the neurons."""
        return next(g for g in range(min(self.groups, neurons), 0, -1) if neurons % g == 0)

    def assign(self, weight: Tensor, factor: int, rng: np.random.Generator) -> Tensor:
        """Return a row of balanced random children for each group, repeated to shape (neurons, inputs)."""
        neurons, inputs = weight.shape[:2]
        groups = self.num_groups(neurons)
        rows = torch.from_numpy(balanced(groups, inputs, factor, rng))
        return rows.expand(neurons, -1) if groups == 1 else rows.repeat_interleave(neurons // groups, dim=0)


@dataclass(frozen=True)
class LabelSplit(Split):
    """Inputs with one label stay together: the clauses of section 2.3.

    Labels are assigned in random order, each to the child with the fewest inputs so far.

    Parameters
    ----------
    labels : sequence of int
        One integer per input of the layer.
    shared : bool, default False
        One draw for all neurons of the layer, instead of one for each neuron.

    Examples
    --------
    >>> import torch, fpe
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> wide = fpe.expand(model, factor=2, split=fpe.LabelSplit([0, 0, 1, 1, 2, 2, 3, 3]))
    """

    labels: Sequence[int] | np.ndarray | Tensor
    shared: bool = False

    def __post_init__(self) -> None:
        array = np.asarray(self.labels)
        if array.ndim != 1 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
            raise ArgumentError(
                f"LabelSplit: labels have shape {array.shape} and type {array.dtype}; "
                "give a flat sequence of integers, one for each input of the layer."
            )
        object.__setattr__(self, "labels", tuple(array.tolist()))

    def __repr__(self) -> str:
        shared = ", shared=True" if self.shared else ""
        return f"LabelSplit({len(set(self.labels))} labels of {len(self.labels)} inputs{shared})"

    def problem(self, inputs: int, factor: int) -> str | None:
        """Say that the labels are not one for each input, or fewer than children."""
        if len(self.labels) != inputs:
            given = f"LabelSplit has {len(self.labels)} labels"
            return f"{given}, but the layer has {inputs} inputs; give one for each"
        if (different := len(set(self.labels))) < factor:
            return (
                f"LabelSplit has {different} different labels, too few for {factor} children; "
                f"give at least {factor}, or a factor of at most {different}"
            )
        return None

    def assign(self, weight: Tensor, factor: int, rng: np.random.Generator) -> Tensor:
        """Return the child of each input's label, shape (neurons, inputs)."""
        _, label_of = np.unique(self.labels, return_inverse=True)
        sizes, draws = np.bincount(label_of), 1 if self.shared else len(weight)
        order = rng.permuted(np.broadcast_to(np.arange(len(sizes)), (draws, len(sizes))), axis=1)
        child = np.empty(order.shape, dtype=child_dtype(factor))
        load, every = np.zeros((draws, factor)), np.arange(draws)
        for label in order.T:
            smallest = (load + rng.random(load.shape) / 2).argmin(axis=1)  # below one input: breaks ties
            child[every, label] = smallest
            load[every, smallest] += sizes[label]
        return torch.from_numpy(child[:, label_of]).expand(weight.shape[:2])


@dataclass(frozen=True)
class GramSplit(Split):
    """The paper's feature-based split (section 3.3): clusters of the Gram matrix are the clauses.

    The rows of ``G = W1ᵀ W1`` of a trained model are clustered by k-means; inputs of one cluster stay
    together, as in `LabelSplit`. With fewer clusters than children each input is assigned at random, with a
    warning.

    Parameters
    ----------
    clusters : int, optional
        How many; by default the larger of twice the factor and the rounded square root of the number of
        inputs, and never more than the inputs. The paper does not say.
    shared : bool, default False
        One draw for all neurons of the layer, instead of one for each neuron.
    """

    clusters: int | None = None
    shared: bool = False

    def problem(self, inputs: int, factor: int) -> str | None:
        """Say that there are too few clusters for the children, or more than inputs."""
        if self.clusters is None or factor <= self.clusters <= inputs:
            return None
        return (
            f"GramSplit asks for {self.clusters} clusters; allowed are {factor} (one for each child) "
            f"to {inputs} (one for each input)"
        )

    def assign(self, weight: Tensor, factor: int, rng: np.random.Generator) -> Tensor:
        """Return the child of each input's cluster, shape (neurons, inputs)."""
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        inputs = weight.shape[1]
        clusters = self.clusters or min(inputs, max(2 * factor, round(inputs**0.5)))
        w = weight.detach().cpu().double().reshape(len(weight), inputs, -1)
        w = w.transpose(1, 2).reshape(-1, inputs)
        kmeans = KMeans(clusters, n_init=4, random_state=int(rng.integers(2**31)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer clusters: said below where it matters
            labels = kmeans.fit_predict((w.T @ w).numpy())
        if (found := len(np.unique(labels))) < factor:  # equal rows, as of a constant layer
            warnings.warn(
                f"its Gram matrix has {found} {'cluster' if found == 1 else 'clusters'} of inputs, too few "
                f"for {factor} children: each input is assigned by itself, at random",
                stacklevel=2,
            )
            labels = np.arange(inputs)
        return LabelSplit(labels, shared=self.shared).assign(weight, factor, rng)


@dataclass(frozen=True)
class TwoFourSplit(Split):
    """2:4 sparsity (A.7): of each four consecutive inputs two are assigned to each of two children.

    Inputs beyond the last four are split evenly.
    """

    def problem(self, inputs: int, factor: int) -> str | None:
        """Say that 2:4 has two children."""
        return None if factor == 2 else f"split '2:4' needs factor 2, not {factor}"

    def assign(self, weight: Tensor, factor: int, rng: np.random.Generator) -> Tensor:
        """Return a child for each weight, two of each in every four, shape (neurons, inputs)."""
        neurons, inputs = weight.shape[:2]
        fours = inputs // 4
        ways = np.array([[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]], dtype=np.uint8)
        ways = np.concatenate([ways, 1 - ways])
        child = np.empty((neurons, inputs), dtype=np.uint8)
        child[:, : 4 * fours] = ways[rng.integers(0, 6, (neurons, fours))].reshape(neurons, 4 * fours)
        child[:, 4 * fours :] = balanced(neurons, inputs - 4 * fours, 2, rng)
        return torch.from_numpy(child)


@dataclass(frozen=True, eq=False, repr=False)
class FixedSplit(Split):
    """The child of each weight, as given, for one layer, or for layers of one shape.

    Parameters
    ----------
    children : array of int
        From 0 to factor − 1, shape (neurons, inputs), or (inputs,) for one partition for all neurons.

    Examples
    --------
    >>> import torch, fpe
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU(), torch.nn.Linear(2, 3))
    >>> wide = fpe.expand(model, split=fpe.FixedSplit([[0, 0, 1, 1], [0, 1, 0, 1]]))
    """

    children: Any  # an array once it is made

    def __post_init__(self) -> None:
        array = np.asarray(self.children.cpu() if isinstance(self.children, Tensor) else self.children)
        integers = np.issubdtype(array.dtype, np.integer)
        if array.ndim not in (1, 2) or array.size == 0 or not integers or array.min() < 0:
            raise ArgumentError(
                f"FixedSplit: children have shape {array.shape} and type {array.dtype}; give integers from "
                "0, of shape (neurons, inputs), or (inputs,) for one partition for all neurons."
            )
        object.__setattr__(self, "children", array)
        object.__setattr__(self, "shared", array.ndim == 1)

    def __repr__(self) -> str:
        return f"FixedSplit(children of shape {self.children.shape})"

    def problem(self, inputs: int, factor: int) -> str | None:
        """Say that the children are not one for each input, or more than the factor."""
        if self.children.shape[-1] != inputs:
            return f"FixedSplit has children for {self.children.shape[-1]} inputs, but the layer has {inputs}"
        if (largest := self.children.max()) >= factor:
            return f"FixedSplit names child {largest}, but factor {factor} ends at child {factor - 1}"
        return None

    def assign(self, weight: Tensor, factor: int, rng: np.random.Generator) -> Tensor:
        """Return the children, shape (neurons, inputs)."""
        if not self.shared and len(self.children) != len(weight):
            raise ArgumentError(
                f"FixedSplit has children for {len(self.children)} neurons, but the layer has {len(weight)}; "
                "give a row for each neuron, or expand the layers one by one with layers=…"
            )
        return torch.from_numpy(self.children).expand(weight.shape[:2])


@dataclass(frozen=True)
class CorrelationSplit(Split):
    """Inputs that are correlated on data are assigned to one child: features found without labels.

    On Boolean formulas, where the variables of a clause are correlated, it finds the clauses; on real data it
    is not better than a random split. Each neuron draws a balanced partition, one of 32 in wide layers, and
    swaps inputs while that raises the correlations within children.

    Parameters
    ----------
    shared : bool, default False
        One draw for all neurons of the layer, instead of one for each neuron.

    Examples
    --------
    >>> import torch, fpe
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> batch = torch.randn(100, 4).repeat_interleave(2, dim=1)  # inputs 0 and 1 are equal
    >>> wide = fpe.expand(model, split=fpe.CorrelationSplit(), example_inputs=batch)
    """

    shared: bool = False
    affinity: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)

    needs_inputs = True

    def on(self, inputs: Tensor) -> Split:
        """Return the split for a layer with these inputs, (samples, inputs)."""
        from fpe.expansion.clusters import correlations

        known = CorrelationSplit(self.shared)
        object.__setattr__(known, "affinity", correlations(inputs))
        return known

    def assign(self, weight: Tensor, factor: int, rng: np.random.Generator) -> Tensor:
        """Return balanced clusters of correlated inputs, shape (neurons, inputs); refuse without data."""
        from fpe.expansion.clusters import clustered

        if self.affinity is None:
            raise ArgumentError(f"split {self!r} needs data; give on(inputs) the layer's inputs first.")
        child = clustered(self.affinity, 1 if self.shared else len(weight), factor, rng)
        return torch.from_numpy(child).expand(weight.shape[:2])


SPLITS: dict[str, Split] = {
    "random": RandomSplit(),
    "shared": SharedSplit(),
    "gram": GramSplit(),
    "2:4": TwoFourSplit(),
}


def as_split(split: Any) -> Split:
    """Turn a name, or a user's own object, into a split; ``"shared-8"`` is ``SharedSplit(groups=8)``."""
    if isinstance(split, Split):
        return split
    if isinstance(split, str) and split in SPLITS:
        return SPLITS[split]
    if isinstance(split, str) and (cut := re.fullmatch(r"shared-(\d+)", split)):
        return SharedSplit(groups=int(cut[1]))
    names = ", ".join([*map(repr, SPLITS), "'shared-N' (N groups)"])
    if isinstance(split, str):
        hint = did_you_mean(split, SPLITS)
        raise ArgumentError(f"unknown split {split!r}; allowed are {names} and fpe.LabelSplit(labels).{hint}")
    if isinstance(split, type) or not all(hasattr(split, name) for name in ("shared", "problem", "assign")):
        raise ArgumentError(
            f"split is {split!r}; give one of {names}, or an object such as fpe.RandomSplit()."
        )
    return _OwnSplit(split)
