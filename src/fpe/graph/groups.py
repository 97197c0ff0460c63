"""The group: the neurons of one layer, with all that must change when they multiply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fpe.masked import MaskedLinear

#: Modules with parameters or buffers for each neuron, which widen with their layer, and the
#: attribute that holds their width.
PER_NEURON: dict[type[nn.Module], str] = {
    nn.LayerNorm: "normalized_shape",
    nn.RMSNorm: "normalized_shape",
    nn.BatchNorm1d: "num_features",
    nn.PReLU: "num_parameters",
}


@dataclass(frozen=True)
class Group:
    """Neurons that can be expanded together, by the names of the modules concerned.

    Parameters
    ----------
    producer : str
        The linear layer whose output features are the neurons.
    consumers : tuple of str
        The linear layers that read them.
    between : tuple of str, default ()
        Norms (LayerNorm, RMSNorm, BatchNorm1d) and PReLU over the neurons.
    """

    producer: str
    consumers: tuple[str, ...]
    between: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """A layer that is left alone, and why, in a clause that can stand alone."""

    name: str
    reason: str


@dataclass(frozen=True)
class Found:
    """What was found in a model: groups in the order of the forward pass, and what is none."""

    groups: tuple[Group, ...]
    skipped: tuple[Skipped, ...]


def width_problem(module: nn.Module, neurons: int) -> str | None:
    """Say why a per-neuron module does not stand over so many neurons, or return None."""
    width = getattr(module, PER_NEURON[type(module)])
    if isinstance(module, nn.PReLU) and width == 1:
        return None
    if width in (neurons, (neurons,)):
        return None
    return f"{type(module).__name__} is over {width}, not over the {neurons} neurons"


def layer_problem(model: nn.Module, name: str) -> str | None:
    """Say why the layer of this name cannot be replaced by a masked one, or return None."""
    module = model.get_submodule(name)
    names = [n for n, m in model.named_modules(remove_duplicate=False) if m is module]
    if len(names) > 1:
        return f"is one module under several names ({', '.join(names)})"
    if parametrize.is_parametrized(module):
        return "has a parametrization, which a masked layer would lose"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, kind) for kind in hooks):
        return "has hooks, which a masked layer would lose; remove them first"
    tied = _tied(model, module)
    if tied:
        return f"shares its parameters with {', '.join(tied)}"
    return None


def _tied(model: nn.Module, module: nn.Module) -> list[str]:
    own = {id(p) for p in module.parameters(recurse=False)}
    return [
        name
        for name, other in model.named_modules()
        if other is not module and own & {id(p) for p in other.parameters(recurse=False)}
    ]


def is_plain_linear(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer that fpe knows to the last line."""
    return type(module) in (nn.Linear, MaskedLinear)


def linear(model: nn.Module, name: str) -> nn.Linear:
    """Return the linear layer of this name."""
    return cast(nn.Linear, model.get_submodule(name))


def neuron_tensors(module: nn.Module, neurons: int) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module that have one entry for each neuron."""
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return {}
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return {name: t for name, t in own if t.shape == torch.Size([neurons])}
