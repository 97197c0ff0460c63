"""Modules that cannot be exported, such as an attention that looks at values, inside a model that then can.

Such a module is replaced, in the copy that is exported, by what it returned in one run. What it does with its
inputs is not followed, so that neurons that reach it stay as they are; what its parent does is.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from fpe.graph.copies import analyzed
from fpe.graph.inputs import Call, copied_call, tensors_in

_ATTENTION = frozenset(["softmax", "scaled_dot_product_attention", "multi_head_attention_forward"])


@dataclass
class Opaque:
    """What modules returned in each of their calls, by name, and whether one of them is attention."""

    results: dict[str, list[Any]] = field(default_factory=dict)
    attention: bool = False

    @staticmethod
    def of(model: nn.Module, call: Call, names: Collection[str]) -> Opaque:
        """Run a copy of a model once, and return what the modules of these names returned."""
        found, inside = Opaque({name: [] for name in names}), _Inside()

        def before(*_: Any) -> None:
            inside.depth += 1

        def after(name: str, module: nn.Module, args: Any, output: Any) -> None:
            inside.depth -= 1
            found.results[name].append(tree_map(_detached, output))

        args, kwargs = copied_call(call)
        with analyzed(model) as own, torch.no_grad(), inside:
            for name in names:
                module = own.get_submodule(name)
                module.register_forward_pre_hook(before)
                module.register_forward_hook(functools.partial(after, name))
            own(*args, **kwargs)
        found.attention = inside.attention
        return found

    def replace_(self, copy: nn.Module) -> None:
        """Let the modules of a copy return what they have returned, call by call."""
        for name, results in self.results.items():
            copy.get_submodule(name).forward = functools.partial(_returned, iter(results))

    def holds(self, model: nn.Module) -> set[str]:
        """Return the names of all modules whose parameters the opaque ones have too."""
        own = {id(p) for name in self.results for p in model.get_submodule(name).parameters()}
        names = model.named_modules(remove_duplicate=False)
        return {name for name, m in names if any(id(p) in own for p in m.parameters(recurse=False))}


class _Inside(TorchFunctionMode):
    """Notices attention inside of opaque modules."""

    depth, attention = 0, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.attention |= self.depth > 0 and getattr(func, "__name__", "") in _ATTENTION
        return func(*args, **(kwargs or {}))


def _detached(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def _returned(results: Iterator[Any], *args: Any, **kwargs: Any) -> Any:
    """Return the next result, which depends on the tensors that were given."""
    given = [t for t in tensors_in([args, kwargs]) if t.is_floating_point() and t.numel()]
    nothing = sum((t.sum() * 0 for t in given), torch.zeros(()))

    def depending(leaf: Any) -> Any:
        return leaf + nothing.to(leaf) if isinstance(leaf, Tensor) else leaf

    return tree_map(depending, next(results))
