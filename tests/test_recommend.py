"""Choosing a network for a budget: which are tried, which are kept, and what is reported."""

import json
import re

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.datasets import load_digits

import fpe
from fpe.budget.candidates import CANDIDATES, dense_count, widest
from fpe.budget.recommend import hold_out
from fpe.errors import ArgumentError, DataError
from fpe.training.loop import accuracy
from fpe.training.trials import Trial, train_trials

X, y = load_digits(return_X_y=True)
X, y = (X[:300] / 16).astype(np.float32), y[:300]
QUICK = {"epochs": 8, "trials": 2, "front": False}


@pytest.fixture(scope="module")
def found():
    return fpe.recommend(X, y, 400, epochs=8, trials=2)


def test_a_budget_allows_this_many_neurons():
    """5 · (64 + 1 + 10) + 10 = 385; a sixth neuron would make it 460."""
    assert dense_count(64, 5, 10) == 385
    assert [widest(64, 10, budget) for budget in (385, 459, 460, 84, 85, 3)] == [5, 5, 6, 0, 1, 0]
    assert dense_count(3, widest(3, 1, 57), 1) <= 57


def test_all_have_the_same_count_within_the_budget(found):
    assert {entry.nonzero for entry in found.table} == {385}
    assert len(found.table) == len(CANDIDATES) == 10
    assert {entry.settings.hidden for entry in found.table} == {5}


def test_the_better_half_stays_in_each_round(found):
    """Ten are compared once, five twice, three to the end."""
    assert [entry.rounds for entry in found.table] == [3] * 3 + [2] * 2 + [1] * 5
    for rounds in (1, 2, 3):
        own = [entry.accuracy for entry in found.table if entry.rounds == rounds]
        assert own == sorted(own, reverse=True)
    assert all(len(entry.accuracies) == 2 for entry in found.table)


def test_candidates_that_stay_simply_train_on(found):
    """Each finalist equals one that was trained without interruption: no round restarts anything."""
    kept, held = hold_out(y, 0.2, 0)
    data = torch.from_numpy(X[kept]), torch.from_numpy(y[kept])
    for entry in found.table[:3]:
        recipe, hidden = entry.settings.recipe, entry.settings.hidden
        trials = [Trial.start(recipe, fpe.mlp(64, hidden, 10, seed=seed), seed) for seed in (0, 1)]
        train_trials(trials, *data)
        for trial, expected in zip(trials, entry.accuracies, strict=True):
            score = accuracy(trial.model, torch.from_numpy(X[held]), torch.from_numpy(y[held]))
            assert score == pytest.approx(expected, abs=1.5 / len(held))


def test_the_front_has_the_winner_of_each_budget(found):
    assert [entry.nonzero for entry in found.front] == [85, 160, 385]
    assert found.front[-1] is found.best is found.table[0]


def test_the_same_seed_finds_the_same():
    one, two = (fpe.recommend(X, y, 200, seed=3, **QUICK) for _ in range(2))
    assert one.to_dict() == two.to_dict()
    assert one.to_dict() != fpe.recommend(X, y, 200, seed=4, **QUICK).to_dict()


def test_the_classifier_has_the_winners_settings(found):
    clf = found.classifier(trials=2)
    assert not hasattr(clf, "classes_")
    for name in ("hidden", "factor", "split", "prune", "rewire", "warmup_epochs", "epochs", "lr", "decay"):
        assert getattr(clf, name) == getattr(found.settings, name)
    assert (clf.trials, clf.random_state) == (2, 0)
    fitted = found.fit(X, y)
    assert fitted.n_nonzero_ == found.best.nonzero
    assert len(fitted.history_) == 8
    assert eval(found.python(), {"fpe": fpe, **vars(fpe)}).get_params()["factor"] == clf.factor


def test_it_prints_and_becomes_json(found):
    text = repr(found)
    assert text.startswith(f"Recommendation for 400 non-zeros: {found.best.name}\n")
    assert "on 60 held-out samples" in text
    assert "optimistic" in text
    assert all(name in text for name in CANDIDATES)
    assert json.loads(json.dumps(found.to_dict()))["settings"]["hidden"] == 5


def test_what_cannot_be_made_is_told_and_the_rest_goes_on():
    """Three features cannot be shared out among four children."""
    rng = np.random.default_rng(0)
    few = rng.normal(size=(80, 3))
    found = fpe.recommend(few, few[:, 0] > 0, 41, **QUICK)
    reasons = {entry.name: entry.reason for entry in found.table if entry.reason}
    assert reasons["rewired x4"].startswith("factor 4 is larger than the 3 inputs of layer '0'")
    assert "rewired x4 cannot be made: factor 4" in repr(found)
    assert found.best.nonzero == 8 * (3 + 1 + 1) + 1
    assert json.dumps(found.to_dict(), allow_nan=False)


def test_several_rates_are_tried_each():
    found = fpe.recommend(X, y, 100, lr=(1e-2, 1e-3), epochs=8, trials=1, front=False)
    assert len(found.table) == 2 * len(CANDIDATES)
    assert {entry.settings.lr for entry in found.table} == {1e-2, 1e-3}
    assert {entry.name for entry in found.table} >= {"dense, rate 0.01", "dense, rate 0.001"}


def test_a_share_of_each_class_is_held_out_and_never_all_of_it():
    codes = np.array([0] * 10 + [1] * 5 + [2] * 2 + [3])
    kept, held = hold_out(codes, 0.2, 0)
    assert np.bincount(codes[held], minlength=4).tolist() == [2, 1, 1, 0]
    assert sorted([*kept, *held]) == list(range(18))
    assert hold_out(codes, 0.2, 0)[1].tolist() == held.tolist() != hold_out(codes, 0.2, 1)[1].tolist()


def test_a_candidate_that_diverges_loses_and_is_named():
    """Those of the other rate are compared as if it had not been there."""
    found = fpe.recommend(X, y, 100, lr=(1e-2, 1e38), epochs=8, trials=1, front=False)
    alone = fpe.recommend(X, y, 100, lr=1e-2, epochs=8, trials=1, front=False)
    assert found.settings == alone.settings
    failed = [entry for entry in found.table if entry.reason]
    assert {entry.settings.lr for entry in failed} == {1e38}
    assert found.table[-len(failed) :] == failed
    assert "dense, rate 1e+38" in {entry.name for entry in failed}
    assert f"{failed[0].name} diverged: " in repr(found)
    assert json.dumps(found.to_dict(), allow_nan=False)
    with pytest.raises(ArgumentError, match=r"all candidates diverged; dense: .*smaller learning rate"):
        fpe.recommend(X, y, 100, lr=1e38, epochs=8, trials=1, front=False)


def problems(error):
    return [line.removeprefix("  - ") for line in str(error).splitlines()[1:]]


def test_bad_arguments_are_told_all_at_once():
    with pytest.raises(ArgumentError) as caught:
        fpe.recommend(X, y, 84, epochs=7, trials=0, lr=-1, validation_fraction=1, seed=-1, batch_size=0)
    given = {
        "budget": "84",
        "epochs": "7",
        "trials": "0",
        "lr": r"\(-1,\)",
        "validation_fraction": "1",
        "seed": "-1",
    }
    given["batch_size"] = "0"
    found = problems(caught.value)
    assert len(found) == len(given)
    for name, value in given.items():
        assert any(re.match(f"{name} is {value}; give", line) for line in found)


def test_bad_data_are_told_all_at_once():
    bad = X.copy()
    bad[3, 4] = np.nan
    with pytest.raises(DataError) as caught:
        fpe.recommend(bad, np.zeros(299, dtype=int))
    said = ("NaN or infinite values in 1 of 300", "300 samples and y 299 labels", "one class only")
    assert all(words in line for words, line in zip(said, problems(caught.value), strict=True))


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (np.zeros(3), [0, 1, 1], r"X has shape \(3,\) and type float64; give numbers of shape"),
        ([["a"], ["b"]], [0, 1], "type <U1; give numbers"),
        (np.zeros((2, 2)), [[0], [1]], r"y has shape \(2, 1\); give one label for each sample"),
        (np.zeros((2, 2)), [0.0, np.nan], "y has NaN or missing labels in 1 of 2 samples"),
        (np.zeros((2, 2)), ["a", None], "y has NaN or missing labels in 1 of 2 samples"),
        (np.zeros((2, 2)), [0.5, 1.5], "continuous"),
        (scipy.sparse.eye(2), [0, 1], "X is a sparse matrix"),
        (np.zeros((2, 2)), [0, 1], "y has 2 classes of one sample each; give at least two samples of one"),
    ],
)
def test_data_that_are_no_table_are_refused(X, y, message):
    with pytest.raises(DataError, match=message):
        fpe.recommend(X, y)
