"""Models of images for ``make zoo``, written by hand, and the table of all that are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Name → a function that returns a model and a batch.
HAND: dict[str, Callable[[], tuple[nn.Module, Any]]] = {}


def hand(name: str, *shapes: tuple[int, ...]) -> Callable[[Any], Any]:
    """Register a class with the shapes of its inputs, or a function that returns a model and a batch."""

    def enter(build: Any) -> Any:
        HAND[name] = (lambda: (build(), tuple(torch.randn(shape) for shape in shapes))) if shapes else build
        return build

    return enter


def sequence(*layers: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(*layers), x


# Diffusion.


class TimedBlock(nn.Module):
    """The residual block of diffusion U-Nets: an embedding of time is added between two convolutions."""

    def __init__(self, before: int, after: int, times: int, scaled: bool = False) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(2, before), nn.Conv2d(before, after, 3, padding=1)
        if scaled:
            self.modulate = nn.Linear(times, 2 * after)
        else:
            self.time = nn.Linear(times, after)
        self.norm2 = nn.GroupNorm(1, after)
        self.conv2, self.scaled = nn.Conv2d(after, after, 3, padding=1), scaled
        self.skip = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if self.scaled:
            scale, shift = self.modulate(F.silu(t))[..., None, None].chunk(2, 1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + self.time(F.silu(t))[..., None, None])
        return self.skip(x) + self.conv2(F.silu(h))


class DiffusionUNet(nn.Module):
    """One level down and up."""

    def __init__(self, scaled: bool = False) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 12), nn.SiLU(), nn.Linear(12, 8))
        self.stem, self.down = nn.Conv2d(3, 8, 3, padding=1), TimedBlock(8, 8, 8, scaled)
        self.pool, self.middle = nn.Conv2d(8, 12, 3, 2, padding=1), TimedBlock(12, 12, 8, scaled)
        self.up = nn.ConvTranspose2d(12, 8, 2, 2)
        self.last, self.head = TimedBlock(16, 8, 8, scaled), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * torch.arange(1, 5)
        t = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        skip = self.down(self.stem(x), t)
        x = self.up(self.middle(self.pool(skip), t))
        return self.head(F.silu(self.last(torch.cat([x, skip], 1), t)))


def images(channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(2, channels, size, size)


HAND["diffusion U-Net"] = lambda: (DiffusionUNet(), (images(), torch.rand(2)))
HAND["diffusion U-Net, scale and shift"] = lambda: (DiffusionUNet(scaled=True), (images(), torch.rand(2)))


@hand("denoising MLP with time", (4, 6), (4, 4))
class DenoisingMLP(nn.Module):
    """Points and time each through a layer; both are summed before the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.x_in, self.time = nn.Linear(6, 12), nn.Linear(4, 12)
        self.hidden, self.head = nn.Linear(12, 10), nn.Linear(10, 6)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.head(F.gelu(self.hidden(F.gelu(self.x_in(x) + self.time(t)))))


# Convolutions: transposed, grouped, with norms of their own.


@hand("VAE", (2, 3, 8, 8), (2, 5))
class VAE(nn.Module):
    """Convolutions to a mean and a variance, transposed convolutions back; noise is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.Flatten()
        )
        self.mean, self.variance, self.lift = nn.Linear(48, 5), nn.Linear(48, 5), nn.Linear(5, 48)
        up = functools.partial(nn.ConvTranspose2d, kernel_size=3, stride=2, padding=1, output_padding=1)
        self.unflatten = nn.Unflatten(1, (12, 2, 2))
        self.decoder = nn.Sequential(
            up(12, 8), nn.ReLU(), up(8, 6), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(6, 3, 1),
        )  # fmt: skip

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mean, variance = self.mean(h), self.variance(h)
        z = mean + noise * (0.5 * variance).exp()
        return self.decoder(self.unflatten(F.relu(self.lift(z)))), mean, variance


HAND["DCGAN generator"] = lambda: sequence(
    nn.ConvTranspose2d(6, 12, 4), nn.BatchNorm2d(12), nn.ReLU(),
    nn.ConvTranspose2d(12, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
    nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.BatchNorm2d(6), nn.ReLU(),
    nn.ConvTranspose2d(6, 3, 4, 2, 1), nn.Tanh(), x=torch.randn(3, 6, 1, 1),
)  # fmt: skip


class FrozenBatchNorm2d(nn.Module):
    """DETR's batch norm: constants in buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        w, b, mean, var = (
            t.reshape(1, -1, 1, 1) for t in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        scale = w * (var + 1e-5).rsqrt()
        return x * scale + (b - mean * scale)


class Bottleneck(nn.Module):
    """Three convolutions and a skip around them."""

    def __init__(self, norm: Callable[[int], nn.Module], groups: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(12, 8, 1, bias=False), norm(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=False), norm(8)
        self.conv3, self.norm3 = nn.Conv2d(8, 12, 1, bias=False), norm(12)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm3(self.conv3(F.relu(self.norm2(self.conv2(h))))))


def bottlenecks(norm: Callable[[int], nn.Module], groups: int = 1) -> tuple[nn.Module, Any]:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))
    return sequence(nn.Conv2d(3, 12, 3), *(Bottleneck(norm, groups) for _ in range(2)), *head, x=images())


HAND["ResNeXt blocks"] = lambda: bottlenecks(nn.BatchNorm2d, groups=4)
HAND["bottlenecks with frozen batch norm"] = lambda: bottlenecks(FrozenBatchNorm2d)


class BasicBlock(nn.Module):
    """Two convolutions; a convolution beside them where the width changes."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after)
        self.conv2, self.norm2 = nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after)
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


@hand("SyncBatchNorm ResNet")
def synchronized() -> tuple[nn.Module, Any]:
    blocks = (BasicBlock(8, 8), BasicBlock(8, 12), BasicBlock(12, 12))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *blocks, *head)
    return nn.SyncBatchNorm.convert_sync_batchnorm(model), images()


@hand("VGG")
def vgg() -> tuple[nn.Module, Any]:
    def conv(before: int, after: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)

    body = (*conv(3, 8), *conv(8, 8), nn.MaxPool2d(2), *conv(8, 12), *conv(12, 12), nn.MaxPool2d(2))
    head = (nn.Linear(48, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3))
    return sequence(*body, nn.Flatten(), *head, x=images())


class Fire(nn.Module):
    """A squeezing convolution, and two of which the outputs are put side by side."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(before, 4, 1)
        self.one, self.three = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


@hand("SqueezeNet")
def squeezenet() -> tuple[nn.Module, Any]:
    end = (nn.Conv2d(16, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return sequence(nn.Conv2d(3, 8, 3), nn.ReLU(), Fire(8), nn.MaxPool2d(2), Fire(16), *end, x=images())


@hand("siamese network", (2, 3, 8, 8), (2, 3, 8, 8))
class Siamese(nn.Module):
    """One encoder of images for both inputs; the difference of its outputs is judged."""

    def __init__(self) -> None:
        super().__init__()
        conv = functools.partial(nn.Conv2d, kernel_size=3)
        flat = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.encoder = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 12), nn.ReLU(), *flat, nn.Linear(12, 6))
        self.joint, self.head = nn.Linear(6, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(F.relu(self.joint((self.encoder(x) - self.encoder(y)).abs())))
