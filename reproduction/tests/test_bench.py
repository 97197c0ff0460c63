"""Cases, rows, intervals and reports of fpe bench; never how fast anything is."""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from fpe.cli.main import main
from fpe.errors import ArgumentError, DataError
from fpe_reproduction.bench import cases as names
from fpe_reproduction.bench.cases import MODELS, BenchConfig, Row, Subjects
from fpe_reproduction.bench.measure import interleave, median_of, peak_bytes, run_case
from fpe_reproduction.bench.report import (
    Target,
    bench_markdown,
    bench_text,
    duration,
    size,
    verdicts,
)
from fpe_reproduction.bench.run import failed, found, run_bench

LAYER = [
    names.DENSE, names.PACKED, names.WIDE, names.PRUNE, names.CSR, names.GROUPS, names.CODES,
]  # fmt: skip
TINY = BenchConfig(
    sizes=("48x32",),
    factors=(2,),
    batches=(1, 4),
    models=(),
    rounds=3,
    seconds=0.01,
    onnx=False,
    stream=1 << 16,
)


@pytest.mark.parametrize("factor", [2, 3])
def test_every_row_computes_what_it_stands_for(factor):
    (case,) = replace(TINY, factors=(factor,)).cases()
    made = Subjects(case, TINY)
    assert [row.name for row in made.rows] == LAYER
    assert [row.name for row in made.rows if row.expected is None] == [names.DENSE, names.WIDE]
    with torch.inference_mode():
        assert {row.name: row.problem(made.probe) for row in made.rows} == dict.fromkeys(LAYER)
        expected = made.networks[names.MASKED](made.probe)
        for name in (names.PACKED, names.PRUNE):
            torch.testing.assert_close(made.networks[name](made.probe), expected)


def test_models_are_expanded_so_that_blocks_stay_whole(monkeypatch):
    """With as many outputs as inputs, pruning inputs of the layer does not suffice."""
    monkeypatch.setitem(MODELS, "wide consumer", (16, 8, 32, nn.GELU("tanh")))
    monkeypatch.setitem(MODELS, "small consumer", (48, 8, 4, nn.ReLU()))
    ways = {}
    for case in replace(TINY, sizes=(), models=("wide consumer", "small consumer")).cases():
        made = Subjects(case, TINY)
        notes = [made.notes[f"shared split{many}"] for many in ("", " of 8 groups")]
        ways[case["name"]] = [note.partition(";")[0] for note in notes]
        rows = [names.DENSE, names.PACKED, names.WIDE, names.GROUPS, names.CODES]
        assert [row.name for row in made.rows] == rows
        with torch.inference_mode():
            assert {row.problem(made.probe) for row in made.rows} == {None}
    assert ways == {"small consumer": ["prune='columns'"] * 2, "wide consumer": ["prune='children'"] * 2}


def test_onnxruntime_computes_the_same_at_other_batch_sizes():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    config = replace(TINY, onnx=True)
    made = Subjects(config.cases()[0], config)
    own = {row.name: row for row in made.rows}
    with torch.inference_mode():
        for name, like in ((names.ONNX_DENSE, names.DENSE), (names.ONNX_PACKED, names.PACKED)):
            assert own[name].problem(made.probe) is None
            for batch in (1, 5):
                x = torch.randn(batch, 48)
                torch.testing.assert_close(own[name].call(x), own[like].call(x))


def test_a_row_that_cannot_be_made_is_noted(monkeypatch):
    def missing(name, like, probe):
        raise ModuleNotFoundError("No module named 'onnxruntime'")

    monkeypatch.setattr("fpe_reproduction.bench.cases.onnx_row", missing)
    made = Subjects(TINY.cases()[0], replace(TINY, onnx=True))
    assert [row.name for row in made.rows] == LAYER
    assert "onnxruntime" in made.notes[names.ONNX_PACKED]


def test_a_row_that_is_wrong_is_not_timed(monkeypatch):
    def wrong(layer, useful, expected):
        return Row(names.CSR, lambda x: layer(x) + 1, 1, useful, expected)

    monkeypatch.setattr("fpe_reproduction.bench.cases.csr_row", wrong)
    monkeypatch.setattr("fpe_reproduction.bench.measure._training", lambda *_: [])
    result = run_case(TINY.cases()[0], TINY)
    assert names.CSR not in [row["name"] for row in result["forward"]]
    assert result["notes"][names.CSR].startswith("not timed: its outputs are off by 1")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: x[:, :1], "not timed: its outputs have shape (2, 1), not (2, 2)"),
        (lambda x: x * torch.nan, "not timed: its outputs are off by nan, of at most 1"),
        (lambda x: x * (1 + 1e-6), None),
    ],
)
def test_wrong_outputs_are_named(call, said):
    probe = torch.eye(2)
    assert Row("some", call, 0, 0, expected=probe).problem(probe) == said


def test_calls_take_turns_and_slow_ones_fewer():
    """The dense parent and the packed layer are in all rounds; the slow one in three, evenly spread."""
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
    assert "Targets for packed layers" in said
    for file in ("results.json", "figure.png"):
        assert (out / file).stat().st_size > 0
        assert str(out / file) in said


def test_results_have_every_row_and_their_provenance(measured_by_command):
    result = json.loads((measured_by_command[0] / "results.json").read_text())
    case = result["cases"][0]
    assert [row["name"] for row in case["forward"]] == LAYER
    assert [row["name"] for row in case["training"]] == [names.DENSE, names.PACKED, names.MASKED, names.PRUNE]
    for row in case["forward"]:
        assert list(row["batches"]) == ["1", "4"]
        for times in row["batches"].values():
            assert times["seconds"]["low"] <= times["seconds"]["median"] <= times["seconds"]["high"]
            assert times["bandwidth"] > 0
    stored = {row["name"]: row["stored"] for row in case["forward"]}
    assert stored[names.DENSE] == 4 * (48 * 32 + 32)
    assert stored[names.WIDE] == 4 * (48 * 64 + 64)
    assert stored[names.PRUNE] == stored[names.WIDE] + 4 * 48 * 64
    peaks = {row["name"]: row["batches"]["4"]["peak"] for row in case["training"]}
    assert peaks[names.DENSE] < peaks[names.MASKED] < peaks[names.PRUNE]
    assert case["machine"].keys() == {"read", "copy", "matrix"}
    assert torch.__version__.startswith(result["provenance"]["torch"])  # builds add, say, "+cpu"
    assert result["config"] == json.loads(json.dumps(asdict(replace(TINY, threads=1))))
    text, page = bench_text(result), "\n".join(bench_markdown(case))
    for name in LAYER:
        assert name in text
        assert f"| {name} | {size(stored[name])} |" in page


def test_a_case_that_fails_is_named_and_measured_again_next_time(tmp_path, monkeypatch):
    def broken(self, devices):
        return [{"kind": "model", "name": "none such", "factor": 2, "device": "cpu"}]

    with monkeypatch.context() as patch:
        patch.setattr(BenchConfig, "cases", broken)
        result = run_bench(TINY, tmp_path)
    assert result["cases"][0]["problem"] == "the process ended with KeyError: 'none such'"
    assert "1 of 1 cases failed:\n  - none such, factor 2, cpu: " in str(failed(result))
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
    assert said == ["48x32 α=2: found", "56x32 α=2"]
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
    assert [path.name for path in (tmp_path / "cases").iterdir()] == ["cpu-48x32-x2.json"]


def test_a_file_that_is_not_whole_is_named(tmp_path, measured):
    run_bench(TINY, tmp_path)
    (tmp_path / "cases" / "cpu-48x32-x2.json").write_text('{"identity": ')
    with pytest.raises(DataError, match=r"cpu-48x32-x2\.json"):
        run_bench(TINY, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sizes", "4096"], r"--sizes '4096'.*INPUTSxNEURONS"),
        (["--sizes", "20x8", "--factor", "32"], r"20x8.*373 inputs"),
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


def test_the_least_size_that_is_allowed_can_be_measured():
    config = replace(TINY, sizes=("37x8",), factors=(4,))
    made = Subjects(config.cases()[0], config)
    assert made.notes["shared split"].startswith("prune='columns'; layer 0 as ")
    with torch.inference_mode():
        assert [row.problem(made.probe) for row in made.rows] == [None] * len(LAYER)
    with pytest.raises(ArgumentError, match="37 inputs"):
        replace(TINY, sizes=("36x8",), factors=(4,))


def test_targets_are_judged_by_the_worst_value():
    def case(**medians):
        batches = {b: {"ratio": {"median": value}} for b, value in medians.items()}
        return {"forward": [{"name": "some", "batches": batches}]}

    most = Target("time", "≤", 1.05, "forward", "some", "ratio")
    least = replace(most, sign="≥", limit=2)
    slow = case(b1=1.0, b8=1.06)
    assert most.cell(slow) == ("1.06 (batch b8) ✗", False)
    assert least.cell(slow) == ("1 (batch b1) ✗", False)
    assert replace(most, batch="b1").cell(slow) == ("1 (batch b1)", True)
    for target in (replace(most, over="other"), replace(most, batch="b64"), replace(most, measure="peak")):
        assert target.cell(slow) == target.cell({"forward": []}) == ("–", None)


def test_targets_apply_to_large_layers_if_there_are_any():
    def layer(inputs):
        size = {"kind": "layer", "name": f"{inputs}x8", "inputs": inputs, "factor": 2, "device": "cpu"}
        return {**size, "forward": [], "training": []}

    (head, _), _ = verdicts({"cases": [layer(64), layer(4096)]})
    assert head[2:-1] == ["4096 × 8, α = 2"]
    (head, rows), met = verdicts({"cases": [layer(64)]})
    assert head[2:-1] == ["64 × 8, α = 2"]
    assert {row[-1] for row in rows} == {"not measured"}
    assert set(met) == {None}


@pytest.mark.parametrize(
    ("seconds", "said"), [(2.0, "2.00 s"), (0.0271, "27.1 ms"), (0.417e-3, "417 µs"), (1.5e-6, "1.50 µs")]
)
def test_durations_have_three_digits(seconds, said):
    assert duration(seconds) == said
