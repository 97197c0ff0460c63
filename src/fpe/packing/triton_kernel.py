"""One Triton kernel for blocks: it picks inputs, multiplies, adds the bias, and applies an activation."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Inputs and neurons of a tile.
INPUTS, NEURONS = 32, 64
#: Least and most samples of a tile; tensor cores multiply at least 16.
FEWEST, MOST = 16, 64


@triton.jit  # type: ignore[untyped-decorator]
def _block_products(  # type: ignore[no-untyped-def]
    x,
    weight,
    columns,
    bias,
    y,
    samples,
    inputs,
    neurons,
    width,
    outputs,
    PICK: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    ACTIVATION: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """Compute a tile of M samples and N neurons of a block; sums are float32, offsets 64 bits."""
    job = tl.program_id(0)
    across = (neurons + N - 1) // N
    each = across * ((samples + M - 1) // M)
    block, tile = (job // each).to(tl.int64), job % each
    row = (tile // across).to(tl.int64) * M + tl.arange(0, M)
    neuron = (tile % across).to(tl.int64) * N + tl.arange(0, N)
    rows, own = row < samples, neuron < neurons
    sums = tl.full((M, N), 0.0, tl.float32)
    for first in range(0, inputs, K):
        place = first + tl.arange(0, K)
        inside = place < inputs
        stored = block * inputs + place
        column = tl.load(columns + stored, mask=inside, other=0).to(tl.int64) if PICK else place
        part = tl.load(
            x + row[:, None] * width + column[None, :], mask=rows[:, None] & inside[None, :], other=0.0
        )
        weights = tl.load(
            weight + stored[:, None] * neurons + neuron[None, :],
            mask=inside[:, None] & own[None, :],
            other=0.0,
        )
        sums = tl.dot(part, weights, sums, input_precision="ieee")  # as PyTorch's default, not TF32
    place = block * neurons + neuron
    if BIAS:
        sums += tl.load(bias + place, mask=own, other=0.0).to(tl.float32)[None, :]
    target = y + row[:, None] * outputs + place[None, :]
    mask = rows[:, None] & own[None, :]
    if ADD:
        sums += tl.load(target, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION == "relu":
        sums = tl.where(sums < 0, 0.0, sums)  # keeps NaN
    elif ACTIVATION == "silu":
        sums = sums / (1 + tl.exp(-sums))
    elif ACTIVATION == "gelu":
        sums = 0.5 * sums * (1 + tl.erf(sums * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":  # (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u))
        sums = sums / (1 + tl.exp(-1.5957691216057308 * (sums + 0.044715 * sums * sums * sums)))
    tl.store(target, sums.to(y.dtype.element_ty), mask=mask)


def block_products_(
    y: Tensor,
    x: Tensor,
    weight: Tensor,
    columns: Tensor | None,
    bias: Tensor | None,
    *,
    add: bool = False,
    activation: str = "",
) -> None:
    """Multiply samples by equal blocks, and write the outputs.

    Parameters
    ----------
    y : Tensor of shape (samples, blocks × neurons)
        Written. Its rows may be apart; their entries are adjacent, as those of `x`.
    x : Tensor of shape (samples, inputs of the layer)
        float16, bfloat16 or float32, as all others but `columns`; on one GPU with them.
    weight : Tensor of shape (blocks, inputs, neurons)
        Contiguous.
    columns : Tensor of shape (blocks × inputs,), optional
        Contiguous integers: the inputs of each block. Without them, there is one block of all inputs.
    bias : Tensor of shape (blocks × neurons,), optional
        Contiguous.
    add : bool
        Whether products are added to what is in `y` too.
    activation : str
        ``"relu"``, ``"silu"``, ``"gelu"``, ``"gelu_tanh"``, or empty for none.
    """
    samples, (blocks, inputs, neurons) = len(x), weight.shape
    if not y.numel():
        return
    most = max(FEWEST, min(MOST, triton.next_power_of_2(samples)))
    grid = (blocks * triton.cdiv(neurons, NEURONS) * triton.cdiv(samples, most),)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]  # where Triton starts kernels
        _block_products[grid](
            x,
            weight,
            columns,
            bias,
            y,
            samples,
            inputs,
            neurons,
            x.stride(0),
            y.stride(0),
            PICK=columns is not None,
            BIAS=bias is not None,
            ADD=add,
            ACTIVATION=activation,
            M=most,
            N=NEURONS,
            K=INPUTS,
        )
