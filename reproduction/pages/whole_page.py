"""The page on transformers, CNNs and deep MLPs, from the runs that whole.py stores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import whole
import whole_images
import whole_mlp
import whole_text
from common import RESULTS, block, made_by, table, trained_at
from whole_runs import (
    KINDS,
    KNOWN,
    LENGTHS,
    ZEROS,
    Runs,
    dense_of,
    difference,
    lengths_of,
    nats,
    percent,
    rate_of,
    stored,
    text_runs,
    times,
)

from fpe_reproduction.statistics import equal_size, jackknife, mean, size_at

PAGE = "../evidence/transformers-and-cnns"


def run(page: str) -> None:
    for stage in whole.STAGES.values():
        stage()


def text_table(runs: Runs, text: str, length: int, networks: Sequence[str]) -> str:
    """Compare GPT-2s of a text with the small one, and with a curve of dense ones."""
    dense = [own for own in networks if own.startswith("dense")]
    counts, curve = runs.curve([f"{own}-{text}-{length}" for own in dense])
    small = f"dense-1-{text}-{length}"
    rows = []
    for own in networks:
        way = f"{own}-{text}-{length}"
        record, other = runs.of(way)[0], runs.of(small)[0]
        row = [NAMES.get(own, own), f"{record['nonzero']:,}", nats(mean(runs.values(way)))]
        row.append("" if way == small else difference(runs, way, small).text(1, 3))
        equal = "" if own in dense else times(equal_size(counts, curve, runs.values(way)), counts[0])
        known = KNOWN.get(float(own.split("-")[1])) if own.split("-")[0] in KINDS else None
        row += [equal, "" if known is None else f"{known:g}", average_text(runs, way, counts, curve)]
        row += [f"{record['flops'] / other['flops']:.1f}", f"{record['bytes'] / other['bytes']:.1f}"]
        rows.append(row)
    return table(
        ["network", "non-zeros", "loss", "minus dense", "equals dense of ×", "in large networks",
         "minus dense of the average count", "FLOPs ×", "memory ×"],
        rows,
    )  # fmt: skip


def average_text(runs: Runs, way: str, counts: Sequence[int], curve: np.ndarray) -> str:
    """Return the loss minus that of a dense network of the average count while a network is trained."""
    records = runs.of(way)
    if records[0]["average"] == records[0]["nonzero"]:
        return ""
    values = runs.values(way)

    def estimate(seeds: np.ndarray) -> float:
        at = np.interp(np.log(records[0]["average"]), np.log(counts), curve[seeds].mean(0))
        return float(values[seeds].mean() - at)

    return jackknife(estimate, len(values)).text(1, 3)


def law_table() -> str:
    """Fit how large a dense network a wider one equals: (1 − zeros)^−k, for each kind and length."""
    runs = text_runs()
    shares = [runs.of(f"zeros-{z:g}-characters-1")[0]["zeros"] for z in ZEROS]
    x = -np.log1p(-np.array(shares))

    def slope(sizes: Iterable[float]) -> float:
        return float((x * np.log(list(sizes))).sum() / (x * x).sum())

    def power(kind: str, length: int) -> Callable[[np.ndarray], float]:
        counts, curve = runs.curve([f"{own}-characters-{length}" for own in dense_of(runs, length)])
        values = [runs.values(f"{kind}-{z:g}-characters-{length}") for z in ZEROS]

        def estimate(seeds: np.ndarray) -> float:
            at = curve[seeds].mean(0)
            return slope(size_at(counts, at, own[seeds].mean()) / counts[0] for own in values)

        return estimate

    trials, rows = len(whole.SEEDS), []
    for kind, title in KINDS.items():
        powers = {length: power(kind, length) for length in lengths_of(runs, kind)}
        for length, own in powers.items():
            found = jackknife(own, trials)
            fitted = (f"{(1 - z) ** -found.value:.2f}" for z in ZEROS)
            row = [f"{title}, {length} ×", found.text(1, 2, sign=False), *fitted]
            change = jackknife(lambda seeds, own=own, first=powers[1]: own(seeds) - first(seeds), trials)
            rows.append([*row, "" if length == 1 else change.text(1, 2)])
    theirs = slope(KNOWN[z] for z in ZEROS)
    rows.append(["large networks", f"{theirs:.2f}", *(f"{(1 - z) ** -theirs:.2f}" for z in ZEROS), ""])
    zeros = [f"{z:.1%} zeros".replace(".0%", "%") for z in ZEROS]
    return table(["masks, steps", "k", *zeros, "k minus that of 1 ×"], rows)


def power_table(runs: Runs, text: str, length: int, ways: Sequence[str]) -> str:
    """Say which difference from the small dense network the seeds could show, and how many it needs."""
    rows = []
    for own in ways:
        found = difference(runs, f"{own}-{text}-{length}", f"dense-1-{text}-{length}")
        needed = len(whole.SEEDS) * (found.detectable / found.value) ** 2
        shown = "over 1,000" if needed > 1000 else f"{max(2, math.ceil(needed)):,}"
        rows.append([NAMES[own], found.text(1, 3), f"{found.detectable:.3f}", shown])
    return table(["minus dense", "difference", "shown four times in five", "seeds for this difference"], rows)


NAMES = {
    "dense-1": "dense",
    "dense-1.5": "dense, 1.5 ×",
    "dense-2": "dense, 2 ×",
    "dense-3": "dense, 3 ×",
    "dense-4.5": "dense, 4.5 ×",
    "dense-6": "dense, 6 ×",
    "blocks4-1": "dense, 4 blocks",
    "blocks8-1": "dense, 8 blocks",
    "zeros-0.5": "**wider, 50 % zeros**",
    "zeros-0.75": "**wider, 75 % zeros**",
    "zeros-0.875": "**wider, 87.5 % zeros**",
    "fixed-0.5": "**wider, 50 % random zeros**",
    "fixed-0.75": "**wider, 75 % random zeros**",
    "fixed-0.875": "**wider, 87.5 % random zeros**",
    **{f"thinned-{z:g}": f"**wider, {100 * z:g} % zeros, random first**" for z in ZEROS},
}
#: What each kind of random masks is.
MASKS = {
    "fixed-0.75-characters-1": "equally many inputs for each neuron",
    "any": "anywhere",
    "group-4": "the same inputs for a fourth of a layer's neurons (dense blocks)",
    "group-8": "the same inputs for an eighth",
}
#: What each recipe of the ablation is.
RECIPES = {
    "moment": "|w| · v^¼, all matrices together (the default)",
    "one rate": "the same rate before and after pruning",
    "magnitude": "|w|",
    "fisher": "|w| · v^½",
    "relative": "|w| over the root mean square of its matrix",
    "each matrix": "|w|, each matrix to one density",
    "fan-in": "|w| · v^¼, equally many inputs for each neuron",
    "least 4": "at least 4 inputs for each neuron",
    "linear": "linearly, from 0 to 50 % of the steps",
    "early": "pruned by 30 % of the steps, not 60 %",
    "late": "pruned by 85 %",
    "head": "embedding and head pruned, too",
    "straight": "masked weights learn on (straight-through), |w|",
    "distilled": "half of the loss from a wide dense teacher",
    "static": "random masks from the start, fixed",
    "rigl": "random masks from the start, RigL",
}


def recipe_table() -> str:
    """Compare recipes with the default one."""
    runs = Runs("whole-recipes")
    rows = []
    for own in RECIPES:
        best = runs.of(own)
        row = [RECIPES[own], rate_of(best[0]), nats(mean(runs.values(own)))]
        rows.append([*row, "" if own == "moment" else difference(runs, own, "moment").text(1, 3)])
    return table(["recipe", "rate", "loss", "minus the default"], rows)


def trained_table() -> str:
    """Compare a trained GPT-2 that is trained on with one that is wider and pruned back."""
    runs = Runs("whole-trained")
    ways = {}
    for kind in ("on", "wider-2"):
        shares = ["on-1"] if kind == "on" else [f"{kind}-{share:g}" for share in whole.SHRINKS]
        ways[kind] = min(shares, key=lambda way: runs.values(way, "validation")[: len(whole.TUNING)].mean())
    rows = []
    for kind, way in ways.items():
        name = "trained on" if kind == "on" else "wider by 2, pruned back"
        share, rate = way.rsplit("-", 1)[1], rate_of(runs.of(way)[0])
        row = [name, rate, share, nats(mean(runs.values(way, "test of the parent")))]
        rows.append(
            [
                *row,
                nats(mean(runs.values(way))),
                "" if kind == "on" else difference(runs, way, ways["on"]).text(1, 3),
            ]
        )
    return table(["network", "rate", "weights ×", "loss before", "after", "minus trained on"], rows)


def mlp_table() -> dict[str, str]:
    """Compare deep MLPs with dense, residual and shallow ones."""
    by_name = {record["task"]: record for name in ("whole-mlp", "whole-mlp-fixed") for record in stored(name)}
    rows, gains = [], []
    for layers in whole_mlp.LAYERS:
        for hidden in whole_mlp.WIDTHS:
            cell = {
                own: by_name[f"l{layers}-h{hidden}-{own}"]
                for own in whole_mlp.NETWORKS
                if f"l{layers}-h{hidden}-{own}" in by_name
            }
            dense = [own for own in cell if own.startswith("dense")]
            counts = [cell[own]["nonzero"] for own in dense]
            curve = np.array([cell[own]["accuracies"] for own in dense]).T
            wider = [own for own in cell if own.startswith("wider")]
            three = np.array(cell["wider-3"]["accuracies"])
            equal = equal_size(counts, curve, three)
            gains.append(mean(three - curve[:, 0]))
            row = [f"{layers}", f"{hidden}", f"{counts[0]:,}", percent(curve[:, 0])]
            row += [percent(cell[own]["accuracies"]) for own in wider]
            row += [""] * (3 - len(wider))
            row.append(percent(by_name[f"l{layers}-h{hidden}-fixed-3"]["accuracies"]))
            row += [times(equal, counts[0]), percent(cell["residual"]["accuracies"])]
            rows.append([*row, percent(cell["shallow"]["accuracies"])])
    better = sum(gain.low > 0 for gain in gains)
    head = ["layers", "h", "non-zeros", "dense %", "wider by 2 %", "wider by 3 %", "wider by 4 %"]
    head += [
        "random zeros, wider by 3 %",
        "wider by 3 equals dense of ×",
        "dense, residual %",
        "best shallow %",
    ]
    return {"mlp": table(head, rows), "mlp-better": f"{better} of {len(gains)}"}


def mlp_trained_table() -> str:
    """Compare trained deep MLPs that are trained on with ones that are wider and pruned back."""
    by_name = {record["task"]: record for record in stored("whole-mlp-trained")}
    rows = []
    for layers, hidden in whole.MLPS_TRAINED:
        on = by_name[f"l{layers}-h{hidden}-on"]
        row = [f"{layers}", f"{hidden}", f"{on['nonzero']:,}"]
        row += [percent(on["before"]), percent(on["accuracies"])]
        for kind in ("wider-2", "wider-3"):
            own = by_name[f"l{layers}-h{hidden}-{kind}"]["accuracies"]
            gain = mean(np.array(own) - on["accuracies"])
            row += [percent(own), gain.text(100, 1)]
        rows.append(row)
    head = ["layers", "h", "non-zeros", "before %", "trained on %"]
    head += [
        f"{what} by {factor}{unit}" for factor in (2, 3) for what, unit in (("wider", " %"), ("gain", ""))
    ]
    return table(head, rows)


def image_table() -> str:
    """Compare the CNN and the vision transformer with dense ones."""
    runs = Runs("whole-images")
    rows = []
    for model, title in (("cnn", "CNN"), ("vit", "ViT")):
        dense = [own for own in whole_images.NETWORKS if own.startswith("dense")]
        counts, curve = runs.curve([f"{model}-{own}" for own in dense])
        for own in whole_images.NETWORKS:
            way, small = f"{model}-{own}", f"{model}-dense-1"
            row = [
                title,
                NAMES[own],
                f"{runs.of(way)[0]['nonzero']:,}",
                percent(runs.values(way, "accuracy")),
            ]
            row += [nats(mean(runs.values(way)))]
            row.append("" if own == "dense-1" else difference(runs, way, small).text(1, 3))
            row.append("" if own in dense else times(equal_size(counts, curve, runs.values(way)), counts[0]))
            rows.append(row)
    head = ["", "network", "non-zeros", "accuracy %", "loss", "minus dense", "equals dense of ×"]
    return table(head, rows)


def wider_of(runs: Runs, length: int) -> list[str]:
    """Return the wider networks of characters all of whose runs of a length are stored."""
    return [f"{kind}-{z:g}" for kind in KINDS if length in lengths_of(runs, kind) for z in ZEROS]


def characters(length: int) -> dict[str, str]:
    """Return the table of the character models of one length of training."""
    runs = text_runs()
    dense, wider = dense_of(runs, length), wider_of(runs, length)
    networks = [*dense, *(whole_text.DEEPER if length == 1 else ()), *wider]
    made = {f"text-{length}": text_table(runs, "characters", length, networks)}
    if length == 1:
        made["power"] = power_table(runs, "characters", length, (*whole_text.DEEPER, *dense[1:], *wider))
    return made


def compute_table() -> str:
    """List dense character models, and those of three quarters zeros, by the FLOPs of their training."""
    runs = text_runs()
    small = runs.of("dense-1-characters-1")[0]
    found = []
    for length in LENGTHS:
        for own in (*dense_of(runs, length), *(n for n in wider_of(runs, length) if n.endswith("-0.75"))):
            way = f"{own}-characters-{length}"
            record = runs.of(way)[0]
            row = [NAMES[own], f"{length} ×", f"{record['nonzero']:,}"]
            row += [f"{record[key] / small[key]:.1f}" for key in ("flops", "bytes")]
            found.append((record["flops"], [*row, nats(mean(runs.values(way)))]))
    rows = [row for _, row in sorted(found, key=lambda own: own[0])]
    return table(["network", "steps", "non-zeros", "FLOPs ×", "memory ×", "loss"], rows)


def pairs() -> list[str]:
    """Return the networks of byte pairs that are stored."""
    runs = text_runs()
    fixed = [own.replace("zeros", "fixed") for own in whole.PAIRS if own.startswith("zeros")]
    return [*whole.PAIRS, *(own for own in fixed if runs.complete(f"{own}-pairs-1"))]


def masks_table() -> str:
    """Compare random masks of other structure with ones of equally many inputs for each neuron."""
    runs = Runs("whole-fixed", "whole-masks")
    first, seeds = next(iter(MASKS)), 3
    rows = []
    for own, title in MASKS.items():
        values = runs.values(own)[:seeds]
        row = [title, rate_of(runs.of(own)[0]), f"{runs.of(own)[0]['nonzero']:,}", nats(mean(values))]
        rows.append([*row, "" if own == first else mean(values - runs.values(first)[:seeds]).text(1, 3)])
    return table(["places of the weights", "rate", "non-zeros", "loss", "minus the first"], rows)


def bytes_table() -> str:
    """Compare the files of wider networks with those of dense ones."""
    found = {record["task"]: record for record in stored("whole-bytes")}
    runs = text_runs()
    dense = [own for own in whole_text.NETWORKS if own.startswith("dense")]
    files = [found[f"{own}-network"]["bytes"] for own in dense]
    counts, curve = runs.curve([f"{own}-characters-1" for own in dense])
    rows = []
    for own in (dense[0], *(f"zeros-{z:g}" for z in ZEROS)):
        free = found[f"{own}-network"]["bytes"]
        equal = equal_size(counts, curve, runs.values(f"{own}-characters-1"))
        row = [NAMES[own], f"{free:,}", f"{free / files[0]:.2f}"]
        if own.startswith("zeros"):
            of_equal = free / np.interp(equal.value, counts, files)
            row += [f"{found[f'{own}-neuron']['bytes'] / files[0]:.2f}", f"{of_equal:.2f}"]
        rows.append([*row, *[""] * (5 - len(row))])
    head = ["network", "bytes", "× dense", "equally many inputs ×", "× the dense network with this loss"]
    return table(head, rows)


#: What is between the marks of a section, each by the first of them.
PARTS: dict[str, Callable[[], dict[str, str]]] = {
    "text-1": lambda: characters(1),
    "text-4": lambda: characters(4),
    "compute": lambda: {"compute": compute_table()},
    "law": lambda: {"law": law_table()},
    "bytes": lambda: {"bytes": bytes_table()},
    "mlp": mlp_table,
    "trained": lambda: {"trained": trained_table()},
    "mlp-trained": lambda: {"mlp-trained": mlp_trained_table()},
    "recipes": lambda: {"recipes": recipe_table()},
    "masks": lambda: {"masks": masks_table()},
    "pairs": lambda: {"pairs": text_table(text_runs(), "pairs", 1, pairs())},
    "images": lambda: {"images": image_table()},
    "made": lambda: {"made": made()},
}


def made() -> str:
    """Say what made the stored runs."""
    names = [name for name in whole.EXPERIMENTS if (whole.STORED / f"{name}.json").exists()]
    everything = [record for name in names for record in stored(name)]
    hours = sum(record["seconds"] for record in everything) / 3600
    by = made_by(everything[-1], "torch")
    alike = "The code of each experiment is the same at all of them."
    return block(f"{by}; {hours:.1f} hours of one core. {trained_at(everything)} {alike}")


def parts(page: str) -> dict[str, Mapping[str, str]]:
    """Return the texts of the sections that the page has."""
    text = (RESULTS / f"{PAGE}.md").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for mark, make in PARTS.items():
        if f"<!-- {mark} -->" in text:
            found |= make()
    return {PAGE: found}
