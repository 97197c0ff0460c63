"""Time and memory of one expansion of a large gated-MLP-sized pair of layers.

Named alternative: copying the two weights once with ``Tensor.clone``, in the same run.
Usage: python reproduction/benchmarks/expand.py [--repeats 5] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from pathlib import Path

import torch
from torch import nn

import fpe
from fpe._util.files import write_json
from fpe.compare.store import provenance

INPUTS, NEURONS, FACTOR = 4096, 11008, 2


def seconds(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(split: str, prune: str, repeats: int) -> dict:
    before = peak_bytes()
    model = nn.Sequential(nn.Linear(INPUTS, NEURONS), nn.SiLU(), nn.Linear(NEURONS, INPUTS))
    wide = fpe.expand(model, factor=FACTOR, split=split, prune=prune)
    peak = peak_bytes() - before  # of dense and wide model and all in between, before any other work
    wide_bytes = sum(t.nbytes for t in wide.state_dict().values())
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    del wide
    ratios, copies, expansions = [], [], []
    for seed in range(repeats):
        copies.append(seconds(lambda: [model[0].weight.detach().clone(), model[2].weight.detach().clone()]))
        expansions.append(
            seconds(lambda: fpe.expand(model, factor=FACTOR, split=split, prune=prune, seed=seed))  # noqa: B023
        )
        ratios.append(expansions[-1] / copies[-1])
    return {
        "split": split,
        "prune": prune,
        "copy_s": statistics.median(copies),
        "expand_s": statistics.median(expansions),
        "ratio": statistics.median(expansions) / statistics.median(copies),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "peak_over_wide": peak / wide_bytes,
        "wide_bytes": wide_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--split", default="random")
    parser.add_argument("--prune", default="magnitude")
    parser.add_argument("--out")
    args = parser.parse_args()
    row = measure(args.split, args.prune, args.repeats)
    print(
        f"Linear({INPUTS}, {NEURONS}) - SiLU - Linear({NEURONS}, {INPUTS}) by {FACTOR}, "
        f"{args.split}/{args.prune}: {row['expand_s']:.2f} s, {row['ratio']:.1f} times a copy of the weights "
        f"({row['ratio_min']:.1f} to {row['ratio_max']:.1f}, {args.repeats} repeats); "
        f"peak {row['peak_over_wide']:.2f} times the wide model's {row['wide_bytes'] / 1e6:.0f} MB"
    )
    if args.out:
        write_json(Path(args.out), {"row": row, "provenance": provenance()})


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
