"""What is filled in where a recipe is left open, with and without moving masks."""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import fpe
from fpe.compare.config import FitConfig
from fpe.data import load
from fpe.rewiring.policies import POLICIES
from fpe.sklearn import FPEClassifier
from fpe.training.loop import Cosine
from fpe.training.recipe import Recipe

RESULTS = Path(__file__).parent.parent / "docs" / "results"
OPEN = dict.fromkeys(("factor", "split", "prune", "warmup_epochs", "epochs", "lr", "decay"))
FREE = fpe.RewiringPolicy(grow="accumulated")
COLUMNS = fpe.RewiringPolicy(grow="accumulated", drop="movement", unit="column")


def recipe(rewire=False, **given):
    return Recipe.of(SimpleNamespace(rewire=rewire, **{**OPEN, **given}), (25, 30))


def test_without_moving_masks_it_is_the_papers():
    assert recipe() == Recipe(2, "random", "magnitude", 25, 30, 1e-3, False)
    assert recipe(prune="columns") == Recipe(2, "shared", "columns", 25, 30, 1e-3, False)


@pytest.mark.parametrize("rewire", [True, "accumulated", FREE])
def test_with_moving_masks_the_expansion_comes_first_and_weights_are_drawn_anew(rewire):
    assert recipe(rewire) == Recipe(4, "random", "balanced", 0, 55, 1e-2, True, FREE, None, True)


@pytest.mark.parametrize(("rewire", "given"), [("columns", {}), (True, {"prune": "columns"})])
def test_columns_move_in_a_shared_split(rewire, given):
    assert recipe(rewire, **given) == Recipe(3, "shared-8", "columns", 0, 55, 1e-2, True, COLUMNS, None, True)


def test_what_is_given_is_obeyed():
    given = {"factor": 2, "split": "gram", "prune": "magnitude", "epochs": 7, "lr": 0.5, "decay": False}
    policy = POLICIES["set"]
    assert recipe("set", **given, warmup_epochs=0) == Recipe(
        2, "gram", "magnitude", 0, 7, 0.5, False, policy, None, True
    )
    warm = recipe(True, warmup_epochs=3)
    assert (warm.warmup_epochs, warm.epochs, warm.redraw) == (3, 30, False)


@pytest.mark.parametrize(("rewire", "kind"), [(True, "balanced"), ("columns", "columns")])
def test_for_a_trained_parent_the_rate_is_constant(rewire, kind):
    """What docs/results/rewiring.md measures there under this pruning and this rate."""
    made = recipe(rewire, warmup_epochs=20)
    assert (made.prune, made.lr, made.decay, made.redraw) == (kind, 1e-2, False, False)
    assert made.cosine(0) is made.cosine(20) is None
    assert (made.warmup_epochs, made.epochs) == (20, 30)
    assert recipe(rewire, warmup_epochs=20, decay=True).cosine(20) == Cosine(50, 20)


def test_the_recipe_for_a_trained_parent_is_the_best_of_those_on_its_page():
    """In the mean over the validation parts: no other pruning or rate is better than the default."""
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
    assert best == (made.prune, "all" if made.decay else "constant")
    assert {len(each) for each in means.values()} == {6}


def test_the_rate_falls_over_all_epochs():
    assert recipe(True, epochs=33).cosine(0) == Cosine(33, 0)
    assert recipe().cosine(0) is None
    assert recipe(True, epochs=0).cosine(0) is None


def test_a_drawn_expansion_is_the_expansion_drawn_anew():
    dense = fpe.mlp(8, 4, 3, seed=0)
    by_hand = fpe.reinitialize_(fpe.expand(dense, 2, prune="balanced", seed=5), 5)
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
    assert own.model_[0].out_features == 16
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
    assert "decay" not in FitConfig().identity(dataset)
    moved = FitConfig(rewire=True)
    assert (moved.filled()["epochs"], moved.filled()["decay"]) == (200, True)
    assert moved.digest(dataset) != FitConfig().digest(dataset)


@pytest.mark.parametrize(
    ("steps", "every", "rewirings"), [(20, 1, 17), (87, 2, 39), (1200, 35, 30), (9000, 100, 80)]
)
def test_short_trainings_rewire_often_enough(steps, every, rewirings):
    schedule = fpe.RewiringSchedule.fitting(steps)
    assert schedule.every == every
    assert sum(schedule.rewires(step, steps) for step in range(1, steps + 1)) == rewirings
