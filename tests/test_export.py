"""Exported models compute the same elsewhere at any batch size; what cannot be exported is refused."""

import copy
import json
import logging
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import fpe
from fpe.cli.main import main
from fpe.errors import ArgumentError, ModelError
from fpe.graph.inputs import as_call, tensors_in
from fpe.packing.blocks import BlockLayer
from fpe.packing.layers import bytes_of
from fpe.packing.separate import SeparateBlocks, for_onnx
from models import assert_unchanged, forget_maps_, snapshot
from zoo import ZOO, answer


def packed_of(name, split="shared"):
    model, batch = ZOO[name]()
    return fpe.pack(fpe.expand(model, 2, split=split, example_inputs=batch, seed=3)).eval(), batch


def longer(batch, times):
    args, kwargs = as_call(batch)
    return tuple(torch.cat([x] * times) for x in args), {k: torch.cat([v] * times) for k, v in kwargs.items()}


def run_onnx(path, args, kwargs):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    assert names[len(args) :] == list(kwargs)
    given = dict(zip(names, (*args, *kwargs.values()), strict=True))
    return [torch.from_numpy(out) for out in session.run(None, {k: v.numpy() for k, v in given.items()})]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("MLP", "shared"),
        ("MLP", "random"),
        ("CNN-BatchNorm-Flatten", "shared"),
        ("LLaMA", "shared"),
    ],
)
def test_a_packed_model_runs_in_onnx_at_any_batch_size_and_nothing_warns(name, split, tmp_path):
    packed, batch = packed_of(name, split)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = fpe.export(packed, tmp_path / "model.onnx", example_inputs=batch)
    assert written.difference < 1e-4
    assert written.bytes == written.path.stat().st_size
    args, kwargs = longer(batch, 4)
    output = run_onnx(written.path, args, kwargs)[0]
    torch.testing.assert_close(output, answer(packed, kwargs or args).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", ["codes", "dense"])
def test_every_format_runs_in_onnx_and_stays_small(format, tmp_path):
    model = fpe.mlp(256, 128, 10, seed=0)
    packed = fpe.pack(fpe.expand(model, 2, split="random"), format={"0": format})
    written = fpe.export(packed, tmp_path / "model.onnx", example_inputs=torch.randn(3, 256))
    assert written.bytes < bytes_of(packed) + 16_000
    if format != "dense":  # the zeros of the masked model would not fit in there
        assert written.bytes < fpe.expand(model)[0].weight.nbytes


@pytest.mark.parametrize(
    ("split", "keeps_order", "bias", "blocks"),
    [("shared", False, True, 3), ("shared", True, False, 3), ("shared-4", False, True, 12)],
)
def test_each_block_is_a_product_in_onnx_and_stored_once(split, keeps_order, blocks, bias, tmp_path):
    import onnx

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 64, bias=bias), nn.ReLU(), nn.Linear(64, 5))
    wide = fpe.expand(model, 3, split=split, prune="columns", seed=0)
    if keeps_order:  # without a plan the consumers are not known, and outputs are put back
        forget_maps_(wide)
    packed = fpe.pack(wide, format={"0": "blocks"})
    assert (packed[0].restore is not None) == keeps_order
    before = snapshot(packed)
    written = fpe.export(packed[0], tmp_path / "layer.onnx", example_inputs=torch.randn(3, 200))
    assert_unchanged(packed, before)
    operations = [node.op_type for node in onnx.load(written.path).graph.node]
    assert operations.count("Gemm") + operations.count("MatMul") == len(packed[0].sizes) == blocks
    assert written.bytes < bytes_of(packed[0]) + 6000 + 1000 * blocks  # the weights take 38,000
    x = torch.randn(7, 200)
    torch.testing.assert_close(
        run_onnx(written.path, (x,), {})[0], packed[0](x).detach(), rtol=1e-4, atol=1e-5
    )


def test_a_model_of_separate_blocks_shares_all_but_their_weights():
    packed, x = packed_of("MLP")
    own = for_onnx(packed)
    (layer,) = (module for module in own.modules() if isinstance(module, SeparateBlocks))
    assert type(packed[0]) is BlockLayer
    assert type(own[0]) is SeparateBlocks
    assert own[-1].weight is packed[-1].weight
    torch.testing.assert_close(answer(own, x), answer(packed, x))
    torch.testing.assert_close(layer.weight, packed[0].weight)
    plain = nn.Linear(3, 2)
    assert for_onnx(plain) is plain


@pytest.mark.parametrize(("name", "split"), [("MLP", "random"), ("CNN-BatchNorm-Flatten", "shared")])
def test_an_archive_comes_back_and_takes_any_batch_size(name, split, tmp_path):
    packed, batch = packed_of(name, split)
    written = fpe.export(packed, tmp_path / "model.pt2", example_inputs=batch)
    args, kwargs = longer(batch, 3)
    again = torch.export.load(written.path).module()(*args, **kwargs)
    torch.testing.assert_close(again[0], answer(packed, kwargs or args))


@pytest.mark.parametrize("kind", ["dense", "masked", "packed", "compiled"])
def test_the_model_is_left_as_it_was(kind, tmp_path):
    model, batch = ZOO["CNN-BatchNorm-Flatten"]()
    wide = fpe.expand(model, example_inputs=batch)
    made = {"dense": model, "masked": wide, "packed": fpe.pack(wide), "compiled": wide}[kind].train()
    given = torch.compile(made) if kind == "compiled" else made
    hook = made[0].register_forward_hook(lambda *_: None)
    before, state = snapshot(made), torch.get_rng_state()
    level = logging.getLogger("torch.onnx").level
    fpe.export(given, tmp_path / "model.pt2", example_inputs=batch)
    assert_unchanged(made, before)
    assert made.training
    assert made[0].training
    assert list(made[0]._forward_hooks) == [hook.id]
    assert torch.equal(torch.get_rng_state(), state)
    assert logging.getLogger("torch.onnx").level == level


def test_one_sample_is_enough_for_any_batch_size(tmp_path):
    packed, x = packed_of("MLP")
    fpe.export(packed, tmp_path / "model.pt2", example_inputs=x[:1])
    assert torch.export.load(tmp_path / "model.pt2").module()(x)[0].shape == (4, 3)


def test_an_archive_does_not_contain_the_data_that_its_example_is_a_part_of(tmp_path):
    data = torch.randn(100_000, 8)
    assert (
        fpe.export(packed_of("MLP")[0], tmp_path / "model.pt2", example_inputs=data[:3]).bytes
        < data.nbytes / 10
    )


class TimeFirst(nn.Module):
    """A recurrent network that may be given its first states, whose batch is in the middle."""

    def __init__(self, batch_first=False):
        super().__init__()
        self.recurrent = nn.LSTM(5, 8, batch_first=batch_first)
        self.hidden, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x, states=None):
        return self.head(torch.relu(self.hidden(self.recurrent(x, states)[0])))


def states(rows):
    return torch.randn(1, rows, 8), torch.randn(1, rows, 8)


#: A model, batches of 4 and of 7 rows, where the batch is, and the axes that are reported.
ELSEWHERE = {
    "time first": (TimeFirst(), [(torch.randn(6, n, 5),) for n in (4, 7)], 1, {"x": [1]}),
    "states": (
        TimeFirst(True),
        [(torch.randn(n, 6, 5), states(n)) for n in (4, 7)],
        {"states": 1},
        {"x": [0], "states": [1]},
    ),
    "all in the middle": (
        TimeFirst(),
        [(torch.randn(6, n, 5), states(n)) for n in (4, 7)],
        -2,
        {"x": [1], "states": [1]},
    ),
    "no batch": (nn.Linear(8, 3), [(torch.randn(8),)], None, {"input": []}),
}


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_batch_may_be_on_any_axis_or_on_none(name, suffix, tmp_path):
    model, batches, axis, told = ELSEWHERE[name]
    path = tmp_path / f"m.{suffix}"
    written = fpe.export(model, path, example_inputs=batches[0], batch_axis=axis)
    assert written.dynamic == told
    for batch in batches:
        if suffix == "pt2":
            (own,) = torch.export.load(path).module()(*batch)
        else:
            flat = [tensor for part in batch for tensor in (part if isinstance(part, tuple) else (part,))]
            (own,) = run_onnx(path, flat, {})
        torch.testing.assert_close(own, model(*batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_an_axis_that_is_not_the_batch_is_refused_with_what_was_taken(name, tmp_path):
    model, batches, _, told = ELSEWHERE[name]
    with pytest.raises(ModelError, match="batch_axis") as error:
        fpe.export(model, tmp_path / "m.pt2", example_inputs=batches[0])
    assert all(f"axis 0 of {name!r}" in str(error.value) for name in told)
    assert "TORCH_LOGS" not in str(error.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("axis", "reason"),
    [(3, "has 3 axes"), ({"y": 1}, "no input|inputs are 'x'"), ("1", "integer"), ({"x": True}, "integer")],
)
def test_axes_and_inputs_that_there_are_not_are_refused(axis, reason, tmp_path):
    with pytest.raises(ArgumentError, match=reason):
        fpe.export(TimeFirst(), tmp_path / "m.pt2", example_inputs=torch.randn(6, 4, 5), batch_axis=axis)


def test_a_batch_of_another_type_is_refused_with_both_types(tmp_path):
    with pytest.raises(ArgumentError, match="batch is float32 and the model float64"):
        fpe.export(
            fpe.mlp(8, 4, 2, dtype=torch.float64), tmp_path / "m.pt2", example_inputs=torch.randn(3, 8)
        )
    assert fpe.export(
        fpe.mlp(8, 4, 2, dtype=torch.float64), tmp_path / "m.pt2", example_inputs=torch.randn(3, 8).double()
    )


def test_the_command_is_reported_where_the_batch_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "timefirst.py").write_text(
        "import torch\nfrom test_export import TimeFirst\n"
        "def both():\n    return TimeFirst(), torch.randn(6, 4, 5)\n"
    )
    fpe.save(fpe.expand(TimeFirst(), 2, example_inputs=torch.randn(6, 4, 5)), "wide.safetensors")
    like = ("wide.safetensors", "m.pt2", "--like", "timefirst:both")
    refused = run(*like)
    assert refused.exit_code == 1
    assert "--batch-axis" in refused.stderr
    assert "Traceback" not in refused.stderr
    for given in (["1"], ["x=1"]):
        done = run(*like, *(f"--batch-axis={value}" for value in given), "--json")
        assert json.loads(done.output)["dynamic"] == {"x": [1]}
    for given in (["a"], ["x=b"], ["1", "x=1"]):
        assert run(*like, *(f"--batch-axis={value}" for value in given)).exit_code == 2


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_exporting_leaves_the_process_as_it_was(suffix, tmp_path, capfd):
    """Logging, filters of warnings and the standard streams; also where it fails."""
    fpe.export(
        fpe.mlp(8, 4, 2), tmp_path / f"m.{suffix}", example_inputs=torch.randn(3, 8)
    )  # loads what it needs
    capfd.readouterr()

    def state():
        loggers = [logging.root, *logging.root.manager.loggerDict.values()]
        found = {
            x.name: (x.level, x.disabled, x.propagate, list(x.handlers))
            for x in loggers
            if hasattr(x, "level")
        }
        filters = list(warnings.filters)
        return found, logging.root.manager.disable, filters, sys.stdout, sys.stderr, torch.is_grad_enabled()

    before = state()
    fpe.export(fpe.mlp(8, 4, 2), tmp_path / f"m.{suffix}", example_inputs=torch.randn(3, 8))
    with pytest.raises(ModelError):
        fpe.export(TimeFirst(), tmp_path / f"n.{suffix}", example_inputs=torch.randn(6, 4, 5))
    assert state() == before
    assert capfd.readouterr() == ("", "")


class TwoBatches(nn.Module):
    """Reads pairs of rows with a table that is the same for all, and flags."""

    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, left, right, table, *, negative=False):
        out = self.head(self.hidden(left + table).relu()) + right
        return {"scores": -out if negative else out}


def test_inputs_and_outputs_keep_their_names_and_flags_are_fixed(tmp_path):
    import onnxruntime

    model = TwoBatches().eval()
    batch = {"left": torch.randn(4, 8), "right": torch.randn(4, 3), "table": torch.randn(1, 8)}
    fpe.export(model, tmp_path / "model.onnx", example_inputs={**batch, "negative": True})
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [(i.name, i.shape) for i in session.get_inputs()] == [
        ("left", ["batch", 8]),
        ("right", ["batch", 3]),
        ("table", [1, 8]),
    ]
    assert [o.name for o in session.get_outputs()] == ["scores"]
    (out,) = run_onnx(tmp_path / "model.onnx", (), batch)
    torch.testing.assert_close(out, model(**batch, negative=True)["scores"].detach())


def test_a_model_of_transformers_needs_no_batch_and_returns_no_cache(tmp_path):
    packed, batch = packed_of("GPT-2")
    fpe.export(packed, tmp_path / "model.pt2")
    args, kwargs = longer(batch, 3)
    (own,) = torch.export.load(tmp_path / "model.pt2").module()(*args, **kwargs)
    outputs = packed(*args, **kwargs)
    torch.testing.assert_close(own, outputs.logits)
    assert len(tensors_in(outputs)) > 1


def test_texts_of_any_length_go_through(tmp_path):
    packed, _ = packed_of("BERT", "random")
    fpe.export(packed, tmp_path / "model.onnx")
    tokens = torch.randint(3, 30, (3, 11))
    output = run_onnx(tmp_path / "model.onnx", (), {"input_ids": tokens})[0]
    torch.testing.assert_close(output, packed(tokens).logits.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "name", "batch", "message"),
    [
        (
            fpe.mlp(8, 4, 2),
            "m.pb",
            torch.ones(2, 8),
            r"'.pb'; allowed are .onnx, .pt2",
        ),
        (7, "m.pt2", torch.ones(2, 8), "model is a int"),
        (fpe.mlp(8, 4, 2), "m.pt2", None, "example_inputs is missing"),
        (
            fpe.mlp(8, 4, 2),
            "m.pt2",
            torch.ones(0, 8),
            "no tensor with rows",
        ),
    ],
)
def test_bad_arguments_are_reported(model, name, batch, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match=message):
        fpe.export(model, name, example_inputs=batch)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ArgumentError) as error:
        fpe.export(fpe.mlp(8, 4, 2), tmp_path / "m.onnx", example_inputs=torch.ones(2, 8))
    assert "onnx and onnxscript" in str(error.value)
    assert "[onnx]" in str(error.value)


def test_without_onnxruntime_the_file_is_written_and_not_checked(tmp_path, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    hidden = {"onnxruntime": lambda name: None}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: hidden.get(name, find)(name))
    written = fpe.export(fpe.mlp(8, 4, 2), tmp_path / "m.onnx", example_inputs=torch.ones(2, 8))
    assert written.difference is None
    said = f"{written.bytes:,} bytes, not checked; axis 0 of 'input' may have any length"
    assert str(written) == f"{tmp_path / 'm.onnx'}  {said}"


def test_a_model_too_large_for_onnx_is_refused_before_anything_is_done(tmp_path):
    with torch.device("meta"):
        model = fpe.mlp(20_000, 30_000, 2)
    with pytest.raises(ModelError) as error:
        fpe.export(model, tmp_path / "m.onnx", example_inputs=torch.ones(2, 20_000))
    assert "2,400,360,008 bytes" in str(error.value)
    assert "export it as .pt2" in str(error.value)


def test_what_torch_cannot_export_is_reported_with_the_cause_and_nothing_else(tmp_path, capfd):
    model, batch = ZOO["Mixtral-style experts"]()
    with pytest.raises(ModelError) as error:
        fpe.export(
            fpe.pack(fpe.expand(model, example_inputs=batch)), tmp_path / "m.pt2", example_inputs=batch
        )
    assert str(error.value).startswith(
        "torch cannot export this Experts with a dynamic batch: GuardOnDataDependentSymNode: Could not"
    )
    assert error.value.__cause__ is not None
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_what_onnx_cannot_express_is_reported(tmp_path):
    class Odd(nn.Linear):
        def forward(self, x):
            return torch.special.bessel_j0(super().forward(x))

    with pytest.raises(ModelError, match=r"cannot write this Odd as ONNX: .*bessel_j0.*; \.pt2 may do\."):
        fpe.export(Odd(8, 2), tmp_path / "m.onnx", example_inputs=torch.ones(2, 8))
    assert fpe.export(Odd(8, 2), tmp_path / "m.pt2", example_inputs=torch.ones(2, 8)).difference == 0


class Once(nn.Module):
    """Adds an amount that is fixed when it is exported."""

    def __init__(self):
        super().__init__()
        self.layer, self.amount = nn.Linear(8, 2), 1.0

    def forward(self, x):
        if not torch.compiler.is_exporting():
            self.amount = self.amount + 1
        return self.layer(x) + self.amount


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_file_that_computes_something_else_is_not_left(suffix, tmp_path):
    path = tmp_path / f"m.{suffix}"
    path.write_text("old")
    model = Once()
    with pytest.raises(ModelError) as error:
        fpe.export(model, path, example_inputs=torch.ones(2, 8))
    assert "e+00, more than rounding; no file was written. A model that draws random" in str(error.value)
    assert str(error.value).startswith("what was exported differs from the model by ")
    assert model.amount == 1.0
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "old"


COMPILED = [("shared", None), ("random", None), ("random", "dense")]


@pytest.mark.parametrize(("split", "format"), COMPILED)
def test_packed_models_compile_whole_forward_and_backward(split, format):
    torch._dynamo.reset()
    packed = fpe.pack(fpe.expand(fpe.mlp(16, 6, 3, seed=0), 2, split=split), format=format)
    same, x = copy.deepcopy(packed), torch.randn(5, 16)
    compiled = torch.compile(packed, fullgraph=True)
    for model in (compiled, same):
        model(x).square().sum().backward()
    for own, other in zip(packed.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-5)
    optimizer = torch.optim.SGD(packed.parameters(), lr=0.1)
    optimizer.step()
    assert fpe.count_nonzero(fpe.unpack(packed)) == fpe.count_nonzero(packed)
    wide = fpe.unpack(packed)
    assert all((m.weight[m.fpe_mask == 0] == 0).all() for m in wide if isinstance(m, fpe.MaskedLayer))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), packed(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["CNN-BatchNorm-Flatten", "LLaMA"])
def test_packed_models_of_other_kinds_compile_whole(name):
    torch._dynamo.reset()
    packed, batch = packed_of(name)
    compiled = torch.compile(packed, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(answer(compiled, batch), answer(packed, batch), rtol=1e-4, atol=1e-5)


def run(*arguments):
    return CliRunner().invoke(main, ["export", *map(str, arguments)], prog_name="fpe")


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "wide.safetensors"
    fpe.save(fpe.expand(fpe.mlp(64, 32, 10, seed=0), split="shared"), path)
    return path


def test_the_command_packs_and_says_what_it_wrote(saved, tmp_path):
    out = tmp_path / "model.onnx"
    done = run(saved, out)
    assert done.exit_code == 0, done.output
    wide = fpe.load(saved)
    first, second, axes, third = done.output.splitlines()
    assert axes == "  axis 0 of 'input' may have any length"
    assert first == f"{out}  {out.stat().st_size:,} bytes"
    assert second == f"  non-zeros of the model: {fpe.count_nonzero(wide):,}, of 9,640 bytes"
    assert third.startswith("  largest difference of outputs: ")
    assert float(third.split()[-1]) < 1e-4
    x = torch.randn(7, 64)
    torch.testing.assert_close(run_onnx(out, (x,), {})[0], wide(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packing", [True, False])
def test_no_pack_keeps_the_zeros_or_brings_them_back(packing, saved, tmp_path):
    fpe.save(fpe.pack(fpe.load(saved)), tmp_path / "packed.safetensors")
    sizes = []
    for file in (saved, tmp_path / "packed.safetensors"):
        done = run(file, tmp_path / "m.pt2", "--json", *([] if packing else ["--no-pack"]))
        record = json.loads(done.output)
        assert record["nonzero"] == fpe.count_nonzero(fpe.load(saved))
        program = torch.export.load(tmp_path / "m.pt2")
        sizes.append(sum(t.nbytes for t in program.state_dict.values()))
    wanted = fpe.load(tmp_path / "packed.safetensors" if packing else saved)
    assert sizes == [bytes_of(wanted)] * 2


def test_the_command_takes_the_architecture_from_code_or_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "netsofmine.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def alone():\n    return nn.Sequential(nn.Linear(8, 4), nn.ELU(), nn.Linear(4, 2))\n"
        "def both():\n    return alone(), torch.ones(3, 8)\n"
    )
    model = nn.Sequential(nn.Linear(8, 4), nn.ELU(), nn.Linear(4, 2))
    fpe.save(fpe.expand(model), "wide.safetensors")
    assert run("wide.safetensors", "m.pt2", "--like", "netsofmine:both").exit_code == 0
    alone = run("wide.safetensors", "n.pt2", "--like", "netsofmine:alone")
    assert (alone.exit_code, alone.stderr) == (
        2,
        "Error: nothing says what the model in wide.safetensors takes; let --like name a callable that "
        "returns a model and a batch.\n",
    )
    unknown = run("wide.safetensors", "n.pt2")
    assert (unknown.exit_code, unknown.stderr[:62]) == (
        2,
        "Error: wide.safetensors does not say how its Sequential is bui",
    )
    bert, _ = ZOO["BERT"]()
    bert.save_pretrained("bert")
    fpe.save(fpe.expand(bert), "bert.safetensors")
    done = run("bert.safetensors", "bert.pt2", "--like", "bert", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["difference"] < 1e-4


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.safetensors", "m.pt2"], 1, "there is no file none.safetensors; give the path of a file"),
        (["{saved}", "m.txt"], 2, "m.txt ends in '.txt'; allowed are .onnx, .pt2 (torch.export) and .c."),
        (["{saved}", "m.pt2", "--int8", "--no-pack"], 2, "--int8 is for packed models; leave out --no-pack."),
    ],
)
def test_the_command_says_what_is_wrong(arguments, code, message, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*(saved if a == "{saved}" else a for a in arguments))
    assert done.exit_code == code
    assert done.stderr.startswith(f"Error: {message}")
    assert [p.name for p in tmp_path.iterdir()] == [saved.name]


def test_help_shows_an_example():
    assert "\n    fpe export wide.safetensors model.pt2 --like" in run("--help").output


def test_a_file_that_the_model_misses_is_not_the_one_to_be_written(tmp_path):
    class Reads(nn.Module):
        def forward(self, x):
            return x + len((tmp_path / "absent").read_bytes()) if torch.compiler.is_exporting() else x

    with pytest.raises(ModelError, match="absent"):
        fpe.export(Reads(), tmp_path / "model.pt2", example_inputs=torch.randn(2, 3))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_hls4ml_reads_onnx_and_its_emulation_agrees(tmp_path):
    pytest.importorskip("hls4ml")
    pytest.importorskip("qonnx.util.cleanup")
    program = Path(__file__).parents[1] / "examples" / "fpga.py"
    ran = subprocess.run([sys.executable, program, tmp_path], capture_output=True, text=True, check=True)
    assert float(ran.stdout.splitlines()[-1].removeprefix("largest difference: ")) < 1e-5
