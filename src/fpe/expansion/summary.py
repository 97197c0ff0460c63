"""What an expansion has done: dense and wide side by side, module by module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fpe._util.modules import unwrapped
from fpe.errors import ArgumentError
from fpe.expansion.plan import LayerPlan, noted_lines, plans_in, skipped_lines, text_table
from fpe.graph import Skipped
from fpe.masked import check_masks, counted_parameters


@dataclass(frozen=True)
class Row:
    """One module, before and after; `neurons` are its output features, 0 for what has none."""

    name: str
    kind: str
    neurons: tuple[int, int]
    nonzero: tuple[int, int]
    stored: int
    bytes: tuple[int, int]

    @property
    def density(self) -> float:
        """Share of the wide module's entries that are free."""
        return self.nonzero[1] / self.stored


@dataclass(frozen=True)
class Summary:
    """Dense and wide model side by side; ``print`` shows it as a table.

    Attributes
    ----------
    rows : tuple of Row
        Every module with parameters of its own.
    skipped : tuple of Skipped
        The layers that were left alone, with the reason.
    expanded : tuple of LayerPlan
        What was done to the others, with notes on what was done otherwise than asked.
    """

    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    expanded: tuple[LayerPlan, ...] = ()

    @property
    def total(self) -> Row:
        """All rows added up."""

        def add(field: str) -> tuple[int, int]:
            pairs = [getattr(row, field) for row in self.rows]
            return sum(p[0] for p in pairs), sum(p[1] for p in pairs)

        stored = sum(row.stored for row in self.rows)
        return Row("total", "", add("neurons"), add("nonzero"), stored, add("bytes"))

    def __str__(self) -> str:
        head = ("layer", "kind", "neurons", "non-zeros", "density", "bytes")

        def cells(row: Row) -> tuple[str, ...]:
            return (
                row.name,
                row.kind,
                _change(row.neurons) if row.neurons[1] else "-",
                _change(row.nonzero),
                f"{row.density:.1%}",
                _change(row.bytes),
            )

        lines = text_table(head, [cells(row) for row in (*self.rows, self.total)], left=2)
        lines += noted_lines(self.expanded)
        if self.skipped:
            lines += ["left alone:", *skipped_lines(self.skipped)]
        lines.append("bytes are of the tensors in memory: weights, zeros among them, biases, buffers, masks")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain dicts, lists, strings and numbers, fit for JSON."""
        rows = [{**vars(row), "density": row.density} for row in (*self.rows, self.total)]
        notes = {layer.group.name: list(layer.notes) for layer in self.expanded if layer.notes}
        return {"rows": rows, "skipped": [vars(s) for s in self.skipped], "notes": notes}


def _neurons(module: nn.Module) -> int:
    """Return a layer's output features or channels."""
    names = ("out_features", "out_channels", "nf")  # the last is of transformers' Conv1D
    return int(next((getattr(module, name) for name in names if hasattr(module, name)), 0))


def _change(pair: tuple[int, int]) -> str:
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} → {pair[1]:,}"


def summary(model: nn.Module, wide: nn.Module) -> Summary:
    """Compare a model and its expansion, layer by layer.

    Parameters
    ----------
    model, wide : nn.Module
        The dense model and what `fpe.expand` made of it. Neither is changed.

    Returns
    -------
    Summary
        Neurons, non-zeros, density and bytes of each module; totals; what was skipped. Printable.

    Raises
    ------
    ArgumentError
        If the two do not have the same modules with parameters.
    ModelError
        If a weight is not zero where its mask is; see `fpe.project_`.
    """
    model, wide = unwrapped(model), unwrapped(wide)
    for one in (model, wide):
        check_masks(one, "its summary")
    before, after = _measure(model), _measure(wide)
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())
        raise ArgumentError(
            f"the two models do not belong together: only one of them has {', '.join(map(repr, odd[:5]))}; "
            "give a model and what fpe.expand made of it."
        )
    rows = tuple(
        Row(
            name=name,
            kind=after[name]["kind"],
            neurons=(before[name]["neurons"], after[name]["neurons"]),
            nonzero=(before[name]["nonzero"], after[name]["nonzero"]),
            stored=after[name]["stored"],
            bytes=(before[name]["bytes"], after[name]["bytes"]),
        )
        for name in before
    )
    expanded = tuple(layer for plan in plans_in(wide) for layer in plan.layers)
    return Summary(rows, _skipped(wide), expanded)


def _skipped(wide: nn.Module) -> tuple[Skipped, ...]:
    """Return the layers that none of a model's plans has expanded, each with the first reason given."""
    plans = plans_in(wide)
    expanded = {name for plan in plans for layer in plan.layers for name in layer.group.producers}
    reasons: dict[str, Skipped] = {}
    for one in (one for plan in plans for one in plan.skipped if one.name not in expanded):
        reasons.setdefault(one.name, one)
    return tuple(reasons.values())


def _measure(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Measure each module that holds parameters of its own; a shared one counts where it is first."""
    measured: dict[str, dict[str, Any]] = {}
    for full_name, parameter, count in counted_parameters(model):
        name = full_name.rpartition(".")[0]
        module = model.get_submodule(name)
        if name not in measured:
            measured[name] = {
                "kind": type(module).__name__,
                "neurons": _neurons(module),
                "nonzero": 0,
                "stored": 0,
                "bytes": sum(buffer.nbytes for buffer in module.buffers(recurse=False)),
            }
        measured[name]["nonzero"] += count
        measured[name]["stored"] += parameter.numel()
        measured[name]["bytes"] += parameter.nbytes
    return measured
