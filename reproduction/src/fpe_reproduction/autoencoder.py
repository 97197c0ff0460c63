"""A sparse autoencoder: a layer's activations as sums of few of many features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SparseAutoencoder(nn.Module):
    """Encode activations, (samples, neurons), as non-negative latents, (samples, features), and back.

    The directions of the features have norm 1.
    """

    def __init__(self, neurons: int, features: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        directions = F.normalize(torch.randn(features, neurons, generator=generator), dim=1)
        self.decoder, self.center = nn.Parameter(directions), nn.Parameter(torch.zeros(neurons))
        self.encoder, self.bias = nn.Parameter(directions.clone()), nn.Parameter(torch.zeros(features))

    def encode(self, activations: Tensor) -> Tensor:
        """Return the latents."""
        return torch.relu((activations - self.center) @ self.encoder.T + self.bias)

    def forward(self, activations: Tensor) -> tuple[Tensor, Tensor]:
        """Return the activations as decoded, and the latents."""
        latents = self.encode(activations)
        return latents @ self.decoder + self.center, latents


def fitted(
    activations: Tensor,
    features: int,
    *,
    sparsity: float = 0.3,
    steps: int = 2000,
    batch_size: int = 500,
    lr: float = 1e-2,
    seed: int = 0,
) -> tuple[SparseAutoencoder, float]:
    """Fit an autoencoder to activations that are scaled to a mean square of 1.

    The loss is the squared error plus `sparsity` times the mean sum of the latents. Features that are never
    active keep their direction.

    Returns
    -------
    SparseAutoencoder, float
        And the share of the variance that it explains.
    """
    X = activations / activations.square().sum(1).mean().sqrt().clamp_min(torch.finfo(activations.dtype).tiny)
    model = SparseAutoencoder(X.shape[1], features, seed).to(X)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, 2 * (steps - step) / steps)
        rows = torch.randint(len(X), (batch_size,), generator=generator)
        decoded, latents = model(X[rows])
        loss = (decoded - X[rows]).square().sum(1).mean() + sparsity * latents.sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.decoder.copy_(F.normalize(model.decoder, dim=1))
    with torch.no_grad():
        decoded, _ = model(X)
        left = (decoded - X).square().sum() / (X - X.mean(0)).square().sum()
    return model, float(1 - left)


@torch.no_grad()
def latents_of(model: SparseAutoencoder, activations: Tensor) -> Tensor:
    """Return the latents of activations, scaled as `fitted` does."""
    scale = activations.square().sum(1).mean().sqrt().clamp_min(torch.finfo(activations.dtype).tiny)
    return model.encode(activations / scale)
