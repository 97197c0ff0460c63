"""Tiny models of every usual kind, each with one batch, for tests and the table in the docs."""

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

import fpe
from untouched import untouched

#: Name → a function that returns a model and one batch, the same each time.
ZOO: dict[str, Callable[[], tuple[nn.Module, Any]]] = {}


def zoo(name: str) -> Callable[[Callable[[], tuple[nn.Module, Any]]], Callable[[], tuple[nn.Module, Any]]]:
    """Register a model in the zoo."""

    def enter(build: Callable[[], tuple[nn.Module, Any]]) -> Callable[[], tuple[nn.Module, Any]]:
        def built() -> tuple[nn.Module, Any]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model, batch = build()
                for module in model.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm):
                        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                            if tensor.is_floating_point():
                                tensor.data.add_(torch.rand_like(tensor))
                return model, batch

        ZOO[name] = built
        return built

    return enter


@functools.cache
def expanded(name: str) -> tuple[nn.Module, Any, nn.Module]:
    """Return a model with its batch and its expansion by 2, made once; tests must not change it."""
    model, batch = ZOO[name]()
    with untouched(model, batch):
        wide = fpe.expand(model, 2, example_inputs=batch, seed=3)
    return model, batch, wide


def images(channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(2, channels, size, size)


@zoo("MLP")
def mlp():
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(4, 8)


@zoo("MLP-LayerNorm")
def mlp_layer_norm():
    hidden = (nn.Linear(8, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 6), nn.LayerNorm(6), nn.GELU())
    return nn.Sequential(*hidden, nn.Linear(6, 3)), torch.randn(4, 8)


@zoo("CNN-BatchNorm-Flatten")
def cnn():
    body = (nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))
    head = (nn.Flatten(), nn.Linear(8 * 4, 10), nn.ReLU(), nn.Linear(10, 3))
    middle = (nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    return nn.Sequential(*body, *middle, *head), images()


class ResidualBlock(nn.Module):
    """conv, norm, ReLU, conv, norm; a skip around it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(x + self.norm2(self.conv2(h)))


class Pooled(nn.Module):
    """A stem, a body, the mean over the image, a head."""

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, channels, 3, padding=1), body
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(F.relu(self.stem(x))).mean((-1, -2)))


@zoo("ResNet block")
def resnet():
    return Pooled(nn.Sequential(ResidualBlock(6), ResidualBlock(6)), 6), images()


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, then an MLP over channels that stand last, scaled, with a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.grow, self.shrink = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        h = self.scale * self.shrink(F.gelu(self.grow(h)))
        return x + h.permute(0, 3, 1, 2)


@zoo("ConvNeXt-style block")
def convnext():
    return Pooled(nn.Sequential(ConvNeXtBlock(6), ConvNeXtBlock(6)), 6), images()


def twice_convolved(before: int, after: int) -> nn.Sequential:
    layers = (nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())
    return nn.Sequential(*layers, nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())


class UNet(nn.Module):
    """One level down and up; the skip connection concatenates both."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom = twice_convolved(3, 6), twice_convolved(6, 8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.merge, self.head = twice_convolved(12, 6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        back = self.up(self.bottom(F.max_pool2d(skip, 2)))
        return self.head(self.merge(torch.cat([back, skip], dim=1)))


@zoo("U-Net-like skip")
def unet():
    return UNet(), images()


#: Sizes that all tiny transformers have in common.
SMALL = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}
TEXT = {"vocab_size": 30, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tokens(rows: int = 2, length: int = 7) -> Tensor:
    return torch.randint(3, 30, (rows, length))


@zoo("GPT-2")
def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=16, **TEXT)
    return GPT2LMHeadModel(config), {"input_ids": tokens()}


@zoo("BERT")
def bert():
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(BertConfig(**SMALL, **TEXT, max_position_embeddings=16))
    return model, {"input_ids": tokens(), "attention_mask": torch.ones(2, 7, dtype=torch.long)}


@zoo("LLaMA")
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SMALL, **TEXT, num_key_value_heads=1, max_position_embeddings=16)
    return LlamaForCausalLM(config), {"input_ids": tokens()}


@zoo("ViT")
def vit():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(**SMALL, image_size=8, patch_size=4, num_labels=3)
    return ViTForImageClassification(config), {"pixel_values": images()}


@zoo("CLIP")
def clip():
    from transformers import CLIPConfig, CLIPModel

    text = {**SMALL, **TEXT, "max_position_embeddings": 16}
    vision = {**SMALL, "image_size": 8, "patch_size": 4}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    return model, {"input_ids": tokens(), "pixel_values": images()}


@zoo("T5")
def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(**sizes, vocab_size=30, decoder_start_token_id=0))
    return model, {"input_ids": tokens(), "decoder_input_ids": tokens(2, 5)}


@zoo("Mixtral")
def mixtral():
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(**SMALL, **TEXT, num_key_value_heads=1, num_local_experts=3)
    return MixtralForCausalLM(config), {"input_ids": tokens()}


class Expert(nn.Module):
    """A gated MLP."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Experts(nn.Module):
    """Each token is sent to one of several experts, chosen while the model runs."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 3)
        self.experts = nn.ModuleList([Expert(8, 12) for _ in range(3)])
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights, best = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mine = (best == number).nonzero().flatten()
            if len(mine) > 0:
                out = out.index_add(0, mine, expert(x[mine]) * weights[mine, None])
        return self.head(x + out)


@zoo("Mixtral-style experts")
def experts():
    return Experts(), torch.randn(32, 8)


class Recurrent(nn.Module):
    """An LSTM whose last state goes through a small MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8, batch_first=True)
        self.hidden, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.lstm(x)[0][:, -1])))


@zoo("LSTM head")
def lstm():
    return Recurrent(), torch.randn(4, 6, 5)


def answer(model: nn.Module, batch: Any) -> Tensor:
    """Run a model on a batch as `example_inputs` gives it; return its first floating-point output."""
    from fpe.graph.inputs import as_call, tensors_in

    args, kwargs = as_call(batch)
    return next(t for t in tensors_in(model(*args, **kwargs)) if t.is_floating_point())
