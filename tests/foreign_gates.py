"""Channels that are gated by what is computed from their own means: more entries of the foreign table."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foreign import Built, foreign
from zoo import images


class Squeeze(nn.Module):
    """Squeeze and excitation, with convolutions or linear layers."""

    def __init__(self, channels: int, linear: bool = False, gate: Callable[[Tensor], Tensor] = torch.sigmoid):
        super().__init__()
        kind = nn.Linear if linear else functools.partial(nn.Conv2d, kernel_size=1)
        self.reduce, self.restore = kind(channels, channels // 2), kind(channels // 2, channels)
        self.linear, self.gate = linear, gate

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3)) if self.linear else F.adaptive_avg_pool2d(x, 1)
        gates = self.gate(self.restore(F.silu(self.reduce(pooled))))
        return x * (gates[..., None, None] if self.linear else gates)


class Attended(Squeeze):
    """The gates of the mean and of the largest value, by the same two layers, summed: CBAM's channels."""

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
        gates = [self.restore(F.silu(self.reduce(value))) for value in pooled]
        return x * self.gate(gates[0] + gates[1])


class Inverted(nn.Module):
    """The block of EfficientNet and MobileNetV3: wider, depthwise, gated, narrower."""

    def __init__(self, channels: int, squeeze: nn.Module, wide: int = 16) -> None:
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.norm2, self.squeeze = nn.BatchNorm2d(wide), squeeze
        self.project, self.norm3 = nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm2(self.depthwise(F.silu(self.norm1(self.expand(x))))))
        return x + self.norm3(self.project(self.squeeze(h)))


class SqueezedBasic(nn.Module):
    """Two convolutions of which the first is gated, and a skip around both."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(24, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.squeeze, self.conv2 = Squeeze(6), nn.Conv2d(6, 24, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.squeeze(F.relu(self.norm1(self.conv1(x)))))


class Bilinear(nn.Module):
    """Two layers over different inputs that meet in a product."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 6), nn.Linear(5, 6, bias=False), nn.Linear(6, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(F.gelu(self.a(x)) * self.b(y))


def classified(*blocks: nn.Module) -> Built:
    """Return a stem, blocks, the mean over the image, and a head."""
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 3))
    return nn.Sequential(nn.Conv2d(3, 24, 3), *blocks, *head), images()


_EXPANDED = ("1.expand", "1.squeeze.restore")
_second = ("2.expand", "2.squeeze.restore")
foreign("EfficientNet blocks", *_EXPANDED, *_second)(
    lambda: classified(Inverted(24, Squeeze(16)), Inverted(24, Squeeze(16)))
)
foreign("MobileNetV3 block", *_EXPANDED)(lambda: classified(Inverted(24, Squeeze(16, gate=F.hardsigmoid))))
foreign("gates of linear layers", *_EXPANDED)(lambda: classified(Inverted(24, Squeeze(16, linear=True))))
foreign("gates of two poolings", *_EXPANDED)(lambda: classified(Inverted(24, Attended(16))))
foreign("SE-ResNet block", "1.conv1", "1.squeeze.restore")(lambda: classified(SqueezedBasic()))
foreign("product of two inputs", "a", "b")(lambda: (Bilinear(), (torch.randn(4, 8), torch.randn(4, 5))))
