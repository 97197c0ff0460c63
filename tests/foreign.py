"""Tiny models whose hidden layers are built in a way of their own, each with a batch and the layers found.

They complement the zoo: each entry stands for a family of models that people have.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import SMALL, TEXT, images, tokens

Built = tuple[nn.Module, Any]
#: Name → a function that returns a model and a batch, and the producers of all groups by default.
FOREIGN: dict[str, tuple[Callable[[], Built], list[str]]] = {}


def foreign(name: str, *producers: str) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    """Register a model with its producers; a ``*`` in a name stands for 0 and 1."""
    names = [one for number in "01" for p in producers if "*" in p for one in [p.replace("*", number)]]
    names += [p for p in producers if "*" not in p]

    def enter(build: Callable[[], Built]) -> Callable[[], Built]:
        def built() -> Built:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model, batch = build()
                for module in model.modules():
                    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
                    for tensor in own:  # entries of norms differ, so that an exchange shows
                        if tensor.is_floating_point() and tensor.dim() == 1:
                            tensor.data.add_(torch.rand_like(tensor))
                return model, batch

        FOREIGN[name] = built, names
        return built

    return enter


# Gate and up in one layer.


@foreign("Phi-3", "model.layers.*.mlp.gate_up_proj")
def phi3() -> Built:
    from transformers import Phi3Config, Phi3ForCausalLM

    config = Phi3Config(**SMALL, **TEXT, num_key_value_heads=1, max_position_embeddings=16)
    return Phi3ForCausalLM(config), {"input_ids": tokens()}


@foreign("GLM", "model.layers.*.mlp.gate_up_proj")
def glm() -> Built:
    from transformers import GlmConfig, GlmForCausalLM

    config = GlmConfig(**SMALL, **TEXT, num_key_value_heads=1, head_dim=8)
    return GlmForCausalLM(config), {"input_ids": tokens()}


@foreign("GLM-4", "model.layers.*.mlp.gate_up_proj")
def glm4() -> Built:
    from transformers import Glm4Config, Glm4ForCausalLM

    config = Glm4Config(**SMALL, **TEXT, num_key_value_heads=1, head_dim=8)
    return Glm4ForCausalLM(config), {"input_ids": tokens()}


@foreign("ModernBERT", "model.layers.*.mlp.Wi")
def modernbert() -> Built:
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    marks = {"cls_token_id": 1, "sep_token_id": 2, "max_position_embeddings": 16}
    model = ModernBertForSequenceClassification(ModernBertConfig(**SMALL, **TEXT, **marks))
    return model, {"input_ids": tokens(), "attention_mask": torch.ones(2, 7, dtype=torch.long)}


class Halves(nn.Module):
    """A gated layer whose gate and up are the halves of one layer's outputs; `gate` multiplies them."""

    def __init__(self, gate: Callable[[Tensor], Tensor], inputs: int = 8, hidden: int = 6) -> None:
        super().__init__()
        self.norm, self.both = nn.LayerNorm(inputs), nn.Linear(inputs, 2 * hidden)
        self.dropout, self.down = nn.Dropout(0.1), nn.Linear(hidden, inputs)
        self.head, self.gate = nn.Linear(inputs, 2), gate

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.down(self.dropout(self.gate(self.both(self.norm(x))))))


def chunked(h: Tensor) -> Tensor:
    a, b = h.chunk(2, dim=-1)
    return a * F.relu(b)


def sliced(h: Tensor) -> Tensor:
    half = h.shape[-1] // 2
    return F.silu(h[..., half:]) * h[..., :half]


def divided(h: Tensor) -> Tensor:
    a, b = h.split(h.shape[-1] // 2, -1)
    return b * a.sigmoid()


def in_three(h: Tensor) -> Tensor:
    a, b, c = h.tensor_split(3, -1)
    return a * b.tanh() + c


for _name, _gate in (("chunk", chunked), ("slices", sliced), ("split", divided)):
    foreign(f"halves by {_name}", "both")(lambda gate=_gate: (Halves(gate), torch.randn(4, 8)))
foreign("thirds", "both")(lambda: (Thirds(), torch.randn(4, 8)))


class Thirds(Halves):
    """Three parts: two are multiplied, one is added."""

    def __init__(self) -> None:
        super().__init__(in_three)
        self.both = nn.Linear(8, 18)


@foreign("torch.nn.GLU", "0", "5")
def glu() -> Built:
    layers = (nn.Linear(8, 12), nn.GLU(), nn.Dropout(0.1), nn.Linear(6, 8, bias=False), nn.GLU(-1))
    return nn.Sequential(*layers, nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), torch.randn(4, 8)


class GatedConvolution(nn.Module):
    """A convolution whose channels are halved, as in a gated CNN; a norm and a depthwise one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.depthwise = nn.Conv1d(4, 12, 3, padding=1), nn.Conv1d(6, 6, 3, padding=1, groups=6)
        self.norm, self.out, self.head = nn.BatchNorm1d(6), nn.Conv1d(6, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm(self.depthwise(F.glu(self.both(x), dim=1))))
        return self.head((x + self.out(h)).mean(-1))


@foreign("gated convolution", "both")
def gated_convolution() -> Built:
    return GatedConvolution(), torch.randn(3, 4, 9)


class PartlyTaken(nn.Module):
    """Both halves go on side by side, and one of them also alone, as in a C2f block."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.one, self.joint = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 5, 1), nn.Conv2d(13, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.both(x))
        a, b = h.chunk(2, 1)
        return self.joint(torch.cat([b, F.relu(self.one(b)), a], 1))


@foreign("halves side by side", "both")
def side_by_side() -> Built:
    return PartlyTaken(), images()


# Layers and norms of subclasses.


@foreign("Falcon", "transformer.h.*.mlp.dense_h_to_4h")
def falcon() -> Built:
    from transformers import FalconConfig, FalconForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "bias": True}
    return FalconForCausalLM(FalconConfig(**sizes, **TEXT)), {"input_ids": tokens()}


class BatchNormAct2d(nn.BatchNorm2d):
    """timm's: the norm, dropout and the activation in one module."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        batch = self.training or self.running_mean is None
        given = (self.running_mean, self.running_var, self.weight, self.bias, batch, 0.1, self.eps)
        return self.act(self.drop(F.batch_norm(x, *given)))


class LayerNorm2d(nn.LayerNorm):
    """timm's: over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class GroupNormAct(nn.GroupNorm):
    """timm's: a group norm and the activation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class RootMeanSquare(nn.RMSNorm):
    """In single precision, as many language models do it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), 1e-6).type_as(x)


class Plain(nn.Linear):
    """A linear layer with the parent's forward pass."""


class Times(nn.Linear):
    """A linear layer that is written as a product."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.weight.transpose(0, 1)) + self.bias


class PlainConv(nn.Conv2d):
    """A convolution with an initialization of its own."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)


class Images(nn.Module):
    """Convolutions with a norm behind each, the mean over the image, two linear layers."""

    def __init__(self, norm: Callable[[int], nn.Module], depthwise: type[nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__()
        self.conv1, self.norm1 = PlainConv(3, 6, 3), norm(6)
        self.depthwise = depthwise(6, 6, 3, padding=1, groups=6)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3), norm(8)
        self.hidden, self.head = Plain(8, 6), Times(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(self.conv2(F.gelu(self.depthwise(self.norm1(self.conv1(x))))))
        return self.head(F.gelu(self.hidden(x.mean((2, 3)))))


class Same(nn.Conv2d):
    """A convolution that pads its input itself."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, [1, 1, 1, 1])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


for _name, _norm in (
    ("BatchNormAct2d", BatchNormAct2d),
    ("LayerNorm2d", LayerNorm2d),
    ("SyncBatchNorm", nn.SyncBatchNorm),
    ("GroupNormAct", functools.partial(GroupNormAct, 1)),
):
    foreign(_name, "conv1", "hidden")(lambda norm=_norm: (Images(norm), images(size=9)))
foreign("depthwise that pads", "conv1", "hidden")(lambda: (Images(nn.BatchNorm2d, Same), images(size=9)))


@foreign("linear layers of subclasses", "0", "4")
def subclasses() -> Built:
    first = (Plain(8, 6), RootMeanSquare(6), nn.GELU(), Times(6, 8))
    return nn.Sequential(*first, Times(8, 6), nn.GELU(), Plain(6, 2)), torch.randn(4, 8)


# Modules that are called several times.


@foreign("ALBERT", "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn")
def albert() -> Built:
    from transformers import AlbertConfig, AlbertForSequenceClassification

    sizes = {"embedding_size": 8, "max_position_embeddings": 16}
    return AlbertForSequenceClassification(AlbertConfig(**SMALL, **TEXT, **sizes)), {"input_ids": tokens()}


class Block(nn.Module):
    """A norm, a gated MLP and a skip around both."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gate, self.up = nn.LayerNorm(8), nn.Linear(8, 6), nn.Linear(8, 6)
        self.inner, self.down = nn.BatchNorm1d(6), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.down(self.inner(F.silu(self.gate(h)) * self.up(h)))


@foreign("one block three times", "0.gate", "0.up")
def weight_shared() -> Built:
    block = Block()
    return nn.Sequential(block, block, nn.Tanh(), block, nn.Linear(8, 2)), torch.randn(4, 8)


class Twins(nn.Module):
    """One encoder for two inputs, whose outputs are compared and put side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(8, 6), nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)
        self.joint, self.head = nn.Linear(9, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = (self.d(F.relu(self.c(F.gelu(self.b(F.gelu(self.a(z))))))) for z in (x, y))
        return self.head(F.relu(self.joint(torch.cat([x, y, (x - y).abs()], -1))))


@foreign("twins", "a", "c", "joint")
def twins() -> Built:
    return Twins(), (torch.randn(4, 8), torch.randn(4, 8))


class Unrolled(nn.Module):
    """A cell that is called at each of three steps: a neural ODE with fixed steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 12), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + 0.3 * self.second(F.glu(self.first(x)))
        return self.head(x)


@foreign("unrolled cell", "first")
def unrolled() -> Built:
    return Unrolled(), torch.randn(4, 8)
