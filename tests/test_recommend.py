"""The best network for a budget: which are tried, which are kept, what is reported and resumed."""

import gc
import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import torch
from matplotlib.axes import Axes
from sklearn.datasets import load_diabetes, load_digits, make_multilabel_classification

import fpe
from fpe.budget.recommendation import Recommendation
from fpe.compare.report import budget_figure
from fpe.errors import ArgumentError, BudgetError
from fpe.sklearn import FPEClassifier, FPERegressor, network
from fpe.training import candidates as training
from fpe.training import search as searching
from fpe.training.candidates import RATE, Candidate, Entry, Task
from fpe.training.folds import MOST_FOLDS, Fold, hold_out
from fpe.training.loop import accuracy_of
from fpe.training.search import ENTER_SECOND, ROUNDS, dense_count, structures, widest

X, y = load_digits(return_X_y=True)
X, y = X[:300].astype(np.float32), y[:300]
QUICK = {"epochs": 8, "front": False}


@pytest.fixture(scope="module")
def found():
    return fpe.recommend(X, y, 400, epochs=8)


def test_a_budget_allows_this_many_neurons():
    """5 · (64 + 1 + 10) + 10 = 385; a sixth neuron would make it 460."""
    assert dense_count(64, 5, 10) == 385
    assert [widest(64, 10, budget) for budget in (385, 459, 460, 84, 85, 3)] == [5, 5, 6, 0, 1, 0]
    assert dense_count(3, widest(3, 1, 57), 1) <= 57


def test_without_a_hidden_layer_dense_wider_and_with_direct_connections():
    tried = structures(64, 10, 400)
    assert tried[:2] == [Candidate(0, False, 400), Candidate(5, False, 400)]
    assert [c.hidden for c in tried[2:] if not c.direct] == [10, 15, 20, 30]
    assert [c.hidden for c in tried if c.direct] == [8, 16, 32]
    assert [c.hidden for c in structures(64, 10, 1100) if c.direct] == [8, 16, 32, 64, 128]
    assert [c.hidden for c in structures(64, 10, 50) if not c.direct] == [0, 2, 3, 4, 6]


def test_fewer_are_trained_for_longer_in_each_round(found):
    by_round = [[entry for entry in found.table if entry.share == share] for share in ROUNDS]
    assert len(by_round[0]) == len(structures(64, 10, 400))
    best = sorted(by_round[0], key=lambda entry: entry.rank)[: ENTER_SECOND - 1]
    kept = {(entry.candidate.hidden, entry.candidate.direct) for entry in by_round[1]}
    assert kept >= {(entry.candidate.hidden, entry.candidate.direct) for entry in best}
    assert {e.candidate.kind for e in by_round[1]} == {e.candidate.kind for e in by_round[0]}
    smoothed = [entry for entry in by_round[1] if entry.candidate.smoothing]
    curved = [entry for entry in by_round[1] if entry.candidate.activation == "silu"]
    assert len(by_round[1]) == ENTER_SECOND + len(smoothed) + len(curved)
    assert len(smoothed) == 1
    assert len(curved) <= 2
    relu = {entry.candidate for entry in by_round[1] if entry.candidate.activation == "relu"}
    assert {replace(entry.candidate, activation="relu") for entry in curved} <= relu
    assert 4 <= len(by_round[2]) <= 8
    names = {entry.candidate.name for entry in by_round[2]}
    assert names > {"no hidden layer", "5 hidden neurons"}
    assert len({entry.candidate.lr for entry in by_round[2]}) > 1


def scored(candidate, score):
    return Entry(candidate, 1.0, scores=[score], losses=[1.0])


def test_no_hidden_layer_wins_within_a_standard_error():
    """At 90 % of 100 samples the standard error is 3 %."""
    fold = Fold(*(torch.zeros(100, 2) for _ in range(4)))
    task = Task([fold], 2, None, 0, evaluate=None)
    hidden, plain = Candidate(8, True, 50), Candidate(0, False, 50)
    for score, winner in ((0.875, plain), (0.865, hidden)):
        ranked = [scored(hidden, 0.9), scored(plain, score)]
        assert searching._simplest(task, ranked).candidate == winner


def test_very_few_samples_are_compared_by_losses():
    """Losses differ in each fold by 0.2 ± 0.1, or by 0.2 ± 0.9."""
    folds = [Fold(*(torch.zeros(20, 2) for _ in range(4)))] * MOST_FOLDS
    task, hidden, plain = (
        Task(folds, 2, None, 0, evaluate=None),
        Candidate(8, False, 50),
        Candidate(0, False, 50),
    )
    for spread, winner in ((0.1, hidden), (0.9, plain)):
        noise = spread * np.array([-1, 1, -1, 1, 0])
        better = Entry(hidden, 1.0, scores=[0.8] * MOST_FOLDS, losses=[0.5] * MOST_FOLDS)
        worse = Entry(plain, 1.0, scores=[0.9] * MOST_FOLDS, losses=list(0.7 + noise))
        ranked = sorted([worse, better], key=lambda entry: entry.rank)
        assert ranked[0] is better
        assert searching._simplest(task, ranked).candidate == winner


def entry(scores, blocks=False):
    return Entry(Candidate(8, False, 50, blocks=blocks), 1.0, scores=scores, losses=[1.0] * len(scores))


@pytest.mark.parametrize(
    ("scores", "as_good"),
    [
        ([0.9], False),  # one fold tells no difference's error
        ([0.9, 0.8], True),  # equal
        ([0.86, 0.81], True),  # worse by 1.5 % ± 2.5 %
        ([0.86, 0.79], False),  # worse by 2.5 % ± 1.5 %
        ([], False),  # diverged
    ],
)
def test_a_paired_difference_has_an_error_from_two_folds_on(scores, as_good):
    assert searching._paired(entry(scores), entry([0.9, 0.8][: len(scores) or 2])) == as_good


@pytest.mark.parametrize(
    ("behind", "folds", "asked", "wins"),
    [
        ([0.0, 0.02], 2, True, True),
        ([0.01, 0.02], 2, True, False),
        ([0.0, 0.02], 2, False, None),  # not asked for
        ([0.0], 1, True, None),  # the interval cannot be known
    ],
)
def test_blocks_are_preferred_where_they_are_as_good(behind, folds, asked, wins, monkeypatch):
    def train(task, candidates, epochs, share, finished):
        number = task.seed  # of the fold, whose networks are trained one by one

        def score(c):
            return 0.4 + 0.3 * (c.hidden > 0) + 0.1 * (c.activation == "silu") - behind[number] * c.blocks

        return [Entry(c, share, scores=[score(c)], losses=[1.0]) for c in candidates]

    monkeypatch.setattr(training, "_train", train)
    fold = Fold(torch.zeros(300, 64), *(torch.zeros(300, 2) for _ in range(3)))
    task = Task([fold] * folds, 10, None, 0, evaluate=None)
    entries = searching.search(task, 400, 8, prefer_blocks=asked)
    blocks = [e for e in entries if e.candidate.blocks]
    assert [e is entries[0] for e in blocks] == ([] if wins is None else [wins])
    for e in blocks:  # trained as the winner is
        assert (e.candidate.hidden, e.candidate.activation, e.share) == (5, "silu", 1)
        assert Entry.from_dict(json.loads(json.dumps(e.to_dict()))) == e


def test_blocks_are_not_tried_where_too_few_weights_could_be_pruned():
    """With three inputs a neuron's copies cost more than half of its inputs."""
    fold = Fold(torch.zeros(30, 3), *(torch.zeros(30, 2) for _ in range(3)))
    task = Task([fold, fold], 10, None, 0, evaluate=None)
    assert not task.expands(Candidate(8, False, 150, blocks=True))


def test_a_preferred_network_is_packed_as_blocks(monkeypatch):
    monkeypatch.setattr(searching, "structures", lambda *sizes: structures(*sizes)[1:3])
    monkeypatch.setattr(searching, "_paired", lambda entry, best: True)
    found = fpe.recommend(X, y, 400, prefer_blocks=True, **QUICK)
    assert found.best.candidate == replace(found.best.candidate, hidden=5, blocks=True)
    assert not found.best.dense
    assert found.classifier.n_nonzero_ == found.best.nonzero == 385
    formats = [row.format for row in fpe.pack(found.classifier.model_).fpe_packing.rows]
    assert "blocks" in formats
    clf = eval(found.python(), {"fpe": fpe, **vars(fpe)}).set_params(epochs=8).fit(X, y)
    assert [row.format for row in fpe.pack(clf.model_).fpe_packing.rows] == formats
    assert clf.n_nonzero_ == 385


def test_a_preference_without_a_search_is_refused():
    with pytest.raises(ArgumentError, match="prefer_blocks"):
        FPEClassifier(hidden=8, budget=200, prefer_blocks=True).fit(X, y)


@pytest.mark.parametrize(
    ("before", "after", "rates"),
    [
        (0.9, 0.89, (2.5e-3, 6.25e-4)),
        (0.9, 0.907, (1e-2, 2.5e-3)),
        (0.9, 0.915, (1e-2, 2e-2)),
        (0.8, 0.9, (2e-2, 4e-2)),
        (-math.inf, -math.inf, (2.5e-3, 6.25e-4)),
    ],
)
def test_the_more_longer_training_helps_the_higher_is_the_rate(before, after, rates):
    assert searching._rates(before, after) == pytest.approx(rates)


def test_what_helps_the_best_network_is_kept(monkeypatch):
    """SiLU helps, and higher rates do; label smoothing did not help in the second round."""

    def train(task, candidates, epochs, share, finished):
        def score(c):
            longer = 0.09 * (share > ROUNDS[0])
            return 0.4 + longer + 0.1 * (c.hidden == 10) + 0.1 * (c.activation == "silu") - c.smoothing + c.lr

        return [Entry(c, share, scores=[score(c)], losses=[1.0]) for c in candidates]

    monkeypatch.setattr(training, "_train", train)
    fold = Fold(torch.zeros(300, 64), *(torch.zeros(300, 2) for _ in range(3)))
    entries = searching.search(Task([fold], 10, None, 0, evaluate=None), 400, 8)
    rates = [RATE, 2 * RATE, 4 * RATE]
    assert entries[0].candidate == Candidate(10, False, 400, lr=rates[-1], activation="silu")
    tried = [entry.candidate for entry in entries if entry.share == 1 and entry.candidate.hidden == 10]
    assert {(c.activation, c.lr) for c in tried} == {("silu", rate) for rate in rates}
    assert not any(entry.candidate.smoothing for entry in entries if entry.share == 1)


@pytest.mark.parametrize(("lead", "activations"), [(0.2, {"relu"}), (0.01, {"relu", "silu"})])
def test_where_no_hidden_layer_is_clearly_better_no_other_activation_is_tried(lead, activations, monkeypatch):
    """At 70 % of 300 samples the standard error is 2.6 %."""

    def train(task, candidates, epochs, share, finished):
        return [Entry(c, share, scores=[0.7 - lead * (c.hidden > 0)], losses=[1.0]) for c in candidates]

    monkeypatch.setattr(training, "_train", train)
    fold = Fold(torch.zeros(300, 64), *(torch.zeros(300, 2) for _ in range(3)))
    entries = searching.search(Task([fold], 10, None, 0, evaluate=None), 400, 8)
    assert entries[0].candidate.hidden == 0
    assert {entry.candidate.activation for entry in entries} == activations


def test_no_network_has_more_than_the_budget_and_the_winner_is_trained(found):
    assert max(entry.nonzero for entry in found.table) == 400
    assert [clf.n_nonzero_ for clf in found.classifiers] == [100, 200, 400]
    assert found.classifier.score(X, y) > 0.8


def tried(hidden, score, nonzero=90, share=1.0, losses=(), **how):
    candidate = Candidate(hidden, how.pop("direct", False), how.pop("budget", 100), **how)
    return Entry(candidate, share, nonzero, [score], list(losses) or [1 - score])


def recommendation(*searches):
    """What was found for budgets of 100, 200, …, without any training."""
    classifiers = []
    for number, own in enumerate(searches, 1):
        classifiers.append(FPEClassifier(budget=100 * number))
        classifiers[-1].search_ = list(own)
    return Recommendation(100 * len(searches), classifiers)


def test_a_smaller_network_that_is_better_is_the_best_of_a_larger_budget_too():
    found = recommendation([tried(0, 0.85, 36)], [tried(4, 0.84, 198)], [tried(8, 0.9, 300)])
    assert [own.budget for own in found.winners] == [100, 100, 300]
    assert [e.nonzero for e in found.front] == [36, 36, 300]
    two = recommendation([tried(0, 0.85, 36)], [tried(4, 0.84, 198)])
    assert two.classifier is two.classifiers[0]
    assert two.sentence() == "best of 200 non-zeros: no hidden layer, 85.0 %"
    rows = [line.split() for line in repr(two).splitlines() if "no hidden layer" in line]
    assert rows[1:] == [
        ["100", "36", "no", "hidden", "layer", "85.0"],
        ["200", "36", "no", "hidden", "layer", "85.0"],
    ]


def test_rivals_are_not_the_winner_at_another_rate():
    same, other, dense = tried(0, 0.8, 36, lr=0.04), tried(0, 0.82, 36), tried(3, 0.7, 95)
    assert recommendation([other, same, dense]).rivals == [dense]


def test_what_is_printed_says_how_the_winner_was_chosen():
    """By accuracy; by loss with few samples; as the simpler one within a standard error."""
    best, higher = tried(8, 0.9), tried(4, 0.91)
    few = [tried(4, 0.9, losses=[0.1] * MOST_FOLDS), tried(8, 0.92, losses=[0.2] * MOST_FOLDS)]
    assert "the winner was chosen: its own is optimistic" in repr(recommendation([best]))
    assert "by the loss, as samples are few" in repr(recommendation(few))
    assert "within a standard error" in repr(recommendation([tried(0, 0.9), higher]))


def test_what_is_printed_counts_structures_and_not_rates():
    last = [tried(8, 0.9), tried(8, 0.8, lr=0.1)]
    assert "lost in shorter runs" not in repr(recommendation(last))
    assert "of 2 networks that were tried" in repr(recommendation([*last, tried(4, 0.7, share=0.125)]))


@pytest.mark.parametrize("ours", [36, 150])
def test_the_figure_shows_dense_networks_though_none_with_neurons_wins(ours, tmp_path, monkeypatch):
    """Also if one network is the best of two budgets."""
    drawn, plot = [], Axes.plot

    def recorded(axes, x, y, *style, label, **how):
        drawn.append((label, list(x), list(y)))
        return plot(axes, x, y, *style, label=label, **how)

    monkeypatch.setattr(Axes, "plot", recorded)
    softmax, dense = tried(0, 0.8, ours, budget=200), tried(13, 0.75, 198, budget=200)
    found = recommendation([tried(0, 0.85, 36)], [softmax, dense])
    rows = [{"nonzero": 36, "validation_accuracy": 0.85, "test_accuracy": 0.8}] * 2
    budget_figure(found, rows, "people", tmp_path / "accuracy.png")
    lines = {label: xy for label, *xy in drawn}
    assert lines["dense"] == [[198], [75.0]]
    assert lines["no hidden layer"] == ([[36], [85.0]] if ours == 36 else [[36, 150], [85.0, 80.0]])
    assert lines["best, on the test data"] == [[36], [80.0]]
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_finds_the_same():
    one, two = (fpe.recommend(X, y, 200, seed=3, **QUICK) for _ in range(2))
    assert one.to_dict() == two.to_dict()


@pytest.mark.parametrize("folds", [1, 2, MOST_FOLDS])
def test_several_processes_find_the_same(folds, monkeypatch):
    monkeypatch.setattr(network, "fold_count", lambda samples: folds)
    monkeypatch.setattr(searching, "structures", lambda *sizes: structures(*sizes)[:3])
    one, two = (FPEClassifier(budget=200, epochs=8, n_jobs=jobs).fit(X, y).search_ for jobs in (1, 2))
    assert [entry.candidate for entry in one] == [entry.candidate for entry in two]
    for entry, other in zip(one, two, strict=True):
        assert len(entry.scores) == len(entry.losses) == folds
        assert entry.nonzero == other.nonzero
        assert entry.losses == pytest.approx(other.losses, rel=1e-3)


def test_progress_counts_the_epochs_of_all_networks():
    for jobs in (1, 2):
        fold = Fold(*(torch.from_numpy(array) for array in (X[:200], y[:200], X[200:], y[200:])))
        told = []
        task = Task([fold], 10, None, 0, accuracy_of, jobs=jobs)
        searching.search(task, 200, 8, on_epoch=lambda *own, told=told: told.append(own))
        texts, done, totals = zip(*told, strict=True)
        assert list(dict.fromkeys(texts)) == ["round 1 of 3", "round 2 of 3", "round 3 of 3"]
        assert list(done) == sorted(done)
        assert 0.7 * totals[-1] < done[-1] <= totals[-1]


def test_it_prints_and_becomes_json(found):
    text = repr(found)
    assert text.startswith(f"best of 400 non-zeros: {found.best.candidate.name}, ")
    assert "no hidden layer" in text
    assert "5 hidden neurons, dense" in text
    assert "optimistic" in text
    assert json.loads(json.dumps(found.to_dict()))["budget"] == 400


def test_the_line_of_python_makes_the_winner(found):
    clf = eval(found.python(), {"fpe": fpe, **vars(fpe)})
    candidate = found.best.candidate
    made = (clf.hidden, clf.direct, clf.activation, clf.budget, clf.lr, clf.l2)
    assert made == (candidate.hidden, candidate.direct, candidate.activation, 400, candidate.lr, candidate.l2)
    assert clf.set_params(epochs=8).fit(X, y).n_nonzero_ == found.best.nonzero


def test_an_interrupted_search_is_resumed_and_finds_the_same(tmp_path, monkeypatch):
    """Ctrl-C after three groups of candidates: they are not trained again."""
    how = {**QUICK, "folder": tmp_path}
    train, calls = training._train, []

    def counting(task, candidates, *rest):
        calls.append(len(candidates))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(task, candidates, *rest)

    monkeypatch.setattr(training, "_train", counting)
    with pytest.raises(KeyboardInterrupt):
        fpe.recommend(X, y, 200, **how)
    again = fpe.recommend(X, y, 200, **how)
    assert again.to_dict() == fpe.recommend(X, y, 200, **QUICK).to_dict()
    before = len(calls)
    assert fpe.recommend(X, y, 200, **how).to_dict() == again.to_dict()
    assert len(calls) == before


@pytest.mark.parametrize("jobs", [1, 2])
def test_processes_are_not_started_for_nothing_and_end_with_the_last_network(jobs, monkeypatch):
    """joblib warns of tasks that it cancels, of none, too."""
    fold = Fold(*(torch.from_numpy(array) for array in (X[:200], y[:200], X[200:], y[200:])))
    task = Task([fold], 10, None, 0, accuracy_of, jobs=jobs)
    three = structures(64, 10, 200)[:3]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [entry.candidate for made in training.trained(task, three, 1) for entry in made] == three
        left = training.trained(task, three, 1)
        assert next(left)[0].candidate == three[0]
        left.close()
        gc.collect()
        monkeypatch.setattr(training.joblib, "Parallel", None)
        assert list(training.trained(task, [], 1)) == []
    assert [str(own.message) for own in caught if "tasks" in str(own.message)] == []


def test_what_diverges_loses_and_is_named(monkeypatch):
    monkeypatch.setattr(searching, "FACTORS", ((math.inf, (1.0, 1e40)),))
    entries = fpe.recommend(X, y, 100, **QUICK).table
    failed = [entry for entry in entries if entry.reason]
    assert {entry.candidate.lr for entry in failed} == {RATE * 1e40}
    assert "smaller learning rate" in failed[0].reason
    monkeypatch.setattr(searching, "RATE", 1e38)
    monkeypatch.setattr(searching, "Candidate", lambda *a, **k: Candidate(*a, **{**k, "lr": 1e38}))
    with pytest.raises(ArgumentError, match="all candidates diverged"):
        fpe.recommend(X, y, 100, **QUICK)


def test_a_share_of_each_class_is_held_out_and_never_all_of_it():
    codes = np.array([0] * 10 + [1] * 5 + [2] * 2 + [3])
    kept, held = hold_out(codes, 0.2, 0)
    assert np.bincount(codes[held], minlength=4).tolist() == [2, 1, 1, 0]
    assert sorted([*kept, *held]) == list(range(18))
    assert hold_out(codes, 0.2, 0)[1].tolist() == held.tolist() != hold_out(codes, 0.2, 1)[1].tolist()


def test_bad_arguments():
    for budget in (0, 2.5, True):
        with pytest.raises(ArgumentError, match=f"budget is {budget!r}"):
            fpe.recommend(X, y, budget)
    with pytest.raises(ArgumentError, match="epochs is -1"):
        fpe.recommend(X, y, 100, epochs=-1)
    for given in ({"factor": 2}, {"activation": "silu"}, {"label_smoothing": 0.1}):
        with pytest.raises(ArgumentError, match=f"{next(iter(given))} is given; give hidden"):
            FPEClassifier(budget=100, **given).fit(X, y)
    with pytest.raises(ArgumentError, match="activation is 'swish'; give one of relu, gelu, silu, tanh"):
        FPEClassifier(hidden=4, activation="swish").fit(X, y)


def test_a_part_of_a_budget_that_is_too_small_for_any_network_is_left_out():
    found = fpe.recommend(X, y, 30, epochs=8)
    assert [clf.n_nonzero_ for clf in found.classifiers] == [15, 30]
    with pytest.raises(BudgetError, match="budget is 7"):
        fpe.recommend(X, y, 7, **QUICK)
    with pytest.raises(BudgetError, match="budget is 2"):  # of which a quarter is none
        fpe.recommend(X, y, 2, epochs=8)


def test_partial_fit_after_fit_scales_as_fit_did():
    """Features far from zero: without the scaling the network would see other inputs than before."""
    shifted = X + 1000
    clf = FPEClassifier(hidden=8, budget=300, epochs=40).fit(shifted, y)
    before = clf.history_[-1]["loss"]
    clf.partial_fit(shifted, y)
    assert clf.history_[-1]["loss"] < before + 0.1


def test_several_labels_weights_and_sparse_features():
    features, labels = make_multilabel_classification(120, 12, n_classes=4, random_state=0)
    several = FPEClassifier(budget=40, epochs=8).fit(features, labels)
    assert several.predict(features).shape == several.predict_proba(features).shape == (120, 4)
    assert several.n_nonzero_ == 40
    dense = FPEClassifier(budget=200, epochs=8, class_weight="balanced").fit(X, y)
    sparse = FPEClassifier(budget=200, epochs=8, class_weight="balanced").fit(scipy.sparse.csr_array(X), y)
    assert np.array_equal(dense.predict(X), sparse.predict(scipy.sparse.csr_array(X)))


def test_a_weight_of_a_class_moves_the_decisions_to_it():
    binary = (y == 3).astype(int)
    how = {"hidden": 4, "budget": 60, "epochs": 10}
    plain, heavy = (
        FPEClassifier(class_weight=w, **how).fit(X, binary).predict_proba(X)[:, 1].mean()
        for w in (None, {1: 50})
    )
    assert heavy > plain


def test_a_regressor_predicts_numbers_in_their_own_units():
    features, target = load_diabetes(return_X_y=True)
    model = FPERegressor(budget=40, epochs=30).fit(features, target)
    assert model.n_nonzero_ <= 40
    assert model.score(features, target) > 0.4
    two = np.column_stack([target, -3 * target + 7])
    assert (
        FPERegressor(hidden=4, budget=50, epochs=30).fit(features, two).predict(features).shape == two.shape
    )


def test_a_stored_search_of_a_sparse_matrix_is_of_its_values(tmp_path):
    rng = np.random.default_rng(0)
    X = scipy.sparse.random(60, 12, density=0.4, format="csr", random_state=0)
    y = (rng.random(60) > 0.5).astype(int)
    how = {"budget": 10, "epochs": 2, "seed": 0, "folder": tmp_path}
    fpe.recommend(X, y, **how)
    other = X.copy()
    other.data = other.data[::-1].copy()
    fresh = fpe.recommend(other, y, **{**how, "folder": None})
    assert [e.score for e in fpe.recommend(other, y, **how).classifier.search_] == [
        e.score for e in fresh.classifier.search_
    ]


def test_a_search_of_no_epochs_is_refused():
    with pytest.raises(ArgumentError, match="epochs is 0"):
        FPEClassifier(budget=10, epochs=0).fit(np.eye(6), [0, 1] * 3)
