"""Gradual pruning by layer, group or neuron: equal densities, least inputs, and exact counts."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fpe
from fpe.errors import ArgumentError


def network(*sizes):
    pairs = [(nn.Linear(*pair), nn.ReLU()) for pair in pairwise(sizes)]
    return fpe.with_masks(nn.Sequential(*[module for pair in pairs for module in pair][:-1]))


def pruned(model, budget, steps=100, after=lambda: None, **how):
    """Train a model, pruned to a budget; return its masked layers."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    pruner = fpe.GradualPruner(model, optimizer, budget=budget, steps=steps, **how)
    after = after(model)
    X = torch.randn(128, model[0].in_features)
    y = (X[:, : model[-1].out_features] * X[:, 1:2]).tanh()
    for _ in range(steps):
        optimizer.zero_grad()
        (model(X) - y).square().mean().backward()
        optimizer.step()
        pruner.step()
        if after is not None:
            after()
    return [layer for layer in model if isinstance(layer, fpe.MaskedLayer)]


def none(model):
    return None


@pytest.mark.parametrize("scope", ["layer", "neuron"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_all_layers_reach_one_density(scope, outputs):
    model = network(20, 24, 12, outputs)
    budget = fpe.count_nonzero(model) // 2
    layers = pruned(model, budget, 150, none, scope=scope)
    assert fpe.count_nonzero(model) == budget
    densities = [float(layer.fpe_mask.mean()) for layer in layers]
    fewest = min(layer.fpe_mask.numel() for layer in layers)
    assert max(densities) - min(densities) < 1.5 / fewest


def test_neurons_of_a_layer_keep_equally_many_inputs():
    model = network(64, 48, 10)
    layers = pruned(model, fpe.count_nonzero(model) // 3, 150, none, scope="neuron")
    for layer in layers:
        inputs = layer.fpe_mask.sum(dim=1)
        assert inputs[inputs > 0].max() - inputs[inputs > 0].min() <= 1


@pytest.mark.parametrize("scope", ["network", "group", "layer", "neuron"])
@pytest.mark.parametrize("shape", ["cubic", "once"])
def test_each_neuron_keeps_its_least_inputs_and_the_count_is_the_budget(scope, shape):
    model = network(8, 64, 64, 4)
    schedule = fpe.PruningSchedule(shape=shape)
    layers = pruned(model, 560, 60, none, scope=scope, least=2, schedule=schedule)
    assert fpe.count_nonzero(model) == 560
    inputs = torch.cat([layer.fpe_mask.sum(dim=1) for layer in layers])
    assert inputs[inputs > 0].min() >= 2  # those of none are dead


def test_least_inputs_cannot_be_promised_while_masks_change_later():
    model = network(8, 8, 2)
    with pytest.raises(ArgumentError, match="which would drop such inputs"):
        pruned(model, 40, 20, none, least=2, then="rigl")


def test_an_average_follows_the_masks_of_biases():
    averages = []

    def begin(model):
        averages.append(AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)))

        def follow():
            averages[0].update_parameters(model)
            fpe.project_(averages[0])

        return follow

    model = network(8, 32, 2)
    pruned(model, 60, 60, begin)
    assert fpe.count_nonzero(averages[0]) == fpe.count_nonzero(model) == 60
    assert (model[0].fpe_bias_mask == 0).any()


def test_lbfgs_whose_history_would_write_past_new_masks_is_refused():
    model = network(8, 8, 1)
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(ArgumentError, match="LBFGS"):
        fpe.GradualPruner(model, optimizer, budget=40, steps=10)
    with pytest.raises(ArgumentError, match="LBFGS"):
        fpe.Rewirer(model, optimizer, "rigl", steps=10)
