"""Time and memory of planning and expanding: a pair of large linear layers, or a model of BERT-base's size.

Named alternative: copying the model once with ``copy.deepcopy``, by turns in the same run. The peak memory is
that of this process while it works, beyond what it had before (Linux only).
Usage: python reproduction/benchmarks/expand.py [--model mlp|bert] [--rounds 5] [--record]
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import by_turns, options, record, seconds, spread
from torch import nn

import fpe


def mlp() -> tuple[nn.Module, Any]:
    return nn.Sequential(nn.Linear(4096, 11008), nn.SiLU(), nn.Linear(11008, 4096)), None


def bert(**sizes: int) -> tuple[nn.Module, Any]:
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(BertConfig(**sizes)).eval()
    return model, {"input_ids": torch.randint(1, 30000, (2, 16))}


def resident(field: str) -> int:
    """Return the bytes that this process has now (VmRSS), or had at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def peak(action: Callable[[], object]) -> int:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before = resident("VmRSS")
    action()
    return resident("VmHWM") - before


def main() -> None:
    given = options(__doc__, model="mlp", rounds=5, split="random", prune="magnitude")
    torch.manual_seed(0)
    model, batch = {"mlp": mlp, "bert": bert}[given.model]()
    tiny = bert(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16)
    first = seconds(lambda: fpe.plan(tiny[0], example_inputs=tiny[1]))  # loads torch.export

    def plan() -> object:
        return fpe.plan(model, split=given.split, prune=given.prune, example_inputs=batch)

    def expand() -> nn.Module:
        return fpe.expand(model, split=given.split, prune=given.prune, example_inputs=batch)

    actions: dict[str, Callable[[], object]] = {"plan": plan, "expand": expand}
    actions["deepcopy"] = lambda: copy.deepcopy(model)
    taken = by_turns({name: lambda a=action: seconds(a) for name, action in actions.items()}, given.rounds)
    wide = expand()
    weights = sum(p.nbytes for p in model.parameters())
    wide_bytes = sum(t.nbytes for t in wide.state_dict().values())
    exact = fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    del wide
    peaks = {"plan_over_weights": peak(plan) / weights, "expand_over_wide": peak(expand) / wide_bytes}
    ratio = taken["expand"] / taken["deepcopy"]
    print(f"{given.model}, {given.split}/{given.prune}: {weights / 1e6:.0f} MB; median (range)")
    for name, values in taken.items():
        print(f"{name:9} {spread(values)} s")
    print(f"expand takes {spread(ratio, '.1f')} times as long as a deepcopy; count exact: {exact}")
    print(f"loading torch.export, with the plan of a tiny model: {first:.2f} s; peak memory {peaks}")
    if given.record:
        values = {name: list(each) for name, each in taken.items()}
        about = {"model": given.model, "split": given.split, "prune": given.prune, "count_exact": exact}
        sizes = {"weights_bytes": weights, "wide_bytes": wide_bytes, "first_plan_s": first}
        name = "expand" if given.model == "mlp" else given.model
        record(
            name, {**about, "seconds": values, "expand_over_deepcopy": list(ratio), "peak": peaks, **sizes}
        )


if __name__ == "__main__":
    main()
