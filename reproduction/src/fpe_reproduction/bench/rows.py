"""The rows of a case: ways to compute a layer or a model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fpe.io.export import export
from fpe.packing.fused import fuse
from fpe.packing.layers import bytes_of
from fpe_reproduction.bench.cases import CSR, DENSE

#: Rounding errors allowed in sums of thousands of terms, relative to the largest output.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}


@dataclass
class Row:
    """One way to compute a layer or a model."""

    name: str
    call: Callable[[Tensor], Tensor]
    stored: int  # bytes of parameters and buffers, or of a file
    useful: int  # weights that are not masked
    expected: Tensor | None = None  # outputs for the case's probe; None for a reference
    over: str = DENSE  # the row to whose time this one's is compared

    def problem(self, probe: Tensor) -> str | None:
        """Say why this row must not be timed, if its outputs are wrong."""
        if self.expected is None:
            return None
        got = self.call(probe)
        if got.shape != self.expected.shape:
            return f"not timed: its outputs have shape {tuple(got.shape)}, not {tuple(self.expected.shape)}"
        largest = float(self.expected.abs().max())
        off = float((got - self.expected).abs().max())
        if not off <= TOLERANCE[probe.dtype] * max(largest, 1e-6):
            return f"not timed: its outputs are off by {off:.2g}, of at most {largest:.2g}"
        return None


def module_row(name: str, module: nn.Module, useful: int, expected: Tensor | None = None) -> Row:
    """Return the row of a module."""
    return Row(name, module, bytes_of(module), useful, expected)


def fused_row(name: str, packed: nn.Module, useful: int, probe: Tensor) -> Row:
    """Return the row of a packed model that is fused."""
    module = fuse(packed, example_inputs=probe)
    stored = sum(tensor.nbytes for tensor in module.parameters())  # the call's own copies are not counted
    return Row(name, module, stored, useful, packed(probe))


def compiled_row(name: str, like: Row, over: str, probe: Tensor) -> Row:
    """Compile a row's module as a whole, once for each batch size."""
    module: Any = like.call
    expected = module(probe) if like.expected is None else like.expected
    torch._dynamo.reset()  # it compiles a module's code only so many times
    torch._dynamo.config.recompile_limit = 64
    call: Any = torch.compile(module, dynamic=False, fullgraph=True)
    call(probe)  # so that what cannot be compiled is noted
    return Row(name, call, like.stored, like.useful, expected, over)


def csr_row(layer: nn.Linear, useful: int, expected: Tensor) -> Row:
    """Return a linear layer by PyTorch's sparse product: matrix by vector for one sample."""
    made = layer.weight.detach().to_sparse_csr()
    # MKL takes 32-bit indices; others would be converted in each call.
    indices = made.crow_indices().int(), made.col_indices().int()
    made = torch.sparse_csr_tensor(*indices, made.values(), made.shape)
    bias = layer.bias.detach()

    def call(x: Tensor) -> Tensor:
        if len(x) == 1:
            return (made @ x[0] + bias)[None]
        return (made @ x.t()).t() + bias

    stored = sum(t.nbytes for t in (*indices, made.values(), bias))
    return Row(CSR, call, stored, useful, expected)


def onnx_row(name: str, like: Row, over: str, probe: Tensor) -> Row:
    """Export a row's module and load it in onnxruntime."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Spinning threads would take the processor from the row that is timed next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    module: Any = like.call
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "module.onnx")
        stored = export(module, path, example_inputs=torch.zeros(2, probe.shape[1])).bytes
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0].name

    def call(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {given: x.numpy()})[0])

    expected = module(probe) if like.expected is None else like.expected
    return Row(name, call, stored, like.useful, expected, over)
