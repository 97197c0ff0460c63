"""Replace modules, look through wrappers around a model, and seed random number generators for a while."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode

from fpe.errors import ArgumentError

#: What functions take that take estimators too.
MODEL_OR_ESTIMATOR = "a torch.nn.Module, an FPEClassifier or an FPERegressor"
#: Hooks of a parameter, by the attribute, and what registers them.
HOOKS = {
    "_backward_hooks": "register_hook",
    "_post_accumulate_grad_hooks": "register_post_accumulate_grad_hook, as for optimizers that step in the "
    "backward pass",
}


def module_problem(model: Any, name: str = "model", give: str = "a torch.nn.Module") -> str | None:
    """Say what is given in the place of a module, such as an estimator, a path or a state dict."""
    if isinstance(model, nn.Module):
        return None
    inner = " such as its model_" * (hasattr(model, "_deployed") and give != MODEL_OR_ESTIMATOR)
    return f"{name} is a {type(model).__name__}; give {give}{inner}."


def check_module(model: Any, name: str = "model", give: str = "a torch.nn.Module") -> None:
    """Refuse what is no module before it is used as one."""
    problem = module_problem(model, name, give)
    if problem is not None:
        raise ArgumentError(problem)


def replace_modules_(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    """Put modules in the places of a model's own of these names, in place.

    They come under all names that they have, and into dicts, lists and tuples that are attributes.
    """
    new = {id(model.get_submodule(name)): module for name, module in modules.items()}

    def renewed(value: Any) -> Any:
        if isinstance(value, nn.Module):
            return new.get(id(value), value)
        if type(value) is dict and any(isinstance(own, nn.Module) for own in value.values()):
            value.update({key: renewed(own) for key, own in value.items()})
        elif type(value) is list and any(isinstance(own, nn.Module) for own in value):
            value[:] = map(renewed, value)
        elif type(value) is tuple and any(id(own) in new for own in value):
            return tuple(map(renewed, value))
        return value

    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in new:
                setattr(parent, name, new[id(child)])
        for name, value in list(vars(parent).items()):
            if name != "_modules" and renewed(value) is not value:
                vars(parent)[name] = renewed(value)


def closure_problems(model: nn.Module) -> list[str]:
    """Name the attributes that are functions with modules of a model captured, which a copy would share."""
    own = set(model.modules())
    return [
        f"attribute {name!r} of {path or type(model).__name__!r} is a function that has captured modules of "
        "the model; a copy would use the original's. Make it a method of the class."
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if any(captured in own for captured in _captured(value))
    ]


def _captured(value: Any) -> list[nn.Module]:
    """Return the modules that a function has captured; none for anything else."""
    value = value.func if isinstance(value, functools.partial) else value
    found = []
    for cell in getattr(value, "__closure__", None) or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
        found += [content] if isinstance(content, nn.Module) else _captured(content)
    return found


def unwrapped(model: Any) -> Any:
    """Return the model in what torch.compile, DistributedDataParallel and AveragedModel put around it."""
    while True:
        inner = getattr(model, "_orig_mod", model)
        if isinstance(inner, nn.parallel.DistributedDataParallel | AveragedModel):
            inner = inner.module
        if inner is model:
            return model
        model = inner


def network_of(model: Any) -> nn.Module:
    """Return the network of a model, or of an estimator; refuse anything else."""
    model = model._deployed() if hasattr(model, "_deployed") else model
    check_module(model, give=MODEL_OR_ESTIMATOR)
    network: nn.Module = unwrapped(model)
    return network


def hook_problems(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> list[str]:
    """Name the parameters that have hooks, which a parameter in their place would not have."""
    return [
        f"parameter {name!r} has a hook ({how}), which would be lost, since a new parameter takes its place; "
        "remove the hook, and register it on the new model."
        for name, parameter in named_parameters
        for attribute, how in HOOKS.items()
        if getattr(parameter, attribute, None)
    ]


def uncompiled(model: Any) -> nn.Module:
    """Return the model inside what ``torch.compile`` returned; any other model as it is."""
    return cast(nn.Module, getattr(model, "_orig_mod", model))


@contextmanager
def own_forward(model: nn.Module) -> Iterator[None]:
    """Run a model by its own forward pass instead of accelerate's.

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


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Seed all global random number generators, and put them back afterwards.

    Those of torch on the CPU and on each CUDA device, of Python and of NumPy. CUDA is not initialized for it.

    Parameters
    ----------
    seed : int, default 0
        Of each of them.
    """
    generators = [torch.default_generator]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        generators += torch.cuda.default_generators
    states = [generator.get_state() for generator in generators]
    pythons, numpys = random.getstate(), np.random.get_state()
    try:
        for generator in generators:
            generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % (1 << 32))
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        random.setstate(pythons)
        np.random.set_state(numpys)


class Weightless(TorchFunctionMode):
    """Let matrices that a model makes for its weights be zeros that take no memory, and stay so.

    Unlike on the meta device, vectors and buffers, such as the frequencies of positions, have their values.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "empty" and not kwargs.get("device"):
            shape = args[0] if args and not isinstance(args[0], int) else args
            if len(shape) > 1:
                return torch.zeros((), dtype=kwargs.get("dtype")).expand(*shape)
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        writes = name == "__setitem__" or (name.endswith("_") and not name.startswith("__"))
        if writes and first is not None and 0 in first.stride() and first.numel() > 1:
            return first
        return func(*args, **kwargs)
