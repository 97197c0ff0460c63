"""How much the features of a layer interfere, and how many of them each neuron serves.

Each `weight` is that of a layer, of shape (neurons, features), as in ``model[0].weight`` (sections 3.1 and
3.2). Each `activations` are what neurons, or the latents of a sparse autoencoder, give: (samples, neurons).
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


def feature_codes(weight: Tensor, threshold: float = 0.5) -> Tensor:
    """Return which neurons each feature excites: its code (Adler et al. 2025).

    A neuron belongs to the code of a feature if its weight is above `threshold` times the feature's largest
    weight. Features that are computed together share a code, a feature channel.

    The result has shape (features, neurons), bool; a feature without positive weights has an empty code.

    Examples
    --------
    >>> feature_codes(torch.tensor([[1.0, 1.0, 0.0], [0.2, -1.0, 2.0]]))
    tensor([[ True, False],
            [ True, False],
            [False,  True]])
    """
    w = _checked(weight)
    largest = w.amax(dim=0)
    return ((w > threshold * largest) & (largest > 0)).T


def code_overlap(weight: Tensor, threshold: float = 0.5) -> Tensor:
    """Return what share of the neurons of two features' codes they have in common, for all pairs.

    The number of common neurons over that of all neurons of either (Jaccard); see `feature_codes`.

    The result has shape (features, features), float64, symmetric, each from 0 to 1; 0 for an empty code.

    Examples
    --------
    >>> code_overlap(torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 2.0]]))
    tensor([[1.0000, 0.5000, 0.5000],
            [0.5000, 1.0000, 0.0000],
            [0.5000, 0.0000, 1.0000]], dtype=torch.float64)
    """
    codes = feature_codes(weight, threshold).double()
    common, sizes = codes @ codes.T, codes.sum(dim=1)
    either = sizes[:, None] + sizes - common
    return torch.where(either > 0, common / either, torch.zeros_like(common))


def effective_features(activations: Tensor) -> float:
    """Return how many features share the activation: the exponential of its entropy (Bereska et al. 2025).

    A feature's probability is its share of all absolute activations. For the latents of a sparse autoencoder
    this is the number of neurons that would be needed without superposition; more than the layer's neurons
    means that they are superposed.

    The result is from 1 to the number of features; 0 if nothing is active.

    Examples
    --------
    >>> effective_features(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    2.0
    """
    total = _checked_activations(activations).abs().sum(dim=0)
    return float(_exponential_entropy(total[None])[0])


def effective_classes(activations: Tensor, labels: Tensor) -> Tensor:
    """Return for how many classes each neuron is active: the exponential of the entropy over the classes.

    A class's probability is its share of the sum of a neuron's mean absolute activations, one mean for each
    class. 1 for a neuron that is active for one class alone, a monosemantic one, as far as classes are the
    features.

    The result has shape (neurons,), float64, from 1 to the number of classes; 0 for a neuron that is never
    active. `labels` are of shape (samples,).

    Examples
    --------
    >>> effective_classes(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    tensor([1., 2.], dtype=torch.float64)
    """
    return _exponential_entropy(_by_class(activations, labels).T)


def class_purity(activations: Tensor, labels: Tensor) -> Tensor:
    """Return the share of each neuron's activation that belongs to its strongest class.

    Shares are as for `effective_classes`.

    The result has shape (neurons,), float64, from one over the number of classes to 1; 0 for a neuron that
    is never active.

    Examples
    --------
    >>> class_purity(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    means = _by_class(activations, labels)
    total = means.sum(dim=0)
    return torch.where(total > 0, means.amax(dim=0) / total, torch.zeros_like(total))


def class_selectivity(activations: Tensor, labels: Tensor) -> Tensor:
    """Return how much more active each neuron is for its strongest class than for the others on average.

    ``(m − o) / (m + o)``, with m the largest mean absolute activation of a class and o the mean of those of
    the other classes (Morcos et al. 2018).

    The result has shape (neurons,), float64, from 0 for a neuron that does not tell classes apart to 1 for
    one that is active for one class alone; 0 also for a neuron that is never active.

    Examples
    --------
    >>> class_selectivity(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    tensor([1., 0.], dtype=torch.float64)
    """
    means = _by_class(activations, labels)
    largest = means.amax(dim=0)
    others = (means.sum(dim=0) - largest) / (len(means) - 1)
    total = largest + others
    return torch.where(total > 0, (largest - others) / total, torch.zeros_like(total))


def _checked_activations(activations: Tensor) -> Tensor:
    if not isinstance(activations, Tensor) or activations.dim() != 2 or not activations.is_floating_point():
        wrong = isinstance(activations, Tensor)
        given = f"shape {tuple(activations.shape)}" if wrong else type(activations).__name__
        raise ArgumentError(
            f"the activations are {given}; give a floating-point tensor of shape (samples, neurons)."
        )
    return activations.detach().double()


def _by_class(activations: Tensor, labels: Tensor) -> Tensor:
    """Return the mean absolute activation of each class and neuron, (classes, neurons)."""
    values = _checked_activations(activations).abs()
    if not isinstance(labels, Tensor) or labels.shape != (len(values),):
        given = f"shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ArgumentError(
            f"the labels are {given}; give a tensor with one for each of {len(values)} samples."
        )
    classes, place = torch.unique(labels.to(values.device), return_inverse=True)
    if len(classes) < 2:
        raise ArgumentError(f"the labels are of {len(classes)} class; give two at least.")
    sums = values.new_zeros(len(classes), values.shape[1]).index_add_(0, place, values)
    means: Tensor = sums / place.bincount()[:, None]
    return means


def _exponential_entropy(mass: Tensor) -> Tensor:
    """Return the exponential of the entropy of each row, whose sum need not be 1; 0 for a row of zeros."""
    total = mass.sum(dim=1)
    share = mass / torch.where(total > 0, total, torch.ones_like(total))[:, None]
    entropy: Tensor = -torch.special.xlogy(share, share).sum(dim=1)
    return torch.where(total > 0, entropy.exp(), torch.zeros_like(total))


def fold_change(expanded: float, dense: float) -> float:
    """Return ``expanded / dense``, the paper's comparison of a measure (section 3.2); NaN if dense is 0."""
    return expanded / dense if dense else float("nan")


def relative_improvement(expanded: float, dense: float) -> float:
    """Return ``(expanded − dense) / dense`` of two accuracies (section 3.2); NaN if dense is 0."""
    return (expanded - dense) / dense if dense else float("nan")
