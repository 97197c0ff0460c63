"""Verify numerically that groups of neurons can be expanded.

Expanding a group is right if each neuron reaches the output only through the inputs of the consumers, and by
the same function as every other neuron. So two networks of the same size must compute the same: one in which
half of the neurons have no outgoing weights (`silenced`), and one in which, besides, these neurons have other
incoming weights and all neurons stand in another order, with the tensors over them and the inputs of the
consumers to match (`shuffled`). An operation that mixes neurons, a missing consumer or norm moves the output.

Such a comparison has power only where the neurons matter to the output. So it is made on a copy with random
weights of a healthy scale, in double precision if the model runs in it; and the output must move when a
producer or a consumer is permuted alone. It is made for both halves of the neurons in both modes, unless all
neurons matter, and both modes compute the same with all of them: then one half in training mode suffices,
since each place has then a neuron that matters either before or after.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fpe.errors import ModelError, raise_problems
from fpe.graph.copies import copied, first_line, not_run, repeatable, with_own_state
from fpe.graph.groups import NeuronGroup
from fpe.graph.inputs import Call, as_call, converted, copied_call, tensors_in
from fpe.graph.layers import is_layer, neurons_of
from fpe.graph.permuting import Values, permuted, randomize_, shuffled, silenced, tensors_of

_Hook = Callable[[nn.Module, Any, Tensor], Tensor]

#: How far rounding may move an output of size 1, by the coarsest precision of any operation. In a coarser
#: one than these it may hide a mistake.
_ROUNDING = {torch.finfo(torch.float64).eps: 1e-9, torch.finfo(torch.float32).eps: 1e-5}
#: How many times as far a permutation that is not compensated must move it.
_POWER = 20
#: A copy of more parameters would be too large in double precision.
MAX_DOUBLE = 1 << 28


def verify(model: nn.Module, groups: NeuronGroup | Sequence[NeuronGroup], example_inputs: Any) -> None:
    """Check numerically that groups can be expanded, by permuting their neurons.

    Parameters
    ----------
    model : nn.Module
        Neither changed nor run: a copy with other weights is run, in training and in evaluation mode. No
        random number generator is moved. A model that does not run in training mode is judged in evaluation
        mode, with a warning.
    groups : NeuronGroup or sequence of NeuronGroup
        All are judged at once; only if the output moves are there more runs, to find out why.
    example_inputs : Tensor, tuple or dict
        One batch: the model's input, its positional arguments, or its keyword arguments.

    Raises
    ------
    ModelError
        If expanding a group would make a wrong network, or the output does not depend on it, so that this
        cannot be judged; or if the model cannot be copied, or run on `example_inputs`.
    """
    groups = [groups] if isinstance(groups, NeuronGroup) else list(groups)
    reasons, _ = unverified(model, groups, example_inputs)
    problems = [refusal(name, reason) for name, reason in reasons.items()]
    raise_problems(problems, ModelError, "the groups of neurons")


def rounding_of(eps: float) -> float:
    """Return how far rounding may move an output of size 1, by the coarsest precision of any operation."""
    return next((moved for precision, moved in _ROUNDING.items() if eps <= precision), float("inf"))


def refusal(name: str, reason: str) -> str:
    """Say that the group of this name cannot be expanded."""
    return f"the neurons of {name!r} cannot be expanded: {reason}."


def unverified(
    model: nn.Module, groups: Sequence[NeuronGroup], example_inputs: Any
) -> tuple[dict[str, str], list[torch.Size]]:
    """Return the groups that `verify` refuses: by the name of the group, the reason as a clause.

    The shapes of the model's floating-point outputs in evaluation mode come second.
    """
    single = "it has only one neuron, so that no permutation can show what happens to it"
    reasons = {group.name: single for group in groups if neurons_of(model, group) == 1}
    left = [group for group in groups if group.name not in reasons]
    weak: dict[str, str] = {}
    shapes: list[torch.Size] = []
    for everywhere in (True, False):  # a model may not work with random weights everywhere
        if left:
            try:
                trial = _Trial(model, left, as_call(example_inputs), everywhere)
            except ModelError:
                if everywhere:
                    continue
                raise
            shapes = [output.shape for output in trial.whole[False]]
            weak = trial.without_power()
            reasons |= trial.moving([group for group in left if group.name not in weak])
            left = [group for group in left if group.name in weak]
    return reasons | weak, shapes


class _Trial:
    """A copy of a model with random weights, and what its outputs do when neurons of groups are permuted.

    With `everywhere`, all weights are random, else only those of the producers.
    """

    def __init__(self, model: nn.Module, groups: Sequence[NeuronGroup], call: Call, everywhere: bool) -> None:
        self.groups, self.kind, self.everywhere = groups, type(model).__name__, everywhere
        self.modes = [True, False]
        #: Which neurons are silenced in turn: those of odd number, and those of even number.
        self.halves = [1, 0]
        #: Whether training is known to compute what evaluation does, and to depend on every single neuron.
        self.alike = self.all_show = False
        self.eps = 0.0
        self.copy, self.call = model, call
        #: The outputs in evaluation and in training mode, with all neurons.
        self.whole = {False: self.run_in_finest_precision()}

    def run_in_finest_precision(self) -> list[Tensor]:
        """Copy the model with random weights in the finest precision in which it runs, and run the copy."""
        model, call = self.copy, self.call
        places: list[tuple[torch.dtype | None, torch.device | None]] = [(torch.float32, None), (None, None)]
        if sum(p.numel() for p in model.parameters()) <= MAX_DOUBLE:
            places.insert(0, (torch.float64, None))
        if any(p.device.type != "cpu" for p in model.parameters()):
            places.insert(-1, (torch.float32, torch.device("cpu")))
        for dtype, device in places:
            try:
                self.copy, self.call = copied(model, dtype, device), converted(call, dtype, device)
                randomize_(self.copy, self.groups, self.everywhere)
                outputs = self.outputs({}, False, hook=_of_size_one() if self.everywhere else None)
            except Exception as error:  # the user's own code may fail in any way
                last = error
                continue
            if not self.everywhere and outputs and not any(output.isfinite().any() for output in outputs):
                raise ModelError(
                    f"the output of {self.kind} on example_inputs is NaN or infinite throughout, so that "
                    "nothing can be verified; give a batch, and a model, of finite numbers."
                )
            return outputs
        if isinstance(last, ModelError):
            raise last
        raise not_run(self.kind, last) from last

    def outputs(
        self, values: Values, training: bool, gradient: bool = False, hook: _Hook | None = None
    ) -> list[Tensor]:
        """Run the copy with other values of some tensors; return its floating-point outputs.

        Each run has its own buffers and attributes, so that none depends on another.
        """
        own = with_own_state(self.copy, values)
        for layer in filter(is_layer, own.modules() if hook else ()):
            layer.register_forward_hook(cast(Any, hook))
        args, kwargs = copied_call(self.call)
        with torch.set_grad_enabled(gradient), repeatable(own, training) as mode:
            outputs = tensors_in(own(*args, **kwargs), consume=True)
            found = [t.clone() for t in outputs if t.is_floating_point() and t.numel()]
        self.eps = max(self.eps, mode.eps)
        return found

    @property
    def rounding(self) -> float:
        """How far rounding may move an output of size 1."""
        return rounding_of(self.eps)

    def without_power(self) -> dict[str, str]:
        """Return the groups of which a layer, permuted alone, does not move the output, with the reason.

        A backward pass shows it for all layers at once; only a layer that no gradient reaches is permuted.
        Evaluation mode is dropped if it computes what training mode does.
        """
        left = {name: group for group in self.groups for name in (*group.producers, *group.consumers)}
        slopes: dict[str, float] = {}
        for training in (True, False):
            if not left or training not in self.modes:
                continue
            try:
                slopes = self.slopes(left, training)
            except Exception as error:  # the user's own code may fail in any way
                if not training:
                    raise
                self.modes = [False]
                if self.everywhere:
                    message = (
                        f"{self.kind} does not run on example_inputs in training mode ({first_line(error)}); "
                        "its groups of neurons are verified in evaluation mode only."
                    )
                    warnings.warn(message, UserWarning, stacklevel=2)
            else:
                left = {n: g for n, g in left.items() if not slopes[n] >= _POWER * self.rounding}
        self.alike = len(self.whole) > 1 and distance(self.whole[False], self.whole[True]) <= self.rounding
        if self.alike and self.all_show:
            self.modes, self.halves = [True], [1]
        if self.rounding == float("inf"):
            reason = f"{self.kind} computes in a precision so coarse that nothing could be verified"
            return {group.name: reason for group in self.groups}
        weak = [name for name in left if slopes[name] > 0 or not self.moves_alone(left[name], name)]
        return {
            left[name].name: f"the output of {self.kind} does not depend on the order of the neurons in "
            f"{name!r}, so that nothing can be verified; give a batch on which it does, and a model that "
            "returns floating-point numbers, such as its logits"
            for name in weak
        }

    def slopes(self, layers: dict[str, NeuronGroup], training: bool) -> dict[str, float]:
        """Return how fast the output moves as each layer begins to be permuted; 0 without a gradient."""
        changes = {name: permuted(self.copy, group, [name]) for name, group in layers.items()}
        leaves = {t: nn.Parameter(t.data) for change in changes.values() for t in change}
        outputs = None
        found: Sequence[Tensor] = list(map(torch.zeros_like, leaves))
        try:
            outputs = self.outputs(dict(leaves), training, gradient=True)
            found = torch.autograd.grad(_projected(outputs), list(leaves.values()), materialize_grads=True)
        except Exception:  # the user's own backward pass may fail, or there may be none
            outputs = self.outputs({}, training) if outputs is None else outputs
        self.whole[training] = [output.detach() for output in outputs]
        slope = dict(zip(leaves, found, strict=True))
        self.all_show = self.all_show or self.shows_all(slope)
        return {
            name: abs(float(sum((slope[t] * (new - t.data)).sum() for t, new in change.items())))
            for name, change in changes.items()
        }

    def shows_all(self, slope: Values) -> bool:
        """Tell whether the output depends on all neurons, at each of their places, by its slopes."""
        parts = [p for g in self.groups for p in tensors_of(self.copy, g, (*g.producers, *g.consumers))]
        effects = (
            (slope.get(t, 0 * t) * t.data).movedim(axis, 0).reshape(t.shape[axis], -1) for t, axis, _ in parts
        )
        return all(bool((e.sum(1).abs() >= _POWER * self.rounding).all()) for e in effects)

    def moves_alone(self, group: NeuronGroup, name: str) -> bool:
        """Tell whether the output moves if a layer is permuted alone."""
        values = permuted(self.copy, group, [name])
        return any(
            distance(self.whole[training], self.outputs(values, training)) >= _POWER * self.rounding
            for training in self.modes
        )

    def moving(self, groups: Sequence[NeuronGroup]) -> dict[str, str]:
        """Return the groups whose permutation moves the output, with the reason; found by halving."""
        moved = next(self.moves(groups), None) if groups else None
        if moved is None:
            return {}
        if len(groups) > 1:
            half = len(groups) // 2
            return self.moving(groups[:half]) | self.moving(groups[half:])
        consumers = ", ".join(map(repr, groups[0].consumers))
        return {
            groups[0].name: f"when its neurons are permuted, and the inputs of {consumers} to match, the "
            f"output moves by {moved[0]:.2g} of its size in {'training' if moved[1] else 'evaluation'} mode; "
            "something between them mixes neurons, or another module consumes them"
        }

    def moves(self, groups: Sequence[NeuronGroup]) -> Iterator[tuple[float, bool]]:
        """Yield how far the output moves if groups are permuted, and in which mode, where it moves."""
        for odd in self.halves:
            values = shuffled(self.copy, groups, odd)
            references: list[list[Tensor]] = []
            for training in self.modes:
                new = self.outputs(values, training)
                # Where evaluation computes what training does, it needs no reference of its own.
                if self.alike and any(distance(reference, new) <= self.rounding for reference in references):
                    continue
                references.append(self.outputs(silenced(self.copy, groups, odd), training))
                moved = distance(references[-1], new)
                if not moved <= self.rounding:
                    yield moved, training


def _of_size_one() -> _Hook:
    """Return a hook that scales each layer's weights so that its first output has size 1.

    Else what deep networks compute with random weights would overflow, or fade away.
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


def distance(old: Sequence[Tensor], new: Sequence[Tensor]) -> float:
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
