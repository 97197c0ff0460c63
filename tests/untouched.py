"""Check that a call does not change models, batches, random numbers or the process."""

from __future__ import annotations

import copy
import functools
import logging
import os
import pickle
import random
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fpe._util.modules import seeded
from fpe.graph.inputs import as_call, tensors_in

#: Values that cannot change.
FIXED = (int, float, complex, bool, str, bytes, type(None), type, torch.dtype, torch.device, types.ModuleType)


class Picture:
    """What can be seen of some values: an entry for each path to a part of them."""

    def __init__(self, **value: Any) -> None:
        self.parts: dict[str, Any] = {}
        self.seen: dict[int, Any] = {}
        for name, part in value.items():
            self.look(part, name)

    def look(self, value: Any, path: str) -> None:
        """Record a value, and whatever is in it, once."""
        if isinstance(value, FIXED):
            self.parts[path] = (type(value), repr(value))
            return
        self.parts[path] = (type(value), id(value))
        if id(value) in self.seen:
            return
        self.seen[id(value)] = value  # kept alive, so that no other object gets its identity
        if isinstance(value, Tensor):
            self.tensor(value, path)
        elif isinstance(value, np.ndarray):
            self.parts[f"{path} bytes"] = value.tobytes()
        elif isinstance(value, torch.Generator):
            self.parts[f"{path} state"] = value.get_state().numpy().tobytes()
        elif isinstance(value, Mapping):
            self.parts[f"{path} keys"] = [repr(key) if isinstance(key, FIXED) else id(key) for key in value]
            for key, part in value.items():
                self.look(part, f"{path}[{key!r}]" if isinstance(key, FIXED) else f"{path}[{type(key)}]")
        elif isinstance(value, list | tuple):
            self.parts[f"{path} length"] = len(value)
            for number, part in enumerate(value):
                self.look(part, f"{path}[{number}]")
        elif isinstance(value, set | frozenset):
            self.parts[f"{path} elements"] = sorted(repr(part) for part in value)
        elif isinstance(value, types.FunctionType):
            for number, cell in enumerate(value.__closure__ or ()):
                with suppress(ValueError):  # not assigned yet
                    self.look(cell.cell_contents, f"{path} captured {number}")
        elif isinstance(value, types.MethodType):
            self.look(value.__self__, f"{path}.__self__")
        elif isinstance(value, functools.partial):
            self.look([value.func, value.args, value.keywords], f"{path} partial")
        slots = {n for kind in type(value).__mro__ for n in getattr(kind, "__slots__", ())}
        own = getattr(value, "__dict__", None)
        if isinstance(own, dict) and type(value).__module__.startswith("fpe."):
            # Cached properties of fpe's own values may be added.
            kinds = {n: getattr(type(value), n, None) for n in own}
            names = [n for n in own if not isinstance(kinds[n], functools.cached_property)]
            self.parts[f"{path}. keys"] = names
            for name in names:
                self.look(own[name], f"{path}.{name}")
        elif isinstance(own, dict):
            self.look(own, f"{path}.")
        for name in sorted(slots):
            if hasattr(value, name) and not name.startswith("__"):
                self.look(getattr(value, name), f"{path}.{name}")
        if isinstance(value, nn.Module) and not type(value).__module__.startswith("torch."):
            for kind in type(value).__mro__:
                if kind.__module__.startswith(("torch.", "builtins")):
                    break
                for name, part in vars(kind).items():
                    if isinstance(part, dict | list | set | Tensor) and not name.startswith("__"):
                        self.look(part, f"{kind.__name__}.{name}")

    def tensor(self, tensor: Tensor, path: str) -> None:
        """Record a tensor's properties, its entries, its gradient and its hooks."""
        facts = (tensor.dtype, tuple(tensor.shape), tensor.device, tensor.requires_grad, tensor._version)
        self.parts[f"{path} facts"] = (*facts, tensor._backward_hooks is None)
        if not tensor.is_meta and not torch.nn.parameter.is_lazy(tensor):
            data = tensor.detach().cpu().contiguous()
            self.parts[f"{path} entries"] = data.flatten().view(torch.uint8).numpy().tobytes()
        if tensor.is_leaf:
            self.look(tensor.grad, f"{path}.grad")


def process() -> dict[str, Any]:
    """Record the global state of the process."""
    # torch takes its own handler from this logger when it first traces anything
    logging.getLogger("torch.__trace").handlers.clear()
    loggers = {n: o for n, o in logging.root.manager.loggerDict.items() if isinstance(o, logging.Logger)}
    facts = {
        "logging": {
            "disabled": logging.root.manager.disable,
            **{
                f"logger {name or 'root'}": (o.level, o.disabled, list(o.handlers), list(o.filters))
                for name, o in {"": logging.root, **loggers}.items()
            },
        },
        "streams": (id(sys.stdout), id(sys.stderr)),
        "umask": _umask(),
        "folder": os.getcwd(),
        "variables": dict(os.environ),
        "warnings": list(warnings.filters),
        "torch": (
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
        ),
        "random numbers": (
            torch.get_rng_state().tolist(),
            [state.tolist() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
            random.getstate(),
            [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        ),
    }
    return facts


def _umask() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next((int(line.split()[1], 8) for line in status if line.startswith("Umask")), -1)


def outputs(model: nn.Module, batch: Any) -> list[Tensor] | str:
    """Return the outputs of a copy of the model in evaluation mode, or what it raises."""
    args, kwargs = copy.deepcopy(as_call(batch))
    with torch.no_grad(), seeded():
        try:
            return [t.clone() for t in tensors_in(copy.deepcopy(model).eval()(*args, **kwargs))]
        except Exception as error:
            return type(error).__name__


def pickled(model: nn.Module) -> str:
    """Tell whether a model can be pickled."""
    try:
        pickle.dumps(model)
    except Exception as error:
        return type(error).__name__
    return "yes"


@contextmanager
def untouched(model: nn.Module, batch: Any = None, runs: bool = True) -> Iterator[None]:
    """Fail if the block changes a model, a batch, or the global state of the process.

    Parameters
    ----------
    model : nn.Module
        Compared with all that can be reached from it: attributes, buffers, hooks and what they have captured,
        modes, gradients, and the containers of its classes.
    batch : Tensor, tuple or dict, optional
        Compared too; and a copy of the model is run on it before and after.
    runs : bool, default True
        Whether to run that copy.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answers = outputs(model, batch) if runs and batch is not None else []
        pickles = pickled(model)
    before, facts = Picture(model=model, batch=batch), process()
    yield
    facts_after, after = process(), Picture(model=model, batch=batch)
    for name, fact in facts.items():
        if isinstance(fact, dict):
            for key, value in fact.items():
                assert facts_after[name].get(key) == value, f"{name}: {key}"
        else:
            assert facts_after[name] == fact, name
    gone, new = before.parts.keys() - after.parts.keys(), after.parts.keys() - before.parts.keys()
    changed = [path for path in before.parts.keys() & after.parts if before.parts[path] != after.parts[path]]
    found = sorted([*gone, *new, *changed], key=len)
    assert not found, f"changed: {', '.join(found[:8])}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert pickled(model) == pickles
        now = outputs(model, batch) if runs and batch is not None else []
    assert len(now) == len(answers)
    for a, b in zip(now, answers, strict=True):
        assert type(a) is type(b)
        assert isinstance(a, str) or torch.equal(a, b) or a.isnan().any()
