"""A sparse autoencoder finds the features of a toy model of superposition."""

import pytest
import torch
from torch.nn import functional as F

from fpe.metrics import effective_features
from fpe_reproduction.autoencoder import fitted, latents_of


def toy(features: int, neurons: int) -> torch.Tensor:
    """Return activations of features that are active one in ten times, as far apart as there is room."""
    generator = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(features, neurons, generator=generator), dim=1)
    for _ in range(2000):
        near = directions @ directions.T - 2 * torch.eye(features)
        directions = F.normalize(directions - 0.05 * directions[near.argmax(1)], dim=1)
    active = torch.rand(4000, features, generator=generator) < 0.1
    return active * (0.5 + torch.rand(4000, features, generator=generator)) @ directions


def test_more_features_in_as_many_neurons_are_more_effective_features():
    """The numbers are somewhat high, as a feature may have two latents."""
    found = {}
    for features in (6, 12):
        activations = toy(features, 6)
        model, explained = fitted(activations, 24, seed=1)
        assert explained > 0.9
        found[features] = effective_features(latents_of(model, activations))
    assert found[6] < 1.5 * 6 < found[12]
    assert found[12] == pytest.approx(12, rel=0.3)


def test_activations_of_one_direction_are_one_feature():
    activations = torch.rand(500, 1) * torch.tensor([[1.0, 2.0, 0.0]])
    model, explained = fitted(activations, 12, steps=500)
    assert explained > 0.8
    assert effective_features(latents_of(model, activations)) < 3
