"""What is filled in where a recipe is left open, with and without moving masks."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import fpe
from fpe.compare.config import FitConfig
from fpe.data import load
from fpe.rewiring.policies import POLICIES
from fpe.sklearn import FPEClassifier
from fpe.training import Cosine, Recipe, Trial, adam, run_recipe, train, train_trials

RESULTS = Path(__file__).parent.parent / "docs" / "results"
FREE = fpe.RewiringPolicy(grow="accumulated")
COLUMNS = fpe.RewiringPolicy(grow="accumulated", drop="movement", unit="column")


def recipe(rewire=False, **given):
    return Recipe.choose(rewire=rewire, **given, default_epochs=(25, 30))


def test_without_moving_masks_it_is_the_papers():
    assert recipe() == Recipe(2, "random", "magnitude", 25, 30, 1e-3, False)
    assert recipe(prune="columns") == Recipe(2, "shared", "columns", 25, 30, 1e-3, False)
    assert Recipe.choose() == Recipe()


@pytest.mark.parametrize("rewire", [True, "accumulated", FREE])
def test_with_moving_masks_the_expansion_comes_first_and_weights_are_drawn_anew(rewire):
    assert recipe(rewire) == Recipe(
        4, "random", "balanced", 0, 55, 1e-2, True, policy=FREE, reinitialize=True
    )


@pytest.mark.parametrize(("rewire", "given"), [("columns", {}), (True, {"prune": "columns"})])
def test_columns_move_in_a_shared_split(rewire, given):
    assert recipe(rewire, **given) == Recipe(
        3, "shared-8", "columns", 0, 55, 1e-2, True, policy=COLUMNS, reinitialize=True
    )


def test_what_is_given_is_obeyed():
    given = {"factor": 2, "split": "gram", "prune": "magnitude", "epochs": 7, "lr": 0.5, "decay": False}
    policy = POLICIES["set"]
    assert recipe("set", **given, warmup_epochs=0) == Recipe(
        2, "gram", "magnitude", 0, 7, 0.5, False, policy=policy, reinitialize=True
    )
    warm = recipe(True, warmup_epochs=3)
    assert (warm.warmup_epochs, warm.epochs, warm.reinitialize) == (3, 30, False)


@pytest.mark.parametrize(("rewire", "kind"), [(True, "balanced"), ("columns", "columns")])
def test_for_a_trained_parent_the_rate_rises_again_and_weights_shrink(rewire, kind):
    made = recipe(rewire, warmup_epochs=20)
    assert (made.prune, made.lr, made.decay, made.reinitialize) == (kind, 1e-2, False, False)
    assert (made.warmup_epochs, made.epochs, made.late_lr, made.shrink) == (20, 30, 2e-2, 0.3)
    assert made.cosine(0) is None
    assert made.cosine(20) == Cosine(30, 0)
    assert recipe(rewire, warmup_epochs=20, lr=5e-3).late_lr == 5e-3
    assert recipe(rewire, warmup_epochs=20, decay=True).cosine(20) == Cosine(50, 20)
    steady = recipe(rewire, warmup_epochs=20, decay=False)
    assert (steady.late_lr, steady.shrink, steady.cosine(20)) == (None, 0.3, None)
    dense = fpe.mlp(24, 8, 3, seed=0)
    plain = fpe.expand(dense, made.factor, split=made.split, prune=kind, seed=1)
    assert torch.equal(made.expand(dense, 1)[0].weight, plain[0].weight * 0.3)


def test_the_recipe_for_a_trained_parent_prunes_as_is_best_on_its_page():
    """In the mean over the validation parts; a constant rate is best without shrinking."""
    stored = json.loads((RESULTS / "rewiring" / "trained.json").read_text())["results"]
    means = defaultdict(list)
    for result in stored:
        if (
            result["part"] == "validation"
            and result["before"]
            and result["variant"] in ("balanced", "magnitude")
        ):
            means[result["variant"], result["rate"]].append(np.mean(result["accuracies"]))
    best = max(means, key=lambda kind: np.mean(means[kind]))
    made = recipe(True, warmup_epochs=20)
    assert best == (made.prune, "constant")
    assert {len(each) for each in means.values()} == {6}


def test_the_rate_falls_over_all_epochs():
    assert recipe(True, epochs=33).cosine(0) == Cosine(33, 0)
    assert recipe().cosine(0) is None
    assert recipe(True, epochs=0).cosine(0) is None


def test_a_drawn_expansion_is_the_expansion_drawn_anew():
    dense = fpe.mlp(8, 4, 3, seed=0)
    by_hand = fpe.reinitialize_(fpe.expand(dense, 2, prune="balanced", seed=5), seed=5)
    made = recipe(True, factor=2).expand(dense, 5)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), by_hand.parameters(), strict=True))


@pytest.mark.parametrize("trials", [1, 2])
def test_the_classifier_does_by_itself_what_the_recipe_says(trials):
    """All that is filled in may as well be given; no epoch is a dense one."""
    X, y = load_digits(return_X_y=True)
    X, y = X[:200] / 16, y[:200]
    short = {"hidden": 4, "epochs": 3, "trials": trials}
    given = {"factor": 4, "split": "random", "prune": "balanced", "warmup_epochs": 0, "lr": 1e-2}
    own = FPEClassifier(rewire=True, **short).fit(X, y)
    told = FPEClassifier(rewire="accumulated", decay=True, **given, **short).fit(X, y)
    assert [record["stage"] for record in own.history_] == ["expanded"] * 3
    assert own.history_ == told.history_
    assert own.model_.get_submodule("0").out_features == 16
    assert own.n_nonzero_ == 4 * (64 + 1 + 10) + 10
    steady = FPEClassifier(rewire=True, decay=False, **short).fit(X, y)
    assert steady.history_ != own.history_


def test_a_bad_decay_is_refused():
    X, y = load_digits(return_X_y=True)
    with pytest.raises(fpe.FPEError, match="decay is 'cosine'; give True or False"):
        FPEClassifier(decay="cosine").fit(X, y)


def test_a_configuration_stores_what_was_filled_in():
    """And what is left open is the same as the same given: results are found again."""
    dataset = load("digits")
    filled = FitConfig().filled()
    assert (filled["factor"], filled["split"], filled["epochs"], filled["lr"]) == (2, "random", 100, 1e-3)
    given = FitConfig(factor=2, split="random", prune="magnitude", warmup_epochs=100, epochs=100, lr=1e-3)
    assert given.digest(dataset) == FitConfig().digest(dataset)
    moved = FitConfig(rewire=True)
    assert (moved.filled()["epochs"], moved.filled()["decay"]) == (200, True)
    assert moved.digest(dataset) != FitConfig().digest(dataset)


@pytest.mark.parametrize(
    ("steps", "every", "rewirings"), [(20, 1, 17), (87, 2, 39), (1200, 35, 30), (9000, 100, 80)]
)
def test_short_trainings_rewire_often_enough(steps, every, rewirings):
    schedule = fpe.RewiringSchedule.for_steps(steps)
    assert schedule.every == every
    assert sum(schedule.rewires(step, steps) for step in range(1, steps + 1)) == rewirings


class TestRunRecipe:
    """Dense, expanded and double networks of one or several seeds, against the three calls done by hand."""

    X, y = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    X, y = (X[:200] / 16).float(), y[:200]

    def by_hand(self, seed, recipe, kind):
        network = fpe.mlp(64, 8 if kind == "double" else 4, 10, seed=seed)
        optimizer, order = adam(network, recipe.lr, recipe.l2), torch.Generator().manual_seed(seed)
        how = {"generator": order, "batch_size": recipe.batch_size}
        if kind == "double":
            return network, train(
                network, self.X, self.y, epochs=recipe.total_epochs, optimizer=optimizer, **how
            )
        history = train(network, self.X, self.y, epochs=recipe.warmup_epochs, optimizer=optimizer, **how)
        if kind == "expanded":
            network = fpe.expand(network, recipe.factor, split=recipe.split, prune=recipe.prune, seed=seed)
            optimizer = adam(network, recipe.lr, recipe.l2)
        return network, history + train(
            network, self.X, self.y, epochs=recipe.epochs, optimizer=optimizer, **how
        )

    @pytest.mark.parametrize("seeds", [3, [3, 4]])
    def test_it_is_warm_up_expand_train_done_by_hand(self, seeds):
        recipe = Recipe(2, "random", "magnitude", 2, 3, 1e-2, batch_size=64, l2=1e-3)
        build, double = (lambda s: fpe.mlp(64, 4, 10, seed=s)), (lambda s: fpe.mlp(64, 8, 10, seed=s))
        made = run_recipe(recipe, build, self.X, self.y, seeds=seeds, double=double)
        for seed, networks in zip(np.atleast_1d(seeds).tolist(), made, strict=True):
            for kind in ("dense", "expanded", "double"):
                network, history = self.by_hand(seed, recipe, kind)
                trial = networks[kind]
                close = {"rtol": 1e-4, "atol": 1e-5} if len(made) > 1 else {"rtol": 0, "atol": 0}
                torch.testing.assert_close(trial.model.state_dict(), network.state_dict(), **close)
                losses = [record["loss"] for record in history]
                assert [record["loss"] for record in trial.history] == pytest.approx(losses, rel=1e-5)
                assert trial.epoch == 5
            assert networks["expanded"].dense[0].out_features == 4
            assert [record["stage"] for record in networks["expanded"].history] == ["dense"] * 2 + [
                "expanded"
            ] * 3

    @pytest.mark.parametrize("rewire", [False, "set"])
    def test_calls_with_a_rising_until_are_one_call(self, rewire):
        recipe = Recipe.choose(rewire=rewire, warmup_epochs=2, epochs=3, decay=True)
        whole, parts = (Trial.start(recipe, fpe.mlp(64, 4, 10, seed=0), 0) for _ in range(2))
        train_trials([whole], self.X, self.y)
        for until in (1, 2, 4, 5):
            train_trials([parts], self.X, self.y, until=until)
            assert (parts.model is parts.dense) == (until <= 2)
        assert whole.history == parts.history
        assert all(map(torch.equal, whole.model.parameters(), parts.model.parameters()))

    def test_without_a_warm_up_the_dense_network_stays_dense(self):
        recipe = Recipe.choose(rewire="set", warmup_epochs=0, epochs=1, factor=2)
        (made,) = run_recipe(recipe, lambda seed: fpe.mlp(64, 4, 10, seed=seed), self.X, self.y)
        assert made["dense"].model[0].out_features == 4
        assert made["expanded"].model[0].out_features == 8

    def test_divergence_is_told_with_its_stage(self):
        recipe = Recipe.choose(warmup_epochs=1, epochs=1, lr=1e38)
        with pytest.raises(fpe.FPEError, match=r"warm-up: .* epoch 1; use a smaller learning rate"):
            run_recipe(recipe, lambda seed: fpe.mlp(64, 4, 10, seed=seed), self.X, self.y)

    def test_bad_settings_are_told_at_once(self):
        with pytest.raises(fpe.FPEError) as caught:
            Recipe.choose(factor=0, split="randon", prune="magnitudes", rewire="rigel", lr=0, l2=float("nan"))
        for word in ("factor is 0", "'random'", "'magnitude'", "'rigl'", "lr is 0", "l2 is nan"):
            assert word in str(caught.value)
