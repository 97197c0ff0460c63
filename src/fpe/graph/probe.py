"""A copy of a model with random weights, which is run to find out what the model does with its neurons."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fpe._util.modules import replace_modules_
from fpe.errors import ModelError
from fpe.graph.copies import copied, not_run, repeatable, with_own_state
from fpe.graph.groups import NeuronGroup
from fpe.graph.inputs import Call, converted, copied_call, tensors_in
from fpe.graph.layers import is_layer, is_stacked, over_neurons
from fpe.graph.permuting import Values, randomize_, to_randomize
from fpe.masked import MaskedLayer

#: How far rounding may move an output of size 1, by the coarsest precision of any operation. In a coarser
#: one than these it may hide a mistake.
_ROUNDING = {torch.finfo(torch.float64).eps: 1e-9, torch.finfo(torch.float32).eps: 1e-5}
#: A copy of more parameters would be too large in double precision; those of one shape count once.
MAX_DOUBLE = 1 << 28


class _WithoutAutocast(TorchFunctionMode):
    """Ignores ``torch.autocast``: a coarse type would hide mistakes, and which neurons meet is the same."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C._DisableAutocast():
            return func(*args, **(kwargs or {}))


class Probe:
    """A copy of a model with random weights, in the finest precision in which it runs.

    With `everywhere` all weights are random, and each layer's outputs are divided by their size in the first
    run: else what deep networks compute would overflow, or fade away. Otherwise only the weights of the
    groups' producers are random. Random weights of one shape share their memory.

    The first run is in evaluation mode, in coarser precisions too until one works; without `run` there is
    none yet.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[NeuronGroup], call: Call, everywhere: bool, run: bool = True
    ) -> None:
        self.kind, self.everywhere = type(model).__name__, everywhere
        self.eps = 0.0
        self.sizes: dict[str, Tensor] = {}
        between = (model.get_submodule(name) for group in groups for name in group.between)
        #: Whether it computes what the model would with these weights, norms over neurons included.
        self.faithful = everywhere and not any(map(over_neurons, between))
        random = [tensor for tensor, anew in to_randomize(model, groups, everywhere) if anew]
        kept = {id(tensor) for tensor in model.parameters()} - {id(tensor) for tensor in random}
        entries = sum(p.numel() for p in model.parameters() if id(p) in kept)
        entries += sum(shape.numel() for shape in {tensor.shape for tensor in random})
        places: list[tuple[torch.dtype | None, torch.device | None]] = [(torch.float32, None), (None, None)]
        if entries <= MAX_DOUBLE:
            places.insert(0, (torch.float64, None))
        if any(p.device.type != "cpu" for p in model.parameters()):
            places.insert(-1, (torch.float32, torch.device("cpu")))
        for dtype, device in places:
            try:
                self.copy, self.call = copied(model, dtype, device, random), converted(call, dtype, device)
                randomize_(self.copy, groups, everywhere)
                #: The outputs by mode, once they are known.
                self.whole: dict[bool, list[Tensor]] = {}
                if run:
                    self.whole[False] = self.outputs({}, False, measure=everywhere)
            except Exception as error:  # the user's own code may fail in any way
                last = error
                continue
            return
        if isinstance(last, ModelError):
            raise last
        raise not_run(self.kind, last) from last

    @property
    def rounding(self) -> float:
        """How far rounding may move an output of size 1."""
        return next((moved for precision, moved in _ROUNDING.items() if self.eps <= precision), float("inf"))

    def outputs(
        self,
        values: Values,
        training: bool,
        *,
        gradient: bool = False,
        measure: bool = False,
        instead: dict[str, nn.Module] | None = None,
    ) -> list[Tensor]:
        """Run the copy with other values of some tensors, and other modules; return its float outputs.

        Each run has its own buffers and attributes, so that none depends on another. With `measure`, the
        layers' outputs are divided by their sizes in this run, and by the same ones in later runs.
        """
        own = with_own_state(self.copy, values)
        instead = instead or {}
        # Masked layers have no state that a run could change.
        states = {n: m if isinstance(m, MaskedLayer) else with_own_state(m, {}) for n, m in instead.items()}
        replace_modules_(own, states)
        if measure:
            self.sizes = {}
        args, kwargs = copied_call(self.call)
        with ExitStack() as stack:
            for name, layer in own.named_modules():
                if is_layer(layer) and not is_stacked(layer) and (measure or name in self.sizes):
                    divided = functools.partial(self._divided, name, measure)
                    stack.enter_context(layer.register_forward_hook(divided))
            stack.enter_context(torch.set_grad_enabled(gradient))
            mode = stack.enter_context(repeatable(own, training))
            stack.enter_context(_WithoutAutocast())
            outputs = tensors_in(own(*args, **kwargs), consume=True)
            found = [t.clone() for t in outputs if t.is_floating_point() and t.numel()]
        self.eps = max(self.eps, mode.eps)
        return found

    def _divided(self, name: str, measure: bool, layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        if measure and name not in self.sizes:
            size = output.detach().double().square().mean().sqrt()
            if size.isfinite() and size:
                self.sizes[name] = size
        return output / self.sizes[name].to(output.dtype) if name in self.sizes else output
