"""Models whose weights are all free: masked layers in place of plain ones, or masks that are opened."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from fpe._util.modules import replace_modules_
from fpe.errors import ArgumentError, ModelError, raise_problems
from fpe.expansion.steps import Weights, mask
from fpe.graph.copies import deep_copy
from fpe.graph.layers import maskable
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
    shrink_(model, shrink)
    for module in model.modules():
        if isinstance(module, MaskedLayer):
            module.fpe_mask.fill_(1)
            module.mask_bias_(None)
    return model


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
