"""Gradual pruning: the masks of some layers while their count falls to a budget, as pure functions.

A single model is a batch of one. The weights of the smallest scores are masked first. The score |w| · v^p, v
being the optimizer's running mean of squared gradients, is the magnitude for p = 0 and for p = ½ the square
root of the loss that optimal brain damage expects from a weight's removal, with the empirical Fisher
information as curvature (LeCun et al., 1990; Theis et al., 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fpe.errors import ArgumentError, did_you_mean, raise_problems
from fpe.rewiring.drop_and_grow import at_most, smallest, totals

#: The power p of the second moment in the score |w| · v^p, by name.
SCORES = {"magnitude": 0.0, "moment": 0.25, "fisher": 0.5}
#: How the surplus over the budget falls, from 1 at the schedule's begin to 0 at its end.
SHAPES: dict[str, Callable[[float], float]] = {
    "cubic": lambda way: (1 - way) ** 3,  # Zhu and Gupta, 2017
    "linear": lambda way: 1 - way,
    "once": lambda way: float(way < 1),
}
SCOPES = ("network", "group", "layer", "neuron")


@dataclass(frozen=True)
class PruningSchedule:
    """When weights are pruned, and how many are left then.

    Parameters
    ----------
    begin, end : float, default 0.05 and 0.6
        Shares of all steps at which pruning begins, and at which the budget is reached.
    every : int, default 20
        Steps of the optimizer from one pruning to the next.
    shape : str, default "cubic"
        How the surplus over the budget falls: ``"cubic"`` (Zhu and Gupta, 2017), fast at first,
        ``"linear"``, or ``"once"``, all at the end.
    """

    begin: float = 0.05
    end: float = 0.6
    every: int = 20
    shape: str = "cubic"

    def __post_init__(self) -> None:
        problems = []
        for name in ("begin", "end"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                problems.append(f"{name} is {value!r}; give a share of all steps, from 0 to 1.")
        if not problems and self.begin > self.end:
            problems.append(f"begin is {self.begin} and end is {self.end}; begin must not be larger.")
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            problems.append(f"every is {self.every!r}; give an integer of at least 1, in steps.")
        if self.shape not in SHAPES:
            problems.append(f"shape is {self.shape!r}; give {', '.join(map(repr, SHAPES))}.")
        raise_problems(problems, ArgumentError, "the schedule")

    @staticmethod
    def for_steps(steps: int) -> PruningSchedule:
        """Return the default schedule for a number of steps: pruning after each fiftieth of them."""
        return PruningSchedule(every=max(1, steps // 50))

    def last(self, steps: int) -> int:
        """Return the step, from 1, after which the budget is reached."""
        return max(1, min(steps, round(self.end * steps)))

    def prunes(self, step: int, steps: int) -> bool:
        """Tell whether weights are pruned after step `step` (from 1) of `steps`."""
        last = self.last(steps)
        return step == last or (step % self.every == 0 and self.begin * steps <= step < last)

    def latest(self, step: int, steps: int) -> int:
        """Return the last step up to `step` after which weights are pruned; 0 if there is none."""
        last = self.last(steps)
        found = last if step >= last else step - step % self.every
        return found if found and self.prunes(found, steps) else 0

    def surplus_at(self, step: int, steps: int) -> float:
        """Return the share of the initial surplus over the budget that is left after a step."""
        last = self.last(steps)
        if step >= last:
            return 0.0
        begin = self.begin * steps
        return SHAPES[self.shape](max(0.0, step - begin) / max(1.0, last - begin))

    def count_at(self, step: int, steps: int, start: int, budget: int) -> int:
        """Return the count after a step, from 0 to `steps`, on the way from `start` to `budget`."""
        latest = self.latest(step, steps)
        surplus = self.surplus_at(latest, steps) if latest else 1.0
        return budget + int((start - budget) * surplus)


@dataclass
class Prunable:
    """One layer of M networks of one architecture; tensors are (M, outputs, inputs, *taps).

    `score` is finite, `mask` and `real` are True where a weight is free, and where it is not padding.
    `bias_mask`, (M, outputs), is None for a layer whose biases are never masked.
    """

    score: Tensor
    mask: Tensor
    bias_mask: Tensor | None = None
    real: Tensor | None = None


@dataclass(frozen=True)
class Link:
    """A group of neurons: the numbers of the layers that produce them, and of those that consume them.

    `neurons` has for each consumer the neuron of each of its inputs, −1 for others.
    """

    producers: tuple[int, ...]
    consumers: tuple[int, ...]
    neurons: tuple[Tensor, ...]


def power_of(score: str | float) -> float:
    """Return the power p of a score |w| · v^p, given p or the score's name."""
    if isinstance(score, str) and score in SCORES:
        return SCORES[score]
    if not isinstance(score, bool) and isinstance(score, int | float) and 0 <= score <= 1:
        return float(score)
    hint = did_you_mean(score, SCORES) if isinstance(score, str) else ""
    raise ArgumentError(
        f"score is {score!r}; give {', '.join(map(repr, SCORES))}, or the power p of |w| · v^p, 0 to 1.{hint}"
    )


def score_of(weight: Tensor, second_moment: Tensor | None, power: float) -> Tensor:
    """Return |w| · v^power, as float32 at least."""
    size = weight.detach().abs()
    size = size.float() if size.element_size() < 4 else size
    if second_moment is None or power == 0:
        return size
    # Square roots are several times as fast as powers, and twenty times as fast where there are no zeros.
    second_moment = second_moment.to(size).clamp_min(torch.finfo(size.dtype).tiny)
    factor = second_moment.sqrt() if power in (0.25, 0.5) else second_moment.pow(power)
    return size.mul_(factor.sqrt_() if power == 0.25 else factor)


@torch.no_grad()
def prune_to(
    layers: Sequence[Prunable],
    links: Sequence[Link],
    counts: Sequence[int],
    scopes: Sequence[Sequence[int]],
    by_neuron: bool = False,
    least: int = 0,
) -> list[tuple[Tensor, Tensor | None]]:
    """Return the masks of weights and of biases of all layers after pruning to a count; nothing is changed.

    Parameters
    ----------
    layers : sequence of Prunable
        All prunable layers of the networks.
    links : sequence of Link
        Groups whose neurons vanish when they have no inputs or no consumers left, with all their weights and
        the bias; as many other weights stay instead.
    counts : sequence of int
        For each network, how many of the weights and biases of `layers` are free after pruning. A count that
        is not smaller than what is free changes nothing.
    scopes : sequence of sequence of int
        Numbers of layers that are ranked together; several scopes are pruned to one density.
    by_neuron : bool, default False
        Whether the neurons of a layer keep equally many inputs, up to one.
    least : int, default 0
        Inputs that each neuron keeps at least, where it has so many.
    """
    masks, scores = [layer.mask for layer in layers], [layer.score for layer in layers]
    real = [torch.ones_like(layer.mask) if layer.real is None else layer.real for layer in layers]
    all_biases = [layer.bias_mask for layer in layers]
    sizes = _sizes(masks, all_biases)
    goals = [min(count, size) for count, size in zip(counts, sizes, strict=True)]
    droppable = [_droppable(layer, least) for layer in layers]
    whole = [totals(_flat([real[i] for i in scope])) for scope in scopes]
    free = [totals(_flat([masks[i] for i in scope])) for scope in scopes]
    loose = [totals(_flat([droppable[i] for i in scope])) for scope in scopes]
    held = [[n - own for n, own in zip(*both, strict=True)] for both in zip(free, loose, strict=True)]

    def pruned(surplus: Sequence[int]) -> tuple[list[Tensor], list[Tensor | None], list[Tensor], list[int]]:
        """Prune so many weights, and what is dead then; return what is missing to the goals, too."""
        kept = list(masks)
        left = [sum(own) - n for own, n in zip(zip(*free, strict=True), surplus, strict=True)]
        for scope, own, stay in zip(scopes, free, _shared(left, whole, held, free), strict=True):
            excess = [n - s for n, s in zip(own, stay, strict=True)]
            ranked = _flat([_levels(scores[i], masks[i]).neg() if by_neuron else scores[i] for i in scope])
            among = _flat([droppable[i] for i in scope])
            dropped = _layered(smallest(ranked, among, excess), [masks[i] for i in scope])
            for i, drop in zip(scope, dropped, strict=True):
                kept[i] = masks[i] & ~drop
        alive, biases, dead = _without_dead(kept, all_biases, links)
        return alive, biases, dead, [g - n for g, n in zip(goals, _sizes(alive, biases), strict=True)]

    enough = [size - goal for size, goal in zip(sizes, goals, strict=True)]
    kept, biases, dead, missing = pruned(enough)
    if any(own > 0 for own in missing):  # dead neurons take weights with them: prune as few as are enough
        few = [-1] * len(enough)
        while any(high - low > 1 for low, high in zip(few, enough, strict=True)):
            middle = [
                (low + high) // 2 if high - low > 1 else high for low, high in zip(few, enough, strict=True)
            ]
            over = [own >= 0 for own in pruned(middle)[3]]
            few = [low if o else m for low, m, o in zip(few, middle, over, strict=True)]
            enough = [m if o else high for high, m, o in zip(enough, middle, over, strict=True)]
        kept, biases, dead, missing = pruned(enough)
    # What the last dead neuron had is given to the best weights pruned just now, then to any other; if all
    # others are free, back to it.
    useful = [[p & ~d for p, d in zip(pool, dead, strict=True)] for pool in (masks, real)]
    for pool in (*useful, masks):
        if any(own > 0 for own in missing):
            missing = _grow(kept, scores, pool, missing, scopes, whole, by_neuron)
    if any(own > 0 for own in missing):
        biases = _with_biases(biases, all_biases, missing)
    return list(zip(kept, biases, strict=True))


def _grow(
    kept: list[Tensor],
    scores: Sequence[Tensor],
    pool: Sequence[Tensor],
    missing: Sequence[int],
    scopes: Sequence[Sequence[int]],
    whole: Sequence[Sequence[int]],
    by_neuron: bool,
) -> list[int]:
    """Free the best weights of a pool, by scope and in place; return how many are missing still."""
    offered = [p & ~k for p, k in zip(pool, kept, strict=True)]
    now = [totals(_flat([kept[i] for i in scope])) for scope in scopes]
    more = [totals(_flat([offered[i] for i in scope])) for scope in scopes]
    most = [[n + m for n, m in zip(*both, strict=True)] for both in zip(now, more, strict=True)]
    wanted = [sum(own) + max(0, n) for own, n in zip(zip(*now, strict=True), missing, strict=True)]
    for scope, own, until in zip(scopes, now, _shared(wanted, whole, now, most), strict=True):
        ranked = [
            _levels(scores[i], offered[i], kept[i].flatten(2).sum(2)) if by_neuron else scores[i].neg()
            for i in scope
        ]
        count = [u - n for u, n in zip(until, own, strict=True)]
        among = _flat([offered[i] for i in scope])
        grown = _layered(smallest(_flat(ranked), among, count), [kept[i] for i in scope])
        for i, grow in zip(scope, grown, strict=True):
            kept[i] = kept[i] | grow
    after = totals(_flat(kept))
    before = [sum(own) for own in zip(*now, strict=True)]
    return [n - (a - b) for n, a, b in zip(missing, after, before, strict=True)]


def _with_biases(
    biases: Sequence[Tensor | None], before: Sequence[Tensor | None], missing: Sequence[int]
) -> list[Tensor | None]:
    """Free so many biases again."""
    made, left = list(biases), list(missing)
    for i, (now, then) in enumerate(zip(biases, before, strict=True)):
        if now is not None and then is not None:
            among = then & ~now
            more = at_most([max(0, n) for n in left], among)
            made[i] = now | smallest(torch.zeros(among.shape, device=among.device), among, more)
            left = [n - m for n, m in zip(left, more, strict=True)]
    return made


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """Put the entries of all layers side by side: (M, entries)."""
    return torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)


def _layered(entries: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = torch.split(entries, [tensor[0].numel() for tensor in like], dim=1)
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def _sizes(masks: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[int]:
    """Count what is free in each network."""
    return totals(_flat([*masks, *(bias for bias in biases if bias is not None)]))


def _shared(
    counts: Sequence[int],
    sizes: Sequence[Sequence[int]],
    least: Sequence[Sequence[int]],
    most: Sequence[Sequence[int]],
) -> list[list[int]]:
    """Share a number of free weights out to scopes of some sizes, at one density, between two bounds.

    All but `counts`, a number for each network, are by scope and network, and so is the result.
    """
    if len(sizes) == 1:
        return [[min(h, max(b, n)) for n, b, h in zip(counts, least[0], most[0], strict=True)]]
    found = []
    for m, total in enumerate(counts):
        own, low, high = ([each[m] for each in part] for part in (sizes, least, most))

        def at(
            density: float, own: list[int] = own, low: list[int] = low, high: list[int] = high
        ) -> list[int]:
            return [min(h, max(b, int(density * n))) for n, b, h in zip(own, low, high, strict=True)]

        few, many = 0.0, 1.0
        for _ in range(60):
            middle = (few + many) / 2
            few, many = (few, middle) if sum(at(middle)) > total else (middle, many)
        shares = at(few)
        for i in sorted(range(len(own)), key=lambda i: int(few * own[i]) - few * own[i]):
            shares[i] += min(high[i] - shares[i], max(0, total - sum(shares)), 1)
        for i in range(len(own)):  # where rounding has left more than one for each
            shares[i] += min(high[i] - shares[i], max(0, total - sum(shares)))
        found.append(shares)
    return [list(each) for each in zip(*found, strict=True)]


def _droppable(layer: Prunable, least: int) -> Tensor:
    """Mark the free weights of a layer but the `least` best of each neuron."""
    if least == 0:
        return layer.mask
    scores = torch.where(layer.mask, layer.score, -1).flatten(2)
    best = scores.topk(min(least, scores.shape[2]), dim=2).indices
    return layer.mask & torch.ones_like(scores, dtype=torch.bool).scatter_(2, best, False).view_as(layer.mask)


def _levels(score: Tensor, among: Tensor, start: Tensor | None = None) -> Tensor:
    """Number each neuron's weights, the best one of `among` first, so that small numbers are kept.

    Numbers begin at `start`, (M, neurons). Among equal ones the better weight is first.
    """
    scores = torch.where(among, score, -1).flatten(2)
    rank = scores.argsort(dim=2, descending=True, stable=True).argsort(dim=2)
    if start is not None:
        rank = rank + start[..., None]
    overall = scores.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank.double() * overall.shape[1] + overall.view_as(rank)).view_as(score)


def _without_dead(
    masks: list[Tensor], biases: list[Tensor | None], links: Sequence[Link]
) -> tuple[list[Tensor], list[Tensor | None], list[Tensor]]:
    """Mask what neurons without inputs or without consumers have; also mark all entries that touch them."""
    masks, biases = list(masks), list(biases)
    touching = [torch.zeros_like(mask) for mask in masks]
    changed = True
    while changed:  # a neuron may be the last input, or the last consumer, of another
        before = _sizes(masks, biases)
        for link in links:
            fed = torch.stack([masks[i].flatten(2).any(dim=2) for i in link.producers]).any(dim=0)
            used = torch.zeros_like(fed)
            for j, neuron in zip(link.consumers, link.neurons, strict=True):
                by_input = masks[j].transpose(1, 2).flatten(2).any(dim=2)
                own = neuron >= 0
                used |= (
                    torch.zeros_like(fed, dtype=torch.int32)
                    .index_add_(1, neuron[own], by_input[:, own].to(torch.int32))
                    .bool()
                )
            dead = ~(fed & used)
            for i in link.producers:
                touching[i] |= dead.view(*dead.shape, *[1] * (masks[i].dim() - 2))
                masks[i] = masks[i] & ~touching[i]
                bias = biases[i]
                biases[i] = None if bias is None else bias & ~dead
            for j, neuron in zip(link.consumers, link.neurons, strict=True):
                columns = torch.where(neuron >= 0, dead[:, neuron.clamp_min(0)], False)
                touching[j] |= columns.view(len(dead), 1, -1, *[1] * (masks[j].dim() - 3))
                masks[j] = masks[j] & ~touching[j]
        changed = _sizes(masks, biases) != before
    return masks, biases, touching
