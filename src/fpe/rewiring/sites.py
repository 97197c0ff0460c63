"""Where weights may move in a model: its masked layers, their families, and the scopes of a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fpe.errors import ArgumentError, ModelError, raise_problems
from fpe.expansion.lineage import blocks_of, family_of
from fpe.expansion.plan import LayerPlan, plans_in
from fpe.masked import MaskedLayer
from fpe.packing.layers import PackedLayer
from fpe.rewiring.moves import by_block
from fpe.rewiring.policies import RewiringPolicy


@dataclass(frozen=True)
class Site:
    """A masked layer whose weights are trained.

    Attributes
    ----------
    name : str
        In the model.
    layer : MaskedLayer
        The layer itself.
    factor : int
        Children of each neuron; 1 for a layer that was not expanded itself.
    chosen : tuple of int or None
        The neurons that have so many, if not all.
    left : tuple of int
        The children that were not born, as in `LayerPlan.left`.
    children : Tensor or None
        The rows of each parent's children, as for `fpe.rewiring.moves.Tensors`.
    blocks : Tensor or None
        The rows of each block where it is more than one child of all parents, as for
        `fpe.rewiring.moves.Tensors`.
    """

    name: str
    layer: MaskedLayer
    factor: int = 1
    chosen: tuple[int, ...] | None = None
    left: tuple[int, ...] = ()
    children: Tensor | None = None
    blocks: Tensor | None = None


def find_sites(model: Any, policy: RewiringPolicy) -> tuple[list[Site], list[list[int]]]:
    """Return the masked layers that may move, and the scopes of the policy as their numbers.

    Raises
    ------
    ArgumentError
        If `model` is no model.
    ModelError
        If nothing can move, or not as the policy says; all layers concerned are named.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; give a model that fpe.expand returned.")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, MaskedLayer)}
    packed = [name for name, m in model.named_modules() if isinstance(m, PackedLayer)]
    if packed:
        raise ModelError(
            f"layers {', '.join(map(repr, packed))} are packed, and what is packed does not move; make the "
            "rewirer for fpe.unpack(model), and pack it after training."
        )
    if not layers:
        raise ModelError("no layer of this model is masked, so that nothing can move; call fpe.expand first.")
    planned = {name: layer for layer in _planned(model) for name in layer.group.producers}
    sites = [
        _site(name, layer, planned.get(name)) for name, layer in layers.items() if layer.weight.requires_grad
    ]
    if not sites:
        raise ModelError("the weights of all masked layers are frozen, so that nothing can move.")
    if policy.unit == "column":
        return sites, _column_scopes(model, sites)
    if policy.scope == "network":
        return sites, [list(range(len(sites)))]
    if policy.scope == "group":
        return sites, _groups(model, sites)
    return sites, [[i] for i in range(len(sites))]


def _planned(model: nn.Module) -> list[LayerPlan]:
    """Return the groups that were expanded, in the model and in its parts."""
    return [layer for plan in plans_in(model) for layer in plan.layers]


def _site(name: str, layer: MaskedLayer, planned: LayerPlan | None) -> Site:
    rows = layer.weight.shape[0]
    if planned is None or planned.neurons_after != rows:
        return Site(name, layer)
    parent = family_of(planned).parent
    children = torch.full((planned.neurons, planned.factor), rows)
    children[parent, torch.arange(rows) - torch.searchsorted(parent, parent)] = torch.arange(rows)
    blocks = None
    if planned.chosen is None and (planned.groups > 1 or planned.left):
        count = planned.groups * planned.factor
        blocks = blocks_of(planned).argsort(stable=True).view(count, -1)
    return Site(name, layer, planned.factor, planned.chosen, planned.left, children, blocks)


def _groups(model: nn.Module, sites: Sequence[Site]) -> list[list[int]]:
    """Return the sites of each expanded layer with those of all that read it; what overlaps is one."""
    number = {site.name: i for i, site in enumerate(sites)}
    root = list(range(len(sites)))
    for layer in _planned(model):
        names = (*layer.group.producers, *layer.group.consumers)
        mine = [number[name] for name in names if name in number]
        joined = {root[i] for i in mine}
        root = [min(joined) if r in joined else r for r in root]
    return [[i for i, r in enumerate(root) if r == first] for first in sorted(set(root))]


def _column_scopes(model: nn.Module, sites: Sequence[Site]) -> list[list[int]]:
    """Return the sites of each group of producers, whose columns move together."""
    number = {site.name: i for i, site in enumerate(sites)}
    scopes, problems = [], []
    for layer in _planned(model):
        names = layer.group.producers
        mine = [number[name] for name in names if name in number]
        if not mine:
            continue
        if len(mine) < len(names) or not _are_blocks([sites[i] for i in mine]):
            problems.append(
                f"layer {layer.group.name!r} is no shared split with whole columns, so that no "
                "column can move; expand with split='shared' and prune='columns', or give unit='weight'."
            )
        scopes.append(mine)
    if not scopes:
        problems.append(
            "unit='column' needs a plan of what was expanded, which this model has not; give what fpe.expand "
            "or fpe.load returned, or unit='weight'."
        )
    raise_problems(problems, ModelError, "the columns")
    return scopes


def _are_blocks(sites: Sequence[Site]) -> bool:
    """Tell whether layers are dense blocks over the same columns, but for fewer holes than a column has."""
    if any(site.children is None or site.chosen is not None for site in sites):
        return False
    cuts = [cast(Tensor, site.children).t() if site.blocks is None else site.blocks for site in sites]
    if len({cut.shape for cut in cuts}) > 1:
        return False
    masks = [site.layer.fpe_mask.unsqueeze(0) for site in sites]
    joint = torch.cat([by_block(*pair)[0] for pair in zip(masks, cuts, strict=True)], dim=3)
    entries = joint.shape[1] * joint.shape[3]
    free = (joint != 0).sum(dim=(1, 3))  # (blocks, inputs)
    return bool((entries - free[free > 0]).sum() < entries) and bool((free > 0).any(dim=1).all())
