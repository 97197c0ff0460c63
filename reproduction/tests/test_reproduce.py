"""`fpe reproduce`: from trained networks to claims, tables, figures, and back after a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import sem, ttest_1samp

from fpe.cli.main import main
from fpe_reproduction.experiments import catalogue, formulas
from fpe_reproduction.experiments.boolean import KINDS, BooleanConfig, run_row
from fpe_reproduction.experiments.findings import Results, corrected, judged, verdict
from fpe_reproduction.experiments.reproduce import reproduce
from fpe_reproduction.experiments.tasks import Request
from fpe_reproduction.statistics import Interval, holm, mean, slope, slope_over_trials

# The smallest thing that has all parts: few epochs, few samples, in a process of its own.
SCRIPT = """
import sys
from pathlib import Path
from fpe_reproduction.experiments import tasks as module
from fpe_reproduction.experiments.boolean import BooleanConfig
from fpe_reproduction.experiments.tasks import Request
from fpe_reproduction.experiments.reproduce import reproduce

def boolean_config(request):
    return BooleanConfig(warmup_epochs=2, epochs=2, samples=200, test_samples=100, seed=request.seed)

module.boolean_config = boolean_config
if __name__ == "__main__":
    reproduce("clauses", Path(sys.argv[1]), Request(quick=True), jobs=1)
"""


def start(script, out):
    command = [sys.executable, str(script), str(out)]
    return subprocess.Popen(command, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_killed_run_goes_on_and_gives_the_same_table(tmp_path):
    """SIGKILL to the process and its workers; what was finished is not trained again."""
    script = tmp_path / "tiny.py"
    script.write_text(SCRIPT)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(script, whole).wait(timeout=300) == 0

    process = start(script, killed)
    deadline = time.monotonic() + 300
    while not list((killed / "trials").glob("*.json")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {f: f.stat().st_mtime_ns for f in (killed / "trials").glob("*.json")}
    assert 0 < len(finished) < 4
    assert not (killed / "clauses" / "results.json").exists()

    assert start(script, killed).wait(timeout=300) == 0
    assert {f: f.stat().st_mtime_ns for f in finished} == finished
    one, other = (json.loads((f / "clauses" / "results.json").read_text()) for f in (whole, killed))
    for key in ("claims", "tables", "figures", "values"):
        assert one[key] == other[key]


def test_jobs_do_not_change_the_result(tmp_path, monkeypatch):
    small = BooleanConfig(warmup_epochs=1, epochs=1, samples=200, test_samples=100)
    monkeypatch.setattr("fpe_reproduction.experiments.tasks.boolean_config", lambda request: small)
    results = [reproduce("clauses", tmp_path / str(jobs), Request(quick=True), jobs=jobs) for jobs in (1, 2)]
    assert results[0]["clauses"]["values"] == results[1]["clauses"]["values"]


def test_a_row_trains_every_kind_at_one_count_with_fixed_masks():
    config = BooleanConfig(warmup_epochs=3, epochs=2, samples=200, test_samples=100)
    record = run_row(config, 4, (3, 5), first_trial=2, trials=2)
    networks = record["networks"]
    assert len(networks) == 2 * 2 * len(KINDS)
    assert {n["trial"] for n in networks} == {2, 3}
    for place in {(n["neurons"], n["trial"]) for n in networks}:
        kinds = {n["kind"]: n for n in networks if (n["neurons"], n["trial"]) == place}
        assert len({n["nonzero"] for n in kinds.values()}) == 1
        assert kinds["dense"]["covering"] == 1.0
        assert kinds["clause"]["covering"] <= 0.5
        clause = np.array(kinds["clause"]["weight"]).reshape(kinds["dense"]["neurons"], 2, 4, 4)
        both = (clause != 0).any(axis=3).all(axis=1)
        assert not both.any(), "two children of one parent see the same clause"
    assert run_row(config, 4, (3, 5), first_trial=2, trials=2) == record


def test_masks_alone_are_those_of_the_network_on_the_weights_of_its_own_dense_one():
    config = BooleanConfig(warmup_epochs=3, epochs=2, samples=200, test_samples=100)
    networks = run_row(config, 4, (3, 5), first_trial=2, trials=2)["networks"]
    for own in networks:
        (dense,) = (
            np.array(n["weight"])
            for n in networks
            if n["kind"] == "dense" and (n["trial"], n["neurons"]) == (own["trial"], own["neurons"])
        )
        weight = np.array(own["weight"])
        masked = np.repeat(dense, len(weight) // len(dense), axis=0) * (weight != 0)
        unit = masked / np.maximum(np.linalg.norm(masked, axis=1, keepdims=True), 1e-30)
        pairs = (unit @ unit.T)[~np.eye(len(unit), dtype=bool)]
        assert own["cosine_masked"] == pytest.approx(pairs.mean(), abs=1e-3)
        if own["kind"] == "dense":
            assert own["clause_capacity_masked"] == own["clause_capacity"]


def networks_with(accuracy, axis="neurons", values=(4, 8, 16), trials=6):
    """Make records in which relative improvement is what `accuracy` says; with a little noise."""
    rng = np.random.default_rng(0)
    made = []
    for value in values:
        for trial in range(trials):
            place = {"clauses": 8, "neurons": 8, axis: value}
            for kind in KINDS:
                extra = {"clause_capacity": 2.0 + accuracy(kind, value) * 4, "cosine": -accuracy(kind, value)}
                noise = rng.normal(0, 1e-3)
                made.append(
                    {
                        **place,
                        "trial": trial,
                        "kind": kind,
                        "accuracy": accuracy(kind, value) + noise,
                        **extra,
                    }
                )
    return made


def agreeing(find, networks):
    """Return of each claim whether it agrees."""
    return [f["agrees"] for f in find(Results.of("", networks, "neurons")) if "agrees" in f]


def test_a_claim_has_one_of_four_verdicts():
    up = Interval(6.1, 3.0, 9.2)
    claims = (
        judged("up", "", [up]),
        judged("up by 5", "", [up], size=5.0),
        judged("up by 10", "", [up], size=10.0),
        judged("down", "", [up], -np.inf, 0),
        judged("by more than 5", "", [up], 5),
        judged("not down", "", [Interval(-1, -3, 1)], weak=True),
        judged("not down", "", [Interval(-2, -3, -1)], weak=True),
    )
    said = [verdict(claim) for claim in claims]
    assert said == ["agrees", "agrees", "in sign only", "contradicted", "not shown", "agrees", "contradicted"]
    assert verdict({"agrees": False}) == "not shown"


def test_p_values_are_those_of_students_test():
    values = np.random.default_rng(0).normal(0.3, 1, 12)
    found = mean(values)
    assert found.p_below(0) == pytest.approx(ttest_1samp(values, 0, alternative="greater").pvalue)
    assert found.p_above(0) == pytest.approx(ttest_1samp(values, 0, alternative="less").pvalue)
    assert found.p_below(found.low) == pytest.approx(0.025)
    assert found.p_above(found.high) == pytest.approx(0.025)
    assert found.error == pytest.approx(sem(values))


def test_a_difference_that_is_detectable_is_found_four_times_in_five():
    generator = np.random.default_rng(0)
    detectable = np.mean([mean(generator.normal(0, 1, 20)).detectable for _ in range(200)])
    found = [mean(generator.normal(detectable, 1, 20)).low > 0 for _ in range(1000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)


def test_many_claims_are_judged_together():
    """The worked example of Holm (1979) style: 0.005, 0.01, 0.03 and 0.04 become 0.02, 0.03, 0.06, 0.06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    clear, close = (Interval(value, value - 1.97, value + 1.97) for value in (9.0, 2.0))
    alone = judged("up", "", [close])
    assert alone["agrees"]
    assert [c["agrees"] for c in corrected([alone])] == [True]
    family = [alone, judged("up", "", [clear]), {"paper": "counted", "agrees": True}]
    assert [c["agrees"] for c in corrected(family)] == [True] * 3
    close_ones = [judged("up", "", [close]) for _ in range(4)]
    assert not any(c["agrees"] for c in corrected(close_ones))
    down = [judged("down", "", [close], -np.inf, 0) for _ in range(4)]
    assert not any(c["contradicted"] for c in corrected(down))
    assert judged("down", "", [close], -np.inf, 0)["contradicted"]


def test_lower_in_all_settings_but_one_needs_just_that():
    def accuracy(exceptions):  # the cosine of `networks_with` is its negative
        return lambda kind, h: 0.5 + (0 if kind == "dense" else -0.1 if h in exceptions else 0.1)

    for exceptions, holds in (((), True), ((4,), True), ((4, 8), False)):
        assert agreeing(formulas.orthogonality, networks_with(accuracy(exceptions)))[:2] == [holds, holds]


def test_claims_agree_where_the_data_say_so_and_not_where_they_do_not():
    """The same judge sees data made as the paper says, and data made the other way round."""

    def shrinking(kind, h):
        return 0.6 + {"dense": 0, "random": 0.4 / h, "clause": 0.8 / h}[kind]

    def growing(kind, h):
        return 0.6 + {"dense": 0, "random": 0.02 * h, "clause": 0.01 * h}[kind]

    assert agreeing(formulas.neurons, networks_with(shrinking)) == [True, True, True]
    assert agreeing(formulas.neurons, networks_with(growing)) == [False, False, False]
    assert agreeing(formulas.regression, networks_with(shrinking)) == [True] * 4
    assert all(agreeing(formulas.capacity, networks_with(shrinking)))
    assert all(agreeing(formulas.orthogonality, networks_with(shrinking)))

    def peaked(kind, c):
        height = 0.3 - 0.05 * abs(np.log2(c) - 3)
        return 0.6 + {"dense": 0, "random": height / 2, "clause": height}[kind]

    counts = (2, 4, 8, 16, 32)
    assert agreeing(formulas.clauses, networks_with(peaked, "clauses", counts)) == [True] * 4
    rising = networks_with(growing, "clauses", counts)
    assert agreeing(formulas.clauses, rising) == [True, False, True, False]


def test_means_and_slopes_have_their_intervals():
    """By hand: mean 2 of 1, 2, 3 with s = 1, t(2) = 4.3027; a line through two points."""
    interval = mean([1, 2, 3])
    assert interval.low == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-4)
    assert mean([5]).text() == "+5.0"
    assert Interval(1.25, 0.5, 2).text(digits=2) == "+1.25 [+0.50, +2.00]"
    assert slope([1, 3], [2, 8]) == 3
    same = [([0, 1, 2], [0, 2, 4])] * 3
    assert (slope_over_trials(same).low, slope_over_trials(same).high) == pytest.approx((2, 2))
    rng = np.random.default_rng(1)
    noisy = [(x, 3 * x + rng.normal(0, 1, 20)) for x in rng.random((15, 20))]
    found = slope_over_trials(noisy)
    assert found.low < 3 < found.high
    assert 0.5 < found.high - found.low < 2


def test_the_list_names_every_experiment_with_the_papers_words():
    run = CliRunner().invoke(main, ["reproduce", "list"])
    assert run.exit_code == 0
    for experiment in catalogue.EXPERIMENTS:
        assert experiment.name in run.output
        assert experiment.paper in run.output
    assert len(json.loads(CliRunner().invoke(main, ["reproduce", "list", "--json"]).output)) == 31


def test_an_unknown_experiment_is_met_with_what_there_is(tmp_path):
    run = CliRunner().invoke(main, ["reproduce", "case-stdy", "--out", str(tmp_path)])
    assert run.exit_code == 2
    assert (
        "there is no experiment 'case-stdy'; allowed are list, boolean, real, dynamic-masks, paper, all"
        in run.output
    )
    assert "Did you mean 'case-study'?" in run.output
    assert not list(tmp_path.iterdir())


def test_results_of_other_settings_are_not_mixed(tmp_path, monkeypatch):
    small = BooleanConfig(warmup_epochs=1, epochs=1, samples=100, test_samples=100)
    monkeypatch.setattr("fpe_reproduction.experiments.tasks.boolean_config", lambda request: small)
    arguments = ["reproduce", "theory", "--quick", "--out", str(tmp_path), "--jobs", "1"]
    first = CliRunner().invoke(main, arguments)
    assert first.exit_code == 0, first.output
    assert "simulated ± s.e." in first.output
    assert (tmp_path / "theory" / "figure.png").stat().st_size > 10_000
    assert "A.5" in (tmp_path / "report.html").read_text(encoding="utf-8")
    monkeypatch.setattr(
        "fpe_reproduction.experiments.tasks.boolean_config",
        lambda request: BooleanConfig(samples=102, seed=request.seed),
    )
    second = CliRunner().invoke(main, arguments)
    assert second.exit_code == 2
    assert "samples 100, now 102" in second.output
