"""Time and memory of planning and expanding a model of BERT-base's size, with random weights.

Named alternative: one ``copy.deepcopy`` of the model, in the same run. The first plan of a process also
loads ``torch.export``; it stands apart.
Usage: python reproduction/benchmarks/bert.py [--repeats 5] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import BertConfig, BertForSequenceClassification

import fpe
from fpe._util.files import write_json
from fpe.compare.store import provenance


def seconds(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def resident(field: str) -> int:
    """Bytes that this process holds now (VmRSS), or held at most since `forget_peak` (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def forget_peak() -> int:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig()).eval()
    weights = sum(p.nbytes for p in model.parameters())
    batch = {"input_ids": torch.randint(1, 30000, (2, 16))}
    tiny = BertForSequenceClassification(
        BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16)
    )

    first = seconds(lambda: fpe.plan(tiny, example_inputs=batch))  # loads torch.export
    before = forget_peak()
    plans = [seconds(lambda: fpe.plan(model, example_inputs=batch)) for _ in range(arguments.repeats)]
    plan_peak = resident("VmHWM") - before
    copies, expansions = [], []
    for _ in range(arguments.repeats):
        copies.append(seconds(lambda: copy.deepcopy(model)))
        expansions.append(seconds(lambda: fpe.expand(model, example_inputs=batch)))
    before = forget_peak()
    wide = fpe.expand(model, example_inputs=batch)
    expand_peak = resident("VmHWM") - before
    wide_bytes = sum(t.nbytes for t in wide.state_dict().values())
    record = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_bytes": weights,
        "first_plan_of_a_tiny_model_s": first,
        "plan_s": plans,
        "plan_peak_over_weights": plan_peak / weights,
        "deepcopy_s": copies,
        "expand_s": expansions,
        "expand_over_deepcopy": statistics.median(expansions) / statistics.median(copies),
        "expand_peak_over_wide": expand_peak / wide_bytes,
        "count_exact": fpe.count_nonzero(wide) == fpe.count_nonzero(model),
        "provenance": provenance(),
    }
    print(f"BERT-base: {record['parameters']:,} parameters, {weights / 1e6:.0f} MB; median (range)")
    for name, values in (("plan", plans), ("deepcopy", copies), ("expand", expansions)):
        print(f"{name:9} {statistics.median(values):6.2f} s   ({min(values):.2f} – {max(values):.2f})")
    print(f"loading torch.export, with the plan of a tiny model: {first:.2f} s")
    print(f"memory of plan, peak: {record['plan_peak_over_weights']:.2f} of the weights")
    print(f"memory of expand, peak: {record['expand_peak_over_wide']:.2f} of the wide model's tensors")
    print(f"expand takes {record['expand_over_deepcopy']:.1f} times as long as a deepcopy")
    print(f"count exact: {record['count_exact']}")
    if arguments.out:
        write_json(arguments.out, record)


if __name__ == "__main__":
    main()
