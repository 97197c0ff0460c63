"""The summary of a packed model: format, bytes and reason, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from fpe._util.terminal import text_table


@dataclass(frozen=True)
class PackingRow:
    """One packed layer: its format, the reason for it, and its sizes.

    `nonzero` counts weights and biases. `bytes`, in memory, are those of the non-zeros alone, of the masked
    layer with zeros and mask, and of the packed layer; files have no zeros.
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
    """What `fpe.pack` did with each masked layer, as `rows`; ``print`` shows it as a table."""

    rows: tuple[PackingRow, ...]

    @property
    def bytes(self) -> tuple[int, int, int]:
        """Sums over the layers: of the non-zeros alone, masked, packed."""
        return cast("tuple[int, int, int]", tuple(sum(row.bytes[i] for row in self.rows) for i in range(3)))

    def __str__(self) -> str:
        head = ("layer", "format", "why", "neurons", "inputs", "non-zeros", "their bytes", "masked", "packed")
        rows = [
            (r.name, r.format, r.why, *(f"{n:,}" for n in (r.neurons, r.inputs, r.nonzero, *r.bytes)))
            for r in self.rows
        ]
        sums = (sum(row.nonzero for row in self.rows), *self.bytes)
        total = ("total", "", "", "", "", *(f"{n:,}" for n in sums))
        return "\n".join(text_table(head, [*rows, total], left=3))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, fit for JSON."""
        return {"rows": [dict(vars(row)) for row in self.rows], "bytes": list(self.bytes)}

    @staticmethod
    def from_dict(record: dict[str, Any]) -> Packing:
        """Return the packing that `to_dict` described."""
        return Packing(tuple(PackingRow(**{**row, "bytes": tuple(row["bytes"])}) for row in record["rows"]))


def packed_names(model: nn.Module) -> set[str]:
    """Return the names of the layers that packing replaced in a model or in its parts."""
    packings = {name: vars(module).get("fpe_packing") for name, module in model.named_modules()}
    return {
        f"{name}.{row.name}" if name else row.name
        for name, packing in packings.items()
        if isinstance(packing, Packing)
        for row in packing.rows
    }
