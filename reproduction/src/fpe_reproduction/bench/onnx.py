"""The same modules in onnxruntime, with a batch of any size."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from fpe.io.exporting import export
from fpe_reproduction.bench.rows import Row


def is_installed() -> bool:
    """Tell whether what exports and what runs is there."""
    return all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxscript", "onnxruntime"))


def onnx_row(
    name: str, module: nn.Module, inputs: int, useful: int, expected: Tensor | None, threads: int
) -> Row:
    """Export a module as users do, and load it in onnxruntime.

    Waiting threads sleep instead of spinning, for they would take the processor from the row that is timed
    next.
    """
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "module.onnx")
        stored = export(module, path, torch.zeros(2, inputs)).bytes
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0].name

    def call(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {given: x.numpy()})[0])

    return Row(name, call, stored, useful, expected, slow=False)
