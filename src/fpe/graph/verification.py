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

import functools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fpe.errors import ModelError, raise_problems
from fpe.graph.copies import first_line
from fpe.graph.groups import NeuronGroup
from fpe.graph.inputs import Call, Recorded, as_call
from fpe.graph.layers import neurons_of, orient_
from fpe.graph.permuting import Shared, permuted, shuffled, silenced, tensors_of
from fpe.graph.probe import Probe
from fpe.graph.siblings import apart, recorded_calls
from fpe.graph.stacked import stacked_layers

#: How many times as far a permutation that is not compensated must move it.
POWER = 20


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
    with stacked_layers(model):
        reasons, _, _ = unverified(model, groups, example_inputs)
    problems = [refusal(name, reason) for name, reason in reasons.items()]
    raise_problems(problems, ModelError, "the groups of neurons")


def refusal(name: str, reason: str) -> str:
    """Say that the group of this name cannot be expanded."""
    return f"the neurons of {name!r} cannot be expanded: {reason}."


def unverified(
    model: nn.Module,
    groups: Sequence[NeuronGroup],
    example_inputs: Any,
    parts: dict[str, Part] | None = None,
) -> tuple[dict[str, str], list[torch.Size], Probe | None]:
    """Return the groups that `verify` refuses: by the name of the group, the reason as a clause.

    The shapes of the model's floating-point outputs in evaluation mode come second, then a copy of it with
    random weights, if it runs with them and norms over neurons are as they were. Groups that the batch does
    not reach are judged in a part that it would reach, as it does the part's siblings; `parts` gets it.
    """
    orient_(model, groups)
    single = "it has only one neuron, so that no permutation can show what happens to it"
    reasons = {group.name: single for group in groups if neurons_of(model, group) == 1}
    left = [group for group in groups if group.name not in reasons]
    weak: dict[str, str] = {}
    shapes: list[torch.Size] = []
    faithful = None
    for everywhere in (True, False):  # a model may not work with random weights everywhere
        if left:
            try:
                trial = Trial(model, left, as_call(example_inputs), everywhere)
            except ModelError:
                if everywhere:
                    continue
                raise
            shapes = [output.shape for output in trial.whole[False]]
            faithful = trial.probe if trial.probe.faithful else faithful
            weak = trial.without_power()
            reasons |= trial.moving([group for group in left if group.name not in weak])
            left = [group for group in left if group.name in weak]
    if weak:
        calls = recorded_calls(model, as_call(example_inputs))
        for group in [group for group in groups if group.name in weak]:
            if (found := apart(model, group, calls)) is not None:
                name, call = found[0], Recorded(*found[1])
                own, own_shapes, _ = unverified(model.get_submodule(name), [group.within(name)], call)
                del weak[group.name]
                weak |= dict.fromkeys([group.name] if own else [], *own.values())
                if parts is not None:
                    parts[group.name] = Part(name, call, own_shapes)
    return reasons | weak, shapes, faithful


@dataclass(frozen=True)
class Part:
    """A part in which a group is judged: its name, a call that reaches it, and the shapes of its outputs."""

    name: str
    call: Recorded
    shapes: list[torch.Size]


#: Layers, each with the name of a group, which it produces or consumes: it may do both, for two groups.
Roles = dict[tuple[str, str], NeuronGroup]


class Trial:
    """A copy of a model with random weights, and what its outputs do when neurons of groups are permuted.

    With `everywhere`, all weights are random, else only those of the producers. Without `run` it has not
    been run yet.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[NeuronGroup], call: Call, everywhere: bool, run: bool = True
    ) -> None:
        self.groups, self.kind, self.everywhere = groups, type(model).__name__, everywhere
        self.modes = [True, False]
        #: Which neurons are silenced in turn: those of odd number, and those of even number.
        self.halves = [1, 0]
        #: Whether training is known to compute what evaluation does, and to depend on every single neuron.
        self.alike = self.all_show = False
        self.probe = Probe(model, groups, call, everywhere, run)
        self.copy, self.outputs = self.probe.copy, self.probe.outputs
        self.whole = self.probe.whole
        if not everywhere and self.whole[False] and not any(o.isfinite().any() for o in self.whole[False]):
            raise ModelError(
                f"the output of {self.kind} on example_inputs is NaN or infinite throughout, so that "
                "nothing can be verified; give a batch, and a model, of finite numbers."
            )

    @property
    def rounding(self) -> float:
        """How far rounding may move an output of size 1."""
        return self.probe.rounding

    def roles(self) -> Roles:
        """Return all layers that are to show their groups."""
        return {(n, group.name): group for group in self.groups for n in (*group.producers, *group.consumers)}

    def shows_all(self, training: bool, measure: bool = False) -> bool:
        """Run the copy in one mode; tell whether each layer, and each neuron, moves its finite outputs."""
        self.all_show = False
        slopes = self.slopes(self.roles(), training, measure)
        finite = all(bool(output.isfinite().all()) for output in self.whole[training])
        return finite and self.all_show and all(slope >= POWER * self.rounding for slope in slopes.values())

    def without_power(self) -> dict[str, str]:
        """Return the groups of which a layer, permuted alone, does not move the output, with the reason.

        A backward pass shows it for all layers at once; only a layer that no gradient reaches is permuted.
        Evaluation mode is dropped if it computes what training mode does.
        """
        left = self.roles()
        slopes: dict[tuple[str, str], float] = {}
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
                left = {k: g for k, g in left.items() if not slopes[k] >= POWER * self.rounding}
        self.alike = len(self.whole) > 1 and distance(self.whole[False], self.whole[True]) <= self.rounding
        if self.alike and self.all_show:
            self.modes, self.halves = [True], [1]
        if self.rounding == float("inf"):
            reason = f"{self.kind} computes in a precision so coarse that nothing could be verified"
            return {group.name: reason for group in self.groups}
        weak = [key for key in left if slopes[key] > 0 or not self.moves_alone(left[key], key[0])]
        return {
            group: f"the output of {self.kind} does not depend on the order of the neurons in "
            f"{name!r}, so that nothing can be verified; give a batch on which it does, and a model that "
            "returns floating-point numbers, such as its logits"
            for name, group in weak
        }

    def slopes(self, layers: Roles, training: bool, measure: bool = False) -> dict[tuple[str, str], float]:
        """Return how fast the output moves as each layer begins to be permuted; 0 without a gradient.

        Each gradient is used as soon as it is there, and gone then.
        """
        shared, slopes = Shared(), dict.fromkeys(layers, 0.0)
        changes: dict[Tensor, dict[tuple[str, str], Tensor]] = {}
        for key, group in layers.items():
            for tensor, new in permuted(self.copy, group, [key[0]], shared=shared).items():
                changes.setdefault(tensor, {})[key] = new
        neurons: dict[Tensor, set[int]] = {}  # weights, and their axes over neurons
        for group in self.groups:
            for tensor, axis, _ in tensors_of(self.copy, group, (*group.producers, *group.consumers)):
                if tensor.dim() > 1:
                    neurons.setdefault(tensor, set()).add(axis)
        shown: set[tuple[Tensor, int]] = set()  # those all of whose neurons move the output

        def use(tensor: Tensor, leaf: Tensor) -> None:
            gradient, leaf.grad = cast(Tensor, leaf.grad), None
            for key, new in changes[tensor].items():
                slope = gradient.flatten().dot(new.flatten()) - gradient.flatten().dot(tensor.data.flatten())
                slopes[key] += float(slope)
            effects = gradient.mul_(tensor.data).abs_()
            for axis in neurons.get(tensor, ()):
                each = effects.movedim(axis, 0).reshape(tensor.shape[axis], -1).sum(1)
                if bool((each >= POWER * self.rounding).all()):
                    shown.add((tensor, axis))

        leaves = {tensor: nn.Parameter(tensor.data) for tensor in changes}
        for tensor, leaf in leaves.items():
            cast(Any, leaf).register_post_accumulate_grad_hook(functools.partial(use, tensor))
        outputs = None
        try:
            outputs = self.outputs(dict(leaves), training, gradient=True, measure=measure)
            cast(Any, _projected(outputs)).backward()
        except Exception:  # the user's own backward pass may fail, or there may be none
            outputs = self.outputs({}, training, measure=measure) if outputs is None else outputs
            slopes = dict.fromkeys(layers, 0.0)
            shown = set()
        self.whole[training] = [output.detach() for output in outputs]
        every = {(tensor, axis) for tensor, axes in neurons.items() for axis in axes}
        self.all_show = self.all_show or every <= shown
        return {key: abs(slope) for key, slope in slopes.items()}

    def moves_alone(self, group: NeuronGroup, name: str) -> bool:
        """Tell whether the output moves if a layer is permuted alone."""
        values = permuted(self.copy, group, [name])
        return any(
            distance(self.whole[training], self.outputs(values, training)) >= POWER * self.rounding
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
