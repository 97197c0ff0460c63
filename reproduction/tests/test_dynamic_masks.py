"""The experiments on dynamic masks: what is compared is at one count, and what is claimed was computed."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import fpe
from fpe.cli.main import main
from fpe.data import load
from fpe_reproduction.experiments.catalogue import DYNAMIC_MASKS
from fpe_reproduction.experiments.dynamic import gap_closed
from fpe_reproduction.experiments.findings import Results
from fpe_reproduction.experiments.networks import DYNAMIC, STARTS
from fpe_reproduction.experiments.splits import Parent
from fpe_reproduction.experiments.timeline import NetworksConfig, Source, run_networks
from fpe_reproduction.statistics import ratio_of_sums


def parent_of(model, seed=3, samples=200):
    X = torch.rand(samples, model[0].in_features, generator=torch.Generator().manual_seed(0))
    return Parent(model, seed, X, torch.zeros(samples, dtype=torch.long))


@pytest.mark.parametrize("kind", DYNAMIC)
def test_every_network_has_the_parents_count_and_masked_weights_are_zero(kind):
    parent = fpe.mlp(100, 6, 12, seed=1)
    network = DYNAMIC[kind].make(parent_of(parent))
    assert fpe.count_nonzero(network) == fpe.count_nonzero(parent)
    assert len(network[0].weight) == 6 * DYNAMIC[kind].factor
    for layer in (network[0], network[-1]):
        mask = getattr(layer, "fpe_mask", None)
        assert mask is None or torch.all(layer.weight[mask == 0] == 0)
    same = DYNAMIC[kind].make(parent_of(parent))
    assert torch.equal(network[0].weight, same[0].weight)


def test_networks_with_too_few_weights_in_whole_inputs_are_skipped():
    """Six children of neurons with 77 outputs cost more inputs than there are."""
    assert DYNAMIC["moved-columns"].possible(384, 77)
    assert not DYNAMIC["moved-columns-x6"].possible(384, 77)
    assert DYNAMIC["moved-x8"].possible(384, 77)


def test_a_small_layer_is_denser_by_erk():
    """Densities are as (inputs + outputs) / (inputs × outputs), up to rounding."""
    uniform, erk = (DYNAMIC[kind].make(parent_of(fpe.mlp(60, 5, 4), 0)) for kind in ("rigl", "rigl-erk"))
    density = [[float(layer.fpe_mask.mean()) for layer in (n[0], n[2])] for n in (uniform, erk)]
    assert density[0][0] == pytest.approx(density[0][1], rel=0.1)
    assert density[1][1] / density[1][0] == pytest.approx((24 / 80) / (80 / 1200), rel=0.1)


def test_corrected_outgoing_weights_are_nearer_to_the_parent():
    """Least squares leave the smallest difference of all outgoing weights; the count stays."""
    parent = fpe.mlp(30, 6, 5, seed=1)
    given = parent_of(parent)
    X = given.X
    off = {}
    for kind in STARTS:
        network = STARTS[kind].make(given)
        assert fpe.count_nonzero(network) == fpe.count_nonzero(parent)
        off[kind] = float((network(X) - parent(X)).detach().square().mean())
    assert off["start-corrected"] < off["start-copied"]
    assert off["start-corrected"] < off["start-divided"]


def test_networks_are_measured_on_held_out_training_data():
    """A fifth of the training data takes the place of the test data."""
    dataset = load("digits")
    config = NetworksConfig(4, 4, 1e-2, decay=True, validated=True)
    source = Source("digits", dataset.fingerprint)
    kinds = ["dense", "dense-x2", "steady", "moved", "moved-at-50", "still"]
    networks = run_networks(source, config, [3], kinds, range(2))["networks"]
    assert [n["kind"] for n in networks].count("moved") == 2
    assert {n["nonzero"] for n in networks if n["kind"] != "dense-x2"} == {3 * (64 + 1 + 10) + 10}
    by_kind = {n["kind"]: n["accuracy"] for n in networks if n["trial"] == 0}
    assert by_kind["moved"] != by_kind["still"]
    validation = len(dataset.X_train) // 5
    assert by_kind["dense"] * validation == pytest.approx(round(by_kind["dense"] * validation), abs=1e-3)


def test_a_setting_that_is_off_does_not_change_earlier_results():
    assert NetworksConfig().to_dict() == {"warmup_epochs": 25, "epochs": 25, "lr": 3e-3, "seed": 0}
    assert NetworksConfig(decay=True).to_dict()["decay"] is True


def test_the_gap_closed_is_a_ratio_of_mean_differences():
    """Trials of 1 and 3 points of gaps of 2 and 6 are half of it each way; 2 of 2 is all of it."""
    each, overall = ratio_of_sums(np.array([[1.0, 2], [3, 2]]), np.array([[2.0, 2], [6, 2]]))
    assert [i.value for i in each] == [0.5, 1.0]
    assert (each[0].low, each[0].high, overall.value) == (0.5, 0.5, 0.75)
    one, _ = ratio_of_sums(np.array([[1.0]]), np.array([[2.0]]))
    assert one[0].value == 0.5
    assert np.isnan(one[0].low)


def test_the_gap_is_between_networks_of_one_trial():
    made = [
        {"hidden": 4, "kind": kind, "trial": trial, "accuracy": accuracy + trial / 10}
        for kind, accuracy in (("dense", 0.5), ("moved", 0.65), ("dense-x2", 0.7))
        for trial in range(3)
    ]
    each, overall = gap_closed(Results.of("x", made), "moved")
    assert each[4].value == pytest.approx(0.75)
    assert overall.low == pytest.approx(0.75)


def test_both_experiments_run_and_say_what_they_found(tmp_path):
    digits, few = load("digits"), str(tmp_path / "few.npz")
    np.savez(few, X=digits.X_train[:400], y=digits.y_train[:400])
    result = CliRunner().invoke(
        main,
        [
            *("reproduce", "dynamic-masks", "--quick", "--data", few, "--hidden", "3", "--trials", "2"),
            *("--jobs", "1", "--warmup-epochs", "1", "--epochs", "1", "--out", str(tmp_path), "--json"),
        ],
    )
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)
    assert list(results) == [experiment.name for experiment in DYNAMIC_MASKS]
    for name, found in results.items():
        assert found["claims"], name
        assert all(table["rows"] for table in found["tables"]), name
        assert all(figure["lines"] for figure in found["figures"]), name
        assert (tmp_path / name / "figure.png").stat().st_size > 1000
    assert {n["data"] for n in results["rewiring"]["values"]} == {"few-cosine"}
    assert {n["data"] for n in results["rewiring-choices"]["values"]} == {"few-validation"}
