"""Masks that are drawn at random for an untrained wide model."""

import pytest
import torch
from torch import nn

import fpe
from fpe.errors import ArgumentError, BudgetError, ModelError
from fpe.graph.layers import oriented
from fpe.masked import MaskedLayer


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, MaskedLayer)]


def wide():
    return fpe.with_masks(fpe.mlp(40, [32, 32], 10, seed=0))


BUDGET = fpe.count_nonzero(fpe.mlp(40, [12, 12], 10, seed=0))


def test_the_count_is_that_of_the_budget_and_masks_follow_the_seed():
    first, again, other = (
        fpe.random_masks_(wide(), BUDGET, scope="network", seed=seed) for seed in (0, 0, 1)
    )
    assert {fpe.count_nonzero(model) for model in (first, again, other)} == {BUDGET}
    for own, same, apart in zip(*map(layers_of, (first, again, other)), strict=True):
        assert torch.equal(own.fpe_mask, same.fpe_mask)
        assert not torch.equal(own.fpe_mask, apart.fpe_mask)
        assert (own.weight[own.fpe_mask == 0] == 0).all()


def test_free_weights_are_scaled_so_that_sums_keep_their_variance():
    plain, masked = wide(), fpe.random_masks_(wide(), BUDGET)
    for before, after in zip(layers_of(plain), layers_of(masked), strict=True):
        free = after.fpe_mask == 1
        share = float(after.fpe_mask.mean())
        assert torch.allclose(after.weight[free], before.weight[free] * share**-0.5)
        assert torch.equal(after.bias, before.bias)


def test_neurons_of_a_layer_keep_equally_many_inputs_up_to_one():
    model = fpe.random_masks_(wide(), BUDGET)
    assert fpe.count_nonzero(model) == BUDGET
    for layer in layers_of(model):
        kept = layer.fpe_mask.sum(1)
        assert kept.max() - kept.min() <= 1


def test_neurons_of_a_group_keep_the_same_inputs_within_the_budget():
    model = fpe.random_masks_(wide(), BUDGET, scope="group", groups=3)
    assert BUDGET - 32 < fpe.count_nonzero(model) <= BUDGET
    for layer in layers_of(model):
        groups = layer.fpe_mask.chunk(3)
        assert all((rows == rows[0]).all() for rows in groups)
        assert len({int(rows[0].sum()) for rows in groups}) == 1
        read = torch.stack([rows[0] for rows in groups]).sum(0)
        assert read.max() - read.min() <= 1


def test_groups_are_packed_as_dense_blocks():
    model = fpe.random_masks_(wide(), BUDGET, scope="group").eval()
    packed = fpe.pack(model)
    x = torch.randn(5, 40)
    assert torch.allclose(packed(x), model(x), atol=1e-5)
    for row in packed.fpe_packing.rows[:2]:
        assert (row.format, row.bytes[0]) == ("blocks", 4 * row.nonzero)


def test_convolutions_and_gpt2_keep_to_the_budget():
    transformers = pytest.importorskip("transformers")
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.ConvTranspose2d(16, 4, 2))
    config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50, n_positions=16)
    for model, layers in ((net, None), (transformers.GPT2LMHeadModel(config), "transformer.h.*")):
        budget = fpe.count_nonzero(model) // 2
        for scope in ("network", "neuron", "group"):
            masked = fpe.random_masks_(fpe.with_masks(model, layers), budget, scope=scope)
            count = fpe.count_nonzero(masked)
            assert count == budget if scope != "group" else 0.9 * budget < count <= budget
            for layer in layers_of(masked):
                kept = oriented(layer, layer.fpe_mask).flatten(1).sum(1)
                assert scope == "network" or kept.max() - kept.min() <= (scope == "neuron")


def test_the_model_learns_and_never_has_more_weights():
    model = fpe.random_masks_(wide(), BUDGET)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, losses = torch.randn(64, 40), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), torch.arange(64) % 10)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert fpe.count_nonzero(model) <= BUDGET
    assert losses[-1] < losses[0]


def test_what_cannot_be_done_is_refused_and_nothing_changes():
    model = wide()
    before = [p.clone() for p in model.parameters()]
    for how, error, words in (
        ({"budget": 80}, BudgetError, "the budget is 80; give from 276"),
        ({"budget": 10**6}, BudgetError, "to 2,826, the weights of the model"),
        ({"budget": BUDGET, "scope": "layer"}, ArgumentError, "allowed are 'neuron', 'network', 'group'"),
        ({"budget": BUDGET, "groups": 0}, ArgumentError, "groups is 0; give an integer of at least 1"),
        ({"budget": BUDGET, "seed": -1}, ArgumentError, "seed is -1"),
        ({"budget": True}, ArgumentError, "budget is True"),
    ):
        with pytest.raises(error, match=words):
            fpe.random_masks_(model, **how)
    assert all(torch.equal(p, own) for p, own in zip(model.parameters(), before, strict=True))
    with pytest.raises(ModelError, match="with_masks"):
        fpe.random_masks_(fpe.mlp(4, 3, 2), 10)
