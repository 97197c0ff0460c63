"""What a forward pass stores outside of its model: in its classes, and in the files that define them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

from fpe.graph.inputs import tensors_in

#: Packages whose classes keep nothing there.
_CLEAN = ("torch", "fpe", "builtins", "typing", "abc")
_ABSENT = object()


@contextmanager
def outside_kept(model: nn.Module) -> Iterator[None]:
    """Take out afterwards what a model's forward pass stores in its classes and in their files.

    Attributes of classes are put back. Of what stands in a file, and of the entries of dicts, lists and sets
    there or in a class, what has come and holds tensors is taken out again: other things may have come by an
    import. An ``lru_cache`` that was filled meanwhile is emptied.

    Parameters
    ----------
    model : nn.Module
        A model, or a copy of it.
    """
    kinds = {k for m in model.modules() for k in type(m).__mro__ if k.__module__.split(".")[0] not in _CLEAN}
    files = [sys.modules[name] for name in {k.__module__ for k in kinds} if name in sys.modules]
    owners = [(owner, dict(vars(owner))) for owner in (*kinds, *files)]
    values = {id(value): value for _, names in owners for value in names.values()}.values()
    containers = [(c, c.copy()) for c in values if type(c) in (dict, list, set)]
    caches = [(c, c.cache_info().misses) for c in values if isinstance(c, functools._lru_cache_wrapper)]
    try:
        yield
    finally:
        for owner, before in owners:
            for name in [n for n in (before.keys() | vars(owner).keys()) if not n.startswith("__")]:
                old, new = before.get(name, _ABSENT), vars(owner).get(name, _ABSENT)
                if old is new or not (isinstance(owner, type) or _holds_tensors(new)):
                    continue
                if old is _ABSENT:
                    delattr(owner, name)
                else:
                    setattr(owner, name, old)
        for container, content in containers:
            _put_back(container, content)
        for cache, misses in caches:
            if cache.cache_info().misses != misses:
                cache.cache_clear()


def _put_back(container: Any, before: Any) -> None:
    """Take out of a dict, list or set the tensors that it did not hold before."""
    if isinstance(container, dict):
        for key, value in list(container.items()):
            if value is not before.get(key, _ABSENT) and _holds_tensors((key, value)):
                if key in before:
                    container[key] = before[key]
                else:
                    del container[key]
    else:
        known = {id(part) for part in before}
        if any(id(part) not in known and _holds_tensors(part) for part in container):
            container.clear()
            container.extend(before) if isinstance(container, list) else container.update(before)


def _holds_tensors(value: Any) -> bool:
    """Tell whether there are tensors, or what stands for them while a model is traced, in a value."""
    if isinstance(value, fx.Proxy):
        return True
    if isinstance(value, dict):
        return any(_holds_tensors(part) for part in value.values())
    if isinstance(value, list | tuple | set):
        return any(_holds_tensors(part) for part in value)
    return not callable(value) and bool(tensors_in(value))
