"""Neurons that a layer beside theirs scales and shifts: more entries of the foreign table."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foreign import Built, foreign
from zoo import images


class Film(nn.Module):
    """A hidden layer over `x`, and a layer over a condition with several outputs for each of its neurons."""

    def __init__(self, how: Callable[..., Tensor], parts: int = 2, first: bool = False) -> None:
        super().__init__()
        self.a, self.modulate, self.head = nn.Linear(8, 6), nn.Linear(5, 6 * parts), nn.Linear(6, 3)
        self.norm, self.how, self.parts, self.first = nn.LayerNorm(6), how, parts, first

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        if self.first:
            parts = self.modulate(condition).chunk(self.parts, -1)
            return self.head(self.how(self, self.norm(self.a(x)), *parts))
        h = self.norm(self.a(x))
        return self.head(self.how(self, h, *self.modulate(F.silu(condition)).chunk(self.parts, -1)))


def film(model: nn.Module, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.gelu(h * scale + shift)


def one_and_scale(model: nn.Module, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.gelu(h * (1 + scale) + shift)


def shift_first(model: nn.Module, h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.gelu(scale.tanh() * (h + shift))


def only_scaled(model: nn.Module, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.gelu(h * scale.sigmoid())


def with_a_gate(model: nn.Module, h: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
    return gate * F.gelu(h * (1 + scale) + shift)


def with_a_norm(model: nn.Module, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.gelu(model.norm(h * scale) + shift)


def conditioned(how: Callable[..., Tensor], parts: int = 2, first: bool = False) -> Callable[[], Built]:
    return lambda: (Film(how, parts, first), (torch.randn(4, 8), torch.randn(4, 5)))


_BOTH = ("a", "modulate")
foreign("FiLM", *_BOTH)(conditioned(film))
foreign("FiLM, one and a scale", *_BOTH)(conditioned(one_and_scale))
foreign("FiLM, the shift first", *_BOTH)(conditioned(shift_first))
foreign("FiLM, a shift that is not used", *_BOTH)(conditioned(only_scaled))
foreign("FiLM, shift, scale and gate", *_BOTH)(conditioned(with_a_gate, 3))
foreign("FiLM, the condition first", *_BOTH)(conditioned(film, first=True))
foreign("FiLM, a norm between", *_BOTH)(conditioned(with_a_norm, first=True))


class Modulated(nn.Module):
    """The residual block of ADM's U-Net: a group norm's channels are scaled and shifted by a time."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 3, padding=1)
        self.modulate, self.norm2 = nn.Linear(5, 12), nn.GroupNorm(1, 6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, groups=groups)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale, shift = self.modulate(F.silu(t))[..., None, None].chunk(2, 1)
        h = self.norm2(self.conv1(F.silu(self.norm1(x)))) * (1 + scale) + shift
        return x + self.conv2(F.silu(h))


class Diffusion(nn.Module):
    """A convolution, blocks that a time modulates, a convolution."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 3, padding=1), nn.ModuleList(blocks)
        self.head = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, t)
        return self.head(x)


_BLOCKS = ("blocks.*.conv1", "blocks.*.modulate")


@foreign("scale and shift of a diffusion U-Net", *_BLOCKS)
def diffusion() -> Built:
    return Diffusion(Modulated(), Modulated()), (images(), torch.randn(2, 5))


@foreign("scale and shift before a convolution in groups", "blocks.0.conv1", "blocks.0.modulate")
def in_groups() -> Built:
    return Diffusion(Modulated(groups=2)), (images(), torch.randn(2, 5))


class SelfModulated(nn.Module):
    """Squeeze and excitation that shifts too: scale and shift are computed from the channels' means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1)
        self.reduce, self.restore = nn.Linear(6, 4), nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm(self.conv(x)))
        scale, shift = self.restore(F.silu(self.reduce(h.mean((2, 3))))).chunk(2, 1)
        return self.out(h * scale.sigmoid()[..., None, None] + shift[..., None, None])


foreign("squeeze, excitation and shift", "conv", "restore")(lambda: (SelfModulated(), images()))


class GatedTwice(nn.Module):
    """Gate and up in one layer, and another gate: the first layer has two outputs for each neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.gate, self.head = nn.Linear(8, 12), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.glu(self.both(x), -1) * self.gate(x).tanh())


foreign("halves that another layer gates", "both", "gate")(lambda: (GatedTwice(), torch.randn(4, 8)))


class GatedAndScaled(nn.Module):
    """Gate and up as two layers, and scale and shift of their product."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 3)
        self.modulate = nn.Linear(5, 12)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulate(condition).tensor_split(2, -1)
        return self.down(F.silu(self.gate(x)) * self.up(x) * scale + shift)


foreign("scale and shift of a gated MLP", "gate", "up", "modulate")(
    lambda: (GatedAndScaled(), (torch.randn(4, 8), torch.randn(4, 5)))
)
