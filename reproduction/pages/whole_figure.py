"""Draw docs/evidence/transformers-and-cnns.png from the runs that whole.py stores."""

from __future__ import annotations

import numpy as np
import whole_text
from common import RESULTS
from matplotlib.figure import Figure
from whole_runs import KINDS, KNOWN, LENGTHS, ZEROS, dense_of, lengths_of, text_runs

from fpe._util.files import write_atomically
from fpe_reproduction.statistics import equal_size

FIGURE = RESULTS.parent / "evidence" / "transformers-and-cnns.png"


def draw() -> None:
    """Draw the losses of the character models over their counts, and the dense sizes that they equal."""
    runs = text_runs()
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    percent = [100 * zeros for zeros in ZEROS]
    known = {kind: lengths_of(runs, kind) for kind in KINDS}
    for length, color in zip(LENGTHS, ("#e07a1f", "#2e6f95"), strict=True):
        dense = [f"{own}-characters-{length}" for own in dense_of(runs, length)]
        counts, curve = runs.curve(dense)
        steps = f"{length * whole_text.STEPS:,} steps"
        left.plot(counts, curve.mean(axis=0), "o-", color=color, label=f"dense, {steps}")
        for kind, marker in zip(KINDS, "sD^", strict=True):
            if length not in known[kind]:
                continue
            equal = []
            for zeros in ZEROS:
                values = runs.values(f"{kind}-{zeros:g}-characters-{length}")
                found = equal_size(counts, curve, values)
                equal.append([bound / counts[0] for bound in (found.value, found.low, found.high)])
                left.plot(counts[0], values.mean(), marker, color=color, markerfacecolor="white")
            value, low, high = np.array(equal).T
            own = {"color": color, "capsize": 3, "label": f"{KINDS[kind]}, {steps}"}
            line = {"zeros": "-", "fixed": "--", "thinned": "-."}[kind]
            right.errorbar(percent, value, (value - low, high - value), fmt=f"{marker}{line}", **own)
    right.plot(percent, KNOWN.values(), ":", color="#333333", label="large networks")
    left.set(xscale="log", xlabel="non-zero parameters", ylabel="test loss, nats per character")
    counts, _ = runs.curve([f"{own}-characters-1" for own in dense_of(runs, 1)])
    left.set_xticks(counts, [f"{count / 1000:.0f}k" for count in counts])
    left.set_xticks([], minor=True)
    right.set(xlabel="zeros, %", ylabel="equals a dense network of × the count", xticks=[50, 75, 87.5])
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    write_atomically(FIGURE, lambda file: figure.savefig(file, dpi=110, format="png"))


if __name__ == "__main__":
    draw()
