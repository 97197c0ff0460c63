"""Probe a tiny model of every kind (``tests/zoo.py``); about five minutes on two cores.

A cell says yes only if the step was done and its result was checked; otherwise it says what went wrong.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from common import made_by, store, stored, table
from torch import nn

import fpe
from fpe.compare.store import provenance
from fpe.graph import find_groups, verify

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from zoo import ZOO, answer


class Probe:
    """One model on its way through all steps; each says whether its result is right."""

    def __init__(self, name: str) -> None:
        self.model, self.batch = ZOO[name]()
        self.wide: nn.Module = self.model.eval()

    def found(self) -> bool:
        groups = find_groups(self.model, self.batch).groups
        verify(self.model, groups, self.batch)
        return bool(groups)

    def expanded(self) -> bool:
        self.wide = fpe.expand(self.model, 2, example_inputs=self.batch)
        return answer(self.wide, self.batch).shape == answer(self.model, self.batch).shape

    def count_exact(self) -> bool:
        twice = fpe.expand(self.wide, 2, example_inputs=self.batch, seed=1)
        return len({fpe.count_nonzero(model) for model in (self.model, self.wide, twice)}) == 1

    def trains(self) -> bool:
        model, losses = self.wide.train(), []
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(10):
            optimizer.zero_grad()
            loss = answer(model, self.batch).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        layers = [m for m in model.modules() if isinstance(m, fpe.MaskedLayer)]
        return losses[-1] < losses[0] and all((m.weight[m.fpe_mask == 0] == 0).all() for m in layers)

    def packed(self) -> bool:
        ways: tuple[dict[str, Any], ...] = ({}, {"split": "shared", "prune": "children"})
        wide = [fpe.expand(self.model, 2, example_inputs=self.batch, **how) for how in ways]
        return all(close(self.output(fpe.pack(each)), self.output(each), rtol=1e-5) for each in wide)

    def saved_and_loaded(self) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            fpe.save(self.wide, Path(folder, "wide.safetensors"))
            again = fpe.load(Path(folder, "wide.safetensors"), like=self.model).eval()
        return torch.equal(self.output(again), self.output(self.wide))

    def compiled(self) -> bool:
        torch._dynamo.reset()
        return close(self.output(torch.compile(copy.deepcopy(self.wide))), self.output(self.wide))

    def exported(self, name: str = "wide.pt2") -> bool:
        """Export; the file is run on two batches and compared with the model."""
        with tempfile.TemporaryDirectory() as folder:
            written = fpe.export(self.wide, Path(folder, name), example_inputs=self.batch)
        return written.difference is not None

    def onnx(self) -> bool:
        return self.exported("wide.onnx")

    @torch.no_grad()
    def output(self, model: Any) -> torch.Tensor:
        return answer(model, self.batch)


def close(a: torch.Tensor, b: torch.Tensor, rtol: float = 1e-4) -> bool:
    return torch.allclose(a, b, rtol=rtol, atol=1e-5)


DEPLOYED = ("compiled", "exported", "onnx")
STEPS = ("found", "expanded", "count_exact", "trains", "packed", "saved_and_loaded", *DEPLOYED)


def probed(name: str) -> dict[str, str]:
    """Take a model through the steps; name what goes wrong."""
    torch.manual_seed(0)
    probe = Probe(name)
    cells = dict.fromkeys(STEPS, "-")
    for step in STEPS:
        try:
            cells[step] = "yes" if getattr(probe, step)() else "no"
        except Exception as error:  # also of other libraries
            cells[step] = "refused" if isinstance(error, fpe.FPEError) else f"no ({type(error).__name__})"
            if step in DEPLOYED and not dense_can(name, step):
                cells[step] = f"dense model fails too ({type(error).__name__})"
        if cells[step] != "yes" and step in ("found", "expanded"):
            break
    return cells


def dense_can(name: str, step: str) -> bool:
    """Tell whether the model can be compiled or exported before it is expanded."""
    try:
        return bool(getattr(Probe(name), step)())
    except Exception:
        return False


def run(page: str) -> None:
    """Probe all models."""
    warnings.simplefilter("ignore")
    rows = []
    for name in ZOO:
        cells = probed(name)
        if name == "Mixtral" and cells["found"] != "yes":  # the experts of transformers are one parameter
            reasons = {s.name: s.reason for s in find_groups(*ZOO[name]()).skipped}
            cells["found"] = f"skipped: {reasons['model.layers.0.mlp.experts']}"
        print(name, cells, flush=True)
        rows.append([name, *cells.values()])
    columns = ["model", *(step.replace("_", " ") for step in STEPS)]
    store(page, {"columns": columns, "rows": rows, "provenance": provenance()})


def parts(page: str) -> dict[str, dict[str, str]]:
    record = stored(page)
    made = made_by(record, "fpe", "commit", "torch", "python")
    return {page: {"made": made, "table": table(record["columns"], record["rows"])}}
