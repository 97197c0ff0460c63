"""Wide modules with which a model computes the same: with copies of neurons, or with others that cancel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fpe.expansion import steps
from fpe.expansion.index_maps import Origins
from fpe.expansion.plan import LayerPlan
from fpe.graph import NeuronGroup
from fpe.graph.layers import oriented_weight
from fpe.graph.permuting import Shared, fresh_rows, one_cycle


@dataclass(frozen=True)
class Arrangement:
    """The neurons of a wide group.

    Parameters
    ----------
    parent : Tensor
        Of each wide neuron the old one that it copies.
    divisor : Tensor
        Of each wide neuron, by what its weights in the consumers are divided.
    fresh : Tensor
        The places of wide neurons that have other incoming weights than their parents.
    like : Tensor
        Of each wide neuron, the place of the one whose incoming weights it has: its own, or one in `fresh`.
    """

    parent: Tensor
    divisor: Tensor
    fresh: Tensor
    like: Tensor

    @staticmethod
    def copies(layer: LayerPlan) -> Arrangement:
        """Return whole copies of all neurons in the order of a plan; consumers divide by their number."""
        parent = layer.index_map.parent
        number = parent.bincount(minlength=layer.neurons)[parent]
        return Arrangement(parent, number, parent[:0], torch.arange(len(parent)))

    @staticmethod
    def beside_others(layer: LayerPlan, seed: int) -> Arrangement:
        """Return one copy of each neuron among others, of which two at a time cancel in the consumers.

        No copy stands where a plan has the children of its neuron. Each other neuron matters alone: if it
        were treated otherwise than the one that it cancels, the output would move.
        """
        neurons, factor, generator = layer.neurons, layer.factor, torch.Generator().manual_seed(seed)
        blocks = one_cycle(torch.randperm(neurons, generator=generator))
        own = blocks * factor + torch.randint(factor, (neurons,), generator=generator)
        parent, like = torch.empty(neurons * factor, dtype=torch.long), torch.arange(neurons * factor)
        parent[own] = torch.arange(neurons)
        places = torch.ones(len(parent), dtype=torch.bool).index_fill(0, own, False).nonzero().flatten()
        places = places[torch.randperm(len(places), generator=generator)]
        pair = (torch.arange(len(places)) // 2).clamp(max=len(places) // 2 - 1)
        parent[places], like[places] = pair % neurons, places[2 * pair]
        divisor = torch.ones(len(parent))
        divisor[places[1::2]] = -1
        if len(places) % 2:  # the last three cancel
            divisor[places[-2:]] = torch.tensor([1, -0.5])
        return Arrangement(parent, divisor, places[: len(places) // 2 * 2 : 2], like)

    def refresh_(self, weights: Tensor, parts: int) -> None:
        """Change the incoming weights of neurons that have others than their parents, part by part."""
        if len(self.fresh):
            starts = len(self.parent) * torch.arange(parts).unsqueeze(1)
            fresh, like = ((starts + own).flatten() for own in (self.fresh, self.like))
            weights[fresh] = fresh_rows(weights[fresh], weights[fresh])
            second = (like != torch.arange(len(like))).nonzero().flatten()
            weights[second] = weights[like[second]]


def widened(
    model: nn.Module, layers: Sequence[LayerPlan], arranged: Mapping[str, Arrangement] | None = None
) -> dict[str, nn.Module]:
    """Return the modules of a wider model that computes the same; nothing is masked.

    By default neurons are copied; else each group is as `arranged`, by its name.
    """
    arranged = arranged or {layer.group.name: Arrangement.copies(layer) for layer in layers}
    origins = Origins(model, layers, parents={name: own.parent for name, own in arranged.items()})
    producing = {name: layer.group for layer in layers for name in layer.group.producers}
    consumed: dict[str, list[NeuronGroup]] = {}
    for layer in layers:
        for name in layer.group.consumers:
            consumed.setdefault(name, []).append(layer.group)
    shared = Shared()
    wide = {
        name: steps.widen(model.get_submodule(name), origins.rows[name], entries)
        for name, entries in origins.widths.items()
    }
    for name in {**origins.rows, **origins.columns}.keys() - origins.widths.keys():
        module, group = model.get_submodule(name), producing.get(name)
        bias = cast("Tensor | None", getattr(module, "bias", None))
        divisor = torch.ones(())  # of each input
        for own in consumed.get(name, ()):
            neuron = origins.neurons[own.name, name]
            divisor = divisor * torch.where(neuron < 0, 1, arranged[own.name].divisor[neuron])

        def lifted(
            old: Tensor,
            parameter: str = "weight",
            name: str = name,
            group: NeuronGroup | None = group,
            divisor: Tensor = divisor,
        ) -> Tensor:
            new = origins.lift(name, parameter, old)
            if group is not None:
                arranged[group.name].refresh_(new, group.parts_of(name))
            if parameter == "weight" and divisor.dim():
                new = new / divisor.to(new).view(-1, *[1] * (new.dim() - 2))
            return new

        how = [own[name] for own in (origins.rows, origins.columns) if name in own]
        how += [divisor] if group is None else [divisor, arranged[group.name].like]
        stored = oriented_weight(module).stride(), getattr(module, "interleaved", 1)
        key = (name in origins.rows, stored, *(tensor.numpy().tobytes() for tensor in how))
        weight = shared.of(cast(Tensor, module.weight).detach(), key, lifted)
        bias = None if bias is None else lifted(bias.detach(), "bias")
        free = weight.new_ones(()).expand_as(weight)  # takes no memory
        wide[name] = steps.mask(module, steps.Weights(weight, bias, free))
    return wide
