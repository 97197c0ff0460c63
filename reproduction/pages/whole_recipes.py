"""What the parts of a recipe add: whole GPT-2s wider, pruned to the count of a small one, in other ways.

And a trained GPT-2: trained on as it is, or wider and pruned back to its own count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from whole_text import (
    STEPS,
    WIDTH,
    adamw,
    data_of,
    gpt,
    mean_loss,
    measured,
    sizes,
    train,
    width_of,
)

import fpe
from fpe.compare.runner import one_thread
from fpe.masked import MaskedLinear

#: The arguments of the pruner in recipes that differ from the default in nothing else.
PRUNERS: dict[str, dict[str, Any]] = {
    "magnitude": {"score": "magnitude"},
    "fisher": {"score": "fisher"},
    "each matrix": {"score": "magnitude", "scope": "layer"},
    "fan-in": {"scope": "neuron"},
    "least 4": {"least": 4},
    "linear": {"schedule": fpe.PruningSchedule(begin=0.0, end=0.5, every=STEPS // 50, shape="linear")},
    "early": {"schedule": fpe.PruningSchedule(begin=0.05, end=0.3, every=STEPS // 50)},
    "late": {"schedule": fpe.PruningSchedule(begin=0.05, end=0.85, every=STEPS // 50)},
}
RECIPES = ("moment", "one rate", *PRUNERS, "relative", "head", "straight", "distilled", "static", "rigl")
#: Masks that do not come from pruning a dense network; they are rivals.
SPARSE = ("static", "rigl")


class Relative(fpe.GradualPruner):
    """Ranks weights by their size over the root mean square of their matrix."""

    def second_moment(self, i: int) -> Tensor:
        layer = self.sites[i].layer
        square = layer.weight.detach()[layer.fpe_mask != 0].square().mean()
        return torch.full_like(layer.weight, float(square) ** -2)  # to the power of ¼: 1 / rms


def measure(
    network: str, lr: float, seed: int, recipe: str = "moment", length: int = 1, text: str = "characters"
) -> dict[str, Any]:
    """Train a wide GPT-2 by a recipe; return its losses, and what training took.

    While it has more weights than the budget, its rate is smaller, by the root of their ratio (but for the
    recipe ``one rate``).
    """
    data, width, budget, steps = data_of(text), width_of(network, text), sizes(WIDTH, text)[0], STEPS * length
    model = fpe.with_masks(gpt(width, seed, text), "transformer.h.*")
    with measured(model, budget, steps) as found:
        teacher = None
        if recipe == "distilled":
            teacher = gpt(width, seed + 1000, text)
            train(teacher, adamw(teacher, lr), data["learn"], steps, seed + 1000)
            teacher.eval()
        if recipe == "head":
            mask_head_(model)
        if recipe in SPARSE:
            fpe.random_masks_(model, budget, scope="network", seed=seed)
        optimizer = adamw(model, lr)
        found["counts"] = counts = [budget] if recipe in SPARSE else []
        after = step_of(recipe, model, optimizer, budget, steps, seed, counts)
        train(model, optimizer, data["learn"], steps, seed, after, teacher)
        found |= {part: mean_loss(model, data[part]) for part in ("validation", "test")}
    # `fpe.count_nonzero` would count the weight of a masked head by the embedding, which is not masked.
    return {**found, "nonzero": sum(int(p.count_nonzero()) for p in model.parameters())}


def step_of(
    recipe: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    budget: int,
    steps: int,
    seed: int,
    counts: list[int],
) -> Callable[[int], None]:
    """Return what a recipe does after each step; it also appends the model's count to `counts`."""
    if recipe in SPARSE:
        rewirer = fpe.Rewirer(model, optimizer, "rigl", steps=steps, seed=seed)
        return lambda step: rewirer.step() if recipe == "rigl" else None
    kind = Relative if recipe == "relative" else fpe.GradualPruner
    pruner = kind(model, optimizer, budget=budget, steps=steps, **PRUNERS.get(recipe, {}))
    change = straight_through(model, pruner, steps) if recipe == "straight" else None

    def set_rate(step: int) -> None:
        counts.append(pruner.count_at(step))
        if recipe != "one rate":
            optimizer.param_groups[0]["share"] = (budget / counts[-1]) ** 0.5

    def after(step: int) -> None:
        if change is None:
            pruner.step()
        else:
            change(step)
        if recipe == "head":
            fpe.project_(model)  # the embedding's gradients are not masked
        set_rate(step + 1)

    set_rate(0)
    return after


def straight_through(model: nn.Module, pruner: fpe.GradualPruner, steps: int) -> Callable[[int], None]:
    """Return what is done after each step so that masked weights learn, too, and can come back.

    The forward pass uses the largest weights, and all get its gradients. Masks are chosen anew when `pruner`
    would prune, and as often after its schedule until the last fifth of all steps.
    """
    layers = [site.layer for site in pruner.sites]
    kept = [layer.weight.detach().clone() for layer in layers]  # all weights, those that are masked, too
    used = [weight.clone() for weight in kept]  # with zeros
    masks = [torch.ones_like(weight) for weight in kept]
    fixed = pruner.start - sum(weight.numel() for weight in kept)

    @torch.no_grad()
    def after(step: int) -> None:
        for layer, weight, last in zip(layers, kept, used, strict=True):
            weight += layer.weight - last
        begun = step + 1 >= pruner.schedule.begin * steps
        if begun and (step + 1) % pruner.schedule.every == 0 and step < 0.8 * steps:
            sizes = torch.cat([weight.abs().flatten() for weight in kept])
            free = torch.zeros_like(sizes)
            free[sizes.topk(pruner.count_at(step + 1) - fixed).indices] = 1
            for mask, own in zip(masks, free.split([mask.numel() for mask in masks]), strict=True):
                mask.copy_(own.view_as(mask))
        for layer, weight, mask, last in zip(layers, kept, masks, used, strict=True):
            layer.weight.copy_(weight * mask)
            last.copy_(layer.weight)
            if step + 1 == steps:
                layer.fpe_mask.copy_(mask)

    return after


def mask_head_(model: Any) -> None:
    """Mask the head, which shares its weight with the embedding, in place; both are pruned then."""
    weight = model.lm_head.weight.detach().clone()
    model.lm_head = MaskedLinear.from_arrays(weight, None, torch.ones_like(weight))
    model.transformer.wte.weight = model.lm_head.weight


def measure_trained(kind: str, lr: float, shrink: float, seed: int, parent_lr: float) -> dict[str, Any]:
    """Train a small GPT-2, then train it on for as long: as it is, or wider and pruned back.

    `kind` is ``on``, or ``wider-`` and a factor; `shrink` is by what the weights are multiplied first.
    """
    data, budget = data_of("characters"), sizes(WIDTH)[0]
    with one_thread():
        parent = gpt(WIDTH, seed)
        train(parent, adamw(parent, parent_lr), data["learn"], STEPS, seed)
        before = {f"{part} of the parent": mean_loss(parent, data[part]) for part in ("validation", "test")}
        name, _, factor = kind.partition("-")
        model = fpe.widen(parent, int(factor), seed=seed) if name == "wider" else fpe.with_masks(parent)
        fpe.open_masks_(model, shrink=shrink)
    with measured(model, budget, STEPS) as found:
        optimizer = adamw(model, lr)
        found["counts"] = counts = []
        after = step_of("moment", model, optimizer, budget, STEPS, seed, counts)
        train(model, optimizer, data["learn"], STEPS, seed + 1000, after)
        found |= {part: mean_loss(model, data[part]) for part in ("validation", "test")}
    return {**found, **before}
