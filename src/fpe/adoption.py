"""Put modules in the places of others."""

from __future__ import annotations

from torch import nn


def adopt(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    """Put modules in the places of a model's own of these names, in place."""
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, module)
