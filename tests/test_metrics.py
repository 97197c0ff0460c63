"""Gram matrix, feature capacity and cosine similarity, against definitions written out."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from fpe.errors import ArgumentError
from fpe.metrics import (
    class_purity,
    class_selectivity,
    code_overlap,
    effective_classes,
    effective_features,
    feature_capacity,
    feature_codes,
    fold_change,
    gram_matrix,
    mean_cosine_similarity,
    relative_improvement,
    total_capacity,
)


@pytest.fixture
def weight():
    return torch.randn(7, 11, generator=torch.Generator().manual_seed(0))


def test_the_gram_matrix_contains_the_products_of_all_pairs_of_features(weight):
    gram = gram_matrix(weight)
    assert gram.shape == (11, 11)
    assert gram.dtype == torch.float64
    for i, j in itertools.product(range(11), repeat=2):
        expected = sum(float(w[i]) * float(w[j]) for w in weight)
        assert gram[i, j].item() == pytest.approx(expected, abs=1e-12)


def test_feature_capacity_is_its_definition_written_out(weight):
    columns = weight.double().T.tolist()
    product = lambda a, b: sum(x * y for x, y in zip(a, b, strict=True))  # noqa: E731
    for i, capacity in enumerate(feature_capacity(weight).tolist()):
        expected = product(columns[i], columns[i]) ** 2 / sum(product(columns[i], c) ** 2 for c in columns)
        assert capacity == pytest.approx(expected, rel=1e-12)


def test_mean_cosine_similarity_is_the_mean_over_pairs_of_neurons(weight):
    rows = weight.double()
    pairs = [float(a @ b / (a.norm() * b.norm())) for a, b in itertools.combinations(rows, 2)]
    assert mean_cosine_similarity(weight) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


def test_orthogonal_features_have_all_the_capacity_that_there_is():
    weight = torch.diag(torch.tensor([1.0, -2.0, 0.5]))
    assert feature_capacity(weight).tolist() == [1, 1, 1]
    assert total_capacity(weight) == 3
    assert mean_cosine_similarity(weight) == 0


def test_features_that_share_one_neuron_share_its_capacity():
    assert feature_capacity(torch.tensor([[3.0, 3.0, -3.0, 3.0]])).tolist() == pytest.approx([0.25] * 4)


def test_a_feature_that_no_neuron_uses_has_no_capacity_and_a_neuron_without_weights_no_similarity():
    weight = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    assert feature_capacity(weight).tolist() == [1, 0]
    assert mean_cosine_similarity(weight) == pytest.approx(1 / 3)
    assert feature_capacity(torch.zeros(2, 3)).tolist() == [0, 0, 0]
    assert mean_cosine_similarity(torch.zeros(2, 3)) == 0


def test_equal_neurons_are_fully_similar_and_opposite_ones_fully_unlike():
    assert mean_cosine_similarity(torch.tensor([[1.0, 2.0], [2.0, 4.0]])) == pytest.approx(1)
    assert mean_cosine_similarity(torch.tensor([[1.0, 2.0], [-1.0, -2.0]])) == pytest.approx(-1)


@pytest.mark.parametrize("scale", [1e-18, 1e-6, 1e6, 1e18])
def test_the_measures_do_not_depend_on_scale(weight, scale):
    torch.testing.assert_close(feature_capacity(weight * scale), feature_capacity(weight), rtol=1e-5, atol=0)
    assert mean_cosine_similarity(weight * scale) == pytest.approx(mean_cosine_similarity(weight), rel=1e-4)


def test_total_capacity_is_at_most_the_number_of_neurons(weight):
    assert 0 < total_capacity(weight) <= 7
    assert total_capacity(weight) == pytest.approx(float(feature_capacity(weight).sum()))


def test_a_parameter_is_measured_and_left_as_it_is(weight):
    parameter = torch.nn.Parameter(weight.clone())
    assert not gram_matrix(parameter).requires_grad
    assert isinstance(total_capacity(parameter), float)
    assert torch.equal(parameter, weight)


def test_comparisons():
    assert fold_change(3.0, 2.0) == 1.5
    assert relative_improvement(0.9, 0.75) == pytest.approx(0.2)
    assert math.isnan(fold_change(1.0, 0.0))
    assert math.isnan(relative_improvement(1.0, 0.0))


@pytest.mark.parametrize("measure", [gram_matrix, feature_capacity, total_capacity])
@pytest.mark.parametrize(
    ("bad", "came"),
    [
        (torch.zeros(3), r"shape \(3,\)"),
        (torch.zeros(2, 3, 4), r"shape \(2, 3, 4\)"),
        (torch.zeros(2, 3, dtype=torch.int64), r"shape \(2, 3\)"),
        ([[1.0]], "list"),
    ],
)
def test_what_is_no_weight_is_refused(measure, bad, came):
    with pytest.raises(ArgumentError, match=rf"the weight is {came}.*give .*\(neurons, features\)"):
        measure(bad)


@pytest.mark.parametrize("bad", [torch.zeros(3), [[1.0], [2.0]]])
def test_similarity_refuses_what_is_no_weight(bad):
    with pytest.raises(ArgumentError, match="the weight is"):
        mean_cosine_similarity(bad)


def test_one_neuron_has_no_pair():
    with pytest.raises(ArgumentError, match="1 neurons; a pair needs two"):
        mean_cosine_similarity(torch.ones(1, 4))


@pytest.fixture
def activations():
    """Return those of 300 samples and 5 neurons, with labels of 4 classes."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(300, 5, generator=generator), torch.randint(4, (300,), generator=generator) * 3


def test_effective_features_are_the_exponential_of_the_entropy(activations):
    values = activations[0]
    assert effective_features(values) == pytest.approx(np.exp(entropy(values.abs().sum(0).double())))
    assert effective_features(torch.eye(7)) == pytest.approx(7)
    assert effective_features(torch.eye(7)[:, :3] * torch.tensor([1.0, 1.0, 0.0])) == pytest.approx(2)
    assert effective_features(torch.zeros(3, 2)) == 0


def test_measures_by_class_are_their_definitions_written_out(activations):
    values, labels = activations
    for j in range(5):
        means = [float(values[labels == c, j].abs().double().mean()) for c in labels.unique()]
        largest, others = max(means), (sum(means) - max(means)) / 3
        assert float(effective_classes(values, labels)[j]) == pytest.approx(np.exp(entropy(means)))
        assert float(class_purity(values, labels)[j]) == pytest.approx(largest / sum(means))
        found = float(class_selectivity(values, labels)[j])
        assert found == pytest.approx((largest - others) / (largest + others))


@pytest.mark.parametrize("classes", [2, 5])
def test_a_neuron_of_one_class_of_all_and_of_none(classes):
    """A class with many samples counts no more than others."""
    labels = torch.arange(classes).repeat_interleave(torch.arange(1, classes + 1))
    one = (labels == 1).float()
    values = torch.stack([one, torch.ones_like(one), torch.zeros_like(one)], dim=1)
    assert effective_classes(values, labels).tolist() == pytest.approx([1, classes, 0])
    assert class_purity(values, labels).tolist() == pytest.approx([1, 1 / classes, 0])
    assert class_selectivity(values, labels).tolist() == pytest.approx([1, 0, 0])


def test_the_variables_of_a_clause_share_a_code():
    """Two clauses of two variables, each in neurons of its own but for one that serves both."""
    weight = torch.tensor([[2.0, 2.0, -1, -1], [1.5, 1.5, 1.5, 1.5], [-1, 0, 3.0, 3.0], [0.5, 0.5, 0, 0]])
    codes = feature_codes(weight)
    assert codes.tolist() == [[True, True, False, False]] * 2 + [[False, False, True, False]] * 2
    overlap = code_overlap(weight, threshold=0.3)
    assert overlap[0, 1] == overlap[2, 3] == 1
    assert overlap[0, 2] == pytest.approx(1 / 3)
    assert torch.equal(overlap, overlap.T)
    assert code_overlap(-torch.ones(3, 2)).count_nonzero() == 0


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        (torch.ones(3), torch.ones(3), "shape \\(3,\\)"),
        (torch.ones(3, 2, dtype=torch.long), torch.ones(3), "floating-point"),
        ([[1.0]], torch.ones(1), "list"),
        (torch.ones(3, 2), torch.ones(2), "one for each of 3"),
        (torch.ones(3, 2), [0, 1, 2], "list"),
        (torch.ones(3, 2), torch.ones(3), "of 1 class"),
    ],
)
def test_activations_and_labels_that_do_not_fit_are_refused(values, labels, message):
    with pytest.raises(ArgumentError, match=message):
        class_purity(values, labels)
