"""What is measured on copies of a model before it is expanded: inputs of layers, shapes of outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from fpe._util.modules import replace_modules_
from fpe.errors import ArgumentError, ModelError, raise_problems
from fpe.expansion import steps
from fpe.expansion.index_maps import Origins
from fpe.expansion.plan import LayerPlan
from fpe.expansion.pruning import Pruning
from fpe.graph import NeuronGroup
from fpe.graph.copies import analyzed, first_line
from fpe.graph.inputs import as_call, copied_call, tensors_in
from fpe.graph.layers import bias_of, channel_axis, is_transposed, oriented_weight
from fpe.metrics import crowding, participation_ratio

#: Samples of a layer's inputs that a split looks at; more are thinned out evenly.
MOST_SAMPLES = 4096


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
                x = (*args, *kwargs.values())[0].detach()
                x = x.movedim(channel_axis(layer, x.dim()), -1).flatten(0, -2)
                scale = x.double().square().mean(0).sqrt()
                seen[name].append((scale, _thinned(x) if self.samples else None))

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
        """Return the root mean square of each input, or channel, of a layer, (inputs,), as float64."""
        return torch.stack([scale for scale, _ in self._of(name)]).mean(0)

    def inputs(self, groups: Iterable[NeuronGroup]) -> dict[str, Tensor]:
        """Return the inputs, or channels, of the groups at no more than 4096 places, (samples, inputs)."""
        parts = {g.name: [x for _, x in self._of(g.name) if x is not None] for g in groups}
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
                scores[name] = self.scale(name).view(1, -1, *[1] * len(shape[2:])).expand(shape)
            elif (gradient := layer.get_parameter("weight").grad) is not None:
                gradient = gradient.detach().to_dense()
                scores[name] = gradient.t() if is_transposed(layer) else gradient
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
    weight = torch.cat([oriented_weight(p).detach().flatten(1) for p in producers], dim=1)
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
        scale = measured.scale(group.name)
        taps = weight.shape[1] // (len(producers) * len(scale))
        score = crowding(weight * scale.repeat_interleave(taps).repeat(len(producers)).to(weight))
    return tuple(sorted(score.argsort(descending=True, stable=True)[:count].tolist()))


def shapes_of(
    model: nn.Module, batch: Any, training: bool = False, instead: dict[str, nn.Module] | None = None
) -> list[torch.Size]:
    """Run a copy of a model, with other modules in the places of some; return the shapes of its outputs."""
    args, kwargs = copied_call(as_call(batch))
    with analyzed(model) as own, torch.no_grad():
        replace_modules_(own, instead or {})
        return [t.shape for t in tensors_in(own.train(training)(*args, **kwargs))]


def shape_problem(
    model: nn.Module,
    batch: Any,
    expected: list[torch.Size],
    training: bool = False,
    instead: dict[str, nn.Module] | None = None,
) -> str | None:
    """Say that a wide model, in a copy, does not run, or has outputs of other shapes; None if all is well."""
    try:
        found = shapes_of(model, batch, training, instead)
    except Exception as error:  # the user's own code may fail in any way
        mode = " in training mode" if training else ""
        return (
            "the forward pass has the number of neurons written down, in a view or a constant: with more of "
            f"them it does not run{mode} ({first_line(error)})"
        )
    if found == expected or training:  # in training mode shapes may be drawn at random
        return None
    wide, dense = ([tuple(shape) for shape in each] for each in (found, expected))
    return f"with more of its neurons the model's outputs have shapes {wide}, not {dense}"


def width_problems(
    model: nn.Module, layers: Sequence[LayerPlan], batch: Any, expected: list[torch.Size]
) -> dict[str, str]:
    """Return, by name, why groups cannot be wider: a copy does not run, or has outputs of other shapes.

    All groups are widened at once; only if that copy fails are there more, by halves. A model of PyTorch's
    own modules computes the same shapes in both modes, any other is run in both.
    """
    plain = all(type(module).__module__.split(".")[0] in ("torch", "fpe") for module in model.modules())

    @cache
    def trains() -> bool:
        with suppress(Exception):  # the user's own code may fail in any way
            shapes_of(model, batch, training=True)
            return True
        return False

    def problem(layers: Sequence[LayerPlan]) -> str | None:
        reason = shape_problem(model, batch, expected, instead=_widened(model, layers))
        if reason is None and not plain:
            reason = shape_problem(model, batch, expected, training=True, instead=_widened(model, layers))
            if reason and not trains():  # what cannot be trained at all is judged in evaluation mode
                return None
        return reason

    def search(layers: Sequence[LayerPlan]) -> dict[str, str]:
        reason = problem(layers)
        if reason is None:
            return {}
        half = len(layers) // 2
        found = search(layers[:half]) | search(layers[half:]) if half else {}
        return found or {layer.group.name: reason for layer in layers[half:]}

    return search(layers) if layers else {}


def _widened(model: nn.Module, layers: Sequence[LayerPlan]) -> dict[str, nn.Module]:
    """Return the modules of a wider model in which nothing is masked."""
    origins = Origins(model, layers)
    between = {name: layer.index_map for layer in layers for name in layer.group.between}
    wide = {name: steps.widen(model.get_submodule(name), own) for name, own in between.items()}
    for name in {**origins.rows, **origins.columns}.keys() - between.keys():
        module = model.get_submodule(name)
        old, bias = cast(Tensor, module.weight), bias_of(module)
        weight = origins.lift(name, "weight", old.detach())
        bias = None if bias is None else origins.lift(name, "bias", bias.detach())
        wide[name] = steps.mask(module, steps.Weights(weight, bias, torch.ones_like(weight)))
    return wide
