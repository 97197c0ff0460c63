"""Gram matrix, feature capacity and cosine similarity, against definitions written out."""

import itertools
import math

import pytest
import torch

from fpe.errors import ArgumentError
from fpe.metrics import (
    feature_capacity,
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
