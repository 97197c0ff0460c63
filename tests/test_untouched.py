"""No call changes a model that it is only to look at, whatever the model keeps of its forward pass."""

import contextlib
import copy
import os
import stat

import pytest
import torch

import fpe
from fpe.errors import FPEError
from keepers import KEEPERS, DictOfTensors, Net
from untouched import untouched
from zoo import ZOO


@pytest.mark.parametrize("with_batch", [True, False])
@pytest.mark.parametrize("name", KEEPERS)
def test_models_that_keep_things_are_left_as_they_were(name, with_batch):
    model, batch = KEEPERS[name](), torch.randn(5, 8) if with_batch else None
    with untouched(model, batch), contextlib.suppress(FPEError):  # a refusal is an answer
        fpe.expand(model, example_inputs=batch)  # which plans


@pytest.mark.parametrize("name", ["DictOfTensors", "ListOfActivations", "ClampedWeights", "has_run_before"])
def test_exporting_leaves_models_that_keep_things_as_they_were(name, tmp_path):
    model, batch = KEEPERS[name](), torch.randn(5, 8)
    with untouched(model, batch), contextlib.suppress(FPEError):
        fpe.export(model, tmp_path / "model.pt2", example_inputs=batch)


def test_calls_on_expanded_models_leave_them_as_they_were(tmp_path):
    model, batch = ZOO["CNN-BatchNorm-Flatten"]()
    wide = fpe.expand(model, example_inputs=batch)
    packed = fpe.pack(wide)
    for call in (
        lambda: fpe.summary(model, wide),
        lambda: fpe.count_nonzero(wide),
        lambda: fpe.pack(wide, example_inputs=batch),
        lambda: fpe.save(wide, tmp_path / "wide.safetensors"),
        lambda: fpe.load(tmp_path / "wide.safetensors", like=model),
    ):
        with untouched(model, batch), untouched(wide, batch):
            call()
    with untouched(packed, batch):
        fpe.unpack(packed)


def test_expanding_in_place_leaves_a_refused_model_as_it_was():
    model, batch = DictOfTensors(), torch.randn(5, 8)
    with untouched(model, batch), pytest.raises(FPEError):
        fpe.expand_(model, factor=100, example_inputs=batch)


def test_a_wide_model_keeps_nothing_of_the_runs_that_checked_it():
    wide = fpe.expand(DictOfTensors(), example_inputs=torch.randn(5, 8))
    assert wide.cache == {}


def test_a_language_model_that_returns_hidden_states_returns_as_many_as_before():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=30, output_hidden_states=True))
    tokens = torch.randint(3, 30, (2, 7))
    expected = len(copy.deepcopy(model)(tokens).hidden_states)
    with untouched(model, {"input_ids": tokens}):
        fpe.plan(model)
    assert len(model(tokens).hidden_states) == expected == 3


def test_a_seeded_network_moves_no_generator_and_files_have_the_rights_of_any_new_file(tmp_path):
    with untouched(Net()):
        fpe.save(fpe.expand(fpe.mlp(8, 4, 2, seed=1)), tmp_path / "wide.safetensors")
    (tmp_path / "other").touch()
    rights = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("wide.safetensors", "other")]
    assert rights[0] == rights[1]


def test_the_checker_sees_what_a_run_leaves_behind():
    x = torch.randn(5, 8)
    for name in ("DictOfTensors", "ListOfActivations", "SlotsObject", "hook_into_a_list", "ClampedWeights"):
        model = KEEPERS[name]()
        with pytest.raises(AssertionError, match="changed"), untouched(model, runs=False):
            model(x)
