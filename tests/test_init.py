"""Re-initialization: weights drawn for the number of inputs that each neuron has."""

import copy

import pytest
import torch
from torch import nn

import fpe
from fpe.errors import ArgumentError, ModelError


def expanded():
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 9, 3))
    return fpe.expand(model, 2, example_inputs=torch.randn(2, 4, 5, 5), seed=0)


@pytest.mark.parametrize("wide", [fpe.expand(fpe.mlp(64, 8, 5), 4, prune="balanced"), expanded()])
def test_each_neuron_is_drawn_for_the_number_of_its_free_inputs(wide):
    """Weights fill ±1/√n, biases are those of a dense layer, and masked weights stay zero."""
    before = fpe.count_nonzero(wide)
    assert fpe.reinitialize_(wide, seed=3) is wide
    assert fpe.count_nonzero(wide) == before
    for layer in wide.modules():
        if hasattr(layer, "fpe_mask"):
            assert torch.all(layer.weight[layer.fpe_mask == 0] == 0)
            free = layer.fpe_mask.flatten(1).sum(dim=1)
            largest = layer.weight.flatten(1).abs().amax(dim=1) * free.sqrt()
            assert torch.all(largest <= 1)
            assert torch.all(largest[free > 20] > 0.8)
            largest = layer.bias.abs().max() * layer.weight[0].numel() ** 0.5
            assert 0.6 < largest <= 1


def test_the_same_seed_draws_the_same():
    wide = fpe.expand(fpe.mlp(16, 4, 3), 2)
    one, same, other = (fpe.reinitialize_(copy.deepcopy(wide), seed=seed)[0].weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ModelError, match="no masked layer"):
        fpe.reinitialize_(fpe.mlp(4, 2, 2))
    with pytest.raises(ArgumentError, match="seed is -1"):
        fpe.reinitialize_(expanded(), seed=-1)
