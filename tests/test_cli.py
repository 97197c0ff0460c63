"""The command: real processes where signals and pipes matter, click's runner elsewhere."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import fpe
from fpe.cli import shared
from fpe.cli.main import main
from fpe.compare.config import FitConfig
from fpe.expansion.plan import Plan
from fpe.rewiring.policies import POLICIES
from zoo import ZOO

FPE = [sys.executable, "-c", "from fpe.cli.main import main; main()"]
QUICK = ["--trials", "2", "--warmup-epochs", "2", "--epochs", "2", "--jobs", "1"]


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="fpe")


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(200) % 4
    X = rng.normal(size=(4, 10))[y] + 0.5 * rng.normal(size=(200, 10))
    np.savez(tmp_path / "points.npz", X=X, y=y)
    return tmp_path / "points.npz"


def test_fit_prints_one_table_and_says_where_everything_is(data, tmp_path):
    out = tmp_path / "out"
    result = run("fit", data, "--hidden", 2, 3, *QUICK, "--out", out)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "points: 160 samples to learn from, 40 to test on, 10 features, 4 classes"
    assert [line.split()[:3] for line in lines if "→" in line and "=" in line] == [
        ["2", "→", "4"],
        ["3", "→", "6"],
    ]
    assert "34 = 34" in result.output
    assert "49 = 49" in result.output
    for name in ("results.json", "accuracy.png", "best.safetensors"):
        assert (out / name).stat().st_size > 0
        assert str(out / name) in result.output


def test_the_line_that_loads_the_best_model_works(data, tmp_path):
    result = run("fit", data, "--hidden", 3, *QUICK, "--out", tmp_path / "out")
    (line,) = re.findall(r"load it with (fpe\.load_classifier\(.*\))", result.output)
    wide = eval(line, {"fpe": fpe}).model_
    assert wide[0].out_features == 6
    assert fpe.count_nonzero(wide) == 10 * 3 + 3 + 3 * 4 + 4


def test_json_is_the_stored_result(data, tmp_path):
    result = run("fit", data, "--hidden", 2, *QUICK, "--out", tmp_path / "out", "--json")
    assert json.loads(result.stdout) == json.loads((tmp_path / "out" / "results.json").read_text())


@pytest.mark.parametrize(
    "widths", [["--hidden", "2", "3"], ["--hidden", "2", "--hidden", "3"], ["--hidden=2", "--hidden=3"]]
)
def test_widths_may_be_given_one_by_one_or_together(data, tmp_path, widths):
    result = run("fit", *widths, data, *QUICK, "--out", tmp_path / "out", "--json")
    assert json.loads(result.stdout)["config"]["hidden"] == [2, 3]


def test_the_commands_defaults_are_the_configurations(monkeypatch):
    """What `FitConfig` documents is what the command does."""
    asked = []

    def stop(dataset, config, *rest, **how):
        asked.append(config)
        raise fpe.FPEError("far enough")

    monkeypatch.setattr("fpe.compare.fit.run_fit", stop)
    assert run("fit", "digits").exit_code == 1
    assert asked == [FitConfig()]


def test_results_go_to_a_folder_named_by_what_was_asked(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("fit", data, "--hidden", 2, *QUICK, "--split", "2:4").exit_code == 0
    assert run("fit", data, "--hidden", 2, *QUICK, "--factor", 3).exit_code == 0
    names = sorted(path.name[:-7] for path in (tmp_path / "fpe-out").iterdir())
    assert names == ["points-2-4-x2", "points-random-x3"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["fit", "digts"], 1, r"no data set and no file 'digts'.*\.npz, \.csv.*Did you mean 'digits'\?"),
        (["fit", "digits", "--factor", "0"], 2, "factor is 0; give an integer of at least 1"),
        (["fit", "digits", "--split", "randm"], 2, "unknown split 'randm'.*Did you mean 'random'"),
        (["fit", "digits", "--rewire", "rigel"], 2, "unknown policy 'rigel'.*Did you mean 'rigl'"),
        (["fit", "digits", "--factor", "65"], 1, "factor 65 is larger than the 64 inputs of layer '0'"),
        (["fit", "digits", "--hidden", "-4"], 2, r"hidden is \(-4,\); give"),
        (["fit", "digits", "--test-fraction", "1.5"], 2, "test.fraction is 1.5; give"),
        (["fit", "digits", "--jobs", "0"], 2, "--jobs is 0; give"),
        (
            ["plan", "nothing"],
            2,
            "'nothing' does not name a model: there is no such folder. .*MODULE:CALLABLE",
        ),
        (["plan", "nothing:make", "--budget", "600"], 2, "takes group or network.* fpe fit DATA --budget N"),
        (["fit", "digits", "--budget", "100000000000"], 2, "takes [0-9,]+ GiB of memory.*smaller budget"),
        (["plan", "no_such_module:make"], 2, "could not be made: ModuleNotFoundError"),
    ],
)
def test_a_bad_argument_gets_one_clear_line(tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == code
    assert re.match(f"Error: .*{message}.*\n$", result.stderr), result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unexpected_error_is_one_message_without_a_traceback(monkeypatch):
    def broken(*args, **how):
        raise RuntimeError("a bug")

    monkeypatch.setattr("fpe.data.load", broken)
    result = run("fit", "digits")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: RuntimeError: a bug\n")
    assert "FPE_TRACEBACK=1" in result.stderr
    monkeypatch.setenv("FPE_TRACEBACK", "1")
    assert isinstance(run("fit", "digits").exception, RuntimeError)


@pytest.mark.parametrize(
    "how",
    [["--hidden", 2, *QUICK], ["--hidden", 2, *QUICK, "--json"], ["--budget", 30, "--epochs", 1, "--json"]],
)
def test_without_matplotlib_fit_says_once_that_no_figure_was_drawn(data, tmp_path, monkeypatch, how):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("fit", data, "--out", tmp_path / "out", *how)
    assert result.exit_code == 0, result.output
    assert result.stderr == "no figure was drawn: pip install 'fixed-parameter-expansion[plots]'\n"
    assert "accuracy.png" not in result.stdout
    assert not (tmp_path / "out" / "accuracy.png").exists()


def test_an_unknown_option_is_a_bad_argument():
    result = run("fit", "digits", "--widht", "4")
    assert result.exit_code == 2
    assert "No such option" in result.stderr


def test_the_help_names_the_search_first():
    text = run("--help").output
    assert text.index("--budget") < text.index("Options:")
    assert "fpe COMMAND --help" in " ".join(text.split())


@pytest.mark.parametrize(
    ("command", "choices"),
    [
        (
            "fit",
            ["--split [random|shared|shared-N|gram|2:4]", "--prune [magnitude|balanced|columns|children]"],
        ),
        ("plan", ["--split [random|", "--budget [group|network]", "--convolutions [channels|taps]"]),
        ("embed", ["--dtype [float16|float32]", "--format [safetensors|parquet]"]),
        ("export", ["--weights [float32|float16|int8]"]),
    ],
)
def test_options_list_their_choices(command, choices):
    text = run(command, "--help").output
    for choice in choices:
        assert choice in text


@pytest.mark.parametrize("command", ["fit", "predict", "embed", "plan", "export"])
def test_options_that_can_be_repeated_say_so(command):
    for option in main.commands[command].params:
        if getattr(option, "multiple", False) and "…" not in option.metavar:
            assert "repeatable" in option.help


def test_warnings_of_fpe_are_notes_and_others_stay_as_they_are(data, tmp_path):
    code = "import warnings; warnings.warn('of others'); from fpe.cli.main import main; main()"
    command = [sys.executable, "-c", code, "fit", str(data), "--budget", "40000", "--epochs", "1"]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("note: ")] == [
        "note: the budget has more than 100 weights for each of the 160 rows; a smaller one may be as "
        "accurate, and takes less time."
    ]
    assert "UserWarning: of others" in done.stderr


@pytest.mark.parametrize("command", ["fit", "plan"])
def test_help_shows_an_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"\n    fpe {command} " in result.output


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_resumes(data, tmp_path):
    """A real SIGINT to the whole group, as a terminal sends it, while two processes train."""
    out = tmp_path / "out"
    command = [*FPE, "fit", str(data), "--hidden", "2", "--trials", "6", "--epochs", "120", "--out", str(out)]
    command += ["--jobs", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("trials/h*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    finished = {path: path.read_bytes() for path in out.glob("trials/h*.json")}
    assert process.returncode == 1
    assert stdout.startswith("points: 160 samples to learn from")
    assert "non-zeros" not in stdout
    assert f"of 6 parts are finished and kept in {out / 'trials'}; run the same command again" in stderr
    assert "Traceback" not in stderr
    assert 0 < len(finished) < 6

    again = run(*command[3:-1], "1")
    assert again.exit_code == 0, again.stderr
    assert all(line.startswith("points: ") for line in again.stderr.splitlines())  # no bar in a pipe
    assert all(path.read_bytes() == content for path, content in finished.items())
    assert len(json.loads((out / "results.json").read_text())["trials"]) == 6


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--rewire"], "prune balanced, rewired), learning rate 0.01; dense is trained alike"),
        (["--rewire", "--warmup-epochs", "0"], "rewired), learning rate 0.01, falling to 0; dense"),
        (["--rewire", "set", "--no-decay"], "prune balanced, rewired by set), learning rate 0.01; dense"),
    ],
)
def test_fit_lets_masks_move_beside_twice_the_parameters(data, tmp_path, given, said):
    out = tmp_path / "out"
    result = run("fit", data, "--hidden", 3, "--factor", 2, *QUICK, *given, "--out", out)
    assert result.exit_code == 0, result.output
    assert said in result.output
    assert "49 = 49" in result.output
    assert "twice %  gap closed" in result.output
    (row,) = json.loads((out / "results.json").read_text())["rows"]
    assert (row["double"]["neurons"], row["double"]["nonzero"]) == (6, 6 * 15 + 4)
    gap = row["double"]["accuracy"] - row["dense"]["accuracy"]
    assert row["gap_closed"] == (pytest.approx(row["gain"] / gap) if gap > 0 else None)


def test_a_budget_is_searched_for_reported_and_resumed(data, tmp_path):
    out = tmp_path / "out"
    result = run("fit", data, "--budget", 60, "--epochs", 8, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("best of 60 non-zeros: ") == 1
    assert "best of 30 non-zeros: " in result.stderr
    assert "best of 60 non-zeros: " not in result.stderr
    assert "accuracy against non-zeros" in result.stdout
    assert "on the test data" in result.stdout
    assert f"figure      {out / 'accuracy.png'}" in result.stdout
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    stored = json.loads((out / "results.json").read_text())
    count = stored["rows"][-1]["nonzero"]
    assert count <= 60  # softmax regression has 44
    assert [row["budget"] for row in stored["rows"]] == [15, 30, 60]
    best = fpe.load(out / "best.safetensors")
    assert fpe.count_nonzero(best) == count
    assert best.fpe_classes == ["0", "1", "2", "3"]
    again = run("fit", data, "--budget", 60, "--epochs", 8, "--out", out, "--json")
    assert json.loads(again.stdout)["rows"] == stored["rows"]


@pytest.mark.parametrize(
    ("words", "hidden", "rewire", "source"),
    [
        ("--hidden 4 8 20news.csv", (4, 8), None, "20news.csv"),
        ("--hidden=4 8 digits", (4, 8), None, "digits"),
        ("digits --hidden 4 8 --hidden 16", (4, 8, 16), None, "digits"),
        ("--rewire digits --hidden 2", (2,), "auto", "digits"),
        ("--rewire columns digits", (4, 8, 16), "columns", "digits"),
        ("digits --rewire", (4, 8, 16), "auto", "digits"),
        ("--rewire=set digits", (4, 8, 16), "set", "digits"),
        ("digits --rewire sett", (4, 8, 16), "sett", "digits"),
        ("--rewire --hidden 2 8 digits", (2, 8), "auto", "digits"),
    ],
)
def test_options_of_several_values_or_of_none_leave_the_data_alone(words, hidden, rewire, source):
    found = main.commands["fit"].make_context("fit", words.split()).params
    assert (found["hidden"], found["rewire"], found["data"]) == (hidden, rewire, source)


def test_the_policies_that_the_command_knows_are_all_there_are():
    assert {*shared.REWIRE} == {*POLICIES, "auto"}


@pytest.mark.parametrize(
    ("spread", "given", "standardized"),
    [(1, [], False), (1000, [], True), (1000, ["--no-standardize"], False)],
)
def test_features_of_unlike_spreads_are_standardized(data, tmp_path, spread, given, standardized):
    """By the rule of `FPEClassifier`, and said."""
    arrays = dict(np.load(data))
    for key in (key for key in arrays if key.startswith("X")):
        arrays[key] = arrays[key] * np.where(np.arange(arrays[key].shape[1]) == 0, spread, 1)
    np.savez(tmp_path / "unlike.npz", **arrays)
    how = ["--hidden", 2, *QUICK, *given, "--out", tmp_path / "out"]
    result = run("fit", tmp_path / "unlike.npz", *how)
    assert result.exit_code == 0, result.output
    assert ("features are standardized" in result.stdout) is standardized
    assert (
        json.loads((tmp_path / "out" / "results.json").read_text())["config"]["standardize"] is standardized
    )


def test_factor_1_expands_nothing_and_says_so(data, tmp_path):
    how = ["--epochs", 1, "--warmup-epochs", 2, "--trials", 1, "--jobs", 1, "--out", tmp_path]
    result = run("fit", data, "--factor", 1, "--hidden", 2, *how)
    assert result.exit_code == 0, result.output
    assert "factor 1: nothing is expanded" in result.stdout
    assert "expanded by" not in result.stdout
    assert "expanded %" not in result.stdout


def test_training_that_diverges_names_the_trial(data, tmp_path):
    result = run("fit", data, "--lr", 1e30, "--hidden", 3, "--trials", 1, "--jobs", 1, "--out", tmp_path)
    assert result.exit_code == 2
    assert "width 3, trial 0, warm-up: " in result.stderr
    assert "use a smaller learning rate, or scale the inputs" in result.stderr


def test_a_budget_refuses_options_of_what_it_chooses():
    result = run("fit", "digits", "--budget", 400, "--hidden", 4, "--rewire", "--patience", 3)
    assert result.exit_code == 2
    assert "--hidden, --rewire, --patience cannot be given" in result.stderr
    result = run("fit", "digits", "--budget", 0)
    assert result.exit_code == 2
    assert "budget is 0" in result.stderr


def test_plan_shows_what_would_be_done(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(
        "import torch\n"
        "def make():\n"
        "    return torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))\n"
        "def with_batch():\n"
        "    return make(), torch.zeros(3, 8)\n"
        "def not_a_model():\n"
        "    return 7\n"
    )
    monkeypatch.chdir(tmp_path)
    shown = subprocess.run([*FPE, "plan", "nets:make", "--factor", "2"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert re.match("Expansion by 2: .*Random.*Magnitude.*seed 0", shown.stdout.splitlines()[0])
    assert "2: it is a head: its neurons are outputs of the network" in shown.stdout
    as_json = json.loads(run("plan", "nets:with_batch", "--json", "--layers", "0").stdout)
    assert as_json["layers"][0]["neurons_after"] == 8
    refused = run("plan", "nets:make", "--layers", "1")
    assert refused.exit_code == 1
    assert re.match("Error: layer '1' is a ReLU.* '0'", refused.stderr)
    assert re.match("Error: model is a int", run("plan", "nets:not_a_model").stderr)


def test_plan_shows_a_model_of_transformers_in_a_folder(tmp_path):
    model, _ = ZOO["LLaMA"]()
    model.save_pretrained(tmp_path / "llama")
    folder = str(tmp_path / "llama")
    done = run("plan", folder, "--layers", "*.0.mlp.gate_proj", "--layers", "*.1.mlp.up_proj=3", "--json")
    assert done.exit_code == 0, done.output
    planned = Plan.from_dict(json.loads(done.output))
    assert [layer.factor for layer in planned.layers] == [2, 3]
    assert planned.nonzero == fpe.count_nonzero(model)
    (tmp_path / "llama" / "model.safetensors").unlink()
    untrained = run("plan", folder, "--budget", "network", "--target-fraction", "0.5")
    assert untrained.exit_code == 0, untrained.output
    assert "model.layers.{0-1}.mlp.{gate_proj, up_proj}" in untrained.output
    assert "budget of the whole network" in untrained.output


def test_plan_of_a_folder_keeps_reports_of_torchao_off_the_terminal(tmp_path):
    """transformers imports it, which reports what this machine lacks."""
    model, _ = ZOO["BERT"]()
    model.save_pretrained(tmp_path)
    done = subprocess.run([*FPE, "plan", str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_plan_of_a_folder_takes_no_memory_for_weights_unless_neurons_are_ranked_by_them(tmp_path):
    from fpe.cli.plan import named_model

    model, _ = ZOO["LLaMA"]()
    model.save_pretrained(tmp_path)
    empty, _ = named_model(str(tmp_path), weights=False)
    assert [p.shape for p in empty.parameters()] == [p.shape for p in model.parameters()]
    sizes = {n: p.untyped_storage().nbytes() for n, p in empty.named_parameters() if p.dim() > 1}
    assert set(sizes.values()) == {4}
    for name, buffer in model.named_buffers():
        assert torch.equal(empty.get_buffer(name), buffer)
    full, _ = named_model(str(tmp_path))
    assert all(torch.equal(full.get_parameter(n), p) for n, p in model.named_parameters())
    assert str(fpe.plan(empty)) == str(fpe.plan(model))


def test_plan_shows_a_model_in_a_folder_of_fpe(tmp_path):
    from fpe.integrations.hub import save_pretrained

    save_pretrained(fpe.mlp(8, 4, 2), tmp_path)
    done = run("plan", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert "non-zero parameters of the network, before and after: 46" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["."], "the folder . has no config.json, which a model of transformers has."),
        (["mynet:make", "--layers", "a=b"], "--layers a=b: 'b' is no factor; write NAME=FACTOR"),
    ],
)
def test_what_plan_cannot_read_is_a_bad_argument(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynet.py").write_text("import fpe\n\ndef make():\n    return fpe.mlp(8, 4, 2)\n")
    done = run("plan", *arguments)
    assert done.exit_code == 2
    assert message in done.output


def test_progress_is_written_in_lines_where_there_is_no_terminal(capsys, monkeypatch):
    from fpe._util import terminal

    clock = iter([0.0, 100.0, 110.0, 400.0, 500.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    with terminal.progress_bar("digits", 4) as advance:
        advance("first")
        advance("too soon after it")
        advance("third", done=3, total=5)
        advance("last", done=5, total=5)
    with terminal.progress_bar("digits", 4, visible=False) as advance:
        advance("silent")
    assert capsys.readouterr().err.splitlines() == [
        "digits: 1 of 4; first",
        "digits: 3 of 5, about 10 min left; third",
        "digits: 5 of 5; last",
    ]


@pytest.mark.parametrize(
    ("times", "left"),
    [
        ([14.8, 14.9, 15.0], ""),  # three steps after a slow start: too short for a rate
        ([10.0, 13.0, 16.0], ", about 2 min left"),  # 3 s a step, whatever came before
        ([30.0, 60.0, 90.0, 92.0, 94.0, 96.0, 98.0, 158.0], ", about 18 min left"),  # the last minute
        ([1.0, 15.0, 30.0], ", about 10 min left"),
    ],
)
def test_the_time_left_is_that_of_the_last_steps_and_not_of_the_start(times, left, capsys, monkeypatch):
    from fpe._util import terminal

    clock = iter([0.0, *times])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    with terminal.progress_bar("training", 43) as advance:
        for _ in times:
            advance("loss 1")
    assert capsys.readouterr().err.splitlines()[-1] == f"training: {len(times)} of 43{left}; loss 1"
