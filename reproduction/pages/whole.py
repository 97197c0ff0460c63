"""Whole networks wider, pruned to the count of a small one: runs of GPT-2s of text, and of deep MLPs.

Usage: python reproduction/pages/whole.py [STAGE…]

Stages are ``text``, ``trained``, ``long``, ``mlp``, ``recipes``, ``mlp-trained``, ``images`` and ``pairs``.

Runs are stored in docs/evidence/runs, and found there again by the same code. All stages take about ten
hours on two cores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import whole_images
import whole_masks
import whole_masks_mlp
import whole_mlp
import whole_recipes
import whole_text
import whole_thinned
from common import OUT, RESULTS, run_all

from fpe._util.files import read_json, write_json

STORED = RESULTS.parent / "evidence" / "runs"
SEEDS = range(5)
#: Seeds whose validation losses choose the rates.
TUNING = (0, 1)
#: Rates to begin with; the range is extended by factors of 2 while the best is at an end.
RATES = (2e-3, 4e-3, 8e-3)
#: The same for masks that are random at first.
RANDOM_RATES = (8e-3, 1.6e-2)
#: The network of the ablation, and what the weights of a trained GPT-2 are multiplied by.
ABLATED, SHRINKS = "zeros-0.75", (1.0, 0.5)
#: Larger dense networks of the short training, as wider ones equal more than three times the count.
LARGER = ("dense-4.5", "dense-6")
#: Networks of byte pairs; layers and widths of the deep MLPs that are trained first.
PAIRS = ("dense-1", "dense-1.5", "dense-2", "dense-3", "zeros-0.5", "zeros-0.75")
MLPS_TRAINED = ((5, 8), (5, 16), (9, 16))
#: The rate of the small GPT-2 that is trained on: the best of its 1,500 steps.
PARENT = 4e-3
EXPERIMENTS = (
    "whole-text",
    "whole-wider",
    "whole-recipes",
    "whole-trained",
    "whole-mlp",
    "whole-mlp-trained",
    "whole-images",
    "whole-fixed",
    "whole-thinned",
    "whole-masks",
    "whole-mlp-fixed",
)

#: Wide networks whose masks are random at first: what trains them, in which experiment, and how.
RANDOM: dict[str, tuple[Callable[..., Any], str, dict[str, Any]]] = {
    "fixed": (whole_masks.measure, "whole-fixed", {"masks": "neuron"}),
    "thinned": (whole_thinned.measure, "whole-thinned", {}),
}

Tasks = dict[str, dict[str, Any]]


def kept(work: Callable[..., Any], tasks: Tasks, name: str) -> Tasks:
    """Run tasks that are stored neither in fpe-out nor in docs/evidence/runs; store all of them there."""
    file = STORED / f"{name}.json"
    for task, record in (read_json(file) or {}).items():
        if not (path := OUT / name / f"{task}.json").exists():
            write_json(path, record)
    try:
        found = run_all(work, tasks, name)
    finally:
        records = {path.stem: read_json(path) for path in sorted((OUT / name).glob("*.json"))}
        write_json(file, records)
    return {task: {**tasks[task], **record} for task, record in found.items()}


def tune(
    work: Callable[..., Any],
    name: str,
    ways: Mapping[str, Mapping[str, Any]],
    rates: Mapping[str, Sequence[float]],
    higher: bool = True,
    further: bool = True,
) -> dict[str, float]:
    """Return the rate of each way by the mean validation loss of two seeds; try further ones beyond the best.

    `higher` says whether rates above the given ones may be tried, `further` whether any others may.
    """
    tried = {way: sorted(own) for way, own in rates.items()}
    while True:
        tasks = {
            f"{way}-{lr:g}-{seed}": {**ways[way], "lr": lr, "seed": seed}
            for seed in TUNING
            for way, own in tried.items()
            for lr in own
        }
        found = kept(work, tasks, name)
        loss = {task: record["validation"] for task, record in found.items()}
        best = {
            way: min(own, key=lambda lr, way=way: sum(loss[f"{way}-{lr:g}-{seed}"] for seed in TUNING))
            for way, own in tried.items()
        }
        more = {way: lr / 2 for way, lr in best.items() if lr == tried[way][0]}
        more |= {way: 2 * lr for way, lr in best.items() if lr == tried[way][-1] and higher}
        if not (more and further):
            return best
        tried = {way: sorted([*own, more[way]] if way in more else own) for way, own in tried.items()}


def run_seeds(
    work: Callable[..., Any],
    name: str,
    ways: Mapping[str, Mapping[str, Any]],
    best: Mapping[str, float],
    seeds: Iterable[int] = SEEDS,
) -> None:
    """Run all seeds, each way with its rate."""
    tasks = {
        f"{way}-{best[way]:g}-{seed}": {**own, "lr": best[way], "seed": seed}
        for seed in seeds
        for way, own in ways.items()
    }
    kept(work, tasks, name)


def of_text(text: str, networks: Sequence[str], length: int) -> dict[str, dict[str, Any]]:
    """Return the arguments of networks of a text and a length of training."""
    return {f"{own}-{text}-{length}": {"network": own, "text": text, "length": length} for own in networks}


def tune_and_run(
    text: str, networks: Sequence[str], length: int, short: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Tune and run dense networks and wider ones; a long training begins at a short one's best rates."""
    found: dict[str, float] = {}
    for work, name, wide in (
        (whole_text.measure, "whole-text", False),
        (whole_recipes.measure, "whole-wider", True),
    ):
        ways = of_text(text, [own for own in networks if own.startswith("zeros") == wide], length)
        rates = dict.fromkeys(ways, RATES)
        if short is not None:
            before = {way: short[f"{own['network']}-{text}-1"] for way, own in ways.items()}
            rates = {way: (lr / 2, lr) for way, lr in before.items()}
        best = tune(work, name, ways, rates, higher=short is None)
        run_seeds(work, name, ways, best)
        found |= best
    return found


def run_text() -> dict[str, float]:
    return tune_and_run("characters", (*whole_text.NETWORKS, *LARGER, *whole_text.DEEPER), 1)


def run_long() -> None:
    tune_and_run("characters", whole_text.NETWORKS, 4, run_text())


def run_pairs() -> None:
    tune_and_run("pairs", PAIRS, 1)


def run_recipes() -> None:
    ways = {own: {"network": ABLATED, "recipe": own} for own in whole_recipes.RECIPES}
    rates = dict.fromkeys(ways, (4e-3, 8e-3))  # the best of the default, and half of it
    best = tune(whole_recipes.measure, "whole-recipes", ways, rates, further=False)
    run_seeds(whole_recipes.measure, "whole-recipes", ways, best, range(3))


def run_random(
    kind: str, text: str = "characters", short: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Tune and run wide networks whose masks are random at first: they stay, or are pruned later.

    With the best rates of a short training they are trained for four times the steps, as in `tune_and_run`.
    """
    work, name, more = RANDOM[kind]
    networks = [own for own in (PAIRS if text == "pairs" else whole_text.NETWORKS) if own.startswith("zeros")]
    known = of_text(text, networks, 1 if short is None else 4)
    ways = {way.replace("zeros", kind): {**own, **more} for way, own in known.items()}
    rates = dict.fromkeys(ways, RANDOM_RATES)
    if short is not None:
        before = {way: short[way.removesuffix("-4") + "-1"] for way in ways}
        rates = {way: (lr / 2, lr) for way, lr in before.items()}
    best = tune(work, name, ways, rates, higher=short is None)
    run_seeds(work, name, ways, best)
    return best


def run_masks() -> None:
    """Tune and run wide networks with other random masks than those of `run_random`."""
    ways = {own: {"network": ABLATED, "masks": own} for own in whole_masks.MASKS if own != "neuron"}
    best = tune(whole_masks.measure, "whole-masks", ways, dict.fromkeys(ways, RANDOM_RATES))
    run_seeds(whole_masks.measure, "whole-masks", ways, best, range(3))


def run_fixed_mlp() -> None:
    """Train deep MLPs of three times the width with random masks."""
    cells = [(layers, hidden) for layers in whole_mlp.LAYERS for hidden in whole_mlp.WIDTHS]
    tasks: Tasks = {
        f"l{layers}-h{hidden}-fixed-3": {"layers": layers, "hidden": hidden, "factor": 3}
        for layers, hidden in cells
    }
    kept(whole_masks_mlp.measure, tasks, "whole-mlp-fixed")


def run_trained() -> None:
    ways = {
        f"{kind}-{shrink:g}": {"kind": kind, "shrink": shrink, "parent_lr": PARENT}
        for kind in ("on", "wider-2")
        for shrink in SHRINKS
        if kind != "on" or shrink == 1
    }
    best = tune(whole_recipes.measure_trained, "whole-trained", ways, dict.fromkeys(ways, RATES))
    run_seeds(whole_recipes.measure_trained, "whole-trained", ways, best)


def run_images() -> None:
    ways = {
        f"{model}-{network}": {"model": model, "network": network}
        for model in whole_images.MODELS
        for network in whole_images.NETWORKS
    }
    best = tune(whole_images.measure, "whole-images", ways, dict.fromkeys(ways, RATES))
    run_seeds(whole_images.measure, "whole-images", ways, best)


def run_mlp() -> None:
    cells = [(layers, hidden) for layers in whole_mlp.LAYERS for hidden in whole_mlp.WIDTHS]
    tasks: Tasks = {
        f"l{layers}-h{hidden}-{network}": {"layers": layers, "hidden": hidden, "network": network}
        for layers, hidden in cells
        for network in whole_mlp.NETWORKS
        if not (hidden == 64 and network in whole_mlp.TOO_LARGE)
    }
    kept(whole_mlp.measure, tasks, "whole-mlp")


def run_mlp_trained() -> None:
    tasks: Tasks = {
        f"l{layers}-h{hidden}-{kind}": {"layers": layers, "hidden": hidden, "kind": kind}
        for layers, hidden in MLPS_TRAINED
        for kind in ("on", "wider-2", "wider-3")
    }
    kept(whole_mlp.measure_trained, tasks, "whole-mlp-trained")


STAGES = {
    "text": run_text,
    "trained": run_trained,
    "long": run_long,
    "mlp": run_mlp,
    "recipes": run_recipes,
    "mlp-trained": run_mlp_trained,
    "images": run_images,
    "pairs": run_pairs,
    "fixed": lambda: run_random("fixed"),
    "thinned": lambda: run_random("thinned"),
    "masks": run_masks,
    "fixed-mlp": run_fixed_mlp,
    "fixed-long": lambda: run_random("fixed", short=run_random("fixed")),
    "thinned-long": lambda: run_random("thinned", short=run_random("thinned")),
    "fixed-pairs": lambda: run_random("fixed", "pairs"),
}


if __name__ == "__main__":
    for stage in sys.argv[1:] or STAGES:
        print(f"== {stage}", flush=True)
        STAGES[stage]()
