"""Packed models are saved and come back as they were; files of fpe.mlp say how their model is built."""

import json
from collections import OrderedDict

import pytest
import torch
from safetensors import safe_open
from torch import nn

import fpe
from fpe.errors import ArgumentError, BudgetError, CheckpointError
from fpe.models import mlp_sizes
from fpe.packing.layers import bytes_of
from models import same_values
from old_files import save_as
from zoo import ZOO, answer

METHODS = [("shared", "magnitude"), ("random", "magnitude"), ("shared", "columns")]
#: Where whole inputs can be pruned: the consumers are smaller than the producers.
COLUMNS = ["MLP", "LLaMA", "Mixtral-style experts", "LSTM head", "CNN-BatchNorm-Flatten", "U-Net-like skip"]
CASES = [
    (name, *method)
    for name in ZOO
    for method in METHODS
    if name != "Mixtral" and (method[1] == "magnitude" or name in COLUMNS)
]


def manifest_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["fpe"])


@pytest.mark.parametrize("format", [None, "dense"])
@pytest.mark.parametrize(("name", "split", "prune"), CASES)
def test_what_is_loaded_is_what_was_packed(name, split, prune, format, tmp_path):
    """Also bit for bit in the outputs, and back to the masked model."""
    model, batch = ZOO[name]()
    wide = fpe.expand(model, 2, split=split, prune=prune, example_inputs=batch).eval()
    packed = fpe.pack(wide, format=format)
    fpe.save(packed, tmp_path / "packed.safetensors")
    again = fpe.load(tmp_path / "packed.safetensors", like=model.eval())
    assert same_values(again, packed)
    assert [type(m) for m in again.modules()] == [type(m) for m in packed.modules()]
    assert torch.equal(answer(again, batch), answer(packed, batch))
    assert (again.fpe_plan, again.fpe_packing) == (packed.fpe_plan, packed.fpe_packing)
    unpacked, state = fpe.unpack(again).state_dict(), wide.state_dict()
    assert unpacked.keys() == state.keys()
    assert all(torch.equal(unpacked[key], state[key]) for key in state)  # -0.0 may have become 0.0


def test_columns_cannot_be_pruned_in_the_other_models():
    """So that the table above leaves out nothing that could be tested."""
    for name in set(ZOO) - {"Mixtral", *COLUMNS}:
        model, batch = ZOO[name]()
        with pytest.raises(BudgetError):
            fpe.expand(model, 2, split="shared", prune="columns", example_inputs=batch)


@pytest.mark.parametrize(("split", "prune"), METHODS)
def test_the_file_is_no_larger_than_the_packed_model(split, prune, tmp_path):
    """And where zeros are stored in memory, they are not in the file."""
    packed = fpe.pack(fpe.expand(fpe.mlp(384, 64, 77, seed=0), 2, split=split, prune=prune))
    path = tmp_path / "packed.safetensors"
    fpe.save(packed, path)
    buffers = sum(buffer.nbytes for buffer in packed.buffers())
    free = 4 * fpe.count_nonzero(packed)
    assert free + buffers < path.stat().st_size < free + buffers + 3000
    assert path.stat().st_size < bytes_of(packed) + 3000


def test_a_packed_model_trains_on_as_the_saved_one_would(tmp_path):
    model, x = ZOO["MLP"]()
    model[0].bias.requires_grad_(False)
    packed = fpe.pack(fpe.expand(model, split="shared"))
    fpe.save(packed, tmp_path / "packed.safetensors")
    again = fpe.load(tmp_path / "packed.safetensors", like=model)
    for net in (packed, again):
        optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    assert torch.equal(packed(x), again(x))
    assert not again[0].bias.requires_grad
    assert fpe.count_nonzero(fpe.unpack(again)) == fpe.count_nonzero(model)


def test_the_type_of_a_packed_file_is_kept(tmp_path):
    packed = fpe.pack(fpe.expand(ZOO["MLP"]()[0].bfloat16()))
    fpe.save(packed, tmp_path / "packed.safetensors")
    assert same_values(fpe.load(tmp_path / "packed.safetensors", like=ZOO["MLP"]()[0]), packed)


@pytest.mark.parametrize(
    ("split", "prune", "format"),
    [("shared", "columns", None), ("shared", "magnitude", None), ("random", "magnitude", "dense")],
)
@pytest.mark.parametrize("number", [3, 5])
def test_a_packed_file_of_an_earlier_format_is_read(number, split, prune, format, tmp_path):
    """Zero positions had another name in format 3, and small integers fewer bits."""
    packed = fpe.pack(
        fpe.expand(fpe.mlp(240, 8, 2, seed=2), 3, split=split, prune=prune, seed=2), format=format
    )
    assert any("zero_positions" in name for name in packed.state_dict())
    if format is None and number == 3:
        packed[0].rows = packed[0].rows.to(torch.int16)
        packed[0].columns = packed[0].columns.to(torch.int16)
    path = tmp_path / "packed.safetensors"
    save_as(packed, path, number)
    again = fpe.load(path)
    assert same_values(again, packed)
    x = torch.randn(3, 240)
    assert torch.equal(again(x), packed(x))
    assert fpe.count_nonzero(fpe.unpack(again)) == fpe.count_nonzero(fpe.unpack(packed))


def test_a_format_that_fpe_no_longer_has_is_refused_by_name(tmp_path):
    path = tmp_path / "packed.safetensors"
    packed = fpe.pack(fpe.expand(fpe.mlp(8, 4, 2)))
    packed[0].format = "bitmask"
    fpe.save(packed, path)
    with pytest.raises(CheckpointError, match="'0' is packed as 'bitmask', a format that fpe no longer has"):
        fpe.load(path)


@pytest.mark.parametrize(
    ("like", "reason"),
    [
        (nn.Sequential(nn.Conv1d(8, 4, 1), nn.ReLU(), nn.Linear(4, 2)), "'0' is a Conv1d and was a linear"),
        (nn.Sequential(nn.Linear(8, 4), nn.ReLU()), "another architecture"),
        (nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2), nn.Linear(2, 2)), r"Missing.*3\.bias"),
    ],
)
def test_a_packed_file_refuses_another_architecture(like, reason, tmp_path):
    fpe.save(fpe.pack(fpe.expand(fpe.mlp(8, 4, 2))), tmp_path / "packed.safetensors")
    with pytest.raises(CheckpointError, match=reason):
        fpe.load(tmp_path / "packed.safetensors", like=like)


@pytest.mark.parametrize("hidden", [4, [6], [6, 4]])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("packing", [False, True])
def test_what_mlp_built_is_loaded_from_its_file_alone(hidden, standardize, packing, tmp_path):
    network = fpe.mlp(16, hidden, 3, dtype=torch.float64, standardize=standardize)
    for buffer in network.buffers():
        buffer.add_(torch.rand(16))
    wide = fpe.expand(network, split="shared")
    saved = fpe.pack(wide) if packing else wide
    fpe.save(saved, tmp_path / "file.safetensors")
    state = torch.get_rng_state()
    again = fpe.load(tmp_path / "file.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert same_values(again, saved)
    assert again.fpe_plan == saved.fpe_plan


OTHERS = [
    nn.Sequential(nn.Linear(8, 4), nn.ELU(), nn.Linear(4, 2)),
    nn.Sequential(nn.Linear(8, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)),
    nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2)),
    nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU()),
    nn.Sequential(nn.Linear(8, 4), nn.Sequential(nn.ReLU()), nn.Linear(4, 2)),
    nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(5, 2)),
    nn.Sequential(*fpe.mlp(8, [4, 4], 2)[:1], nn.LayerNorm(4, eps=1e-3), *fpe.mlp(8, [4, 4], 2)[2:]),
    nn.Sequential(nn.Conv1d(8, 4, 1), nn.ReLU(), nn.Conv1d(4, 2, 1)),
    nn.Sequential(*fpe.mlp(8, 4, 2, standardize=True)),
    nn.Sequential(OrderedDict(a=nn.Linear(8, 4), b=nn.ReLU(), c=nn.Linear(4, 2))),
    ZOO["LSTM head"]()[0],
]


@pytest.mark.parametrize("model", OTHERS)
def test_other_models_are_not_taken_for_one_of_mlp(model):
    assert mlp_sizes(model) is None


def test_sizes_are_those_that_mlp_was_given():
    sizes = {"inputs": 8, "hidden": [4, 6], "outputs": 2}
    assert mlp_sizes(fpe.mlp(**sizes)) == sizes
    assert mlp_sizes(fpe.mlp(**sizes, standardize=True)) == {**sizes, "standardize": True}
    assert mlp_sizes(fpe.mlp(8, 4, 2)) == {"inputs": 8, "hidden": 4, "outputs": 2}
    assert mlp_sizes(fpe.mlp(**sizes, activation="gelu")) == {**sizes, "activation": "gelu"}
    rounded = nn.Sequential(nn.Linear(8, 4), nn.GELU("tanh"), nn.Linear(4, 2))
    assert mlp_sizes(rounded) is None


def test_a_file_that_does_not_say_how_its_model_is_built_asks_for_like(tmp_path):
    path = tmp_path / "file.safetensors"
    fpe.save(fpe.expand(OTHERS[0]), path)
    with pytest.raises(ArgumentError, match=r"does not say how its Sequential is built.*like="):
        fpe.load(path)


def test_a_layer_packed_as_two_four_is_refused_with_what_to_save(tmp_path):
    """A tensor of the GPU's kind, made here from its parts."""
    kind = torch.sparse.SparseSemiStructuredTensorCUTLASS
    weight = kind(torch.Size((32, 64)), torch.ones(32, 32), torch.ones(32, 4), None, None, None)
    model = fpe.pack(fpe.expand(fpe.mlp(64, 16, 3)))
    model[0] = nn.Linear(64, 32)
    model[0].weight = nn.Parameter(weight, requires_grad=False)
    with pytest.raises(ArgumentError, match=r"'0.weight' is packed as 2:4.*save the masked model"):
        fpe.save(model, tmp_path / "packed.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["MLP", "CNN-BatchNorm-Flatten", "GPT-2", "LLaMA"])
def test_the_summary_of_a_packed_model_counts_its_bytes(name):
    model, batch = ZOO[name]()
    wide = fpe.expand(model, 2, split="shared", example_inputs=batch)
    packed = fpe.pack(wide)
    total = fpe.summary(model, packed).total
    assert total.nonzero == (fpe.count_nonzero(model),) * 2
    assert total.bytes[1] <= bytes_of(packed)
    assert total.bytes[1] < fpe.summary(model, wide).total.bytes[1]
    assert total.neurons == fpe.summary(model, wide).total.neurons
