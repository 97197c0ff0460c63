"""The sparse format: values and their inputs, and the compiled product."""

import subprocess
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fpe
from fpe.errors import ModelError
from fpe.expansion.steps import Weights
from fpe.expansion.whole import prune_to_
from fpe.packing import kernel
from fpe.packing.formats import LEAST_SPARSE
from fpe.packing.layers import DenseLayer, Shape
from fpe.packing.sparse import SparseLayer


def masked(inputs=40, outputs=30, density=0.25, seed=0, bias=True):
    """Return a masked layer whose weights are free at random."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(outputs, inputs, generator=generator) < density).float()
    weight = torch.randn(outputs, inputs, generator=generator) * mask
    own = torch.randn(outputs, generator=generator) if bias else None
    return fpe.MaskedLinear.from_arrays(weight, own, mask)


def sparse(layer):
    return SparseLayer.of(Shape.of(layer), Weights.of(layer))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 40), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0, 200),
    st.booleans(),
)  # fmt: skip
def test_the_compiled_product_is_that_of_the_masked_layer(inputs, outputs, density, samples, bias):
    layer = masked(inputs, outputs, density, bias=bias)
    x = torch.randn(samples, inputs, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(sparse(layer)(x), layer(x), atol=1e-5)


def test_it_is_typed_by_hand():
    mask = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    layer = sparse(fpe.MaskedLinear.from_arrays(mask * torch.tensor([2.0, 3, 4]), torch.ones(2), mask))
    assert (layer.values.tolist(), layer.columns.tolist()) == ([2, 4], [0, 2])
    assert layer.starts.tolist() == [0, 2, 2]
    assert (layer.columns.dtype, layer.nbytes) == (torch.int16, 4 * 2 + 2 * 2 + 4 * 3 + 4 * 2)
    with torch.no_grad():
        assert layer(torch.tensor([[1.0, 9, 10]])).tolist() == [[43, 1]]
    assert layer.weight.tolist() == [[2, 0, 4], [0, 0, 0]]


def test_more_inputs_than_16_bits_count():
    layer = masked(kernel.SHORT + 5, 3, 0.001)
    packed, x = sparse(layer), torch.randn(20, kernel.SHORT + 5)
    assert packed.columns.dtype == torch.int32
    with torch.no_grad():
        assert torch.allclose(packed(x), layer(x), atol=1e-5)
        assert torch.allclose(packed(x[0]), layer(x[0]), atol=1e-5)


@pytest.mark.parametrize("shape", [(40,), (2, 3, 40), (0, 40), (5, 40)])
def test_inputs_of_any_shape(shape):
    layer = masked()
    x = torch.randn(shape)
    with torch.no_grad():
        assert sparse(layer)(x).shape == layer(x).shape
        assert torch.allclose(sparse(layer)(x), layer(x), atol=1e-5)


def test_samples_that_are_not_contiguous():
    layer, x = masked(), torch.randn(40, 70).t()
    with torch.no_grad():
        assert torch.allclose(sparse(layer)(x), layer(x.contiguous()), atol=1e-5)
        assert torch.allclose(sparse(layer)(x[::35]), layer(x[::35].contiguous()), atol=1e-5)


def test_it_learns_as_the_masked_layer_does():
    layer, x = masked(), torch.randn(8, 40)
    packed = sparse(layer)
    layer(x).square().sum().backward()
    packed(x).square().sum().backward()
    assert torch.allclose(packed.values.grad, layer.weight.grad[layer.fpe_mask != 0], atol=1e-4)
    assert torch.allclose(packed.bias.grad, layer.bias.grad, atol=1e-4)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_other_types_are_computed_densely(kind):
    layer, x = masked().to(kind), torch.randn(8, 40).to(kind)
    with torch.no_grad():
        assert torch.equal(sparse(layer)(x), layer(x))


def test_what_follows_torchs_calls_sees_them():
    layer, x = sparse(masked()), torch.randn(5, 40)
    with torch.no_grad():
        wanted, other = layer(x), torch.randn(5, 40)
        assert torch.allclose(torch.vmap(layer)(x.unsqueeze(1))[:, 0], wanted, atol=1e-5)
        traced = torch.jit.trace(layer, x)
        assert torch.allclose(traced(other), layer(other), atol=1e-5)


def test_autocast_is_obeyed():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert sparse(masked())(torch.randn(2, 40)).dtype == torch.bfloat16


def wide(hidden=1024, seed=0):
    """Return a pruned network whose first layer is worth the format."""
    model = fpe.with_masks(fpe.mlp(512, hidden, 10, seed=seed))
    return prune_to_(model, fpe.count_nonzero(model) // 4)


def test_pack_chooses_it_for_large_free_masks_and_unpack_gives_the_masks_back():
    model = wide()
    packed = fpe.pack(model, example_inputs=torch.randn(5, 512))
    assert isinstance(packed[0], SparseLayer)
    assert isinstance(packed[2], DenseLayer)  # 10 × 1024 is small
    row = packed.fpe_packing.rows[0]
    assert (row.format, "no structure" in row.why) == ("sparse", True)
    assert row.bytes[2] <= 1.52 * row.bytes[0]
    assert fpe.count_nonzero(packed) == fpe.count_nonzero(model)
    back = fpe.unpack(packed)
    for own, before in zip(back, model, strict=True):
        for name, tensor in own.state_dict().items():
            assert torch.equal(tensor, before.state_dict()[name])


def half():
    model = fpe.with_masks(fpe.mlp(512, 1024, 10, seed=0))
    return prune_to_(model, fpe.count_nonzero(model) // 2)


@pytest.mark.parametrize(
    ("model", "chosen"),
    [
        (wide, SparseLayer),
        (lambda: wide().double(), DenseLayer),
        (lambda: wide(LEAST_SPARSE // 512 - 1), DenseLayer),
        (half, DenseLayer),
    ],
    ids=["large", "float64", "small", "half of it free"],
)
def test_the_rule(model, chosen):
    assert isinstance(fpe.pack(model())[0], chosen)


def test_it_can_be_asked_for_where_it_can_be_had():
    small = fpe.with_masks(fpe.mlp(20, 10, 3, seed=0))
    prune_to_(small, 100)
    assert isinstance(fpe.pack(small, format="sparse")[0], SparseLayer)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    conv = fpe.with_masks(net)
    with torch.no_grad():
        conv[0].fpe_mask[0] = 0
        fpe.project_(conv)
    with pytest.raises(ModelError, match="sparse is for linear layers"):
        fpe.pack(conv, format={"0": "sparse"})


def test_it_is_saved_and_loaded(tmp_path):
    packed, x = fpe.pack(wide()), torch.randn(4, 512)
    fpe.save(packed, tmp_path / "m.safetensors")
    loaded = fpe.load(tmp_path / "m.safetensors", like=fpe.mlp(512, 1024, 10))
    assert isinstance(loaded[0], SparseLayer)
    assert torch.equal(loaded[0].columns, packed[0].columns)
    with torch.no_grad():
        assert torch.equal(loaded(x), packed(x))


@pytest.mark.parametrize(("name", "place", "value"), [("columns", 3, 600), ("columns", 0, -1),
                                                      ("starts", -1, 7), ("starts", 2, 10**6)])  # fmt: skip
def test_places_outside_the_layer_are_refused_before_c_reads_them(name, place, value):
    packed = fpe.pack(wide())
    state = {key: tensor.clone() for key, tensor in packed.state_dict().items()}
    state[f"0.{name}"][place] = value
    with pytest.raises(RuntimeError, match="are not places in this layer"):
        packed.load_state_dict(state)


def test_inputs_of_the_wrong_size_are_refused_as_by_a_linear_layer():
    with torch.no_grad(), pytest.raises(RuntimeError, match="cannot be multiplied"):
        sparse(masked())(torch.randn(2, 20))


def test_it_is_exported_without_its_zeros(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x = wide(), torch.randn(4, 512)
    packed = fpe.pack(model)
    fpe.export(packed, tmp_path / "m.onnx", example_inputs=x)
    assert (tmp_path / "m.onnx").stat().st_size < 0.5 * 4 * 512 * 1024
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert np.allclose(found, model(x).numpy(), atol=1e-5)


def test_it_is_compiled_as_one_graph():
    packed, x = fpe.pack(wide()), torch.randn(4, 512)
    with torch.no_grad():
        compiled = torch.compile(packed, backend="aot_eager", fullgraph=True)
        assert torch.allclose(compiled(x), packed(x), atol=1e-5)


@pytest.fixture
def anew(tmp_path, monkeypatch):
    """Let the library be compiled anew, in an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kernel.library.cache_clear()
    yield tmp_path / "cache" / "fpe"
    kernel.library.cache_clear()


def test_it_is_compiled_once_for_a_machine(anew, monkeypatch):
    assert kernel.library() is not None
    (made,) = anew.iterdir()
    before = made.stat().st_mtime_ns
    kernel.library.cache_clear()
    assert kernel.library() is not None
    assert [path.stat().st_mtime_ns for path in anew.iterdir()] == [before]


@pytest.mark.parametrize("failure", ["no compiler", "it fails"])
def test_without_a_compiler_it_is_computed_densely_and_said(anew, monkeypatch, failure):
    if failure == "no compiler":
        monkeypatch.setattr(kernel.shutil, "which", lambda name: None)
    else:
        run = subprocess.run

        def fail(command, **how):
            if "-c" in command:
                raise subprocess.CalledProcessError(1, command, stderr="sparse.c: no vectors here")
            return run(command, **how)

        monkeypatch.setattr(kernel.subprocess, "run", fail)
    layer, x = masked(), torch.randn(4, 40)
    said = "no C compiler" if failure == "no compiler" else "no vectors here"
    with torch.no_grad(), pytest.warns(UserWarning, match=f"as dense ones.*{said}"):
        found = sparse(layer)(x)
    assert torch.allclose(found, layer(x), atol=1e-6)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        sparse(layer)(x)  # it is said once
    assert not list(anew.glob("*.so"))
