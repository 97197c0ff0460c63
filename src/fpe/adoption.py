"""Put modules in the places of others; look through what is around a model."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel


def adopt(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    """Put modules in the places of a model's own of these names, in place."""
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, module)


def unwrapped(model: Any) -> Any:
    """Return the model in what torch.compile, DistributedDataParallel and AveragedModel put around it."""
    while True:
        inner = getattr(model, "_orig_mod", model)
        if isinstance(inner, nn.parallel.DistributedDataParallel | AveragedModel):
            inner = inner.module
        if inner is model:
            return model
        model = inner
