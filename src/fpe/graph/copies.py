"""Copy a model, in another precision or on another device if need be, so that the user's is never run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fpe.errors import ModelError
from fpe.graph.analysis import deep_copy, with_own_closures


def copied(model: nn.Module, dtype: torch.dtype | None = None, device: Any = None) -> nn.Module:
    """Return a copy with tensors of its own, each made at once in its new type and place.

    Parameters
    ----------
    model : nn.Module
        Not changed.
    dtype : torch.dtype, optional
        For floating-point parameters and buffers; by default they keep theirs.
    device : optional
        For all parameters and buffers; by default they stay where they are.

    Returns
    -------
    nn.Module
        Its parameters have no gradients and require none.

    Raises
    ------
    ModelError
        If the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if type(tensor.data) is Tensor:
            value = tensor.detach().to(device, dtype if tensor.is_floating_point() else None, copy=True)
            memo[id(tensor)] = nn.Parameter(value, False) if isinstance(tensor, nn.Parameter) else value
    return _duplicate(model, memo).requires_grad_(False)


def with_own_state(model: nn.Module) -> nn.Module:
    """Return a copy that has the same parameters, and buffers and attributes of its own."""
    return _duplicate(model, {id(p): p for p in model.parameters()})


def _duplicate(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        duplicate = deep_copy(model, memo)
    except Exception as error:  # the user's own code may fail in any way
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({first_line(error)}); fpe runs a copy, so that it "
            "leaves the model as it is. Take out of its attributes what copy.deepcopy does not copy."
        ) from error
    return with_own_closures(duplicate, memo)


def first_line(error: Exception) -> str:
    """Return an error's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__
