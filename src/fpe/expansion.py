"""Expand a model: every group of the plan, in order, by the four steps of the procedure."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fpe import procedure
from fpe.budget import Prune, as_prune, count_free, count_nonzero
from fpe.choice import Layers
from fpe.errors import BudgetError, ModelError
from fpe.graph import Group
from fpe.graph.groups import Runs, columns_of_runs, default_runs, neuron_of_columns, runs_of_columns
from fpe.graph.inputs import as_call, inputs_for, tensors_in
from fpe.graph.layers import neuron_tensors
from fpe.graph.proof import evaluating
from fpe.partition import Split, as_split
from fpe.planning import plan
from fpe.plans import LayerPlan, Plan
from fpe.procedure import Weights


def expand(
    model: nn.Module,
    factor: int = 2,
    split: str | Split = "random",
    prune: str | Prune = "magnitude",
    layers: str | Group | Layers | None = None,
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
        `Plan`.

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
    >>> wide[0].weight_mask.sum().item() + wide[2].weight_mask.sum().item() + 8 + 2
    46.0
    """
    how = (layers, example_inputs, seed, budget, convolutions, target_fraction, target)
    todo = plan(model, factor, split, prune, *how)
    with torch.no_grad():
        replaced = _Expansion(model, todo, as_split(split), as_prune(prune)).modules()
    wide = _copy_with(model, replaced)
    wide.fpe_plan = todo  # type: ignore[assignment]
    if count_nonzero(wide) != todo.nonzero:
        raise BudgetError(
            f"the expanded model would have {count_nonzero(wide)} non-zero parameters instead of "
            f"{todo.nonzero}; prune {todo.prune} did not pay exactly for the copies."
        )
    batch = inputs_for(model) if example_inputs is None else example_inputs
    if batch is not None:
        _check_runs(model, wide, batch)
    return wide


class _Expansion:
    """The layers of a model while they are widened, group by group; the model itself is only read."""

    def __init__(self, model: nn.Module, todo: Plan, split: Split, method: Prune) -> None:
        self.model, self.todo, self.split, self.method = model, todo, split, method
        self.weights: dict[str, Weights] = {}
        self.between: dict[str, nn.Module] = {}
        self.origin: dict[str, Tensor] = {}  # the dense model's input that each input of a layer comes from
        self.copies = 0

    def modules(self) -> dict[str, nn.Module]:
        """Return the new modules by name."""
        rng = np.random.default_rng(self.todo.seed)
        for layer in self.todo.layers:
            self.expand(layer, rng)
        if self.todo.budget == "network":
            names = list(self.weights)
            procedure.prune([self.weights[n] for n in names], self.copies, self.method, self.todo.factor)
        layers = {n: procedure.mask(self.model.get_submodule(n), w) for n, w in self.weights.items()}
        return {**layers, **self.between}

    def expand(self, layer: LayerPlan, rng: np.random.Generator) -> None:
        """Widen one group, and let it pay if groups pay for themselves."""
        group, factor = layer.group, children_of(layer)
        producers = [self.current(name) for name in group.producers]
        consumers = [self.current(name) for name in group.consumers]
        columns = [self.columns(layer, i) for i in range(len(group.consumers))]

        shared_out = _shared_out(producers, layer.shares)
        children = procedure.partition(shared_out, layer.factor, self.split, rng)
        wide = procedure.duplicate(producers[0], consumers, children, factor, columns)
        readers = wide[1:]
        wide = [wide[0], *(procedure.duplicate(p, [], children, factor)[0] for p in producers[1:])]
        for name in group.between:
            module = self.model.get_submodule(name)
            self.between[name] = procedure.widen(module, layer.neurons, factor)
        copies = self._count_copies(layer, [*producers, *consumers], [*wide, *readers])
        self.copies += copies
        if self.todo.budget == "group":
            wide = self._pay(wide, readers, copies, layer)
        names = (*group.producers, *group.consumers)
        self.weights |= dict(zip(names, (*wide, *readers), strict=True))
        parent = procedure.family(layer.neurons, factor)
        for name, runs in zip(group.consumers, columns, strict=True):
            self.origin[name] = self.origin_of(name)[columns_of_runs(runs, parent, layer.neurons)]

    def current(self, name: str) -> Weights:
        """Return what a layer holds after the groups done so far."""
        return self.weights.get(name) or Weights.of(self.model.get_submodule(name))

    def origin_of(self, name: str) -> Tensor:
        """Return the dense model's input that each present input of a layer comes from."""
        if name not in self.origin:
            return torch.arange(Weights.of(self.model.get_submodule(name)).weight.shape[1])
        return self.origin[name]

    def columns(self, layer: LayerPlan, position: int) -> Runs:
        """Return a consumer's present layout: other groups may have widened it already."""
        name = layer.group.consumers[position]
        inputs = Weights.of(self.model.get_submodule(name)).weight.shape[1]
        given = layer.group.columns
        runs = given[position] if given else default_runs(layer.neurons, inputs)
        if name not in self.origin:
            return runs
        neuron = neuron_of_columns(runs, layer.neurons)[self.origin[name]]
        return runs_of_columns(neuron, layer.neurons)

    def _count_copies(self, layer: LayerPlan, old: list[Weights], new: list[Weights]) -> int:
        """Count the free entries that have come to be: they are what must be paid for."""
        copies = sum(count_free(w.mask) for w in new) - sum(count_free(w.mask) for w in old)
        copies += sum(len(w.bias) for w in new if w.bias is not None)
        copies -= sum(len(w.bias) for w in old if w.bias is not None)
        for name in layer.group.between:
            dense, wide = self.model.get_submodule(name), self.between[name]
            own = [n for n in neuron_tensors(dense, layer.neurons) if n in dense._parameters]
            copies += sum(wide.get_parameter(n).numel() - dense.get_parameter(n).numel() for n in own)
        return copies

    def _pay(
        self, wide: list[Weights], readers: list[Weights], copies: int, layer: LayerPlan
    ) -> list[Weights]:
        """Prune a group; the producers of a gated pair pay as one layer, one below the other."""
        shape = wide[0].weight.shape
        depth = shape[2:].numel() if layer.shares != "taps" else 1
        flat = (-1, shape[1:].numel() // depth, *([depth] if depth > 1 else []))
        joint = wide[0] if len(wide) == 1 else _stacked(wide)
        paying = Weights(joint.weight.view(flat), None, joint.mask.view(flat))
        procedure.prune([paying, *readers], copies, self.method, layer.factor)
        if len(wide) == 1:
            return wide
        parts = zip(torch.split(joint.weight, shape[0]), torch.split(joint.mask, shape[0]), wide, strict=True)
        return [Weights(weight.clone(), old.bias, mask.clone()) for weight, mask, old in parts]


def children_of(layer: LayerPlan) -> int | Tensor:
    """Return how many children every neuron of a layer gets, or each one."""
    if layer.chosen is None:
        return layer.factor
    counts = torch.ones(layer.neurons, dtype=torch.long)
    counts[list(layer.chosen)] = layer.factor
    return counts


def _shared_out(producers: list[Weights], shares: str) -> Tensor:
    """Return what a group's neurons read as (neurons, inputs), or with what stays together behind."""
    neurons, inputs = producers[0].weight.shape[:2]
    if shares == "taps":
        parts = [p.weight.reshape(neurons, -1, 1) for p in producers]
    else:
        parts = [p.weight.reshape(neurons, inputs, -1) for p in producers]
    joint = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return joint.squeeze(2) if joint.shape[2] == 1 else joint


def _stacked(layers: list[Weights]) -> Weights:
    return Weights(torch.cat([w.weight for w in layers]), None, torch.cat([w.mask for w in layers]))


def _copy_with(model: nn.Module, replaced: dict[str, nn.Module]) -> nn.Module:
    """Copy a model with other layers in the place of some, whose weights are not copied first."""
    memo: dict[int, Any] = {id(model.get_submodule(name)): new for name, new in replaced.items()}
    return copy.deepcopy(model, memo)


def _check_runs(model: nn.Module, wide: nn.Module, batch: Any) -> None:
    """Run dense and wide model once, and refuse a wide one that fails or answers in another shape."""
    args, kwargs = as_call(batch)
    shapes = []
    for network in (model, wide):
        with evaluating(network), torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                shapes.append([t.shape for t in tensors_in(network(*args, **kwargs))])
            except Exception as error:
                if network is model:
                    raise
                raise ModelError(
                    f"the expanded {type(model).__name__} does not run ({type(error).__name__}: {error}). "
                    "Its forward pass has the number of neurons written down, in a view or a constant; take "
                    "it from the tensors instead, or leave that layer out of layers=…"
                ) from error
    if shapes[0] != shapes[1]:
        raise ModelError(
            f"the expanded {type(model).__name__} answers in shapes {[tuple(s) for s in shapes[1]]} instead "
            f"of {[tuple(s) for s in shapes[0]]}: its forward pass depends on the number of neurons."
        )
