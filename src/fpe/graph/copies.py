"""Run and trace copies of a model, so that the model, its batch and the process stay as they are.

A forward pass may store things in modules, in objects that they share with others, in classes, in files and
in closures; it may write into weights and move random number generators.
"""

from __future__ import annotations

import copy
import functools
import sys
import traceback
import types
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fpe._util.modules import seeded
from fpe.errors import ModelError
from fpe.graph.inputs import tensors_in
from fpe.masked import MaskedLayer

#: Packages whose classes store nothing in a forward pass.
_CLEAN = ("torch", "fpe", "builtins", "typing", "abc")
_ABSENT = object()
_T = TypeVar("_T")


def deep_copy(value: _T, memo: dict[Any, Any]) -> _T:
    """Copy a value like ``copy.deepcopy``, but share locks, files and other objects that cannot be copied."""
    while True:
        tried = dict(memo)  # a copy that fails leaves unfinished ones there
        try:
            own = copy.deepcopy(value, tried)
        except Exception as error:  # the user's own objects may fail in any way
            frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
            copied = [frame.f_locals["x"] for frame in frames if frame.f_code is copy.deepcopy.__code__]
            culprit = next((part for part in reversed(copied) if id(part) not in memo), None)
            if culprit is None or isinstance(culprit, nn.Module):
                raise
            memo[id(culprit)] = culprit.detach().clone() if isinstance(culprit, Tensor) else culprit
        else:
            memo |= tried
            return own


def _with_own_closure(value: Any, memo: dict[Any, Any]) -> Any:
    """Return a function that has captured copies; ``copy.deepcopy`` takes functions as they are."""
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
        cell.cell_contents = _with_own_closure(deep_copy(captured, memo), memo)
    return function


def _own_copy(model: nn.Module, memo: dict[Any, Any]) -> nn.Module:
    """Copy a model except for the objects in `memo`; let the functions in the copy capture copies."""
    try:
        own = deep_copy(model, memo)
    except Exception as error:  # the user's own code may fail in any way
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({first_line(error)}); fpe runs a copy, so that it "
            "does not change the model. Remove from its attributes what copy.deepcopy cannot copy."
        ) from error
    for module in own.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, dict) and name.endswith("_hooks"):
                for key, hook in value.items():
                    value[key] = _with_own_closure(hook, memo)
            else:
                vars(module)[name] = _with_own_closure(value, memo)
    return own


def analysis_copy(model: nn.Module) -> nn.Module:
    """Copy a model except for the memory of its weights and masks."""
    masks = [m.fpe_mask for m in model.modules() if isinstance(m, MaskedLayer)]
    memo: dict[Any, Any] = {id(mask): mask.data for mask in masks}
    for parameter in model.parameters():
        if not is_lazy(parameter):
            memo[id(parameter)] = nn.Parameter(parameter.data, parameter.requires_grad)
    return _own_copy(model, memo)


def copied(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    device: Any = None,
    without: Iterable[Tensor] = (),
) -> nn.Module:
    """Copy a model and its weights, which require no gradient, in another precision or to a device.

    The tensors `without` values get shapes alone, and no memory.
    """
    memo: dict[int, Any] = {}
    empty = {id(tensor) for tensor in without}
    for tensor in (*model.parameters(), *model.buffers()):
        if type(tensor.data) is Tensor:
            kind = dtype if tensor.is_floating_point() else None
            if id(tensor) in empty:
                value = torch.zeros((), dtype=kind or tensor.dtype, device=device or tensor.device)
                value = value.expand(tensor.shape)
            else:
                value = tensor.detach().to(device, kind, copy=True)
            memo[id(tensor)] = nn.Parameter(value, False) if isinstance(tensor, nn.Parameter) else value
    return _own_copy(model, memo).requires_grad_(False)


def with_own_state(model: nn.Module, values: dict[Tensor, Tensor]) -> nn.Module:
    """Copy a model except for its parameters, with other values for some of its tensors.

    Values that share their memory still do.
    """
    memo: dict[int, Tensor] = {id(parameter): parameter for parameter in model.parameters()}
    own: dict[Any, Tensor] = {}
    for tensor, value in values.items():
        if not isinstance(value, nn.Parameter):  # a run may write into it
            place = value.data_ptr(), value.shape, value.stride()
            new = own[place] = own[place] if place in own else value.clone()
            value = nn.Parameter(new, False) if isinstance(tensor, nn.Parameter) else new
        memo[id(tensor)] = value
    return _own_copy(model, memo)


@contextmanager
def analyzed(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a copy in evaluation mode that may be run or traced; undo what it writes into shared weights."""
    own = analysis_copy(model)
    with seeded(), outside_kept(own), WritesUndone(own):
        yield own.eval()


def not_run(kind: str, error: Exception) -> ModelError:
    """Return an error that says why a model of this class did not run on its batch."""
    return ModelError(
        f"{kind} cannot be run on example_inputs ({first_line(error)}); give one batch as the model takes "
        "it: a tensor, a tuple of arguments, or a dict of named ones."
    )


def first_line(error: Exception) -> str:
    """Return an error's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__


class WritesUndone(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Undo what operations write into the weights and masks of a model while this is active."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        masks = (m.fpe_mask for m in model.modules() if isinstance(m, MaskedLayer))
        self.owned = {key: t.data for t in (*model.parameters(), *masks) if (key := _storage(t))}
        self.before: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for position, argument in enumerate(func._schema.arguments):
                if argument.is_write:
                    self._remember(args[position] if position < len(args) else kwargs.get(argument.name))
        return func(*args, **kwargs)

    def _remember(self, written: Any) -> None:
        for tensor in tree_leaves(written):
            key = _storage(tensor) if isinstance(tensor, Tensor) else 0
            if key in self.owned and key not in self.before:
                self.before[key] = _entire(self.owned[key]).clone()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for key, values in self.before.items():
                _entire(self.owned[key]).copy_(values)


def _storage(tensor: Tensor) -> int:
    """Return what identifies the memory of a tensor; 0 for a subclass that wraps other tensors."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return 0


def _entire(tensor: Tensor) -> Tensor:
    """Return all entries in the memory of a tensor, of which it may show a part."""
    entries = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.as_strided((entries,), (1,), 0)


@contextmanager
def outside_kept(model: nn.Module) -> Iterator[None]:
    """Undo what a forward pass stores in a model's classes and in the files that define them.

    Class attributes are restored. From files, and from dicts, lists and sets there or in a class, only new
    values that contain tensors are removed: others may come from an import. An ``lru_cache`` that was filled
    meanwhile is emptied.
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
                if old is new or not (isinstance(owner, type) or _has_tensors(new)):
                    continue
                if old is _ABSENT:
                    delattr(owner, name)
                else:
                    setattr(owner, name, old)
        for container, content in containers:
            _restore(container, content)
        for cache, misses in caches:
            if cache.cache_info().misses != misses:
                cache.cache_clear()


def _restore(container: Any, before: Any) -> None:
    """Remove from a dict, list or set the tensors that it did not contain before."""
    if isinstance(container, dict):
        for key, value in list(container.items()):
            if value is not before.get(key, _ABSENT) and _has_tensors((key, value)):
                if key in before:
                    container[key] = before[key]
                else:
                    del container[key]
        return
    known = {id(part) for part in before}
    if any(id(part) not in known and _has_tensors(part) for part in container):
        container.clear()
        container.extend(before) if isinstance(container, list) else container.update(before)


def _has_tensors(value: Any) -> bool:
    """Tell whether there are tensors in a value, or the proxies that stand for them in a trace."""
    if isinstance(value, dict):
        return any(_has_tensors(part) for part in value.values())
    if isinstance(value, list | tuple | set):
        return any(_has_tensors(part) for part in value)
    return isinstance(value, fx.Proxy) or (not callable(value) and bool(tensors_in(value)))


class WithoutDropout(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Let dropout keep every entry; note the coarsest precision; restore the generators passed.

    Dropout draws for each neuron, so two runs with neurons in different orders would differ. What is kept is
    divided by the probability to be kept, which stands in for each draw: training computes what evaluation
    does.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.eps = 0.0
        self.states: dict[torch.Generator, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Generator):
                self.states.setdefault(value, value.get_state())
        result = self._call(func, args, kwargs)
        for value in result if isinstance(result, list | tuple) else [result]:
            if isinstance(value, Tensor) and value.is_floating_point():
                self.eps = max(self.eps, torch.finfo(value.dtype).eps)
        return result

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = func.overloadpacket.__name__
        keep_probability = args[1] if len(args) > 1 else 0.5
        if name == "bernoulli_" and isinstance(keep_probability, float) and keep_probability > 0:
            return args[0].fill_(keep_probability if args[0].is_floating_point() else 1)
        if name == "native_dropout" and args[1] < 1:
            kept = torch.ones_like(args[0], dtype=torch.bool)
            return args[0].clone(), kept
        if name.startswith("rrelu_with_noise") and len(args) > 4:
            slopes = torch.where(args[0] > 0, 1, (args[2] + args[3]) / 2)
            args[1].copy_(slopes)  # by which a backward pass multiplies
            args = (*args[:4], False, *args[5:])
        return func(*args, **kwargs)

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        for generator, state in self.states.items():
            generator.set_state(state)


@contextmanager
def repeatable(model: nn.Module, training: bool) -> Iterator[WithoutDropout]:
    """Let a copy run in one mode, without warnings, so that every run draws the same random numbers."""
    devices = {p.device.type for p in model.parameters()} | {"cpu"}
    model.train(training)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(seeded())
        stack.enter_context(outside_kept(model))
        for device in sorted(devices):
            if torch.amp.is_autocast_available(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield stack.enter_context(WithoutDropout())
