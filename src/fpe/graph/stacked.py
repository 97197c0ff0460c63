"""Experts whose weights are stacked in one parameter, as layers of their own.

A module may hold the weights of all its experts in parameters with three axes, and index them by expert in
its forward pass. For the analysis, and in an expanded model, each such parameter is the weight of a
`StackedLinear` in a child ``stacked`` of the module, and its old name a property that returns it. The forward
pass is the module's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

from torch import Tensor, nn

from fpe.masked import HasMasks, MaskedLayer

#: The name of the child with the layers.
CHILD = "stacked"


class StackedLinear(nn.Module):
    """The weights of a linear layer of each expert, in one parameter; it is not called with inputs.

    `transposed` tells whether they are (experts, inputs, outputs) instead of (experts, outputs, inputs), and
    `interleaved` into how many parts the outputs are divided in turn: 2, if gate and up alternate. The
    forward passes that use the weights show both.
    """

    weight: Any
    bias: Any
    transposed = False
    interleaved = 1

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        nn.Module.__init__(self)
        self.weight = weight
        self.bias = bias

    def forward(self) -> Any:
        """Return the weight as it is applied."""
        return self.weight

    def added(self) -> Any:
        """Return the bias as it is applied."""
        return self.bias

    def oriented(self, tensor: Tensor) -> Tensor:
        """Return a tensor like the weight or bias as (outputs, inputs, experts) or (outputs, experts)."""
        if tensor.dim() == 3:
            tensor = tensor.permute(2, 1, 0) if self.transposed else tensor.permute(1, 2, 0)
        else:
            tensor = tensor.t()
        parts = self.interleaved
        turned = tensor.reshape(-1, parts, *tensor.shape[1:]).transpose(0, 1)
        return tensor if parts == 1 else turned.flatten(0, 1)

    def native(self, tensor: Tensor) -> Tensor:
        """Return an oriented tensor as this layer stores it; inverts `oriented`."""
        if self.interleaved > 1:
            tensor = tensor.reshape(self.interleaved, -1, *tensor.shape[1:]).transpose(0, 1).flatten(0, 1)
        if tensor.dim() == 3:
            return tensor.permute(2, 1, 0) if self.transposed else tensor.permute(2, 0, 1)
        return tensor.t()

    def axes(self) -> tuple[int, int]:
        """Return the axes of the weight along which its outputs and its inputs stand."""
        return (2, 1) if self.transposed else (1, 2)

    def extra_repr(self) -> str:
        """Print the numbers of experts, outputs and inputs."""
        outputs, inputs = (self.weight.shape[axis] for axis in self.axes())
        return f"experts={len(self.weight)}, in_features={inputs}, out_features={outputs}"


class MaskedStackedLinear(MaskedLayer, StackedLinear):
    """The weights of all experts, each of which is zero, and stays zero, where its mask is."""

    @classmethod
    def from_arrays(
        cls, like: StackedLinear, weight: Tensor, bias: Tensor | None, mask: Tensor
    ) -> MaskedStackedLinear:
        """Make a layer of oriented tensors; `weight` must be zero where `mask` is."""
        own, more = like.native(weight).contiguous(), None if bias is None else like.native(bias).contiguous()
        layer = cls(nn.Parameter(own), None if more is None else nn.Parameter(more))
        layer.transposed, layer.interleaved = like.transposed, like.interleaved
        layer.fpe_mask = like.native(mask).to(own.dtype).contiguous()
        return layer

    def forward(self) -> Tensor:
        """Return the weight, through which no gradient reaches a masked entry."""
        return self._free_weight()

    def added(self) -> Any:
        """Return the bias, through which no gradient reaches a masked entry."""
        return self._free_bias()


class _Stack(nn.ModuleDict):
    """The layers of a module by the names of its parameters, and how to put those back."""

    def __init__(self, order: Sequence[str], biases: dict[str, str]) -> None:
        super().__init__()
        self.order, self.biases = list(order), dict(biases)  # `biases` by the name of the weight


def stacks_in(model: nn.Module) -> Iterator[tuple[str, nn.Module, _Stack]]:
    """Yield each module that has its parameters in layers, by name, with these."""
    for name, module in model.named_modules():
        if isinstance(own := module._modules.get(CHILD), _Stack):
            yield name, module, own


@contextmanager
def stacked_layers(*models: Any) -> Iterator[None]:
    """Let stacked parameters be layers of these models meanwhile; those masked or packed stay layers."""
    opened: list[nn.Module] = []
    try:
        for model in models:
            modules = list(model.modules()) if isinstance(model, nn.Module) else []
            opened += [module for module in modules if _open(module)]
        yield
    finally:
        for module in opened:
            _close(module)


def close_stacks_(model: nn.Module) -> nn.Module:
    """Make plain parameters again of the layers of modules in which none is masked or packed, in place."""
    for module in [module for _, module, _ in stacks_in(model)]:
        _close(module)
    return model


def _close(module: nn.Module) -> None:
    stack = cast(_Stack, module._modules[CHILD])
    if not any(isinstance(layer, HasMasks) for layer in stack.values()):
        known: dict[str, Any] = {name: stack[name].weight for name in stack}
        known |= {bias: stack[name].bias for name, bias in stack.biases.items()}
        others = dict(module._parameters)
        del module._modules[CHILD]
        module.__class__ = type(module)._plain  # type: ignore[attr-defined]
        module._parameters.clear()
        module._parameters.update({n: known[n] if n in known else others[n] for n in stack.order})


def _open(module: nn.Module) -> bool:
    """Make layers of the stacked parameters of a module; tell whether it has any."""
    own = module._parameters
    weights = {name: p for name, p in own.items() if p is not None and p.dim() == 3 and len(p) > 1}
    weights = {name: p for name, p in weights.items() if p.numel() > len(p)}  # no vector, as of channels
    weights = {name: p for name, p in weights.items() if p.is_floating_point() and type(p) is nn.Parameter}
    kind = type(module)
    if (
        not weights
        or kind.__module__.startswith(("torch.", "fpe."))
        or isinstance(module, nn.modules.conv._ConvNd)
    ):
        return False
    if hasattr(module, CHILD) or any(hasattr(nn.ModuleDict, name) for name in weights):
        return False
    biases = {w: b for w in weights if (b := _bias_of(w, own)) is not None}
    stack = _Stack(list(own), biases)
    for name in weights:
        bias = own[biases[name]] if name in biases else None
        stack[name] = StackedLinear(cast(Any, weights[name]), cast(Any, bias))
        stack[name].train(module.training)
    for name in (*weights, *biases.values()):
        del own[name]
    module._modules[CHILD] = stack
    module.__class__ = _opened(cast(Any, kind), tuple(weights), tuple(biases.items()))
    return True


def _bias_of(weight: str, parameters: dict[str, Any]) -> str | None:
    """Return the name of the biases (experts, outputs) beside stacked weights; the verification judges it."""
    tail = weight.removesuffix("weight")
    for name in (f"{weight}_bias", f"{tail}bias", f"{weight.removesuffix('_weight')}_bias", f"b{weight[1:]}"):
        own = parameters.get(name)
        if own is not None and own.dim() == 2 and len(own) == len(parameters[weight]):
            return name
    return None


@cache
def _opened(
    kind: type[nn.Module], weights: tuple[str, ...], biases: tuple[tuple[str, str], ...]
) -> type[nn.Module]:
    """Return a subclass whose parameters of these names are in layers."""

    def reduced(self: nn.Module, protocol: Any) -> Any:
        return _blank, (kind, weights, biases), dict(vars(self))

    def weight(name: str) -> property:
        return property(lambda self: self.stacked[name]())

    def bias(name: str) -> property:
        return property(lambda self: self.stacked[name].added())

    own: dict[str, Any] = {name: weight(name) for name in weights}
    own |= {bias_name: bias(name) for name, bias_name in biases}
    own |= {"_plain": kind, "__reduce_ex__": reduced, "__module__": kind.__module__}
    made = type(kind.__name__, (kind,), own)
    made.__qualname__ = kind.__qualname__
    return made


def _blank(kind: type[nn.Module], weights: tuple[str, ...], biases: tuple[tuple[str, str], ...]) -> nn.Module:
    """Return an empty module for ``copy`` and ``pickle`` to fill."""
    made: Any = _opened(cast(Any, kind), weights, biases)
    return cast(nn.Module, made.__new__(made))
