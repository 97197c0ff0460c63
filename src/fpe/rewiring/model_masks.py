"""Masks of whole models: masked layers in place of plain ones, masks that are opened, or drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from fpe._util.modules import check_module, closure_problems, replace_modules_
from fpe.errors import ArgumentError, BudgetError, ModelError, raise_problems
from fpe.expansion.steps import Weights, mask
from fpe.graph.copies import deep_copy
from fpe.graph.layers import maskable, native, oriented
from fpe.masked import MaskedLayer


def with_masks(model: nn.Module, layers: str | Sequence[str] | None = None) -> nn.Module:
    """Return a copy in which linear layers and convolutions are masked layers with all weights free.

    Such a model computes what it did, and a `GradualPruner` can prune it.

    Parameters
    ----------
    model : nn.Module
        Any module; it is not changed.
    layers : str or sequence of str, optional
        Names or patterns of the layers; by default all that can be masked. Left as they are: convolutions in
        groups, layers that share their weight (a head with an embedding), and those with hooks or
        parametrizations.

    Raises
    ------
    ModelError
        If no layer of a name or pattern can be masked.
    """
    check_module(model)
    patterns = ["*"] if layers is None else [layers] if isinstance(layers, str) else list(layers)
    known, reasons = maskable(model)
    chosen = {n: m for n, m in known.items() if any(fnmatchcase(n, p) for p in patterns)}
    masked = {n for n, m in model.named_modules() if isinstance(m, MaskedLayer)}
    problems = [
        f"no layer that can be masked matches {pattern!r}; there are {', '.join([*known][:12]) or 'none'}."
        + "".join(f" {name!r} {why}." for name, why in reasons.items() if fnmatchcase(name, pattern))
        for pattern in patterns
        if not any(fnmatchcase(n, pattern) for n in (*chosen, *masked))
    ]
    problems += closure_problems(model)
    raise_problems(problems, ModelError, "the layers to mask")
    own = deep_copy(model, {})
    made: dict[str, nn.Module] = {}
    for name in chosen:
        layer = own.get_submodule(name)
        made[name] = mask(layer, _all_free(layer)).train(layer.training)
    if "" in made:
        return made[""]
    replace_modules_(own, made)
    return own


def _all_free(layer: nn.Module) -> Weights:
    weights = Weights.of(layer)
    weight, bias = weights.weight.contiguous(), weights.bias
    return Weights(weight, bias, torch.ones_like(weight))


def open_masks_(model: nn.Module, *, shrink: float = 1.0) -> nn.Module:
    """Free all masked weights of an expanded model, in place, and return it.

    Their values are zero at first, so the model computes what it did. It has more non-zero parameters than
    the budget until a `GradualPruner` has pruned it: the masks are borrowed from, and repaid.

    Parameters
    ----------
    model : nn.Module
        With masked layers: what `fpe.expand` returned.
    shrink : float, default 1.0
        By what the weights of the masked layers are multiplied, above 0 and at most 1; biases are not. The
        weights of a converged network are large, and those that were masked cannot catch up with them before
        they are pruned (as in Ash and Adams, 2020, where a trained network learns new data). 0.3 is good for
        trained networks of one hidden layer. The model then computes something else at first.

    Raises
    ------
    ArgumentError
        For a bad `shrink`.
    """
    check_module(model, give="a model that fpe.expand returned")
    shrink_(model, shrink)
    for module in model.modules():
        if isinstance(module, MaskedLayer):
            module.fpe_mask.fill_(1)
            module.mask_bias_(None)
    return model


@torch.no_grad()
def random_masks_(
    model: nn.Module, budget: int, *, scope: str = "neuron", groups: int = 4, seed: int = 0
) -> nn.Module:
    """Mask weights of an untrained model at random, until it has a budget of non-zeros; in place.

    The others are divided by the root of the share that stays free in their layer, so that each sum has the
    variance that it had. Masks stay as they are while the model is trained: it never has more weights than
    the budget. A wide model with such masks is often better than a small dense one of the same count
    (Golubeva et al., 2021). Small GPT-2s were best with a larger budget first, the geometric mean of the
    counts of the small model and the wide one, and a `GradualPruner` from 50 to 90 % of the steps. Deep MLPs
    were better pruned from a dense start.

    Parameters
    ----------
    model : nn.Module
        With masked layers, as `with_masks` returns it. It is returned.
    budget : int
        Non-zero parameters of the whole model, biases, norms and embeddings included.
    scope : {"neuron", "network", "group"}, default "neuron"
        Which weights are free: equally many inputs of each neuron of a layer, up to one; any places of the
        network; or the same inputs of all neurons of a group, so that `fpe.pack` stores dense blocks. With
        groups the count is below the budget by less than one input of every neuron of a layer.
    groups : int, default 4
        Groups of neurons in each layer, for ``scope="group"``; neighbors are in one group. Each input is
        read by as many groups as the others, but for one.
    seed : int, default 0
        Of the draws.

    Raises
    ------
    ArgumentError
        For a scope, a number of groups or a seed that is not allowed.
    BudgetError
        If the budget is too small for what cannot be masked, or for one input of each neuron, or larger than
        the model.
    ModelError
        If the model has no masked layer.

    Examples
    --------
    >>> import fpe
    >>> dense = fpe.mlp(64, 16, 10, seed=0)
    >>> wide = fpe.random_masks_(fpe.with_masks(fpe.mlp(64, 48, 10, seed=0)), fpe.count_nonzero(dense))
    >>> fpe.count_nonzero(dense), fpe.count_nonzero(wide)
    (1210, 1210)
    """
    if scope not in _SCOPES:
        raise ArgumentError(f"scope is {scope!r}; allowed are {', '.join(map(repr, _SCOPES))}.")
    for name, value, least in (("groups", groups, 1), ("seed", seed, 0), ("budget", budget, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ArgumentError(f"{name} is {value!r}; give an integer of at least {least}.")
    check_module(model, give="a model that fpe.with_masks returned")
    layers = [module for module in model.modules() if isinstance(module, MaskedLayer)]
    if not layers:
        raise ModelError("there is no masked layer; call fpe.with_masks first.")
    places = sum(layer.weight.numel() for layer in layers)
    fixed = sum(p.numel() for p in model.parameters()) - places
    shapes = [oriented(layer, layer.weight).flatten(1).shape for layer in layers]
    least = fixed + (len(layers) if scope == "network" else sum(neurons for neurons, _ in shapes))
    if not least <= budget <= fixed + places:
        raise BudgetError(
            f"the budget is {budget:,}; give from {least:,} (biases, norms, embeddings and other weights "
            f"without masks, and the fewest inputs) to {fixed + places:,}, the weights of the model."
        )
    generator = torch.Generator().manual_seed(seed)
    if scope == "network":
        flat = torch.zeros(places)
        flat[torch.randperm(places, generator=generator)[: budget - fixed]] = 1
        parts = torch.split(flat, [shape.numel() for shape in shapes])
        drawn = [own.view(shape) for own, shape in zip(parts, shapes, strict=True)]
    else:
        kept = _inputs_kept(shapes, budget - fixed)
        if scope == "group":
            drawn = [_grouped(shape, own, groups, generator) for shape, own in zip(shapes, kept, strict=True)]
        else:
            drawn = _of_neurons(shapes, kept, budget - fixed, generator)
    for layer, own in zip(layers, drawn, strict=True):
        free = own.view(oriented(layer, layer.weight).shape)
        layer.fpe_mask.copy_(native(layer, free))
        layer.weight.mul_(float(own.mean()) ** -0.5 if own.any() else 1.0)
        layer.project()
    return model


#: Which weights `random_masks_` may choose.
_SCOPES = ("neuron", "network", "group")


def _inputs_kept(shapes: Sequence[torch.Size], weights: int) -> list[int]:
    """Return how many inputs the neurons of each layer keep, one share of all, for so many weights."""
    share = weights / sum(neurons * inputs for neurons, inputs in shapes)
    kept = [max(1, int(share * inputs)) for _, inputs in shapes]
    spent = sum(own * neurons for own, (neurons, _) in zip(kept, shapes, strict=True))
    # Rounded down in each layer; what is left goes where the share is smallest.
    order = sorted(range(len(kept)), key=lambda i: kept[i] / shapes[i][1])
    while spent > weights:  # a neuron has one input at least
        i = max(range(len(kept)), key=lambda i: kept[i] / shapes[i][1])
        kept[i] -= 1
        spent -= shapes[i][0]
    for i in order:
        if spent + shapes[i][0] <= weights and kept[i] < shapes[i][1]:
            kept[i] += 1
            spent += shapes[i][0]
    return kept


def _of_neurons(
    shapes: Sequence[torch.Size], kept: Sequence[int], weights: int, generator: torch.Generator
) -> list[Tensor]:
    """Return masks of so many inputs of each neuron, (neurons, inputs); some have one more."""
    room = [torch.full((n,), float(own < inputs)) for own, (n, inputs) in zip(kept, shapes, strict=True)]
    left = weights - sum(own * n for own, (n, _) in zip(kept, shapes, strict=True))
    more = torch.cat(room)
    more *= (more * torch.rand(more.shape, generator=generator)).argsort(descending=True).argsort() < left
    counts = more.split([neurons for neurons, _ in shapes])  # type: ignore[no-untyped-call]
    return [
        (torch.rand(shape, generator=generator).argsort(1).argsort(1) < own + one[:, None]).float()
        for shape, own, one in zip(shapes, kept, counts, strict=True)
    ]


def _grouped(shape: torch.Size, kept: int, groups: int, generator: torch.Generator) -> Tensor:
    """Return a mask of so many inputs of each neuron, (neurons, inputs); the same ones within a group."""
    neurons, inputs = shape
    mask, read = torch.zeros(shape), torch.zeros(inputs)
    for rows in torch.arange(neurons).chunk(groups):
        chosen = (read + torch.rand(inputs, generator=generator)).argsort()[:kept]  # those read least
        read[chosen] += 1
        mask[rows[:, None], chosen] = 1
    return mask


@torch.no_grad()
def shrink_(model: nn.Module, shrink: float) -> nn.Module:
    """Multiply the weights of masked layers, not the biases, in place, and return the model."""
    check_shrink(shrink)
    for module in model.modules():
        if isinstance(module, MaskedLayer) and shrink < 1:
            module.weight.mul_(shrink)
    return model


def check_shrink(shrink: float) -> None:
    """Raise ArgumentError for a factor by which weights cannot shrink."""
    if isinstance(shrink, bool) or not isinstance(shrink, int | float) or not 0 < shrink <= 1:
        raise ArgumentError(f"shrink is {shrink!r}; give a number above 0 and at most 1.")
