"""What packing has done: layer by layer the format, the bytes and the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fpe.expansion.plan import text_table


@dataclass(frozen=True)
class PackingRow:
    """One packed layer.

    Attributes
    ----------
    name, format, why : str
        Which, how, and for what reason.
    neurons, inputs : int
        Its size.
    nonzero : int
        Its non-zero weights and biases.
    bytes : tuple of int
        Of non-zeros alone, of the masked layer with zeros and mask, and of the packed layer.
    """

    name: str
    format: str
    neurons: int
    inputs: int
    nonzero: int
    bytes: tuple[int, int, int]
    why: str


@dataclass(frozen=True)
class Packing:
    """What `fpe.pack` has done; ``print`` shows it as a table.

    Attributes
    ----------
    rows : tuple of PackingRow
        Each layer that was masked.
    """

    rows: tuple[PackingRow, ...]

    @property
    def bytes(self) -> tuple[int, int, int]:
        """Sums over the layers: of non-zeros alone, masked, packed."""
        return tuple(sum(row.bytes[i] for row in self.rows) for i in range(3))  # type: ignore[return-value]

    def __str__(self) -> str:
        head = ("layer", "format", "why", "neurons", "inputs", "non-zeros", "their bytes", "masked", "packed")
        rows = [
            (
                row.name,
                row.format,
                row.why,
                *(f"{n:,}" for n in (row.neurons, row.inputs, row.nonzero, *row.bytes)),
            )
            for row in self.rows
        ]
        nonzero = sum(row.nonzero for row in self.rows)
        total = ("total", "", "", "", "", *(f"{n:,}" for n in (nonzero, *self.bytes)))
        return "\n".join(text_table(head, [*rows, total], left=3))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, fit for JSON."""
        return {"rows": [dict(vars(row)) for row in self.rows], "bytes": list(self.bytes)}

    @staticmethod
    def from_dict(record: dict[str, Any]) -> Packing:
        """Make the packing again from what `to_dict` returned, or from its JSON."""
        return Packing(tuple(PackingRow(**{**row, "bytes": tuple(row["bytes"])}) for row in record["rows"]))


def packed_names(model: nn.Module) -> set[str]:
    """Return the names of the layers that packing has replaced, in a model or in its parts."""
    found: set[str] = set()
    for name, module in model.named_modules():
        packing = vars(module).get("fpe_packing")
        if isinstance(packing, Packing):
            found.update(f"{name}.{row.name}" if name else row.name for row in packing.rows)
    return found
