"""Gradual pruners of networks that are trained together, on stacked tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fpe.rewiring.gradual import Link, Prunable, prune_to, score_of
from fpe.rewiring.pruner import GradualPruner
from fpe.training.ensemble.stack import Stack, cut


def pruning_key(pruner: GradualPruner) -> tuple[Any, ...]:
    """Return a key, equal for pruners that can prune together; budgets and widths may differ."""
    links = tuple((link.producers, link.consumers) for link in pruner.links)
    how = pruner.power, pruner.scope, pruner.least, pruner.then is None
    return (pruner.schedule, pruner.steps, pruner.taken, links, *how)


class StackPruning:
    """The pruners of a stack's networks, which have the same `pruning_key`."""

    summing = unmasks = False
    sums: Sequence[Tensor | None] = ()

    def __init__(
        self, pruners: list[GradualPruner], stack: Stack, moments: tuple[list[Tensor], list[Tensor]]
    ) -> None:
        self.pruners, self.stack, self.moments = pruners, stack, moments
        first = pruners[0]
        self.taken = first.taken
        parameters = list(first.model.parameters())
        places = {id(p): k for k, p in enumerate(parameters)}
        self.places = [places[id(site.layer.weight)] for site in first.sites]
        linked = {i for link in first.links for i in link.producers}
        # The place of the biases that may be masked, by site.
        self.biases = {
            i: places[id(site.layer.bias)]
            for i, site in enumerate(first.sites)
            if i in linked and site.layer.bias is not None
        }
        self.real = {
            k: self._stacked(k, [torch.ones_like(list(p.model.parameters())[k]) for p in pruners]) != 0
            for k in (*self.places, *self.biases.values())
        }
        #: What no pruning reaches: all else that counts.
        self.fixed = [p._count() - sum(own) for p, own in zip(pruners, self._free(), strict=True)]
        self._undo: list[Tensor] | None = None
        self.begin_epoch()

    def _stacked(self, k: int, tensors: Sequence[Tensor]) -> Tensor:
        stacked = torch.zeros_like(self.stack.masks[k])
        for row, tensor in enumerate(tensors):
            cut(stacked[row], tensor).copy_(tensor)
        return stacked

    def _free(self) -> list[list[int]]:
        """Count the free entries that may be pruned, for each network and parameter."""
        places = (*self.places, *self.biases.values())
        return torch.stack([(self.stack.masks[k] != 0).flatten(1).sum(1) for k in places], 1).tolist()

    @property
    def finished(self) -> bool:
        """Whether the budgets are reached."""
        return self.taken >= self.pruners[0].schedule.last(self.pruners[0].steps)

    def after(self) -> None:
        """Count a step, and prune if it is time."""
        self.taken += 1
        first = self.pruners[0]
        if first.schedule.prunes(self.taken, first.steps):
            self._prune(first)

    def _prune(self, first: GradualPruner) -> None:
        layers, moments = [], self.moments[1]
        for i, k in enumerate(self.places):
            # With infinite moments the epoch's loss is infinite, or the next ones', and training ends.
            score = score_of(self.stack.parameters[k], moments[k], first.power).nan_to_num_()
            bias = None if i not in self.biases else self.stack.masks[self.biases[i]] != 0
            own = [t.transpose(1, 2).contiguous() for t in (score, self.stack.masks[k] != 0, self.real[k])]
            layers.append(Prunable(own[0], own[1], bias, own[2]))
        links = [
            Link(
                link.producers,
                link.consumers,
                tuple(
                    torch.arange(layers[j].mask.shape[2], device=layers[j].mask.device)
                    for j in link.consumers
                ),
            )
            for link in first.links
        ]
        counts = [p.count_at(self.taken) - fixed for p, fixed in zip(self.pruners, self.fixed, strict=True)]
        how = first.scopes, first.scope == "neuron", first.least
        if self._undo is None:
            self._undo = [mask.clone() for mask in self.stack.masks]
        for i, (mask, bias) in enumerate(prune_to(layers, links, counts, *how)):
            self._set_mask(self.places[i], mask.transpose(1, 2))
            if bias is not None:
                # Biases of padding are zero, and count as free.
                self._set_mask(self.biases[i], bias)

    def _set_mask(self, k: int, mask: Tensor) -> None:
        self.stack.masks[k].copy_(mask)
        for tensors in (self.stack.parameters, *self.moments):
            tensors[k].mul_(self.stack.masks[k])

    def begin_epoch(self) -> None:
        """Store the state before an epoch, for `undo_epoch`."""
        self._before, self._undo = self.taken, None

    def undo_epoch(self) -> None:
        """Restore the state before the epoch, except for parameters and moments."""
        self.taken = self._before
        for mask, old in zip(self.stack.masks, self._undo or (), strict=False):
            mask.copy_(old)

    def select(self, rows: Sequence[int]) -> None:
        """Continue with these networks only; the stack and the moments have been indexed already."""
        self.pruners = [self.pruners[row] for row in rows]
        self.fixed = [self.fixed[row] for row in rows]
        self.real = {k: real[list(rows)] for k, real in self.real.items()}

    def write_back(self, row: int) -> None:
        """Copy a network's masks into it, and the steps into its pruner."""
        pruner = self.pruners[row]
        for i, site in enumerate(pruner.sites):
            site.layer.fpe_mask.copy_(cut(self.stack.masks[self.places[i]][row], site.layer.weight))
            if i in self.biases:
                site.layer.mask_bias_(cut(self.stack.masks[self.biases[i]][row], site.layer.bias))
        pruner.taken = self.taken
