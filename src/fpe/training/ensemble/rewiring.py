"""Rewirers of networks that are trained together: the choices of `fpe.rewiring`, on stacked tensors.

Where the gradients of all steps are wanted, the program adds them up. Where those of few are, they come out
of the ordinary program, at no cost in other steps: it is given masks that hold nothing, and Adam's first
moment, which was 0 where a weight is held, then tells the gradient there. What should have stayed zero is set
to zero again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fpe.rewiring.moves import Tensors, new_masks
from fpe.rewiring.rewirer import Rewirer
from fpe.rewiring.select import totals
from fpe.training.ensemble.stack import Stack, cut
from fpe.training.loop import finite


def rewiring_key(rewirer: Rewirer | None) -> tuple[Any, ...] | None:
    """Return what rewirers must have in common to move together."""
    if rewirer is None:
        return None
    # Which rows are a family or a block depends on who has left, and on the width only where there are
    # several groups of parents.
    families = tuple(
        (site.name, site.factor, site.chosen, site.left, None if site.blocks is None else site.blocks.shape)
        for site in rewirer.sites
    )
    scopes = tuple(map(tuple, rewirer.scopes))
    return (rewirer.policy, rewirer.schedule, rewirer.steps, rewirer.taken, rewirer._late, families, scopes)


def rewirer_problem(
    rewirer: Rewirer | None, network: nn.Module, optimizer: torch.optim.Optimizer
) -> str | None:
    """Say why a rewirer cannot go with a network and its optimizer, or return None."""
    if rewirer is None:
        return None
    if not isinstance(rewirer, Rewirer):
        return f"its rewirer is a {type(rewirer).__name__}; give an fpe.Rewirer or None."
    if rewirer.model is not network or [id(o) for o in rewirer.optimizers] != [id(optimizer)]:
        return "its rewirer is not for it and its optimizer; give fpe.Rewirer(network, optimizer, …)."
    return None


class StackRewiring:
    """The rewirers of a batch's networks, which have the same `rewiring_key`.

    Parameters
    ----------
    rewirers : list of Rewirer
        One for each network of the stack.
    stack : Stack
        Its parameters and masks change where they move.
    moments : tuple of list of Tensor
        Adam's, which change too.
    beta : float
        Adam's β1.
    """

    def __init__(
        self, rewirers: list[Rewirer], stack: Stack, moments: tuple[list[Tensor], list[Tensor]], beta: float
    ) -> None:
        self.rewirers, self.stack, self.moments, self.beta = rewirers, stack, moments, beta
        first = rewirers[0]
        places = {id(p): k for k, p in enumerate(first.model.parameters())}
        self.places = [places[id(site.layer.weight)] for site in first.sites]
        self.real = [self._real(i) for i in range(len(self.places))]
        #: The same as booleans; None where nothing is padding.
        self.marked = [None if bool((real != 0).all()) else real != 0 for real in self.real]
        # With all neurons expanded alike, the table of the widest network serves all.
        widest = [
            max((r.sites[i] for r in rewirers), key=lambda site: len(site.layer.weight))
            for i in range(len(self.places))
        ]
        self.children = [site.children for site in widest]
        self.blocks = [site.blocks for site in widest]
        #: Whether the program adds up the gradients of all steps.
        self.summing = first.policy.keeps == 1 and first.policy.window(first.schedule.every) > 1
        self.gathered = [self._gathered(i) for i in range(len(self.places))]
        self._before: list[Tensor] = []
        #: Masks and rewirers as they were at the beginning of the epoch, if some have moved in it.
        self._moved_from: tuple[list[Tensor], list[tuple[Any, ...]]] | None = None
        self.begin_epoch()

    def _real(self, i: int) -> Tensor:
        """Mark what of a layer's stacked weight is no padding."""
        real = torch.zeros_like(self.stack.masks[self.places[i]])
        for row, rewirer in enumerate(self.rewirers):
            cut(real[row], rewirer.sites[i].layer.fpe_mask).fill_(1)
        return real

    def _gathered(self, i: int) -> Tensor | None:
        """Stack what the networks have gathered of gradients before they came here."""
        place = self.stack.masks[self.places[i]]
        found = [rewirer._gathered(i) for rewirer in self.rewirers]
        if all(g is None for g in found) and not self.summing:
            return None
        stacked = torch.zeros_like(place)
        for row, gradient in enumerate(found):
            if gradient is not None:
                cut(stacked[row], gradient).copy_(gradient)
        return stacked

    @property
    def sums(self) -> list[Tensor | None]:
        """What the program adds the gradient of each parameter to; empty if it adds nothing up."""
        if not self.summing:
            return []
        sums: list[Tensor | None] = [None] * len(self.stack.parameters)
        for k, total in zip(self.places, self.gathered, strict=True):
            sums[k] = total
        return sums

    @property
    def looks(self) -> bool:
        """Whether the whole gradient of the next step is needed."""
        return bool(self.rewirers[0]._gathering)

    @property
    def opens(self) -> bool:
        """Whether the next step must be given the masks that hold nothing."""
        return self.looks and not self.summing

    def masks(self) -> list[Tensor]:
        """Return the masks that a step which `opens` is to obey; call `after` when it is taken."""
        self._before = [self.moments[0][k].clone() for k in self.places]
        open_ = dict(zip(self.places, self.real, strict=True))
        return [open_.get(k, mask) for k, mask in enumerate(self.stack.masks)]

    def after(self) -> None:
        """Note that a step was taken, and let masks move if it is time."""
        first = self.rewirers[0]
        if self.opens:
            self._gather()
        first.taken += 1
        if first._late or first.schedule.rewires(first.taken, first.steps):
            self._rewire()
        elif self.looks and first.policy.keeps < 1:
            for gradient in self.gathered:
                assert gradient is not None
                gradient.mul_(first.policy.keeps)
        first._watch()

    def _catch_up(self) -> None:
        """Let all rewirers know what the first, which counts for them, knows."""
        first = self.rewirers[0]
        for rewirer in self.rewirers[1:]:
            rewirer.taken = first.taken
            rewirer._watch()

    def _gather(self) -> None:
        """Take the whole gradient out of the first moments, and hold again what is held."""
        for i, (k, before) in enumerate(zip(self.places, self._before, strict=True)):
            gradient = (self.moments[0][k] - self.beta * before).div_(1 - self.beta)
            sum_ = self.gathered[i]
            self.gathered[i] = gradient if sum_ is None else sum_.add_(gradient)
            self._hold(k)
        self._before = []

    def _hold(self, k: int) -> None:
        """Set to zero what the masks hold."""
        for tensors in (self.stack.parameters, *self.moments):
            tensors[k].mul_(self.stack.masks[k])

    def _rewire(self) -> None:
        first = self.rewirers[0]
        if not all(g is None or finite(g) for g in self.gathered):
            # The epoch's loss is infinite, and training ends; masks stay as they are.
            self._forget()
            return
        if self._moved_from is None:
            self._moved_from = (
                [self.stack.masks[k].clone() for k in self.places],
                [(r.rewirings, dict(r.moved), r.generator.get_state()) for r in self.rewirers],
            )
        share = first.schedule.share_at(first.taken, first.steps)
        for scope in first.scopes:
            tensors = [self._tensors(i) for i in scope]
            for i, own, new in zip(scope, tensors, new_masks(first.policy, tensors, share), strict=True):
                k = self.places[i]
                moved = totals(own.flat(new.bool() & ~own.mask.bool()))
                for rewirer, count in zip(self.rewirers, moved, strict=True):
                    rewirer.count(i, count)
                stays = (new * own.mask).transpose(1, 2)
                for tensors_ in (self.stack.parameters, *self.moments):
                    tensors_[k].mul_(stays)
                self.stack.masks[k].copy_(new.transpose(1, 2))
        self._forget()
        for rewirer in self.rewirers:
            rewirer.rewirings += 1

    def _forget(self) -> None:
        """Begin to gather from nothing."""
        for i, total in enumerate(self.gathered):
            if self.summing and total is not None:
                total.zero_()
            else:
                self.gathered[i] = None

    def _tensors(self, i: int) -> Tensors:
        """Return a layer as the choices want it: (networks, outputs, inputs)."""
        k = self.places[i]
        noise = None
        if self.rewirers[0].policy.grow == "random":
            noise = torch.zeros_like(self.stack.masks[k])
            for row, rewirer in enumerate(self.rewirers):
                own = rewirer.noise(i).to(noise)
                cut(noise[row], own).copy_(own)
        weight, mask, gradient, noise, real = (
            None if t is None else t.transpose(1, 2)
            for t in (
                self.stack.parameters[k],
                self.stack.masks[k],
                self.gathered[i],
                noise,
                self.marked[i],
            )
        )
        assert weight is not None
        assert mask is not None
        return Tensors(
            weight, mask, gradient, noise, real, self.children[i], self.blocks[i], inputs_first=True
        )

    def begin_epoch(self) -> None:
        """Remember where an epoch begins, for `undo_epoch`."""
        gathered = [None if g is None else g.clone() for g in self.gathered]
        self._start = self.rewirers[0].taken if self.rewirers else 0, gathered
        self._moved_from = None

    def undo_epoch(self) -> None:
        """Go back to where the epoch began; parameters and moments are the batch's own business."""
        self.rewirers[0].taken, self.gathered = self._start
        if self._moved_from is not None:
            masks, states = self._moved_from
            for k, mask in zip(self.places, masks, strict=True):
                self.stack.masks[k].copy_(mask)
            for rewirer, (rewirings, moved, generator) in zip(self.rewirers, states, strict=True):
                rewirer.rewirings, rewirer.moved = rewirings, moved
                rewirer.generator.set_state(generator)
        self.rewirers[0]._watch()
        self._catch_up()

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these networks only; the stack and the moments have been cut already."""
        self._catch_up()
        index = torch.tensor(rows, dtype=torch.long, device=self.real[0].device)
        self.rewirers = [self.rewirers[row] for row in rows]
        self.real = [real[index] for real in self.real]
        self.marked = [None if marked is None else marked[index] for marked in self.marked]
        self.gathered = [None if g is None else g[index] for g in self.gathered]

    def write_back(self, row: int) -> None:
        """Give a network its masks, and its rewirer what it has gathered."""
        rewirer = self.rewirers[row]
        rewirer.taken = self.rewirers[0].taken
        rewirer._watch()
        for i, site in enumerate(rewirer.sites):
            site.layer.fpe_mask.copy_(cut(self.stack.masks[self.places[i]][row], site.layer.weight))
            probe, gradient = site.layer._probe, self.gathered[i]
            if probe is not None and gradient is not None:
                probe.grad = cut(gradient[row], site.layer.weight).contiguous()
        rewirer._seen = []
