"""Whether a trained network is expanded is decided on held-out data."""

import numpy as np
import pytest
import torch

import fpe
from fpe.sklearn import FPEClassifier, FPERegressor
from fpe.training import Cosine, Recipe, Trial, late, train_trials
from fpe.training.late import Decision, Way, decide, fifths, sample_scores, ways_of
from fpe.training.losses import Objective

WIDE = Recipe.choose(gradual=True, warmup_epochs=2, epochs=3)
PLAIN, FIRST, SECOND = ways_of(WIDE, [1e-2], [2, 4])


def way(recipe, *each):
    return Way(recipe, np.array(each, float))


def test_every_way_is_tried_at_each_rate():
    recipes = ways_of(WIDE, [1e-2, 2e-2], [1, 4])
    assert [(r.factor, bool(r.gradual), r.late_lr) for r in recipes] == [
        (1, False, 1e-2), (1, False, 2e-2), (4, True, 1e-2), (4, True, 2e-2),
    ]  # fmt: skip
    assert [(r.factor, r.late_lr) for r in ways_of(WIDE, None, [2])] == [(1, 2e-2), (2, 2e-2)]


def test_a_gain_within_a_standard_error_keeps_the_parent():
    plain, wide = way(PLAIN, 1, 0, 0, 0, 1, 0), way(FIRST, 0, 1, 1, 0, 1, 0)
    made = Decision([wide, plain])
    assert made.gain == pytest.approx(1 / 6)
    assert made.error == pytest.approx(np.std([-1, 1, 1, 0, 0, 0]) / 6**0.5)
    assert made.error > made.gain
    assert made.chosen is plain
    assert "not expanded" in str(made)


def test_a_gain_above_a_standard_error_expands():
    plain, wide, other = way(PLAIN, 1, 0, 0, 0), way(SECOND, 1, 1, 1, 0), way(FIRST, 1, 1, 0, 0)
    made = Decision([wide, other, plain])
    assert (made.gain, made.chosen) == (0.5, wide)
    assert "expanded by 4 and pruned back, rate 0.01" in str(made)


def test_the_best_of_each_kind_are_compared_and_failures_are_not():
    failed, plain = Way(FIRST, np.zeros(0), "the loss became nan"), way(PLAIN, 0, 1)
    assert Decision([plain, failed]).chosen is plain
    assert Decision([way(SECOND, 0, 0), Way(PLAIN, np.zeros(0), "nan")]).chosen.recipe == SECOND
    assert failed.score == -np.inf


def test_parts_have_equally_many_samples_of_each_class():
    codes = np.repeat([0, 1, 2], [10, 5, 4])
    parts = fifths(codes, 0)
    assert np.array_equal(parts, fifths(codes, 0))
    assert np.bincount(parts[codes == 0]).tolist() == [2] * 5
    assert sorted(np.bincount(parts, minlength=5)) == [3, 4, 4, 4, 4]


def test_samples_are_scored_as_estimators_score():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    assert sample_scores(logits, torch.tensor([0, 0]), Objective()).tolist() == [1, 0]
    labels = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert sample_scores(logits - 0.5, labels, Objective("labels")).tolist() == [1, 0]
    assert sample_scores(logits, logits + 0.5, Objective("squared")).tolist() == [0.75, 0.75]


def test_after_the_warm_up_the_rate_rises_again_and_falls_to_0():
    assert (WIDE.lr, WIDE.late_lr, WIDE.shrink, WIDE.factor) == (1e-2, 2e-2, 0.3, 4)
    assert WIDE.cosine(0) is WIDE.cosine(1) is None
    assert WIDE.cosine(2) == Cosine(3, 0)
    assert WIDE.cosine(4) == Cosine(3, 2)
    steady = Recipe.choose(gradual=True, lr=5e-3, decay=False)
    assert (steady.lr, steady.late_lr, steady.cosine(30)) == (5e-3, None, None)


def test_a_parent_that_is_not_expanded_gets_the_late_rate_once():
    X, y = torch.randn(64, 6), torch.arange(64) % 2
    trial = Trial.start(PLAIN, fpe.mlp(6, 4, 2, seed=0), 0)
    first = trial.optimizer
    train_trials([trial], X, y, until=2)
    assert trial.optimizer is first
    train_trials([trial], X, y, until=3)
    second = trial.optimizer
    assert second is not first
    assert second.param_groups[0]["lr"] == 1e-2
    train_trials([trial], X, y)
    assert trial.optimizer is second
    assert trial.model is trial.dense


def test_opened_weights_shrink_and_biases_do_not():
    wide = fpe.expand(fpe.mlp(6, 4, 2, seed=0), factor=2, seed=0)
    weight, bias = wide[0].weight.detach().clone(), wide[0].bias.detach().clone()
    fpe.open_masks_(wide, shrink=0.5)
    assert torch.equal(wide[0].weight, weight / 2)
    assert torch.equal(wide[0].bias, bias)
    assert wide[0].fpe_mask.all()
    with pytest.raises(fpe.FPEError, match="shrink is 0; give a number above 0"):
        fpe.open_masks_(wide, shrink=0)


def linear(samples, seed=0):
    """Two classes that one neuron separates."""
    X = np.random.default_rng(seed).normal(size=(samples, 12)).astype(np.float32)
    return X, (X[:, 0] + X[:, 1] > 0).astype(int)


@pytest.fixture(scope="module")
def gained():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(20, 40))
    y = rng.integers(0, 20, size=3000)
    X = (centers[y] + 1.2 * rng.normal(size=(3000, 40))).astype(np.float32)
    how = {"hidden": 3, "gradual": True, "warmup_epochs": 8, "epochs": 8}
    return X, y, [FPEClassifier(**how).fit(X, y) for _ in range(2)]


def test_where_expanding_wins_the_network_is_expanded_at_the_same_count(gained):
    _, _, (clf, _) = gained
    assert clf.decision_.gain > clf.decision_.error
    assert clf.model_.get_submodule("0").out_features in (6, 12, 24)
    assert clf.n_nonzero_ == fpe.count_nonzero(clf.dense_model_) == 3 * (40 + 1 + 20) + 20


def test_where_it_does_not_the_parent_is_kept_and_trained_on():
    X, y = linear(600)
    clf = FPEClassifier(hidden=4, gradual=True, warmup_epochs=6, epochs=3).fit(X, y)
    assert not clf.decision_.chosen.expands
    assert clf.model_.get_submodule("0").out_features == 4
    assert [record["stage"] for record in clf.history_] == ["dense"] * 9
    clf.partial_fit(X, y)
    assert clf.model_.get_submodule("0").out_features == 4


def test_a_decision_is_deterministic(gained):
    X, _, (one, two) = gained
    assert str(one.decision_) == str(two.decision_)
    assert [w.score for w in one.decision_.ways] == [w.score for w in two.decision_.ways]
    assert np.array_equal(one.predict_proba(X[:50]), two.predict_proba(X[:50]))


def test_ways_are_compared_with_weights_early_stopping_and_numbers():
    X, y = linear(300)
    how = {"hidden": 2, "gradual": True, "warmup_epochs": 2, "epochs": 2, "factor": 2, "lr": 1e-2}
    clf = FPEClassifier(patience=2, class_weight="balanced", **how).fit(X, y)
    assert [w.recipe.factor for w in clf.decision_.ways] in ([1, 2], [2, 1])
    assert clf.n_nonzero_ <= fpe.count_nonzero(clf.dense_model_)
    made = FPERegressor(**how).fit(X, X @ np.ones((12, 2)))
    assert made.decision_.chosen.score <= 1
    assert made.n_nonzero_ == fpe.count_nonzero(made.dense_model_)


def test_all_that_diverge_are_refused():
    X, y = torch.randn(40, 4), torch.arange(40) % 2
    recipes = ways_of(WIDE, [float("inf")], [2])
    with pytest.raises(fpe.FPEError, match="diverged"):
        decide(recipes, lambda s: fpe.mlp(4, 2, 2, seed=s), X, y, None, seed=0)
    assert late.RATES[-1] == max(late.RATES)


@pytest.mark.parametrize("trials", [1, 2])
def test_early_stopping_waits_for_the_budget(trials):
    X = np.random.default_rng(0).normal(size=(200, 12)).astype(np.float32)
    y = np.arange(200) % 4  # nothing to learn, so that the validation loss rises
    how = {"hidden": 12, "budget": 60, "epochs": 20, "lr": 5e-2, "trials": trials}
    clf = FPEClassifier(patience=1, **how).fit(X, y)
    assert clf.n_nonzero_ == 60
    assert 12 < len(clf.history_) < 20 * trials


def test_without_epochs_to_prune_in_the_parent_is_kept():
    X, y = linear(100)
    clf = FPEClassifier(hidden=3, gradual=True, warmup_epochs=2, epochs=0).fit(X, y)
    assert clf.n_nonzero_ == 3 * (12 + 1 + 1) + 1
    assert "not expanded" in str(clf.decision_)
