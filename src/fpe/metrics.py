"""How much the features of a layer interfere (sections 3.1 and 3.2).

Each `weight` is that of a layer, of shape (neurons, features), as in ``model[0].weight``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fpe.errors import ArgumentError


def _checked(weight: Tensor) -> Tensor:
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        given = f"shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
        raise ArgumentError(
            f"the weight is {given}; give a floating-point tensor of shape (neurons, features), such as "
            "model[0].weight."
        )
    return weight.detach().double()


def _scaled(weight: Tensor) -> Tensor:
    """Divide by the largest entry: measures that do not depend on it then keep fourth powers within range."""
    w = _checked(weight)
    return w / w.abs().amax().clamp_min(torch.finfo(w.dtype).tiny)


def gram_matrix(weight: Tensor) -> Tensor:
    """Return ``WᵀW``: how much each two features use the same neurons (section 3.1).

    The result has shape (features, features), float64, symmetric.

    Examples
    --------
    >>> import torch
    >>> gram_matrix(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    tensor([[1., 2.],
            [2., 5.]], dtype=torch.float64)
    """
    w = _checked(weight)
    return w.T @ w


def feature_capacity(weight: Tensor) -> Tensor:
    """Return each feature's capacity, ``(w_i·w_i)² / Σ_j (w_i·w_j)²`` (Scherlis et al. 2022; section 3.2).

    The share of a dimension that belongs to the feature alone: 1 if it is orthogonal to all others,
    0 for a feature that no neuron uses. Over all features it adds up to at most the number of neurons.

    The result has shape (features,), float64, each from 0 to 1.

    Examples
    --------
    >>> feature_capacity(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]]))
    tensor([0.5000, 0.5000, 1.0000], dtype=torch.float64)
    """
    squared = gram_matrix(_scaled(weight)).square()
    total = squared.sum(dim=1)
    return torch.where(total > 0, squared.diagonal() / total, torch.zeros_like(total))


def total_capacity(weight: Tensor) -> float:
    """Return the sum of `feature_capacity` over all features, 0 to the number of neurons."""
    return float(feature_capacity(weight).sum())


def mean_cosine_similarity(weight: Tensor) -> float:
    """Return the mean cosine similarity over all pairs of distinct neurons (section 3.2).

    From −1 to 1; the lower, the less the neurons have in common. A neuron without weights has similarity 0 to
    all others; a single neuron is refused.

    Examples
    --------
    >>> mean_cosine_similarity(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]))
    0.3333333333333333
    """
    neurons = len(weight)
    if neurons < 2:
        raise ArgumentError(f"the weight has {neurons} neurons; a pair needs two.")
    unit = F.normalize(_checked(weight), dim=1, eps=torch.finfo(torch.float64).tiny)
    # |Σ u|² = Σ |u|² + twice the sum over pairs
    pairs = unit.sum(dim=0).square().sum() - unit.square().sum()
    return float(pairs / (neurons * (neurons - 1)))


def participation_ratio(weight: Tensor) -> Tensor:
    """Return each neuron's participation ratio ``(Σ_i w_i²)² / Σ_i w_i⁴``: how many features it uses.

    1 for a neuron that uses one feature, the number of features for one that uses all alike, 0 for one
    that uses none (Bell and Dean 1970).

    The result has shape (neurons,), float64.

    Examples
    --------
    >>> participation_ratio(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]]))
    tensor([2., 1.], dtype=torch.float64)
    """
    power = _scaled(weight).square()
    fourth = power.square().sum(dim=1)
    return torch.where(fourth > 0, power.sum(dim=1).square() / fourth, torch.zeros_like(fourth))


def crowding(weight: Tensor) -> Tensor:
    """Return how little capacity each neuron's features have: ``Σ_i w_i² (1 − C_i) / Σ_i w_i²``.

    C is the `feature_capacity`. 0 for a neuron whose features have a dimension of their own, towards 1 for
    one whose features share theirs with many.

    The result has shape (neurons,), float64, each from 0 to 1.

    Examples
    --------
    >>> crowding(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]]))
    tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    power = _checked(weight).square()
    total = power.sum(dim=1)
    share = power / torch.where(total > 0, total, torch.ones_like(total))[:, None]
    return share @ (1 - feature_capacity(weight))


def fold_change(expanded: float, dense: float) -> float:
    """Return ``expanded / dense``, the paper's comparison of a measure (section 3.2); NaN if dense is 0."""
    return expanded / dense if dense else float("nan")


def relative_improvement(expanded: float, dense: float) -> float:
    """Return ``(expanded − dense) / dense`` of two accuracies (section 3.2); NaN if dense is 0."""
    return (expanded - dense) / dense if dense else float("nan")
