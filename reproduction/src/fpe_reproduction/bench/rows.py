"""What is compared: the rows of a table, each a way to compute a layer or a whole model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fpe_reproduction.bench.training import bytes_of

DENSE = "dense parent"
PACKED = "packed, shared split (blocks)"
GROUPS = "packed, shared split of 8 groups (blocks)"
WIDE = "wide with zeros (nn.Linear)"
PRUNE = "torch.nn.utils.prune (mask in forward)"
CSR = "CSR (torch.sparse)"
MASKED = "masked (fpe.expand)"
CODES = "packed, random split (codes)"
BITMASK = "packed, random split (bitmask)"
TWO_FOUR = "packed, 2:4 (fp16 tensor cores)"
ONNX_DENSE = "onnxruntime: dense parent"
ONNX_PACKED = "onnxruntime: packed, shared split"

#: The random split's form with a bit for each entry is slow; it is measured up to so many entries.
BITMASK_ENTRIES = 1 << 24
#: How far outputs may lie from the reference, of its largest: rounding, of sums of thousands of terms.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}


@dataclass
class Row:
    """A way to compute a layer or a model.

    Attributes
    ----------
    name : str
        What it is called in tables.
    call : callable
        From inputs (batch, inputs) to outputs.
    stored : int
        Bytes of its parameters and buffers, or of its file.
    useful : int
        Weights that are no zeros by a mask: what a product must at least multiply.
    expected : Tensor or None
        What `call` must make of the case's probe; None for a reference.
    slow : bool
        Whether it may take part in fewer rounds.
    """

    name: str
    call: Callable[[Tensor], Tensor]
    stored: int
    useful: int
    expected: Tensor | None = field(default=None, repr=False)
    slow: bool = True

    def problem(self, probe: Tensor) -> str | None:
        """Say why this row must not be timed, if its outputs are not what they should be."""
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


@dataclass
class Subjects:
    """All that a case measures.

    Attributes
    ----------
    rows : list of Row
        The dense parent first.
    networks : dict of str to Module
        What is trained, the dense parent first; those after it start from the same function.
    probe : Tensor
        Inputs on which rows are compared before they are timed.
    notes : dict of str to str
        What was chosen while making them, and which rows are missing, with the reason.
    """

    rows: list[Row]
    networks: dict[str, nn.Module]
    probe: Tensor
    notes: dict[str, str]


def plain_with_zeros(layer: nn.Linear) -> nn.Linear:
    """Return the plain linear layer of a masked one, around the same tensors."""
    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain


def mask_in_forward(layer: Any) -> nn.Module:
    """Return the layer that ``torch.nn.utils.prune`` makes of a masked one, with tensors of its own."""
    from torch.nn.utils import prune

    own = copy.deepcopy(plain_with_zeros(layer))
    return prune.custom_from_mask(own, "weight", layer.fpe_mask)  # type: ignore[no-untyped-call, no-any-return]


def csr_row(layer: nn.Linear, useful: int, expected: Tensor) -> Row:
    """Return a linear layer by PyTorch's sparse product: matrix by vector for one sample."""
    made = layer.weight.detach().to_sparse_csr()
    if layer.weight.device.type == "cpu":  # indices as MKL takes them, so that none are converted in a call
        indices = made.crow_indices().int(), made.col_indices().int()
        made = torch.sparse_csr_tensor(*indices, made.values(), made.shape)
    bias = layer.bias.detach()

    def call(x: Tensor) -> Tensor:
        if len(x) == 1:
            return (made @ x[0] + bias)[None]
        return (made @ x.t()).t() + bias

    stored = sum(t.nbytes for t in (made.crow_indices(), made.col_indices(), made.values(), bias))
    return Row(CSR, call, stored, useful, expected)


def module_row(
    name: str, module: nn.Module, useful: int, expected: Tensor | None = None, slow: bool = True
) -> Row:
    """Return the row of a module."""
    return Row(name, module, bytes_of(module), useful, expected, slow)
