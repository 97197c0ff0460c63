"""Files have the free values alone, and masks in few bytes; both come back exactly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fpe
from fpe.errors import ArgumentError, CheckpointError
from fpe.io.compact import decode_mask, encode_mask, free_values, spread_values
from fpe.io.onnx_zeros import steps_between
from fpe.masked import MaskedLayer
from models import same_values

SHAPES = st.lists(st.integers(0, 9), max_size=2).flatmap(
    lambda rest: st.one_of(
        st.tuples(st.integers(0, 600), *map(st.just, rest)),
        st.tuples(st.integers(0, 4), st.integers(0, 600), *map(st.just, rest)),
    )
)


@st.composite
def masks(draw):
    shape = draw(SHAPES)
    density = draw(st.sampled_from([0, 0.01, 0.1, 0.5, 0.99, 1]))
    drawn = np.random.default_rng(draw(st.integers(0, 99))).random(shape) < density
    if drawn.size and draw(st.booleans()):
        drawn[:: draw(st.integers(1, 3))] = draw(st.booleans())  # rows without free entries, or full ones
    return torch.from_numpy(drawn)


@settings(max_examples=300, deadline=None)
@given(masks())
def test_any_mask_comes_back_from_its_bytes(free):
    stored = encode_mask(free.float())
    assert stored.dtype == torch.uint8
    assert torch.equal(decode_mask(stored, free.shape), free)
    assert len(stored) <= 1 + min(-(-free.numel() // 8), int(free.sum()) + free.numel() // 255)


@settings(max_examples=100, deadline=None)
@given(masks(), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_any_parameter_comes_back_from_its_free_values(free, kind):
    whole = torch.randn(free.shape).to(kind) * free
    values = free_values(whole, free)
    assert values.shape == (int(free.sum()),)
    assert torch.equal(spread_values(values, free), whole)


def test_the_layouts_by_hand():
    few = torch.zeros(2, 300)
    few[0, 0] = few[0, 299] = few[1, 0] = few[1, 255] = few[1, 299] = 1
    assert encode_mask(few).tolist() == [1, 0, 255, 43, 0, 254, 43]
    assert encode_mask(few.view(2, 5, 10, 6)).tolist() == encode_mask(few).tolist()
    exactly = torch.zeros(900)
    exactly[255] = 1
    assert encode_mask(exactly).tolist() == [1, 255, 0]
    assert encode_mask(torch.zeros(50)).tolist() == [1]
    assert encode_mask(torch.ones(9)).tolist() == [0, 255, 1]
    assert encode_mask(torch.tensor([[0, 1], [1, 0], [0, 0], [0, 1], [1, 1]])).tolist() == [0, 134, 3]
    assert encode_mask(torch.zeros(4, 0, 3)).tolist() == [0]


@pytest.mark.parametrize("content", [[], [0], [0, 1, 2], [1, 6], [1, 1, 4], [1, 255, 0], [2, 5]])
def test_bytes_of_another_mask_are_refused(content):
    with pytest.raises(ValueError, match=r"not those of one of shape \(2, 3\)"):
        decode_mask(torch.tensor(content, dtype=torch.uint8), (2, 3))
    with pytest.raises(ValueError, match="free entries"):
        spread_values(torch.ones(2), torch.ones(3, dtype=torch.bool))


def with_zeros(model, share, biases=False):
    """Mask weights at random."""
    generator = torch.Generator().manual_seed(0)
    wide = fpe.with_masks(model)
    for layer in wide.modules():
        if isinstance(layer, MaskedLayer):
            layer.fpe_mask.copy_(torch.rand(layer.weight.shape, generator=generator) >= share)
            if biases:
                layer.mask_bias_(torch.rand(layer.bias.shape, generator=generator) >= share)
            layer.project()
    return wide


def size_of(model, path, **options):
    fpe.save(model, path, **options)
    return path.stat().st_size


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9, 0.98])
@pytest.mark.parametrize("shape", [(512, 512), (1024, 4096)])
def test_a_file_has_the_values_and_one_bit_for_each_place_or_two_bytes_for_each_value(shape, share, tmp_path):
    wide = with_zeros(nn.Sequential(nn.Linear(*shape[::-1], bias=False)), share)
    free = fpe.count_nonzero(wide)
    places = min(shape[0] * shape[1] / 8, free)
    assert size_of(wide, tmp_path / "wide.safetensors") <= 1.02 * (4 * free + places) + 1000


@pytest.mark.parametrize("packing", [False, True])
def test_a_small_pruned_network_has_nearly_the_file_of_the_dense_one_of_its_count(packing, tmp_path):
    dense = fpe.mlp(384, 16, 77, seed=0)
    wide = fpe.with_masks(fpe.mlp(384, 64, 77, seed=0))
    weights = [wide[0].weight.detach(), wide[2].weight.detach()]
    sizes = torch.cat([weight.abs().flatten() for weight in weights])
    least = sizes.sort(descending=True).values[7469 - 64 - 77 - 1]
    for layer in (wide[0], wide[2]):
        layer.fpe_mask.copy_(layer.weight.abs() >= least)
        layer.project()
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(dense) == 7469
    stored = fpe.pack(wide) if packing else wide
    most = 1.2 * size_of(dense, tmp_path / "dense.safetensors")
    assert size_of(stored, tmp_path / "wide.safetensors") < most
    assert same_values(fpe.load(tmp_path / "wide.safetensors"), stored)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
@pytest.mark.parametrize("share", [0.5, 0.97, 1.0])
def test_masked_convolutions_and_biases_come_back(kind, share, tmp_path):
    axes = int(kind.__name__[4])
    model = nn.Sequential(kind(6, 5, 3), nn.Flatten(), nn.Linear(5 * 3**axes, 4))
    wide = with_zeros(model, share, biases=True).double()
    fpe.save(wide, tmp_path / "wide.safetensors")
    again = fpe.load(tmp_path / "wide.safetensors", like=model)
    assert same_values(again, wide)
    assert fpe.count_nonzero(again) == fpe.count_nonzero(wide)


def test_a_layer_without_zeros_has_no_mask_in_the_file(tmp_path):
    dense = fpe.mlp(64, 32, 10, seed=0)
    masked = fpe.with_masks(dense)
    extra = size_of(masked, tmp_path / "masked.safetensors") - size_of(dense, tmp_path / "dense.safetensors")
    assert extra < 200
    assert same_values(fpe.load(tmp_path / "masked.safetensors"), masked)


class Shared(nn.Module):
    """One weight in two layers with masks of their own, and one layer under two names."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.again = self.c

    def forward(self, x):
        return self.again(self.c(self.b(self.a(x))))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_shared_weights_and_layers_come_back(first, whole, tmp_path):
    wide = with_zeros(Shared(), 0.6)
    own, other = (wide.a, wide.b) if first else (wide.b, wide.a)
    other.weight = own.weight
    if whole:  # the other one's mask masks nothing
        other.fpe_mask.fill_(1)
    else:
        own.fpe_mask.mul_(other.fpe_mask)
        own.project()
    fpe.save(wide, tmp_path / "wide.safetensors")
    again = fpe.load(tmp_path / "wide.safetensors", like=Shared())
    assert same_values(again, wide)
    assert torch.equal(again(torch.ones(1, 8)), wide(torch.ones(1, 8)))


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", ["float16", "bfloat16", torch.bfloat16])
def test_values_are_stored_in_sixteen_bits_and_loaded_in_their_own_type(kind, packing, tmp_path):
    wide = with_zeros(fpe.mlp(64, 48, 10, standardize=True, seed=0), 0.6, biases=True)
    stored = fpe.pack(wide) if packing else wide
    path = tmp_path / "wide.safetensors"
    whole, half = size_of(stored, path), size_of(stored, path, storage_dtype=kind)
    assert whole - half > 1.8 * fpe.count_nonzero(stored)
    again = fpe.load(path)
    assert fpe.count_nonzero(again) == fpe.count_nonzero(stored)
    own = getattr(torch, str(kind).removeprefix("torch."))
    for name, parameter in stored.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter.to(own).to(torch.float32))
    for name, buffer in stored.named_buffers():
        assert torch.equal(again.get_buffer(name), buffer)


def test_types_of_the_weights_are_kept_apart_and_sixteen_bits_stay(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8).double(), nn.Linear(8, 8), nn.Linear(8, 8).bfloat16())
    wide = with_zeros(model, 0.5)
    fpe.save(wide, tmp_path / "wide.safetensors", storage_dtype="float16")
    again = fpe.load(tmp_path / "wide.safetensors", like=model)
    assert [layer.weight.dtype for layer in again] == [torch.float64, torch.float32, torch.bfloat16]
    assert torch.equal(again[2].weight, wide[2].weight)
    assert torch.equal(again[0].weight, wide[0].weight.half().double())


def test_another_type_and_weights_too_large_for_it_are_refused(tmp_path):
    wide = with_zeros(fpe.mlp(8, 4, 2), 0.5)
    path = tmp_path / "wide.safetensors"
    for kind in ("int8", torch.float32, 16):
        with pytest.raises(ArgumentError, match=r"storage_dtype is .*; allowed are 'float16', 'bfloat16'"):
            fpe.save(wide, path, storage_dtype=kind)
    with torch.no_grad():
        wide[0].bias[0] = 1e6
    with pytest.raises(ArgumentError, match=r"'0\.bias' has weights up to 1e\+06.*6\.55e\+04.*bfloat16"):
        fpe.save(wide, path, storage_dtype="float16")
    assert not path.exists()
    fpe.save(wide, path, storage_dtype="bfloat16")


def test_a_file_of_other_sizes_is_refused(tmp_path):
    fpe.save(with_zeros(fpe.mlp(8, 4, 2), 0.5), tmp_path / "wide.safetensors")
    with pytest.raises(CheckpointError, match="another architecture"):
        fpe.load(tmp_path / "wide.safetensors", like=nn.Sequential(nn.Linear(8, 4), nn.ReLU()))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 3000), st.sampled_from([0, 0.001, 0.01, 0.5, 1]), st.integers(0, 99))
def test_steps_lead_to_all_that_is_not_zero_and_to_each_place_once(size, density, seed):
    flat = np.random.default_rng(seed).random(size + 1) < density
    places = np.cumsum(steps_between(flat), dtype=np.int64)
    assert set(np.flatnonzero(flat)) <= set(places.tolist())
    assert len(set(places.tolist())) == len(places) <= flat.sum() + 1 + size // 255


def onnx_of(path):
    """Return the operations and the constants of a file, and the operations that loading leaves."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.optimized_model_filepath = str(path.with_suffix(".loaded"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph, loaded = onnx.load(path).graph, onnx.load(options.optimized_model_filepath).graph
    onnx.checker.check_model(str(path), full_check=True)
    kinds = [{node.op_type for node in own.node} for own in (graph, loaded)]
    return kinds[0], {c.name: onnx.numpy_helper.to_array(c) for c in graph.initializer}, kinds[1]


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("packing", [False, True])
def test_an_onnx_file_has_no_zeros_and_the_weights_are_made_once(kind, packing, tmp_path):
    wide = with_zeros(fpe.mlp(384, 64, 77, seed=0), 0.75).to(kind)
    model = fpe.pack(wide) if packing else wide
    x = torch.randn(3, 384).to(kind)
    written = fpe.export(model, tmp_path / "wide.onnx", example_inputs=x)
    assert written.difference < (1e-4 if kind != torch.float16 else 1e-2)
    assert written.bytes < fpe.count_nonzero(wide) * (wide[0].weight.element_size() + 1) + 4000
    operations, constants, loaded = onnx_of(written.path)
    assert {"ScatterElements", "CumSum"} <= operations
    assert not {"ScatterElements", "CumSum"} & loaded
    assert all((array != 0).mean() > 0.9 for array in constants.values() if array.size > 300)


def test_onnx_files_of_convolutions_and_of_places_far_apart(tmp_path):
    model = nn.Sequential(nn.Conv2d(8, 64, 3), nn.Flatten(), nn.Linear(64 * 9, 40))
    wide = with_zeros(model, 0.6)
    wide[2].fpe_mask.zero_()
    wide[2].fpe_mask[[0, 7, 39], [3, 570, 575]] = 1
    wide[2].project()
    written = fpe.export(wide, tmp_path / "wide.onnx", example_inputs=torch.randn(3, 8, 5, 5))
    assert written.difference < 1e-4
    assert written.bytes < 0.6 * wide[0].weight.nbytes + 6000
    assert not {"ScatterElements", "CumSum"} & onnx_of(written.path)[2]


def test_an_onnx_file_of_a_dense_network_is_as_before(tmp_path):
    fpe.export(fpe.mlp(64, 32, 10), tmp_path / "dense.onnx", example_inputs=torch.randn(3, 64))
    operations, constants, _ = onnx_of(tmp_path / "dense.onnx")
    assert operations == {"Gemm", "Relu"}
    assert len(constants) == 4
