"""`fpe reproduce` on real data: every experiment, any data, any engine."""

import json
import os
import re
import signal

import numpy as np
import pytest
from click.testing import CliRunner

from fpe.cli.main import main
from fpe.data import load
from fpe.errors import ArgumentError, DataError
from fpe_reproduction.cluster import parallel_backend
from fpe_reproduction.experiments.catalogue import REAL, chosen
from fpe_reproduction.experiments.findings import Results, claims, sorted_findings
from fpe_reproduction.experiments.reproduce import count_tasks, reproduce
from fpe_reproduction.experiments.tasks import Request, config_of
from fpe_reproduction.experiments.timeline import Source

TINY = Request(quick=True, hidden=(3,), trials=2, warmup_epochs=1, epochs=1)


def fpe(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A file of 400 digits."""
    digits = load("digits")
    path = tmp_path_factory.mktemp("data") / "few.npz"
    np.savez(path, X=digits.X_train[:400], y=digits.y_train[:400])
    return path


def test_every_experiment_runs_and_says_what_it_found(few, tmp_path, monkeypatch):
    """On few digits, for two epochs: claims, tables and figures of all of them, and one page."""
    monkeypatch.setattr("fpe_reproduction.experiments.splits.STEPS", 5)
    result = fpe(
        *("reproduce", "real", "--quick", "--data", few, "--hidden", 3, "--trials", 2, "--jobs", 1),
        *("--warmup-epochs", 1, "--epochs", 1, "--out", tmp_path, "--json"),
    )
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)
    assert list(results) == [experiment.name for experiment in REAL]
    for name, found in results.items():
        assert found["claims"], name
        assert found["figures"], name
        assert all(table["rows"] for table in found["tables"]), name
        assert all(figure["lines"] for figure in found["figures"]), name
        assert found["values"], name
        assert {n["data"] for n in found["values"]} == {"few"}
        assert found["command"].startswith(f"fpe reproduce {name} --quick --data {few} --hidden 3")
        assert (tmp_path / name / "figure.png").stat().st_size > 1000
    page = (tmp_path / "report.html").read_text()
    assert all(f'id="{experiment.name}"' in page for experiment in REAL)


def test_one_trial_gives_valid_json_without_intervals(tmp_path):
    """A mean of one value has no interval: null in the file, no band in figure and page."""
    result = fpe(
        *("reproduce", "vision", "--data", "digits", "--hidden", 3, "--trials", 1, "--warmup-epochs", 1),
        *("--epochs", 1, "--out", tmp_path, "--jobs", 1, "--json"),
    )
    assert result.exit_code == 0, result.output

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    printed = json.loads(result.stdout, parse_constant=refuse)
    stored = json.loads((tmp_path / "vision" / "results.json").read_text(), parse_constant=refuse)
    assert printed["vision"] == stored
    assert stored["figures"][0]["lines"][0]["low"] == [None]
    assert "NaN" not in (tmp_path / "report.html").read_text().partition("const charts")[2]


def test_finished_networks_are_not_trained_again(tmp_path):
    first = reproduce("vision", tmp_path, TINY, ["digits"], jobs=1)
    times = {f: f.stat().st_mtime_ns for f in (tmp_path / "digits" / "trials").glob("*.json")}
    assert len(times) == count_tasks("vision", TINY, ["digits"]) == 1
    shared = reproduce("two-four", tmp_path, TINY, ["digits"], jobs=1)
    assert {f: f.stat().st_mtime_ns for f in times} == times
    assert shared["two-four"]["values"] == first["vision"]["values"]


def test_data_of_ones_own(tmp_path):
    """A file by a relative name, run from its folder; its name stands in the results."""
    rng = np.random.default_rng(0)
    X, y = rng.random((300, 9)), np.arange(300) % 3
    X[np.arange(300), y] += 1
    np.savez(tmp_path / "mine.npz", X=X, y=y)
    results = reproduce("vision", tmp_path / "out", TINY, [str(tmp_path / "mine.npz")], jobs=1)
    assert {n["data"] for n in results["vision"]["values"]} == {"mine"}


def test_a_lost_worker_changes_nothing(few, tmp_path):
    """Two workers of a Dask cluster, one killed when the first task is done: the table of loky."""
    distributed = pytest.importorskip("dask.distributed")
    request = Request(quick=True, hidden=(3, 4, 5), trials=2, warmup_epochs=2, epochs=2)
    here = reproduce("timing", tmp_path / "here", request, [str(few)], jobs=1)
    killed = []
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        pids = [worker.pid for worker in cluster.workers.values()]

        def kill_one(_):
            if not killed:
                os.kill(pids[0], signal.SIGKILL)
                killed.append(pids[0])

        with parallel_backend("dask", cluster.scheduler_address):
            there = reproduce("timing", tmp_path / "there", request, [str(few)], on_task=kill_one)
        assert killed
        assert killed[0] not in [worker.pid for worker in cluster.workers.values()]
    for key in ("claims", "tables", "figures", "values"):
        assert there["timing"][key] == here["timing"][key]
    files = [sorted(f.name for f in (tmp_path / w / "few" / "trials").iterdir()) for w in ("here", "there")]
    assert files[0] == files[1]


def test_a_cluster_that_cannot_be_used_is_refused():
    refused = pytest.raises(ArgumentError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9")
    with refused, parallel_backend("dask", "tcp://127.0.0.1:9"):
        pass
    distributed = pytest.importorskip("dask.distributed")
    few = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": None}
    refused = pytest.raises(ArgumentError, match=r"have \[2\] threads; .* --nthreads 1")
    with (
        distributed.LocalCluster(**few) as cluster,
        refused,
        parallel_backend("dask", cluster.scheduler_address),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["case-study", "--data", "digits"], "--data cannot be used with case-study, which runs on made-up"),
        (["boolean", "--trials", 3, "--lr", 0.1], "--trials, --lr cannot be used with boolean"),
        (["vision", "--data", "digits", "--trials", 0], "--trials is 0; give at least 1"),
        (["vision", "--data", "digits", "--epochs", 0], "--epochs is 0; give at least 1"),
        (["vision", "--data", "digits", "--hidden", 0], r"--hidden is \(0,\); give at least 1"),
        (["vision", "--data", "digits", "--lr", -1], "--lr is -1.0; give a number above 0"),
        (["visoin"], "there is no experiment 'visoin'.*Did you mean 'vision'"),
        (["vision", "--engine", "dusk"], "unknown engine 'dusk'; allowed are loky and dask"),
        (["vision", "--engine", "dask"], "needs the address of its scheduler"),
        (["vision", "--address", "tcp://10.0.0.1:8786"], "needs the address of its scheduler, and only it"),
        (["vision", "--engine", "dask", "--address", "tcp://h:1", "--jobs", 2], "leave jobs out"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, arguments, message):
    result = fpe("reproduce", *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert re.search(message, " ".join(result.output.split())), result.output
    assert not (tmp_path / "out").exists()


def test_two_data_sets_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "same.npz", X=np.random.rand(20, 3), y=np.arange(20) % 2)
    files = [str(tmp_path / folder / "same.npz") for folder in ("a", "b")]
    with pytest.raises(ArgumentError, match="two of the data sets are called 'same'"):
        reproduce("vision", tmp_path / "out", TINY, files)


def test_cnns_need_images(tmp_path):
    np.savez(tmp_path / "flat.npz", X=np.random.rand(40, 65), y=np.arange(40) % 2)
    with pytest.raises(DataError, match="flat has 65 features, which are no square images"):
        reproduce("cnn", tmp_path / "out", TINY, [str(tmp_path / "flat.npz")], jobs=1)


def test_missing_banking77_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FPE_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = fpe("reproduce", "imagenet", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "fpe embed mteb/banking77" in " ".join(result.output.split())


def test_what_suits_the_data_and_what_is_asked():
    assert config_of("banking77", Request()).epochs == 50
    assert config_of("mine", Request(seed=4)).to_dict() == {
        "warmup_epochs": 25,
        "epochs": 25,
        "lr": 3e-3,
        "seed": 4,
    }
    assert config_of("banking77", Request(epochs=7, lr=0.5)).to_dict()["epochs"] == 7


def network(hidden, kind, trial, accuracy, nonzero=None):
    return {
        "data": "made-up",
        "hidden": hidden,
        "kind": kind,
        "trial": trial,
        "accuracy": accuracy,
        "nonzero": nonzero or 100 * hidden,
    }


def test_parameters_to_match_by_hand():
    """Dense: 0.5 at 400, 0.7 at 800. An expanded one of 400 at 0.6 is worth 600: 1.5 times."""
    made = [network(h, "dense", t, a) for t in (0, 1) for h, a in ((4, 0.5), (8, 0.7))]
    made += [network(4, "random", t, 0.6) for t in (0, 1)]
    found = sorted_findings(chosen("equivalent")[0].findings(Results.of("made-up", made)))
    assert found["tables"][0]["rows"][0][3:] == ["600", "1.50 [1.50, 1.50]"]
    assert found["claims"][0]["agrees"]


def test_differences_are_paired():
    """Trials that differ much, but always by the same: the interval of the difference is narrow."""
    values = {0: 0.2, 1: 0.5, 2: 0.8}
    made = [network(4, "dense", t, a) for t, a in values.items()]
    made += [network(4, "random", t, a + 0.01 + 0.001 * t) for t, a in values.items()]
    results = Results.of("made-up", made)
    assert results.differences("random", "dense")[4].tolist() == pytest.approx([0.01, 0.011, 0.012])
    (claim,) = claims(results, "above", "random", at="count")
    assert claim["agrees"]
    assert "clearly above at 4, clearly below at no width, of 4" in claim["ours"]
    (claim,) = claims(results, "above", "dense", "random", at="count")
    assert not claim["agrees"]
    assert claim["contradicted"]


def test_a_claim_that_does_not_hold_says_so():
    kinds = ("dense", "gram", "random", "restart", "shared", "columns")
    made = [
        network(h, k, t, 0.5 + 0.01 * t - 0.1 * (k == "random"))
        for h in (4, 8)
        for k in kinds
        for t in (0, 1, 2)
    ]
    found = sorted_findings(chosen("vision")[0].findings(Results.of("made-up", made)))
    judged = {c["paper"]: c["agrees"] for c in found["claims"]}
    assert not judged["random-split is above dense"]
    assert not judged["gram-split is only comparable to random-split"]


def close_to_random(made):
    results = Results.of("made-up", made)
    (claim,) = claims(results, "within half a point", "columns", "random", at="every", low=-0.5, digits=2)
    return claim


def test_whole_blocks_are_close_if_every_width_is():
    """Differences of about −0.3 points at 4 neurons, −0.4 at 8, −0.7 at 16: two are within half a point."""
    lost = {4: 0.003, 8: 0.004, 16: 0.007}
    made = [network(h, "random", t, 0.5 + 0.1 * t) for h in lost for t in (0, 1, 2)]
    made += [network(h, "columns", t, 0.5 + 0.1 * t - lost[h] - 0.0001 * t) for h in lost for t in (0, 1, 2)]
    claim = close_to_random([n for n in made if n["hidden"] < 16])
    assert claim["agrees"]
    assert claim["ours"] == "made-up, points by neurons: -0.31 [-0.33, -0.29] at 4, -0.41 [-0.43, -0.39] at 8"
    claim = close_to_random(made)
    assert not claim["agrees"]
    assert claim["contradicted"]


def test_one_trial_shows_nothing_of_how_close_blocks_are():
    made = [network(4, kind, 0, 0.5) for kind in ("random", "columns")]
    claim = close_to_random(made)
    assert not claim["agrees"]
    assert not claim["contradicted"]


def test_blocks_share_the_networks_of_other_experiments():
    """What is trained for them alone has names of its own."""
    source = {"banking77": Source("banking77", "")}
    tasks = {e.name: {t.name for t in e.tasks(Request(data=source, trials=5))} for e in REAL}
    assert tasks["factor"] < tasks["blocks"]
    others = set().union(*(names for name, names in tasks.items() if name != "blocks"))
    assert {name.partition("-h")[0] for name in tasks["blocks"] - others} == {"blocks", "blocks4", "gated"}


def test_names_of_experiments_are_the_commands():
    assert [e.name for e in chosen("real")] == [e.name for e in REAL]
    assert {e.name for e in chosen("all")} > {e.name for e in chosen("boolean")}
