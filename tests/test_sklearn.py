"""`FPEClassifier`: what it learns, what it refuses, and how it lives with scikit-learn."""

import inspect
import os
import pickle
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fpe
from fpe.errors import ArgumentError, BudgetError, DataError
from fpe.sklearn import FPEClassifier
from fpe.training.loop import EarlyStopping, adam, train
from models import same_state

RNG = np.random.default_rng(0)
CENTRES = 2 * RNG.normal(size=(3, 8))
CODES = np.arange(150) % 3
X = (CENTRES[CODES] + RNG.normal(size=(150, 8))).astype(np.float32)
QUICK = {"hidden": 4, "warmup_epochs": 4, "epochs": 4, "lr": 1e-2, "scale": None}


def quick(**parameters):
    return FPEClassifier(**{**QUICK, **parameters})


@pytest.fixture(scope="module")
def learnt():
    return FPEClassifier(hidden=4, warmup_epochs=40, epochs=40, lr=1e-2, scale=None).fit(X, CODES)


def weights(clf):
    return torch.cat([p.detach().flatten() for p in clf.model_.parameters()])


class TestFit:
    def test_it_learns_with_no_more_weights(self, learnt):
        assert learnt.score(X, CODES) > 0.9
        assert learnt.dense_model_[0].out_features == 4
        assert learnt.model_[0].out_features == 8
        assert learnt.n_nonzero_ == fpe.count_nonzero(learnt.dense_model_) == 8 * 4 + 4 + 4 * 3 + 3

    @pytest.mark.parametrize(
        "labels", [["ant", "bee", "cow"], [-7, 0, 10**6], [0.0, 1.0, 2.0], np.array(["x", "y", "z"], object)]
    )
    def test_labels_of_any_type(self, learnt, labels):
        y = np.asarray(labels)[CODES]
        clf = FPEClassifier(hidden=4, warmup_epochs=40, epochs=40, lr=1e-2, scale=None).fit(X, y)
        assert np.array_equal(clf.classes_, np.unique(y))
        assert clf.predict(X).dtype == np.asarray(labels).dtype
        assert clf.score(X, y) == learnt.score(X, CODES)

    def test_two_classes_have_one_logit(self):
        few = CODES < 2
        y = np.array(["no", "yes"])[CODES[few]]
        clf = quick(epochs=40).fit(X[few], y)
        assert clf.model_[-1].out_features == 1
        decision, probability = clf.decision_function(X[few]), clf.predict_proba(X[few])
        assert decision.shape == (100,)
        np.testing.assert_allclose(probability[:, 1], 1 / (1 + np.exp(-decision)), rtol=1e-12)
        assert np.array_equal(clf.predict(X[few]) == "yes", decision > 0)
        assert clf.score(X[few], y) > 0.9

    def test_outputs_agree_with_each_other_and_with_the_model(self, learnt):
        decision, probability = learnt.decision_function(X), learnt.predict_proba(X)
        assert decision.shape == probability.shape == (150, 3)
        np.testing.assert_allclose(probability.sum(1), 1, rtol=1e-12)
        assert np.array_equal(learnt.predict(X), decision.argmax(1))
        assert np.array_equal(probability.argmax(1), decision.argmax(1))
        with torch.no_grad():
            np.testing.assert_allclose(
                learnt.model_(torch.from_numpy(X)).numpy(), decision, rtol=1e-5, atol=1e-5
            )

    def test_the_history_tells_both_stages(self):
        clf = quick(warmup_epochs=2, epochs=3).fit(X, CODES)
        assert [r["stage"] for r in clf.history_] == ["dense"] * 2 + ["expanded"] * 3
        assert [r["epoch"] for r in clf.history_] == [1, 2, 3, 4, 5]

    def test_a_factor_of_one_is_the_dense_baseline(self):
        """Trained for as long in total, by one Adam without a new start."""
        baseline = quick(factor=1, warmup_epochs=3, epochs=5).fit(X, CODES)
        plain = quick(factor=1, warmup_epochs=8, epochs=0).fit(X, CODES)
        assert baseline.model_ is baseline.dense_model_
        assert {r["stage"] for r in baseline.history_} == {"dense"}
        assert torch.equal(weights(baseline), weights(plain))
        assert baseline.n_nonzero_ == quick().fit(X, CODES).n_nonzero_

    def test_the_dense_network_is_kept_as_it_was_at_the_expansion(self):
        dense = quick(epochs=0, factor=1).fit(X, CODES)
        expanded = quick(epochs=3).fit(X, CODES)
        assert torch.equal(dense.dense_model_[0].weight, expanded.dense_model_[0].weight)

    def test_several_hidden_layers_and_other_splits(self):
        clf = quick(hidden=[6, 5, 4], split="gram").fit(X, CODES)
        assert clf.n_nonzero_ == fpe.count_nonzero(clf.dense_model_)
        assert [layer.out_features for layer in clf.model_ if hasattr(layer, "out_features")] == [12, 5, 8, 3]

    @pytest.mark.parametrize(
        ("dtype", "expected"), [("float32", "float32"), ("float64", "float64"), ("int64", "float64")]
    )
    def test_it_computes_in_the_type_of_the_data(self, dtype, expected):
        clf = quick().fit(X.astype(dtype), CODES)
        assert clf.model_[0].weight.dtype == getattr(torch, expected)

    def test_the_same_seed_gives_the_same_result_and_another_another(self):
        one, again, other = (quick(random_state=s).fit(X, CODES) for s in (3, 3, 4))
        assert torch.equal(weights(one), weights(again))
        assert not torch.equal(weights(one), weights(other))

    def test_global_random_states_are_neither_used_nor_moved(self):
        torch.manual_seed(1)
        before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
        one = quick().fit(X, CODES)
        assert torch.equal(torch.get_rng_state(), before)
        assert np.array_equal(np.random.get_state()[1], numpy_before)
        torch.manual_seed(2)
        assert torch.equal(weights(one), weights(quick().fit(X, CODES)))

    def test_a_random_state_object_moves_on(self):
        state = np.random.RandomState(0)
        one, other = (quick(random_state=state).fit(X, CODES) for _ in range(2))
        assert not torch.equal(weights(one), weights(other))

    def test_fitting_again_starts_afresh(self):
        clf = quick().fit(X, CODES)
        first = weights(clf).clone()
        assert torch.equal(weights(clf.fit(X, CODES)), first)
        clf.fit(X[:, :5], CODES + 1)
        assert (clf.n_features_in_, clf.classes_.tolist(), len(clf.history_)) == (5, [1, 2, 3], 8)

    def test_the_data_stays_as_it_is(self):
        features, labels = X.copy(), CODES.copy()
        quick().fit(features, labels)
        assert np.array_equal(features, X)
        assert np.array_equal(labels, CODES)

    def test_patience_stops_the_training_of_noise(self):
        noise = np.random.default_rng(1).integers(0, 3, 150)
        clf = quick(warmup_epochs=300, epochs=300, patience=3).fit(X, noise)
        stages = [r["stage"] for r in clf.history_]
        assert 3 < stages.count("dense") < 300
        assert 3 <= stages.count("expanded") < 300
        assert all(np.isfinite(r["validation_loss"]) for r in clf.history_)

    def test_patience_works_where_a_class_is_too_rare_to_be_held_out_in_proportion(self):
        y = np.r_[2, CODES[1:] % 2]
        assert quick(patience=2).fit(X, y).classes_.tolist() == [0, 1, 2]

    def test_l2_shrinks_the_weights(self):
        assert weights(quick(l2=0.5).fit(X, CODES)).norm() < 0.7 * weights(quick().fit(X, CODES)).norm()


class TestSampleWeight:
    def test_ones_are_none(self):
        plain, ones = quick().fit(X, CODES), quick().fit(X, CODES, sample_weight=np.ones(150))
        torch.testing.assert_close(weights(plain), weights(ones), rtol=1e-4, atol=1e-5)

    def test_what_has_weight_zero_teaches_nothing(self):
        """All samples in one mini-batch: labels of weight 0 may be anything."""
        weight = np.r_[np.zeros(60), np.ones(90)]
        wrong = np.r_[(CODES[:60] + 1) % 3, CODES[60:]]
        one = quick(batch_size=150).fit(X, CODES, sample_weight=weight)
        other = quick(batch_size=150).fit(X, wrong, sample_weight=weight)
        assert torch.equal(weights(one), weights(other))
        assert not torch.equal(weights(one), weights(quick(batch_size=150).fit(X, CODES)))

    def test_early_stopping_weighs_the_held_out_samples_too(self):
        """Samples of weight 0 may be anywhere."""
        weight = (np.arange(150) % 5 > 0).astype(float)
        moved = np.where(weight[:, None] > 0, X, 3 - X)
        one, other = (quick(patience=2, batch_size=150) for _ in range(2))
        one.fit(X, CODES, sample_weight=weight)
        other.fit(moved, CODES, sample_weight=weight)
        assert one.history_ == other.history_
        assert torch.equal(weights(one), weights(other))

    @pytest.mark.parametrize(
        ("weight", "message"),
        [(np.ones(149), "sample_weight"), (-np.ones(150), "[Nn]egative"), (np.full(150, np.nan), "NaN")],
    )
    def test_bad_weights_are_refused(self, weight, message):
        with pytest.raises(ValueError, match=message):
            quick().fit(X, CODES, sample_weight=weight)


class TestBadInput:
    def test_all_wrong_parameters_are_told_at_once(self):
        clf = FPEClassifier(
            hidden=-1, factor=1.5, split="randon", warmup_epochs=-1, epochs="many", lr=0, batch_size=0,
            l2=-1, patience=0, validation_fraction=2,
        )  # fmt: skip
        with pytest.raises(ArgumentError) as caught:
            clf.fit(X, CODES)
        numbers = ["hidden is -1", "warmup_epochs is -1", "epochs is 'many'", "lr is 0", "batch_size is 0"]
        others = ["l2 is -1", "patience is 0", "validation_fraction is 2", "factor", "Did you mean 'random'"]
        assert [text for text in numbers + others if text not in str(caught.value)] == []
        assert not hasattr(clf, "classes_")

    @pytest.mark.parametrize("factor", [0, -2, 1.5, "2", True, 9])
    def test_a_wrong_factor(self, factor):
        with pytest.raises(ArgumentError, match="factor"):
            quick(factor=factor).fit(X, CODES)

    @pytest.mark.parametrize(
        ("features", "labels", "message"),
        [
            (np.where(X[3, 1] == X, np.nan, X), CODES, "NaN"),
            (np.where(X[3, 1] == X, np.inf, X), CODES, "infinity"),
            (X, CODES[:-1], r"inconsistent numbers of samples.*150.*149"),
            (X, np.zeros(150), "one class only, 0.0"),
            (X, np.array(["only"] * 150), "one class only, .*'only'"),
            (X, np.linspace(0, 1, 150), "continuous"),
            (X[:0], CODES[:0], "minimum of 1 is required"),
            (X[:, 0], CODES, "Expected 2D array"),
            (X.astype(complex), CODES, "[Cc]omplex"),
        ],
    )
    def test_bad_data(self, features, labels, message):
        with pytest.raises(ValueError, match=message):
            quick().fit(features, labels)

    def test_a_sparse_matrix_that_would_be_too_large_is_refused(self, monkeypatch):
        monkeypatch.setattr("fpe.sklearn.inputs.MOST_BYTES", 1000)
        with pytest.raises(DataError, match="TruncatedSVD"):
            quick().fit(scipy.sparse.csr_array(X), CODES)

    def test_what_cannot_be_expanded_is_told_before_the_warm_up(self):
        clf = quick(split="shared", prune="columns", factor=8, warmup_epochs=10**6)
        with pytest.raises(BudgetError, match="give a smaller factor"):
            clf.fit(X, CODES)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (np.where(CODES == 1, np.nan, CODES), "NaN or missing labels in 50 of 150 samples.*position 1"),
            ([None, *CODES[1:]], "missing labels in 1 of 150 samples.*position 0"),
            (np.array(["a", None, "b"] * 50, dtype=object), "missing labels in 50 of 150"),
            ([[code] * (1 + code) for code in CODES.tolist()], "types list"),
            (X[:, :3], r"shape \(150, 3\)"),
            ([1, "b", "c"] * 50, "types number, str"),
            (X[:, 0], "continuous"),
            (CODES * 0, "one class only, 0; give samples of at least two"),
        ],
        ids=["NaN", "None", "object", "lists", "columns", "mixed", "continuous", "one"],
    )
    def test_bad_labels(self, labels, message):
        with pytest.raises(ValueError, match=message):
            quick().fit(X, labels)

    @pytest.mark.parametrize("kind", [fpe.FPEClassifier, fpe.FPERegressor])
    def test_a_table_with_text_or_gaps_is_told_who_encodes_it(self, kind):
        pandas = pytest.importorskip("pandas")
        table = pandas.DataFrame(
            {"age": [1.0, np.nan] * 10, "city": ["Bonn", "Rome"] * 10, "size": range(20)}
        )
        y = [0, 1] * 10
        with pytest.raises(DataError, match=r"'age', 'city'\. fpe\.data\.load"):
            kind(hidden=2).fit(table, y)
        fitted = kind(hidden=2, factor=1, epochs=1).fit(table[["size"]], y)
        with pytest.raises(ValueError, match="feature names") as told:
            fitted.predict(table[["size"]].rename(columns={"size": "length"}))
        assert "encode" not in str(told.value)

    def test_missing_labels_of_pandas(self):
        pandas = pytest.importorskip("pandas")
        whole = pandas.Series(CODES, dtype="Int64")
        assert quick(epochs=1).fit(X, whole).predict(X).dtype.kind == "i"
        assert quick(epochs=1).fit(X, whole.astype(object)).predict(X).dtype.kind == "i"
        for gaps in (whole, whole.astype("string"), whole.astype(object)):
            with pytest.raises(DataError, match=r"missing labels in 1 of 150 samples.*position 2"):
                quick().fit(X, gaps.where(np.arange(150) != 2))

    @pytest.mark.filterwarnings("error")
    def test_any_layout_and_type_of_numbers(self, learnt):
        """Negative strides, memory that is read-only, half precision, integers: the same answer."""
        pandas = pytest.importorskip("pandas")
        whole = np.round(4 * X)
        expected = learnt.predict(whole)
        frozen = whole.copy()
        frozen.flags.writeable = False
        for same in (
            whole[::-1][::-1],
            whole.astype("float16"),
            whole.astype("int8"),
            frozen,
            whole.tolist(),
        ):
            assert np.array_equal(learnt.predict(same), expected)
        assert np.array_equal(learnt.predict(whole[::-1]), expected[::-1])
        assert np.array_equal(learnt.predict(whole[:1][::-1]), expected[:1])
        frame = pandas.DataFrame(whole)
        weight = np.ones(150, dtype=np.float32)
        weight.flags.writeable = False
        fits = [
            quick().fit(data, CODES, sample_weight=weight).predict(whole)
            for data in (whole, frame, frozen, whole[::-1][::-1])
        ]
        assert all(np.array_equal(found, fits[0]) for found in fits)

    def test_outputs_that_overflow_are_refused(self, learnt):
        """Else the class of NaN would be the first."""
        with pytest.raises(DataError, match=r"too large for the network's torch\.float32"):
            learnt.predict(X.astype(float) * 1e300)
        with np.errstate(all="ignore"), pytest.raises(DataError, match=r"NaN or infinite for .* Scale it"):
            learnt.predict_proba(np.sign(X) * np.float32(3e38))

    def test_a_refused_call_leaves_the_users_random_state(self):
        random = np.random.RandomState(0)
        with pytest.raises(BudgetError):
            quick(split="shared", prune="columns", factor=8, random_state=random).fit(X, CODES)
        assert random.randint(10**6) == np.random.RandomState(0).randint(10**6)

    def test_an_unfitted_estimator_says_so(self):
        with pytest.raises(ValueError, match="not fitted yet"):
            quick().predict(X)

    def test_other_features_in_prediction_are_refused(self, learnt):
        with pytest.raises(ValueError, match="X has 7 features, but FPEClassifier is expecting 8"):
            learnt.predict(X[:, :7])

    @pytest.mark.parametrize(
        ("parameters", "features", "labels"),
        [
            ({"lr": -1}, X, CODES),
            ({}, X, CODES * 0),
            ({}, np.full_like(X, np.nan), CODES),
            ({"lr": 1e38}, X, CODES),
            ({"split": "shared", "prune": "columns", "factor": 8}, X, CODES),
        ],
        ids=["parameter", "labels", "features", "training", "budget"],
    )
    def test_a_call_that_fails_leaves_what_was_fitted(self, parameters, features, labels):
        clf = quick().fit(X, CODES)
        before, expected = weights(clf).clone(), clf.predict(X)
        clf.set_params(**parameters)
        with pytest.raises(ValueError, match=r"\w"):
            clf.fit(features, labels)
        assert torch.equal(weights(clf), before)
        assert np.array_equal(clf.predict(X), expected)
        assert (len(clf.history_), clf.n_features_in_) == (8, 8)


class TestNames:
    @pytest.mark.parametrize("kind", [FPEClassifier, fpe.FPERegressor])
    def test_a_parameter_that_there_is_not_is_named_with_the_nearest(self, kind):
        with pytest.raises(TypeError, match=f"{kind.__name__} has no parameter 'budgte'.* 'budget'"):
            kind(budgte=3)
        with pytest.raises(TypeError, match=f"{kind.__name__} has no parameter 'zzz'.$"):
            kind(zzz=3)
        with pytest.raises(TypeError, match=f"{kind.__name__} takes only hidden by position"):
            kind(4, 200)
        assert list(kind(4).get_params()) == sorted(inspect.signature(kind).parameters)


class TestBudgets:
    def test_networks_that_take_too_much_memory_are_refused_before_training(self):
        for given in ({"budget": 100_000_000_000}, {"hidden": 10**15}):
            with pytest.raises(ArgumentError, match=r"GiB of memory|do not fit into memory"):
                FPEClassifier(**given).fit(X, CODES)

    def test_many_weights_for_each_row_are_warned_of(self, monkeypatch):
        def stop(*_, **how):
            raise fpe.FPEError("far enough")

        monkeypatch.setattr("fpe.sklearn.network.search", stop)
        message = "more than 100 weights for each of the 150 rows"
        with (
            pytest.warns(UserWarning, match=message) as caught,
            pytest.raises(fpe.FPEError, match="far enough"),
        ):
            FPEClassifier(budget=1_000_000).fit(X, CODES)
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(fpe.FPEError, match="far enough"):
                FPEClassifier(budget=1000).fit(X, CODES)


class TestPartialFit:
    def test_one_call_is_one_epoch_and_all_are_fit(self):
        """The same seed and the same mini-batches: the expansion comes after the warm-up by itself."""
        whole = quick(warmup_epochs=3, epochs=2).fit(X, CODES)
        parts = quick(warmup_epochs=3)
        for _ in range(5):
            parts.partial_fit(X, CODES, classes=[0, 1, 2])
        assert [r["stage"] for r in parts.history_] == ["dense"] * 3 + ["expanded"] * 2
        assert torch.equal(weights(parts), weights(whole))

    def test_after_fit_it_goes_on(self):
        clf = quick().fit(X, CODES)
        before = weights(clf).clone()
        clf.partial_fit(X[:40], CODES[:40])
        assert len(clf.history_) == 9
        assert not torch.equal(weights(clf), before)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_data_may_come_in_another_type(self, dtype):
        clf = quick(warmup_epochs=1).partial_fit(X, CODES, classes=[0, 1, 2])
        clf.partial_fit(X.astype(dtype), CODES)
        assert clf.predict(X.astype(dtype)).shape == (150,)

    @pytest.mark.parametrize("calls", [1, 3], ids=["dense", "rewired"])
    @pytest.mark.parametrize("size", [1e30, 3e38], ids=["gradients", "loss"])
    def test_a_batch_that_overflows_is_refused_and_leaves_everything_as_it_was(self, calls, size):
        """Adam's moments, the order of the data and the masks' generator too: it goes on as without it."""
        clf, twin = (quick(warmup_epochs=1, rewire="set", factor=2) for _ in range(2))
        small = X.astype("float32")
        for one in (clf, twin):
            for _ in range(calls):
                one.partial_fit(small, CODES, classes=[0, 1, 2])
        with pytest.raises(ValueError, match="scale the inputs"):
            clf.partial_fit(np.sign(small) * np.float32(size), CODES)
        for one in (clf, twin):
            for _ in range(3):
                one.partial_fit(small, CODES)
        assert clf.history_ == twin.history_
        assert torch.equal(weights(clf), weights(twin))

    def test_the_first_call_needs_the_classes(self):
        with pytest.raises(ArgumentError, match=r"classes must be given in the first call"):
            quick().partial_fit(X, CODES)

    def test_labels_and_classes_must_be_known_ones(self):
        clf = quick()
        with pytest.raises(DataError, match=r"labels \[2\] that are not among the classes \[0 1\]"):
            clf.partial_fit(X, CODES, classes=[0, 1])
        assert not hasattr(clf, "classes_")
        with pytest.raises(DataError, match="one class only"):
            clf.partial_fit(X, CODES * 0, classes=[0])
        clf.partial_fit(X, CODES, classes=[0, 1, 2])
        with pytest.raises(ArgumentError, match="the first call of partial_fit had"):
            clf.partial_fit(X, CODES, classes=[0, 1, 2, 3])
        assert len(clf.history_) == 1


class TestInScikitLearn:
    def test_clone_has_the_parameters_and_nothing_learnt(self, learnt):
        copy = clone(learnt)
        assert copy.get_params() == learnt.get_params()
        assert not hasattr(copy, "model_")

    def test_pickle_keeps_what_was_learnt_and_can_go_on(self, learnt):
        copy = pickle.loads(pickle.dumps(learnt))
        assert np.array_equal(copy.decision_function(X), learnt.decision_function(X))
        copy.partial_fit(X, CODES)
        assert copy.n_nonzero_ == learnt.n_nonzero_

    def test_pipeline_and_grid_search(self):
        pipeline = make_pipeline(StandardScaler(), quick(epochs=10))
        grid = {
            "fpeclassifier__factor": [1, 2],
            "fpeclassifier__split": ["random", "shared", fpe.LabelSplit(range(8))],
        }
        search = GridSearchCV(pipeline, grid, cv=2).fit(X, CODES)
        assert len(search.cv_results_["params"]) == 6
        assert search.best_score_ > 0.5

    def test_cross_validation_in_processes_gives_the_same_scores(self):
        alone = cross_val_score(quick(), X, CODES, cv=3)
        together = cross_val_score(quick(), X, CODES, cv=3, n_jobs=2)
        np.testing.assert_allclose(together, alone, atol=0.02)

    @pytest.mark.parametrize("kind", [fpe.FPEClassifier, fpe.FPERegressor])
    def test_the_order_of_features_in_memory_changes_no_bit(self, kind):
        rng = np.random.default_rng(0)
        features, targets = rng.normal(size=(400, 37)), rng.integers(0, 2, 400)
        how = {"hidden": 24, "epochs": 3, "batch_size": 50}
        rows, columns = (kind(**how).fit(order(features), targets) for order in (np.copy, np.asfortranarray))
        assert same_state(rows.model_, columns.model_)
        for order in (np.asfortranarray, scipy.sparse.csc_array):
            assert np.array_equal(rows.predict(order(features)), rows.predict(features))

    def test_names_of_features_are_kept(self):
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame(X, columns=list("abcdefgh"))
        clf = quick().fit(frame, CODES)
        assert clf.feature_names_in_.tolist() == list("abcdefgh")
        with pytest.raises(ValueError, match="feature names should match"):
            clf.predict(frame[list("hgfedcba")])


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
@pytest.mark.parametrize("stage", ["dense", "expanded"])
def test_after_ctrl_c_it_holds_the_last_finished_epoch(stage):
    """A real signal to a real process, sent by itself as soon as it is in the stage."""
    code = f"""
        import os, signal, threading, time
        import numpy as np
        from fpe.sklearn import FPEClassifier

        X = np.random.default_rng(0).normal(size=(4000, 20)).astype("float32")
        y = (X[:, 0] > 0).astype(int)
        clf = FPEClassifier(hidden=4, warmup_epochs={10**6 if stage == "dense" else 2}, epochs=10**6)

        def interrupt():
            while not any(r["stage"] == {stage!r} for r in getattr(clf, "history_", [])):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        try:
            clf.fit(X, y)
        except KeyboardInterrupt:
            print("stopped", clf.history_[-1]["stage"], clf.predict(X).shape, len(clf.history_) < 10**5)
    """
    printed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert printed == f"stopped {stage} (4000,) True\n"


@pytest.mark.parametrize("patience", [None, 3])
def test_of_several_trials_the_one_of_the_lowest_loss_is_kept(patience):
    """Trained together they are what each is alone; the best of them is the classifier's."""
    X, y = load_digits(return_X_y=True)
    X, y = X[:600] / 16, y[:600]
    recipe = {"hidden": 4, "warmup_epochs": 4, "epochs": 6, "lr": 1e-2, "patience": patience, "scale": None}
    together = FPEClassifier(trials=3, **recipe).fit(X, y)
    assert together.history_[-1]["stage"] == "expanded"
    assert together.n_nonzero_ == 64 * 4 + 4 + 4 * 10 + 10

    seed = FPEClassifier(trials=1, **recipe).fit(X, y)._trial.seed
    held = train_test_split(np.arange(600), test_size=60, random_state=seed, stratify=y)
    kept, watched = held if patience else (np.arange(600), np.arange(0))
    data = torch.from_numpy(X[kept]), torch.from_numpy(y[kept])
    stop = EarlyStopping(torch.from_numpy(X[watched]), torch.from_numpy(y[watched]), 3) if patience else None
    losses = []
    for trial in range(3):
        network = fpe.mlp(64, 4, 10, seed=seed + trial, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed + trial)
        options = {"generator": generator, "early_stopping": stop}
        train(network, *data, epochs=4, optimizer=adam(network, 1e-2), **options)
        wide = fpe.expand(network, 2, seed=seed + trial)
        history = train(wide, *data, epochs=6, optimizer=adam(wide, 1e-2), **options)
        losses.append(min(r["validation_loss"] for r in history) if patience else history[-1]["loss"])
    own = [r for r in together.history_ if r["stage"] == "expanded"]
    found = min(r["validation_loss"] for r in own) if patience else own[-1]["loss"]
    assert found == pytest.approx(min(losses), rel=1e-6)


def test_trials_must_be_a_positive_integer():
    X, y = load_digits(return_X_y=True)
    with pytest.raises(ArgumentError, match="trials is 0; give an integer of at least 1"):
        FPEClassifier(trials=0).fit(X, y)


@pytest.mark.parametrize("trials", [1, 2])
@pytest.mark.parametrize(
    ("rewire", "options"),
    [
        (True, {}),
        ("set", {}),
        (fpe.RewiringPolicy(scope="group"), {}),
        (True, {"split": "shared", "prune": "columns"}),
    ],
)
def test_masks_move_at_a_constant_count(trials, rewire, options):
    X, y = load_digits(return_X_y=True)
    how = {"hidden": 6, "factor": 2, "warmup_epochs": 3, "lr": 1e-2, "trials": trials, **options}
    still = FPEClassifier(epochs=0, **how).fit(X / 16, y)
    moved = FPEClassifier(epochs=3, rewire=rewire, **how).fit(X / 16, y)
    assert moved.n_nonzero_ == still.n_nonzero_
    assert moved._trial.rewirer.rewirings == 39  # every 2 of 87 steps, until nine tenths
    assert sum(moved._trial.rewirer.grown.values()) > 0
    if options:
        assert [row.format for row in fpe.pack(moved.model_).fpe_packing.rows] == ["blocks", "dense"]


def test_partial_fit_rewires_too_and_a_pickled_estimator_goes_on_the_same():
    X, y = load_digits(return_X_y=True)
    clf = FPEClassifier(hidden=6, warmup_epochs=1, epochs=4, lr=1e-2, rewire="accumulated")
    for _ in range(3):
        clf.partial_fit(X / 16, y, classes=np.arange(10))
    again = pickle.loads(pickle.dumps(clf))
    for one in (clf, again):
        one.partial_fit(X / 16, y)
    assert clf._trial.rewirer.rewirings == again._trial.rewirer.rewirings > 10
    assert same_state(clf.model_, again.model_)


def test_a_bad_policy_is_told_before_anything_is_trained():
    X, y = load_digits(return_X_y=True)
    with pytest.raises(ArgumentError, match=r"unknown policy 'rigel'.* Did you mean 'rigl'"):
        FPEClassifier(rewire="rigel").fit(X, y)
    with pytest.raises(ArgumentError, match=r"rewire is 'columns'.*prune is 'magnitude'; give"):
        FPEClassifier(rewire="columns", prune="magnitude").fit(X, y)
