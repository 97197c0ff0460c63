"""Expand a model, in a copy or in place: every group of the plan, in order, by the four steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fpe._util.modules import hook_problems, uncompiled
from fpe.errors import ArgumentError, BudgetError, ModelError, raise_problems
from fpe.expansion import planner, whole
from fpe.expansion.index_maps import Origins, memo_with
from fpe.expansion.plan import LayerPlan, Plan, layer_problems, parameters_per_neuron
from fpe.expansion.pruning import Pruning
from fpe.expansion.selection import Layers
from fpe.expansion.splits import Split
from fpe.expansion.steps import Weights, duplicate, mask, partition, prune_, widen
from fpe.expansion.widths import shape_problem
from fpe.graph import NeuronGroup
from fpe.graph.copies import deep_copy
from fpe.graph.groups import layout_neurons
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
    todo = planned(model, plan, how)
    _check_copyable(model)
    done, replaced = Expansion(model, todo).run()
    wide: nn.Module = deep_copy(model, memo_with(model, replaced))
    wide.fpe_plan = done  # type: ignore[assignment]
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
        return planner.plan(model, **how)
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
        self.pruning = self.basis.pruning
        self.origins = Origins(model)
        self.weights: dict[str, Weights] = {}
        self.between: dict[str, nn.Module] = {}
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
        modules |= self.between
        self.origins.attach_maps_(modules, done)
        return replace(self.todo, layers=done, basis=None), modules

    def expand(self, layer: LayerPlan, rng: np.random.Generator) -> LayerPlan:
        """Widen one group, and prune it if each group has a budget; return what was done."""
        group, factor, split = layer.group, layer.factor, self.basis.split
        names = (*group.producers, *group.consumers)
        old = [self.weights.get(n) or Weights.of(self.model.get_submodule(n)) for n in names]
        producers = [part for w in old[: len(group.producers)] for part in w.divided(group.parts)]
        consumers = old[len(group.producers) :]
        if split.needs_inputs:
            split = split.on(self._of_inputs(group.name, self.basis.inputs[group.name]))
        measured = (self._of_inputs(n, self.basis.scores[n]) for n in group.producers if self.basis.scores)
        scores = [part for own in measured for part in own.chunk(group.parts)]
        per_neuron = parameters_per_neuron(self.model, group)
        notes: list[str] = []

        with _notes(notes):
            weight = _joint([w.weight for w in producers], layer.shares)
            children = partition(weight, factor, split, rng)
        if self.pruning.drops_children:
            layer = self._drop(layer, producers, consumers, children, per_neuron)
        index_map, sources = layer.index_map, self.origins.add(layer)
        wide = [duplicate(w, [], children, factor, index_map=index_map)[0] for w in producers[1:]]
        first, *wide_consumers = duplicate(producers[0], consumers, children, factor, sources, index_map)
        wide = [first, *wide]
        self.between |= {n: widen(self.model.get_submodule(n), index_map) for n in group.between}
        before, after = (sum(count_free(w.mask) for w in each) for each in (old, [*wide, *wide_consumers]))
        copies = after - before + (layer.neurons_after - layer.neurons) * per_neuron
        if self.todo.budget == "group":
            with _notes(notes):
                wide = self._pruned(layer, wide, wide_consumers, copies, scores)
        self.copies += copies
        whole = [Weights.joined(wide[i : i + group.parts]) for i in range(0, len(wide), group.parts)]
        self.weights |= dict(zip(names, (*whole, *wide_consumers), strict=True))
        for note in notes:
            warnings.warn(f"layer {group.name!r}: {note}.", stacklevel=6)
        return replace(layer, notes=tuple(notes))

    def _of_inputs(self, name: str, measured: Tensor) -> Tensor:
        """Repeat what was measured of inputs, (…, inputs, …), for those copied by earlier groups."""
        columns = self.origins.columns.get(name)
        return measured if columns is None else measured.index_select(1, columns.to(measured.device))

    def _drop(
        self,
        layer: LayerPlan,
        producers: list[Weights],
        consumers: list[Weights],
        children: Tensor,
        per_neuron: int,
    ) -> LayerPlan:
        """Let the pruning choose the children that are not created; return the plan with them."""
        neurons, factor, group = layer.neurons, layer.factor, layer.group
        layouts = [self.origins.layout(layer, name) for name in group.consumers]
        neuron_of = [layout_neurons(layout, neurons).to(children.device) for layout in layouts]

        def count(measure: Callable[[Weights], Tensor]) -> tuple[Tensor, Tensor]:
            """Sum a measure over the incoming weights of each child, and the outgoing ones of each neuron."""
            own = _joint([measure(w) for w in producers], layer.shares)
            sums = own if own.dim() == 2 else own.sum(2)
            per_child = sums.new_zeros(neurons, factor).scatter_add_(1, children.long(), sums)
            outgoing = sums.new_zeros(len(consumers), neurons)
            for total, neuron, w in zip(outgoing, neuron_of, consumers, strict=True):
                each = measure(w).transpose(0, 1).flatten(1).sum(1)
                total.index_add_(0, neuron[neuron >= 0], each[neuron >= 0])
            return per_child, outgoing.sum(0)

        squares, outgoing_squares = count(lambda w: w.weight.float().square())
        entries, outgoing_entries = count(lambda w: w.mask.float())
        copied = outgoing_entries + per_neuron
        dropped = self.pruning.dropped_children(
            (squares + outgoing_squares.unsqueeze(1)).flatten(),
            (entries + copied.unsqueeze(1)).long().flatten(),
            layer.index_map.blocks.to(children.device),
            (factor - 1) * int(copied.long().sum()),
        )
        after = neurons * factor - len(dropped)
        return replace(layer, inputs=children.shape[1], neurons_after=after, dropped=tuple(dropped.tolist()))

    def _pruned(
        self,
        layer: LayerPlan,
        wide: list[Weights],
        consumers: list[Weights],
        count: int,
        scores: list[Tensor],
    ) -> list[Weights]:
        """Prune a group, several producers as one layer, one below the other; return the producers."""
        shape = wide[0].weight.shape
        depth = shape[2:].numel() if layer.shares != "taps" else 1
        flat = (-1, shape[1:].numel() // depth, *([depth] if depth > 1 else []))
        pair = [w.weight for w in wide], [w.mask for w in wide]
        weight, free = (torch.cat(own) if len(own) > 1 else own[0] for own in pair)
        joint = Weights(weight.view(flat), None, free.view(flat))
        blocks = layer.index_map.blocks.repeat(len(wide)) if self.pruning.needs_shared else None
        given = {"blocks": blocks, "scores": torch.cat(scores) if scores else None}
        prune_([joint, *consumers], count, self.pruning, layer.factor, **given)
        if len(wide) == 1:
            return wide
        parts = zip(torch.split(weight, shape[0]), torch.split(free, shape[0]), wide, strict=True)
        return [Weights(w.clone(), old.bias, m.clone()) for w, m, old in parts]


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


def _joint(tensors: list[Tensor], shares: str) -> Tensor:
    """Return (neurons, inputs), or (neurons, inputs, depth) where several entries stay together."""
    neurons, inputs = tensors[0].shape[:2]
    shape = (neurons, -1, 1) if shares == "taps" else (neurons, inputs, -1)
    parts = [t.reshape(shape) for t in tensors]
    joint = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
    return joint.squeeze(2) if joint.shape[2] == 1 else joint


def _check_copyable(model: nn.Module) -> None:
    """Refuse a forward of one module's own, which a copy would share, and hooks that it would lose."""
    raise_problems(hook_problems(model.named_parameters()), ModelError, "what a copy of the model would lose")
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
