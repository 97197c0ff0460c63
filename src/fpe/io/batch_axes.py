"""The axes of a model's inputs that may have any length: the batch, and the length of texts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fpe.errors import ArgumentError, raise_problems
from fpe.graph.inputs import Call

#: The batch axis of all inputs, or of some by name; None where there is none.
BatchAxis = int | None | Mapping[str, int | None]


def tensors_of(call: Any) -> list[Tensor]:
    """Return all tensors in a structure, in order."""
    return [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class Axes:
    """The batch axis of each input of a call, by name, and whether texts may have any length."""

    batch: dict[str, int | None]
    are_texts: bool

    @classmethod
    def of(cls, names: Sequence[str], call: Call, batch_axis: BatchAxis, are_texts: bool) -> Axes:
        """Check the `batch_axis` argument."""
        by_name = batch_axis if isinstance(batch_axis, Mapping) else dict.fromkeys(names, batch_axis)
        problems = [
            f"batch_axis names an input {name!r}; the inputs are {', '.join(map(repr, names))}."
            for name in by_name
            if name not in names
        ]
        problems += [
            f"the batch axis of {name!r} is {axis!r}; give an integer, or None for no batch."
            for name, axis in by_name.items()
            if axis is not None and (isinstance(axis, bool) or not isinstance(axis, int))
        ]
        raise_problems(problems, ArgumentError, "batch_axis")
        axes = cls({name: by_name.get(name, 0) for name in names}, are_texts and batch_axis is not None)
        problems = [
            f"the batch axis of {name!r} is {axis}, but it has {tensor.dim()} axes."
            for name, tensor, axis in axes.tensors(call)
            if axis is not None and not -tensor.dim() <= axis < tensor.dim()
        ]
        raise_problems(problems, ArgumentError, "batch_axis")
        return axes

    def tensors(self, call: Call) -> Iterator[tuple[str, Tensor, int | None]]:
        """Yield each tensor that has axes, with the name of its input and its batch axis."""
        for (name, axis), value in zip(self.batch.items(), (*call[0], *call[1].values()), strict=True):
            yield from ((name, leaf, axis) for leaf in tensors_of(value) if leaf.dim())

    def sizes(self, call: Call) -> dict[int, str]:
        """Return the lengths that become dynamic, with names; 1, which may mean any, only if it is alone."""
        tensors = self.tensors(call)
        sizes = dict.fromkeys(tensor.shape[axis] for _, tensor, axis in tensors if axis is not None)
        several = [size for size in sizes if size > 1] or list(sizes)
        return {size: f"batch_{i}" if i else "batch" for i, size in enumerate(several)}

    def _free(self, leaf: Tensor, axis: int | None, sizes: Collection[int]) -> dict[int, bool]:
        """Return the axes of a tensor that may have any length, and whether each is the batch."""
        found = {}
        if leaf.dim() and axis is not None and leaf.shape[axis] in sizes:
            found[axis % leaf.dim()] = True
        if self.are_texts and leaf.dim() == 2 and not leaf.is_floating_point():
            found.setdefault(1, False)
        return found

    def resized(self, call: Call, times: int) -> Call:
        """Return the call with `times` as many rows, and one more, by repeating rows."""
        sizes = self.sizes(call)

        def resize(leaf: Any, axis: Any) -> Any:
            if not isinstance(leaf, Tensor) or True not in self._free(leaf, axis, sizes).values():
                return leaf
            size = leaf.shape[axis]
            return leaf.index_select(axis, torch.arange(times * size + 1, device=leaf.device) % size)

        values = self._mapped(call, resize)
        count = len(call[0])
        return tuple(values[:count]), dict(zip(call[1], values[count:], strict=True))

    def dynamic(self, call: Call, dims: Mapping[int, Any], length: Callable[[int], Any]) -> dict[str, Any]:
        """Return the dynamic axes of each input, in its structure: the batch, and lengths of texts."""

        def axes(leaf: Any, axis: int | None) -> Any:
            if not isinstance(leaf, Tensor):
                return None
            free = self._free(leaf, axis, dims)
            return {a: (dims[leaf.shape[a]] if rows else length(leaf.shape[a])) for a, rows in free.items()}

        return dict(zip(self.batch, self._mapped(call, axes), strict=True))

    def named(self, call: Call) -> dict[str, list[int]]:
        """Return the axes of each input that may have any length."""
        found: dict[str, set[int]] = {name: set() for name in self.batch}
        for name, tensor, axis in self.tensors(call):
            found[name].update(self._free(tensor, axis, self.sizes(call)))
        return {name: sorted(axes) for name, axes in found.items()}

    def taken(self, call: Call) -> str:
        """Return a clause that says which axis of each input is taken for the batch."""
        found = self.tensors(call)
        return ", ".join(f"axis {axis} of {name!r} {tuple(tensor.shape)}" for name, tensor, axis in found)

    def _mapped(self, call: Call, change: Callable[[Any, int | None], Any]) -> list[Any]:
        values = (*call[0], *call[1].values())
        return [
            pytree.tree_map(lambda leaf, axis=axis: change(leaf, axis), value)
            for value, axis in zip(values, self.batch.values(), strict=True)
        ]
