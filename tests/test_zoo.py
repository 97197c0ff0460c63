"""Models of every kind that people have: expanded, trained, saved, copied, exported."""

import copy

import pytest
import torch
from torch import nn

import fpe
from fpe.graph import find_groups, verify
from fpe.graph.layers import oriented, oriented_weight
from models import same_values
from untouched import untouched
from zoo import ZOO, answer, expanded

#: What must be found in each model, by name or pattern, when nothing is asked for.
EXPANDED = {
    "MLP": ["0"],
    "MLP-LayerNorm": ["0"],
    "CNN-BatchNorm-Flatten": ["0", "9"],
    "ResNet block": ["body.0.conv1", "body.1.conv1"],
    "ConvNeXt-style block": ["body.0.grow", "body.1.grow"],
    "U-Net-like skip": ["down.0", "bottom.0", "up", "merge.3"],
    "GPT-2": [f"transformer.h.{i}.mlp.c_fc" for i in range(2)],
    "BERT": [f"bert.encoder.layer.{i}.intermediate.dense" for i in range(2)],
    "LLaMA": [f"model.layers.{i}.mlp.{name}" for i in range(2) for name in ("gate_proj", "up_proj")],
    "ViT": [f"vit.layers.{i}.mlp.fc1" for i in range(2)],
    "CLIP": [f"{tower}_model.encoder.layers.{i}.mlp.fc1" for tower in ("vision", "text") for i in range(2)],
    "T5": [
        *(f"encoder.block.{i}.layer.1.DenseReluDense.wi" for i in range(2)),
        *(f"decoder.block.{i}.layer.2.DenseReluDense.wi" for i in range(2)),
    ],
    "Mixtral-style experts": [f"experts.{i}.{name}" for i in range(3) for name in ("gate", "up")],
    "LSTM head": ["hidden"],
}


@pytest.mark.parametrize("name", EXPANDED)
def test_the_hidden_layers_are_found(name):
    _, _, wide = expanded(name)
    found = [n for layer in wide.fpe_plan.layers for n in layer.group.producers]
    assert found == EXPANDED[name]


@pytest.mark.parametrize("name", EXPANDED)
def test_every_group_that_is_found_can_be_permuted(name):
    model, batch, _ = expanded(name)
    with untouched(model, batch):
        groups = find_groups(model, batch).groups
        verify(model, groups, batch)
    assert groups


@pytest.mark.parametrize("name", EXPANDED)
def test_what_takes_an_expanded_model_leaves_it_as_it_was(name, tmp_path):
    model, batch, wide = expanded(name)
    file = tmp_path / "wide.safetensors"
    measures = [
        f
        for n, f in vars(fpe.metrics).items()
        if n[0] != "_" and "weight" in getattr(f, "__annotations__", {})
    ]
    assert len(measures) >= 5
    with untouched(model, batch), untouched(wide, batch):
        fpe.summary(model, wide)
        fpe.count_nonzero(wide)
        fpe.save(wide, file)
        fpe.load(file, like=model)
        packed = fpe.pack(wide, example_inputs=batch)
        for layer in (m for m in wide.modules() if isinstance(m, fpe.MaskedLayer) and m.weight.dim() == 2):
            for measure in measures:
                measure(layer.weight)
    with untouched(packed, batch):
        fpe.count_nonzero(packed)
        fpe.save(packed, file)
        fpe.unpack(packed)


@pytest.mark.parametrize("name", ["MLP-LayerNorm", "CNN-BatchNorm-Flatten", "LSTM head"])
def test_exporting_leaves_dense_expanded_and_packed_models_as_they_were(name, tmp_path):
    model, batch, wide = expanded(name)
    for kind in (model, wide, fpe.pack(wide, example_inputs=batch)):
        with untouched(kind, batch):
            fpe.export(kind, tmp_path / "model.pt2", example_inputs=batch)


@pytest.mark.parametrize("name", EXPANDED)
def test_expanding_keeps_count_class_and_shapes_and_a_seed_gives_the_same_weights(name):
    model, batch, wide = expanded(name)
    assert same_values(fpe.expand(model, 2, example_inputs=batch, seed=3), wide)
    assert type(wide) is type(model)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model) == wide.fpe_plan.nonzero
    assert answer(wide, batch).shape == answer(model, batch).shape
    for layer in wide.fpe_plan.layers:
        for producer in layer.group.producers:
            module = wide.get_submodule(producer)
            assert isinstance(module, fpe.MaskedLayer)
            assert len(oriented_weight(module)) == layer.neurons_after == 2 * layer.neurons


@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("split", ["shared", "gram"])
@pytest.mark.parametrize("name", ["CNN-BatchNorm-Flatten", "U-Net-like skip", "GPT-2", "LLaMA"])
def test_all_splits_and_factors_keep_the_count(name, split, factor):
    model, batch = ZOO[name]()
    for budget in ("group", "network"):
        wide = fpe.expand(model, factor, split=split, example_inputs=batch, budget=budget)
        assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
        if factor == 1:
            torch.testing.assert_close(answer(wide.eval(), batch), answer(model.eval(), batch))


@pytest.mark.parametrize("name", EXPANDED)
def test_children_partition_their_parent(name):
    model, _, wide = expanded(name)
    consumers = {consumer for layer in wide.fpe_plan.layers for consumer in layer.group.consumers}
    for layer in wide.fpe_plan.layers:
        for producer in set(layer.group.producers) - consumers:
            parent, child = oriented_weight(model.get_submodule(producer)), wide.get_submodule(producer)
            mask = oriented(child, child.fpe_mask).unflatten(0, (-1, layer.factor))
            assert mask.sum(1).max() <= 1
            children = oriented_weight(child).unflatten(0, (-1, layer.factor))
            assert torch.equal(children.sum(1), parent * mask.sum(1))


def test_gate_and_up_of_a_child_take_the_same_inputs():
    """With enough zeros to prune, no other weight is masked."""
    model, batch = ZOO["LLaMA"]()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[1:] = 0
    wide = fpe.expand(model, 2, example_inputs=batch)
    for layer in wide.model.layers:
        assert torch.equal(layer.mlp.gate_proj.fpe_mask, layer.mlp.up_proj.fpe_mask)


def test_all_taps_of_a_channel_stay_together_unless_taps_are_shared_out():
    model, batch = ZOO["CNN-BatchNorm-Flatten"]()
    with torch.no_grad():
        model[4].weight[1:] = 0
    for how, together in (("channels", True), ("taps", False)):
        wide = fpe.expand(model, 3, layers=["0"], example_inputs=batch, convolutions=how)
        taps = wide[0].fpe_mask.flatten(2).sum(2)
        assert bool(((taps == 0) | (taps == 9)).all()) is together
        assert wide.fpe_plan.layers[0].shares == how


def test_a_convolution_of_one_channel_shares_out_taps():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    wide = fpe.expand(model, 2, example_inputs=torch.randn(2, 1, 8, 8))
    assert wide.fpe_plan.layers[0].shares == "taps"
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    assert "  9 taps  " in str(wide.fpe_plan)


@pytest.mark.parametrize("name", EXPANDED)
def test_training_moves_the_free_weights_and_no_other(name):
    _, batch, wide = expanded(name)
    wide = copy.deepcopy(wide).train()
    before = {n: p.detach().clone() for n, p in wide.named_parameters()}
    optimizer = torch.optim.AdamW(wide.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        answer(wide, batch).square().mean().backward()
        optimizer.step()
    for layer in wide.fpe_plan.layers:
        for name_ in (*layer.group.producers, *layer.group.consumers):
            module = wide.get_submodule(name_)
            assert (module.weight[module.fpe_mask == 0] == 0).all()
            if name == "Mixtral-style experts" and module.weight.grad is None:  # no token reaches it
                continue
            assert not torch.equal(module.weight, before[f"{name_}.weight"])


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("name", EXPANDED)
def test_what_is_loaded_is_what_was_saved(name, times, tmp_path):
    model, batch, wide = expanded(name)
    if times == 2:
        wide = fpe.expand(wide, 2, example_inputs=batch, seed=4)
        assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    fpe.save(wide, tmp_path / "wide.safetensors")
    again = fpe.load(tmp_path / "wide.safetensors", like=model)
    assert same_values(again, wide)
    assert again.fpe_plan == wide.fpe_plan
    assert torch.equal(answer(again.eval(), batch), answer(copy.deepcopy(wide).eval(), batch))


def test_experts_of_transformers_are_expanded_by_the_name_of_their_module():
    """Their weights are three-dimensional parameters of one module (tests/test_experts.py has the rest)."""
    model, batch = ZOO["Mixtral"]()
    wide = fpe.expand(model, 2, layers=["model.layers.0.mlp.experts"], example_inputs=batch)
    assert [layer.group.name for layer in wide.fpe_plan.layers] == [
        "model.layers.0.mlp.experts.stacked.gate_up_proj"
    ]
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)


@pytest.mark.parametrize("name", ["GPT-2", "BERT", "CLIP", "T5", "ViT", "LLaMA"])
def test_models_of_transformers_need_no_batch(name):
    model, _, wide = expanded(name)
    assert fpe.plan(model, 2).layers == wide.fpe_plan.layers


def test_a_pretrained_model_is_expanded_saved_and_loaded(tmp_path):
    from transformers import AutoModelForCausalLM

    ZOO["GPT-2"]()[0].save_pretrained(tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    wide = fpe.expand(dense, 2)
    fpe.save(wide, tmp_path / "wide.safetensors")
    fresh = AutoModelForCausalLM.from_config(dense.config)
    again = fpe.load(tmp_path / "wide.safetensors", like=fresh)
    tokens = torch.arange(6)[None]
    assert torch.equal(again.eval()(tokens).logits, wide.eval()(tokens).logits)
    assert again.lm_head.weight is again.transformer.wte.weight
    generated = again.generate(tokens, max_new_tokens=4, do_sample=False)
    assert generated.shape == (1, 10)


@pytest.mark.parametrize("name", ["CNN-BatchNorm-Flatten", "LLaMA"])
def test_an_expanded_model_compiles_to_the_same_outputs(name):
    _, batch, wide = expanded(name)
    wide = copy.deepcopy(wide).eval()
    torch.testing.assert_close(answer(torch.compile(wide), batch), answer(wide, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["MLP", "CNN-BatchNorm-Flatten", "BERT"])
def test_an_expanded_model_exports_to_the_same_outputs(name, tmp_path):
    from fpe.graph.follow import exported
    from fpe.graph.inputs import as_call

    _, batch, wide = expanded(name)
    wide = copy.deepcopy(wide).eval()
    program = exported(wide, as_call(batch))
    torch.export.save(program, tmp_path / "wide.pt2")
    args, kwargs = as_call(batch)
    loaded = torch.export.load(tmp_path / "wide.pt2").module()(*args, **kwargs)
    torch.testing.assert_close(loaded[0], answer(wide, batch))


@pytest.mark.parametrize("name", ["MLP", "CNN-BatchNorm-Flatten"])
def test_an_expanded_model_runs_in_onnx_at_any_batch_size(name, tmp_path):
    import onnxruntime

    _, batch, wide = expanded(name)
    wide = copy.deepcopy(wide).eval()
    path = str(tmp_path / "wide.onnx")
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    torch.onnx.export(wide, (batch,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(path)
    for x in (batch, torch.cat([batch, 2 * batch, -batch])):
        (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), wide(x).detach(), rtol=1e-4, atol=1e-5)
