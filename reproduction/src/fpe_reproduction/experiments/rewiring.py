"""The paper's dynamic masks (A.7): weights that move at random, at a constant count."""

from __future__ import annotations

import torch
from torch import nn

from fpe.masked import MaskedLinear


@torch.no_grad()
def rewire_at_random(
    network: nn.Module, optimizer: torch.optim.Adam, share: float, generator: torch.Generator
) -> None:
    """Let the smallest weights of each masked layer go, and free as many others at random; in place.

    The paper frees first and prunes again later, which for a while exceeds the count; here what goes
    is what has stayed small since the last time. Freed weights start at 0, their moments too.

    Parameters
    ----------
    network : nn.Module
        Expanded; its masks change, layer by layer at the same count.
    optimizer : torch.optim.Adam
        Over its parameters; has taken a step.
    share : float
        Share of the free weights of each layer that go; fewer where fewer are held at zero.
    generator : torch.Generator
        Source of the choice of those that are freed.
    """
    for layer in network.modules():
        if not isinstance(layer, MaskedLinear):
            continue
        weight, mask = layer.weight.view(-1), layer.fpe_mask.view(-1)
        free, held = mask.nonzero().flatten(), (mask == 0).nonzero().flatten()
        count = min(int(share * len(free)), len(held))
        going = free[weight[free].abs().argsort(stable=True)[:count]]
        coming = held[torch.randperm(len(held), generator=generator)[:count]]
        mask[going], mask[coming] = 0, 1
        weight[going] = 0
        for name in ("exp_avg", "exp_avg_sq"):
            moment = optimizer.state[layer.weight][name].view(-1)
            moment[going] = 0
            moment[coming] = 0
