"""Verify on a batch that a packed model computes what the masked one computes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
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
#: The modes that are compared: name, whether the models are in training mode, and whether there are
#: gradients.
MODES = (
    ("evaluation mode", False, True),
    ("evaluation mode without gradients", False, False),
    ("training mode", True, True),
)
_ALL_ZERO = "all outputs on example_inputs are 0, which shows nothing; give another batch."


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


def error_text(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    lines = (line.strip() for line in str(error).splitlines())
    return f"{type(error).__name__}: {next(filter(None, lines), 'no message')}"


def cannot_run(model: nn.Module, call: Call, error: Exception) -> ArgumentError:
    """Return the error to raise if a model fails on the user's batch."""
    given, wanted = (
        {str(t.dtype).removeprefix("torch.") for t in own if isinstance(t, Tensor) and t.is_floating_point()}
        for own in (pytree.tree_leaves(call), model.parameters())
    )
    hint = ""
    if given and wanted and given != wanted:
        batch, weights = (" and ".join(sorted(kinds)) for kinds in (given, wanted))
        hint = f" The batch is {batch} and the model {weights}: convert either."
    cause = error_text(error).rstrip(".")
    return ArgumentError(f"this {type(model).__name__} cannot be run on example_inputs: {cause}.{hint}")


def check_same(
    masked: nn.Module, packed: nn.Module, example_inputs: Any, orders: Mapping[str, Tensor]
) -> None:
    """Raise if a packed model and the masked one differ by more than rounding; neither is changed.

    In evaluation mode each layer is compared too, so that a layer that adds little to the outputs is checked
    as closely as any other. `orders` has the order of the neurons of each reordered layer.
    """
    call = as_call(example_inputs)
    names = [row.name for row in packed.fpe_packing.rows]  # type: ignore[union-attr]
    try:
        outputs, wanted_layers = _run(masked, call, names=names)
    except Exception as error:
        raise cannot_run(masked, call, error) from error
    _, own_layers = _run(packed, call, names=names)
    problems = []
    for name in names:
        own, wanted = own_layers[name], wanted_layers[name]
        if len(own) != len(wanted):
            problems.append(f"layer {name!r} is not called as often in the packed model.")
            continue
        if name in orders:
            axis = -1 - len(getattr(masked.get_submodule(name), "kernel_size", ()))
            wanted = [t.index_select(axis, orders[name].to(t.device)) for t in wanted]
        found = [difference(*pair) for pair in zip(own, wanted, strict=True) if not _close(*pair)]
        if found:
            problems.append(
                f"layer {name!r} differs by {found[0]:.1e}; give it another format, such as "
                f"format={{{name!r}: 'dense'}}."
            )
    for mode in MODES:
        problems += _mode_problems(masked, packed, call, *mode)
    raise_problems(problems, ModelError, "the packed model, compared with the masked one on example_inputs")
    if not any(map(largest, outputs)):
        raise ModelError(_ALL_ZERO)
    if unseen := [repr(name) for name in names if not wanted_layers[name]]:
        text = f"example_inputs do not reach {', '.join(unseen)}, which could not be compared."
        warnings.warn(text, stacklevel=3)


def check_outputs(model: nn.Module, other: nn.Module, example_inputs: Any, form: str) -> None:
    """Raise if another form of a model computes something else in evaluation mode, without gradients."""
    call = as_call(example_inputs)
    try:
        wanted, _ = _run(model, call, gradients=False)
    except Exception as error:
        raise cannot_run(model, call, error) from error
    own, _ = _run(other, call, gradients=False)
    if len(own) != len(wanted) or not all(map(_close, own, wanted)):
        found = max(map(difference, own, wanted), default=float("inf"))
        raise ModelError(f"the {form} model's outputs on example_inputs differ by {found:.1e}.")
    if not any(map(largest, wanted)):
        raise ModelError(_ALL_ZERO)


def _mode_problems(
    masked: nn.Module, packed: nn.Module, call: Call, mode: str, trains: bool, gradients: bool
) -> list[str]:
    try:
        wanted, _ = _run(masked, call, trains, gradients)
    except Exception as error:  # a batch of one, for a batch norm
        text = f"{mode} was not compared: the masked model fails in it ({type(error).__name__}: {error})."
        warnings.warn(text, stacklevel=4)
        return []
    own, _ = _run(packed, call, trains, gradients)
    if len(own) == len(wanted) and all(map(_close, own, wanted)):
        return []
    again, _ = _run(masked, call, trains, gradients, seed=1)
    if not all(map(_close, again, wanted)):
        warnings.warn(f"{mode} was not compared: the model draws random numbers in it.", stacklevel=4)
        return []
    found = max(map(difference, own, wanted), default=float("inf"))
    return [f"the packed model's outputs in {mode} differ from the masked one's by {found:.1e}."]


def _run(
    model: nn.Module,
    call: Call,
    trains: bool = False,
    gradients: bool = True,
    seed: int = 0,
    names: Sequence[str] = (),
) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """Run a copy without dropout modules; return its outputs, and those of the named layers, call by call."""
    model = copy.deepcopy(model).train(trains)
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    for name, own in seen.items():
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, own=own: own.append(output.detach().clone())
        )
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()  # it drops neurons by their positions, which packing changes
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    args, kwargs = copy.deepcopy(call)
    with torch.random.fork_rng(devices=list(devices)), torch.set_grad_enabled(gradients):
        torch.manual_seed(seed)
        tensors = tensors_in(model(*args, **kwargs))
    return [t for t in tensors if t.is_floating_point()] or tensors, seen


def _close(own: Tensor, wanted: Tensor) -> bool:
    tolerance = TOLERANCE.get(wanted.dtype, 0.0)
    if wanted.is_cuda and wanted.dtype == torch.float32:
        tolerance = ON_GPU
    return difference(own, wanted) <= tolerance * largest(wanted)
