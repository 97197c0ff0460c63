"""Make a plan: what `expand` will do, known and checked before any weight is changed.

Inputs of layers, and the shapes of outputs, are measured on copies of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fpe._util.modules import uncompiled
from fpe.errors import ArgumentError, BudgetError, ModelError, raise_problems
from fpe.expansion.at_once import verified_at_once
from fpe.expansion.plan import Basis, Plan, layer_plans, modules_of, weights_of
from fpe.expansion.pruning import Pruning
from fpe.expansion.selection import Layers, Selection, checked_arguments
from fpe.expansion.splits import Split
from fpe.expansion.widths import part_problems, width_problems
from fpe.graph import NeuronGroup
from fpe.graph.copies import analyzed
from fpe.graph.inputs import as_call, copied_call, inputs_for
from fpe.graph.layers import channel_axis, groups_of, oriented, oriented_weight, producer_sets, size_of
from fpe.graph.probe import Probe
from fpe.graph.stacked import stacked_layers
from fpe.graph.verification import Part, unverified
from fpe.masked import check_masks, count_nonzero
from fpe.metrics import crowding, participation_ratio

#: Samples of a layer's inputs that a split looks at; more are thinned out evenly.
MOST_SAMPLES = 4096


def plan(
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
) -> Plan:
    """Find what `fpe.expand` with the same arguments would do, and check that it can be done.

    The plan can be printed; ``fpe.expand(model, plan=plan)`` applies it.

    Parameters
    ----------
    model : nn.Module
        Any module; it is not changed. Of a compiled one the model in it is taken. Without `example_inputs`,
        the linear layers of a module that can be traced symbolically are found; for a model of transformers a
        batch is made up from its configuration.
    factor : int, default 2
        Children of each neuron, α in the paper: 1 to the number of inputs of each layer.
    split : str or Split, default "random"
        Which child gets which input: ``"random"``, ``"shared"``, ``"shared-8"`` (one partition for each of 8
        groups of neurons; see `fpe.SharedSplit`), ``"gram"``, ``"2:4"`` or an object such as
        ``fpe.LabelSplit(labels)``. ``fpe.CorrelationSplit()`` needs `example_inputs`.
    prune : str or Pruning, default "magnitude"
        Which weights are pruned: ``"magnitude"`` (the paper's), ``"balanced"`` (the same, but the consumers
        keep at most half of the free weights; for networks that are expanded before they are trained),
        ``"columns"`` (whole inputs, for a shared split; see `fpe.InputPruning`, which may rank by activations
        or gradients) or ``"children"`` (whole children; see `fpe.ChildPruning`).
    layers : str, NeuronGroup, sequence of them, or mapping of them to int, optional
        Names or patterns (``"encoder.*.fc1"``) of the layers to expand; a mapping gives each its own factor,
        the last that matches. By default every second hidden layer from the first (A.7), which for a
        transformer is every MLP; never a head, an embedding or a projection of attention. A `NeuronGroup`
        gives a layer with its consumers by hand, for a model that cannot be traced; it needs
        `example_inputs`, and replaces what a name or a pattern finds for its layer.
    example_inputs : Tensor, tuple or dict, optional
        One small batch: the model's input, its positional arguments, or its keyword arguments. With it
        convolutions and gated pairs are found too, and each group is verified numerically.
    seed : int, default 0
        Seed of the partitions.
    budget : str, default "group"
        Whether each ``"group"`` is pruned to its own count, or the ``"network"`` to one.
    convolutions : str, default "channels"
        What a convolution's children split: its input ``"channels"``, all taps of one staying together, or
        its single ``"taps"``. A layer with fewer channels than children splits taps.
    target_fraction : float, default 1.0
        Share of each layer's neurons to expand, the most polysemantic first; the others keep one child.
    target : str, default "participation"
        The most polysemantic neurons have the highest ``"participation"`` ratio of incoming weights, or
        inputs of the least feature ``"capacity"`` on `example_inputs`.

    Raises
    ------
    ArgumentError
        For an argument that no model could satisfy.
    ModelError
        If nothing, or not a named layer, can be expanded, a ranking by gradient finds none, or a masked
        weight of a model that was expanded before is not zero (see `fpe.project_`).
    BudgetError
        If too few weights can be pruned.

    Examples
    --------
    >>> import torch, fpe
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> print(fpe.plan(model, factor=2))
    Expansion by 2: split RandomSplit(), prune MagnitudePruning(), seed 0
    layer  consumers  between    splits  neurons  after  non-zeros  copies
    -----  ---------  -------  --------  -------  -----  ---------  ------
    0      2          -        8 inputs        4      8         46      12
    between: modules that widen with a layer; copies: weights that children copy, as many as are pruned
    left unchanged:
      2: it is a head: its neurons are outputs of the network
    weights of linear layers and convolutions in expanded layers: 40 of 40 (100%)
    non-zero parameters of the network, before and after: 46
    """
    given = dict(locals())
    with stacked_layers(uncompiled(model)):
        return _plan(**given)


def _plan(
    model: nn.Module,
    factor: int,
    split: str | Split,
    prune: str | Pruning,
    layers: str | NeuronGroup | Layers | None,
    example_inputs: Any,
    seed: int,
    budget: str,
    convolutions: str,
    target_fraction: float,
    target: str,
) -> Plan:
    own_split, pruning = checked_arguments(dict(locals()))
    model = uncompiled(model)
    check_masks(model, "expanding")
    batch = inputs_for(model) if example_inputs is None else example_inputs
    selection = Selection(model, layers, factor, example_inputs)
    verified: set[NeuronGroup] = set()
    parts: dict[str, Part] = {}
    shapes: list[torch.Size] | None = None
    probe: Probe | None = None
    while True:
        chosen = selection.chosen
        producers = [name for group, _ in chosen for name in group.producers]
        measured = Measurements(model, producers, batch, samples=own_split.needs_inputs)
        wanted = [
            most_polysemantic(model, g, target_fraction, target, measured) if target_fraction < 1 else None
            for g, _ in chosen
        ]
        planned, reasons = layer_plans(model, chosen, wanted, convolutions, own_split, pruning, budget)
        if reasons and (layers is not None or len(reasons) == len(chosen)):  # not to be left out
            problems = [f"layer {name!r}: {reason}." for name, reason in reasons.items()]
            raise_problems(problems, BudgetError, "the budget")
        if batch is not None and not reasons:  # only what has been verified is worth widening
            if not verified and (found := verified_at_once(model, planned, batch, selection.exported)):
                shapes = found
                break
            if new := [group for group, _ in chosen if group not in verified]:
                reasons, shapes, faithful = unverified(model, new, batch, parts)
                probe = faithful or probe
                verified.update(new)
            reasons = reasons or width_problems(model, planned, batch, shapes or [], probe)
            reasons = reasons or part_problems(model, planned, parts)
        if not reasons:
            break
        selection.drop(reasons)
    groups = [group for group, _ in chosen]
    scores = measured.scores(groups, pruning) if pruning.needs_scores else {}
    inputs = measured.inputs(groups) if own_split.needs_inputs else {}
    basis = Basis(own_split, pruning, batch, scores, inputs, shapes, modules_of(model))
    how = (repr(own_split), repr(pruning), budget, seed)
    nonzero, weights = count_nonzero(model), weights_of(model, planned)
    return Plan(
        tuple(planned), selection.skipped, factor, *how, nonzero=nonzero, weights=weights, basis=basis
    )


@dataclass
class Measurements:
    """The inputs of some layers on a batch, measured in one forward pass of a copy when first asked for."""

    model: nn.Module
    names: Sequence[str]
    batch: Any
    samples: bool  # whether inputs are kept, too

    @cached_property
    def _seen(self) -> dict[str, list[tuple[Tensor, Tensor | None]]]:
        seen: dict[str, list[tuple[Tensor, Tensor | None]]] = {name: [] for name in self.names}

        def watch(name: str, layer: nn.Module) -> None:
            def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
                if not (args or kwargs):  # stacked experts, which are not called with inputs
                    return
                x = (*args, *kwargs.values())[0].detach()
                x = x.movedim(channel_axis(layer, x.dim()), -1).flatten(0, -2)
                x = x.unflatten(1, (groups_of(layer), -1))  # (places, groups, inputs of each)
                scale = x.double().square().mean(0).sqrt()
                seen[name].append((scale, _thinned(x.flatten(0, 1)) if self.samples else None))

            layer.register_forward_pre_hook(hook, with_kwargs=True)

        args, kwargs = copied_call(as_call(self.batch))
        with analyzed(self.model) as own, torch.no_grad():
            for name in seen:
                watch(name, own.get_submodule(name))
            own(*args, **kwargs)
        return seen

    def _of(self, name: str) -> list[tuple[Tensor, Tensor | None]]:
        if not self._seen[name]:
            raise ModelError(
                f"layer {name!r} is not called as a module on example_inputs, so that its inputs cannot be "
                "measured; leave it out of layers=…, or choose a split, a pruning or a target without data."
            )
        return self._seen[name]

    def scale(self, name: str) -> Tensor:
        """Return the root mean square of each input, or channel, of each neuron, (neurons, inputs).

        It is in float64. Neurons of a convolution in groups have different inputs.
        """
        scale = torch.stack([scale for scale, _ in self._of(name)]).mean(0)
        neurons = size_of(self.model, name)[0]
        return scale.unsqueeze(1).expand(-1, neurons // len(scale), -1).flatten(0, 1)

    def inputs(self, groups: Iterable[NeuronGroup]) -> dict[str, Tensor]:
        """Return the inputs, or channels, of producers at no more than 4096 places, (samples, inputs)."""
        names = [own[0] for group in groups for own in producer_sets(self.model, group)]
        parts = {name: [x for _, x in self._of(name) if x is not None] for name in names}
        inputs = {name: _thinned(torch.cat(own)) for name, own in parts.items()}
        _check_finite(inputs, [], "inputs on example_inputs", "; repair them first.")
        return inputs

    def scores(self, groups: Iterable[NeuronGroup], pruning: Pruning) -> dict[str, Tensor]:
        """Return the factors of each producer's weights in a ranking, (neurons, inputs, *taps)."""
        scores, problems = {}, []
        for name in [name for group in groups for name in group.producers]:
            layer = self.model.get_submodule(name)
            shape = oriented_weight(layer).shape
            if pruning.needs_scores == "inputs":
                scores[name] = self.scale(name).view(*shape[:2], *[1] * len(shape[2:])).expand(shape)
            elif (gradient := layer.get_parameter("weight").grad) is not None:
                gradient = gradient.detach().to_dense()
                scores[name] = oriented(layer, gradient)
            else:
                problems.append(
                    f"layer {name!r} has no gradient, which prune={pruning!r} ranks by; call loss.backward() "
                    "on a batch first, and expand before the gradients are cleared."
                )
        what = "inputs on example_inputs" if pruning.needs_scores == "inputs" else "gradients"
        _check_finite(scores, problems, what, ", which cannot be ranked; repair them first.")
        return scores


def _thinned(x: Tensor) -> Tensor:
    return x[:: max(1, -(-len(x) // MOST_SAMPLES))].clone()


def _check_finite(values: dict[str, Tensor], problems: list[str], what: str, remedy: str) -> None:
    infinite = [name for name, value in values.items() if not bool(value.isfinite().all())]
    problems = problems + [f"layer {n!r} has {what} that are NaN or infinite{remedy}" for n in infinite]
    raise_problems(problems, ModelError, "what is measured of layers")


def most_polysemantic(
    model: nn.Module, group: NeuronGroup, fraction: float, target: str, measured: Measurements
) -> tuple[int, ...] | None:
    """Choose the neurons of a group that are expanded, at least one, by a target; None for all."""
    producers = [model.get_submodule(name) for name in group.producers]
    each = [*map(group.parts_of, group.producers)]
    weights = (oriented_weight(p).detach().flatten(1).chunk(n) for p, n in zip(producers, each, strict=True))
    weight = torch.cat([part for parts in weights for part in parts], dim=1)
    count = max(1, round(fraction * len(weight)))
    if count == len(weight):
        return None
    if target == "participation":
        score = participation_ratio(weight)
    elif measured.batch is None:
        raise ArgumentError(
            "target='capacity' measures the features of the data; give example_inputs=…, a batch of them."
        )
    else:
        scales: list[Tensor] = []
        for name, producer, parts in zip(group.producers, producers, each, strict=True):
            scale, taps = measured.scale(name), oriented_weight(producer)[0, 0].numel()
            scales += scale.repeat_interleave(taps, 1).chunk(parts)
        score = crowding(weight * torch.cat(scales, 1).to(weight))
    return tuple(sorted(score.argsort(descending=True, stable=True)[:count].tolist()))
