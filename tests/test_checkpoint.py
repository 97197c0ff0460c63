"""Saved files come back as they were, and broken ones say what is wrong."""

import json
import os
import resource
import signal
import struct
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import fpe
from fpe.errors import ArgumentError, CheckpointError, ModelError
from fpe.io.compact import decode_mask
from models import MODELS, same_values
from old_files import save_as


def two_layers():
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "wide.safetensors"
    fpe.save(fpe.expand(two_layers()), path)
    return path


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_loaded_is_what_was_saved(name, times, tmp_path):
    model, x = MODELS[name]()
    wide = model
    for seed in range(times):
        wide = fpe.expand(wide, seed=seed)
    wide.eval()
    fpe.save(wide, tmp_path / "wide.safetensors")
    again = fpe.load(tmp_path / "wide.safetensors", like=MODELS[name]()[0]).eval()
    assert torch.equal(again(x), wide(x))
    assert again.state_dict().keys() == wide.state_dict().keys()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in wide.state_dict().items())
    assert fpe.count_nonzero(again) == fpe.count_nonzero(model)
    assert again.fpe_plan == wide.fpe_plan


def test_a_loaded_model_trains_on_as_the_saved_one_would(tmp_path):
    model, x = MODELS["batch_norm"]()
    wide = fpe.expand(model)
    fpe.save(wide, tmp_path / "wide.safetensors")
    again = fpe.load(tmp_path / "wide.safetensors", like=model)
    for net in (wide, again):
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    assert torch.equal(wide(x), again(x))


def test_the_type_of_the_file_is_kept_and_the_dense_model_left_alone(tmp_path):
    fpe.save(fpe.expand(two_layers().double()), tmp_path / "wide.safetensors")
    like = two_layers()
    before = {k: v.clone() for k, v in like.state_dict().items()}
    assert fpe.load(tmp_path / "wide.safetensors", like=like)[0].weight.dtype == torch.float64
    assert all(torch.equal(v, before[k]) for k, v in like.state_dict().items())
    assert type(like[0]) is nn.Linear


def test_free_values_and_a_mask_of_bits_are_stored_and_the_manifest_is_json(saved):
    with safe_open(saved, framework="pt") as file:
        manifest = json.loads(file.metadata()["fpe"])
        mask, weight = file.get_tensor("0.fpe_mask"), file.get_tensor("0.weight")
    assert (mask.dtype, mask.shape) == (torch.uint8, (1 + 64 // 8,))
    assert weight.shape == (int(decode_mask(mask, (8, 8)).sum()),)
    assert manifest["format"] == 6
    assert manifest["fpe"] == fpe.__version__
    assert manifest["plan"]["factor"] == 2
    assert manifest["modules"]["0"] == {
        "kind": "MaskedLinear",
        "shape": [8, 8],
        "bias": True,
    }


@pytest.mark.parametrize("name", MODELS)
def test_files_of_format_four_are_read(name, tmp_path):
    model, x = MODELS[name]()
    wide = fpe.expand(model).eval()
    save_as(wide, tmp_path / "wide.safetensors", 4)
    again = fpe.load(tmp_path / "wide.safetensors", like=model).eval()
    assert same_values(again, wide)
    assert torch.equal(again(x), wide(x))


def test_a_compiled_model_is_saved_as_the_model_in_it(tmp_path):
    wide = fpe.expand(two_layers())
    fpe.save(torch.compile(wide), tmp_path / "wide.safetensors")
    again = fpe.load(tmp_path / "wide.safetensors", like=two_layers())
    assert torch.equal(again(torch.ones(1, 8)), wide(torch.ones(1, 8)))


def test_a_tied_tensor_is_stored_once_and_tied_again_in_value(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 4), nn.Linear(4, 2)
            self.once, self.twice = nn.Linear(2, 2), nn.Linear(2, 2)
            self.twice.weight = self.once.weight

        def forward(self, x):
            return self.twice(self.once(self.b(self.a(x).relu())))

    torch.manual_seed(0)
    wide = fpe.expand(Tied(), layers=["a"])
    fpe.save(wide, tmp_path / "wide.safetensors")
    again = fpe.load(tmp_path / "wide.safetensors", like=Tied())
    assert torch.equal(again(torch.ones(1, 8)), wide(torch.ones(1, 8)))
    with safe_open(tmp_path / "wide.safetensors", framework="pt") as file:
        assert "twice.weight" not in file.keys()  # noqa: SIM118


@pytest.mark.parametrize("keep", [0, 4, 40, 300, -1])
def test_a_truncated_file_says_so(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated"):
        fpe.load(saved, like=two_layers())


def test_a_missing_file_says_so(tmp_path):
    path = tmp_path / "none.safetensors"
    with pytest.raises(CheckpointError, match="there is no file"):
        fpe.load(path, like=two_layers())


def test_a_foreign_file_says_so(tmp_path):
    save_file({"0.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not one of fpe's"):
        fpe.load(tmp_path / "other.safetensors", like=two_layers())


def rewritten(path, change):
    """Change the manifest of a saved file in place."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    manifest = json.loads(header["__metadata__"]["fpe"])
    header["__metadata__"]["fpe"] = change(manifest)
    packed = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(packed)) + packed + content[8 + size :])


def test_a_later_format_says_which_version_wrote_it(saved):
    rewritten(saved, lambda m: json.dumps({**m, "format": 7, "fpe": "9.1"}))
    with pytest.raises(CheckpointError, match=r"format 7.*formats 2, 3, 4, 5, 6.*fpe 9\.1"):
        fpe.load(saved, like=two_layers())


@pytest.mark.parametrize("manifest", ["{", "[]", "{}"])
def test_a_broken_manifest_says_so(saved, manifest):
    rewritten(saved, lambda _: manifest)
    with pytest.raises(CheckpointError, match="broken manifest"):
        fpe.load(saved, like=two_layers())


@pytest.mark.parametrize(
    ("like", "reason"),
    [
        (nn.Sequential(nn.Linear(8, 4), nn.ReLU()), "another architecture"),
        (
            nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2), nn.Linear(2, 2)),
            'Missing key(s) in state_dict: "3.weight", "3.bias"',
        ),
        (
            nn.Sequential(nn.Conv1d(8, 4, 1), nn.ReLU(), nn.Linear(4, 2)),
            "'0' is a Conv1d and was a linear layer",
        ),
        (
            nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
            'Missing key(s) in state_dict: "1.weight"',
        ),
    ],
)
def test_another_architecture_is_refused(saved, like, reason):
    with pytest.raises(CheckpointError) as error:
        fpe.load(saved, like=like)
    assert all(words in str(error.value) for words in ("another architecture", reason, "like=…"))


def test_state_that_is_no_tensor_is_refused_before_anything_is_written(tmp_path):
    class Noted(nn.Linear):
        def get_extra_state(self):
            return {"note": 1}

        def set_extra_state(self, state):
            pass

    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2), Noted(2, 2))
    with pytest.raises(ArgumentError, match=r"the state '3\._extra_state' is a dict"):
        fpe.save(fpe.expand(model, layers=["0"]), tmp_path / "wide.safetensors")
    assert list(tmp_path.iterdir()) == []


SAVE = """
    import sys, torch, fpe
    from torch import nn
    wide = fpe.expand(nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 2)), seed=1)
    {before}
    try:
        fpe.save(wide, sys.argv[1])
    except fpe.FPEError as error:
        print(type(error).__name__, isinstance(error, OSError), error)
"""


def save_in_a_process(path, before="", **options):
    code = textwrap.dedent(SAVE.replace("{before}", before))
    return subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, **options)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(saved):
    """The file system refuses to let files grow beyond 10,000 bytes."""
    old = saved.read_bytes()

    def no_room():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    result = save_in_a_process(saved, preexec_fn=no_room)
    assert result.stdout.startswith(f"WriteError True could not write {saved}: "), result.stderr
    assert "What stood there before is unchanged" in result.stdout
    assert saved.read_bytes() == old
    assert os.listdir(saved.parent) == [saved.name]


def test_a_crash_while_writing_leaves_the_old_file(saved):
    old = saved.read_bytes()
    crash = "import os, signal; os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    assert save_in_a_process(saved, crash).returncode == -signal.SIGKILL
    assert saved.read_bytes() == old
    assert save_in_a_process(saved).returncode == 0
    assert saved.read_bytes() != old


def own_kinds():
    """Return modules of classes derived from all that may stand between neurons, some under the same name."""

    class Norm(nn.LayerNorm):
        pass

    class GroupNorm(nn.GroupNorm):
        pass

    class BatchNorm(nn.BatchNorm1d):
        pass

    class Rms(nn.RMSNorm):
        pass

    class Slope(nn.PReLU):
        pass

    class Convolution(nn.Conv1d):
        def forward(self, x):
            return super().forward(x.unsqueeze(-1)).squeeze(-1)

    class OwnMasked(fpe.MaskedLinear):
        pass

    class Bare(nn.LayerNorm):
        def __init__(self):
            nn.Module.__init__(self)

        def forward(self, x):
            return x

    return [
        Norm(2), GroupNorm(1, 2), BatchNorm(2), Rms(2), Slope(2), Convolution(2, 2, 1), Bare(),
        OwnMasked(2, 2),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(8))
def test_a_model_with_a_class_derived_from_a_norm_or_a_convolution_is_loaded(number, tmp_path):
    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2), own_kinds()[number]).eval()

    wide = fpe.expand(build(), layers=["0"])
    if number == 7:
        with pytest.raises(ModelError, match="layer '3' is of the class OwnMasked"):
            fpe.pack(wide)
    for model in (wide,) if number == 7 else (wide, fpe.pack(wide)):
        fpe.save(model, tmp_path / "wide.safetensors")
        again = fpe.load(tmp_path / "wide.safetensors", like=build())
        assert type(again[3]).__name__ == type(model[3]).__name__
        assert torch.equal(again(torch.ones(2, 8)), model(torch.ones(2, 8)))


def test_a_file_that_describes_derived_norms_is_loaded_too(saved):
    """As versions that wrote them down did."""
    like = nn.Sequential(*two_layers(), own_kinds()[0])
    fpe.save(fpe.expand(like, layers=["0"]), saved)
    norm = {"kind": "LayerNorm", "widths": {"normalized_shape": [2]}}
    rewritten(saved, lambda m: json.dumps({**m, "modules": {**m["modules"], "3": norm}}))
    assert type(fpe.load(saved, like=like)[3]).__name__ == "Norm"


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
def test_an_mlp_is_loaded_with_its_activation_and_direct_connections(activation, tmp_path):
    how = {"standardize": True, "direct": True, "activation": activation}
    wide = fpe.expand(fpe.mlp(8, 4, 2, seed=0, **how))
    fpe.save(wide, tmp_path / "wide.safetensors")
    x = torch.randn(5, 8)
    assert torch.equal(fpe.load(tmp_path / "wide.safetensors")(x), wide(x))


def test_an_mlp_has_one_of_the_known_activations():
    with pytest.raises(ArgumentError, match="activation is 'swish'; give one of relu, gelu, silu, tanh"):
        fpe.mlp(8, 4, 2, activation="swish")
