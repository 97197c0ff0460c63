"""Rewirers of networks that are trained together: drop and grow on stacked tensors.

A policy that sums the gradients of all steps has the program sum them. For a policy that needs the gradients
of few steps, those steps run without masks: Adam's first moment, which was 0 where a weight is masked, then
gives the gradient there, and afterwards masked entries are set to zero again. Other steps cost nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fpe.rewiring.drop_and_grow import LayerBatch, drop_and_grow, totals
from fpe.rewiring.rewirer import Rewirer
from fpe.training.ensemble.stack import Stack, cut
from fpe.training.loop import finite


def rewiring_key(rewirer: Rewirer | None) -> tuple[Any, ...] | None:
    """Return a key, equal for rewirers that can change masks together."""
    if rewirer is None:
        return None
    # Which rows are siblings or a block depends on the dropped children, and on the width only where there
    # are several groups of parents.
    tables = tuple(
        (site.name, p and (p.factor, p.chosen, p.dropped), None if site.blocks is None else site.blocks.shape)
        for site in rewirer.sites
        for p in (site.index_map,)
    )
    scopes = tuple(map(tuple, rewirer.scopes))
    return rewirer.policy, rewirer.schedule, rewirer.steps, rewirer.taken, rewirer.late, tables, scopes


class StackRewiring:
    """The rewirers of a stack's networks, which have the same `rewiring_key`.

    Their counts and generators change at each rewiring, their steps and gathered gradients in `write_back`.
    """

    def __init__(
        self, rewirers: list[Rewirer], stack: Stack, moments: tuple[list[Tensor], list[Tensor]], beta: float
    ) -> None:
        self.rewirers, self.stack, self.moments, self.beta = rewirers, stack, moments, beta
        first = rewirers[0]
        self.policy, self.schedule, self.steps = first.policy, first.schedule, first.steps
        self.taken, self.late, self.scopes = first.taken, first.late, first.scopes
        self.window = self.policy.window(self.schedule.every)
        self.summing = self.policy.keeps == 1 and self.window > 1  # whether the program sums all gradients
        places = {id(p): k for k, p in enumerate(first.model.parameters())}
        self.places = [places[id(site.layer.weight)] for site in first.sites]
        self.real, self.widest = [], []
        self.gathered: list[Tensor | None] = []
        gathered = [rewirer.gathered() for rewirer in rewirers]
        for i, sites in enumerate(zip(*(rewirer.sites for rewirer in rewirers), strict=True)):
            self.real.append(self._stacked(i, [torch.ones_like(site.layer.fpe_mask) for site in sites]))
            # All neurons are expanded in the same way, so the tables of the widest network serve all.
            self.widest.append(max(sites, key=lambda site: len(site.layer.weight)))
            own = [sums.get(sites[0].name) for sums in gathered]
            needed = self.summing or any(g is not None for g in own)
            self.gathered.append(self._stacked(i, own) if needed else None)
        self._before: list[Tensor] = []
        # Masks and counts at the beginning of the epoch, if they have changed in it.
        self._undo: tuple[list[Tensor], list[tuple[Any, ...]]] | None = None
        self.begin_epoch()

    def _stacked(self, i: int, tensors: Sequence[Tensor | None]) -> Tensor:
        """Stack a tensor of each network's layer, (outputs, inputs), in the layout of its weights."""
        stacked = torch.zeros_like(self.stack.masks[self.places[i]])
        for row, tensor in enumerate(tensors):
            if tensor is not None:
                cut(stacked[row], tensor).copy_(tensor)
        return stacked

    @property
    def sums(self) -> list[Tensor | None]:
        """The sums to which the program adds the gradient of each parameter; empty if it sums nothing."""
        if not self.summing:
            return []
        sums: list[Tensor | None] = [None] * len(self.stack.parameters)
        for k, total in zip(self.places, self.gathered, strict=True):
            sums[k] = total
        return sums

    @property
    def _gathers(self) -> bool:
        """Whether the next step's whole gradient is needed."""
        return self.window > 0 and (
            self.late or self.schedule.in_window(self.taken + 1, self.steps, self.window)
        )

    @property
    def unmasks(self) -> bool:
        """Whether the next step runs without masks, for its whole gradient."""
        return self._gathers and not self.summing

    def masks(self) -> list[Tensor]:
        """Return the masks for a step that `unmasks`, padding alone; call `after` when it is taken."""
        self._before = [self.moments[0][k].clone() for k in self.places]
        masks = list(self.stack.masks)
        for k, real in zip(self.places, self.real, strict=True):
            masks[k] = real
        return masks

    def after(self) -> None:
        """Count a step, and change masks if it is time."""
        gathers = self._gathers
        if self.unmasks:
            self._take_gradients()
        self.taken += 1
        if self.late or self.schedule.rewires(self.taken, self.steps):
            self._rewire()
            self.late = False
        elif gathers and self.policy.keeps < 1:
            for gradient in self.gathered:
                assert gradient is not None
                gradient.mul_(self.policy.keeps)

    def _take_gradients(self) -> None:
        """Compute the whole gradient from the first moments, and enforce the masks again."""
        for i, (k, before) in enumerate(zip(self.places, self._before, strict=True)):
            gradient = (self.moments[0][k] - self.beta * before).div_(1 - self.beta)
            total = self.gathered[i]
            self.gathered[i] = gradient if total is None else total.add_(gradient)
            for tensors in (self.stack.parameters, *self.moments):
                tensors[k].mul_(self.stack.masks[k])

    def _rewire(self) -> None:
        # With gradients that are not finite the epoch's loss is infinite, and training ends.
        if all(g is None or finite(g) for g in self.gathered):
            if self._undo is None:
                self._undo = (
                    [self.stack.masks[k].clone() for k in self.places],
                    [(r.rewirings, dict(r.grown), r.generator.get_state()) for r in self.rewirers],
                )
            share = self.schedule.share_at(self.taken, self.steps)
            for scope in self.scopes:
                layers = [self._layer(i) for i in scope]
                for i, own, new in zip(scope, layers, drop_and_grow(self.policy, layers, share), strict=True):
                    self._set_mask(i, own, new)
            for rewirer in self.rewirers:
                rewirer.rewirings += 1
        for i, total in enumerate(self.gathered):
            self.gathered[i] = total.zero_() if self.summing and total is not None else None

    def _set_mask(self, i: int, own: LayerBatch, new: Tensor) -> None:
        k, name = self.places[i], self.widest[i].name
        grown = totals((new.bool() & ~own.mask.bool()).flatten(1))
        for rewirer, count in zip(self.rewirers, grown, strict=True):
            rewirer.grown[name] += count
        unchanged = (new * own.mask).transpose(1, 2)
        for tensors in (self.stack.parameters, *self.moments):
            tensors[k].mul_(unchanged)
        self.stack.masks[k].copy_(new.transpose(1, 2))

    def _layer(self, i: int) -> LayerBatch:
        k, noise, gradient = self.places[i], None, self.gathered[i]
        if self.policy.grow == "random":
            drawn = [torch.rand(r.sites[i].layer.weight.shape, generator=r.generator) for r in self.rewirers]
            noise = self._stacked(i, drawn).transpose(1, 2)
        real = self.real[i].transpose(1, 2) != 0
        return LayerBatch(
            self.stack.parameters[k].transpose(1, 2),
            self.stack.masks[k].transpose(1, 2),
            None if gradient is None else gradient.transpose(1, 2),
            noise,
            None if bool(real.all()) else real,
            self.widest[i].children,
            self.widest[i].blocks,
        )

    def begin_epoch(self) -> None:
        """Store the state before an epoch, for `undo_epoch`."""
        gathered = [None if g is None else g.clone() for g in self.gathered]
        self._stored = self.taken, self.late, gathered
        self._undo = None

    def undo_epoch(self) -> None:
        """Restore the state before the epoch, except for parameters and moments."""
        self.taken, self.late, self.gathered = self._stored
        if self._undo is not None:
            masks, states = self._undo
            for k, mask in zip(self.places, masks, strict=True):
                self.stack.masks[k].copy_(mask)
            for rewirer, (rewirings, grown, generator) in zip(self.rewirers, states, strict=True):
                rewirer.rewirings, rewirer.grown = rewirings, grown
                rewirer.generator.set_state(generator)

    def select(self, rows: Sequence[int]) -> None:
        """Continue with these networks only; the stack and the moments have been indexed already."""
        index = torch.tensor(rows, dtype=torch.long, device=self.real[0].device)
        self.rewirers = [self.rewirers[row] for row in rows]
        self.real = [real[index] for real in self.real]
        self.gathered = [None if g is None else g[index] for g in self.gathered]

    def write_back(self, row: int) -> None:
        """Copy a network's masks into it, and steps and gathered gradients into its rewirer."""
        rewirer, gathered = self.rewirers[row], {}
        for i, site in enumerate(rewirer.sites):
            site.layer.fpe_mask.copy_(cut(self.stack.masks[self.places[i]][row], site.layer.weight))
            total = self.gathered[i]
            if total is not None:
                gathered[site.name] = cut(total[row], site.layer.weight)
        rewirer.resume(self.taken, self.late, gathered)
