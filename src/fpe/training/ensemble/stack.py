"""Networks of one architecture as batched tensors, and back.

Parameter k of all M networks is one tensor, (M, …), padded with zeros to the widest network. A mask of the
same shape is 1 where the entry is free, and 0 where it is masked or padding. Weights are stored as (M,
inputs, outputs), so that neither their product nor its gradient needs a transposition.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fpe.errors import ModelError
from fpe.masked import MaskedLinear
from fpe.models import DirectMLP
from fpe.training.losses import ACTIVATIONS

T = TypeVar("T")

#: Bytes that a step of one batch may touch on a CPU: more do not fit its cache, and far fewer waste calls.
CACHE = 16 * 2**20

#: Share of a GPU's free memory that a batch may take.
MEMORY_SHARE = 0.25


class Layer(NamedTuple):
    """A layer without its widths: ``nn.Linear``, ``nn.LayerNorm``, or a key of `ACTIVATIONS`."""

    kind: type[nn.Module]
    bias: bool = False
    eps: float = 0.0
    direct: bool = False  # whether its inputs are the network's, and its outputs are added


def architecture(network: nn.Module) -> tuple[Layer, ...]:
    """Return the layers of a network; networks with equal ones can be stacked. Others raise ModelError."""
    advice = "train it with fpe.training.train"
    if not isinstance(network, nn.Sequential) or len(network) == 0:
        raise ModelError(
            f"the network is a {type(network).__name__}; an ensemble takes nn.Sequential; {advice}."
        )
    layers = []
    for name, module in network.named_children():
        if type(module) in (nn.Linear, MaskedLinear):
            direct = isinstance(network, DirectMLP) and name == "direct"
            layers.append(Layer(nn.Linear, module.bias is not None, direct=direct))
        elif type(module) is nn.LayerNorm and module.weight is not None and len(module.normalized_shape) == 1:
            layers.append(Layer(nn.LayerNorm, module.bias is not None, module.eps))
        elif type(module) in ACTIVATIONS and getattr(module, "approximate", "none") == "none":
            layers.append(Layer(type(module)))
        else:
            known = ", ".join(kind.__name__ for kind in (nn.Linear, nn.LayerNorm, *ACTIVATIONS))
            raise ModelError(f"layer {name!r} is {module}; an ensemble takes {known}; {advice}.")
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    if frozen:
        raise ModelError(f"parameters {frozen} are not trained; an ensemble trains them all; {advice}.")
    return tuple(layers)


def batches(
    networks: Sequence[nn.Module], keys: Sequence[Hashable], orders: Sequence[Hashable], batch_size: int
) -> list[list[int]]:
    """Group networks into batches of similar widths that fit the cache; return their numbers.

    Networks of one batch have the same key, and widths between the same powers of two (at least 8), so that
    padding is small and few programs are compiled. Networks of equal orders see the same mini-batches, and
    share a batch as far as there is room, since one product then serves them all.
    """
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for i, (network, key) in enumerate(zip(networks, keys, strict=True)):
        widths = _widths(network)
        rounded = tuple(max(8, 2 ** (width - 1).bit_length()) for width in widths[1:-1])
        alike[key, widths[0], rounded, widths[-1]].append(i)
    return [
        part
        for group in alike.values()
        for part in _parts(group, orders, _most([networks[i] for i in group], batch_size))
    ]


def _widths(network: nn.Module) -> list[int]:
    """Return inputs, hidden widths and outputs."""
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    return [linear[0].in_features, *(m.out_features for m in linear)]


def _most(networks: Sequence[nn.Module], batch_size: int) -> int:
    """Return how many networks like these fit."""
    widest = max(networks, key=lambda network: sum(_widths(network)))
    parameter = next(widest.parameters())
    entries = batch_size * (2 * sum(_widths(widest)) + _widths(widest)[-1])
    entries += 5 * sum(p.numel() for p in widest.parameters())
    room = CACHE
    if parameter.device.type == "cuda":
        room = int(MEMORY_SHARE * torch.cuda.mem_get_info(parameter.device)[0])
    return max(1, room // (entries * parameter.element_size()))


def _parts(group: list[int], orders: Sequence[Hashable], most: int) -> list[list[int]]:
    """Cut a group into parts of at most `most` networks, each with equally many of every order."""
    together: dict[Hashable, list[int]] = defaultdict(list)
    for i in group:
        together[orders[i]].append(i)
    pieces: dict[int, list[list[int]]] = defaultdict(list)
    for same in together.values():
        for piece in _evenly(same, most):
            pieces[len(piece)].append(piece)
    return [
        [i for piece in part for i in piece]
        for size, of_size in pieces.items()
        for part in _evenly(of_size, most // size)
    ]


def _evenly(values: list[T], most: int) -> list[list[T]]:
    """Cut a list into as few parts as possible, of nearly equal size."""
    count = -(-len(values) // most)
    return [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]


class Stack:
    """A copy of the parameters of M networks of one architecture, and their masks, each (M, …)."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.layers = architecture(networks[0])
        self.parameters = pad([list(network.parameters()) for network in networks])
        self.masks = pad([_masks(network) for network in networks])

    def labels(self, y: Tensor) -> Tensor:
        """Give class numbers the type for `losses_of`: that of the weights where there is one logit."""
        outputs = [p for p in self.parameters if p.dim() == 3][-1].shape[2]
        return y.to(self.parameters[0].dtype) if outputs == 1 else y


def pad(rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Stack tensor k of every row, transposed if it is a matrix, each padded with zeros to the largest."""
    stacked = []
    for column in zip(*rows, strict=True):
        shape = [max(sizes) for sizes in zip(*(t.shape for t in column), strict=True)]
        whole = column[0].detach().new_zeros(len(column), *reversed(shape))
        for i, tensor in enumerate(column):
            cut(whole[i], tensor).copy_(tensor.detach())
        stacked.append(whole)
    return stacked


def cut(padded: Tensor, like: Tensor) -> Tensor:
    """View the part of one network's padded tensor that is no padding, in the network's own orientation."""
    return padded[tuple(slice(size) for size in reversed(like.shape))].t()


def _masks(network: nn.Module) -> list[Tensor]:
    return [
        torch.ones_like(parameter, requires_grad=False) if free is None else free
        for module in network.children()
        for name, parameter in module.named_parameters()
        for free in (module.free(name) if isinstance(module, MaskedLinear) else None,)
    ]


def forward(
    layers: Sequence[Layer],
    parameters: Sequence[Tensor],
    masks: Sequence[Tensor],
    x: Tensor,
    sharing: int = 1,
) -> Tensor:
    """Apply M networks to their inputs: (M / sharing, batch, features) to (M, batch, outputs).

    `sharing` networks in a row have the same inputs; their first layers are then one wide product.
    """
    rest, inputs = iter(zip(parameters, masks, strict=True)), x
    for place, layer in enumerate(layers):
        if layer.kind is nn.Linear:
            weight, _ = next(rest)
            bias = next(rest)[0].unsqueeze(1) if layer.bias else None
            if layer.direct:
                x = x + (_wide_product(inputs, weight, sharing) if sharing > 1 else torch.bmm(inputs, weight))
            elif weight.shape[2] == 1 and place > 0:  # a sum, which a compiler fuses with the layer before
                x = (x * weight.transpose(1, 2)).sum(dim=-1, keepdim=True)
            elif place == 0 and sharing > 1:
                x = _wide_product(x, weight, sharing)
            elif bias is None:
                x = torch.bmm(x, weight)
            else:
                x, bias = torch.baddbmm(bias, x, weight), None
            x = x if bias is None else x + bias
        elif layer.kind is nn.LayerNorm:
            (weight, real), bias = next(rest), next(rest)[0] if layer.bias else None
            x = _layer_norm(x, weight, bias, real, layer.eps)
        else:
            x = ACTIVATIONS[layer.kind](x)
    return x


def _wide_product(x: Tensor, weight: Tensor, sharing: int) -> Tensor:
    """Multiply (M / sharing, batch, inputs) by (M, inputs, outputs) to (M, batch, outputs)."""
    groups, batch, inputs = x.shape
    together = weight.view(groups, sharing, inputs, -1).transpose(1, 2).reshape(groups, inputs, -1)
    product = torch.bmm(x, together).view(groups, batch, sharing, -1)
    return product.transpose(1, 2).reshape(groups * sharing, batch, -1)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, real: Tensor, eps: float) -> Tensor:
    real = real.unsqueeze(1)
    count = real.sum(dim=-1, keepdim=True)
    centered = (x - (x * real).sum(dim=-1, keepdim=True) / count) * real
    variance = centered.square().sum(dim=-1, keepdim=True) / count
    x = centered * (variance + eps).rsqrt() * weight.unsqueeze(1)
    return x if bias is None else x + bias.unsqueeze(1)
