"""The paper, sentence by sentence: estimates, margins, corrected verdicts."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fpe_reproduction.experiments.findings import Results, verdict
from fpe_reproduction.paper import SENTENCES, Sentence, judge, networks, to_frame
from fpe_reproduction.paper.coverage import covered
from fpe_reproduction.paper.measures import (
    at_each,
    best_rewired,
    case,
    gain,
    in_both,
    needed,
    neurons,
    on_average,
    regression,
    share_of_gap,
    share_of_trials,
    spread,
)
from fpe_reproduction.paper.sentences import DEPTH


def classifiers(accuracies, trials=4, name="cifar100", **columns):
    """Return networks with given accuracies by kind and width, each trial a little off."""
    rows = [
        {
            "data": name,
            "hidden": width,
            "layers": 1,
            "kind": kind,
            "trial": trial,
            "nonzero": 100 * width,
            "accuracy": value + 0.001 * trial * (kind != "dense"),
            **columns,
        }
        for kind, own in accuracies.items()
        for width, value in own.items()
        for trial in range(trials)
    ]
    return Results.of(name, rows)


def sentence(measure, family="it", **how):
    return Sentence(family, "3.3", "it holds", measure, ("cifar100",), **how)


def test_an_estimate_is_the_mean_difference_at_a_width_with_a_t_interval():
    results = classifiers({"dense": {4: 0.5, 8: 0.7}, "random": {4: 0.6, 8: 0.7}})
    found = at_each("random")(results)
    low, high = stats.t.interval(0.95, 3, *_moments(0.1 + 0.001 * np.arange(4)))
    assert list(found) == ["4 neurons", "8 neurons"]
    assert found["4 neurons"].value == pytest.approx(0.1015)
    assert (found["4 neurons"].low, found["4 neurons"].high) == pytest.approx((low, high))
    assert on_average("random")(results)["mean"].value == pytest.approx(0.0515)


def _moments(values):
    return values.mean(), stats.sem(values)


@pytest.mark.parametrize(
    ("gap", "how", "said"),
    [
        (0.1, {}, "agrees"),
        (0.1, {"sizes": {"mean": 0.3}}, "in sign only"),
        (0.1, {"sizes": {"mean": 0.1015}}, "agrees"),
        (0.003, {"sizes": {"mean": 0.0045}}, "agrees"),
        (0.0015, {"sizes": {"mean": 0.002}}, "in sign only"),  # it is included, by an interval twice as wide
        (0.1, {"sizes": {"another": 0.1015}}, "in sign only"),
        (-0.1, {}, "contradicted"),
        (-0.0015, {}, "not shown"),
        (0.1, {"low": -0.05, "high": 0.05}, "contradicted"),
        (0.0, {"low": -0.05, "high": 0.05}, "agrees"),
    ],
)
def test_the_verdict_follows_from_interval_margin_and_size(gap, how, said):
    results = classifiers({"dense": {4: 0.5}, "random": {4: 0.5 + gap}})
    measure = {"measure": lambda r: {"mean": at_each("random")(r)["4 neurons"]}}
    (claim,) = judge([sentence(**measure, **how)], {"cifar100": results})
    assert verdict(claim) == said


def test_p_values_are_corrected_within_a_family_alone():
    results = classifiers({"dense": {4: 0.5}, "random": {4: 0.501}})
    measure = at_each("random")
    alone, *others = judge(
        [sentence(measure, "alone"), *(sentence(measure, "many") for _ in range(5))], {"cifar100": results}
    )
    assert alone["family"] == "alone"
    assert others[0]["p"] == pytest.approx(5 * alone["p"])
    assert (verdict(alone), verdict(others[0])) == ("agrees", "not shown")


def test_a_sentence_must_hold_in_every_estimate():
    results = classifiers({"dense": {4: 0.5, 8: 0.5}, "random": {4: 0.6, 8: 0.5}})
    (claim,) = judge([sentence(at_each("random"))], {"cifar100": results})
    assert verdict(claim) == "not shown"
    worse = classifiers({"dense": {4: 0.5, 8: 0.5}, "random": {4: 0.6, 8: 0.4}})
    (claim,) = judge([sentence(at_each("random"))], {"cifar100": worse})
    assert verdict(claim) == "contradicted"


def test_sentences_without_networks_are_left_out_and_collapsed_networks_counted():
    results = classifiers({"dense": {4: 0.015, 8: 0.5}, "random": {4: 0.6, 8: 0.6}})
    claims = judge([sentence(at_each("random")), sentence(at_each("gram"))], {"cifar100": results})
    (row,) = to_frame(claims).to_dict("records")
    assert (row["collapsed"], row["verdict"], row["margin"]) == (4, "agrees", "above 0 points")
    assert row["we measured"].startswith("4 neurons: +58.6 [")
    assert row["detectable"] > 0


def test_the_share_of_rewired_weights_is_not_chosen_by_the_trials_that_measure_it():
    rows = [("dense", 0.2, 0.2), ("random", 0.3, 0.3), ("rewired-5", 0.9, 0.4), ("rewired-10", 0.5, 0.8)]
    rows += [("rewired-20", 0.1, 0.9), ("rewired-30", 0.1, 0.9)]
    frame = [
        {"hidden": 4, "kind": kind, "trial": trial, "nonzero": 9, "accuracy": (even, odd)[trial % 2]}
        for kind, even, odd in rows
        for trial in range(6)
    ]
    results = Results.of("cifar100", frame)
    # Even trials choose the first share and odd ones the third: 0.4 in odd trials, 0.1 in even ones.
    found = best_rewired(4, "random")(results)["4 neurons"]
    assert (found.value, found.df) == (pytest.approx(0.25 - 0.3), 5)
    assert best_rewired(4, "dense")(results)["4 neurons"].value == pytest.approx(0.25 / 0.2 - 1)


def test_a_relative_improvement_is_that_of_the_means():
    """One dense network of four has learned nothing; its own ratio would be 9."""
    frame = [
        {"hidden": 4, "layers": 4, "kind": kind, "trial": trial, "nonzero": 9, "accuracy": value}
        for kind, each in {"dense": (0.2, 0.2, 0.2, 0.01), "random": (0.3, 0.3, 0.3, 0.1)}.items()
        for trial, value in enumerate(each)
    ]
    found = gain("random", 4, layers=4)(Results.of("cifar100", frame))["4 neurons"]
    assert found.value == pytest.approx(1.0 / 0.61 - 1)
    assert found.df == 3
    assert found.low < found.value < found.high < 2


def test_a_dense_network_that_matches_is_read_off_the_curve_of_its_own_trial():
    frame = [
        {
            "hidden": width,
            "kind": "dense",
            "trial": trial,
            "nonzero": 100 * width,
            "accuracy": 0.1 * width / 4,
        }
        for width in (4, 6, 8, 16, 32)
        for trial in range(3)
    ]
    frame += [
        {"hidden": width, "kind": "random", "trial": trial, "nonzero": 100 * width, "accuracy": 0.15}
        for width in (4, 8)
        for trial in range(3)
    ]
    found = needed()(Results.of("cifar100", frame))
    assert {key: value.value for key, value in found.items()} == pytest.approx(
        {"4 neurons": 1.5, "8 neurons": 0.75}
    )


def boolean(value, trials=6):
    """Return networks on formulas; `value` gives the columns of a kind, number of neurons and clauses."""
    rows = [
        {"clauses": clauses, "neurons": neurons, "kind": kind, "trial": trial, "nonzero": 1}
        | value(kind, neurons, clauses, trial)
        for clauses, neurons in [*((8, n) for n in (4, 8, 16)), *((c, 8) for c in (3, 15))]
        for kind in ("dense", "clause", "random")
        for trial in range(trials)
    ]
    return Results.of("", rows, "neurons")


def test_settings_of_both_sweeps_count_once_and_one_of_them_may_be_an_exception():
    def value(kind, neurons, clauses, trial):
        bad = (neurons, clauses) == (4, 8)
        return {"accuracy": 0.5, "cosine": (kind == "clause") * (0.3 if bad else -0.2) + 0.01 * trial}

    results, measure = boolean(value), in_both("clause", "cosine")
    found = measure(results)
    assert sorted(found) == ["15 clauses", "16 neurons", "3 clauses", "4 neurons", "8 neurons"]
    how = {"low": -math.inf, "high": 0.0}
    said, strict, without = (
        judge([Sentence("it", "3.2", "it holds", own, **how, exceptions=n)], {"": results})[0]
        for own, n in ((measure, 1), (measure, 0), (lambda r: {"16 neurons": measure(r)["16 neurons"]}, 0))
    )
    assert (verdict(said), verdict(strict)) == ("agrees", "contradicted")
    assert said["p"] == pytest.approx(2 * without["p"])
    assert said["ours"].startswith("5 estimates, the weakest but one at ")
    assert said["margin"] == "below 0 points, but one"


def test_the_share_of_trials_and_of_a_gap():
    def value(kind, neurons, clauses, trial):
        own = {"dense": 0.0, "clause": 2.0, "random": 1.0}[kind]
        better = trial < 3 or kind != "random"
        return {"accuracy": 0.5 + 0.1 * (own if better else -1), "capacity": own * (1 + 0.1 * trial)}

    results = boolean(value)
    often = share_of_trials(lambda a: a["random"] > a["dense"], neurons)
    assert often(results)["share"].value == 0.5
    gap = share_of_gap("capacity")(results)
    assert {key: value.value for key, value in gap.items()} == pytest.approx(
        {"8 clauses": 0.5, "8 neurons": 0.5}
    )


def test_a_share_of_networks_that_are_all_alike_has_an_exact_interval():
    def value(kind, neurons, clauses, trial):
        return {"accuracy": {"dense": 0.5, "clause": 0.9, "random": 0.6}[kind], "covered_clauses": clauses}

    results = boolean(value)
    low, high = stats.beta.ppf(0.025, 6, 1), 1.0
    share = share_of_trials(lambda a: a["random"] > a["dense"], case)(results)["share"]
    for own in (share, *covered(results).values()):
        assert (own.value, own.low, own.high) == pytest.approx((1, low, high))
        assert own.p_below(low) == pytest.approx(0.025)
        assert own.p_below(0.9) > 0.1


@pytest.mark.parametrize(("apart", "found"), [(0.0, False), (0.02, True)])
def test_noise_that_fades_is_not_taken_for_differences_between_factors_that_fade(apart, found):
    rng = np.random.default_rng(0)
    rows = pd.MultiIndex.from_product(
        [(4, 8, 32), ("dense", "random", "random-x3", "random-x4", "random-x8"), range(10)],
        names=["hidden", "kind", "trial"],
    ).to_frame(index=False)
    noise = rows["hidden"].map({4: 0.02, 8: 0.01, 32: 0.001})
    differ = apart * rows["kind"].str[-1].map({"m": 0.0, "3": 1.0, "4": 2.0, "8": 3.0, "e": 0.0})
    fades = []
    for _ in range(100):
        own = {
            "nonzero": 9,
            "accuracy": 0.5 + differ * (rows["hidden"] == 4) + noise * rng.normal(size=len(rows)),
        }
        (interval,) = spread(Results.of("cifar100", rows.assign(**own).to_dict("records"))).values()
        fades.append(interval.high < 0)
    assert sum(fades) > 92 if found else sum(fades) < 8  # 8 of 100 at a rate of 2.5 %: once in 250


def test_a_regression_within_widths_does_not_see_differences_between_them():
    rng = np.random.default_rng(0)

    def value(kind, neurons, clauses, trial):
        changed = (kind != "dense") * (neurons + rng.normal())
        return {"accuracy": 0.5 + 0.01 * (kind != "dense") * neurons, "cosine": changed}

    results = boolean(value)
    across, within = (regression("cosine", False, own)(results)["split by clauses"] for own in (False, True))
    assert across.low > 0
    assert within.low <= 0 <= within.high


def test_networks_of_all_experiments_are_put_together_by_data():
    frame = classifiers({"dense": {4: 0.5}}).frame
    rows = frame.drop(columns=["gain", "dense_accuracy"]).to_dict("records")
    other = [{**row, "kind": "random"} for row in rows]
    found = networks([{"quick": False, "values": rows}, {"quick": False, "values": [*rows, *other]}])
    assert list(found) == ["cifar100"]
    assert len(found["cifar100"].frame) == 8


def test_every_sentence_has_a_place_in_the_paper_and_sizes_are_of_estimates():
    assert len({own.text for own in SENTENCES}) == len(SENTENCES)
    assert sum(own.family == "depth" for own in SENTENCES) == sum(map(len, DEPTH.values()))
    for own in SENTENCES:
        assert own.low < own.high
        assert math.isfinite(own.low) or math.isfinite(own.high)
        assert own.where
    assert pd.Series([own.family for own in SENTENCES]).value_counts().max() <= 12  # rows of a table
