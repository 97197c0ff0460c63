"""Verify on a batch that a packed model computes what the masked one computes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fpe.errors import ArgumentError, ModelError, raise_problems
from fpe.graph.inputs import Call, as_call, tensors_in

#: Largest difference that rounding may make, relative to the largest entry of what is compared.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
#: The same of float32 on a GPU, where products may be rounded to fewer bits.
ON_GPU = 1e-2
#: What is compared: the name of a mode, whether the models are in training mode, and whether there are gradients.
MODES = (
    ("evaluation mode", False, True),
    ("evaluation mode without gradients", False, False),
    ("training mode", True, True),
)


def difference(own: Tensor, wanted: Tensor) -> float:
    """Return the largest difference of two tensors; infinite if their shapes differ."""
    if own.shape != wanted.shape:
        return float("inf")
    first, second = own.detach().cpu().double(), wanted.detach().cpu().double()
    same = (first == second) | (first.isnan() & second.isnan())
    return float(torch.where(same, 0.0, (first - second).abs()).max()) if wanted.numel() else 0.0


def largest(tensor: Tensor) -> float:
    """Return the largest finite magnitude."""
    finite = tensor.detach()[tensor.isfinite()].double().abs()
    return float(finite.max()) if len(finite) else 0.0


def cannot_run(model: nn.Module, call: Call, error: Exception) -> ArgumentError:
    """Return the error to raise where a model fails on the user's batch."""
    given, wanted = (
        dict.fromkeys(
            str(t.dtype).removeprefix("torch.")
            for t in own
            if isinstance(t, Tensor) and t.is_floating_point()
        )
        for own in (pytree.tree_leaves(call), model.parameters())
    )
    hint = ""
    if given and wanted and given.keys() != wanted.keys():
        hint = f" The batch is {' and '.join(given)} and the model {' and '.join(wanted)}: convert either."
    first = next((line for line in str(error).splitlines() if line.strip()), "no message")
    return ArgumentError(
        f"this {type(model).__name__} cannot be run on example_inputs: {type(error).__name__}: "
        f"{first.strip().rstrip('.')}.{hint}"
    )


def check_same(
    masked: nn.Module, packed: nn.Module, example_inputs: Any, orders: Mapping[str, Tensor]
) -> None:
    """Raise if a packed model and the masked one differ by more than rounding; both stay as they are.

    In evaluation mode each layer is compared by itself too, so that a layer that adds little to the outputs is
    checked as closely as any other.

    Parameters
    ----------
    masked, packed : nn.Module
        The masked model, and what `fpe.pack` made of it.
    example_inputs : Tensor, tuple or dict
        One batch, as for `fpe.expand`.
    orders : mapping of str to Tensor
        The order of the neurons of each packed layer that has another order.

    Raises
    ------
    ArgumentError
        If the masked model cannot be run on the batch.
    ModelError
        If anything differs; all layers that do are named.
    """
    call = as_call(example_inputs)
    names = [row.name for row in packed.fpe_packing.rows]  # type: ignore[union-attr]
    try:
        wanted, wanted_layers = _run_watched(masked, call, names)
    except Exception as error:
        raise cannot_run(masked, call, error) from error
    _, own_layers = _run_watched(packed, call, names)
    problems = []
    for name in names:
        if len(own_layers[name]) != len(wanted_layers[name]):
            problems.append(f"layer {name!r} is not called as often in the packed model.")
            continue
        axis = -1 - len(getattr(masked.get_submodule(name), "kernel_size", ()))
        for made, expected in zip(own_layers[name], wanted_layers[name], strict=True):
            if name in orders:
                expected = expected.index_select(axis, orders[name].to(expected.device))
            if not _close(made, expected):
                problems.append(
                    f"layer {name!r} differs by {difference(made, expected):.1e}; give it another format, "
                    f"such as format={{{name!r}: 'dense'}}."
                )
                break
    for what, trains, gradients in MODES:
        problems += _mode_problems(masked, packed, call, what, trains, gradients)
    raise_problems(problems, ModelError, "the packed model, compared with the masked one on example_inputs")
    if not any(largest(tensor) for tensor in wanted):
        raise ModelError("all outputs on example_inputs are 0, which shows nothing; give another batch.")
    unseen = [name for name in names if not wanted_layers[name]]
    if unseen:
        warnings.warn(
            f"example_inputs do not reach {', '.join(map(repr, unseen))}, which could not be compared.",
            stacklevel=3,
        )


def _mode_problems(
    masked: nn.Module, packed: nn.Module, call: Call, what: str, trains: bool, gradients: bool
) -> list[str]:
    """Name the difference of the outputs in one mode."""
    try:
        wanted = _run(masked, call, trains, gradients)
    except Exception as error:  # a batch of one, for a batch norm
        warnings.warn(
            f"{what} was not compared: the masked model fails in it ({type(error).__name__}: {error}).",
            stacklevel=4,
        )
        return []
    own = _run(packed, call, trains, gradients)
    pairs = list(zip(own, wanted, strict=False))
    if len(own) == len(wanted) and all(_close(*pair) for pair in pairs):
        return []
    again = _run(masked, call, trains, gradients, seed=1)
    if not all(_close(*pair) for pair in zip(again, wanted, strict=True)):
        warnings.warn(f"{what} was not compared: the model draws random numbers in it.", stacklevel=4)
        return []
    found = max((difference(*pair) for pair in pairs), default=float("inf"))
    return [f"the packed model's outputs in {what} differ from the masked one's by {found:.1e}."]


def _run(model: nn.Module, call: Call, trains: bool, gradients: bool, seed: int = 0) -> list[Tensor]:
    """Return the outputs of a copy of the model, without dropout modules."""
    model = copy.deepcopy(model).train(trains)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()  # it drops neurons by their positions, which packing changes
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    args, kwargs = copy.deepcopy(call)
    with torch.random.fork_rng(devices=list(devices)), torch.set_grad_enabled(gradients):
        torch.manual_seed(seed)
        tensors = tensors_in(model(*args, **kwargs))
    return [t for t in tensors if t.is_floating_point()] or tensors


def _run_watched(
    model: nn.Module, call: Call, names: list[str]
) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """Run a copy in evaluation mode; return its outputs, and those of these layers, call by call."""
    model = copy.deepcopy(model)
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def watch(name: str) -> Callable[..., None]:
        return lambda module, args, output: seen[name].append(output.detach().clone())

    for name in names:
        model.get_submodule(name).register_forward_hook(watch(name))
    return _run(model, call, trains=False, gradients=True), seen


def _close(own: Tensor, wanted: Tensor) -> bool:
    tolerance = TOLERANCE.get(wanted.dtype, 0.0)
    if wanted.is_cuda and wanted.dtype == torch.float32:
        tolerance = ON_GPU
    return difference(own, wanted) <= tolerance * largest(wanted)
