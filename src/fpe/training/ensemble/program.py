"""One step of training for a whole stack of networks, compiled where there is a compiler."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fpe.training.ensemble.stack import Layer, forward
from fpe.training.losses import Objective, mean_of


class Adam(NamedTuple):
    """The constants of ``torch.optim.Adam``; the learning rate is given with each step."""

    beta1: float
    beta2: float
    eps: float
    l2: float


Step = Callable[..., Tensor]


def _step(
    layers: Sequence[Layer],
    adam: Adam,
    objective: Objective,
    parameters: list[Tensor],
    first_moments: list[Tensor],
    second_moments: list[Tensor],
    masks: list[Tensor],
    X: Tensor,
    y: Tensor,
    weight: Tensor | None,
    index: Tensor,
    rates: Tensor,
    sums: Sequence[Tensor | None] = (),
) -> Tensor:
    """Take one step of Adam for each network, in place; return the mean losses before, (groups, sharing).

    Parameters, moments and masks are (groups, sharing, …): the networks of a group share their mini-batches.
    `X`, `y`, `weight` are all samples of all data sets, `index` the rows of the mini-batches, (groups,
    batch), `rates` are ``lr / (1 − β1^t)`` and ``1 / √(1 − β2^t)`` of each network, (2, groups, sharing). The
    unmasked gradients are added to `sums`.
    """
    rows = index.reshape(-1)
    batch_X = X.index_select(0, rows).view(index.shape[0], index.shape[1], X.shape[1])
    batch_y = y.index_select(0, rows).view(*index.shape, *y.shape[1:])
    groups, sharing = parameters[0].shape[:2]

    def for_each(values: Tensor) -> Tensor:  # (groups, batch, …) to (groups × sharing, batch, …)
        return values.unsqueeze(1).expand(-1, sharing, *values.shape[1:]).flatten(0, 1)

    def mean_losses(parameters: list[Tensor]) -> tuple[Tensor, Tensor]:
        networks = [p.flatten(0, 1) for p in parameters], [mask.flatten(0, 1) for mask in masks]
        losses = objective.each(forward(layers, *networks, batch_X, sharing), for_each(batch_y))
        share = None if weight is None else for_each(weight.index_select(0, rows).view(index.shape))
        means = mean_of(losses, share)
        return means.sum(), means.detach().view(groups, sharing)

    gradients, means = torch.func.grad(mean_losses, has_aux=True)(parameters)
    totals = sums or [None] * len(parameters)
    for p, gradient, m, v, mask, total in zip(
        parameters, gradients, first_moments, second_moments, masks, totals, strict=True
    ):
        each = (groups, sharing, *(1,) * (p.dim() - 2))
        if total is not None:
            # Times 1. As each network has a factor of its own, as below, the compiler makes one loop of both.
            total.add_(gradient * (rates[0].view(each) >= 0))
        gradient = gradient * mask
        if adam.l2:
            gradient = gradient + adam.l2 * p
        m.lerp_(gradient, 1 - adam.beta1)
        v.mul_(adam.beta2).addcmul_(gradient, gradient, value=1 - adam.beta2)
        # MKL takes roots of zeros twenty times as slowly; next to eps, the root of the least number is none.
        root = v.clamp_min(torch.finfo(v.dtype).tiny).sqrt()
        p.sub_(rates[0].view(each) * m / (root * rates[1].view(each) + adam.eps))
    return means  # type: ignore[no-any-return]


@functools.cache
def step_of(
    layers: tuple[Layer, ...], adam: Adam, objective: Objective, compiled: bool, shape: Hashable
) -> Step:
    """Return the step for an architecture; compiled, a program of its own for each `shape` of mini-batches
    and hidden layers. The numbers of networks and features may vary.
    """

    def step(*arguments: Any) -> Tensor:
        return _step(layers, adam, objective, *arguments)

    # The compiler stores programs by code object, and only a few for each.
    step.__code__ = step.__code__.replace()
    return _Compiled(step) if compiled else step


class _Compiled:
    """A step compiled at its first call; without a compiler there is one warning, and it runs uncompiled."""

    usable = True

    def __init__(self, eager: Step) -> None:
        self._eager = eager
        self._fast = torch.compile(eager)
        self._worked = False

    def __call__(self, *arguments: Any) -> Tensor:
        if not _Compiled.usable:
            return self._eager(*arguments)
        try:
            means: Tensor = self._fast(*arguments)
        except Exception as error:
            if self._worked:
                raise
            _Compiled.usable = False
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(
                f"torch.compile does not work here ({reason}); training goes on without it, about three "
                "times slower. It needs a C++ compiler, such as g++.",
                RuntimeWarning,
                stacklevel=2,
            )
            return self._eager(*arguments)
        self._worked = True
        return means


def mark_dynamic(
    lists: Sequence[list[Tensor]], X: Tensor, rows: Tensor, rates: Tensor, sums: Sequence[Tensor | None] = ()
) -> None:
    """Tell the compiler what may differ from call to call: the numbers of networks and of features."""
    varying = [(total, dim) for total in sums if total is not None for dim in range(total.dim() - 1)]
    varying += [(tensor, dim) for tensors in lists for tensor in tensors for dim in (0, 1)]
    varying += [(tensors[0], 2) for tensors in lists]
    varying += [(X, 0), (X, 1), (rows, 0), (rates, 1), (rates, 2)]
    for tensor, dim in varying:
        torch._dynamo.maybe_mark_dynamic(tensor, dim)
