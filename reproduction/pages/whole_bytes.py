"""What the files of whole networks take, with free masks and with equally many inputs for each neuron."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import whole
from whole_text import WIDTH, adamw, data_of, gpt, sizes, train, width_of

import fpe

#: So few, as the bytes follow from how many places of each matrix are free.
STEPS = 40
NETWORKS = ("dense-1", "dense-1.5", "dense-2", "dense-3", "zeros-0.5", "zeros-0.75", "zeros-0.875")


def measure(network: str, scope: str, seed: int = 0) -> dict[str, Any]:
    """Train a GPT-2 of characters for some steps, save it, and count its bytes."""
    model = fpe.with_masks(gpt(width_of(network), seed), "transformer.h.*")
    optimizer = adamw(model, 4e-3)
    after = None
    if network.startswith("zeros"):
        schedule = fpe.PruningSchedule(begin=0.05, end=0.6, every=1)
        budget = sizes(WIDTH)[0]
        pruner = fpe.GradualPruner(
            model, optimizer, budget=budget, steps=STEPS, scope=scope, schedule=schedule
        )

        def after(step: int) -> None:
            pruner.step()

    train(model, optimizer, data_of("characters")["learn"], STEPS, seed, after)
    with tempfile.TemporaryDirectory() as folder:
        fpe.save(model, path := Path(folder) / "model.safetensors")
        return {"nonzero": fpe.count_nonzero(model), "bytes": path.stat().st_size}


if __name__ == "__main__":
    tasks = {
        f"{network}-{scope}": {"network": network, "scope": scope}
        for network in NETWORKS
        for scope in ("network", "neuron")
        if network.startswith("zeros") or scope == "network"
    }
    for task, record in whole.kept(measure, tasks, "whole-bytes").items():
        print(task, record["nonzero"], record["bytes"])
