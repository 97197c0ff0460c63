"""From a saved file to an exported one: what the command ``fpe export`` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fpe.cli.named_models import named_model
from fpe.errors import ArgumentError
from fpe.graph.inputs import as_call, inputs_for, tensors_in
from fpe.io.batch_axes import BatchAxis
from fpe.io.checkpoint import load
from fpe.io.exporting import Export, export
from fpe.masked import MaskedLayer, counted_parameters
from fpe.models import Standardize, mlp_sizes
from fpe.packing.layers import PackedLayer
from fpe.packing.pack import pack, unpack
from fpe.packing.quantized import quantize
from fpe.packing.verify import difference, largest

#: Rows that are made up for a model of `fpe.mlp`, to tell what rounding changes.
ROWS = 1000
#: Rows of them that the model is exported with.
FEW = 2


@dataclass(frozen=True)
class Rounding:
    """What rounding to int8 changes.

    Attributes
    ----------
    difference : float
        Largest difference between an output before and after.
    largest : float
        Largest output before.
    changed : float
        Share of the rows whose predicted class, that of the largest output, changes.
    rows : int
        Rows that were compared.
    made_up : bool
        Whether these were drawn at random, rather than given.
    """

    difference: float
    largest: float
    changed: float
    rows: int
    made_up: bool

    def __str__(self) -> str:
        rows = "random rows (--like may give rows of data)" if self.made_up else "given rows"
        return (
            f"largest difference of outputs to the model before int8: {self.difference:.1e} (outputs up to "
            f"{self.largest:.1e})\n"
            f"  predicted classes that int8 changes: {self.changed:.1%} of {self.rows:,} {rows}"
        )


@dataclass(frozen=True)
class Deployed:
    """An exported file, beside the model's non-zeros: their number is the dense parent's.

    Attributes
    ----------
    written : Export
        The file, compared with the model that was exported: rounded, if it is in int8.
    nonzero, nonzero_bytes : int
        Non-zeros of the model, and their bytes before any rounding.
    rounding : Rounding or None
        What int8 changes.
    """

    written: Export
    nonzero: int
    nonzero_bytes: int
    rounding: Rounding | None = None

    def __str__(self) -> str:
        difference = self.written.difference
        checked = "not known: install onnxruntime" if difference is None else f"{difference:.1e}"
        to = "" if self.rounding is None else " to the model in int8"
        lines = [
            f"{self.written.path}  {self.written.bytes:,} bytes",
            f"  non-zeros of the dense parent: {self.nonzero:,}, of {self.nonzero_bytes:,} bytes",
            f"  {self.written.lengths}",
            f"  largest difference of outputs{to}: {checked}",
        ]
        return "\n".join(lines if self.rounding is None else [*lines, f"  {self.rounding}"])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, fit for JSON."""
        own = {"nonzero": self.nonzero, "nonzero_bytes": self.nonzero_bytes}
        rounding = None if self.rounding is None else vars(self.rounding)
        return {**vars(self.written), "path": str(self.written.path), **own, "rounding": rounding}


def export_file(
    file: Path,
    out: Path,
    like: str | None,
    packing: bool = True,
    int8: bool = False,
    batch_axis: BatchAxis = 0,
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
    batch_axis
        As for `export`.

    Raises
    ------
    ArgumentError, CheckpointError, ModelError, WriteError
        As `load`, `quantize` and `export` do; or if nothing says what the model takes.
    """
    if int8 and not packing:
        raise ArgumentError("--int8 is for packed models; leave out --no-pack.")
    dense, given = named_model(like) if like is not None else (None, None)
    model = load(file, dense).eval()
    rows = _rows(model, file) if given is None else given
    batch = rows[:FEW] if given is None and isinstance(rows, Tensor) else rows
    own = _packed(model, batch) if packing else _unpacked(model)
    pairs = [(count, parameter.element_size()) for _, parameter, count in counted_parameters(own)]
    rounded = quantize(own) if int8 else own
    written = export(rounded, out, batch, batch_axis)
    rounding = _rounding(model, rounded, rows, given is None) if int8 else None
    return Deployed(
        written, sum(free for free, _ in pairs), sum(free * size for free, size in pairs), rounding
    )


def _rows(model: nn.Module, file: Path) -> Any:
    """Make up a batch for a model that says what it takes."""
    sizes = mlp_sizes(model)
    if sizes is not None:
        dtype = next(model.parameters()).dtype
        rows = torch.randn(ROWS, sizes["inputs"], generator=torch.Generator().manual_seed(0)).to(dtype)
        scaler = model.get_submodule("scaler") if sizes.get("standardize") else None
        return rows * scaler.scale + scaler.mean if isinstance(scaler, Standardize) else rows
    made = inputs_for(model)
    if made is None:
        raise ArgumentError(
            f"nothing says what the model in {file} takes; let --like name a callable that returns a model "
            "and a batch."
        )
    return made


@torch.no_grad()
def _rounding(model: nn.Module, rounded: nn.Module, rows: Any, made_up: bool) -> Rounding:
    """Compare a model, in evaluation mode, with its form in int8."""
    args, kwargs = as_call(rows)
    wanted, own = (_first_output(each(*args, **kwargs)) for each in (model, rounded))
    before, after = _classes(wanted), _classes(own)
    changed = float((before != after).double().mean()) if before.numel() else 0.0
    return Rounding(difference(own, wanted), largest(wanted), changed, before.numel(), made_up)


def _first_output(outputs: Any) -> Tensor:
    """Return the first tensor of floating-point numbers, else of any."""
    tensors = tensors_in(outputs)
    return next((tensor for tensor in tensors if tensor.is_floating_point()), tensors[0])


def _classes(logits: Tensor) -> Tensor:
    """Return the class of the largest logit, or of the sign of a single one, row by row."""
    if logits.dim() < 2 or logits.shape[-1] == 1:
        return logits.flatten() > 0
    return logits.argmax(-1).flatten()


def _packed(model: nn.Module, batch: Any) -> nn.Module:
    is_masked = any(isinstance(module, MaskedLayer) for module in model.modules())
    return pack(model, example_inputs=batch) if is_masked else model


def _unpacked(model: nn.Module) -> nn.Module:
    return unpack(model) if any(isinstance(module, PackedLayer) for module in model.modules()) else model
