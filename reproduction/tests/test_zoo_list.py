"""The zoo has its models, judges them without fpe, and says what goes wrong."""

import importlib
import json
import os
import sys
from pathlib import Path

import pytest
from torch import nn

PROGRAMS = Path(__file__).parents[1] / "pages"
ROOT = PROGRAMS.parents[1]
THROUGHOUT = ["GCN", "siamese network", "RNN cell", "FT-Transformer", "SqueezeNet"]
NAMED = {
    "Phi-3", "GLM-4", "ModernBERT", "DINOv2 with SwiGLU", "Mixtral", "Qwen3-MoE", "OLMoE", "GPT-OSS",
    "DeepSeek-V3", "ALBERT", "ConvNeXtV2", "EfficientNet-B0", "MobileNetV2", "MobileNetV3", "DenseNet",
    "diffusion U-Net",
    "VAE with transposed convolutions", "Falcon", "LeViT", "Longformer", "siamese network", "GCN",
    "SyncBatchNorm ResNet",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _programs():
    """Modules that make pages are no package, and the tests have one of the same name."""
    pytest.importorskip("transformers")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PROGRAMS)
        shadowed = {path.stem for path in PROGRAMS.glob("*.py")} & set(sys.modules)
        for name in shadowed:
            patch.delitem(sys.modules, name)
        importlib.import_module("models")
        yield
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", "")).startswith(str(PROGRAMS)):
                del sys.modules[name]


def test_the_zoo_has_its_models():
    from zoo_hand import HAND
    from zoo_list import ENTRIES

    from models import GAPS

    assert len(ENTRIES) >= 120
    assert {entry.name for entry in ENTRIES.values() if entry.full} == NAMED
    for gap in GAPS:
        assert sum(gap in entry.gaps for entry in ENTRIES.values()) >= 3
    assert {gap for entry in ENTRIES.values() for gap in entry.gaps} == GAPS.keys()
    assert HAND.keys() <= {entry.kind for entry in ENTRIES.values()}


def test_the_page_has_all_models_of_the_zoo_and_none_is_wrong():
    from zoo_list import ENTRIES
    from zoo_probe import STEPS

    from models import complete

    stored = json.loads(
        (PROGRAMS.parents[1] / "docs" / "results" / "models.json").read_text(encoding="utf-8")
    )
    rows = stored["rows"]
    assert list(rows) == list(ENTRIES)
    assert len(set(stored["commits"])) == 1
    assert sum(complete(name, row) for name, row in rows.items()) >= 110
    assert not [name for name, row in rows.items() if "crash" in row or row.get("right") == "no"]
    steps = (*STEPS, "compiled")
    assert not [name for name in NAMED if any(rows[name][step] != "yes" for step in steps)]


@pytest.mark.parametrize("name", ["GCN", "siamese network", "RNN cell", "FT-Transformer", "SqueezeNet"])
def test_a_model_goes_through_all_steps(name):
    from zoo_list import ENTRIES
    from zoo_probe import STEPS, cells_of

    cells = cells_of(ENTRIES[name])
    assert cells.pop("neurons") == cells.pop("found") > 0
    assert cells == {"missing": {}, "others": [], **dict.fromkeys(STEPS, "yes")}


def test_hidden_layers_are_those_that_a_pattern_names_whole():
    from zoo_probe import hidden_layers

    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    assert hidden_layers(model, "[02]") == {"0": 5, "2": 4}
    assert hidden_layers(model, "[3]|44") == {}


def test_what_is_wrong_is_called_wrong():
    from zoo_models import Entry
    from zoo_probe import Probe

    from fpe.graph import NeuronGroup

    probe = Probe(Entry("soft", "by hand", "MLP", "0"))
    probe.model[1] = nn.Softmax(-1)
    probe.groups = (NeuronGroup("0", "2"),)
    assert probe.right() is False
    probe.model[1] = nn.GELU()
    assert probe.right() is True
    probe.wide = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    assert probe.count_exact() is False


@pytest.mark.parametrize(("compiled", "row"), [(False, "crash"), (True, "compiled")])
def test_a_model_that_cannot_be_built_is_one_row(compiled, row):
    from zoo_models import Entry
    from zoo_probe import probed, task

    cells = probed(**task(Entry("none", "by hand", "no such model", "0"), "", compiled))
    assert list(cells) == [row]
    assert "KeyError: 'no such model'" in cells[row]


def test_a_process_that_dies_is_one_row(monkeypatch):
    import zoo_probe
    from zoo_models import Entry

    monkeypatch.setattr(zoo_probe, "cells_of", lambda entry: os._exit(9))
    cells = zoo_probe.probed(**zoo_probe.task(Entry("dies", "by hand", "MLP", "0"), ""))
    assert cells == {"crash": "its process ended with code 9"}
