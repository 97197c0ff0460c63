"""Where the neurons stand in a tensor: one axis, and how its places are shared out among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fpe.graph.groups import Runs


@dataclass(frozen=True)
class Flow:
    """The neurons of one producer within a tensor.

    Attributes
    ----------
    root : str
        The producer.
    axis : int
        The tensor's axis along which they stand, from 0.
    runs : tuple of int
        The layout of that axis, as in `NeuronGroup.columns`.
    """

    root: str
    axis: int
    runs: Runs = (1,)

    @property
    def plain(self) -> bool:
        """Whether each place of the axis is one neuron, in order."""
        return self.runs == (1,)

    def at(self, axis: int) -> Flow:
        """Return the flow with its neurons along another axis."""
        return replace(self, axis=axis)


def reshaped(flow: Flow, before: Sequence[int], after: Sequence[int]) -> Flow | None:
    """Follow the neurons through a change of shape, or return None where it tears them apart.

    Their axis may be merged with its neighbours; whatever splits it writes their number down.
    """
    outer, inner = math.prod(before[: flow.axis]), math.prod(before[flow.axis + 1 :])
    if before[flow.axis] == 1:
        return None  # one neuron can be anywhere
    for axis, size in enumerate(after):
        new_outer, new_inner = math.prod(after[:axis]), math.prod(after[axis + 1 :])
        if size > 1 and new_outer and new_inner and outer % new_outer == 0 and inner % new_inner == 0:
            widened = tuple(k * (inner // new_inner) for k in flow.runs)
            return Flow(flow.root, axis, widened * (outer // new_outer))
    return None


def joined(root: str, axis: int, parts: Sequence[tuple[int, Runs | None]]) -> Flow:
    """Lay tensors one after another along the neurons' axis.

    Parameters
    ----------
    root : str
        The producer.
    axis : int
        The axis.
    parts : sequence of (int, runs or None)
        Size of each part along the axis, with its layout if the neurons are in it.
    """
    runs: list[int] = []
    for size, own in parts:
        for k in own if own is not None else (-size,):
            if runs and runs[-1] < 0 and k < 0:
                runs[-1] += k
            else:
                runs.append(k)
    return Flow(root, axis, tuple(runs))
