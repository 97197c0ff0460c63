"""Run a model without leaving traces: not in its modules, and not in anybody's random numbers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fpe._util.modules import seeded
from fpe.graph.outside import outside_kept


class WithoutDropout(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets dropout keep every entry, and puts back the generators that operations were given.

    Dropout draws for each neuron, so that two runs with neurons in different orders would differ. What it
    multiplies the entries that it keeps by stays.

    Attributes
    ----------
    eps : float
        The coarsest resolution of floating-point numbers that any operation has returned.
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
        kept_share = args[1] if len(args) > 1 else 0.5
        if name == "bernoulli_" and isinstance(kept_share, float) and kept_share > 0:
            return args[0].fill_(1)
        if name == "native_dropout" and args[1] < 1:
            kept = torch.ones_like(args[0], dtype=torch.bool)
            return (args[0] / (1 - args[1]) if args[2] else args[0].clone()), kept
        if name.startswith("rrelu_with_noise") and len(args) > 4:
            args = (*args[:4], False, *args[5:])
        return func(*args, **kwargs)

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        for generator, state in self.states.items():
            generator.set_state(state)


@contextmanager
def repeatable(model: nn.Module, training: bool) -> Iterator[WithoutDropout]:
    """Let a model run in one of its modes so that each run draws the same numbers, and quietly."""
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
