"""`fpe.widen`: a model wider in all layers computes what the model does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fpe
from fpe.errors import ArgumentError, BudgetError, ModelError
from fpe.graph.layers import maskable
from fpe.masked import MaskedLayer
from untouched import untouched
from zoo import ZOO, ConvNeXtBlock, Pooled, UNet, answer, images

fpe.widen(fpe.mlp(2, 2, 2), 2)  # torch then imports SymPy, which adds a filter of warnings

WIDENED = [
    "MLP",
    "MLP-LayerNorm",
    "CNN-BatchNorm-Flatten",
    "ResNet block",
    "GPT-2",
    "BERT",
    "LLaMA",
    "ViT",
    "CLIP",
]
REFUSED = {
    "ConvNeXt-style block": "'body.0', a ConvNeXtBlock, has parameters of its own",
    "U-Net-like skip": "'up', a ConvTranspose2d, has parameters of its own",
    "LSTM head": "'lstm', a LSTM, has parameters of its own",
    "Mixtral-style experts": "'experts.0.gate' is not called",
    "Mixtral": "computes something else",
    "T5": "computes something else",
}


def test_each_model_of_the_zoo_is_widened_or_refused():
    assert {*WIDENED, *REFUSED} == set(ZOO)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("name", WIDENED)
def test_the_wide_model_computes_the_same(name, factor):
    model, batch = ZOO[name]()
    with untouched(model, batch):
        wide = fpe.widen(model, factor, example_inputs=batch, seed=1)
    torch.testing.assert_close(answer(wide.eval(), batch), answer(model.eval(), batch), atol=1e-4, rtol=1e-4)
    masked = [module for module in wide.modules() if isinstance(module, MaskedLayer)]
    assert len(masked) == len(maskable(model)[0])
    assert all((layer.fpe_mask == 1).all() for layer in masked)
    assert fpe.count_nonzero(wide) > 1.5 * fpe.count_nonzero(model)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_widened_is_named_and_left_alone(name):
    model, batch = ZOO[name]()
    with untouched(model, batch), pytest.raises(ModelError, match=REFUSED[name]):
        fpe.widen(model, 2, example_inputs=batch)


def test_a_weight_between_hidden_layers_is_read_from_one_copy():
    """Of factor² places per weight, factor are not zero; of the first and the last layer all rows, or one."""
    model = fpe.mlp(8, [6, 5], 3, seed=0)
    wide = fpe.widen(model, 3, seed=0)
    first, hidden, last = (m.weight for m in wide if isinstance(m, MaskedLayer))
    assert (first.shape, hidden.shape, last.shape) == ((18, 8), (15, 18), (3, 15))
    counts = [int((weight != 0).sum()) for weight in (first, hidden, last)]
    assert counts == [3 * 48, 3 * 30, 15]
    for row in hidden:
        assert (row.view(6, 3) != 0).sum(1).tolist() == [1] * 6


def test_children_of_a_neuron_become_different():
    model = fpe.mlp(8, [6, 5], 3, seed=0)
    wide = fpe.widen(model, 2, seed=0)
    first = next(m for m in wide if isinstance(m, MaskedLayer))
    assert torch.equal(first.weight[0::2], first.weight[1::2])
    torch.optim.SGD(wide.parameters(), 0.1).zero_grad()
    wide(torch.randn(16, 8)).square().mean().backward()
    assert not torch.allclose(first.weight.grad[0::2], first.weight.grad[1::2])


def test_the_seed_chooses_the_copies():
    model = fpe.mlp(8, [6, 5], 3, seed=0)
    one, same, other = (fpe.widen(model, 2, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_attention_gets_more_heads_of_the_same_size():
    model, _ = ZOO["LLaMA"]()
    wide = fpe.widen(model, 2)
    before, after = model.config, wide.config
    assert after.num_attention_heads == 2 * before.num_attention_heads
    assert after.hidden_size // after.num_attention_heads == before.hidden_size // before.num_attention_heads
    assert after.num_hidden_layers == before.num_hidden_layers


def test_a_tied_head_stays_tied():
    model, _ = ZOO["GPT-2"]()
    assert model.lm_head.weight is model.transformer.wte.weight
    wide = fpe.widen(model, 2)
    assert wide.lm_head.weight is wide.transformer.wte.weight


def test_fresh_weights_are_drawn():
    model = fpe.mlp(8, [6, 5], 3, seed=0)
    wide = fpe.widen(model, 2, fresh=True)
    assert [m.weight.shape for m in wide if isinstance(m, MaskedLayer)] == [(12, 8), (10, 12), (3, 10)]
    assert all((m.weight != 0).all() for m in wide if isinstance(m, MaskedLayer))
    t5, batch = ZOO["T5"]()  # whose trained weights would be refused
    assert fpe.widen(t5, 2, example_inputs=batch, fresh=True).config.d_model == 2 * t5.config.d_model


def test_a_wider_model_of_ones_own_is_filled():
    model, batch = ZOO["ConvNeXt-style block"]()
    own = Pooled(nn.Sequential(ConvNeXtBlock(12), ConvNeXtBlock(12)), 12)
    before = {key: value.clone() for key, value in own.state_dict().items()}
    wide = fpe.widen(model, wide=own, example_inputs=batch)
    torch.testing.assert_close(answer(wide.eval(), batch), answer(model.eval(), batch), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(before[key], value) for key, value in own.state_dict().items())


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (lambda: UNet(), "has no module"),
        (lambda: Pooled(nn.Sequential(ConvNeXtBlock(9), ConvNeXtBlock(9)), 9), "must be a multiple"),
    ],
)
def test_a_model_that_is_not_a_wider_one_is_refused(own, message):
    model, batch = ZOO["ConvNeXt-style block"]()
    with pytest.raises(ModelError, match=message):
        fpe.widen(model, wide=own(), example_inputs=batch)


@pytest.mark.parametrize("model", [nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 2), nn.ReLU())])
def test_a_model_without_hidden_neurons_is_refused(model):
    with pytest.raises(ModelError, match="no hidden width"):
        fpe.widen(model, example_inputs=torch.randn(2, 4))


def test_the_state_of_random_numbers_stays():
    model = fpe.mlp(8, [6, 5], 3, seed=0)
    with untouched(model):
        fpe.widen(model, 2)


@pytest.mark.parametrize("factor", [1, 0, 2.0, True, "2"])
def test_a_factor_is_an_integer_of_at_least_two(factor):
    with pytest.raises(ArgumentError, match="factor is"):
        fpe.widen(fpe.mlp(8, 6, 3), factor)


def test_other_models_need_a_batch_and_no_masks():
    model, _ = ZOO["ResNet block"]()
    with pytest.raises(ArgumentError, match="example_inputs is None"):
        fpe.widen(model, 2)
    with pytest.raises(ModelError, match="has masked layers"):
        fpe.widen(fpe.with_masks(fpe.mlp(8, 6, 3)), 2)


@pytest.mark.parametrize("name", ["GPT-2", "ResNet block", "MLP-LayerNorm"])
def test_it_is_pruned_back_to_the_count_of_the_model(name):
    model, batch = ZOO[name]()
    budget = int(1.5 * fpe.count_nonzero(model))  # what is not in layers, such as embeddings, is not pruned
    wide = fpe.widen(model, 2, example_inputs=batch)
    optimizer = torch.optim.Adam(wide.parameters(), 1e-3)
    pruner = fpe.GradualPruner(wide, optimizer, budget=budget, steps=20)
    for _ in range(20):
        optimizer.zero_grad()
        answer(wide, batch).square().mean().backward()
        optimizer.step()
        pruner.step()
    assert fpe.count_nonzero(wide) == budget


@pytest.mark.parametrize("name", [name for name in WIDENED if name != "MLP-LayerNorm"])
def test_all_layers_are_expanded_at_an_equal_count(name):
    model, batch = ZOO[name]()
    with untouched(model, batch):
        wide = fpe.expand(model, 2, layers="all", example_inputs=batch)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    assert answer(wide, batch).shape == answer(model, batch).shape
    kept = [m.weight[m.fpe_mask == 1].abs() for m in wide.modules() if isinstance(m, MaskedLayer)]
    full = fpe.widen(model, 2, example_inputs=batch)
    weights = [m.weight.abs().flatten() for m in full.modules() if isinstance(m, MaskedLayer)]
    assert torch.cat(kept).min() >= torch.cat(weights).topk(len(torch.cat(kept))).values.min()


def test_a_wide_network_that_is_too_large_without_its_layers_is_refused():
    model = fpe.mlp(3, 20, 2, seed=0)
    with pytest.raises(BudgetError, match="smaller factor"):
        fpe.expand(model, 9, layers="all")


@pytest.mark.parametrize("call", [fpe.plan, fpe.expand_])
def test_all_layers_are_for_expand_alone(call):
    with pytest.raises(ModelError, match=r"for fpe\.expand alone"):
        call(fpe.mlp(8, 6, 3), 2, layers="all")


@pytest.mark.parametrize("how", [{"split": "shared"}, {"prune": "balanced"}, {"budget": "network"}])
def test_all_layers_take_no_split(how):
    with pytest.raises(ArgumentError, match=f"layers is 'all', and {next(iter(how))} is given"):
        fpe.expand(fpe.mlp(8, 6, 3), 2, layers="all", **how)


@pytest.mark.parametrize("name", ["GPT-2", "LLaMA", "ViT", "ResNet block"])
def test_it_is_saved_and_loaded(name, tmp_path):
    """A model of transformers into one of the wide configuration, another one into what was widened."""
    model, batch = ZOO[name]()
    wide = fpe.widen(model, 2, example_inputs=batch)
    fpe.save(wide, tmp_path / "wide.safetensors")
    like = type(model)(wide.config) if hasattr(wide, "config") else model
    again = fpe.load(tmp_path / "wide.safetensors", like=like)
    assert torch.equal(answer(again.eval(), batch), answer(wide.eval(), batch))
    assert fpe.count_nonzero(again) == fpe.count_nonzero(wide)


def test_images_of_another_size_fit_a_wide_network_without_a_flattened_map():
    model, batch = ZOO["ResNet block"]()
    wide = fpe.widen(model, 2, example_inputs=batch).eval()
    other = images(size=12)
    torch.testing.assert_close(wide(other), model.eval()(other), atol=1e-4, rtol=1e-4)


TINY = ["GPT-2", "LLaMA", "ViT", "ResNet block"]


@pytest.mark.parametrize("name", TINY)
def test_it_is_packed_and_compiled(name):
    model, batch = ZOO[name]()
    wide = fpe.expand(model, 2, layers="all", example_inputs=batch).eval()
    packed = fpe.pack(wide, example_inputs=batch)
    assert fpe.count_nonzero(packed) == fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    torch.testing.assert_close(answer(packed, batch), answer(wide, batch), atol=1e-5, rtol=1e-5)
    traced = torch.compile(wide, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(answer(traced, batch), answer(wide, batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["MLP", "ResNet block"])
def test_each_child_reads_what_its_parent_read_in_total(name):
    """Summed over the copies of an input, the weights of each child are those of its parent."""
    model, batch = ZOO[name]()
    wide = fpe.widen(model, 3, example_inputs=batch)
    for own, child in zip(model.modules(), wide.modules(), strict=True):
        if isinstance(own, nn.Linear | nn.Conv2d):
            out, into = own.weight.shape[:2]
            weight = child.weight.detach().view(
                out, -1, into, child.weight.shape[1] // into, *own.weight.shape[2:]
            )
            for copy in weight.sum(3).unbind(1):
                torch.testing.assert_close(copy, own.weight.detach())


def test_a_model_whose_stages_have_heads_of_several_sizes_is_refused_or_drawn_anew():
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
    model, batch = SwinForImageClassification(config), {"pixel_values": images(size=32)}
    with untouched(model, batch), pytest.raises(ModelError, match="computes something else"):
        fpe.widen(model, 2, example_inputs=batch)
    assert fpe.widen(model, 2, example_inputs=batch, fresh=True).config.num_heads == [4, 4]
