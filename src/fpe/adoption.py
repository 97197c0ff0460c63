"""Put modules in the places of others, and find what would be lost; look through what is around a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

#: Hooks of a parameter, by the attribute that holds them, and what registers them.
HOOKS = {
    "_backward_hooks": "register_hook",
    "_post_accumulate_grad_hooks": "register_post_accumulate_grad_hook, as for optimizers that step in the "
    "backward pass",
}


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


def hook_problems(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> list[str]:
    """Name the parameters that have hooks, which a parameter in their place would not have."""
    return [
        f"parameter {name!r} has a hook ({how}), which would be lost, since expanding makes a new parameter; "
        "remove the hook, and register it on the expanded model."
        for name, parameter in named_parameters
        for attribute, how in HOOKS.items()
        if getattr(parameter, attribute, None)
    ]
