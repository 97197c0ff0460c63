"""Packed models compute what the masked ones compute, from (nearly) their non-zeros alone, and go back."""

import copy
import shutil

import pytest
import torch
from torch import nn

import fpe
from fpe.errors import ArgumentError, ModelError
from fpe.graph.turned import MaskedTransposed
from fpe.masked import MaskedLayer
from fpe.packing import codes
from fpe.packing.bits import byte_shifts, pack_bits, pack_zeros, unpack_bits, unpack_zeros
from fpe.packing.blocks import MOST_BATCHED, Batch, BlockLayer, block_layout, padded_inputs
from fpe.packing.codes import CodedLayer
from fpe.packing.formats import Structure, choose_format
from fpe.packing.layers import DenseLayer, PackedLayer
from models import assert_unchanged, forget_maps_, snapshot
from zoo import ZOO, answer

#: Splits and ways of paying that the table of models is packed with.
WAYS = [("random", "magnitude"), ("shared", "magnitude"), ("shared", "columns"), ("2:4", "magnitude")]
WAYS += [("shared", "children")]
#: Models in which the readers are as large as the producers, whose columns alone cannot pay for them.
NO_COLUMNS = {
    "MLP-LayerNorm",
    "CNN-BatchNorm-Flatten",
    "ResNet block",
    "ConvNeXt-style block",
    "U-Net-like skip",
    "GPT-2",
    "BERT",
}
NO_COLUMNS |= {"ViT", "CLIP", "T5"}
PACKED = [name for name in ZOO if name != "Mixtral"]


CASES = [
    pytest.param(name, split, prune, id=f"{name}-{split}-{prune}")
    for name in PACKED
    for split, prune in WAYS
    if prune != "columns" or name not in NO_COLUMNS
]


def equal_state(a: nn.Module, b: nn.Module) -> bool:
    """Tell whether two state dicts are equal; a held zero may have lost its sign."""
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def packed_of():
    """Return each model wide and packed, with its batch, made once."""
    made = {}

    def of(name, split, prune):
        key = name, split, prune
        if key not in made:
            model, batch = ZOO[name]()
            wide = fpe.expand(model.eval(), 2, split=split, prune=prune, example_inputs=batch, seed=3)
            made[key] = (wide, fpe.pack(wide), batch)
        return made[key]

    return of


@pytest.mark.parametrize(("name", "split", "prune"), CASES)
def test_packed_computes_what_masked_computes(name, split, prune, packed_of):
    wide, packed, batch = packed_of(name, split, prune)
    with torch.no_grad():
        torch.testing.assert_close(answer(packed, batch), answer(wide, batch), rtol=1e-5, atol=1e-5)
    assert fpe.count_nonzero(packed) == fpe.count_nonzero(wide)
    assert not any(
        isinstance(m, MaskedLayer) for m in packed.modules() if not isinstance(m, MaskedTransposed)
    )
    assert {r.name for r in packed.fpe_packing.rows} == {
        n for n, m in wide.named_modules() if isinstance(m, MaskedLayer)
    }


@pytest.mark.parametrize(("name", "split", "prune"), CASES)
def test_gradients_of_packed_are_those_of_masked(name, split, prune, packed_of):
    wide, packed, batch = (copy.deepcopy(part) for part in packed_of(name, split, prune))
    for model in (wide, packed):
        answer(model, batch).square().sum().backward()
    # A gradient is a weight of the same shape: unpacked, it must be the masked one.
    for part in packed.parameters():
        part.data = part.grad if part.grad is not None else torch.zeros_like(part)
    back = dict(fpe.unpack(packed).named_parameters())
    for key, parameter in wide.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(back[key].detach() / scale, expected / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "split", "prune"), CASES)
def test_unpacking_gives_the_masked_model_back(name, split, prune, packed_of):
    wide, packed, _ = packed_of(name, split, prune)
    before = snapshot(packed)
    assert equal_state(fpe.unpack(packed), wide)
    assert_unchanged(packed, before)


def test_packing_leaves_the_wide_model_alone_even_when_the_packed_one_is_trained():
    wide = fpe.expand(fpe.mlp(12, 6, 3), 2)
    before = snapshot(wide)
    packed = fpe.pack(wide)
    for parameter in packed.parameters():
        parameter.data.add_(1)
    assert_unchanged(wide, before)


@pytest.mark.parametrize("split", ["shared", "random"])
def test_training_packed_is_training_masked(split):
    wide = fpe.expand(fpe.mlp(20, 6, 3), 2, split=split, seed=1)
    packed = fpe.pack(wide)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 20, generator=generator), torch.randint(3, (40,), generator=generator)
    for model in (wide, packed):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert fpe.count_nonzero(packed) == fpe.count_nonzero(wide)
    torch.testing.assert_close(packed(x), wide(x), rtol=1e-3, atol=1e-4)
    for name, layer in fpe.unpack(packed).named_modules():
        if isinstance(layer, MaskedLayer):
            assert not layer.weight[layer.fpe_mask == 0].any(), name


def test_whole_columns_are_blocks_and_nothing_else():
    """d = 5, h = 2, k = 1: four copies are made up for by one column of each block, two entries each."""
    model = nn.Sequential(nn.Linear(5, 2), nn.ReLU(), nn.Linear(2, 1))
    packed = fpe.pack(fpe.expand(model, 2, split="shared", prune="columns"))
    assert isinstance(packed[0], BlockLayer)
    assert type(packed[2]) is nn.Linear
    stored = sum(p.numel() for n, p in packed[0].named_parameters() if n != "bias")
    assert stored == 2 * 5 - 4
    assert packed[0].rows.tolist() == [0, 2, 1, 3]
    assert packed[0].restore is None


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 70])
@pytest.mark.parametrize("split", ["shared", "random"])
@pytest.mark.parametrize("gradients", [True, False])
def test_any_number_of_samples_and_of_leading_axes(samples, split, gradients):
    wide = fpe.expand(fpe.mlp(16, 8, 3), 2, split=split, seed=2)
    packed = fpe.pack(wide)
    x = torch.randn(samples, 16, generator=torch.Generator().manual_seed(0))
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(packed(x), wide(x), rtol=1e-5, atol=1e-6)
        lead = x.view(1, samples, 1, 16)
        torch.testing.assert_close(packed(lead), wide(lead), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(packed(x[0]), wide(x[0]), rtol=1e-5, atol=1e-6)
        assert packed(x[:0]).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("split", ["shared", "random"])
def test_types_stay(dtype, split):
    wide = fpe.expand(fpe.mlp(16, 8, 3), 2, split=split, seed=2).to(dtype)
    packed = fpe.pack(wide)
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        assert packed(x).dtype == dtype
        torch.testing.assert_close(packed(x), wide(x), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("samples", [1, 5])
@pytest.mark.parametrize("trained", [True, False])
def test_blocks_work_under_autocast(samples, trained):
    """Blocks of unequal size: a rest is added to what autocast has made."""
    wide = fpe.expand(fpe.mlp(41, 8, 3), 2, split="shared", prune="columns", seed=2)
    packed = fpe.pack(wide)
    assert len(packed[0].batches) == 2
    x = torch.randn(samples, 41, generator=torch.Generator().manual_seed(0))
    with torch.set_grad_enabled(trained), torch.autocast("cpu", torch.bfloat16):
        y = packed(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), wide(x), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("inputs", [41, 240])
def test_blocks_work_with_function_transforms(inputs):
    """Gradients of parameters given from outside, for each sample by itself."""
    packed = fpe.pack(fpe.expand(fpe.mlp(inputs, 8, 2, seed=2), 3, split="shared", prune="columns", seed=2))
    x = torch.randn(4, inputs, generator=torch.Generator().manual_seed(0))

    def loss(parameters, sample):
        return torch.func.functional_call(packed, parameters, (sample,)).square().sum()

    parameters = {name: p.detach() for name, p in packed.named_parameters()}
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    loss(dict(packed.named_parameters()), x).backward()
    for name, parameter in packed.named_parameters():
        torch.testing.assert_close(each[name].sum(0), parameter.grad)


@pytest.mark.parametrize("inputs", [41, 240])
@pytest.mark.parametrize("samples", [1, 2, 5])
def test_blocks_are_mapped_over_without_gradients_too(samples, inputs):
    """Over inputs, and over parameters with the same inputs for each."""
    packed = fpe.pack(fpe.expand(fpe.mlp(inputs, 8, 2, seed=2), 3, split="shared", prune="columns", seed=2))
    x = torch.randn(4, samples, inputs, generator=torch.Generator().manual_seed(0))
    parameters = {name: torch.stack([p, 2 * p]) for name, p in packed.named_parameters()}

    def of(own, batch):
        return torch.func.functional_call(packed, own, (batch,))

    with torch.no_grad():
        expected = torch.stack([packed(batch) for batch in x])
        torch.testing.assert_close(torch.func.vmap(packed)(x), expected)
        each = torch.func.vmap(of, in_dims=(0, None))(parameters, x[0])
        torch.testing.assert_close(each[0], expected[0])


@pytest.mark.parametrize("factor", range(2, 9))
def test_kernels_compute_with_the_weight_that_codes_stand_for(factor):
    """Weights that no child owns are zero, so that their owner does not matter to the kernels."""
    generator = torch.Generator().manual_seed(0)
    owner = torch.randint(factor + 1, (3, 16), generator=generator)
    mask = torch.stack([owner == child for child in range(factor)], dim=1).flatten(0, 1).double()
    weight, x = (
        torch.randn(mask.shape, generator=generator) * mask,
        torch.randn(16, generator=generator).double(),
    )
    values, stored = codes.pack_codes(weight, mask, factor)
    assert torch.equal(codes.unpack_codes(values, stored, factor), weight)
    known = (stored, factor, byte_shifts(stored.device))
    assert torch.equal(codes.spread(values, *known), weight)
    torch.testing.assert_close(codes.product(values, stored, x, *known[1:]).flatten(), weight @ x)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="there is no compiler")
@pytest.mark.parametrize("samples", [0, 1, 3, 4, 70])
@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize(("factor", "inputs"), [(2, 40), (3, 48)])
def test_codes_go_through_the_compiled_kernels(samples, prune, factor, inputs, monkeypatch):
    """Also those of a second layer, with other numbers of children and of inputs."""
    monkeypatch.setattr(codes, "WORTH_COMPILING", 1)
    wide = fpe.expand(fpe.mlp(inputs, 4, 3), factor, split="random", seed=2)
    if not prune:
        of_parent = torch.arange(inputs) * 7 % factor
        for child in range(factor):
            wide[0].fpe_mask[child::factor] = (of_parent == child).float()
        wide[0].project()
    packed = fpe.pack(wide, format={"0": "codes"})
    assert isinstance(packed[0], CodedLayer)
    x = torch.randn(samples, inputs, generator=torch.Generator().manual_seed(0))
    assert codes.kernels_for(packed[0].values, factor) is not None
    with torch.no_grad():
        torch.testing.assert_close(packed(x), wide(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("samples", [0, 1, 2, 3, 4, 9])
@pytest.mark.parametrize("inputs", [10, 64, 150])
def test_any_number_of_samples_gives_what_the_masked_layer_gives(samples, inputs):
    """Nothing is changed, whether gradients are wanted or not."""
    wide = fpe.expand(fpe.mlp(inputs, 12, 3), 2, split="shared", seed=2)
    packed = fpe.pack(wide)
    before = snapshot(packed)
    x = torch.randn(samples, inputs, generator=torch.Generator().manual_seed(0))
    expected = wide(x)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(packed(x), expected, rtol=1e-5, atol=1e-6)
    assert_unchanged(packed, before)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(4, 7)], [(range(1), 4, 7, 0, 0)]),
        ([(4, 7), (4, 7)], [(range(2), 4, 7, 0, 0)]),
        (
            [(4, 9), (4, 8), (4, 8), (4, 7)],
            [(range(4), 4, 7, 0, 0), (range(3), 4, 1, 7, 0), (range(1), 4, 1, 8, 0)],
        ),
        ([(4, 8), (4, 9)], [(range(1), 4, 8, 0, 0), (range(1, 2), 4, 9, 0, 4)]),
        ([(4, 9), (4, 1)], [(range(1), 4, 9, 0, 0), (range(1, 2), 4, 1, 0, 4)]),
        ([(3, 7), (4, 7)], [(range(1), 3, 7, 0, 0), (range(1, 2), 4, 7, 0, 3)]),
        ([(1 << 21, 4)] * 2, [(range(2), 1 << 21, 4, 0, 0)]),
        ([(1 << 21, 5)] * 2, [(range(1), 1 << 21, 5, 0, 0), (range(1, 2), 1 << 21, 5, 0, 1 << 21)]),
    ],
)
def test_blocks_of_equal_size_are_stored_together(sizes, expected):
    """Common inputs are one batch, the further inputs of most the next; unequal or large ones are alone."""
    assert block_layout(sizes, together=True) == [Batch(*batch) for batch in expected]
    assert [len(batch.blocks) for batch in block_layout(sizes, together=False)] == [1] * len(sizes)


@pytest.mark.parametrize(
    ("sizes", "inputs"),
    [
        ([(4, 50), (4, 49)], 50),
        ([(4, 51), (4, 50), (4, 50)], 51),  # two more in 151
        ([(4, 51), (4, 50), (4, 49)], 0),  # three in 150
        ([(4, 50), (4, 50)], 0),
        ([(4, 50)], 0),
        ([(4, 50), (3, 49)], 0),
        ([(MOST_BATCHED // 64, 64), (MOST_BATCHED // 64, 63)], 64),
        ([(MOST_BATCHED // 64, 65), (MOST_BATCHED // 64, 64)], 0),
    ],
)
def test_blocks_are_filled_up_by_at_most_a_seventy_fifth(sizes, inputs):
    """So that they are of one size; not where they are so large that each stands alone."""
    assert padded_inputs(sizes) == inputs


@pytest.fixture
def filled():
    """Return a model and its packed form, whose blocks read 79, 79 and 76 inputs: one is filled up."""
    wide = fpe.expand(fpe.mlp(240, 8, 2, seed=2), 3, split="shared", prune="columns", seed=2)
    return wide, fpe.pack(wide)


def test_a_filled_up_block_reads_others_inputs_with_weights_of_zero(filled):
    wide, packed = filled
    layer = packed[0]
    assert [p.shape for n, p in layer.named_parameters() if n != "bias"] == [(3, 79, 8)]
    unread = torch.cat([~wide[0].fpe_mask[b.rows].any(0)[b.columns] for b in layer.blocks()])
    assert layer.zero_positions_0.flatten().tolist() == unread.nonzero().flatten().tolist()
    assert int(unread.sum()) == 3
    assert fpe.count_nonzero(packed) == fpe.count_nonzero(wide)
    assert packed.fpe_packing.rows[0].why == "3 blocks, all of it free"
    assert equal_state(fpe.unpack(packed), wide)


@pytest.mark.parametrize("factor", [2, 4])
def test_blocks_that_are_filled_up_take_at_most_a_fiftieth_more_bytes_than_the_dense_network(factor):
    parent = fpe.mlp(512, 512, 10, seed=0)
    packed = fpe.pack(fpe.expand(parent, factor, split="shared", prune="columns", seed=0))
    assert packed[0].zero_positions_0 is not None
    stored = [sum(t.nbytes for t in model.state_dict().values()) for model in (packed, parent)]
    assert stored[0] <= 1.02 * stored[1]


@pytest.mark.parametrize("samples", [1, 5])
def test_weights_of_what_fills_a_block_up_get_no_gradient(samples, filled):
    """Nor does the input get one through them; all else is as in the masked layer."""
    wide, packed = filled
    x = torch.randn(samples, 240, generator=torch.Generator().manual_seed(0))
    gradients = []
    for model in (wide, packed):
        own = x.clone().requires_grad_()
        model(own).square().sum().backward()
        gradients.append(own.grad)
    torch.testing.assert_close(*gradients)
    held = packed[0].free("weight_0") == 0
    assert int(held.sum()) == 3 * 8
    assert not packed[0].weight_0.grad[held].any()
    optimizer = torch.optim.AdamW(packed.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        packed(x).square().sum().backward()
        optimizer.step()
    assert not packed[0].weight_0[held].any()


def test_gradients_of_blocks_that_are_filled_up_are_right_in_both_directions(filled):
    layer = filled[1][0].double()
    x = torch.randn(2, 240, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(layer, x.requires_grad_(), check_forward_ad=True)
    parameters = {"weight_0": layer.weight_0, "bias": layer.bias}
    held = layer.free("weight_0").bool()

    def of_weight(weight):
        own = {**parameters, "weight_0": weight * held}
        return torch.func.functional_call(layer, own, (x.detach(),)).sum(1)

    assert torch.autograd.gradcheck(of_weight, layer.weight_0.detach().clone().requires_grad_())


@pytest.mark.parametrize("trained", [True, False])
def test_blocks_that_are_filled_up_are_compiled_whole(trained, filled):
    wide, packed = filled
    x = torch.randn(4, 240, generator=torch.Generator().manual_seed(0))
    with torch.set_grad_enabled(trained):
        compiled = torch.compile(packed, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), wide(x), rtol=1e-5, atol=1e-6)


def test_blocks_of_a_linear_layer_are_one_parameter_input_by_input():
    wide = fpe.expand(fpe.mlp(41, 8, 3), 2, split="shared", prune="columns", seed=2)
    packed = fpe.pack(wide)
    (_, many), (_, few) = packed[0].sizes
    assert packed[0].weight_0.shape == (2, few, 8)
    assert packed[0].weight_1.shape == (1, many - few, 8)
    first = packed[0].blocks()[0]
    block = wide[0].weight[first.rows][:, first.columns]
    assert torch.equal(packed[0].weight_0[0].t(), block[:, :few])


def test_a_norm_over_groups_of_neurons_keeps_their_order():
    model = nn.Sequential(nn.Conv2d(6, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    x = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(0))
    wide = fpe.expand(model, 2, split="shared", example_inputs=x, seed=1)
    packed = fpe.pack(wide)
    assert packed[0].restore is not None
    torch.testing.assert_close(packed(x), wide(x), rtol=1e-5, atol=1e-6)
    assert equal_state(fpe.unpack(packed), wide)


def test_without_a_plan_blocks_are_found_and_the_order_is_kept():
    wide = fpe.expand(fpe.mlp(12, 4, 2), 3, split="shared", prune="columns", seed=1)
    forget_maps_(wide)
    packed = fpe.pack(wide)
    assert isinstance(packed[0], BlockLayer)
    assert len(packed[0].sizes) == 3
    x = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(packed[0](x), wide[0](x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(packed(x), wide(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prune", ["columns", "magnitude"])
@pytest.mark.parametrize("groups", [2, 4, 8])
def test_each_group_of_a_shared_split_is_blocks_of_its_own(groups, prune):
    """8 neurons, two children each: twice as many blocks as groups, each with one index for each input."""
    wide = fpe.expand(fpe.mlp(60, 8, 3), 2, split=fpe.SharedSplit(groups), prune=prune, seed=1)
    packed = fpe.pack(wide)
    assert isinstance(packed[0], BlockLayer)
    assert [neurons for neurons, _ in packed[0].sizes] == [8 // groups] * (2 * groups)
    x = torch.randn(6, 60, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(packed(x), wide(x), rtol=1e-5, atol=1e-6)
    assert equal_state(fpe.unpack(packed), wide)
    if prune == "columns":
        assert packed.fpe_packing.rows[0].why == f"{2 * groups} blocks, all of it free"
        stored = sum(inputs for _, inputs in packed[0].sizes)
        assert stored * 8 // groups == 8 * 60 - 8 * 4
        assert {inputs for _, inputs in packed[0].sizes} == {28}  # all of one size
        assert packed[0].columns.nbytes == 4 * stored


def test_groups_are_saved_with_the_plan(tmp_path):
    wide = fpe.expand(fpe.mlp(60, 8, 3), 2, split=fpe.SharedSplit(groups=4), prune="columns", seed=1)
    assert "split SharedSplit(groups=4)" in str(wide.fpe_plan)
    fpe.save(wide, tmp_path / "wide.safetensors")
    again = fpe.load(tmp_path / "wide.safetensors")
    assert again.fpe_plan == wide.fpe_plan
    assert again.fpe_plan.layers[0].groups == 4
    assert len(fpe.pack(again)[0].sizes) == 8


def test_a_plan_saved_without_groups_has_one():
    record = fpe.plan(fpe.mlp(8, 4, 2)).to_dict()
    del record["layers"][0]["groups"]
    assert fpe.expansion.plan.Plan.from_dict(record).layers[0].groups == 1


def test_neurons_expanded_in_part_are_blocks_too():
    model = fpe.mlp(32, 8, 2)
    wide = fpe.expand(model, 2, split="shared", target_fraction=0.5, seed=1)
    packed = fpe.pack(wide)
    assert isinstance(packed[0], BlockLayer)
    assert len(packed[0].sizes) == 3  # first children, second children, and neurons left whole
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(packed(x), wide(x), rtol=1e-5, atol=1e-6)


def test_a_model_expanded_twice_is_packed():
    wide = fpe.expand(fpe.expand(fpe.mlp(32, 6, 2), 2, split="shared", seed=1), 2, split="shared", seed=2)
    packed = fpe.pack(wide)
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(packed(x), wide(x), rtol=1e-5, atol=1e-6)
    assert equal_state(fpe.unpack(packed), wide)


def test_the_bytes_of_the_summary_are_those_of_the_tensors():
    wide = fpe.expand(fpe.mlp(64, 16, 5), 2, split="shared", prune="columns")
    packed = fpe.pack(wide)
    tensors = [*packed.parameters(), *packed.buffers()]
    assert packed.fpe_packing.bytes[2] == sum(t.nbytes for t in tensors)
    assert packed.fpe_packing.bytes[0] == 4 * fpe.count_nonzero(wide)
    assert "2 blocks, all of it free" in str(packed.fpe_packing)


@pytest.mark.parametrize(("split", "format"), [("random", "codes"), ("2:4", "codes"), ("random", "dense")])
def test_a_format_that_is_asked_for_is_taken(split, format):
    wide = fpe.expand(fpe.mlp(16, 8, 3), 2, split=split, seed=2)
    packed = fpe.pack(wide, format={"0": format})
    assert packed.fpe_packing.rows[0].format == format
    assert isinstance(packed[0], {"codes": CodedLayer, "dense": DenseLayer}[format])
    x = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(packed(x), wide(x), rtol=1e-5, atol=1e-6)
    assert equal_state(fpe.unpack(packed), wide)


def test_convolutions_become_blocks_of_channels():
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )
    batch = torch.randn(2, 4, 7, 7, generator=torch.Generator().manual_seed(0))
    wide = fpe.expand(model, 2, split="shared", example_inputs=batch)
    packed = fpe.pack(wide)
    assert isinstance(packed[0], BlockLayer)
    torch.testing.assert_close(packed(batch), wide(batch), rtol=1e-5, atol=1e-6)


def test_bits_come_back():
    values = torch.tensor([[0, 1, 2, 3, 3, 2, 1, 0, 2], [3, 0, 0, 0, 0, 0, 0, 1, 3]])
    packed = pack_bits(values, bits=2)
    assert packed.shape == (2, 2, 2)
    assert unpack_bits(packed, 9).tolist() == values.tolist()


@pytest.mark.parametrize(
    ("masked", "axes"),
    [([3], 1), (list(range(20)), 3), (list(range(16, 32)), 2), ([*range(64), *range(80, 128)], 3)],
)
def test_zero_positions_come_back_as_entries_or_as_rows_or_as_bits(masked, axes):
    """Rows are those of the last axis, in a list unless bits are smaller."""
    free = torch.ones(8, 16, dtype=torch.bool)
    free.view(-1)[masked] = False
    stored = pack_zeros(free)
    assert stored.dim() == axes
    assert torch.equal(unpack_zeros(stored, free.shape).bool(), free)
    assert pack_zeros(torch.ones(2, 2, dtype=torch.bool)) is None


def test_the_rule_says_why():
    def chosen(mask):
        return choose_format(Structure.of(mask, None), mask, None)

    everything = torch.ones(4, 8)
    halves = torch.zeros(8, 8)
    halves[::2, :4], halves[1::2, 4:] = 1, 1
    drawn = (torch.arange(32).view(4, 8) * 5 % 7 > 3).float()
    own = torch.stack([drawn, 1 - drawn], dim=1).flatten(0, 1)
    ragged = (torch.rand(16, 32, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    assert chosen(everything).why == "it has no zeros"
    assert (chosen(halves).format, chosen(halves).why) == ("blocks", "2 blocks, all of it free")
    assert (chosen(own).format, chosen(own).factor) == ("codes", 2)
    assert f"no structure, and {1 - float(ragged.mean()):.0%}" in chosen(ragged).why


def test_neurons_that_read_alike_are_found_without_a_plan():
    """Nine neurons of two kinds, in no order that a factor would explain: the first neuron's kind first."""
    kinds = torch.tensor([[0, 0, 1, 1, 0.0], [1, 1, 0, 0, 0]])
    kind = torch.tensor([0, 1, 1, 0, 0, 1, 1, 1, 1])
    blocks = Structure.of(kinds[kind], None).blocks
    assert [block.rows.tolist() for block in blocks] == [[0, 3, 4], [1, 2, 5, 6, 7, 8]]
    assert [block.columns.tolist() for block in blocks] == [[2, 3], [0, 1]]
    few = Structure.of(kinds[kind[:7]], None).blocks  # three and a half neurons for each kind
    assert [len(block.rows) for block in few] == [7]


@pytest.mark.parametrize("factor", [2, 3])
def test_groups_of_a_shared_split_are_found_without_a_plan(factor):
    wide = fpe.expand(fpe.mlp(120, 48, 3, seed=0), factor, split="shared-4", prune="columns", seed=0)
    planned = fpe.pack(wide)
    forget_maps_(wide)
    packed, x = fpe.pack(wide), torch.randn(5, 120)
    assert packed.fpe_packing.rows[0].why == f"{4 * factor} blocks, all of it free"
    assert sorted(packed[0].sizes) == sorted(planned[0].sizes)
    torch.testing.assert_close(packed(x), wide(x))
    again = fpe.unpack(packed)
    assert torch.equal(again[0].weight, wide[0].weight)
    assert torch.equal(again[0].fpe_mask, wide[0].fpe_mask)


def test_the_largest_family_is_found_without_a_plan():
    wide = fpe.expand(fpe.mlp(64, 16, 3, seed=0), 4, split="random", seed=0)
    forget_maps_(wide)
    assert fpe.pack(wide).fpe_packing.rows[0].why == "each input of 4 children once, with its owner"


def test_what_is_not_masked_cannot_be_packed():
    with pytest.raises(ModelError, match="nothing to pack"):
        fpe.pack(fpe.mlp(4, 2, 1))
    with pytest.raises(ModelError, match="nothing in this model is packed"):
        fpe.unpack(fpe.mlp(4, 2, 1))


def test_all_problems_with_formats_are_named_at_once():
    wide = fpe.expand(fpe.mlp(8, 4, 2), 2)
    with pytest.raises(ArgumentError, match="2 problems") as error:
        fpe.pack(wide, format={"0": "block", "hidden": "codes"})
    assert "Did you mean 'blocks'?" in str(error.value)
    assert "no masked layer is called 'hidden'; there are '0', '2'" in str(error.value)
    with pytest.raises(ArgumentError, match="unknown format 'csr'; allowed are 'blocks', 'codes'"):
        fpe.pack(wide, format="csr")


def test_blocks_demanded_of_a_split_without_structure_name_the_alternatives():
    wide = fpe.expand(fpe.mlp(64, 8, 2), 2, split="random")
    before = snapshot(wide)
    with pytest.raises(ModelError, match=r"layer '0'.*'blocks'.*only 49%.*'shared'.*'codes'"):
        fpe.pack(wide, format={"0": "blocks"})
    assert_unchanged(wide, before)


@pytest.mark.parametrize(
    ("format", "why"),
    [
        ("codes", "siblings.*pack it as 'dense'"),
        ("2:4", "more than two are free.*split='2:4'"),
    ],
)
def test_what_a_layer_has_not_cannot_be_demanded(format, why):
    wide = fpe.expand(fpe.mlp(8, 8, 8), 2)
    wide[2].fpe_mask[0, 0] = wide[2].weight.data[0, 0] = 0
    with pytest.raises(ModelError, match=f"layer '2' cannot be packed as {format!r}: .*{why}"):
        fpe.pack(wide, format={"2": format})


def test_the_pattern_two_four_needs_a_gpu():
    wide = fpe.expand(fpe.mlp(8, 8, 2), 2, split="2:4")
    with pytest.raises(ModelError, match=r"layer '0'.*2:4 needs a GPU.*on the CPU.*'codes'"):
        fpe.pack(wide, format={"0": "2:4"})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with 2:4")
def test_the_pattern_two_four_on_a_gpu():
    wide = fpe.expand(fpe.mlp(128, 64, 16), 2, split="2:4").half().cuda()
    packed = fpe.pack(wide)
    assert packed.fpe_packing.rows[0].format == "2:4"
    x = torch.randn(64, 128, device="cuda", dtype=torch.float16)
    torch.testing.assert_close(packed(x), wide(x), rtol=1e-2, atol=1e-2)


def test_a_mask_that_moves_is_refused():
    wide = fpe.expand(fpe.mlp(8, 4, 2), 2)
    wide[0].fpe_mask[0, 0] = 0.5
    with pytest.raises(ModelError, match="the mask of layer '0' holds more than zeros and ones"):
        fpe.pack(wide)


def test_a_type_that_cannot_be_packed_is_refused():
    wide = fpe.expand(fpe.mlp(8, 4, 2), 2).to(torch.complex64)
    with pytest.raises(ModelError, match="complex64 weights; convert it to one of float16"):
        fpe.pack(wide)


@pytest.mark.parametrize("hooked", ["forward", "backward", "parameter"])
def test_hooks_that_packing_would_lose_are_refused(hooked):
    wide = fpe.expand(fpe.mlp(8, 4, 2), 2)
    register = {
        "forward": wide[0].register_forward_pre_hook,
        "backward": wide[0].register_full_backward_hook,
        "parameter": wide[0].weight.register_hook,
    }
    handle = register[hooked](lambda *_: None)
    with pytest.raises(ModelError, match="hook"):
        fpe.pack(wide)
    handle.remove()
    fpe.pack(wide)


def test_masked_weights_of_packed_layers_are_projected():
    wide = fpe.expand(fpe.mlp(20, 6, 3), 2, split="shared", seed=1)
    packed = fpe.pack(wide)
    held = [m for m in packed.modules() if isinstance(m, PackedLayer)]
    assert held
    optimizer = torch.optim.SGD(packed.parameters(), lr=0.1)
    fpe.enforce_masks_(optimizer, packed)
    for parameter in packed.parameters():
        parameter.data.add_(1)
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    back = fpe.unpack(packed)
    assert not back[0].weight[back[0].fpe_mask == 0].any()


def test_frozen_layers_stay_frozen():
    wide = fpe.expand(fpe.mlp(8, 4, 2), 2, split="shared")
    wide[0].weight.requires_grad_(False)
    packed = fpe.pack(wide)
    trained = {name: p.requires_grad for name, p in packed[0].named_parameters()}
    assert trained == {"bias": True, "weight_0": False}
