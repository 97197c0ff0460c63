"""Verify numerically that groups of neurons are what they are taken for.

Expanding a group is right if each neuron reaches the output through the consumers' inputs alone, and by the
same function as every other. So two networks of the same size must compute the same: one in which half of the
neurons have no outgoing weights, and one in which, besides, these neurons have other incoming weights and all
neurons stand in another order, with the tensors over them and the inputs of the consumers to match. An
operation that mixes neurons, a consumer that was missed, or a norm that was forgotten moves the output.

Such a comparison says something only where the neurons matter to the output. So it is made on a copy of the
model, with weights drawn anew at a healthy scale, in double precision if the model runs in it; and the output
must move when a producer or a consumer is permuted alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fpe.errors import ModelError, raise_problems
from fpe.graph.copies import copied, first_line, repeatable, with_own_state
from fpe.graph.groups import NeuronGroup
from fpe.graph.inputs import Call, as_call, tensors_in
from fpe.graph.layers import is_layer, size_of
from fpe.graph.permuting import alone, changed, draw, halved

_Hook = Callable[[nn.Module, Any, Tensor], Tensor]

#: How far rounding may move an output of size 1, by the coarsest precision of any operation. In a coarser
#: one than these it may hide a mistake.
_ROUNDING = {torch.finfo(torch.float64).eps: 1e-9, torch.finfo(torch.float32).eps: 1e-5}
#: How many times as far a permutation that is not compensated must move it.
_POWER = 20
#: Above so many parameters, a copy in double precision would be too large.
_LARGE = 1 << 28


def verify(model: nn.Module, groups: NeuronGroup | Sequence[NeuronGroup], example_inputs: Any) -> None:
    """Check numerically that groups can be expanded, by permuting their neurons.

    Parameters
    ----------
    model : nn.Module
        Not changed, and not run: a copy is, in evaluation and in training mode, with other weights. No
        random number generator is moved. A model that cannot run in training mode is judged in evaluation
        mode, with a warning.
    groups : Group or sequence of Group
        The neurons. All are judged at once; only if the output moves are there more runs, to find out why.
    example_inputs : Tensor, tuple or dict
        One batch: the model's input, its positional arguments, or its keyword arguments.

    Raises
    ------
    ModelError
        If expanding a group would make a wrong network, or the output does not depend on it, so that this
        cannot be judged; or if the model cannot be copied, or run on `example_inputs`.
    """
    groups = [groups] if isinstance(groups, NeuronGroup) else list(groups)
    problems = [refusal(name, reason) for name, reason in unverified(model, groups, example_inputs).items()]
    raise_problems(problems, ModelError, "the groups of neurons")


def refusal(name: str, reason: str) -> str:
    """Say that the group of this name cannot be expanded."""
    return f"the neurons of {name!r} cannot be expanded: {reason}."


def unverified(model: nn.Module, groups: Sequence[NeuronGroup], example_inputs: Any) -> dict[str, str]:
    """Return the groups that `verify` refuses: the reason, in a clause, by the name of the group."""
    single = "it has one neuron only, so that no permutation can show what happens to it"
    reasons = {group.name: single for group in groups if size_of(model, group.name)[0] == 1}
    left = [group for group in groups if group.name not in reasons]
    weak: dict[str, str] = {}
    for drawn in (True, False):
        if left:
            trial = _Trial(model, left, as_call(example_inputs), drawn)
            weak = trial.without_power(left)
            reasons |= trial.moving([group for group in left if group.name not in weak])
            left = [group for group in left if group.name in weak]
    return reasons | weak


class _Trial:
    """A copy of a model with other weights, and what its output does when neurons are permuted.

    Parameters
    ----------
    model, groups, call
        As for `verify`; `call` holds positional and named arguments.
    drawn : bool
        Whether all weights are drawn anew, or only those of the producers.
    """

    def __init__(self, model: nn.Module, groups: Sequence[NeuronGroup], call: Call, drawn: bool) -> None:
        self.kind = type(model).__name__
        self.copy, self.call = _running_copy(model, call)
        self.modes = [False, True]
        self.eps = 0.0
        draw(self.copy, groups, drawn)
        if drawn:
            _run(self.copy, self.call, False, False, _of_size_one())
        try:
            self.outputs(True)
        except Exception as error:  # the user's own code may fail in any way
            self.modes = [False]
            if drawn:
                message = (
                    f"{self.kind} does not run on example_inputs in training mode ({first_line(error)}); "
                    "its groups of neurons are verified in evaluation mode only."
                )
                warnings.warn(message, UserWarning, stacklevel=2)

    def outputs(self, training: bool, gradient: bool = False) -> list[Tensor]:
        """Run the model as it is now; return its floating-point outputs."""
        found, eps = _run(self.copy, self.call, training, gradient)
        self.eps = max(self.eps, eps)
        return found

    @property
    def rounding(self) -> float:
        """How far rounding may move an output of size 1."""
        return next((moved for eps, moved in _ROUNDING.items() if self.eps <= eps), float("inf"))

    def moving(self, groups: Sequence[NeuronGroup]) -> dict[str, str]:
        """Return the groups whose permutation moves the output, with the reason; found by halving."""
        if not groups:
            return {}
        for training, odd in product(self.modes, (0, 1)):
            moved = self._moved(groups, training, odd)
            if not moved <= self.rounding:
                break
        else:
            return {}
        if len(groups) > 1:
            half = len(groups) // 2
            return self.moving(groups[:half]) | self.moving(groups[half:])
        readers = ", ".join(map(repr, groups[0].consumers))
        return {
            groups[0].name: f"when its neurons are permuted, and the inputs of {readers} to match, the "
            f"output moves by {moved:.2g} of its size in {'training' if training else 'evaluation'} mode; "
            "something between them mixes neurons, or another module reads them"
        }

    def _moved(self, groups: Sequence[NeuronGroup], training: bool, odd: int) -> float:
        with changed(halved(self.copy, groups, odd)):
            old = self.outputs(training)
        with changed(halved(self.copy, groups, odd, permuted=True)):
            new = self.outputs(training)
        return _distance(old, new)

    def without_power(self, groups: Sequence[NeuronGroup]) -> dict[str, str]:
        """Return the groups of which a layer, permuted alone, does not move the output, with the reason.

        Backward passes show it for all layers at once; only one through which none goes is permuted.
        """
        left = {name: group for group in groups for name in (*group.producers, *group.consumers)}
        unseen: set[str] = set()
        for training, odd in product(reversed(self.modes), (0, 1)):
            slopes = self._slopes(groups, list(left), training, odd) if left else {}
            unseen = {name for name, slope in slopes.items() if slope is None}
            left = {n: g for n, g in left.items() if (slopes[n] or 0) < _POWER * self.rounding}
        if self.rounding == float("inf"):
            reason = f"{self.kind} computes in a precision so coarse that nothing could be verified"
            return {group.name: reason for group in groups}
        weak = [name for name in left if not (name in unseen and self._moves_alone(groups, left[name], name))]
        return {
            left[name].name: f"the output of {self.kind} does not depend on the order of the neurons in "
            f"{name!r}, so that nothing can be verified; give a batch on which it does, and a model that "
            "returns floating-point numbers, such as its logits"
            for name in weak
        }

    def _slopes(
        self, groups: Sequence[NeuronGroup], names: Sequence[str], training: bool, odd: int
    ) -> dict[str, float | None]:
        """Return by how much the output begins to move when each layer begins to be permuted."""
        with changed(halved(self.copy, groups, odd)):
            owners = {name: group for group in groups for name in (*group.producers, *group.consumers)}
            changes = {name: alone(self.copy, owners[name], name) for name in names}
            tensors = list(dict.fromkeys(tensor for change in changes.values() for tensor in change))
            try:
                for tensor in tensors:
                    tensor.requires_grad_(True)
                total = _projected(self.outputs(training, gradient=True))
                found = torch.autograd.grad(total, tensors, allow_unused=True)
            except Exception:  # the user's own backward pass may fail, or there may be none
                return dict.fromkeys(names)
            finally:
                for tensor in tensors:
                    tensor.requires_grad_(False)
            slopes: dict[str, float | None] = {}
            of = dict(zip(tensors, found, strict=True))
            for name, change in changes.items():
                parts = [(of[t] * (value - t.data)).sum() for t, value in change.items() if of[t] is not None]
                slopes[name] = abs(float(sum(parts))) if parts else None
            return slopes

    def _moves_alone(self, groups: Sequence[NeuronGroup], group: NeuronGroup, name: str) -> bool:
        for training, odd in product(self.modes, (0, 1)):
            with changed(halved(self.copy, groups, odd)):
                old = self.outputs(training)
                with changed(alone(self.copy, group, name)):
                    new = self.outputs(training)
            if _distance(old, new) >= _POWER * self.rounding:
                return True
        return False


def _running_copy(model: nn.Module, call: Call) -> tuple[nn.Module, Call]:
    """Copy a model in the finest precision in which it runs in evaluation mode, and its arguments too."""
    large = sum(p.numel() for p in model.parameters()) > _LARGE
    on_cpu = all(p.device.type == "cpu" for p in model.parameters())
    double, single = ((torch.float64, None), (torch.float32, None))
    elsewhere = [] if on_cpu else [(torch.float32, torch.device("cpu"))]
    for dtype, device in ([] if large else [double]) + [single] + elsewhere + [(None, None)]:
        try:
            fine = copied(model, dtype, device)
            arguments = tree_map(lambda value, to=(dtype, device): _moved(value, *to), call)
            outputs, _ = _run(fine, arguments, False, False)
        except Exception as error:  # the user's own code may fail in any way
            last = error
        else:
            if outputs and not any(output.isfinite().any() for output in outputs):
                raise ModelError(
                    f"the output of {type(model).__name__} on example_inputs is NaN or infinite throughout, "
                    "so that nothing can be verified; give a batch, and a model, of finite numbers."
                )
            return fine, arguments
    if isinstance(last, ModelError):
        raise last
    raise ModelError(
        f"{type(model).__name__} cannot be run on example_inputs ({first_line(last)}); give one batch as "
        "the model takes it: a tensor, a tuple of arguments, or a dict of named ones."
    ) from last


def _moved(value: Any, dtype: torch.dtype | None, device: torch.device | None) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().to(device, dtype if value.is_floating_point() else None)


def _run(
    model: nn.Module, call: Call, training: bool, gradient: bool, hook: _Hook | None = None
) -> tuple[list[Tensor], float]:
    """Return the floating-point outputs of a model, and the coarsest precision of any operation.

    It gets the model's attributes and buffers as they are, whatever another run has made of its own.
    """
    own = with_own_state(model)
    for layer in filter(is_layer, own.modules() if hook else ()):
        layer.register_forward_hook(cast(Any, hook))
    args, kwargs = tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, call)
    with torch.set_grad_enabled(gradient), repeatable(own, training) as mode:
        outputs = tensors_in(own(*args, **kwargs), consume=True)
        found = [t for t in outputs if t.is_floating_point() and t.numel()]
        return [t.clone() for t in found], mode.eps


def _of_size_one() -> _Hook:
    """Return a hook that scales the weights of a layer so that its first output has size 1.

    Else what deep networks compute with new weights would overflow, or fade away.
    """
    seen: set[nn.Module] = set()

    def hook(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        size = output.detach().double().square().mean().sqrt()
        if layer in seen or not size.isfinite() or not size:
            return output
        seen.add(layer)
        for parameter in layer.parameters(recurse=False):
            parameter.data = parameter.data / size.to(parameter.dtype)
        return output / size.to(output.dtype)

    return hook


def _distance(old: Sequence[Tensor], new: Sequence[Tensor]) -> float:
    """Return how far outputs have moved, by their size; infinite if they have other shapes, or NaNs."""
    if [t.shape for t in old] != [t.shape for t in new]:
        return float("inf")
    moved = 0.0
    for a, b, size in zip(old, new, _sizes(old), strict=True):
        same = (a == b) | (a.isnan() & b.isnan())
        change = torch.where(same, 0, a.double() - b.double()).square().mean().sqrt()
        if change > 0 or change.isnan():
            moved = max(moved, float(change) / size if change.isfinite() and size else float("inf"))
    return moved


def _sizes(outputs: Sequence[Tensor]) -> list[float]:
    """Return the root mean square of each output, and a thousandth of the largest at least."""
    sizes = []
    for output in outputs:
        finite = output.detach()[output.isfinite()].double()
        sizes.append(float(finite.square().mean().sqrt()) if finite.numel() else 0.0)
    return [max(size, 1e-3 * max(sizes)) for size in sizes]


def _projected(outputs: Sequence[Tensor]) -> Tensor:
    """Return a random combination of outputs, each divided by its size."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros((), dtype=torch.float64)
    for output, size in zip(outputs, _sizes(outputs), strict=True):
        if output.requires_grad and size:
            random = torch.randn(output.shape, generator=generator).to(output) / output.numel() ** 0.5
            parts = torch.where(output.isfinite(), output * random, 0)
            total = total + (parts.sum() / size).double().cpu()
    return total
