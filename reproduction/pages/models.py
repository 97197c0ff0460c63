"""Probe a tiny model of every kind; write docs/results/models.md.

Usage: python reproduction/pages/models.py        (``make results`` does it; about five minutes on two cores)

A cell says yes only if the step was done and its result was checked; otherwise it says what went wrong.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2] / "docs" / "results"
sys.path.insert(0, str(HERE.parent.parent / "tests"))

import torch
from torch import nn

import fpe
from fpe._util.files import write_atomically, write_json
from fpe.compare.store import provenance
from fpe.graph import find_groups, verify
from fpe.graph.inputs import as_call, tensors_in
from fpe_reproduction.report.text import markdown_table
from zoo import ZOO, answer


class Probe:
    """One model on its way through all steps."""

    def __init__(self, name: str) -> None:
        self.model, self.batch = ZOO[name]()
        self.wide: nn.Module = self.model

    def found(self) -> bool:
        """Groups are found, and all of them can be permuted."""
        groups = find_groups(self.model, self.batch).groups
        verify(self.model, groups, self.batch)
        return bool(groups)

    def expanded(self) -> bool:
        """The default layers are expanded, and the model answers in the same shape."""
        self.wide = fpe.expand(self.model, 2, example_inputs=self.batch)
        return answer(self.wide, self.batch).shape == answer(self.model, self.batch).shape

    def count_exact(self) -> bool:
        """As many non-zeros as before; and again after a second expansion."""
        twice = fpe.expand(self.wide, 2, example_inputs=self.batch, seed=1)
        counts = {fpe.count_nonzero(model) for model in (self.model, self.wide, twice)}
        return len(counts) == 1

    def trains(self) -> bool:
        """The loss falls, and no masked weight moves."""
        model = self.wide.train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        losses = []
        for _ in range(10):
            loss = answer(model, self.batch).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        layers = [m for m in model.modules() if isinstance(m, fpe.MaskedLayer)]
        held = all(bool((m.weight[m.fpe_mask == 0] == 0).all()) for m in layers)
        model.eval()
        return held and losses[-1] < losses[0]

    def packed(self) -> bool:
        """Packed, it gives the same outputs: with a split for each neuron, and with whole children."""
        ways: tuple[dict[str, Any], ...] = ({}, {"split": "shared", "prune": "children"})
        wide = [fpe.expand(self.model, 2, example_inputs=self.batch, **how) for how in ways]
        return all(
            close(first(fpe.pack(each), self.batch), first(each, self.batch), rtol=1e-5) for each in wide
        )

    def saved_and_loaded(self) -> bool:
        """A file gives the same outputs, bit for bit."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "wide.safetensors")
            fpe.save(self.wide, path)
            again = fpe.load(path, like=self.model).eval()
        return torch.equal(answer(again, self.batch), answer(self.wide, self.batch))

    def compiled(self) -> bool:
        """``torch.compile`` gives the same outputs."""
        torch._dynamo.reset()
        return close(
            answer(torch.compile(copy.deepcopy(self.wide)), self.batch), answer(self.wide, self.batch)
        )

    def exported(self) -> bool:
        """``torch.export`` gives the same outputs."""
        args, kwargs = as_call(self.batch)
        program = torch.export.export(TensorsOnly(self.wide), args, kwargs, strict=False)
        return close(program.module()(*args, **kwargs)[0], first(self.wide, self.batch))

    def onnx(self) -> bool:
        """ONNX Runtime gives the same outputs."""
        import onnxruntime

        args, kwargs = as_call(self.batch)
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder, "wide.onnx"))
            model = TensorsOnly(self.wide).eval()
            torch.onnx.export(model, args, path, kwargs=kwargs, dynamo=True, verbose=False)
            session = onnxruntime.InferenceSession(path)
            names = [i.name for i in session.get_inputs()]
            values = [*args, *kwargs.values()]
            feed = {n: v.numpy() for n, v in zip(names, values, strict=True)}
            output = torch.from_numpy(session.run(None, feed)[0])
        return close(output, first(self.wide, self.batch))


class TensorsOnly(nn.Module):
    """Returns the tensors of what a model returns: caches cannot be exported."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        """Run the model."""
        return [t for t in tensors_in(self.model(*args, **kwargs)) if t.is_floating_point()]


def first(model: nn.Module, batch: Any) -> torch.Tensor:
    """Return the first output that counts."""
    with torch.no_grad():
        return answer(model, batch)


def close(a: torch.Tensor, b: torch.Tensor, rtol: float = 1e-4) -> bool:
    """Tell whether two outputs are the same but for rounding."""
    return bool(torch.allclose(a, b, rtol=rtol, atol=1e-5))


STEPS = ["found", "expanded", "count_exact", "trains", "packed", "saved_and_loaded"]
STEPS += ["compiled", "exported", "onnx"]


def probed(name: str, steps: list[str]) -> dict[str, str]:
    """Take a model through the steps; what went wrong is said in words, and ends its way."""
    torch.manual_seed(0)
    probe = Probe(name)
    probe.model.eval()
    cells: dict[str, str] = {}
    for step in steps:
        work: Callable[[], bool] = getattr(probe, step)
        try:
            cells[step] = "yes" if work() else "no"
        except fpe.FPEError:
            cells[step] = "refused"
        except Exception as error:  # anything that a step of others may do
            cells[step] = f"no ({type(error).__name__})"
            if step in ("compiled", "exported", "onnx") and not dense_can(name, step):
                cells[step] = f"nor the dense model ({type(error).__name__})"
        if cells[step] != "yes" and step in ("found", "expanded"):
            cells |= dict.fromkeys(steps[len(cells) :], "-")
            break
    return cells


def dense_can(name: str, step: str) -> bool:
    """Tell whether the model can be compiled or exported before it is expanded."""
    probe = Probe(name)
    probe.model.eval()
    try:
        return bool(getattr(probe, step)())
    except Exception:
        return False


def main() -> None:
    """Probe all, and write the table."""
    warnings.simplefilter("ignore")
    rows = []
    for name in ZOO:
        cells = probed(name, STEPS)
        if name == "Mixtral" and cells["found"] != "yes":
            cells["found"] = mixtral_reason()
        print(name, cells, flush=True)
        rows.append([name, *cells.values()])
    made = provenance()
    columns = ["model", *(step.replace("_", " ") for step in STEPS)]
    write_json(HERE / "models.json", {"columns": columns, "rows": rows, "provenance": made})
    page = PAGE.format(table="\n".join(markdown_table(columns, rows)), **made)
    write_atomically(HERE / "models.md", lambda temporary: temporary.write_text(page, encoding="utf-8"))


def mixtral_reason() -> str:
    """Return the reason for which the experts of transformers' Mixtral are left alone."""
    model, batch = ZOO["Mixtral"]()
    reasons = {s.name: s.reason for s in find_groups(model, batch).skipped}
    return f"left alone: {reasons['model.layers.0.mlp.experts']}"


PAGE = """# What can be expanded

Made by `python reproduction/pages/models.py`, with fpe {fpe} at {commit}, torch {torch}, Python {python},
on {machine}. Data: [models.json](models.json).

Each row is a tiny model of its kind, with random weights; the models are in `tests/zoo.py`. *Found*: its
groups are found and can be permuted. *Expanded*: the default layers, by 2. *Count exact*: as many non-zeros
after one and after two expansions. *Trains*: ten steps of Adam lower the loss, and no masked weight moves.
*Packed*: `fpe.pack` gives the same outputs to 1e-5, of a split for each neuron and of a shared split whose
layers and readers pay in whole columns. *Saved and loaded*: the same outputs bit for bit. *Compiled*,
*exported*, *onnx*: `torch.compile`, `torch.export` and onnxruntime give the same outputs to 1e-4; where the
dense model fails there too, the cell says so. "Mixtral" is that of transformers, whose experts are
three-dimensional parameters; "Mixtral-style experts" are modules of their own, chosen token by token while
the model runs, which no export can follow whole: its parts are followed.

{table}
"""


if __name__ == "__main__":
    main()
