"""A partition that was made elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fpe.errors import ArgumentError


@dataclass(frozen=True, init=False, eq=False)
class FixedSplit:
    """The child of each weight, as you say: for any split that fpe does not know.

    For a model of which one layer is expanded, or several layers of one shape.

    Parameters
    ----------
    children : array of int
        Child of each weight, shape (neurons, inputs), each from 0 to factor − 1; or shape (inputs,) for
        one partition for all neurons.

    Raises
    ------
    ArgumentError
        If the children are not integers from 0 in such a shape.

    Examples
    --------
    >>> import torch, fpe
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU(), torch.nn.Linear(2, 3))
    >>> wide = fpe.expand(model, split=fpe.FixedSplit([[0, 0, 1, 1], [0, 1, 0, 1]]))
    """

    children: np.ndarray

    def __init__(self, children: Sequence[Sequence[int]] | Sequence[int] | np.ndarray | Tensor) -> None:
        array = np.asarray(children.cpu() if isinstance(children, Tensor) else children)
        integers = np.issubdtype(array.dtype, np.integer)
        if array.ndim not in (1, 2) or array.size == 0 or not integers or array.min() < 0:
            raise ArgumentError(
                f"Given: children have shape {array.shape} and type {array.dtype}; give integers from 0, of "
                "shape (neurons, inputs), or (inputs,) for one partition for all neurons."
            )
        object.__setattr__(self, "children", array)

    def __repr__(self) -> str:
        return f"FixedSplit(children of shape {self.children.shape})"

    @property
    def shared(self) -> bool:
        """Whether all neurons have the same partition."""
        return self.children.ndim == 1

    def problem(self, inputs: int, factor: int) -> str | None:
        """Say that the children are not one for each input, or not as many as the factor."""
        if self.children.shape[-1] != inputs:
            return f"Given has children for {self.children.shape[-1]} inputs, but the layer has {inputs}"
        if self.children.max() >= factor:
            return f"Given names child {self.children.max()}, but factor {factor} ends at child {factor - 1}"
        return None

    def assign(self, weight: Tensor, factor: int, rng: np.random.Generator) -> Tensor:
        """Return the children, shape (neurons, inputs)."""
        if not self.shared and len(self.children) != len(weight):
            raise ArgumentError(
                f"Given has children for {len(self.children)} neurons, but the layer has {len(weight)}; give "
                "a row for each neuron, or expand the layers one by one with layers=…"
            )
        return torch.from_numpy(self.children).expand(weight.shape[:2])
