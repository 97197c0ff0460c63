"""The pattern 2:4 by the GPU's own instructions, through PyTorch's semi-structured tensors."""

from __future__ import annotations

from torch import Tensor, nn


def semi_structured(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer whose weight is stored and computed as 2:4, for inference only.

    Parameters
    ----------
    weight : Tensor
        On a GPU, float16 or bfloat16, multiples of 32 × 64; of every four entries in a row two or more are 0.
    bias : Tensor or None
        Shape (outputs,).
    """
    from torch.sparse import to_sparse_semi_structured

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta", dtype=weight.dtype)
    layer.weight = nn.Parameter(to_sparse_semi_structured(weight.detach().contiguous()), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer
