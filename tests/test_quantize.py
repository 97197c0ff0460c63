"""int8 through torchao: a copy, zeros stay zeros, outputs stay near; a missing torchao is named."""

import importlib.util
import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import fpe
from fpe.cli.main import main
from fpe.errors import ArgumentError, ModelError
from models import assert_unchanged, snapshot
from zoo import ZOO, answer

is_there = importlib.util.find_spec("torchao") is not None
needs_torchao = pytest.mark.skipif(not is_there, reason="torchao is not installed (extra int8)")
METHODS = [
    ("shared", "magnitude", None),
    ("shared", "columns", None),
    ("random", "magnitude", None),
    ("random", "magnitude", "dense"),
]


@pytest.fixture(params=METHODS, ids=str)
def packed(request):
    split, prune, format = request.param
    wide = fpe.expand(fpe.mlp(64, 12, 5, seed=0), 2, split=split, prune=prune)
    return fpe.pack(wide, format=format)


@needs_torchao
@pytest.mark.parametrize("activations", [False, True])
def test_a_quantized_copy_is_near_and_the_packed_model_left_alone(packed, activations):
    before = snapshot(packed)
    quantized = fpe.quantize(packed, activations=activations)
    assert_unchanged(packed, before)
    x = torch.randn(6, 64)
    error = (quantized(x) - packed(x)).abs().max() / packed(x).abs().max()
    assert 0 < error < 0.03
    assert not quantized.training
    assert not any(parameter.requires_grad for parameter in quantized.parameters())


@needs_torchao
def test_zeros_stay_exactly_zero_and_other_weights_are_within_half_a_step(packed):
    wide, rounded = fpe.unpack(packed), fpe.unpack(fpe.quantize(packed))
    for layer, own in zip(wide, rounded, strict=True):
        if not isinstance(layer, fpe.MaskedLayer):
            continue
        assert torch.equal(layer.fpe_mask, own.fpe_mask)
        assert (own.weight[own.fpe_mask == 0] == 0).all()
        step = layer.weight.abs().amax(1, keepdim=True) / 127
        assert ((layer.weight - own.weight).abs() <= 0.51 * step).all()
        assert torch.equal(layer.bias, own.bias)
    assert fpe.count_nonzero(fpe.quantize(packed)) == fpe.count_nonzero(packed)


@needs_torchao
def test_blocks_take_a_quarter_of_their_bytes():
    packed = fpe.pack(fpe.expand(fpe.mlp(512, 128, 10), 2, split="shared", prune="columns"))
    assert fpe.quantize(packed)[0].nbytes < 0.27 * packed[0].nbytes


@needs_torchao
@pytest.mark.parametrize("name", ["CNN-BatchNorm-Flatten", "GPT-2", "LLaMA"])
def test_models_of_other_kinds_are_quantized(name):
    model, batch = ZOO[name]()
    packed = fpe.pack(fpe.expand(model, 2, split="shared", example_inputs=batch)).eval()
    quantized = fpe.quantize(packed)
    assert 0 < (answer(quantized, batch) - answer(packed, batch)).abs().max() < 0.03
    unpacked = fpe.unpack(quantized)
    torch.testing.assert_close(answer(unpacked, batch), answer(quantized, batch), rtol=1e-3, atol=1e-4)


@needs_torchao
def test_quantized_models_are_exported_and_not_saved(packed, tmp_path):
    quantized = fpe.quantize(packed)
    written = fpe.export(quantized, tmp_path / "m.onnx", example_inputs=torch.randn(3, 64))
    assert written.difference < 1e-4
    both = fpe.quantize(packed, activations=True)
    assert fpe.export(both, tmp_path / "m.pt2", example_inputs=torch.randn(3, 64)).difference < 1e-4
    with pytest.raises(ModelError, match=r"cannot write this Sequential as ONNX: .*_int_mm.*\.pt2 may do"):
        fpe.export(both, tmp_path / "n.onnx", example_inputs=torch.randn(3, 64))
    with pytest.raises(ArgumentError, match=r"'0.linears.0.weight' is a Int8Tensor"):
        fpe.save(quantized, tmp_path / "m.safetensors")


@needs_torchao
def test_the_command_quantizes(tmp_path):
    fpe.save(fpe.expand(fpe.mlp(256, 64, 10, seed=0), split="shared"), tmp_path / "w.safetensors")
    sizes = []
    for extra in ([], ["--int8"]):
        arguments = ["export", str(tmp_path / "w.safetensors"), str(tmp_path / "m.onnx"), *extra]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
        sizes.append((tmp_path / "m.onnx").stat().st_size)
    assert sizes[1] < 0.5 * sizes[0]


LIKE = """
import fpe, torch
def given():
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
    return fpe.mlp(32, 12, 5), x * torch.logspace(-3, 3, 32)
"""


@needs_torchao
@pytest.mark.parametrize("folded", [False, True])
def test_the_command_says_what_int8_changes_to_the_model_before_it(folded, tmp_path, monkeypatch):
    """Features of very different sizes: rounding shows where the first layer's weights differ as much."""
    network = fpe.mlp(32, 12, 5, seed=0, standardize=True)
    network.scaler.scale.copy_(torch.logspace(-3, 3, 32))
    if folded:
        with torch.no_grad():
            network.get_submodule("0").weight.div_(network.scaler.scale)
        network = nn.Sequential(*network[1:])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rowsofmine.py").write_text(LIKE)
    fpe.save(fpe.expand(network, split="shared"), "wide.safetensors")
    arguments = ["export", "wide.safetensors", "m.pt2", "--int8"]
    arguments += ["--like", "rowsofmine:given"] if folded else []
    told = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).output)
    rounding, rows = told["rounding"], 200 if folded else 1000
    x = torch.randn(rows, 32, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 32)
    wanted = fpe.load("wide.safetensors")(x).detach()
    (own,) = torch.export.load("m.pt2").module()(x)
    assert rounding["difference"] == pytest.approx(float((own - wanted).abs().max()), rel=1e-3)
    assert rounding["changed"] == pytest.approx(float((own.argmax(1) != wanted.argmax(1)).double().mean()))
    assert (rounding["rows"], rounding["made_up"]) == (rows, not folded)
    assert (rounding["difference"] > 0.03 * rounding["largest"]) is folded
    assert told["difference"] < 1e-4 * rounding["largest"]
    said = CliRunner().invoke(main, arguments).output
    assert f"before int8: {rounding['difference']:.1e}" in said
    assert f"{rounding['changed']:.1%} of {rows:,} {'given' if folded else 'random'} rows" in said


@needs_torchao
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (fpe.expand(fpe.mlp(8, 4, 2)), "layer '0' is masked; pack first"),
        (nn.Conv1d(8, 4, 1), "no linear layer"),
    ],
)
def test_what_cannot_be_quantized_is_said(model, message):
    with pytest.raises(ModelError, match=message):
        fpe.quantize(model)


def test_a_missing_torchao_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match="int8 needs torchao: pip install"):
        fpe.quantize(fpe.mlp(8, 4, 2))
