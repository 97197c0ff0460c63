"""Which axes of a model's inputs may have any length: the batch, and the length of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fpe.errors import ArgumentError, raise_problems
from fpe.graph.inputs import Call

#: The batch axis of all inputs, or of some by name; None where there is none.
BatchAxis = int | None | Mapping[str, int | None]


@dataclass(frozen=True)
class Axes:
    """The batch axis of each input of a call.

    Attributes
    ----------
    names : sequence of str
        What the inputs are called, positional ones first.
    batch : sequence of int or None
        The batch axis of the tensors in each.
    are_texts : bool
        Whether the second axis of matrices of integers may have any length too.
    """

    names: Sequence[str]
    batch: Sequence[int | None]
    are_texts: bool

    @classmethod
    def of(cls, names: Sequence[str], call: Call, batch_axis: BatchAxis, are_texts: bool) -> Axes:
        """Check what the user says of the axes.

        Raises
        ------
        ArgumentError
            For an input or an axis that there is not.
        """
        by_name = batch_axis if isinstance(batch_axis, Mapping) else dict.fromkeys(names, batch_axis)
        problems = [
            f"batch_axis names an input {name!r}; the inputs are {', '.join(map(repr, names))}."
            for name in by_name
            if name not in names
        ]
        for name, axis in by_name.items():
            if axis is not None and (isinstance(axis, bool) or not isinstance(axis, int)):
                problems.append(
                    f"the batch axis of {name!r} is {axis!r}; give an integer, or None for no batch."
                )
        raise_problems(problems, ArgumentError, "batch_axis")
        axes = cls(names, [by_name.get(name, 0) for name in names], are_texts and batch_axis is not None)
        for name, tensor, axis in axes._tensors(call):
            if axis is not None and not -tensor.dim() <= axis < tensor.dim():
                problems.append(f"the batch axis of {name!r} is {axis}, but it has {tensor.dim()} axes.")
        raise_problems(problems, ArgumentError, "batch_axis")
        return axes

    def _tensors(self, call: Call) -> Iterator[tuple[str, Tensor, int | None]]:
        """Yield each tensor that has axes with the name of its input and its batch axis."""
        values = (*call[0], *call[1].values())
        for name, value, axis in zip(self.names, values, self.batch, strict=True):
            for leaf in pytree.tree_leaves(value):
                if isinstance(leaf, Tensor) and leaf.dim():
                    yield name, leaf, axis

    def sizes(self, call: Call) -> list[int]:
        """Return the lengths that become dynamic; 1, which may mean any, only where there is no other."""
        tensors = self._tensors(call)
        sizes = dict.fromkeys(tensor.shape[axis] for _, tensor, axis in tensors if axis is not None)
        return [size for size in sizes if size > 1] or list(sizes)

    def resized(self, call: Call, times: int) -> Call:
        """Return the call with so many times as many rows, and one more, by repeating rows."""
        sizes = self.sizes(call)

        def resize(leaf: Any, axis: int | None) -> Any:
            if (
                not isinstance(leaf, Tensor)
                or not leaf.dim()
                or axis is None
                or leaf.shape[axis] not in sizes
            ):
                return leaf
            size = leaf.shape[axis]
            return leaf.index_select(axis, torch.arange(times * size + 1, device=leaf.device) % size)

        values = self._mapped(call, resize)
        count = len(call[0])
        return tuple(values[:count]), dict(zip(call[1], values[count:], strict=True))

    def dynamic(self, call: Call, dims: Mapping[int, Any], length: Callable[[int], Any]) -> dict[str, Any]:
        """Return for each input, in its structure, which axes are dynamic: by size, and texts' lengths."""

        def axes(leaf: Any, axis: int | None) -> Any:
            if not isinstance(leaf, Tensor):
                return None
            found: dict[int, Any] = {}
            if leaf.dim() and axis is not None and leaf.shape[axis] in dims:
                found[axis % leaf.dim()] = dims[leaf.shape[axis]]
            if self.are_texts and leaf.dim() == 2 and not leaf.is_floating_point():
                found.setdefault(1, length(leaf.shape[1]))
            return found

        return dict(zip(self.names, self._mapped(call, axes), strict=True))

    def named(self, call: Call) -> dict[str, list[int]]:
        """Return the axes of each input that may have any length."""
        sizes = self.sizes(call)
        found: dict[str, set[int]] = {name: set() for name in self.names}
        for name, tensor, axis in self._tensors(call):
            if axis is not None and tensor.shape[axis] in sizes:
                found[name].add(axis % tensor.dim())
            if self.are_texts and tensor.dim() == 2 and not tensor.is_floating_point():
                found[name].add(1)
        return {name: sorted(axes) for name, axes in found.items()}

    def taken(self, call: Call) -> str:
        """Say which axis of each input is taken for the batch."""
        shapes = (
            f"axis {axis} of {name!r} {tuple(tensor.shape)}" for name, tensor, axis in self._tensors(call)
        )
        return ", ".join(shapes)

    def _mapped(self, call: Call, change: Callable[[Any, int | None], Any]) -> list[Any]:
        values = (*call[0], *call[1].values())
        return [
            pytree.tree_map(lambda leaf, axis=axis: change(leaf, axis), value)
            for value, axis in zip(values, self.batch, strict=True)
        ]
