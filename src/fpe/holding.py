"""Weights written past a mask: set back to zero after each step, or at once, or refused.

A mask acts on the gradient, so that whatever writes a weight directly can write past it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fpe.errors import ArgumentError, ModelError, raise_problems
from fpe.masked import HasMasks, MaskedLayer, past_mask


@torch.no_grad()
def project_(model: nn.Module) -> int:
    """Set every weight that a mask forbids to exactly zero, in place.

    For what writes weights past their masks: an average of weights whose masks have moved, merged LoRA
    weights, an initialiser. The outputs change with the weights that are set to zero.

    Parameters
    ----------
    model : nn.Module
        Expanded or packed. Of a sharded one, each process sets and counts its own piece.

    Returns
    -------
    int
        How many entries were not zero, NaN included; 0 when called again.

    Raises
    ------
    ModelError
        If a mask holds more than zeros and ones; nothing is changed then.

    Examples
    --------
    >>> import torch, fpe
    >>> wide = fpe.expand(fpe.mlp(8, 4, 2, seed=0), factor=2, seed=1)
    >>> _ = torch.nn.init.xavier_uniform_(wide[0].weight)
    >>> fpe.project_(wide), fpe.project_(wide)
    (40, 0)
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; give a model that fpe.expand returned.")
    raise_problems(list(_soft_masks(model)), ModelError, "the masks")
    past = {layer: count for _, layer, count in _past(model)}
    for layer in past:
        layer.project()
    return sum(past.values())


def enforce_masks_(optimizer: Optimizer, model: nn.Module) -> torch.utils.hooks.RemovableHandle:
    """Set masked weights back to zero after each step of `optimizer`.

    Needed only for what moves a weight whose gradient is zero: Muon, noise added to weights, an
    average of other weights. For SGD, Adam and their kin the layers hold by themselves.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Gets a hook after its step; otherwise unchanged.
    model : nn.Module
        The expanded model.

    Returns
    -------
    RemovableHandle
        Its ``remove()`` ends the service.
    """
    layers = [m for m in model.modules() if isinstance(m, HasMasks)]

    def project(*_: Any) -> None:
        for layer in layers:
            layer.project()

    return optimizer.register_step_post_hook(project)


def check_held(model: nn.Module, what: str) -> None:
    """Raise ModelError if a weight is not zero where its mask is; name all layers and say what to do.

    Parameters
    ----------
    model : nn.Module
        Expanded, packed or dense; it is not changed. Of a sharded one this process's piece is checked.
    what : str
        What is refused, after "before": ``"it is packed"``.

    Raises
    ------
    ModelError
        With the number of such weights in each layer.
    """
    raise_problems([*_soft_masks(model), *_computed(model)], ModelError, "the masks")
    found = list(_past(model))
    if found:
        layers = ", ".join(f"{count:,} in {name!r}" for name, _, count in found)
        raise ModelError(
            f"weights are not zero where their masks hold zero: {layers}. Something has written past the "
            "masks, such as an average of weights, merged LoRA weights, an initialiser, or an optimizer "
            f"without fpe.enforce_masks_. Call fpe.project_(model), which sets them to zero, before {what}."
        )


def _past(model: nn.Module) -> Iterator[tuple[str, HasMasks, int]]:
    """Yield the layers with weights past their masks, and how many each has."""
    for name, layer in model.named_modules():
        if isinstance(layer, HasMasks):
            count = sum(past_mask(p, mask) for p, mask in _held(layer))
            if count:
                yield name, layer, count


def _held(layer: HasMasks) -> Iterator[tuple[Tensor, Tensor]]:
    for name, parameter in layer.named_parameters(recurse=False):
        mask = layer.free(name)
        if mask is not None and not parameter.is_meta:
            yield parameter, mask


def _soft_masks(model: nn.Module) -> Iterator[str]:
    """Say which masks are no longer zeros and ones."""
    for name, layer in model.named_modules():
        if isinstance(layer, MaskedLayer) and not layer.fpe_mask.is_meta:
            mask: Any = layer.fpe_mask
            if mask.requires_grad or not bool(((mask == 0) | (mask == 1)).all()):
                yield (
                    f"the mask of layer {name!r} holds more than zeros and ones: it is learnt, or masks "
                    "have been averaged (give AveragedModel use_buffers=False). Set it to zeros and ones."
                )


def _computed(model: nn.Module) -> Iterator[str]:
    """Say which masked layers have a weight that is no parameter of theirs."""
    for name, layer in model.named_modules():
        if isinstance(layer, MaskedLayer) and "weight" not in layer._parameters:
            yield (
                f"the weight of layer {name!r} is computed by torch's pruning or a parametrization; make "
                "that permanent first, with torch.nn.utils.prune.remove or "
                "torch.nn.utils.parametrize.remove_parametrizations."
            )
