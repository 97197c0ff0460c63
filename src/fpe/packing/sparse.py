"""The sparse format: the free weights of each neuron and the numbers of their inputs, for any mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fpe.expansion.steps import Weights
from fpe.packing.kernel import SHORT, operator, sparse_product, supported
from fpe.packing.layers import PackedLayer, Shape, described, empty_bias, empty_buffer


class SparseLayer(PackedLayer):
    """A linear layer of values and the inputs that they belong to, neuron by neuron.

    Without gradients, in float32 on a CPU, products take the time of the non-zeros. Otherwise the weight is
    made anew in each call.
    """

    format = "sparse"

    #: Shape (non-zeros,).
    values: nn.Parameter
    #: Buffer: the input of each value, int16 or int32.
    columns: Tensor
    #: Buffer: the place of the first value of each neuron, and the number of all, int32.
    starts: Tensor

    def __init__(
        self, shape: Shape, values: Tensor, columns: Tensor, starts: Tensor, bias: Tensor | None
    ) -> None:
        super().__init__(shape, bias)
        self.values = nn.Parameter(values)
        self.register_buffer("columns", columns)
        self.register_buffer("starts", starts)

    @classmethod
    def of(cls, shape: Shape, weights: Weights) -> SparseLayer:
        """Take the free weights out of a masked layer's tensors."""
        free = weights.mask != 0
        counts = free.sum(1)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
        columns = free.nonzero()[:, 1].to(torch.int16 if shape.inputs <= SHORT else torch.int32)
        return cls(shape, weights.weight[free], columns, starts, weights.bias)

    @classmethod
    def from_config(cls, config: dict[str, Any], like: Tensor) -> SparseLayer:  # noqa: D102
        shape = Shape.from_dict(config["shape"])
        columns, starts = (empty_buffer(config[name], like) for name in ("columns", "starts"))
        return cls(shape, like.new_empty(len(columns)), columns, starts, empty_bias(config, like))

    def config(self) -> dict[str, Any]:
        """Add type and shape of the places."""
        return {**super().config(), "columns": described(self.columns), "starts": described(self.starts)}

    def free(self, name: str) -> Tensor | None:
        """Return None: only free weights are stored."""
        return None

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        starts, columns = self.starts.long(), self.columns
        inside = not len(columns) or bool(columns.min() >= 0 and columns.max() < self.shape.inputs)
        ends = (int(starts[0]), int(starts[-1])) == (0, len(self.values))
        if not (inside and ends and bool((starts.diff() >= 0).all())):  # C would read beyond the arrays
            errors: list[str] = rest[-1]
            errors.append(f"{prefix}columns or {prefix}starts are not places in this layer.")

    @property
    def weight(self) -> Tensor:
        """The layer's weight, made anew each time."""
        return self._spread(self.values)

    def _spread(self, values: Tensor) -> Tensor:
        """Put values at their places in a weight of zeros."""
        rows = torch.arange(self.shape.outputs, device=values.device)
        places = torch.repeat_interleave(rows, self.starts.diff(), output_size=len(values))
        places = places * self.shape.inputs + self.columns
        flat = values.new_zeros(self.shape.outputs * self.shape.inputs)
        return flat.scatter(0, places, values).view(self.shape.weight)

    @torch.no_grad()
    def to_masked(self) -> Weights:
        """Return the tensors of the masked layer."""
        bias = None if self.bias is None else self.bias.detach()
        return Weights(self.weight, bias, self._spread(torch.ones_like(self.values)))

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer."""
        if not supported(input, self.values, self.in_features):
            return self.apply_weight(input, self.weight, self.bias)
        x = input.reshape(-1, self.in_features)
        product = operator if torch.compiler.is_compiling() else sparse_product
        y = product(x, self.values, self.columns, self.starts, self.bias)
        return y.view(*input.shape[:-1], self.out_features)
