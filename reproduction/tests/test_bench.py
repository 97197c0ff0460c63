"""Cases, rows, intervals and reports of fpe bench; never how fast anything is."""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from benches import LAYER, TINY, TRAINED
from fpe.cli.main import main
from fpe.errors import DataError
from fpe_reproduction.bench import cases as names
from fpe_reproduction.bench.cases import BenchConfig
from fpe_reproduction.bench.measure import (
    interleave,
    median_of,
    peak_bytes,
    spread_out,
)
from fpe_reproduction.bench.report import bench_text, duration, size
from fpe_reproduction.bench.run import failed, found, run_bench


def test_calls_take_turns_and_slow_ones_fewer():
    """The dense parent and blocks are in all rounds; the slow one in three, evenly spread."""
    clock = {"now": 0.0}
    done = []

    def call(name, takes):
        def run():
            done.append(name)
            clock["now"] += takes

        return run

    a, b = names.DENSE, names.PACKED
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.benchmark.timer", lambda: clock["now"])
        patch.setattr("time.sleep", lambda seconds: None)
        calls = {a: call(a, 0.01), b: call(b, 2.0), "slow": call("slow", 5.0)}
        seconds, _ = interleave(calls, rounds=9, seconds=1.0)
    rounds = {name: np.flatnonzero(~np.isnan(own)).tolist() for name, own in seconds.items()}
    assert rounds == {a: list(range(9)), b: list(range(9)), "slow": [0, 3, 6]}
    np.testing.assert_allclose(seconds[b] / seconds[a], [200.0] * 9)
    assert median_of(seconds["slow"] / seconds[a]) == pytest.approx(
        {"median": 500.0, "low": 500.0, "high": 500.0, "samples": 3}
    )
    assert done.count("slow") == 4  # one of them untimed
    turns = [name for name in done if name != "slow"][-18:]
    assert set(zip(turns[::2], turns[1::2], strict=True)) == {(a, b), (b, a)}


def test_fast_calls_are_repeated_until_a_sample_is_long_enough():
    clock = {"now": 0.0}

    def call():
        clock["now"] += 0.001

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.benchmark.timer", lambda: clock["now"])
        seconds, calls = interleave({"a": call}, rounds=3, seconds=1.0)
    assert calls["a"] in (5, 6)  # 5 ms, of floating-point milliseconds
    np.testing.assert_allclose(seconds["a"], [0.001] * 3)


@pytest.mark.parametrize(("count", "low", "high"), [(3, 0, 2), (5, 0, 4), (6, 0, 5), (9, 1, 7), (25, 7, 17)])
def test_intervals_of_medians_are_those_of_order_statistics(count, low, high):
    """Conover's table: of 25 values the 8th and the 18th, of nine the second and the eighth."""
    values = [float("nan"), *(float(v) for v in reversed(range(count)))]
    assert median_of(values) == {"median": (count - 1) / 2, "low": low, "high": high, "samples": count}


def test_peak_counts_every_tensor_of_a_step():
    """A linear layer without bias: weight, gradient, moments, and temporary tensors of a step."""
    network = nn.Linear(1000, 10, bias=False)
    weight = 4 * 10_000
    x, labels = torch.randn(2, 1000), torch.tensor([0, 1])
    peak = peak_bytes(network, x, labels)
    lasting = 4 * weight + x.nbytes + labels.nbytes  # weight, gradient, two moments
    temporary = 2 * weight  # Adam's
    assert lasting + temporary <= peak <= lasting + temporary + 1000


def test_of_a_hundred_steps_one_is_followed_by_a_rewiring():
    np.testing.assert_allclose(spread_out(np.array([1.0, 2.0]), np.array([3.0, 2.0])), [1.02, 2.0])


@pytest.fixture(scope="module")
def measured_by_command(tmp_path_factory):
    """Run the command once without mocks."""
    out = tmp_path_factory.mktemp("bench")
    arguments = ["bench", "--quick", "--sizes", "48x32", "--batches", "1", "4", "--no-models"]
    arguments += ["--rounds", "3", "--device", "cpu", "--threads", "1", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BenchConfig, "quick", classmethod(lambda cls: TINY))
        result = CliRunner().invoke(main, arguments, prog_name="fpe")
    assert result.exit_code == 0, result.output
    return out, result.output


def test_the_command_prints_tables_and_the_paths_of_its_files(measured_by_command):
    out, said = measured_by_command
    assert "48 × 32, α = 2" in said
    for name in LAYER:
        assert f"  {name} " in said
    assert "on 1 threads" in said
    assert "Targets, with the worst measured value" in said
    assert (out / "results.json").stat().st_size > 0
    assert str(out / "results.json") in said


def test_results_have_every_row_and_their_provenance(measured_by_command):
    result = json.loads((measured_by_command[0] / "results.json").read_text())
    case = result["cases"][0]
    assert [row["name"] for row in case["forward"]] == LAYER
    assert [row["name"] for row in case["training"]] == TRAINED
    for row in case["forward"]:
        assert list(row["batches"]) == ["1", "4"]
        for times in row["batches"].values():
            assert times["seconds"]["low"] <= times["seconds"]["median"] <= times["seconds"]["high"]
            assert times["bound"]["seconds"] > 0
    stored = {row["name"]: row["stored"] for row in case["forward"]}
    assert stored[names.DENSE] == 4 * (48 * 32 + 32)
    assert stored[names.WIDE] == 4 * (48 * 64 + 64)
    steps = {row["name"]: row["batches"]["4"] for row in case["training"]}
    assert steps[names.PACKED]["peak"] < steps[names.MASKED]["peak"]
    assert steps[names.MOVING].keys() == {*steps[names.PACKED], "rewiring"}
    assert case["machine"].keys() == {"read", "copy", "matrix"}
    assert torch.__version__.startswith(result["provenance"]["torch"])  # builds add, say, "+cpu"
    assert result["config"] == json.loads(json.dumps(asdict(replace(TINY, threads=1))))
    for name in LAYER:
        assert re.search(rf"  {name} +{size(stored[name])}  ", bench_text(result))


def test_a_case_that_fails_is_named_and_measured_again_next_time(tmp_path, monkeypatch):
    def broken(self, devices):
        return [{"kind": "model", "name": "none such", "factor": 2, "device": "cpu"}]

    with monkeypatch.context() as patch:
        patch.setattr(BenchConfig, "cases", broken)
        result = run_bench(TINY, tmp_path)
    assert result["cases"][0]["problem"] == "the process ended with KeyError: 'none such'"
    assert "1 of 1 cases failed:\n  - none such, α = 2: " in str(failed(result))
    assert "not measured: the process ended with KeyError" in bench_text(result)
    assert list((tmp_path / "cases").iterdir()) == []


TWO = replace(TINY, sizes=("48x32", "56x32"))


@pytest.fixture
def measured(monkeypatch, measured_by_command):
    """Measure nothing but record the case; the clock counts the measured cases."""
    result = json.loads((measured_by_command[0] / "results.json").read_text())["cases"][0]
    calls = []

    def run_apart(case, config):
        calls.append(case["name"])
        if case["name"] == "stop":
            raise KeyboardInterrupt
        return {**result, **case}

    monkeypatch.setattr("fpe_reproduction.bench.run.run_apart", run_apart)
    monkeypatch.setattr("fpe_reproduction.bench.run.now", lambda: f"after {len(calls)} calls")
    return calls


def test_an_interrupted_run_is_resumed(tmp_path, measured, monkeypatch):
    first, second = TWO.cases()
    monkeypatch.setattr(BenchConfig, "cases", lambda self, devices: [first, {**second, "name": "stop"}])
    with pytest.raises(KeyboardInterrupt, match=r"1 of 2 .* finished"):
        run_bench(TWO, tmp_path)
    assert not (tmp_path / "results.json").exists()
    monkeypatch.setattr(BenchConfig, "cases", lambda self, devices: [first, second])
    said = []
    result = run_bench(TWO, tmp_path, advance=said.append)
    assert measured == ["48x32", "stop", "56x32"]
    assert said == ["48 × 32, α = 2: found", "56 × 32, α = 2"]
    assert [case["measured"] for case in result["cases"]] == ["after 0 calls", "after 2 calls"]
    assert result["provenance"]["began"] == "after 2 calls"
    assert found(result) == result["cases"][:1]
    text = bench_text(result).splitlines()
    assert "48 × 32, α = 2  (found, of the run of after 0 calls)" in text
    assert "56 × 32, α = 2" in text
    assert text[-1].startswith("1 of 2 cases were measured by an earlier run")


@pytest.mark.filterwarnings("ignore:.*outdated")
@pytest.mark.parametrize(
    ("change", "anew"),
    [
        ({"rounds": 4}, True),
        ({"batches": (1, 8)}, True),
        ({"threads": torch.get_num_threads() + 1}, True),
        ({"threads": torch.get_num_threads()}, False),  # the default
        ({"models": ("MLP 384-256-77",)}, False),
    ],
)
def test_other_settings_are_measured_again_and_other_cases_beside(change, anew, tmp_path, measured):
    run_bench(TINY, tmp_path)
    config = replace(TINY, **change)
    result = run_bench(config, tmp_path)
    assert measured == ["48x32", *(["48x32"] if anew else []), *config.models]
    assert len(found(result)) == (not anew)
    assert run_bench(config, tmp_path)["cases"] == result["cases"]


@pytest.mark.filterwarnings("ignore:.*outdated")
@pytest.mark.parametrize("what", ["fpe.compare.store.code_digest", "torch.backends.cpu.get_cpu_capability"])
def test_other_code_and_machines_are_measured_again(what, tmp_path, measured, monkeypatch):
    run_bench(TINY, tmp_path)
    monkeypatch.setattr(what, lambda *_: "other")
    run_bench(TINY, tmp_path)
    assert measured == ["48x32"] * 2


def test_a_fresh_run_measures_everything_again(tmp_path, measured):
    run_bench(TWO, tmp_path)
    result = run_bench(TINY, tmp_path, fresh=True)
    assert measured == ["48x32", "56x32", "48x32"]
    assert found(result) == []
    assert [path.name for path in (tmp_path / "cases").iterdir()] == ["cpu-layer-48x32-x2.json"]


def test_a_file_that_is_not_whole_is_named(tmp_path, measured):
    run_bench(TINY, tmp_path)
    (tmp_path / "cases" / "cpu-layer-48x32-x2.json").write_text('{"identity": ')
    with pytest.raises(DataError, match=r"cpu-layer-48x32-x2\.json"):
        run_bench(TINY, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sizes", "4096"], r"--sizes '4096'.*INPUTSxNEURONS"),
        (["--sizes", "20x8", "--factor", "32"], r"20x8.*373 inputs"),
        (["--free", "4x4"], r"--free 4x4.*at least 8x8"),
        (["--factor", "1"], "--factor is 1.*at least 2"),
        (["--batches", "8", "0"], "--batches is 0.*at least 1"),
        (["--rounds", "2"], "--rounds is 2.*at least 3"),
        (["--threads", "0"], "--threads is 0.*at least 1"),
    ],
)
def test_impossible_settings_are_refused(arguments, said, tmp_path):
    result = CliRunner().invoke(main, ["bench", "--quick", *arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert re.search(said, result.output.replace("\n", " "))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("seconds", "said"), [(2.0, "2.00 s"), (0.0271, "27.1 ms"), (0.417e-3, "417 µs"), (1.5e-6, "1.50 µs")]
)
def test_durations_have_three_digits(seconds, said):
    assert duration(seconds) == said
