"""Expand a model, in a copy or in place: every group of the plan, in order, by the four steps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fpe._util.modules import closure_problems, hook_problems, uncompiled
from fpe.errors import ArgumentError, BudgetError, ModelError, raise_problems
from fpe.expansion import planner, whole
from fpe.expansion.index_maps import Origins, memo_with, remember_structure_
from fpe.expansion.plan import LayerPlan, Plan, layer_problems, parameters_per_neuron, what_is_split
from fpe.expansion.pruning import Pruning
from fpe.expansion.selection import Layers
from fpe.expansion.splits import Split
from fpe.expansion.steps import Weights, duplicate, mask, partition, prune_, widen, widened_inputs
from fpe.expansion.widths import shape_problem
from fpe.graph import NeuronGroup
from fpe.graph.copies import deep_copy
from fpe.graph.groups import layout_neurons
from fpe.graph.layers import is_stacked, orient_, producer_sets
from fpe.graph.stacked import close_stacks_, stacked_layers
from fpe.graph.symbolic import NEEDS_BATCH
from fpe.masked import check_masks, count_free, count_nonzero


def expand(
    model: nn.Module,
    factor: int = 2,
    *,
    split: str | Split = "random",
    prune: str | Pruning = "magnitude",
    layers: str | NeuronGroup | Layers | None = None,
    example_inputs: Any = None,
    seed: int = 0,
    budget: str = "group",
    convolutions: str = "channels",
    target_fraction: float = 1.0,
    target: str = "participation",
    plan: Plan | None = None,
) -> nn.Module:
    """Return a wider model with the same number of non-zero parameters; `model` is not changed.

    Each neuron becomes `factor` children that share its inputs without overlap; its outgoing weights are
    copied to each child, and as many of the smallest weights are pruned as were copied (section 2.3). Train
    the new model on in any loop, with a new optimizer.

    Parameters
    ----------
    layers : optional
        As for `fpe.plan`; or ``"all"``: then the whole model becomes wider, as by `fpe.widen`, and the
        smallest weights of all its layers are pruned jointly. Only `factor`, `example_inputs` and `seed` are
        allowed beside it.
    plan : Plan, optional
        What `fpe.plan` returned for this model, instead of all other arguments. Nothing is measured again.
        All other arguments are those of `fpe.plan`.

    Returns
    -------
    nn.Module
        A copy of `model` with masked linear layers or convolutions, and wider norms between them. Its
        ``fpe_plan`` is the applied `Plan`. Of a compiled model the model in it is copied.

    Raises
    ------
    ArgumentError, ModelError, BudgetError
        As for `fpe.plan`, before anything is copied. ModelError also if the wide model does not run on
        `example_inputs`, or if `plan` was made for another model.

    Warns
    -----
    UserWarning
        If convolutions are left unchanged because no batch is given, and neither `layers` nor `plan` is.

    Examples
    --------
    >>> import torch, fpe
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> wide = fpe.expand(model, factor=2, seed=1)
    >>> wide[0].fpe_mask.sum().item() + wide[2].fpe_mask.sum().item() + 8 + 2
    46.0
    """
    how = dict(locals())
    del how["model"], how["plan"]
    model = uncompiled(model)
    if layers == "all":
        return _whole(model, plan, how)
    with stacked_layers(model):
        todo = planned(model, plan, how)
        _check_copyable(model)
        done, replaced = Expansion(model, todo).run()
        wide: nn.Module = close_stacks_(deep_copy(model, memo_with(model, replaced)))
    wide.fpe_plan = done  # type: ignore[assignment]
    remember_structure_(wide)
    check_wide(wide, todo, done, fresh=plan is None)
    return wide


def _whole(model: nn.Module, plan: Plan | None, how: dict[str, Any]) -> nn.Module:
    """Return the whole model wider, pruned to its count."""
    used = {"factor", "layers", "example_inputs", "seed"}
    given = [*_not_default({k: v for k, v in how.items() if k not in used}), *(["plan"] if plan else [])]
    if given:
        raise ArgumentError(
            f"layers is 'all', and {', '.join(given)} is given; factor, example_inputs and seed are allowed."
        )
    wide = whole.widen(model, how["factor"], example_inputs=how["example_inputs"], seed=how["seed"])
    return whole.prune_to_(wide, count_nonzero(model))


def _not_default(how: dict[str, Any]) -> list[str]:
    """Name the arguments that are not those of `fpe.plan` by default."""
    defaults: dict[str, Any] = {"factor": 2, **(planner.plan.__kwdefaults__ or {})}
    simple = (str, int, float, type(None))
    return [n for n, v in how.items() if not isinstance(v, simple) or n not in defaults or v != defaults[n]]


def planned(model: nn.Module, plan: Plan | None, how: dict[str, Any]) -> Plan:
    """Return a plan: the given one, checked again, if all other arguments are the defaults, or a new one."""
    if plan is None:
        made = planner.plan(model, **how)
        left = [s.name for s in made.skipped if s.reason.endswith(NEEDS_BATCH)]
        if left and how.get("layers") is None:
            names = ", ".join(map(repr, left[:5])) + " and others" * (len(left) > 5)
            warnings.warn(
                f"convolutions are left unchanged for want of a batch: {names}. Give example_inputs=…, a "
                "batch, to expand them too, or layers=… without them; fpe.plan lists what is expanded.",
                stacklevel=3,
            )
        return made
    if not isinstance(plan, Plan):
        raise ArgumentError(f"plan is a {type(plan).__name__}; give what fpe.plan returned.")
    if other := _not_default(how):
        raise ArgumentError(f"plan and {', '.join(other)} are given; a plan has all of them: give either.")
    plan.basis_for(model)
    check_masks(model, "expanding")
    problems = layer_problems(model, [layer.group for layer in plan.layers])
    raise_problems(problems, ModelError, "the layers to expand")
    return plan


class Expansion:
    """The layers of a model while they are widened, group by group; the model itself is not changed."""

    def __init__(self, model: nn.Module, todo: Plan) -> None:
        self.model, self.todo, self.basis = model, todo, todo.basis_for(model)
        orient_(model, [layer.group for layer in todo.layers])
        self.pruning = self.basis.pruning
        self.origins = Origins(model)
        self.weights: dict[str, Weights] = {}
        self.copies = 0

    @torch.no_grad()
    def run(self) -> tuple[Plan, dict[str, nn.Module]]:
        """Return what was done, and by name the modules that replace the model's."""
        rng = np.random.default_rng(self.todo.seed)
        done = tuple(self.expand(layer, rng) for layer in self.todo.layers)
        if self.todo.budget == "network":
            prune_(list(self.weights.values()), self.copies, self.pruning, self.todo.factor)
        modules: dict[str, nn.Module] = {
            name: mask(self.model.get_submodule(name), own) for name, own in self.weights.items()
        }
        modules |= {
            name: widen(self.model.get_submodule(name), self.origins.rows[name], entries)
            for name, entries in self.origins.widths.items()
        }
        self.origins.attach_maps_(modules, done)
        return replace(self.todo, layers=done, basis=None), modules

    def expand(self, layer: LayerPlan, rng: np.random.Generator) -> LayerPlan:
        """Widen one group, and prune it if each group has a budget; return what was done."""
        group, factor = layer.group, layer.factor
        names = (*group.producers, *group.consumers)
        old = {n: self.weights.get(n) or Weights.of(self.model.get_submodule(n)) for n in names}
        stacked = is_stacked(self.model.get_submodule(group.name))
        sets = [
            _Set(
                own,
                [p for n, w in zip(own, experts, strict=True) for p in w.divided(group.parts_of(n))],
                layer,
            )
            for own in producer_sets(self.model, group)
            for experts in zip(*(old[n].experts() if stacked else [old[n]] for n in own), strict=True)
        ]
        consumers = [old[name] for name in group.consumers]
        per_neuron = parameters_per_neuron(self.model, group)
        notes: list[str] = []

        with _notes(notes):
            for own in sets:
                own.children = partition(own.joint(_weight), factor, self._split_for(own), rng)
        if self.pruning.drops_children:
            layer = self._drop(layer, sets, consumers, per_neuron)
        index_map, sources = layer.index_map, self.origins.add(layer)
        for own in sets:
            own.wide = [
                duplicate(part, [], own.children, factor, index_map=index_map)[0] for part in own.parts
            ]
        wide_consumers = [widened_inputs(*pair) for pair in zip(consumers, sources, strict=True)]
        made = [*(part for own in sets for part in own.wide), *wide_consumers]
        before, after = (sum(count_free(w.mask) for w in each) for each in (old.values(), made))
        copies = after - before + (layer.neurons_after - layer.neurons) * per_neuron
        if self.todo.budget == "group":
            with _notes(notes):
                self._prune_(layer, sets, wide_consumers, copies)
        self.copies += copies
        self.weights |= dict(zip(group.consumers, wide_consumers, strict=True))
        made_of = [own.joined() for own in sets]
        for name in group.producers:
            own_weights = [each[name] for each in made_of if name in each]
            self.weights[name] = Weights.of_experts(own_weights) if stacked else own_weights[0]
        for note in notes:
            warnings.warn(f"layer {group.name!r}: {note}.", stacklevel=6)
        return replace(layer, notes=tuple(notes))

    def _split_for(self, own: _Set) -> Split:
        """Return the split for a set of producers, fitted to their inputs if it needs them."""
        split, name = self.basis.split, own.names[0]
        return split.on(self._of_inputs(name, self.basis.inputs[name])) if split.needs_inputs else split

    def _of_inputs(self, name: str, measured: Tensor) -> Tensor:
        """Repeat what was measured of inputs, (…, inputs, …), for those copied by earlier groups."""
        columns = self.origins.columns.get(name)
        return measured if columns is None else measured.index_select(1, columns.to(measured.device))

    def _drop(
        self, layer: LayerPlan, sets: list[_Set], consumers: list[Weights], per_neuron: int
    ) -> LayerPlan:
        """Let the pruning choose the children that are not created; return the plan with them."""
        neurons, factor, group = layer.neurons, layer.factor, layer.group
        first = sets[0].children
        layouts = [self.origins.layout(layer, name) for name in group.consumers]
        neuron_of = [layout_neurons(layout, neurons).to(first.device) for layout in layouts]

        def count(measure: Callable[[Weights], Tensor]) -> tuple[Tensor, Tensor]:
            """Sum a measure over the incoming weights of each child, and the outgoing ones of each neuron."""
            each = [own.joint(measure).reshape(*own.children.shape, -1).sum(2) for own in sets]
            per_child = each[0].new_zeros(neurons, factor)
            for own, sums in zip(sets, each, strict=True):
                per_child.scatter_add_(1, own.children.long(), sums)
            outgoing = per_child.new_zeros(len(consumers), neurons)
            for total, neuron, w in zip(outgoing, neuron_of, consumers, strict=True):
                sums = measure(w).transpose(0, 1).flatten(1).sum(1)
                total.index_add_(0, neuron[neuron >= 0], sums[neuron >= 0])
            return per_child, outgoing.sum(0)

        squares, outgoing_squares = count(lambda w: w.weight.float().square())
        entries, outgoing_entries = count(lambda w: w.mask.float())
        copied = outgoing_entries + per_neuron
        dropped = self.pruning.dropped_children(
            (squares + outgoing_squares.unsqueeze(1)).flatten(),
            (entries + copied.unsqueeze(1)).long().flatten(),
            layer.index_map.blocks.to(first.device),
            (factor - 1) * int(copied.long().sum()),
        )
        after = neurons * factor - len(dropped)
        return replace(layer, inputs=first.shape[1], neurons_after=after, dropped=tuple(dropped.tolist()))

    def _prune_(self, layer: LayerPlan, sets: list[_Set], consumers: list[Weights], count: int) -> None:
        """Prune a group; the producers of each set as one layer, one below the other."""
        scores = None
        if self.basis.scores:
            measured = (self._of_inputs(n, self.basis.scores[n]) for n in sets[0].names)
            scores = torch.cat(list(measured))
        blocks = layer.index_map.blocks.repeat(len(sets[0].wide)) if self.pruning.needs_shared else None
        stacked = [own.stacked() for own in sets]
        given = {"blocks": blocks, "scores": scores}
        if is_stacked(self.model.get_submodule(layer.group.name)):  # all experts as one layer
            joint = Weights.joined(stacked)
            prune_([joint, *consumers], count, self.pruning, layer.factor, **given)
            stacked = joint.divided(len(sets))
        else:
            prune_([*stacked, *consumers], count, self.pruning, layer.factor, **given)
        for own, pruned in zip(sets, stacked, strict=True):
            own.take(pruned)


@dataclass
class _Set:
    """Producers of a group with weights of one shape, and their parts, all with one partition."""

    names: list[str]
    parts: list[Weights]
    layer: LayerPlan
    children: Tensor = field(init=False)
    wide: list[Weights] = field(init=False)

    @property
    def shares(self) -> str:
        """What the children split: what the plan says, or what another shape allows."""
        channels, *kernel = self.parts[0].weight.shape[1:]
        convolutions = "taps" if self.layer.shares == "taps" else "channels"
        return what_is_split(channels, math.prod(kernel), convolutions, self.layer.factor)

    def joint(self, measure: Callable[[Weights], Tensor]) -> Tensor:
        """Return (neurons, inputs), or (neurons, inputs, depth) where several entries stay together."""
        tensors = [measure(part) for part in self.parts]
        neurons, inputs = tensors[0].shape[:2]
        shape = (neurons, -1, 1) if self.shares == "taps" else (neurons, inputs, -1)
        parts = [t.reshape(shape) for t in tensors]
        joint = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
        return joint.squeeze(2) if joint.shape[2] == 1 else joint

    def stacked(self) -> Weights:
        """Return the wide parts as one layer, (neurons of all, inputs), or (…, depth) as in `joint`."""
        shape = self.wide[0].weight.shape
        depth = shape[2:].numel() if self.shares != "taps" else 1
        flat = (-1, shape[1:].numel() // depth, *([depth] if depth > 1 else []))
        whole = Weights.joined(self.wide)
        return Weights(whole.weight.view(flat), None, whole.mask.view(flat))

    def take(self, pruned: Weights) -> None:
        """Take the parts from what `stacked` returned, pruned; a single one may have been pruned itself."""
        if self.wide[0].weight.data_ptr() != pruned.weight.data_ptr():
            shape = (len(self.wide), *self.wide[0].weight.shape)
            weights, masks = pruned.weight.view(shape).unbind(), pruned.mask.view(shape).unbind()
            each = zip(weights, masks, self.wide, strict=True)
            self.wide = [Weights(weight.clone(), part.bias, mask.clone()) for weight, mask, part in each]

    def joined(self) -> dict[str, Weights]:
        """Return the wide weights of each producer."""
        left, group = iter(self.wide), self.layer.group
        return {name: Weights.joined([*islice(left, group.parts_of(name))]) for name in self.names}


def _weight(weights: Weights) -> Tensor:
    return weights.weight


@contextmanager
def _notes(notes: list[str]) -> Iterator[None]:
    """Turn the UserWarnings of splits and prunings into notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    notes += [str(one.message) for one in caught if one.category is UserWarning]
    for one in caught:
        if one.category is not UserWarning:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def _check_copyable(model: nn.Module) -> None:
    """Refuse a forward of one module's own, which a copy would share, and hooks that it would lose."""
    problems = hook_problems(model.named_parameters()) + closure_problems(model)
    raise_problems(problems, ModelError, "what a copy of the model would lose")
    for name, module in model.named_modules():
        own = vars(module).get("forward")
        if own is not None and getattr(own, "__self__", None) is not module:
            raise ModelError(
                f"{name or type(model).__name__!r} has a forward of its own, set on this one module, which a "
                "copy would share with the original; expand the model before it is wrapped (by accelerate, "
                "say), or in place with fpe.expand_."
            )


def check_wide(wide: nn.Module, todo: Plan, done: Plan, fresh: bool) -> None:
    """Check the count of a wide model, that it runs, and the shapes of its outputs.

    A fresh plan has just run a copy of the same width; only if children were dropped is it another one.
    """
    if (count := count_nonzero(wide)) != done.nonzero:
        raise BudgetError(
            f"the expanded model would have {count} non-zero parameters instead of {done.nonzero}; prune "
            f"{done.prune} did not prune exactly as many as were copied."
        )
    tried = fresh and not any(layer.dropped for layer in done.layers)
    if tried or todo.basis is None or todo.basis.shapes is None:
        return
    if problem := shape_problem(wide, todo.basis.batch, todo.basis.shapes):
        raise ModelError(
            f"the expanded {type(wide).__name__} is wrong: {problem}; take the number from the tensors "
            "instead, or leave that layer out of layers=…"
        )
