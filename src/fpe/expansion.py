"""Expand a model: every group of the plan, in order, by the four steps of the procedure."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fpe import procedure
from fpe.budget import Prune, as_prune, count_nonzero
from fpe.errors import BudgetError
from fpe.graph import Group
from fpe.graph.groups import linear
from fpe.partition import Split, as_split
from fpe.planning import plan


def expand(
    model: nn.Module,
    factor: int = 2,
    split: str | Split = "random",
    prune: str | Prune = "magnitude",
    layers: Sequence[str | Group] | None = None,
    example_inputs: Any = None,
    seed: int = 0,
) -> nn.Module:
    """Return a wider model with the same number of non-zero parameters; `model` is not changed.

    Each neuron becomes `factor` children that share its inputs out without overlap; its outgoing
    weights are copied to each child, and as many of the smallest weights are held at zero as were
    copied (section 2.3). The new model's weights are its own; train it on in any loop, with a new
    optimizer.

    Parameters
    ----------
    model, factor, split, prune, layers, example_inputs, seed
        As for `fpe.plan`.

    Returns
    -------
    nn.Module
        A copy of `model` of the same class, on the same device, in which the layers concerned are
        `MaskedLinear` and the norms between them wider. ``fpe_plan`` holds its `Plan`.

    Raises
    ------
    ArgumentError, ModelError, BudgetError
        As for `fpe.plan`, before anything is copied.

    Examples
    --------
    >>> import torch, fpe
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> wide = fpe.expand(model, factor=2, seed=1)
    >>> wide[0].weight_mask.sum().item() + wide[2].weight_mask.sum().item() + 8 + 2
    46.0
    """
    todo = plan(model, factor, split, prune, layers, example_inputs, seed)
    split, prune = as_split(split), as_prune(prune)
    rng = np.random.default_rng(seed)
    replaced: dict[str, nn.Module] = {}
    with torch.no_grad():
        for layer in todo.layers:
            group = layer.group
            producer = _current(model, replaced, group.producer)
            consumers = [_current(model, replaced, name) for name in group.consumers]
            dense = [procedure.Weights.of(each) for each in (producer, *consumers)]

            children = procedure.partition(dense[0].weight, factor, split, rng)
            wide = procedure.duplicate(dense[0], dense[1:], children, factor)
            procedure.prune(wide, layer.copies, prune, factor)

            names = (group.producer, *group.consumers)
            for name, old, new in zip(names, (producer, *consumers), wide, strict=True):
                replaced[name] = procedure.mask(old, new)
            for name in group.between:
                replaced[name] = procedure.widen(model.get_submodule(name), layer.neurons, factor)
    wide_model = _copy_with(model, replaced)
    wide_model.fpe_plan = todo  # type: ignore[assignment]
    if count_nonzero(wide_model) != todo.nonzero:
        raise BudgetError(
            f"the expanded model would have {count_nonzero(wide_model)} non-zero parameters instead of "
            f"{todo.nonzero}; prune {todo.prune} did not pay exactly for the copies."
        )
    return wide_model


def _current(model: nn.Module, replaced: dict[str, nn.Module], name: str) -> nn.Linear:
    """Return a layer as it is after the groups done so far."""
    layer = replaced.get(name)
    return layer if isinstance(layer, nn.Linear) else linear(model, name)


def _copy_with(model: nn.Module, replaced: dict[str, nn.Module]) -> nn.Module:
    """Copy a model with other layers in the place of some, whose weights are not copied first."""
    memo: dict[int, Any] = {id(model.get_submodule(name)): new for name, new in replaced.items()}
    return copy.deepcopy(model, memo)
