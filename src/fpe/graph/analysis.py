"""Copy a model to analyse it, so that whatever its forward pass stores is stored in the copy."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fpe._util.modules import seeded
from fpe.graph.inputs import Call
from fpe.graph.outside import outside_kept
from fpe.masked import MaskedLayer


def deep_copy(model: nn.Module, memo: dict[Any, Any] | None = None) -> nn.Module:
    """Copy a model as ``copy.deepcopy`` does, also one that holds what cannot be copied.

    Parameters
    ----------
    model : nn.Module
        Not changed.
    memo : dict, optional
        As for ``copy.deepcopy``: by the identity of an object what stands in its place in the copy. It gets
        all objects that are copied.

    Returns
    -------
    nn.Module
        The copy. A tensor with a history of gradients is copied without it; locks, files and other objects
        that cannot be copied are shared.
    """
    memo = {} if memo is None else memo
    tried = dict(memo)
    try:
        own = copy.deepcopy(model, tried)
        memo |= tried
    except Exception:  # the user's own objects may fail in any way
        seen: set[int] = set()
        for module in model.modules():
            for name, value in vars(module).items():
                if name != "_modules":
                    _share_uncopyable(value, memo, seen)
        own = copy.deepcopy(model, memo)
    return own


def _share_uncopyable(value: Any, memo: dict[Any, Any], seen: set[int]) -> None:
    """Enter into `memo` what cannot be copied in a value, looking as deep as is needed."""
    if id(value) in seen or id(value) in memo or _can_be_copied(value, memo):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        memo[id(value)] = value.detach().clone()
        return
    if isinstance(value, dict):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        parts = list(value)
    else:
        parts = list(getattr(value, "__dict__", {}).values())
    for part in parts:
        _share_uncopyable(part, memo, seen)
    if not _can_be_copied(value, memo):
        memo[id(value)] = value


def _can_be_copied(value: Any, memo: dict[Any, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:
        return False
    return True


def analysis_copy(model: nn.Module) -> nn.Module:
    """Copy a model in order to trace it or run it: the weights are shared, all else is the copy's own.

    Parameters
    ----------
    model : nn.Module
        Not changed. Its parameters and masks are not copied: the copy has others in the same memory.

    Returns
    -------
    nn.Module
        With its own buffers, attributes and hooks. Hooks and other functions among the attributes see copies
        of the modules, lists and other objects that they have captured.
    """
    masks = [m.fpe_mask for m in model.modules() if isinstance(m, MaskedLayer)]
    memo: dict[Any, Any] = {id(mask): mask.data for mask in masks}
    for parameter in model.parameters():
        if not is_lazy(parameter):
            memo[id(parameter)] = nn.Parameter(parameter.data, parameter.requires_grad)
    return with_own_closures(deep_copy(model, memo), memo)


def with_own_closures(own: nn.Module, memo: dict[Any, Any]) -> nn.Module:
    """Let the functions in a copy capture copies of what they have captured; return the copy.

    Parameters
    ----------
    own : nn.Module
        A copy, changed in place.
    memo : dict
        What `deep_copy` has entered for it.
    """
    for module in own.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, dict) and name.endswith("_hooks"):
                for key, hook in value.items():
                    value[key] = _with_own_closure(hook, memo)
            else:
                vars(module)[name] = _with_own_closure(value, memo)
    return own


def _with_own_closure(value: Any, memo: dict[Any, Any]) -> Any:
    """Return a function that has captured copies, where it has captured anything; any other value as it is.

    ``copy.deepcopy`` takes a function as it is, with all that it has captured.
    """
    if isinstance(value, types.MethodType):
        function = _with_own_closure(value.__func__, memo)
        return value if function is value.__func__ else types.MethodType(function, value.__self__)
    if isinstance(value, functools.partial):
        function = _with_own_closure(value.func, memo)
        return value if function is value.func else functools.partial(function, *value.args, **value.keywords)
    if not isinstance(value, types.FunctionType) or not value.__closure__:
        return value
    if ("copy of", value) in memo:
        return memo["copy of", value]
    cells = tuple(types.CellType() for _ in value.__closure__)
    function = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, cells)
    function.__defaults__, function.__kwdefaults__ = value.__defaults__, value.__kwdefaults__
    vars(function).update(vars(value))
    memo["copy of", value] = function
    for cell, old in zip(cells, value.__closure__, strict=True):
        try:
            captured = old.cell_contents
        except ValueError:  # not assigned yet
            continue
        _share_uncopyable(captured, memo, set())
        cell.cell_contents = _with_own_closure(copy.deepcopy(captured, memo), memo)
    return function


@contextmanager
def analysed(model: nn.Module) -> Iterator[nn.Module]:
    """Give a copy in evaluation mode that may be run or traced: the model and all around it stay as they are.

    Parameters
    ----------
    model : nn.Module
        Not run and not changed: also what the copy writes into the weights that both share is undone.

    Yields
    ------
    nn.Module
        As `analysis_copy` returns it. All global generators of random numbers start from 0 and are put back.
    """
    own = analysis_copy(model)
    with seeded(), outside_kept(own), WritesUndone(own):
        yield own.eval()


class WritesUndone(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Puts back what operations write into the weights and masks of a model while this is active."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        masks = (m.fpe_mask for m in model.modules() if isinstance(m, MaskedLayer))
        self.owned = {key: t.data for t in (*model.parameters(), *masks) if (key := _storage(t))}
        self.before: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for argument, value in zip(func._schema.arguments, args, strict=False):
                if argument.is_write:
                    self.keep(value)
            for argument in func._schema.arguments:
                if argument.is_write and argument.name in kwargs:
                    self.keep(kwargs[argument.name])
        return func(*args, **kwargs)

    def keep(self, written: Any) -> None:
        """Remember what a tensor, or each of several, holds, if it is in the memory of the weights."""
        for tensor in tree_leaves(written):
            key = _storage(tensor) if isinstance(tensor, Tensor) else 0
            if key in self.owned and key not in self.before:
                self.before[key] = _all_of(self.owned[key]).clone()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for key, values in self.before.items():
                _all_of(self.owned[key]).copy_(values)


def _storage(tensor: Tensor) -> int:
    """Return what identifies the memory of a tensor; 0 if it has none that is its own."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # a subclass that wraps other tensors
        return 0


def _all_of(tensor: Tensor) -> Tensor:
    """Return all entries in the memory of a tensor, of which it may show a part."""
    entries = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.as_strided((entries,), (1,), 0)


def copied_call(call: Call) -> Call:
    """Copy the tensors of a batch, since a model may write into its inputs."""
    copied: Call = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, call)
    return copied
