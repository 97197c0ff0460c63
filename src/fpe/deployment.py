"""From a saved file to an exported one: what the command ``fpe export`` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fpe.budget import counted_parameters
from fpe.checkpoint import load
from fpe.errors import ArgumentError
from fpe.exporting import Export, export
from fpe.graph.inputs import inputs_for
from fpe.masked import MaskedLayer
from fpe.models import mlp_sizes
from fpe.named_models import named_model
from fpe.packed.layers import PackedLayer
from fpe.packed.pack import pack, unpack
from fpe.packed.quantised import quantise


@dataclass(frozen=True)
class Deployed:
    """An exported file, beside the model's non-zeros: their number is the dense parent's."""

    written: Export
    nonzero: int
    nonzero_bytes: int

    def __str__(self) -> str:
        difference = self.written.difference
        checked = "not known: install onnxruntime" if difference is None else f"{difference:.1e}"
        return (
            f"{self.written.path}  {self.written.bytes:,} bytes\n"
            f"  non-zeros of the dense parent: {self.nonzero:,}, of {self.nonzero_bytes:,} bytes\n"
            f"  largest difference of outputs: {checked}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, fit for JSON."""
        own = {"nonzero": self.nonzero, "nonzero_bytes": self.nonzero_bytes}
        return {**vars(self.written), "path": str(self.written.path), **own}


def export_file(
    file: Path, out: Path, like: str | None, packing: bool = True, int8: bool = False
) -> Deployed:
    """Export the model that a file of `fpe.save` holds.

    Parameters
    ----------
    file, out : Path
        What `fpe.save` wrote; what is to be written, ``.onnx`` or ``.pt2``.
    like : str or None
        Names the dense architecture, and a batch; see `named_model`. None if the file says it.
    packing : bool, default True
        Leave zeros out; False keeps, or restores, them.
    int8 : bool, default False
        Quantise the linear layers; needs `packing`.

    Raises
    ------
    ArgumentError, CheckpointError, ModelError, WriteError
        As `load`, `quantise` and `export` do; or if nothing says what the model takes.
    """
    if int8 and not packing:
        raise ArgumentError("--int8 is for packed models; leave out --no-pack.")
    dense, batch = named_model(like) if like is not None else (None, None)
    model = load(file, dense)
    batch = _batch(model, file) if batch is None else batch
    model = _packed(model) if packing else _unpacked(model)
    pairs = [(count, parameter.element_size()) for _, parameter, count in counted_parameters(model)]
    written = export(quantise(model) if int8 else model, out, batch)
    return Deployed(written, sum(free for free, _ in pairs), sum(free * size for free, size in pairs))


def _batch(model: nn.Module, file: Path) -> Any:
    """Make up a batch for a model that says what it takes."""
    sizes = mlp_sizes(model)
    if sizes is not None:
        dtype = next(model.parameters()).dtype
        return torch.randn(2, sizes["inputs"], generator=torch.Generator().manual_seed(0)).to(dtype)
    made = inputs_for(model)
    if made is None:
        raise ArgumentError(
            f"nothing says what the model in {file} takes; let --like name a callable that returns a model "
            "and a batch."
        )
    return made


def _packed(model: nn.Module) -> nn.Module:
    return pack(model) if any(isinstance(module, MaskedLayer) for module in model.modules()) else model


def _unpacked(model: nn.Module) -> nn.Module:
    return unpack(model) if any(isinstance(module, PackedLayer) for module in model.modules()) else model
