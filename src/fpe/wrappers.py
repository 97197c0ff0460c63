"""Look through what torch.compile and accelerate put around a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn


def uncompiled(model: Any) -> nn.Module:
    """Return the model inside what ``torch.compile`` returned; any other model as it is."""
    return cast(nn.Module, getattr(model, "_orig_mod", model))


@contextmanager
def own_forward(model: nn.Module) -> Iterator[None]:
    """Let a model run by its own forward pass while accelerate's stands in front of it.

    ``Accelerator.prepare`` sets ``model.forward`` to a function that casts inputs and outputs, which
    ``torch.export`` and symbolic tracing cannot follow, and keeps the old one as ``_original_forward``.
    """
    wrapped = {
        module: vars(module)["forward"]
        for module in model.modules()
        if "forward" in vars(module) and "_original_forward" in vars(module)
    }
    for module in wrapped:
        original = vars(module)["_original_forward"]
        # A method of the class needs no attribute; prepared twice, the original is a wrapper, too.
        if getattr(original, "__func__", None) is type(module).forward or hasattr(original, "__wrapped__"):
            del module.forward
        else:
            module.forward = original
    try:
        yield
    finally:
        for module, forward in wrapped.items():
            module.forward = forward
