"""Who gets which input: each split is a small value that deals a layer's inputs out to the children.

A split answers ``assign(weight, factor, rng)`` with an *assignment*: an integer tensor of the
weight's shape ``(neurons, inputs)`` that holds, for each parent neuron and each input, the child
``0 … factor − 1`` that keeps the weight. A weight of shape ``(neurons, inputs, depth)`` has several entries
that stay together for each input: the taps of a convolution, gate and up of a gated pair; its
assignment has shape ``(neurons, inputs)`` all the same. Children therefore never overlap and together are the
parent (section 2.3). Sizes of the children of one neuron differ by at most one, groups aside.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fpe.errors import ArgumentError, did_you_mean


@runtime_checkable
class Split(Protocol):
    """Anything that can deal inputs out to children.

    Attributes
    ----------
    shared : bool
        Whether all neurons of a layer get one and the same partition. The layer is then
        ``factor`` small dense blocks; with `SharedSplit` of several groups, so many for each.
    """

    @property
    def shared(self) -> bool:
        """Whether all neurons get the same partition."""
        ...

    def problem(self, inputs: int, factor: int) -> str | None:
        """Say why a layer of so many inputs cannot be split so, or return None if it can."""
        ...

    def assign(self, weight: Tensor, factor: int, rng: np.random.Generator) -> Tensor:
        """Return the child of each weight, integers of shape (neurons, inputs).

        `weight` has shape (neurons, inputs), or (neurons, inputs, depth) where several entries of one
        input stay together.
        """
        ...


@runtime_checkable
class DataSplit(Split, Protocol):
    """A split that must see what a layer reads before it can deal it out."""

    def on(self, inputs: Tensor) -> Split:
        """Return the split for a layer that reads these inputs, (samples, inputs)."""
        ...


def _child_dtype(factor: int) -> type[np.unsignedinteger] | type[np.signedinteger]:
    return np.uint8 if factor <= 256 else np.int32


def _balanced(neurons: int, inputs: int, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Deal the inputs of each neuron out evenly, each neuron by its own draw.

    Every input first draws a child for itself; then inputs picked at random move from children that
    have too many to children that have too few. No step looks at which input it is, so all balanced
    partitions are equally likely. For large layers this is several times as fast as a permutation
    of each row.
    """
    child = rng.integers(0, factor, (neurons, inputs), dtype=_child_dtype(factor))
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
class RandomSplit:
    """Each neuron draws its own balanced partition of its inputs (section 2.3)."""

    shared = False

    def problem(self, inputs: int, factor: int) -> str | None:
        """Any layer can be split so."""
        return None

    def assign(self, weight: Tensor, factor: int, rng: np.random.Generator) -> Tensor:
        """Return a balanced random child for each weight, shape (neurons, inputs)."""
        return torch.from_numpy(_balanced(weight.shape[0], weight.shape[1], factor, rng))


@dataclass(frozen=True)
class SharedSplit:
    """One balanced random partition for all neurons of a layer, or of a group, which is then dense blocks.

    Parameters
    ----------
    groups : int, default 1
        Into how many groups of adjacent neurons, all of one size, a layer is cut; each draws a partition of
        its own. The layer is ``groups * factor`` blocks, which keep as many inputs each, or one more, when
        columns pay and when they move. More of them are nearer to masks without any
        structure, and each needs the numbers of the inputs that it reads. Where the number of neurons is no
        multiple of it, the largest smaller number that divides them is taken: the plan says which. In a
        layer of fewer neurons each is a group, and has its own partition as with `RandomSplit`.

    Raises
    ------
    ArgumentError
        If `groups` is no integer of at least 1.

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
            raise ArgumentError(f"Shared: groups is {self.groups!r}; give an integer of at least 1.")

    def __repr__(self) -> str:
        return "SharedSplit()" if self.groups == 1 else f"SharedSplit(groups={self.groups})"

    def problem(self, inputs: int, factor: int) -> str | None:
        """Any layer can be split so."""
        return None

    def assign(self, weight: Tensor, factor: int, rng: np.random.Generator) -> Tensor:
        """Return a row of balanced random children for each group, repeated to shape (neurons, inputs)."""
        neurons, inputs = weight.shape[:2]
        groups = groups_of(self, neurons)
        rows = torch.from_numpy(_balanced(groups, inputs, factor, rng))
        if groups == 1:
            return rows.expand(neurons, inputs)
        return rows.repeat_interleave(neurons // groups, dim=0)


@dataclass(frozen=True, init=False)
class LabelSplit:
    """Inputs with one label stay together: the clauses of section 2.3.

    The groups are dealt out in random order, each to the child with the fewest inputs so far,
    so the sizes of two children differ by at most the largest group, and groups of one size are
    spread evenly.

    Parameters
    ----------
    labels : sequence of int
        One integer per input of the layer.
    shared : bool, default False
        One draw for all neurons of the layer, instead of one for each neuron.

    Raises
    ------
    ArgumentError
        If the labels are not a flat list of integers.

    Examples
    --------
    >>> import torch, fpe
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> wide = fpe.expand(model, factor=2, split=fpe.LabelSplit([0, 0, 1, 1, 2, 2, 3, 3]))
    """

    labels: tuple[int, ...]
    shared: bool

    def __init__(self, labels: Sequence[int] | np.ndarray | Tensor, shared: bool = False) -> None:
        array = np.asarray(labels)
        if array.ndim != 1 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
            raise ArgumentError(
                f"Groups: labels have shape {array.shape} and type {array.dtype}; "
                "give a flat sequence of integers, one for each input of the layer."
            )
        object.__setattr__(self, "labels", tuple(int(v) for v in array))
        object.__setattr__(self, "shared", shared)

    def __repr__(self) -> str:
        shared = ", shared=True" if self.shared else ""
        return f"LabelSplit({len(set(self.labels))} groups of {len(self.labels)} inputs{shared})"

    def problem(self, inputs: int, factor: int) -> str | None:
        """Say that the labels are not one for each input, or that there are too few groups."""
        if len(self.labels) != inputs:
            return (
                f"Groups has {len(self.labels)} labels, but the layer has {inputs} inputs; "
                "give one label for each input"
            )
        groups = len(set(self.labels))
        if groups < factor:
            return (
                f"Groups has {groups} groups, too few for {factor} children; "
                f"give at least {factor} groups or a factor of at most {groups}"
            )
        return None

    def assign(self, weight: Tensor, factor: int, rng: np.random.Generator) -> Tensor:
        """Return the child of each input's group, shape (neurons, inputs)."""
        _, group_of = np.unique(self.labels, return_inverse=True)
        child = _deal_groups(np.bincount(group_of), 1 if self.shared else weight.shape[0], factor, rng)
        return torch.from_numpy(child[:, group_of]).expand(weight.shape[:2])


def _deal_groups(sizes: np.ndarray, draws: int, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Give groups, in random order, each to the smallest child. Returns children, (draws, groups)."""
    groups = len(sizes)
    order = rng.permuted(np.broadcast_to(np.arange(groups), (draws, groups)), axis=1)
    child = np.empty((draws, groups), dtype=_child_dtype(factor))
    load = np.zeros((draws, factor))
    every = np.arange(draws)
    for group in order.T:
        smallest = (load + rng.random(load.shape) / 2).argmin(axis=1)  # below one input: breaks ties
        child[every, group] = smallest
        load[every, smallest] += sizes[group]
    return child


@dataclass(frozen=True)
class GramSplit:
    """The paper's feature-based split (section 3.3): clusters of the Gram matrix are the clauses.

    The rows of ``G = W1ᵀ W1`` are clustered by k-means; inputs of one cluster stay together, and the
    clusters are balanced over the children by size, as in `LabelSplit`. It says something only after some
    training. Where there are fewer clusters than children, as in a layer of equal weights, inputs are dealt
    out at random, which a warning and the plan of the expanded model say.

    Parameters
    ----------
    clusters : int, optional
        How many clusters. The paper does not say; by default the larger of twice the factor and
        the rounded square root of the number of inputs, and never more than the inputs.
    shared : bool, default False
        One draw for all neurons of the layer, instead of one for each neuron.
    """

    clusters: int | None = None
    shared: bool = False

    def problem(self, inputs: int, factor: int) -> str | None:
        """Say that there are too few clusters for the children, or more than inputs."""
        if self.clusters is not None and not factor <= self.clusters <= inputs:
            return (
                f"Gram asks for {self.clusters} clusters; allowed are {factor} (one for each child) "
                f"to {inputs} (one for each input)"
            )
        return None

    def assign(self, weight: Tensor, factor: int, rng: np.random.Generator) -> Tensor:
        """Return the child of each input's cluster, shape (neurons, inputs)."""
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        inputs = weight.shape[1]
        clusters = self.clusters or min(inputs, max(2 * factor, round(inputs**0.5)))
        w = (
            weight.detach()
            .cpu()
            .double()
            .reshape(len(weight), inputs, -1)
            .transpose(1, 2)
            .reshape(-1, inputs)
        )
        kmeans = KMeans(clusters, n_init=4, random_state=int(rng.integers(2**31)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer clusters: told below where it matters
            labels = kmeans.fit_predict((w.T @ w).numpy())
        found = len(np.unique(labels))
        if found < factor:  # equal rows, as of a constant layer
            warnings.warn(
                f"its Gram matrix has {found} {'cluster' if found == 1 else 'clusters'} of inputs, too few "
                f"for {factor} children: each input is dealt out by itself, at random",
                stacklevel=2,
            )
            labels = np.arange(inputs)
        return LabelSplit(labels, shared=self.shared).assign(weight, factor, rng)


@dataclass(frozen=True)
class TwoFourSplit:
    """2:4 sparsity (A.7): of each four consecutive inputs two go to one child, two to the other.

    Only for a factor of 2. Inputs beyond the last four are dealt out evenly.
    """

    shared = False

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
        child[:, 4 * fours :] = _balanced(neurons, inputs - 4 * fours, 2, rng)
        return torch.from_numpy(child)


def groups_of(split: Split, neurons: int) -> int:
    """Return into how many groups a split cuts so many neurons to give each a partition of its own."""
    most = min(split.groups, neurons) if isinstance(split, SharedSplit) else 1
    return next(groups for groups in range(most, 0, -1) if neurons % groups == 0)


SPLITS: dict[str, Split] = {
    "random": RandomSplit(),
    "shared": SharedSplit(),
    "gram": GramSplit(),
    "2:4": TwoFourSplit(),
}


def as_split(split: str | Split) -> Split:
    """Turn a name into its split; a split passes through. ``"shared-8"`` is ``SharedSplit(groups=8)``.

    Raises
    ------
    ArgumentError
        For an unknown name, or for what is no split.
    """
    if isinstance(split, str):
        if split in SPLITS:
            return SPLITS[split]
        if cut := re.fullmatch(r"shared-(\d+)", split):
            return SharedSplit(groups=int(cut[1]))
        names = ", ".join(repr(n) for n in SPLITS)
        raise ArgumentError(
            f"unknown split {split!r}; allowed are {names} and fpe.LabelSplit(labels)."
            f"{did_you_mean(split, SPLITS)}"
        )
    if isinstance(split, type) or not isinstance(split, Split):
        raise ArgumentError(
            f"split is {split!r}; give a name ({', '.join(repr(n) for n in SPLITS)}) or an object such as "
            "fpe.LabelSplit(labels)."
        )
    return split
