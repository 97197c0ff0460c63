"""What is compared with other programs has the same count, and their C code is called row by row."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fpe

PROGRAMS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def alternatives():
    """Return the program; it is in no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PROGRAMS)
        import alternatives

        yield alternatives
        del sys.modules["alternatives"]


@pytest.mark.parametrize("name", ["MLP 784-512-10", "FFN 384-1536-384"])
def test_networks_have_the_count_of_the_demo(name, alternatives):
    """Dense networks and blocks, whose neurons are whole, have at most one neuron less."""
    inputs, _, outputs, _ = alternatives.SIZES[name]
    count = alternatives.count_of(name)
    assert fpe.count_nonzero(alternatives.masked(name)) == count
    dense = fpe.count_nonzero(alternatives.dense(name))
    assert count - (inputs + 1 + outputs) < dense <= count
    blocks = fpe.count_nonzero(fpe.unpack(alternatives.blocks(name)))
    assert count - 2 * (inputs + 1 + outputs) < blocks <= dense


def test_sparselabs_network_has_the_same_count(alternatives):
    pytest.importorskip("sparselab")
    network = alternatives.sparselab_network("MLP 784-512-10")
    assert alternatives.count(network) == pytest.approx(alternatives.count_of("MLP 784-512-10"), rel=0.01)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_is_what_a_process_grows_by_however_large_its_parent_is(alternatives):
    grown = alternatives.memory("dense parent", "MLP 784-512-10", 1)["median"]
    held = 4 * 4 * alternatives.count_of("MLP 784-512-10")  # parameters, gradients, two moments
    assert 0.8 * held < grown < 20 * held


@pytest.mark.parametrize("way", ["fpe, masked, SET", "fpe, moving blocks"])
def test_masks_move_in_a_step_if_asked(way, alternatives, monkeypatch):
    monkeypatch.setitem(alternatives.SIZES, "small", (40, 20, 4, False))
    torch.manual_seed(0)
    network = alternatives.NETWORKS[way]("small")
    places = {key: t.clone() for key, t in network.named_buffers()}
    x, y = alternatives.batch("small", 8)
    moved = []
    for rewired in (False, True):
        alternatives.step_of(way, network, x, y, rewired)()
        moved.append(any(not torch.equal(t, places[key]) for key, t in network.named_buffers()))
    assert moved == [False, True]


@pytest.mark.skipif(
    not (shutil.which("gcc") and shutil.which("size")), reason="needs gcc and size of binutils"
)
def test_compiled_code_is_called_for_every_row(alternatives, tmp_path):
    (tmp_path / "two.c").write_text(
        "void two(const float *x, float *out) { out[0] = x[1]; out[1] = x[0]; }\n"
    )
    X = np.array([[1, 2], [4, 3], [5, 6]], np.float32)
    classes = np.array(["a", "b"])
    y = np.array(["a", "b", "b"])
    row = alternatives._compiled("two", tmp_path / "two.c", "two(x, out);", X, 2, classes, y)
    assert row["accuracy"] == pytest.approx(2 / 3)
    assert 0 < row["bytes"] < 1000


def test_a_program_that_is_missing_is_named(alternatives, capsys):
    assert alternatives.find("json")
    assert not alternatives.find("no_such_program")
    assert "no_such_program is not installed" in capsys.readouterr().out
