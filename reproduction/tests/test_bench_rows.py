"""The rows of a case compute what they stand for; what the machine allows."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from benches import FREE, LAYER, TINY
from fpe.errors import ArgumentError
from fpe.masked import count_nonzero
from fpe_reproduction.bench import cases as names
from fpe_reproduction.bench.cases import MODELS, case_name
from fpe_reproduction.bench.measure import bound, run_case, training_step
from fpe_reproduction.bench.rows import Row
from fpe_reproduction.bench.subjects import free_layer, subjects


def right(made):
    with torch.inference_mode():
        return {row.name: row.problem(made.probe) for row in made.rows}


@pytest.mark.parametrize("factor", [2, 3])
def test_every_row_computes_what_it_stands_for(factor):
    (case,) = replace(TINY, factors=(factor,)).cases()
    made = subjects(case, TINY)
    assert [row.name for row in made.rows if row.expected is None] == [names.DENSE, names.WIDE]
    assert right(made) == dict.fromkeys(LAYER)
    with torch.inference_mode():
        expected = made.networks[names.MASKED](made.probe)
        for name in (names.PACKED, names.MOVING):
            torch.testing.assert_close(made.networks[name](made.probe), expected)
    assert made.networks[names.PACKED] is not made.networks[names.MOVING]


def test_models_are_expanded_so_that_blocks_stay_whole(monkeypatch):
    """With as many outputs as inputs, pruning inputs of the layer does not suffice."""
    monkeypatch.setitem(MODELS, "wide consumer", (16, 8, 32, nn.GELU("tanh")))
    monkeypatch.setitem(MODELS, "small consumer", (48, 8, 4, nn.ReLU()))
    ways = {}
    for case in replace(TINY, sizes=(), models=("wide consumer", "small consumer")).cases():
        made = subjects(case, TINY)
        ways[case["name"]] = made.notes["shared split"].partition(";")[0]
        dense = [names.FUSED_DENSE] if case["name"] == "small consumer" else []  # GELU is not fused
        assert right(made) == dict.fromkeys([*LAYER, names.FUSED, *dense])
    assert ways == {"small consumer": "prune='columns'", "wide consumer": "prune='children'"}


def test_a_free_mask_has_the_count_of_its_dense_layer():
    (case,) = replace(TINY, sizes=(), free=("32x48",)).cases()
    made = subjects(case, TINY)
    assert right(made) == dict.fromkeys(FREE)
    own = {row.name: row for row in made.rows}
    dense = 32 * 12 + 12
    assert own[names.SPARSE].useful + 48 == dense
    assert dense - 48 < own[names.FAN_IN].useful + 48 <= dense
    assert made.networks == {}


@pytest.mark.parametrize("even", [False, True])
def test_a_free_layer_has_the_non_zeros_that_are_asked_for(even):
    wide = free_layer(10, 6, 24, even=even)
    assert count_nonzero(wide) == 24 + 6
    assert (wide[0].fpe_mask.sum(1).unique().tolist() == [4]) == even


def test_files_of_free_masks_are_compared_with_values_and_places():
    (case,) = replace(TINY, sizes=(), files=("40x16",)).cases()
    found = run_case(case, TINY)["files"]
    assert [f["zeros"] for f in found] == list(names.ZEROS)
    half, most = found[0], found[-1]
    assert (half["nonzero"], half["asked"]) == (320 + 16, 4 * 336 + 640 // 8)
    assert (most["nonzero"], most["asked"]) == (64 + 16, 4 * 80 + 640 // 8)
    assert all(f["ratio"] == f["bytes"] / f["asked"] > 1 for f in found)


MODEL = "MLP 48-8-4"
MODEL_ROWS = [*LAYER, names.FUSED, names.FUSED_DENSE]


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setitem(MODELS, MODEL, (48, 8, 4, nn.ReLU()))
    return replace(TINY, sizes=(), models=(MODEL,))


@pytest.mark.parametrize(
    ("how", "dense", "packed"),
    [
        ("onnx", names.ONNX_DENSE, names.ONNX_PACKED),
        ("compile", names.COMPILED_DENSE, names.COMPILED),
    ],
)
def test_a_model_runs_elsewhere_at_other_batch_sizes(how, dense, packed, model, monkeypatch):
    """Blocks are compared with the parent that runs in the same way."""
    if how == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    else:
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    config = replace(model, **{how: True})
    made = subjects(config.cases()[0], config)
    own = {row.name: row for row in made.rows}
    more = [names.COMPILED_FUSED] if how == "compile" else []
    assert right(made) == dict.fromkeys([*MODEL_ROWS, dense, packed, *more])
    assert [own[name].over for name in (dense, packed, *more)] == [names.DENSE, dense, *[dense] * len(more)]
    with torch.inference_mode():
        pairs = [(dense, names.DENSE), (packed, names.PACKED), *((name, names.FUSED) for name in more)]
        for name, like in (*pairs, (names.FUSED, names.PACKED), (names.FUSED_DENSE, names.DENSE)):
            for batch in (1, 5):
                x = torch.randn(batch, 48)
                torch.testing.assert_close(own[name].call(x), own[like].call(x))


def test_a_row_that_cannot_be_made_is_noted(model, monkeypatch):
    def missing(name, like, over, probe):
        raise ModuleNotFoundError("No module named 'onnxruntime'")

    monkeypatch.setattr("fpe_reproduction.bench.subjects.onnx_row", missing)
    config = replace(model, onnx=True)
    made = subjects(config.cases()[0], config)
    assert [row.name for row in made.rows] == MODEL_ROWS
    assert "onnxruntime" in made.notes[names.ONNX_PACKED]


def test_a_row_that_is_wrong_is_not_timed(monkeypatch):
    def wrong(layer, useful, expected):
        return Row(names.CSR, lambda x: layer(x) + 1, 1, useful, expected)

    monkeypatch.setattr("fpe_reproduction.bench.subjects.csr_row", wrong)
    result = run_case(replace(TINY, sizes=(), free=("32x48",)).cases()[0], TINY)
    assert [row["name"] for row in result["forward"]] == [name for name in FREE if name != names.CSR]
    assert result["notes"][names.CSR].startswith("not timed: its outputs are off by 1")
    assert result["training"] == []


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


def test_the_least_time_is_that_of_the_slowest_part_of_the_machine(monkeypatch):
    """Four bytes a second of weights."""
    monkeypatch.setattr("fpe_reproduction.bench.measure.read_rate", lambda size, most: 4.0)
    row = {"stored": 80, "useful": 10}
    assert bound(row, 3, {"matrix": 6.0}, 0) == {"seconds": 20.0, "by": "reading the weights"}
    assert bound(row, 3, {"matrix": 1.0}, 0) == {"seconds": 60.0, "by": "arithmetic"}


def test_moving_blocks_exchange_inputs_in_a_step():
    config = replace(TINY, batches=(4,))
    made = subjects(config.cases()[0], config)
    network = made.networks[names.MOVING]
    before = made.networks[names.PACKED][0].columns.clone()
    x, labels = torch.randn(4, 48), torch.tensor([0, 1, 2, 3])
    training_step(network, x, labels)[0]()
    assert torch.equal(network[0].columns, before)
    training_step(network, x, labels, moving=True)[0]()
    assert not torch.equal(network[0].columns, before)


def test_the_least_sizes_that_are_allowed_can_be_measured():
    config = replace(TINY, sizes=("37x8",), free=("8x8",), factors=(4,))
    blocks, free = (subjects(case, config) for case in config.cases())
    assert blocks.notes["shared split"].startswith("prune='columns'; layer 0 as ")
    assert right(blocks) == dict.fromkeys(LAYER)
    assert right(free) == dict.fromkeys(FREE)
    with pytest.raises(ArgumentError, match="37 inputs"):
        replace(TINY, sizes=("36x8",), factors=(4,))


def test_cases_of_one_size_have_names_of_their_own():
    """A layer of blocks, one with a free mask and one that is saved."""
    config = replace(TINY, free=("48x32",), files=("48x32",))
    assert len({case_name(case) for case in config.cases()}) == 3
    assert [case["kind"] for case in config.cases(("cuda",))] == ["layer"]
