"""C code computes what the model computes, compiles without warnings, and stores non-zeros alone."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.exceptions import NotFittedError
from torch import nn
from torch.nn.utils import prune

import fpe
from fpe.cli.main import main
from fpe.errors import ArgumentError, ModelError
from fpe.io.c import export as c_export
from fpe.io.c.source import _HALF
from fpe.io.c.text import c_string, identifier
from fpe.models import Standardize
from fpe.sklearn import FPEClassifier, FPERegressor
from models import assert_unchanged, snapshot

COMPILER = next(filter(None, map(shutil.which, c_export.COMPILERS)), None)
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-O2", "-pedantic")
compiled = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")


def compile_c(folder, *arguments):
    done = subprocess.run([COMPILER, *STRICT, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run(path):
    return subprocess.run([path], capture_output=True, text=True)


def call(path, statement, rows):
    """Run a statement of C on rows at ``x``, each of which prints one line; return the lines."""
    inputs = rows.shape[1]
    numbers = ", ".join(f"{float(v):.9g}" for v in np.float32(rows).reshape(-1))
    (path.parent / "call.c").write_text(
        f'#include <stdio.h>\n#include "{path.stem}.h"\nstatic const double rows[] = {{{numbers}}};\n'
        f"int main(void) {{ float x[{inputs}]; for (int i = 0; i < {len(rows)}; i++) {{\n"
        f"for (int j = 0; j < {inputs}; j++) x[j] = (float)rows[i * {inputs} + j];\n"
        f"{statement} }} return 0; }}"
    )
    compile_c(path.parent, path.name, "call.c", "-o", "call", "-lm")
    return run(path.parent / "call").stdout.splitlines()


def sparse(layer, share, seed=0):
    """Set all but a share of a layer's weights to zero."""
    with torch.no_grad():
        free = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(seed)) < share
        layer.weight.mul_(free)
    return layer


def random_(model):
    """Give norms, direct connections and scalers values that are not trivial."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in (
                *module.named_parameters(recurse=False),
                *module.named_buffers(recurse=False),
            ):
                if isinstance(module, nn.LayerNorm | nn.BatchNorm1d) and tensor.is_floating_point():
                    tensor.uniform_(0.5, 2, generator=generator)
                elif name in ("mean", "scale"):
                    tensor.uniform_(0.5, 1, generator=generator)
        if "direct" in model._modules:
            model.direct.weight.normal_(generator=generator)
    return model.eval()


def sequence(*modules):
    torch.manual_seed(0)
    return random_(nn.Sequential(*modules))


def norms():
    inner = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.BatchNorm1d(5))
    return sequence(
        nn.BatchNorm1d(8), nn.Linear(8, 6), nn.BatchNorm1d(6), nn.SiLU(), nn.Dropout(), inner, nn.Linear(5, 3)
    )


def shared_activation():
    act = nn.Sigmoid()
    return sequence(nn.Linear(8, 6), act, nn.Linear(6, 4), act)


def wide(split="random", activation="relu"):
    return fpe.expand(fpe.mlp(16, 12, 5, seed=0, activation=activation), 2, split=split, seed=0)


def deep():
    model = random_(fpe.mlp(9, [8, 7], 4, seed=0, direct=True, standardize=True, activation="gelu"))
    sparse(model.direct, 0.3)
    return model


MODELS = {
    "one layer": lambda: sequence(nn.Linear(3, 1)),
    "ReLU": lambda: fpe.mlp(8, 6, 3, seed=0),
    "masked": wide,
    "packed blocks": lambda: fpe.pack(wide("shared"), format={"0": "blocks"}),
    "packed codes": lambda: fpe.pack(wide(), format={"0": "codes"}),
    "packed dense": lambda: fpe.pack(wide(activation="tanh"), format="dense"),
    "BatchNorm, SiLU, Tanh, Dropout, nested": norms,
    "a shared Sigmoid": shared_activation,
    "LayerNorm first and last, no bias": lambda: sequence(
        nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4, bias=False), nn.LayerNorm(4), nn.Identity(), nn.Tanh()
    ),
    "activation first": lambda: sequence(nn.Tanh(), nn.GELU(), nn.Linear(4, 3), nn.ReLU(), nn.Tanh()),
    "direct, scaler, GELU, LayerNorm": deep,
    "nothing but biases": lambda: sequence(sparse(nn.Linear(4, 3), 0), nn.ReLU(), nn.Linear(3, 2)),
    "a scaler that nothing reads": lambda: scaled([1.0] * 4, [2.0] * 4, 0.0),
    "a norm that nothing reads": lambda: nn.Sequential(
        Standardize(torch.full((4,), 1e6), torch.ones(4)),
        *(nn.Linear(4, 3), nn.LayerNorm(3), sparse(nn.Linear(3, 2), 0)),
    ),
    "half precision": lambda: fpe.mlp(8, 6, 3, seed=0, dtype=torch.bfloat16),
}


@compiled
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("weights", "unroll"), [("float32", False), ("float32", True), ("float16", False), ("int8", True)]
)
def test_every_model_compiles_without_warnings_and_computes_the_same(name, weights, unroll, tmp_path):
    model = MODELS[name]()
    before = snapshot(model)
    written = fpe.export(model, tmp_path / "net.c", weights=weights, unroll=unroll)
    assert_unchanged(model, before)
    x = torch.randn(64, c_export.network_of(model).inputs, generator=torch.Generator().manual_seed(3))
    largest = float(c_export.outputs_of(model, x.numpy()).max())
    assert written.difference <= {"float32": 1e-5, "float16": 5e-3, "int8": 0.1}[weights] * max(largest, 1)
    assert written.bytes == written.path.stat().st_size
    assert written.dynamic == {}
    compile_c(tmp_path, "-c", "net.c", "-o", "net.o")
    compile_c(tmp_path, "-DNET_TEST", "net.c", "-o", "test", "-lm")
    done = run(tmp_path / "test")
    assert done.returncode == 0
    assert re.fullmatch(r"largest difference \S+, tolerance \S+\n", done.stdout)
    code = written.path.read_text().partition("#ifdef NET_TEST")[0]
    assert "main" not in code
    assert ("static const" in code, written.constants > 0) == (
        (not unroll,) * 2 if written.constants else (False,) * 2
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.c", "net.h", "net.o", "test"]


@compiled
def test_the_self_test_fails_where_a_weight_is_another_one(tmp_path):
    model = sequence(nn.Linear(2, 1))
    fpe.export(model, tmp_path / "net.c")
    text = (tmp_path / "net.c").read_text()
    changed = text.replace(str(np.float32(model[0].weight[0, 0].item())), "7.5", 1)
    assert changed != text
    (tmp_path / "net.c").write_text(changed)
    compile_c(tmp_path, "-DNET_TEST", "net.c", "-o", "test", "-lm")
    assert run(tmp_path / "test").returncode == 1


def layer_of(rows):
    weight = torch.tensor(rows, dtype=torch.float32)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


@pytest.mark.parametrize(
    ("share", "inputs", "weights", "format", "bytes"),
    [
        (1.0, 64, "float32", "dense", 40 * 64 * 4),
        (0.9, 64, "int8", "dense", 40 * 64 + 40 * 4),
        (0.5, 64, "float32", "bits", lambda n: 40 * 8 + 4 * n),
        (0.5, 64, "int8", "bits", lambda n: 40 * 8 + n + 40 * 4),
        (0.05, 64, "float16", "places_8_8", lambda n: 40 + 3 * n),
        (0.01, 500, "float32", "places_8_16", lambda n: 40 + 6 * n),
    ],
)
def test_each_layer_is_stored_in_the_fewest_bytes(share, inputs, weights, format, bytes, tmp_path):
    layer = sparse(nn.Linear(inputs, 40, bias=False), share)
    with torch.no_grad():
        layer.weight.sign_()  # nothing is rounded to zero
    written = fpe.export(layer, tmp_path / "net.c", weights=weights)
    nonzero = int(layer.weight.count_nonzero())
    assert written.constants == (bytes(nonzero) if callable(bytes) else bytes)
    assert f"void {format}(" in written.path.read_text()


def test_more_than_255_inputs_of_a_neuron_are_counted_in_16_bits(tmp_path):
    rows = torch.zeros(64, 4000)
    rows[0, :300] = 1
    written = fpe.export(layer_of(rows.tolist()), tmp_path / "net.c")
    assert written.constants == 64 * 2 + 300 * 2 + 300 * 4
    assert "places_16_16" in written.path.read_text()


def arrays(text):
    """Return the arrays of numbers of C code by name."""
    found = re.findall(r"static const \w+ (\w+)\[\d+\] = \{\n(.*?)\n\};", text, re.DOTALL)
    return {name: [float(v.strip().rstrip("f")) for v in own.split(",")] for name, own in found}


def test_int8_is_rounded_to_nearest_with_a_scale_for_each_neuron(tmp_path):
    layer = layer_of([[1.0, -0.25, 0.0, 0.003], [0.0, 0.0, -254.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    written = fpe.export(layer, tmp_path / "net.c", weights="int8")
    found = arrays(written.path.read_text())
    assert found["scale1"] == pytest.approx([1 / 127, 2, 1])
    assert found["weights1"] == [127, -32, -127, 2]  # 0.003 is rounded to 0, which is not stored
    assert found["bits1"] == [0b0011, 0b1100, 0]


@compiled
def test_every_finite_number_in_float16_is_read_as_it_is(tmp_path):
    (tmp_path / "all.c").write_text(
        f"#include <stdint.h>\n#include <stdio.h>\n{_HALF}"
        'int main(void) { for (uint32_t i = 0; i < 65536; i++) printf("%.17g\\n", (double)half((uint16_t)i));'
        "return 0; }"
    )
    compile_c(tmp_path, "all.c", "-o", "all")
    found = np.array(run(tmp_path / "all").stdout.split(), dtype=np.float64)
    wanted = np.arange(65536).astype(np.uint16).view(np.float16).astype(np.float64)
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(found[finite], wanted[finite])


@compiled
@pytest.mark.parametrize("size", [1e-9, 1e9])
def test_weights_outside_of_the_range_of_float16_get_a_power_of_two(size, tmp_path):
    layer = sequence(nn.Linear(6, 3))[0]
    with torch.no_grad():
        layer.weight.mul_(size)
        layer.bias.mul_(size)
    written = fpe.export(layer, tmp_path / "net.c", weights="float16")
    assert written.difference < 2e-3 * size


def test_neurons_without_inputs_or_consumers_are_left_out(tmp_path):
    first = layer_of([[1, 0, 0], [0, 0, 0], [0, 2, 0], [1, 1, 1]])
    first.bias = nn.Parameter(torch.tensor([0.5, 3.0, 1.0, 7.0]))
    last = layer_of([[1, 2, 0, 0], [0, 4, 1, 0]])
    last.bias = nn.Parameter(torch.tensor([1.0, 1.0]))
    model = nn.Sequential(first, nn.ReLU(), last)
    written = fpe.export(model, tmp_path / "net.c")
    found = arrays(written.path.read_text())
    assert (found["bias1"], found["bias3"]) == ([0.5, 1], [7, 13])  # 1 + 2 · 3 and 1 + 4 · 3
    assert written.difference is None or written.difference < 1e-5


def scaled(mean, scale, share=1.0):
    model = fpe.mlp(4, 3, 2, seed=0, standardize=True, direct=True)
    with torch.no_grad():
        model.scaler.mean.copy_(torch.tensor(mean))
        model.scaler.scale.copy_(torch.tensor(scale))
        model.direct.weight.normal_(generator=torch.Generator().manual_seed(0))
    sparse(model[1], share)
    sparse(model.direct, share)
    return model


@pytest.mark.parametrize(
    ("mean", "scale", "weights", "stored"),
    [
        (0.5, [2.0, 2, 2, 2], "float32", set()),
        (0.5, [2.0, 2, 2, 2], "int8", set()),
        (0.5, [1.0, 2, 3, 4], "float32", set()),
        (0.5, [1.0, 2, 3, 4], "float16", set()),
        (0.5, [1.0, 2, 3, 4], "int8", {"factor"}),
        (12345.678, [1.0, 2, 3, 4], "float32", {"center"}),
        (12345.678, [1.0, 2, 3, 4], "int8", {"center", "factor"}),
    ],
)
@pytest.mark.parametrize("unroll", [False, True])
def test_a_scaler_is_merged_where_that_costs_no_accuracy(mean, scale, weights, stored, unroll, tmp_path):
    model = scaled([mean] * 4, scale)
    written = fpe.export(model, tmp_path / "net.c", weights=weights, unroll=unroll)
    text = written.path.read_text()
    if unroll:
        assert ("const float z_0 =" in text) == bool(stored)
    else:
        assert {"center", "factor"} & arrays(text).keys() == stored
    if COMPILER and weights == "float32":
        assert written.difference < 1e-5


@compiled
def test_a_classifier_says_the_class_of_a_row_by_its_name(tmp_path):
    from sklearn.datasets import load_iris

    X, y = load_iris(return_X_y=True)
    for labels in (np.array(["sétosa", 'a "b"??/\n', "c"])[y], y[:100] + 3):
        X = X[: len(labels)]
        clf = FPEClassifier(hidden=4, epochs=20, warmup_epochs=20).fit(X, labels)
        written = fpe.export(clf, tmp_path / "iris.c", example_inputs=X)
        assert written.changed == 0
        assert written.difference < 1e-5 * np.abs(clf.decision_function(X)).max()
        statement = 'printf("%d\\n", iris_classify(x));'
        assert clf.classes_[[int(i) for i in call(tmp_path / "iris.c", statement, X)]].tolist() == [
            *clf.predict(X)
        ]
        names = call(
            tmp_path / "iris.c",
            "(void)x; for (int j = 0; j < IRIS_CLASSES; j++) puts(iris_class_names[j]);",
            X[:1],
        )
        assert "\n".join(names) == "\n".join(map(str, clf.classes_))


@compiled
@pytest.mark.parametrize("several", [False, True])
def test_a_regressor_predicts_in_the_units_of_its_targets(several, tmp_path):
    from sklearn.datasets import load_diabetes

    X, y = load_diabetes(return_X_y=True)
    y = np.stack([y, 5 - y], axis=1) if several else y
    model = FPERegressor(budget=60, hidden=6, epochs=10, direct=True).fit(X, y)
    written = fpe.export(model, tmp_path / "net.c", example_inputs=X)
    assert written.changed is None
    assert written.difference < 1e-5 * 350
    lines = call(tmp_path / "net.c", 'float y[2]; net_scores(x, y); printf("%.9g\\n", (double)y[0]);', X)
    np.testing.assert_allclose(np.float64(lines), model.predict(X).reshape(len(X), -1)[:, 0], rtol=1e-4)
    assert "classify" not in (tmp_path / "net.h").read_text()


def test_several_labels_have_no_class(tmp_path):
    X = np.random.default_rng(0).standard_normal((40, 3))
    clf = FPEClassifier(hidden=3, epochs=1, warmup_epochs=1).fit(X, (X[:, :2] > 0).astype(int))
    fpe.export(clf, tmp_path / "net.c")
    assert "classify" not in (tmp_path / "net.h").read_text()


@compiled
def test_digits_in_int8_keep_their_classes(tmp_path):
    from fpe.data import load

    data = load("digits")
    clf = FPEClassifier(budget=600, epochs=8).fit(data.X_train, data.y_train)
    written = {
        weights: fpe.export(clf, tmp_path / "digits.c", weights=weights, example_inputs=data.X_test)
        for weights in ("float32", "float16", "int8")
    }
    assert written["int8"].changed <= 0.005
    assert written["float32"].changed == 0
    largest = np.abs(clf.decision_function(data.X_test)).max()
    assert written["float32"].difference <= 1e-5 * largest
    assert written["int8"].constants < 0.6 * written["float32"].constants
    assert str(written["int8"]).endswith(f"{written['int8'].constants:,} bytes of constants")


@compiled
@pytest.mark.skipif(shutil.which("size") is None, reason="needs size, of binutils")
@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
def test_the_object_file_is_hardly_larger_than_the_weights_and_their_places(share, tmp_path):
    model = random_(fpe.mlp(196, [64, 32], 10, seed=0, direct=True, activation="gelu"))
    for name in ("0", "3", "6", "direct"):
        sparse(model.get_submodule(name), share)
    written = fpe.export(model, tmp_path / "net.c")
    compile_c(tmp_path, "-c", "net.c", "-o", "net.o")
    done = subprocess.run(["size", tmp_path / "net.o"], capture_output=True, text=True, check=True)
    text, data, bss = map(int, done.stdout.splitlines()[1].split()[:3])
    assert (data, bss) == (0, 0)
    assert text <= 1.15 * written.constants + 4096


def test_a_saved_classifier_keeps_the_names_of_its_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit = [
        "fit",
        "digits",
        "--hidden",
        "4",
        "--trials",
        "1",
        "--warmup-epochs",
        "1",
        "--epochs",
        "1",
        "--jobs",
        "1",
    ]
    done = CliRunner().invoke(main, [*fit, "--standardize", "--out", "out"])
    assert done.exit_code == 0, done.output
    model = fpe.load("out/best.safetensors")
    assert fpe.pack(model).fpe_classes == model.fpe_classes == [str(i) for i in range(10)]
    done = command("out/best.safetensors", "my digits.c", "--int8")
    assert done.exit_code == 0, done.output
    header = (tmp_path / "my digits.h").read_text()
    assert "int my_digits_classify(const float *x);" in header
    first, second, third, last = done.output.splitlines()
    assert first.startswith("my digits.c and my digits.h  ")
    assert second.startswith(f"  non-zeros of the model: {fpe.count_nonzero(model)}; in int8: ")
    assert third.startswith("  largest difference of outputs: ")
    assert last.startswith("  predicted classes that change: ")
    record = json.loads(command("out/best.safetensors", "d.c", "--weights", "float16", "--json").output)
    assert (record["path"], record["nonzero"]) == ("d.c", fpe.count_nonzero(model))
    assert record["constants"] > 0


def command(*arguments):
    return CliRunner().invoke(main, ["export", *map(str, arguments)], prog_name="fpe")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m.c", "--no-pack"], "--no-pack is for .onnx and .pt2"),
        (["m.c", "--batch-axis", "1"], "batch_axis is 1; C takes one row"),
        (["m.c", "--int8", "--weights", "float16"], "--int8 and --weights float16"),
        (["m.onnx", "--weights", "float16"], "--weights float16 is for .c"),
        (["m.pt2", "--unroll"], "--unroll is for .c"),
    ],
)
def test_the_command_says_which_options_do_not_fit(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fpe.save(fpe.expand(fpe.mlp(8, 4, 2, seed=0)), "m.safetensors")
    done = command("m.safetensors", *arguments)
    assert (done.exit_code, done.stderr.startswith(f"Error: {message}")) == (2, True), done.output
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


class Own(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 1


def pruned():
    layer = nn.Linear(4, 3)
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


def doubled():
    model = sequence(nn.Linear(4, 3))
    model.register_forward_hook(lambda module, args, output: 2 * output)
    return model


@pytest.mark.parametrize(
    ("model", "messages"),
    [
        (nn.Sequential(nn.Conv1d(1, 2, 3), nn.Linear(4, 3), nn.ELU()), ["'0': Conv1d", "'2': ELU", ".onnx"]),
        (nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Softmax(1))), ["'1.0': Softmax"]),
        (nn.Sequential(nn.Linear(4, 3), nn.GELU(approximate="tanh")), ["approximate='tanh'"]),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4)), ["BatchNorm1d, with no linear layer"]),
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)), ["'1': BatchNorm1d"]),
        (nn.Sequential(Own(nn.Linear(4, 3))), ["'0': Own"]),
        (nn.Sequential(pruned()), ["'0': Linear, whose weight is computed"]),
        (nn.Sequential(nn.ReLU()), ["needs a linear layer"]),
        (doubled(), ["hooks"]),
    ],
)
def test_what_is_not_supported_is_named(model, messages, tmp_path):
    with pytest.raises(ModelError) as caught:
        fpe.export(model.eval(), tmp_path / "net.c")
    assert all(message in str(caught.value) for message in messages)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = fpe.mlp(4, 3, 2, seed=0)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="NaN"):
        fpe.export(model, tmp_path / "net.c")


@pytest.mark.parametrize(
    ("options", "name", "message"),
    [
        ({"weights": "int4"}, "net.c", "float32, float16, int8"),
        ({"example_inputs": torch.ones(2, 5)}, "net.c", r"shape \(2, 5\)"),
        ({"example_inputs": torch.full((2, 4), torch.inf)}, "net.c", "infinite"),
        ({"example_inputs": (torch.ones(2, 4), torch.ones(2, 4))}, "net.c", "2 inputs"),
        ({"batch_axis": 1}, "net.c", "batch_axis"),
        ({}, 'n"et.c', "quotes"),
        ({"weights": "int8", "example_inputs": torch.ones(2, 4)}, "net.onnx", "for .c"),
    ],
)
def test_bad_arguments_are_reported(options, name, message, tmp_path):
    with pytest.raises(ArgumentError, match=message):
        fpe.export(fpe.mlp(4, 3, 2, seed=0), tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_names_of_classes_must_fit(tmp_path):
    model = fpe.mlp(4, 3, 2, seed=0)
    model.fpe_classes = ["only one"]
    with pytest.raises(ModelError, match="1 names of classes and 2 classes"):
        fpe.export(model, tmp_path / "net.c")


def test_an_estimator_must_be_fitted_to_be_exported(tmp_path):
    for name in ("net.onnx", "net.c"):
        with pytest.raises(NotFittedError, match="FPEClassifier"):
            fpe.export(FPEClassifier(), tmp_path / name)


def test_without_a_compiler_the_files_are_written_and_not_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    written = fpe.export(fpe.mlp(4, 3, 2, seed=0), tmp_path / "net.c")
    assert written.difference is None
    assert "not checked" in str(written)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.c", "net.h"]


@compiled
@pytest.mark.parametrize(
    ("old", "new", "message"), [("= sum", "= 2 * sum", "differs"), ("= sum", "= s", "checked by")]
)
def test_code_that_computes_something_else_is_not_left(old, new, message, tmp_path, monkeypatch):
    from fpe.io.c import source

    class Wrong(source.Template):
        def substitute(self, *args, **kwargs):
            return super().substitute(*args, **kwargs).replace(old, new)

    monkeypatch.setattr(source, "Template", Wrong)
    with pytest.raises(ModelError, match=message):
        fpe.export(fpe.mlp(4, 3, 2, seed=0), tmp_path / "net.c")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stem", "name"),
    [("digits", "digits"), ("my-net.v2", "my_net_v2"), ("2x", "model_2x"), ("_a__b", "a_b"), ("ä", "model")],
)
def test_names_are_identifiers(stem, name):
    assert identifier(stem) == name


def test_a_text_is_a_string_of_bytes():
    assert c_string('a "b"\\ü?') == r'"a \042b\042\134\303\274\077"'
