"""What an expansion has done: dense and wide model side by side, module by module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fpe._util.modules import check_module, unwrapped
from fpe._util.terminal import braced, text_table
from fpe.errors import ArgumentError
from fpe.expansion.index_maps import groups_in
from fpe.expansion.plan import Plan, remarks
from fpe.graph import Skipped
from fpe.graph.layers import oriented_weight
from fpe.graph.stacked import StackedLinear, stacked_layers
from fpe.masked import check_masks, counted_parameters


@dataclass(frozen=True)
class Row:
    """One module, before and after the expansion."""

    name: str
    kind: str
    neurons: tuple[int, int]  # output features, 0 for what has none
    nonzero: tuple[int, int]
    stored: int
    bytes: tuple[int, int]

    @property
    def density(self) -> float:
        """Share of the wide module's entries that are free."""
        return self.nonzero[1] / self.stored


@dataclass(frozen=True)
class Summary:
    """Dense and wide model side by side; ``print`` shows it as a table."""

    rows: tuple[Row, ...]  # every module with parameters of its own
    skipped: tuple[Skipped, ...]  # the layers that were not expanded, with the reason
    notes: tuple[tuple[str, str], ...] = ()  # layers, and what was done in them otherwise than asked

    @property
    def total(self) -> Row:
        """All rows added up."""

        def add(field: str) -> tuple[int, int]:
            before, after = zip(*(getattr(row, field) for row in self.rows), strict=True)
            return sum(before), sum(after)

        stored = sum(row.stored for row in self.rows)
        return Row("total", "", add("neurons"), add("nonzero"), stored, add("bytes"))

    def __str__(self) -> str:
        head = ("layer", "kind", "neurons", "non-zeros", "density", "bytes")
        cells = []
        for row in (*self.rows, self.total):
            neurons = _change(row.neurons) if row.neurons[1] else "-"
            numbers = (_change(row.nonzero), f"{row.density:.1%}", _change(row.bytes))
            cells.append((row.name, row.kind, neurons, *numbers))
        lines = text_table(head, cells, left=2) + remarks(self.notes, self.skipped)
        lines.append(
            "bytes are in memory: weights, zeros among them, biases, buffers, masks; files have no zeros"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain dicts, lists, strings and numbers, fit for JSON."""
        rows = [{**vars(row), "density": row.density} for row in (*self.rows, self.total)]
        notes: dict[str, list[str]] = {}
        for name, note in self.notes:
            notes.setdefault(name, []).append(note)
        return {"rows": rows, "skipped": [vars(s) for s in self.skipped], "notes": notes}


def _change(pair: tuple[int, int]) -> str:
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} → {pair[1]:,}"


def summary(model: nn.Module, wide: nn.Module) -> Summary:
    """Compare a model and its expansion, layer by layer.

    Parameters
    ----------
    model, wide : nn.Module
        The dense model and what `fpe.expand` made of it. Neither is changed.

    Raises
    ------
    ArgumentError
        If the two do not have the same modules with parameters.
    ModelError
        If a masked weight is not zero; see `fpe.project_`.
    """
    check_module(model)
    check_module(wide, "wide", "a model that fpe.expand returned")
    model, wide = unwrapped(model), unwrapped(wide)
    for one in (model, wide):
        check_masks(one, "its summary")
    with stacked_layers(model, wide):
        before, after = _measure(model), _measure(wide)
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())
        raise ArgumentError(
            f"the two models do not belong together: only one of them has {', '.join(map(repr, odd[:5]))}; "
            "give a model and what fpe.expand made of it."
        )
    pairs = ("neurons", "nonzero", "bytes")
    rows = tuple(
        Row(name, now["kind"], stored=now["stored"], **{p: (before[name][p], now[p]) for p in pairs})
        for name, now in after.items()
    )
    groups = groups_in(wide)
    notes = tuple((braced(group.producers), note) for group in groups for note in group.index_map.notes)
    return Summary(rows, _skipped(wide, {name for group in groups for name in group.producers}), notes)


def _skipped(wide: nn.Module, expanded: set[str]) -> tuple[Skipped, ...]:
    reasons: dict[str, Skipped] = {}
    for name, module in wide.named_modules():
        plan = vars(module).get("fpe_plan")
        for one in plan.skipped if isinstance(plan, Plan) else ():
            full = f"{name}.{one.name}" if name else one.name
            if full not in expanded:
                reasons.setdefault(full, Skipped(full, one.reason))
    return tuple(reasons.values())


def _measure(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Measure each module that has parameters of its own; a shared one counts where it is first."""
    measured: dict[str, dict[str, Any]] = {}
    widths = ("out_features", "out_channels", "nf")  # the last is of transformers' Conv1D
    for full_name, parameter, count in counted_parameters(model):
        name = full_name.rpartition(".")[0]
        module = model.get_submodule(name)
        start = {
            "kind": type(module).__name__,
            "neurons": len(module.weight) * len(oriented_weight(module))
            if isinstance(module, StackedLinear)
            else int(next((getattr(module, width) for width in widths if hasattr(module, width)), 0)),
            "nonzero": 0,
            "stored": 0,
            "bytes": sum(buffer.nbytes for buffer in module.buffers(recurse=False)),
        }
        row = measured.setdefault(name, start)
        row["nonzero"] += count
        row["stored"] += parameter.numel()
        row["bytes"] += parameter.nbytes
    return measured
