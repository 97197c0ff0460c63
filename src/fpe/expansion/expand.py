"""Expand a model: every group of the plan, in order, by the four steps of the procedure."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fpe._util.modules import hook_problems, uncompiled
from fpe.errors import BudgetError, ModelError, raise_problems
from fpe.expansion import steps as procedure
from fpe.expansion.choice import Layers
from fpe.expansion.foreseen import parameters_per_neuron
from fpe.expansion.lineage import Lineage, blocks_of, family_of
from fpe.expansion.plan import LayerPlan, Plan
from fpe.expansion.planner import plan
from fpe.expansion.pruning import Pruning, as_pruning
from fpe.expansion.ranking import layer_inputs, scales_of
from fpe.expansion.splits import Split, as_split
from fpe.expansion.steps import Weights
from fpe.expansion.widths import shapes_of
from fpe.graph import NeuronGroup
from fpe.graph.copies import deep_copy
from fpe.graph.groups import Layout, layout_neurons
from fpe.graph.inputs import inputs_for
from fpe.masked import count_free, count_nonzero


def expand(
    model: nn.Module,
    factor: int = 2,
    split: str | Split = "random",
    prune: str | Pruning = "magnitude",
    layers: str | NeuronGroup | Layers | None = None,
    example_inputs: Any = None,
    seed: int = 0,
    budget: str = "group",
    convolutions: str = "channels",
    target_fraction: float = 1.0,
    target: str = "participation",
) -> nn.Module:
    """Return a wider model with the same number of non-zero parameters; `model` is not changed.

    Each neuron becomes `factor` children that share its inputs out without overlap; its outgoing
    weights are copied to each child, and as many of the smallest weights are held at zero as were
    copied (section 2.3). The new model's weights are its own; train it on in any loop, with a new
    optimizer.

    Parameters
    ----------
    model, factor, split, prune, layers, example_inputs, seed
        As for `fpe.plan`.
    budget, convolutions, target_fraction, target
        As for `fpe.plan`.

    Returns
    -------
    nn.Module
        A copy of `model` of the same class, on the same device, in which the layers concerned are
        `MaskedLinear` or masked convolutions, and the norms between them wider. ``fpe_plan`` holds its
        `Plan`. Of a compiled model it is a copy of the model in it, to be compiled again.

    Raises
    ------
    ArgumentError, ModelError, BudgetError
        As for `fpe.plan`, before anything is copied. ModelError also if the wide model does not run
        on `example_inputs`, because the forward pass has a width written down.

    Examples
    --------
    >>> import torch, fpe
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> wide = fpe.expand(model, factor=2, seed=1)
    >>> wide[0].fpe_mask.sum().item() + wide[2].fpe_mask.sum().item() + 8 + 2
    46.0
    """
    model = uncompiled(model)
    how = (layers, example_inputs, seed, budget, convolutions, target_fraction, target)
    todo = plan(model, factor, split, prune, *how)
    _check_copyable(model)
    todo, replaced = wide_modules(model, todo, as_split(split), as_pruning(prune), example_inputs)
    shapes = answer_shapes(model, example_inputs)
    wide = _copy_with(model, replaced)
    wide.fpe_plan = todo  # type: ignore[assignment]
    check_wide(wide, todo, shapes, example_inputs)
    return wide


def wide_modules(
    model: nn.Module, todo: Plan, split: Split, method: Pruning, example_inputs: Any = None
) -> tuple[Plan, dict[str, nn.Module]]:
    """Return the modules that a plan puts in the place of the model's; `model` is only read.

    Parameters
    ----------
    model : nn.Module
        The model that was planned for.
    todo : Plan
        What `fpe.plan` returned.
    split, method : Split, Prune
        What the plan was made with.
    example_inputs : Tensor, tuple or dict, optional
        The batch, for a method that ranks by activation or a split that looks at it.

    Returns
    -------
    plan : Plan
        What has been done: the given plan, with the children that have left.
    modules : dict of str to nn.Module
        By name.

    Raises
    ------
    BudgetError
        If the copies turn out not to be payable.
    """
    groups = [layer.group for layer in todo.layers]
    scales = scales_of(model, groups, method, example_inputs)
    reads = {}
    if split.needs_inputs:
        reads = layer_inputs(model, [group.name for group in groups], example_inputs)
    with torch.no_grad():
        return _Expansion(model, todo, split, method, scales, reads).run()


class _Expansion:
    """The layers of a model while they are widened, group by group; the model itself is only read."""

    def __init__(
        self,
        model: nn.Module,
        todo: Plan,
        split: Split,
        method: Pruning,
        scales: dict[str, Tensor],
        reads: dict[str, Tensor],
    ) -> None:
        self.model, self.todo, self.split, self.method = model, todo, split, method
        self.scales, self.reads = scales, reads
        self.lineage = Lineage(model)
        self.weights: dict[str, Weights] = {}
        self.between: dict[str, nn.Module] = {}
        self.copies = 0

    def run(self) -> tuple[Plan, dict[str, nn.Module]]:
        """Expand all groups; return what was done, and the new modules by name."""
        rng = np.random.default_rng(self.todo.seed)
        done = tuple(self.expand(layer, rng) for layer in self.todo.layers)
        if self.todo.budget == "network":
            paying = list(self.weights.values())
            procedure.prune(paying, self.copies, self.method, self.todo.factor)
        layers = {n: procedure.mask(self.model.get_submodule(n), w) for n, w in self.weights.items()}
        return replace(self.todo, layers=done), {**layers, **self.between}

    def expand(self, layer: LayerPlan, rng: np.random.Generator) -> LayerPlan:
        """Widen one group, and let it pay if groups pay for themselves; return what was done."""
        group, factor = layer.group, layer.factor
        producers = [self.current(name) for name in group.producers]
        consumers = [self.current(name) for name in group.consumers]
        columns = self.lineage.layouts(layer)

        split = self.split_of(layer)
        notes: list[str] = []
        with _notes(notes):
            children = procedure.partition(
                _shared_out([w.weight for w in producers], layer.shares), factor, split, rng
            )
        if self.method.drops_children:
            layer = self.leave(layer, producers, consumers, columns, children)
        family = family_of(layer)
        first, *readers = procedure.duplicate(producers[0], consumers, children, factor, columns, family)
        wide = [first]
        for producer in producers[1:]:
            wide += procedure.duplicate(producer, [], children, factor, family=family)
        for name in group.between:
            module = self.model.get_submodule(name)
            self.between[name] = procedure.widen(module, layer.neurons, factor, family)
        copies = self._count_copies(layer, [*producers, *consumers], [*wide, *readers])
        if self.todo.budget == "group":
            with _notes(notes):
                wide = _prune(wide, readers, copies, self.method, layer, self.scale(layer))
        self.copies += copies
        names = (*group.producers, *group.consumers)
        self.weights |= dict(zip(names, (*wide, *readers), strict=True))
        self.lineage.grow(layer)
        for note in notes:
            warnings.warn(f"layer {group.name!r}: {note}.", stacklevel=6)
        return replace(layer, notes=tuple(notes))

    def leave(
        self,
        layer: LayerPlan,
        producers: list[Weights],
        consumers: list[Weights],
        columns: Sequence[Layout],
        children: Tensor,
    ) -> LayerPlan:
        """Choose the children that are not born, because whole ones pay; return the plan with them."""
        neurons, factor = layer.neurons, layer.factor

        def count(measure: Callable[[Weights], Tensor]) -> tuple[Tensor, Tensor]:
            own = _per_child(_shared_out([measure(w) for w in producers], layer.shares), children, factor)
            read = [
                _per_neuron(measure(w), runs, neurons) for w, runs in zip(consumers, columns, strict=True)
            ]
            return own, torch.stack(read).sum(0)

        own_squares, read_squares = count(lambda w: w.weight.float().square())
        own_entries, read_entries = count(lambda w: w.mask.float())
        copied = read_entries + parameters_per_neuron(self.model, layer.group)
        left = self.method.dropped_children(
            (own_squares + read_squares.unsqueeze(1)).flatten(),
            (own_entries + copied.unsqueeze(1)).long().flatten(),
            blocks_of(layer).to(children.device),
            (factor - 1) * int(copied.long().sum()),
        )
        after = neurons * factor - len(left)
        return replace(layer, inputs=children.shape[1], neurons_after=after, left=tuple(left.tolist()))

    def current(self, name: str) -> Weights:
        """Return what a layer holds after the groups done so far."""
        return self.weights.get(name) or Weights.of(self.model.get_submodule(name))

    def split_of(self, layer: LayerPlan) -> Split:
        """Return the split of a group; one that looks at data gets what the group reads.

        An input that an earlier group has copied is as in the dense model, once for each copy.
        """
        if not self.split.needs_inputs:
            return self.split
        inputs = self.reads[layer.group.name]
        columns = self.lineage.columns.get(layer.group.name)
        return self.split.on(inputs if columns is None else inputs[:, columns.to(inputs.device)])

    def scale(self, layer: LayerPlan) -> Tensor | None:
        """Return what the weights of a group's producers are ranked with, one below the other, if anything.

        An input that an earlier group has copied counts as it does in the dense model.
        """
        if not self.scales:
            return None
        scales = []
        for name in layer.group.producers:
            scale = self.scales[name]
            columns = self.lineage.columns.get(name)
            scales.append(scale if columns is None else scale.index_select(1, columns.to(scale.device)))
        return scales[0] if len(scales) == 1 else torch.cat(scales)

    def _count_copies(self, layer: LayerPlan, old: list[Weights], new: list[Weights]) -> int:
        """Count the free entries that have come to be: they are what must be paid for."""
        weights = sum(count_free(w.mask) for w in new) - sum(count_free(w.mask) for w in old)
        won = layer.neurons_after - layer.neurons
        return weights + won * parameters_per_neuron(self.model, layer.group)


def _prune(
    wide: list[Weights],
    readers: list[Weights],
    copies: int,
    method: Pruning,
    layer: LayerPlan,
    scale: Tensor | None,
) -> list[Weights]:
    """Prune a group, the producers of a gated pair as one layer, one below the other; return the producers."""
    shape = wide[0].weight.shape
    depth = shape[2:].numel() if layer.shares != "taps" else 1
    flat = (-1, shape[1:].numel() // depth, *([depth] if depth > 1 else []))
    joint = wide[0] if len(wide) == 1 else _stacked(wide)
    paying = Weights(joint.weight.view(flat), None, joint.mask.view(flat))
    blocks = blocks_of(layer).repeat(len(wide)) if method.needs_shared else None
    procedure.prune([paying, *readers], copies, method, layer.factor, scale, blocks)
    if len(wide) == 1:
        return wide
    weights, masks = (torch.split(t, shape[0]) for t in (joint.weight, joint.mask))
    parts = zip(weights, masks, wide, strict=True)
    return [Weights(w.clone(), old.bias, m.clone()) for w, m, old in parts]


@contextmanager
def _notes(notes: list[str]) -> Iterator[None]:
    """Turn the warnings of splits and prunings, on what they do otherwise than asked, into notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    notes += [str(one.message) for one in caught if one.category is UserWarning]
    for one in caught:
        if one.category is not UserWarning:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def _shared_out(tensors: list[Tensor], shares: str) -> Tensor:
    """Return what a group's neurons read as (neurons, inputs), or with what stays together behind."""
    neurons, inputs = tensors[0].shape[:2]
    if shares == "taps":
        parts = [t.reshape(neurons, -1, 1) for t in tensors]
    else:
        parts = [t.reshape(neurons, inputs, -1) for t in tensors]
    joint = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return joint.squeeze(2) if joint.shape[2] == 1 else joint


def _per_child(values: Tensor, children: Tensor, factor: int) -> Tensor:
    """Sum what `_shared_out` returned over the inputs of each child: (neurons, factor)."""
    sums = values if values.dim() == 2 else values.sum(2)
    return sums.new_zeros(len(sums), factor).scatter_add_(1, children.long(), sums)


def _per_neuron(values: Tensor, runs: Layout, neurons: int) -> Tensor:
    """Sum a reader's tensor over all that reads each neuron: (neurons,)."""
    neuron = layout_neurons(runs, neurons).to(values.device)
    sums = values.transpose(0, 1).flatten(1).sum(1)
    return sums.new_zeros(neurons).index_add_(0, neuron[neuron >= 0], sums[neuron >= 0])


def _stacked(layers: list[Weights]) -> Weights:
    return Weights(torch.cat([w.weight for w in layers]), None, torch.cat([w.mask for w in layers]))


def _check_copyable(model: nn.Module) -> None:
    """Refuse a forward pass put on one module, which a copy would share, and hooks that it would lose."""
    raise_problems(hook_problems(model.named_parameters()), ModelError, "what a copy of the model would lose")
    for name, module in model.named_modules():
        own = vars(module).get("forward")
        if own is not None and getattr(own, "__self__", None) is not module:
            raise ModelError(
                f"{name or type(model).__name__!r} has a forward of its own, put on this one module, which a "
                "copy would share with the original; expand the model before it is wrapped (by accelerate, "
                "say), or in place with fpe.expand_."
            )


def _copy_with(model: nn.Module, replaced: dict[str, nn.Module]) -> nn.Module:
    """Copy a model with other layers in the place of some, whose weights are not copied first."""
    memo: dict[int, Any] = {id(model.get_submodule(name)): new for name, new in replaced.items()}
    return deep_copy(model, memo)


def answer_shapes(model: nn.Module, example_inputs: Any) -> list[torch.Size] | None:
    """Run a copy of a model once in evaluation mode; return the shapes of its answer, None without inputs."""
    batch = inputs_for(model) if example_inputs is None else example_inputs
    return None if batch is None else shapes_of(model, batch)


def check_wide(wide: nn.Module, todo: Plan, shapes: list[torch.Size] | None, example_inputs: Any) -> None:
    """Check that a wide model has the planned count, runs, and answers in the dense one's shapes.

    Raises
    ------
    BudgetError
        If the copies were not paid for exactly.
    ModelError
        If it fails or answers in other shapes.
    """
    if count_nonzero(wide) != todo.nonzero:
        raise BudgetError(
            f"the expanded model would have {count_nonzero(wide)} non-zero parameters instead of "
            f"{todo.nonzero}; prune {todo.prune} did not pay exactly for the copies."
        )
    try:
        answers = answer_shapes(wide, example_inputs)
    except Exception as error:  # the user's own code may fail in any way
        raise ModelError(
            f"the expanded {type(wide).__name__} does not run ({type(error).__name__}: {error}). Its "
            "forward pass has the number of neurons written down, in a view or a constant; take it from "
            "the tensors instead, or leave that layer out of layers=…"
        ) from error
    if answers != shapes:
        raise ModelError(
            f"the expanded {type(wide).__name__} answers in shapes {[tuple(s) for s in answers or []]}, not "
            f"in {[tuple(s) for s in shapes or []]}: its forward pass depends on the number of neurons."
        )
