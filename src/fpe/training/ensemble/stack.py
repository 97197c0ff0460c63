"""Networks of one architecture as batched tensors, and back.

Parameter k of all M networks is one tensor of shape (M, …), padded with zeros to the widest network. A
mask of the same shape is 1 where the entry is free and 0 where it is padding or held at zero. Weights
stand as (M, inputs, outputs), transposed, so that neither their product nor its gradient needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fpe.errors import ModelError
from fpe.masked import MaskedLinear
from fpe.training.losses import ACTIVATIONS


@dataclass(frozen=True)
class Layer:
    """One layer of an architecture, its widths left open.

    Attributes
    ----------
    kind : type
        ``nn.Linear``, ``nn.LayerNorm``, or a key of `ACTIVATIONS`.
    bias : bool
        Whether a linear layer or a norm has one.
    eps : float
        A norm's.
    """

    kind: type[nn.Module]
    bias: bool = False
    eps: float = 0.0


def architecture(network: nn.Module) -> tuple[Layer, ...]:
    """Say of which layers a network is made; networks that say the same can be stacked.

    Raises
    ------
    ModelError
        If it is no ``nn.Sequential`` of linear layers, LayerNorms and simple activations, or if a
        parameter of it is not trained.
    """
    advice = "train it with fpe.training.train, or in a loop of your own"
    if not isinstance(network, nn.Sequential) or len(network) == 0:
        raise ModelError(
            f"the network is a {type(network).__name__}; an ensemble takes nn.Sequential; {advice}."
        )
    layers = []
    for name, module in network.named_children():
        if type(module) in (nn.Linear, MaskedLinear):
            layers.append(Layer(nn.Linear, module.bias is not None))
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


@dataclass
class Stack:
    """The parameters of M networks.

    Attributes
    ----------
    layers : tuple of Layer
        Their architecture.
    parameters, masks : list of Tensor
        In the order of ``network.parameters()``, each (M, …).
    """

    layers: tuple[Layer, ...]
    parameters: list[Tensor]
    masks: list[Tensor]

    @classmethod
    def of(cls, networks: Sequence[nn.Module]) -> Stack:
        """Copy the parameters of networks of one architecture."""
        parameters = pad([list(network.parameters()) for network in networks])
        return cls(architecture(networks[0]), parameters, pad([_masks(network) for network in networks]))

    @property
    def outputs(self) -> int:
        """Logits of each network."""
        return [p for p in self.parameters if p.dim() == 3][-1].shape[2]

    def labels(self, y: Tensor) -> Tensor:
        """Give class numbers the type that `losses_of` takes: the weights' where there is one logit."""
        return y.to(self.parameters[0].dtype) if self.outputs == 1 else y


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
    """Return the view of a padded tensor that stands for a network's tensor of the shape of `like`."""
    return padded[tuple(slice(size) for size in reversed(like.shape))].t()


def _masks(network: nn.Module) -> list[Tensor]:
    masks: list[Tensor] = []
    for module in network.children():
        for name, parameter in module.named_parameters():
            if isinstance(module, MaskedLinear) and name == "weight":
                masks.append(module.fpe_mask)
            else:
                masks.append(torch.ones_like(parameter, requires_grad=False))
    return masks


def forward(
    layers: Sequence[Layer],
    parameters: Sequence[Tensor],
    masks: Sequence[Tensor],
    x: Tensor,
    readers: int = 1,
) -> Tensor:
    """Apply M networks to their inputs: (M / readers, batch, features) to (M, batch, outputs).

    So many networks in a row read the same inputs; their first layers are then one wide product.
    """
    rest = iter(zip(parameters, masks, strict=True))
    for place, layer in enumerate(layers):
        if layer.kind is nn.Linear:
            weight, _ = next(rest)
            bias = next(rest)[0].unsqueeze(1) if layer.bias else None
            if weight.shape[2] == 1 and place > 0:  # a sum, which a compiler fuses with what is before it
                x = (x * weight.transpose(1, 2)).sum(dim=-1, keepdim=True)
                x = x if bias is None else x + bias
            elif place == 0 and readers > 1:
                x = _wide_product(x, weight, readers)
                x = x if bias is None else x + bias
            elif bias is None:
                x = torch.bmm(x, weight)
            else:
                x = torch.baddbmm(bias, x, weight)
        elif layer.kind is nn.LayerNorm:
            (weight, real), bias = next(rest), next(rest)[0] if layer.bias else None
            x = _layer_norm(x, weight, bias, real, layer.eps)
        else:
            x = ACTIVATIONS[layer.kind](x)
    return x


def _wide_product(x: Tensor, weight: Tensor, readers: int) -> Tensor:
    """Multiply (M / readers, batch, inputs) by (M, inputs, outputs) to (M, batch, outputs)."""
    groups, batch, inputs = x.shape
    together = weight.view(groups, readers, inputs, -1).transpose(1, 2).reshape(groups, inputs, -1)
    product = torch.bmm(x, together).view(groups, batch, readers, -1)
    return product.transpose(1, 2).reshape(groups * readers, batch, -1)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, real: Tensor, eps: float) -> Tensor:
    """Normalise over the real neurons, those that are no padding; padding stays zero."""
    real = real.unsqueeze(1)
    count = real.sum(dim=-1, keepdim=True)
    centred = (x - (x * real).sum(dim=-1, keepdim=True) / count) * real
    variance = centred.square().sum(dim=-1, keepdim=True) / count
    x = centred * (variance + eps).rsqrt() * weight.unsqueeze(1)
    return x if bias is None else x + bias.unsqueeze(1)
