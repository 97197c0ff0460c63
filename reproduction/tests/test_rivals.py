"""Methods at one count of non-zeros: each keeps to the budget, and is tuned as much as the others."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from sklearn.datasets import load_digits

from fpe.errors import ArgumentError, BudgetError
from fpe.models import mlp
from fpe.training.loop import DIVERGED
from fpe.training.search import dense_count
from fpe_reproduction.commands.reproduce import reproduce
from fpe_reproduction.rivals import METHODS, contest, dense
from fpe_reproduction.rivals.methods import Cell, Method, accuracy_of, fit, nonzeros
from fpe_reproduction.rivals.report import OWN, accuracies, best
from fpe_reproduction.statistics import by_split, holm, mean, nested, overlap_of


@pytest.fixture(scope="module")
def cell():
    X, y = load_digits(return_X_y=True)
    X, y = torch.tensor(X[:400], dtype=torch.float32), torch.tensor(y[:400])
    spread = X.std(0)
    return Cell((X - X.mean(0)) / spread.clamp_min(1), y, spread, 8, dense_count(64, 8, 10), 2, 100, 0)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_to_the_budget_and_is_determined_by_its_seed(name, cell):
    first, second = (METHODS[name].train(cell, 1e-2) for _ in range(2))
    assert 0.5 * cell.budget < nonzeros(first) <= cell.budget
    assert accuracy_of(first, cell.X, cell.y) == accuracy_of(second, cell.X, cell.y)


@pytest.mark.parametrize("name", METHODS)
def test_options_keep_to_the_budget_and_spend_it(name, cell):
    for option in METHODS[name].options:
        used = nonzeros(METHODS[name].train(cell, 1e-2, **option))
        least = {"trees": 0.1, "deeper": 0.85, "low-rank": 0.85, "linear": 0.9}.get(name, 0.95)
        assert least * cell.budget < used <= cell.budget, (option, used)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "searched"])
def test_a_small_table_with_many_classes_has_every_default(name):
    """Letter has 16 inputs and 26 classes, too few and too many for some options."""
    X, y = torch.randn(104, 16, generator=torch.Generator().manual_seed(0)), torch.arange(104) % 26
    small = Cell(X, y, torch.ones(16), 8, dense_count(16, 8, 26), 1, 52, 0)
    impossible = []
    for option in METHODS[name].options:
        try:
            assert nonzeros(METHODS[name].train(small, 1e-2, **option)) <= small.budget
        except BudgetError:
            impossible.append(option)
    assert {} not in impossible
    assert all(option.get("prune") == "columns" or option.get("leaves", 0) > 4 for option in impossible)


def test_all_methods_have_equally_many_options():
    assert {len(own.options) for name, own in METHODS.items() if name != "searched"} == {9}


def test_a_teacher_is_trained_once_for_all_students(cell, monkeypatch):
    trained = []
    monkeypatch.setattr(dense, "fit", lambda *own, **how: trained.append(own[1]) or fit(*own, **how))
    first = METHODS["distilled"].train(cell, 1e-2, dropout=0.1)
    again = METHODS["distilled"].train(cell, 1e-2, dropout=0.1)
    assert len(trained) == 3
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    METHODS["distilled"].train(replace(cell, X=cell.X.clone()), 1e-2)
    assert len(trained) == 5


def test_a_network_that_diverges_counts_as_one_without_a_right_answer(monkeypatch):
    def diverging(cell, lr, **option):
        if lr > 0.05 or (cell.seed == 1 and not option):
            raise ArgumentError(f"the loss became nan in epoch 1; {DIVERGED}")
        return METHODS["dense"].train(cell, lr)

    monkeypatch.setitem(contest.METHODS, "unstable", Method("unstable", diverging, ({},)))
    found = contest.measure("digits", 8, "unstable", 0, seeds=2, epochs=2, batch_size=None)
    assert found["lr"] <= 0.05
    assert found["accuracies"][0] > 0.2
    assert (found["accuracies"][1], found["collapsed"], found["nonzero"]) == (0, 1, 610)


def test_a_method_that_uses_more_than_the_budget_is_refused(monkeypatch):
    def wasteful(cell, lr):
        return mlp(cell.inputs, cell.hidden + 1, cell.classes)

    monkeypatch.setitem(contest.METHODS, "wasteful", Method("wasteful", wasteful, ({},)))
    with pytest.raises(AssertionError, match="has 685 non-zeros of 610"):
        contest.measure("digits", 8, "wasteful", 0, seeds=1, epochs=1, batch_size=None)


def test_splits_share_no_sample_between_their_parts():
    published, other = contest.parts("digits", 0), contest.parts("digits", 1)
    assert [len(part) for part in published] == [len(part) for part in other]
    together = {row.tobytes() for row in other[0]} & {row.tobytes() for row in other[2]}
    both = {row.tobytes() for row in published[0]} & {row.tobytes() for row in published[2]}
    assert len(together) <= len(both) + 2  # equal images are in the data set
    assert not (published[2] == other[2]).all()


def test_a_comparison_is_tuned_on_training_data_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(contest, "QUICK_SPLITS", 1)
    how = {"quick": True, "data": ["digits"], "methods": ["dense", "linear"], "jobs": 1}
    table = contest.run(tmp_path, **how)
    assert len(table) == 2 * contest.QUICK_SEEDS
    assert set(table["budget"]) == {610}
    done = []
    again = contest.run(tmp_path, **how, on_task=done.append)
    assert again.equals(table)
    assert sorted(done) == sorted(path.stem for path in tmp_path.glob("*.json"))


@pytest.mark.parametrize("apart", [0.0, 0.2, 1.0, "one setting"])
def test_settings_without_differences_are_rarely_said_to_differ(apart):
    """Whether or not splits differ, and also where they do in one setting only."""
    generator = np.random.default_rng(0)
    spread = np.array([2.0] + 10 * [0.0]) if apart == "one setting" else np.full(11, apart)
    excluded, said = [], []
    for _ in range(300):
        values = spread[:, None, None] ** 0.5 * generator.normal(size=(11, 3, 1))
        found = nested(values + generator.normal(size=(11, 3, 10)))
        excluded += [own.p_zero < 0.05 for own in found]
        said.append(min(holm([own.p_zero for own in found])) < 0.05)
    assert np.mean(excluded) < 0.06
    assert np.mean(said) < 0.08  # by chance 0.065 where it is 0.05


def test_the_interval_over_splits_and_seeds_by_hand():
    """Splits differ as their seeds explain in all settings but the last, whose own variance counts."""
    like = [[0.0, 2.0], [0.0, 2.0], [1.0, 3.0]]  # within 2, between 2/3
    *others, last = nested([*[like] * 3, [[0.0, 2.0], [20.0, 22.0], [40.0, 42.0]]])
    ratio = (3 * (2 / 3) / 2 + 800 / 2) / 4
    assert [own.error for own in others] == pytest.approx([(ratio * 2 / 6) ** 0.5] * 3)
    assert others[0].df == pytest.approx(1 / (1 / 8 + 1 / 3))
    assert (last.value, last.df) == (21, 2)
    assert last.error == pytest.approx((800 / 6) ** 0.5)
    assert nested(np.arange(10.0)[None, None]) == [mean(np.arange(10.0))]
    (same,) = nested(np.ones((1, 3, 10)))
    assert (same.value, same.low, same.high) == (1, 1, 1)


def test_splits_of_the_same_samples_count_as_nadeau_and_bengio_say():
    """Only what splits differ by beyond what seeds explain is multiplied."""
    values = [[[0.0, 2.0], [3.0, 5.0], [6.0, 8.0]]]  # within 2, between 18
    (plain,), (corrected,) = nested(values), nested(values, [overlap_of(3, 0.25)])
    assert overlap_of(3, 0.25) == 1.75
    assert plain.error == pytest.approx((18 / 6) ** 0.5)
    assert corrected.error == pytest.approx(((2 + 1.75 * 16) / 6) ** 0.5)
    assert corrected.value == plain.value
    (steady,) = nested(np.random.default_rng(0).normal(size=(1, 3, 2)).round() * 0 + [[0.0, 2.0]] * 3, 3.0)
    assert steady.error == pytest.approx((2 / 6) ** 0.5)


def test_intervals_by_split_by_hand_and_that_they_cover_the_truth():
    apart, close = [[0.0, 2.0], [3.0, 5.0], [6.0, 8.0]], [[0.0, 2.0], [0.0, 2.0], [0.0, 2.0]]
    first, second = by_split([apart, close], [1.75, 1.75])
    assert first.error == pytest.approx(((2 + 1.75 * 16) / 6) ** 0.5)
    assert second.error == pytest.approx((2 / 6) ** 0.5)
    assert (first.value, first.df, second.df) == (4, 2, 2)
    assert by_split(np.arange(10.0)[None, None]) == [mean(np.arange(10.0))]
    generator, inside = np.random.default_rng(0), []
    noise = np.array([0.1, 0.5, 2.0])[:, None, None]
    for _ in range(1000):
        values = generator.normal(size=(1, 3, 1)) + noise * generator.normal(size=(3, 3, 10))
        inside += [[own.low < 0 < own.high for own in by_split(values)]]
    assert (np.mean(inside, axis=0) > 0.93).all()
    assert np.mean(inside) < 0.975


def test_a_choice_is_made_within_each_split():
    scores = {"dense": (0.9, 0.1, 0.2), "rigl": (0.5, 0.6, 0.7), "gradual": (0.4, 0.4, 0.4)}
    rows = [
        {"method": method, "split": split, "seed": seed, "validation": score, "accuracy": score + seed,
         "data": "digits", "hidden": 8, "budget": 1, "nonzero": 1, "lr": 0.1, "test_share": 0.25}
        for method, own in scores.items()
        for split, score in enumerate(own)
        for seed in range(2)
    ]  # fmt: skip
    (row,) = best(pd.DataFrame(rows)).to_dict("records")
    assert row["rival"] == "rigl, dense"
    assert row["rival_accuracy"] == pytest.approx((0.9 + 0.6 + 0.7) / 3 + 0.5)
    assert row["difference"] == pytest.approx(0.4 - (0.9 + 0.6 + 0.7) / 3)


def test_the_best_of_both_sides_are_chosen_on_validation_data():
    """The rival that is best on test data is not the one that is compared."""
    rows = []
    for method, validation, accuracy in (
        ("dense", 0.8, 0.70), ("linear", 0.7, 0.90), ("gradual", 0.9, 0.75), ("moved", 0.5, 0.99),
        ("searched", None, 0.72),
    ):  # fmt: skip
        for split in range(3):
            for seed in range(4):
                rows.append({
                    "data": "digits", "hidden": 8, "method": method, "split": split, "seed": seed, "lr": 0.01,
                    "budget": 610, "nonzero": 600, "option": "default", "validation": validation,
                    "accuracy": accuracy + 0.01 * split + 0.001 * seed, "test_share": 0.25,
                })  # fmt: skip
    (row,) = best(pd.DataFrame(rows)).to_dict("records")
    assert (row["rival"], row["fpe"]) == ("dense", "gradual")
    assert (row["difference"], row["low"], row["high"]) == pytest.approx((0.05, 0.05, 0.05))
    assert row["searched_difference"] == pytest.approx(0.02)
    table = accuracies(pd.DataFrame(rows)).set_index("method")["accuracy"]
    assert table["moved"] == pytest.approx(0.99 + 0.01 + 0.0015)
    assert set(OWN) < set(METHODS)
    assert set(OWN) == {name for name, own in METHODS.items() if own.title.endswith("(fpe)")}


def test_the_command_refuses_what_it_would_ignore(tmp_path):
    for given in (["--data", "other"], ["--hidden", "4"], ["--fresh"]):
        refused = CliRunner().invoke(reproduce, ["rivals", "--out", str(tmp_path / "out"), *given])
        assert isinstance(refused.exception, ArgumentError)
        assert given[0] in str(refused.exception)
    assert not (tmp_path / "out").exists()
