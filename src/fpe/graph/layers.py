"""The layers that can be expanded, the modules between them, and why a module cannot be replaced.

Producers and consumers are ``nn.Linear``, ``nn.Conv1d`` to ``nn.Conv3d``, transposed convolutions, stacked
experts and the ``Conv1D`` of transformers, masked or not. A per-neuron module between them has one entry, or
one small kernel, for each neuron.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from fpe.graph.groups import NOT_CALLED, NeuronGroup
from fpe.graph.kinds import CONVOLUTIONS, layer_class
from fpe.graph.stacked import StackedLinear
from fpe.graph.turned import TURNED
from fpe.masked import MASKED, MaskedLayer, MaskedLinear

#: Modules with an entry for each neuron, which widen with their layer, and the attributes with their width.
PER_NEURON: dict[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys((nn.LayerNorm, nn.RMSNorm), ("normalized_shape",)),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), ("num_features",)),
    nn.SyncBatchNorm: ("num_features",),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), ("num_features",)),
    nn.GroupNorm: ("num_channels",),
    nn.PReLU: ("num_parameters",),
    **dict.fromkeys(CONVOLUTIONS, ("out_channels", "in_channels", "groups")),
}

#: By a tensor that it leaves in a layer, what computes the weight by hooks, and how to make it permanent.
_COMPUTED = {
    "weight_g": ("weight_norm", "torch.nn.utils.remove_weight_norm"),
    "weight_mask": ("torch.nn.utils.prune", "torch.nn.utils.prune.remove"),
    "weight_u": ("spectral_norm", "torch.nn.utils.remove_spectral_norm"),
    "weight_orig": ("a hook", "the tool that put it there"),
}

#: Norms that take a mean over the neurons.
OVER_NEURONS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def per_neuron_class(module: nn.Module) -> type[nn.Module] | None:
    """Return the class in `PER_NEURON` that a module is of; None if it is of none.

    A subclass keeps its own forward pass when it is widened, and is judged by the operations in it.
    """
    kind = next((kind for kind in type(module).__mro__ if kind in PER_NEURON), None)
    whole = kind is not None and all(hasattr(module, width) for width in PER_NEURON[kind])
    return kind if whole and not isinstance(module, MaskedLayer) else None


def widths_of(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the attributes with the width of a per-neuron module; none for other modules."""
    kind = per_neuron_class(module)
    return () if kind is None else PER_NEURON[kind]


def is_transposed(module: nn.Module) -> bool:
    """Tell whether a module is transformers' ``Conv1D``: a linear layer that stores (inputs, outputs)."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def is_linear(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer that fpe knows."""
    return layer_class(module) in (nn.Linear, MaskedLinear) or is_transposed(module)


def is_convolution(module: nn.Module) -> bool:
    """Tell whether a module is a convolution, dense or masked."""
    return (layer_class(module) in (*CONVOLUTIONS, *MASKED) and not is_linear(module)) or is_turned(module)


def is_turned(module: nn.Module) -> bool:
    """Tell whether a module is a transposed convolution, whose weight is (inputs, outputs, *taps)."""
    return layer_class(module) in (*TURNED, *TURNED.values())


def is_stacked(module: nn.Module) -> bool:
    """Tell whether a module holds the weights of a linear layer of each of several experts."""
    return isinstance(module, StackedLinear)


def is_layer(module: nn.Module) -> bool:
    """Tell whether a module can produce neurons or consume them, its shape and state aside."""
    return is_linear(module) or is_convolution(module) or is_stacked(module)


def what_it_is(module: nn.Module) -> str:
    """Say what a module is: 'it is an Embedding'."""
    kind = type(module).__name__
    vowels = "AEFHILMNORSX" if kind.isupper() else "AEIOU"
    return f"it is {'an' if kind[0] in vowels else 'a'} {kind}"


def looks_like_layer(module: nn.Module) -> bool:
    """Tell whether a user would take a module for a layer with neurons."""
    return isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or is_layer(module)


def is_depthwise(module: nn.Module) -> bool:
    """Tell whether a convolution has small kernels for each channel alone; whatever else its class may do."""
    if per_neuron_class(module) not in CONVOLUTIONS:
        return False
    conv = cast(nn.Conv2d, module)
    return conv.groups == conv.in_channels > 1


def groups_of(module: nn.Module) -> int:
    """Return in how many groups of channels a layer works apart: 1, but for convolutions."""
    return cast(nn.Conv2d, module).groups if is_convolution(module) else 1


def channel_axis(module: nn.Module, dims: int) -> int:
    """Return the axis of a layer's inputs, and of its neurons, in a tensor of `dims` axes."""
    taps = len(module.kernel_size) if isinstance(module, nn.modules.conv._ConvNd) else 0
    return dims - 1 - taps


def oriented_weight(layer: nn.Module) -> Tensor:
    """Return a layer's weight in shape (neurons, inputs, *taps); of stacked experts, they are the taps."""
    return oriented(layer, cast(Tensor, layer.weight))


def oriented(layer: nn.Module, tensor: Tensor) -> Tensor:
    """Return a tensor like a layer's weight or bias with the neurons first, the inputs second."""
    if isinstance(layer, StackedLinear):
        return layer.oriented(tensor)
    if is_turned(layer) and tensor.dim() > 2:
        return tensor.transpose(0, 1)
    return tensor.t() if is_transposed(layer) and tensor.dim() == 2 else tensor


def native(layer: nn.Module, tensor: Tensor) -> Tensor:
    """Return an oriented tensor as a masked layer stores it."""
    if isinstance(layer, StackedLinear):
        return layer.native(tensor)
    return tensor.transpose(0, 1) if is_turned(layer) and tensor.dim() > 2 else tensor


def orient_(model: nn.Module, groups: Iterable[NeuronGroup]) -> None:
    """Let the stacked layers of a model know how they store their weights, in place."""
    for group in groups:
        for name in (*group.producers, *group.consumers):
            layer = model.get_submodule(name)
            if isinstance(layer, StackedLinear) and not isinstance(layer, MaskedLayer):
                layer.transposed = name in group.transposed
                inside = group.interleaved and name in group.producers
                layer.interleaved = group.parts_of(name) if inside else 1


def mask_of(layer: nn.Module) -> Tensor | None:
    """Return the mask of a layer in the shape of `oriented_weight`, None if all is free."""
    return oriented(layer, layer.fpe_mask) if isinstance(layer, MaskedLayer) else None


def bias_of(module: nn.Module) -> Tensor | None:
    """Return a module's bias, None if it has none; of stacked experts (outputs, experts)."""
    bias = cast("Tensor | None", getattr(module, "bias", None))
    return module.oriented(bias) if isinstance(module, StackedLinear) and bias is not None else bias


def size_of(model: nn.Module, name: str) -> tuple[int, int]:
    """Return the number of neurons and of inputs (or channels) of the layer of this name."""
    shape = oriented_weight(model.get_submodule(name)).shape
    return shape[0], shape[1]


def neurons_of(model: nn.Module, group: NeuronGroup) -> int:
    """Return the number of neurons of a group."""
    return size_of(model, group.name)[0] // group.parts_of(group.name)


def producer_sets(model: nn.Module, group: NeuronGroup) -> list[list[str]]:
    """Return the producers of a group, those with weights of one shape together, the first producer's first.

    Those of one set have one partition of their inputs.
    """
    sets: dict[Any, list[str]] = {}
    for name in group.producers:
        sets.setdefault(oriented_weight(model.get_submodule(name)).shape[1:], []).append(name)
    return list(sets.values())


class Names:
    """The names of a model's modules, and the modules that own each parameter."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.names: dict[nn.Module, list[str]] = {}
        self.owners: dict[Tensor, list[nn.Module]] = {}
        for name, module in self.modules.items():
            self.names.setdefault(module, []).append(name)
        for module in self.names:
            for parameter in dict.fromkeys(module.parameters(recurse=False)):
                self.owners.setdefault(parameter, []).append(module)

    def sharing(self, module: nn.Module) -> list[str]:
        """Return the names of the other modules that have a parameter of this one."""
        owners = dict.fromkeys(o for p in module.parameters(recurse=False) for o in self.owners[p])
        return [self.names[owner][0] for owner in owners if owner is not module]


def layer_problem(known: Names, name: str) -> str | None:
    """Say why the module of this name cannot be replaced by a wider one, or return None."""
    module = known.modules[name]
    if parametrize.is_parametrized(module):
        chains = cast(nn.ModuleDict, module.parametrizations)
        kinds = ", ".join(
            type(own).__name__.lstrip("_") for chain in chains.values() for own in cast(nn.ModuleList, chain)
        )
        how = "make it permanent first with torch.nn.utils.parametrize.remove_parametrizations"
        return f"has a parametrization ({kinds}), which a masked layer would lose; {how}"
    weight = getattr(module, "weight", None)
    kind = type(weight.data) if isinstance(weight, Tensor) and not is_lazy(weight) else Tensor
    if kind not in (Tensor, nn.Parameter) and kind.__name__ != "DTensor":
        return (
            f"has weights of type {kind.__name__}, as if quantized; expand the model first, then quantize it"
        )
    for own, (tool, remedy) in _COMPUTED.items():
        if hasattr(module, own):
            return f"has its weight computed by hooks ({tool}); make that permanent first with {remedy}"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, kind) for kind in hooks):
        return "has hooks, which a masked layer would lose; remove them first"
    if "forward" in vars(module):
        return "has a forward of its own, put on this one module, which a masked layer would lose"
    if tied := known.sharing(module):
        return f"shares its parameters with {', '.join(tied)}"
    return None


def kind_problem(module: nn.Module) -> str | None:
    """Say why a module is none of the layers that fpe knows, or return None."""
    if not is_layer(module):
        known = "of which only nn.Linear is known"
        unknown = "not a linear layer or a convolution that fpe knows"
        return f"is a {type(module).__name__}, {known if isinstance(module, nn.Linear) else unknown}"
    if is_turned(module) and groups_of(module) > 1:
        return (
            f"is a transposed convolution in {module.groups} groups, whose neurons do not consume all inputs"
        )
    return None


def maskable(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return the plain layers that a masked layer can replace, and why others cannot be replaced, by name."""
    known = Names(model)
    layers = {
        n: m for n, m in model.named_modules() if looks_like_layer(m) and not isinstance(m, MaskedLayer)
    }
    problems = {
        name: kind_problem(module)
        or (f"is a convolution in {groups} groups" if (groups := groups_of(module)) > 1 else None)
        or layer_problem(known, name)
        for name, module in layers.items()
    }
    reasons = {name: problem for name, problem in problems.items() if problem}
    return {name: module for name, module in layers.items() if name not in reasons}, reasons


def width_problem(module: nn.Module, entries: int) -> str | None:
    """Say why a per-neuron module has not so many entries, or return None."""
    if per_neuron_class(module) in CONVOLUTIONS and not is_depthwise(module):
        return f"{type(module).__name__} is not depthwise: it mixes neurons"
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return None
    if per_neuron_class(module) is None:
        own = (*module.named_parameters(), *module.named_buffers())
        square = [name for name, tensor in own if list(tensor.shape).count(entries) > 1]
        return f"{square[0]!r} has several axes of length {entries}" if square else None
    width = getattr(module, widths_of(module)[0])
    if width in (entries, (entries,)):
        return None
    return f"{type(module).__name__} is over {width}, not over the {entries} neurons"


def written_by_hand(module: nn.Module) -> bool:
    """Tell whether a module is a user's own, has no modules in it, and is no layer."""
    own = isinstance(module, nn.ParameterDict | nn.ParameterList)  # the scales of IA3
    own = own or type(module).__module__.split(".")[0] not in ("torch", "fpe")
    return own and not any(True for _ in module.children()) and not looks_like_layer(module)


def may_scale(module: nn.Module) -> bool:
    """Tell whether the parameters and buffers of a module may be entries of neurons: of no layer."""
    return written_by_hand(module) or (isinstance(module, tuple(PER_NEURON)) and not looks_like_layer(module))


def over_neurons(module: nn.Module) -> bool:
    """Tell whether a module between layers may take a mean over the neurons."""
    return isinstance(module, OVER_NEURONS) or per_neuron_class(module) is None


def neuron_tensors(module: nn.Module, entries: int) -> dict[str, tuple[Tensor, int]]:
    """Return the parameters and buffers of a module between layers with so many entries, or kernels.

    Each comes with its axis over the neurons: in a user's own module the only one of this length.
    """
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return {}
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    if per_neuron_class(module) is not None:
        return {name: (t, 0) for name, t in own if t.dim() and t.shape[0] == entries}
    return {name: (t, list(t.shape).index(entries)) for name, t in own if list(t.shape).count(entries) == 1}


def is_frozen(model: nn.Module, names: tuple[str, ...]) -> bool:
    """Tell whether none of the parameters of these modules is trained."""
    owned = [p for name in names for p in model.get_submodule(name).parameters(recurse=False)]
    return bool(owned) and not any(p.requires_grad for p in owned)


def memory_problem(layer: nn.Module, name: str) -> str | None:
    """Say why a layer's weight cannot be split as it is, or return None."""
    weight = cast(Tensor, layer.weight)
    if weight.is_meta:
        return f"layer {name!r} is on the meta device; load its weights first."
    if type(weight.data).__name__ == "DTensor":
        return f"layer {name!r} is sharded already; expand the model first, then shard it."
    if not weight.is_floating_point():
        return f"layer {name!r} has {weight.dtype} weights; floating point is allowed."
    if not all(bool(end.isfinite()) for end in torch.aminmax(weight.detach())):
        return f"the weight of layer {name!r} has NaN or infinite entries; repair it first."
    return None


def skip_reason(known: Names, name: str) -> str | None:
    """Say why a module with weights is not expanded that no followed call has reached, or return None."""
    module = known.modules[name]
    matrix = any(p.dim() > 1 for p in module.parameters(recurse=False))
    if not (matrix or looks_like_layer(module)) or isinstance(module, parametrize.ParametrizationList):
        return None
    if is_depthwise(module):
        return "it is a depthwise convolution, which makes no neurons of its own"
    if looks_like_layer(module) and (problem := layer_problem(known, name)):
        return f"{name!r} {problem}" if name else f"it {problem}"
    only = "only linear layers and convolutions are expanded"
    return NOT_CALLED if is_layer(module) else f"{what_it_is(module)}; {only}"
