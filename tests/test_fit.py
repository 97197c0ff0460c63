"""The main job: trials, rows, stored results, resuming."""

import ast
import dataclasses
import json
import os
import re
import signal
import warnings

import numpy as np
import pytest
import torch

import fpe
from fpe.compare.config import FitConfig
from fpe.compare.fit import run_fit
from fpe.compare.report import fit_figure, fit_table
from fpe.compare.runner import run_tasks
from fpe.compare.store import _imported, code_digest, commits, depends
from fpe.compare.trial import _scaling, run_trial
from fpe.data import load
from fpe.errors import ArgumentError, BudgetError, DataError, FPEError
from fpe.training.loop import accuracy, adam, train


def blobs(path, classes=3, features=12, scale=1.0):
    """Write points around class centres to a .npz file: 240 to learn from, 90 to test on."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes, features))
    y = np.arange(330) % classes
    X = (centres[y] + 0.7 * rng.normal(size=(330, features))) * scale + 5 * (scale - 1)
    np.savez(path, X_train=X[:240], y_train=y[:240], X_test=X[240:], y_test=y[240:])
    return load(path)


@pytest.fixture
def dataset(tmp_path):
    return blobs(tmp_path / "blobs.npz")


QUICK = FitConfig(hidden=(2, 3), trials=2, warmup_epochs=3, epochs=3, lr=1e-2)


@pytest.fixture
def one_thread():
    """Trials compute on one; so must what they are compared with to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def timeless(record):
    return {k: v for k, v in record.items() if k not in ("seconds", "provenance")}


def test_a_trial_is_the_papers_recipe_done_by_hand(dataset, one_thread):
    """Warm up, go on dense; expand the warm network, go on with a fresh Adam; same mini-batches for both."""
    record = run_trial(dataset, QUICK, hidden=3, trial=1)

    kept, _ = QUICK.held_out(dataset)
    X, y = torch.from_numpy(dataset.X_train[kept]), torch.from_numpy(dataset.y_train[kept])
    X_test, y_test = torch.from_numpy(dataset.X_test), torch.from_numpy(dataset.y_test)
    results = {}
    for kind in ("dense", "expanded"):
        network = fpe.mlp(12, 3, 3, seed=1)
        optimizer, order = adam(network, 1e-2), torch.Generator().manual_seed(1)
        train(network, X, y, epochs=3, optimizer=optimizer, generator=order, batch_size=64)
        if kind == "expanded":
            network = fpe.expand(network, 2, seed=1)
            optimizer = adam(network, 1e-2)
        history = train(network, X, y, epochs=3, optimizer=optimizer, generator=order, batch_size=64)
        results[kind] = (accuracy(network, X_test, y_test), history, fpe.count_nonzero(network))

    for kind in ("dense", "expanded"):
        score, history, nonzero = results[kind]
        assert record[kind]["accuracy"] == pytest.approx(score, abs=1 / 90)
        losses = [epoch["loss"] for epoch in history]
        assert [epoch["loss"] for epoch in record["history"][kind]] == pytest.approx(losses, rel=1e-5)
        assert record[kind]["nonzero"] == nonzero == 12 * 3 + 3 + 3 * 3 + 3


def test_rows_sum_the_trials_up(dataset, tmp_path):
    result = run_fit(dataset, QUICK, tmp_path / "out", jobs=1)
    assert [row["hidden"] for row in result["rows"]] == [2, 3]
    for row in result["rows"]:
        trials = [t for t in result["trials"] if t["hidden"] == row["hidden"]]
        dense, wide = ([t[kind]["accuracy"] for t in trials] for kind in ("dense", "expanded"))
        assert row["dense"]["accuracy"] == pytest.approx(np.mean(dense))
        assert row["expanded"]["accuracy_sd"] == pytest.approx(np.std(wide, ddof=1))
        assert row["gain"] == pytest.approx(np.mean(wide) - np.mean(dense))
        assert row["gain_sd"] == pytest.approx(np.std(np.subtract(wide, dense), ddof=1))
        assert row["relative_improvement"] == pytest.approx(np.mean(wide) / np.mean(dense) - 1)
        assert row["dense"]["nonzero"] == row["expanded"]["nonzero"]
        assert row["expanded"]["neurons"] == 2 * row["dense"]["neurons"] == 2 * row["hidden"]
    assert result == json.loads((tmp_path / "out" / "results.json").read_text())


def test_results_do_not_depend_on_the_number_of_processes(dataset, tmp_path):
    one = run_fit(dataset, QUICK, tmp_path / "one", jobs=1)
    two = run_fit(dataset, QUICK, tmp_path / "two", jobs=2)
    assert one["rows"] == two["rows"]
    assert [timeless(t) for t in one["trials"]] == [timeless(t) for t in two["trials"]]


def test_finished_trials_are_never_done_again_and_more_can_be_added(dataset, tmp_path):
    start = dataclasses.replace(QUICK, trials=5)
    first = run_fit(dataset, start, tmp_path / "out", jobs=1)
    kept = {path: path.read_bytes() for path in (tmp_path / "out" / "trials").glob("*.json")}
    assert {path.name for path in kept} == {f"h{h}-t{t}.json" for h in (2, 3) for t in range(5)}
    half = tmp_path / "out" / "trials" / "h2-t0.json"
    half.write_bytes(kept.pop(half)[:100])
    seen = []
    more = dataclasses.replace(start, hidden=(2, 3, 4), trials=7)
    with pytest.raises(DataError, match=r"h2-t0\.json"):
        run_fit(dataset, more, tmp_path / "out", jobs=1)
    half.unlink()
    second = run_fit(dataset, more, tmp_path / "out", jobs=1, on_trial=seen.append)
    assert len(seen) == len(second["trials"]) == 3 * 7
    assert all(path.read_bytes() == content for path, content in kept.items())
    again = {(t["hidden"], t["trial"]): t for t in second["trials"]}
    for trial in first["trials"]:
        assert timeless(again[trial["hidden"], trial["trial"]]) == timeless(trial)


def test_a_folder_holds_one_configuration(dataset, tmp_path):
    run_fit(dataset, QUICK, tmp_path / "out", jobs=1)
    before = (tmp_path / "out" / "results.json").read_bytes()
    other = dataclasses.replace(QUICK, lr=1e-3, factor=3)
    with pytest.raises(ArgumentError, match=r"\(factor 2, now 3; lr 0\.01, now 0\.001\).*--fresh"):
        run_fit(dataset, other, tmp_path / "out", jobs=1)
    assert (tmp_path / "out" / "results.json").read_bytes() == before
    assert run_fit(dataset, other, tmp_path / "out", jobs=1, fresh=True)["config"]["factor"] == 3
    assert other.folder(dataset) != QUICK.folder(dataset)
    assert dataclasses.replace(QUICK, trials=9).folder(dataset) == QUICK.folder(dataset)


@pytest.mark.parametrize("standardize", [False, True])
def test_the_best_model_reads_the_data_as_it_is(tmp_path, standardize):
    dataset = blobs(tmp_path / "far.npz", scale=20.0)
    config = dataclasses.replace(QUICK, standardize=standardize, warmup_epochs=10, epochs=10)
    result = run_fit(dataset, config, tmp_path / "out", jobs=1)
    best = result["best"]
    wide = fpe.load(tmp_path / "out" / best["file"])
    assert ("scaler" in dict(wide.named_children())) is standardize
    assert wide.get_submodule(wide.fpe_plan.layers[0].group.name) is wide.get_submodule("0")
    score = accuracy(wide, torch.from_numpy(dataset.X_test), torch.from_numpy(dataset.y_test))
    assert score == best["expanded"]["accuracy"]
    _, held = config.held_out(dataset)
    X, y = torch.from_numpy(dataset.X_train[held]), torch.from_numpy(dataset.y_train[held])
    assert accuracy(wide, X, y) == best["expanded"]["validation_accuracy"]
    assert fpe.count_nonzero(wide) == best["expanded"]["nonzero"]


def test_the_validation_part_is_a_share_of_each_class_and_of_the_training_samples_alone(dataset):
    config = dataclasses.replace(QUICK, validation_fraction=0.25)
    kept, held = config.held_out(dataset)
    assert np.bincount(dataset.y_train[held]).tolist() == [20, 20, 20]
    assert sorted([*kept, *held]) == list(range(240))
    again, other = (dataclasses.replace(config, seed=seed).held_out(dataset)[1] for seed in (0, 1))
    assert np.array_equal(held, again)
    assert not np.array_equal(held, other)


def test_the_test_part_has_no_say_in_which_model_is_the_best(dataset, tmp_path):
    """With test labels that are all wrong the same trial is chosen, by the validation part."""
    wrong = dataclasses.replace(dataset, y_test=(dataset.y_test + 1) % 3)
    config = dataclasses.replace(QUICK, hidden=(2, 3, 4), trials=3)
    results = [run_fit(d, config, tmp_path / str(i), jobs=1) for i, d in enumerate((dataset, wrong))]
    right, misled = (result["best"] for result in results)
    assert (right["hidden"], right["trial"]) == (misled["hidden"], misled["trial"])
    for result in results:
        scores = [trial["expanded"]["validation_accuracy"] for trial in result["trials"]]
        assert result["best"]["expanded"]["validation_accuracy"] == max(scores)
    states = [fpe.load(tmp_path / str(i) / "best.safetensors").state_dict() for i in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_better_model_of_an_earlier_run_stays(dataset, tmp_path):
    """In the same folder with fewer widths, and with other settings and `fresh`."""
    good = dataclasses.replace(QUICK, hidden=(1, 8), trials=1, warmup_epochs=20, epochs=20)
    first = run_fit(dataset, good, tmp_path, jobs=1)
    best = (tmp_path / "best.safetensors").read_bytes()
    poor = dataclasses.replace(good, hidden=(1,))
    poorer = dataclasses.replace(poor, epochs=0, warmup_epochs=1)
    assert first["best"]["hidden"] == 8
    assert (first["best"]["kept"], first["best"]["replaced"]) == (False, False)
    for config, fresh in ((poor, False), (poorer, True)):
        result = run_fit(dataset, config, tmp_path, jobs=1, fresh=fresh)
        assert (tmp_path / "best.safetensors").read_bytes() == best
        expanded = result["best"].pop("expanded")
        assert expanded.items() <= first["best"]["expanded"].items()
        assert {**result["best"], "expanded": first["best"]["expanded"]} == {**first["best"], "kept": True}
    better = run_fit(dataset, good, tmp_path, jobs=1, fresh=True)["best"]
    assert (better["hidden"], better["replaced"]) == (8, False)


def test_a_model_of_other_data_is_replaced_if_forced_and_that_is_told(dataset, tmp_path):
    run_fit(dataset, QUICK, tmp_path / "out", jobs=1)
    other = blobs(tmp_path / "two.npz", classes=2)
    with pytest.raises(ArgumentError, match=r"it is of other data: .*--force"):
        run_fit(other, QUICK, tmp_path / "out", jobs=1, fresh=True)
    result = run_fit(other, QUICK, tmp_path / "out", jobs=1, fresh=True, force=True)
    assert (result["best"]["kept"], result["best"]["replaced"]) == (False, True)


def test_data_without_two_samples_of_a_class_are_refused(dataset, tmp_path):
    few = dataclasses.replace(dataset, X_train=dataset.X_train[:3], y_train=dataset.y_train[:3])
    with pytest.raises(DataError, match="held out to choose the best model"):
        run_fit(few, QUICK, tmp_path / "out", jobs=1)


def test_a_constant_feature_is_not_divided_by_what_rounding_leaves():
    X = torch.full((999, 2), 0.1)
    X[:, 1] = torch.arange(999) / 1e6 + 1
    mean, scale = _scaling(X)
    assert scale[0] == 1
    assert 2e-4 < scale[1] < 4e-4
    torch.testing.assert_close(mean, X.mean(0))


def test_standardizing_helps_where_features_differ_much_in_scale(tmp_path):
    blobs(tmp_path / "blobs.npz")
    arrays = dict(np.load(tmp_path / "blobs.npz"))
    rng = np.random.default_rng(1)
    for part in ("X_train", "X_test"):  # noise beside which what matters is tiny
        noise = 1e4 * rng.normal(size=(len(arrays[part]), 4))
        arrays[part] = np.concatenate([arrays[part], noise], axis=1)
    np.savez(tmp_path / "far.npz", **arrays)
    dataset = load(tmp_path / "far.npz")
    config = dataclasses.replace(QUICK, hidden=(8,), warmup_epochs=15, epochs=15)
    plain, scaled = (
        run_trial(dataset, dataclasses.replace(config, standardize=s), hidden=8, trial=0)["expanded"][
            "accuracy"
        ]
        for s in (False, True)
    )
    assert scaled > 0.8
    assert scaled > plain


def test_patience_ends_a_stage_early(dataset):
    config = dataclasses.replace(QUICK, warmup_epochs=200, epochs=200, patience=2, lr=3e-2)
    history = run_trial(dataset, config, hidden=3, trial=0)["history"]
    assert all(0 < len(records) < 200 for records in history.values())
    assert "validation_loss" in history["dense"][0]


def test_two_classes_make_one_logit(tmp_path):
    dataset = blobs(tmp_path / "two.npz", classes=2)
    record = run_trial(dataset, QUICK, hidden=2, trial=0)
    assert record["dense"]["nonzero"] == record["expanded"]["nonzero"] == 12 * 2 + 2 + 2 + 1


def test_one_neuron_has_no_cosine_similarity(dataset):
    record = run_trial(dataset, QUICK, hidden=1, trial=0)
    assert record["dense"]["cosine"] is None
    assert -1 <= record["expanded"]["cosine"] <= 1


def test_bad_numbers_are_refused_all_at_once_before_anything_is_written(dataset, tmp_path):
    config = FitConfig(hidden=(4, 0), trials=0, epochs=-1, lr=0.0)
    with pytest.raises(ArgumentError) as caught:
        run_fit(dataset, config, tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    for line, said in zip(
        lines[1:], ("hidden is (4, 0)", "epochs is -1", "lr is 0.0", "trials is 0"), strict=True
    ):
        assert said in line
    narrow = blobs(tmp_path / "narrow.npz", features=4)
    with pytest.raises(BudgetError, match=r"8 copies"):
        run_fit(narrow, FitConfig(hidden=(2,), split="shared", prune="columns"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def interrupted(number):
    if number == 2:
        raise KeyboardInterrupt
    return {"number": number}


def test_after_an_interrupt_what_is_finished_stays(tmp_path):
    tasks = {f"task-{i}": {"number": i} for i in range(4)}
    with pytest.raises(KeyboardInterrupt) as caught:
        run_tasks(interrupted, tasks, tmp_path, "this", jobs=1)
    assert f"2 of 4 parts are finished and kept in {tmp_path}; run the same command" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["task-0.json", "task-1.json"]


def killed(number):
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"number": number}


def test_after_a_process_is_killed_what_is_finished_stays(tmp_path):
    tasks = {f"task-{i}": {"number": i} for i in range(3)}
    run_tasks(killed, {"task-0": tasks["task-0"]}, tmp_path, "this", jobs=1)
    with pytest.raises(FPEError, match=r"killed.* of 3 parts .* kept in .*--jobs"):
        run_tasks(killed, tasks, tmp_path, "this", jobs=2)
    assert "task-0.json" in [path.name for path in tmp_path.iterdir()]


def doubled(number):
    return {"number": 2 * number}


def test_a_record_of_another_run_is_not_taken_for_a_result(tmp_path):
    """A worker that outlives a killed run may still write into the folder."""
    tasks = {f"task-{i}": {"number": i} for i in range(3)}
    run_tasks(interrupted, {"task-1": {"number": 1}}, tmp_path, "another", jobs=1)
    with pytest.warns(UserWarning, match="1 of 3 parts .* outdated .*identity.* made again"):
        records = run_tasks(doubled, tasks, tmp_path, "this", jobs=1)
    assert [record["number"] for record in records.values()] == [0, 2, 4]
    assert json.loads((tmp_path / "task-1.json").read_text())["identity"] == "this"


@pytest.mark.parametrize("what", ["arguments", "torch", "code"])
def test_results_of_other_arguments_code_or_versions_are_made_again(what, tmp_path):
    run_tasks(doubled, {"a": {"number": 1}, "b": {"number": 1}}, tmp_path, "this", jobs=1)
    tasks = {"a": {"number": 2 if what == "arguments" else 1}, "b": {"number": 1}}
    if what != "arguments":
        record = json.loads((tmp_path / "a.json").read_text())
        record["depends"][what] = "other"
        (tmp_path / "a.json").write_text(json.dumps({**record, "number": 77}))
    before = (tmp_path / "b.json").read_bytes()
    with pytest.warns(UserWarning, match=f"1 of 2 parts .*other {what}"):
        records = run_tasks(doubled, tasks, tmp_path, "this", jobs=1)
    assert records["a"]["number"] == 2 * tasks["a"]["number"]
    assert (tmp_path / "b.json").read_bytes() == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_tasks(doubled, tasks, tmp_path, "this", jobs=1)


def test_code_counts_without_comments_and_with_what_it_imports(tmp_path):
    def digest(text, name):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "work.py"
        path.write_text(text)
        return code_digest(str(path))

    one = digest("from fpe.training.losses import loss_of\ndef f(x):\n    return 1\n", "one")
    assert one == digest(
        'from fpe.training.losses import loss_of\n# a\ndef f(x):\n    """Do."""\n    return 1\n', "two"
    )
    assert one != digest("from fpe.training.losses import loss_of\ndef f(x):\n    return 2\n", "three")
    assert digest("import fpe_reproduction.theory\n", "four") != digest(
        "import fpe.training.losses\n", "five"
    )
    everything = {str(path) for path in _imported(ast.parse("import fpe"))}
    assert {str(path) for path in _imported(ast.parse("from fpe.training.losses import x"))} < everything


def test_c_sources_count(tmp_path):
    digests = set()
    for number, text in enumerate(["", "int f(void) { return 1; }", "int f(void) { return 2; }"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "work.py").write_text("x = 1\n")
        if text:
            (folder / "work.c").write_text(text)
        digests.add(code_digest(str(folder / "work.py")))
    assert len(digests) == 3


def test_arguments_count_by_what_they_say(dataset, tmp_path):
    one = depends(doubled, {"number": 1, "config": QUICK, "data": dataset, "folder": tmp_path})
    assert one == depends(doubled, {"folder": tmp_path / "x", "data": dataset, "config": QUICK, "number": 1})
    other = dataclasses.replace(QUICK, lr=1e-3)
    assert one != depends(doubled, {"number": 1, "config": other, "data": dataset, "folder": tmp_path})


def test_commits_are_those_of_the_runs():
    runs = [{"provenance": {"commit": c}} for c in ("a", "b+", "a", None)]
    assert commits(runs) == ["a", "b+", "no known commit"]
    assert commits([{"commits": ["a", "b"], "provenance": {"commit": "reader"}}]) == ["a", "b"]


def test_the_table_shows_what_the_rows_say(dataset, tmp_path):
    result = run_fit(dataset, QUICK, tmp_path / "out", jobs=1)
    row = result["rows"][0]
    row["dense"] |= {"accuracy": 0.5, "accuracy_sd": 0.01, "capacity": 1.5, "cosine": 0.25}
    row["expanded"] |= {"accuracy": 0.75, "accuracy_sd": 0.02, "capacity": 3.0, "cosine": -0.125}
    row |= {"gain": 0.25, "gain_sd": 0.015, "relative_improvement": 0.5}
    line = fit_table(result).splitlines()[2]
    cells = ["2 → 4", "35 = 35", "50.0 ± 1.0", "75.0 ± 2.0", "+25.0 ± 1.5", "+50.0%", "1.50 → 3.00"]
    assert re.split(r"\s{2,}", line.strip()) == [*cells, "0.250 → -0.125"]


@pytest.mark.parametrize("trials", [1, 2])
@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_figure_is_a_picture(dataset, tmp_path, trials, ending, magic):
    result = run_fit(dataset, dataclasses.replace(QUICK, trials=trials), tmp_path / "out", jobs=1)
    fit_figure(result, tmp_path / f"accuracy.{ending}")
    content = (tmp_path / f"accuracy.{ending}").read_bytes()
    assert content.startswith(magic)
    assert len(content) > 5_000
