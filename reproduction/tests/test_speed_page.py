"""What fpe bench is asked to reach, and the page of its results."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fpe_reproduction.bench import cases as names
from fpe_reproduction.bench.targets import TARGETS, Target, Value, verdicts, why

PROGRAMS = Path(__file__).parents[1] / "pages"


def result_of(kind="layer", part="forward", name="48x32", **medians):
    """Return a result of one case, of medians by batch size; the bound is half of the parent's time."""
    batches = {
        b: {
            "ratio": {"median": value, "low": value - 0.1, "high": value + 0.1},
            "bound": {"seconds": 0.5, "by": "arithmetic"},
            "peak": int(100 * value),
        }
        for b, value in medians.items()
    }
    parent = {b: {"seconds": {"median": 1.0}, "peak": 100} for b in medians}
    rows = [{"name": "parent", "over": "parent", "batches": parent}]
    rows += [{"name": "some", "over": "parent", "batches": batches}]
    case = {"kind": kind, "name": name, "factor": 2, "device": "cpu", "forward": [], "training": []}
    return {"cases": [{**case, part: rows}]}


def test_targets_are_judged_by_the_worst_value():
    target = Target("time", 1.05, "some", ("layer",))
    slow = result_of(b1=1.0, b8=1.06)
    worst = target.worst(slow)
    assert (worst.median, worst.where, worst.least) == (1.06, "48 × 32, α = 2, b8 samples", 0.5)
    assert str(worst) == "1.06 [0.96, 1.16]"
    assert replace(target, batch="b1").worst(slow).median == 1.0
    for other in ({"kinds": ("model",)}, {"batch": "b64"}, {"row": "other"}, {"part": "training"}):
        assert replace(target, **other).worst(slow) is None
    weighed = replace(target, part="training", measure="peak").worst(result_of(part="training", b1=1.3))
    assert (weighed.median, str(weighed)) == (1.3, "1.30")


def test_targets_apply_to_their_sizes_if_there_are_any():
    target = Target("time", 1, "some", ("layer",), only=("64x64",))
    small, large = result_of(b1=3.0), result_of(name="64x64", b1=2.0)
    assert target.worst({"cases": small["cases"] + large["cases"]}).median == 2
    assert target.worst(small).median == 3


@pytest.mark.parametrize(
    ("least", "said"), [(0.9, "which is not what limits it"), (1.2, "so it cannot be met on this machine")]
)
def test_a_missed_target_is_compared_with_the_machine(least, said):
    value = Value(1.3, 1.2, 1.4, "here", least, "arithmetic")
    assert why(value, 1.1).endswith(said)
    assert why(value, 1.3) == why(replace(value, least=None), 1.1) == ""


def test_what_was_not_measured_is_neither_met_nor_missed():
    head, rows = verdicts({"cases": []})
    assert {row[head.index("met")] for row in rows} == {"not measured"}
    assert len(rows) == len(TARGETS)
    files = {**result_of(kind="files")["cases"][0], "files": [{"zeros": 0.5, "ratio": 1.03}]}
    *_, last = verdicts({"cases": [files]})[1]
    assert last[2:5] == ["1.03", "files, 48 × 32, 50% zeros", "no"]


@pytest.fixture
def page(monkeypatch):
    """Return the module of the page, and the one that fills it; they are in no package."""
    monkeypatch.syspath_prepend(PROGRAMS)
    for name in ("common", "speed"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("speed"), importlib.import_module("common")
    for name in ("common", "speed"):
        del sys.modules[name]


def median(value):
    return {"median": value, "low": value - 0.01, "high": value + 0.01, "samples": 25}


def row_of(name, over=names.DENSE):
    bound = {"seconds": 1e-6, "by": "reading the weights"}
    times = {"ratio": median(1.6), "seconds": median(1e-3), "bound": bound, "peak": 100}
    return {
        "name": name,
        "over": over,
        "stored": 10,
        "batches": dict.fromkeys(("1", "8", "64", "512"), times),
    }


def bench_result():
    """Return what fpe bench stores, with all targets missed."""
    rows = [names.DENSE, names.PACKED, names.FUSED, names.FUSED_DENSE, names.COMPILED_FUSED]
    rows += [names.ONNX_PACKED, names.SPARSE, names.FAN_IN]
    case = {"factor": 4, "device": "cpu", "machine": {"read": 1e10, "matrix": 1e11}}
    case |= {"forward": [row_of(name) for name in rows]}
    case |= {"training": [row_of(name) for name in (names.DENSE, names.PACKED, names.MOVING)]}
    layers = [("layer", "4096x11008"), ("model", "GPT-2 MLP 768-3072-768"), ("free", "4096x4096")]
    cases = [{**case, "kind": kind, "name": name} for kind, name in layers]
    cases.append({**case, "kind": "files", "name": "512x512", "forward": [], "training": []})
    cases[-1]["files"] = [{"zeros": 0.5, "ratio": 1.5}]
    made = {"fpe": "0.2.0", "python": "3.11.7", "torch": "2.13.0+cpu", "machine": "Linux x86_64, 2 cores"}
    made |= {"commit": "0123456789ab", "instructions": "AVX512", "began": "2026-11-28T00:00:00+00:00"}
    return {"cases": cases, "config": {"rounds": 25}, "provenance": made}


def winner_of(data, budget, network="128 hidden neurons (silu) and direct connections"):
    code = {"flash": 4096 + 1000, "constants": 1000, "difference": 1e-6, "agreement": 0.99}
    row = {"data": data, "budget": budget, "count": budget, "network": network, "float32": code, "int8": code}
    return {
        **row,
        "file": 120,
        "dense_file": 100,
        "latency": {batch: {"ratio": median(1)} for batch in ("1", "64")},
    }


def winners():
    budgets = {"banking77": (1925, 3773, 7469), "cifar100": (2552, 9908), "fashion-mnist": (3190, 12730)}
    rows = [winner_of(data, n) for data, own in {**budgets, "letter": (379, 731, 1435)}.items() for n in own]
    return {"rows": [{**row, "network": "no hidden layer"} for row in rows[:5]] + rows[5:]}


def others():
    times = {"seconds": median(2e-6), "ratio": median(1.5)}
    ways = ("dense parent", "fpe, masked, SET", "fpe, moving blocks", "SparseLab, SET")
    row = {"nonzero": 45_786, "step": times, "forward 1": times, "forward 64": times, "memory": median(3e6)}
    training = [{**row, "network": n, "way": w} for n in ("MLP 784-512-10", "FFN 384-1536-384") for w in ways]
    row = {"accuracy": 0.97, "bytes": 10_000, "seconds": median(2e-6)}
    mlp = "scikit-learn's MLP of 16 hidden neurons"
    ways = (
        "fpe, float32",
        "fpe, int8",
        f"emlearn, {mlp}",
        f"onnxruntime, {mlp}",
        "m2cgen, logistic regression",
    )
    return {"training": training, "deployment": [{**row, "way": way} for way in ways]}


def test_the_page_is_short_even_if_every_target_is_missed(page):
    speed, common = page
    path = common.RESULTS / "speed.md"
    text = common.inject(path.read_text(encoding="utf-8"), speed.of_data(bench_result(), winners(), others()))
    assert len(text.encode()) <= 10_000
    assert "<!-- met -->5 of 13<!-- end met --> are met" in text
    assert "which is not what limits it" in text
    assert text.index("no hidden layer, pruned (Banking77, CIFAR-100) | +2.4 to +30.5") < text.index("##")


def test_winners_are_compared_with_the_dense_networks_of_the_search(page):
    """Of five seeds each; a network that no search had has no accuracy."""
    speed, _ = page
    points, cost = speed.gained({"data": "banking77", "budget": 7469})
    assert points == pytest.approx(2.4, abs=0.05)
    assert cost > 5
    assert speed.gained({"data": "digits", "budget": 600}) is None
    (row,) = speed.searched([winner_of("digits", 600)])
    assert row == ["hidden layer, pruned (digits)", "–", "1.20", "1.00", "1.00", "–"]


def test_every_target_of_winners_is_judged_by_the_worst(page):
    speed, _ = page
    good, bad = winner_of("letter", 379), winner_of("letter", 731)
    bad["int8"] = {**bad["int8"], "flash": 4096 + 1151, "agreement": 0.98}
    rows = speed.winner_targets([good, bad])
    assert [row[2] for row in rows] == ["1.20", "1e-06", "2.00%", "1.15"]
    assert [row[4] for row in rows] == ["yes", "yes", "no", "no"]
    assert rows[2][3] == "Letter, 731"
