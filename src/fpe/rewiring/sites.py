"""The masked layers of a model that may be rewired, whole or sharded over processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from fpe.errors import ArgumentError, ModelError, raise_problems
from fpe.expansion.index_maps import ExpandedGroup, IndexMap, groups_in, index_map_of
from fpe.graph.layers import oriented_weight
from fpe.masked import MaskedLayer, count_nonzero, placed_like
from fpe.packing.layers import PackedLayer
from fpe.rewiring.drop_and_grow import by_block, table_of
from fpe.rewiring.policies import RewiringPolicy


@dataclass(frozen=True)
class Site:
    """A masked layer whose weights are trained, with the tables of `fpe.rewiring.drop_and_grow.LayerBatch`.

    `index_map` is None for a layer that only consumes expanded neurons, and for stacked experts and
    transposed convolutions, of which single weights are moved alone.
    """

    name: str
    layer: MaskedLayer
    index_map: IndexMap | None = None
    children: Tensor | None = None
    blocks: Tensor | None = None

    @classmethod
    def of(cls, name: str, layer: MaskedLayer) -> Site:
        """Return the site of a layer with the tables of its children and blocks."""
        rows, own = layer.weight.shape[0], index_map_of(layer)
        if own is None or oriented_weight(layer) is not layer.weight:  # its neurons are along another axis
            return cls(name, layer)
        parts = own.parts_in(rows)
        parent = own.origins(parts)
        children = torch.full((own.neurons * parts, own.factor), rows)
        children[parent, torch.arange(rows) - torch.searchsorted(parent, parent)] = torch.arange(rows)
        blocks = None
        if own.chosen is None and (own.groups > 1 or own.dropped or parts > 1):
            blocks = own.blocks.repeat(parts).argsort(stable=True).view(own.groups * own.factor, -1)
        return cls(name, layer, own, children, blocks)


def find_sites(model: Any, policy: RewiringPolicy) -> tuple[list[Site], list[list[int]]]:
    """Return the sites of a model, and the scopes of the policy as lists of their numbers.

    A ModelError names all layers to which the policy cannot be applied.
    """
    sites = trained_sites(model)
    if policy.unit == "column":
        return sites, _column_scopes(groups_in(model), sites)
    if policy.scope == "network":
        return sites, [list(range(len(sites)))]
    if policy.scope == "group":
        return sites, _group_scopes(groups_in(model), sites)
    return sites, [[i] for i in range(len(sites))]


def _group_scopes(groups: Sequence[ExpandedGroup], sites: Sequence[Site]) -> list[list[int]]:
    """Return the sites of each expanded layer and its consumers; groups that overlap are merged."""
    number = {site.name: i for i, site in enumerate(sites)}
    root = list(range(len(sites)))
    for group in groups:
        names = (*group.producers, *group.consumers)
        joined = {root[number[name]] for name in names if name in number}
        root = [min(joined) if r in joined else r for r in root]
    return [[i for i, r in enumerate(root) if r == first] for first in sorted(set(root))]


def _column_scopes(groups: Sequence[ExpandedGroup], sites: Sequence[Site]) -> list[list[int]]:
    """Return the sites of each group of producers, which have the same columns."""
    number = {site.name: i for i, site in enumerate(sites)}
    scopes, problems = [], []
    for group in groups:
        mine = [number[name] for name in group.producers if name in number]
        if mine and (len(mine) < len(group.producers) or not _are_blocks([sites[i] for i in mine])):
            problems.append(
                f"layer {group.producers[0]!r} is not a shared split with whole columns; expand with "
                "split='shared' and prune='columns', or give unit='weight'."
            )
        scopes += [mine] if mine else []
    if not scopes:
        problems.append(
            "unit='column' needs a model that fpe.expand or fpe.load returned; give one, or unit='weight'."
        )
    raise_problems(problems, ModelError, "the columns")
    return scopes


def _are_blocks(sites: Sequence[Site]) -> bool:
    """Tell whether layers are dense blocks over the same columns, with fewer gaps than a column's entries."""
    if any(site.index_map is None or site.index_map.chosen is not None for site in sites):
        return False
    tables = [table_of(site.children, site.blocks) for site in sites]
    if len({(len(own), site.layer.weight.shape[1]) for own, site in zip(tables, sites, strict=True)}) > 1:
        return False
    masks = [site.layer.fpe_mask.unsqueeze(0) for site in sites]
    each = [by_block(*pair)[0] for pair in zip(masks, tables, strict=True)]
    entries = sum(mask.shape[1] * mask.shape[3] for mask in each)
    free = torch.stack([(mask != 0).sum(dim=(1, 3)) for mask in each]).sum(0)  # (blocks, inputs)
    return bool((entries - free[free > 0]).sum() < entries) and bool((free > 0).any(dim=1).all())


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that may be sharded over processes in one piece; all processes must call this."""
    tensor = tensor.detach()
    return cast(Any, tensor).full_tensor() if type(tensor).__name__ == "DTensor" else tensor


def count_unmasked(model: nn.Module) -> int:
    """Count the parameters that are not masked, also of a sharded model; all processes must call this."""
    layers = [layer for layer in model.modules() if isinstance(layer, MaskedLayer)]
    masks = [m for layer in layers for m in (layer.fpe_mask, layer.fpe_bias_mask) if m is not None]
    masked = sum(int((whole(m) == 0).sum()) for m in masks)
    return sum(int(p.numel()) for p in model.parameters()) - masked


def whole_count(model: nn.Module) -> int:
    """Count the non-zero parameters, also of a sharded model; all processes must call this."""
    sharded = any(type(parameter).__name__ == "DTensor" for parameter in model.parameters())
    return count_unmasked(model) if sharded else count_nonzero(model)


def local(tensor: Tensor) -> Tensor:
    """Return this process's piece of a tensor."""
    tensor = tensor.detach()
    return cast(Any, tensor).to_local() if type(tensor).__name__ == "DTensor" else tensor


def average_(tensor: Tensor) -> Tensor:
    """Average a tensor over all processes, if there are several; all of them must call this."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
        tensor.div_(dist.get_world_size())
    return tensor


@torch.no_grad()
def set_mask_(layer: MaskedLayer, mask: Tensor, optimizers: Sequence[Optimizer]) -> None:
    """Set a layer's mask (whole); masked weights, and the moments of changed entries, become 0."""
    own = layer.fpe_mask
    unchanged = placed_like(mask * (mask == whole(own)), layer.weight)
    own.copy_(placed_like(mask, own))
    layer.project()
    if layer.weight.grad is not None:
        layer.weight.grad.mul_(placed_like(mask, layer.weight))
    for optimizer in optimizers:
        for value in optimizer.state.get(layer.weight, {}).values():
            if isinstance(value, Tensor) and value.shape == layer.weight.shape:
                value.mul_(unchanged)


@torch.no_grad()
def set_bias_mask_(layer: MaskedLayer, mask: Tensor | None, optimizers: Sequence[Optimizer]) -> None:
    """Set the mask of a layer's biases (whole); masked biases, and their moments, become 0."""
    layer.mask_bias_(mask)
    own = layer.fpe_bias_mask
    if own is None:
        return
    for optimizer in optimizers:
        for value in optimizer.state.get(layer.bias, {}).values():
            if isinstance(value, Tensor) and value.shape == layer.bias.shape:
                value.mul_(placed_like(own, layer.bias))


def trained_sites(model: Any) -> list[Site]:
    """Return the masked layers of a model whose weights are trained; raise if there are none."""
    packed = [name for name, m in model.named_modules() if isinstance(m, PackedLayer)]
    if packed:
        raise ModelError(
            f"layers {', '.join(map(repr, packed))} are packed, and packed layers have no masks to change; "
            "take fpe.unpack(model), and pack it after training, or fpe.BlockRewirer and fpe.BlockPruner for "
            "packed blocks."
        )
    layers = {name: m for name, m in model.named_modules() if isinstance(m, MaskedLayer)}
    if not layers:
        raise ModelError("no layer of this model is masked; call fpe.expand or fpe.with_masks first.")
    sites = [Site.of(name, layer) for name, layer in layers.items() if layer.weight.requires_grad]
    if not sites:
        raise ModelError("the weights of all masked layers are frozen; one must be trained.")
    return sites


def check_present(model: nn.Module, sites: Sequence[Site], what: str) -> None:
    """Raise if layers of the model have been replaced since."""
    for site in sites:
        try:
            here = model.get_submodule(site.name) is site.layer
        except AttributeError:
            here = False
        if not here:
            raise ModelError(
                f"layer {site.name!r} is no longer the one that this {what} was made for: it has been "
                f"packed or replaced. Make a new {what}, for fpe.unpack(model) if the model is packed."
            )


def check_optimizers(optimizers: Sequence[Any], sites: Sequence[Site]) -> None:
    """Raise if the optimizers are none, or do not train the weights of all sites."""
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            raise ArgumentError(f"optimizer is a {type(optimizer).__name__}; give a torch.optim.Optimizer.")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ArgumentError(
                "the optimizer is LBFGS, whose history would write past masks that change; use another, such "
                "as Adam or SGD."
            )
    trained = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
    missing = [site.name for site in sites if id(site.layer.weight) not in trained]
    if missing:
        raise ArgumentError(
            f"the optimizer does not train the weights of {', '.join(map(repr, missing))}; make it from "
            "the parameters of the model with masks, or give all optimizers in a list."
        )
