"""Tiny mixtures of experts whose weights are stacked in parameters with three axes, each with a batch."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import tokens

Built = tuple[nn.Module, Any]
#: Sizes of tiny decoders.
SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 40, "max_position_embeddings": 16, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def decoder(kind: str, **more: Any) -> Callable[[], Built]:
    """Return a function that builds a decoder of transformers."""

    def build() -> Built:
        import transformers

        config = getattr(transformers, f"{kind}Config")(**(SIZES | more))
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
        return model, {"input_ids": tokens(), "use_cache": False}

    return build


def llama4() -> Built:
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    how = {"num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 8, "attention_chunk_size": 8}
    config = Llama4TextConfig(**SIZES, **how, intermediate_size_mlp=12, interleave_moe_layer_step=1)
    return Llama4ForCausalLM(config), {"input_ids": tokens(), "use_cache": False}


_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
#: Name → how it is built.
DECODERS: dict[str, Callable[[], Built]] = {
    "Mixtral": decoder("Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "Qwen2-MoE": decoder("Qwen2Moe", **_MOE, shared_expert_intermediate_size=12),
    "Qwen3-MoE": decoder("Qwen3Moe", **_MOE, head_dim=8),
    "OLMoE": decoder("Olmoe", num_experts=4, num_experts_per_tok=2),
    "DeepSeek-V3": decoder(
        "DeepseekV3", n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=12, n_group=1,
        topk_group=1, first_k_dense_replace=1, n_shared_experts=1, q_lora_rank=8, kv_lora_rank=8,
        qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, num_key_value_heads=2,
    ),
    "GPT-OSS": decoder("GptOss", num_local_experts=4, num_experts_per_tok=2, head_dim=8),
    "GraniteMoE": decoder("GraniteMoe", num_local_experts=4, num_experts_per_tok=2),
    "Llama 4": llama4,
}  # fmt: skip


class Experts(nn.Module):
    """Experts of stacked weights behind a router; `run` is the forward pass."""

    def __init__(self, run: Callable[..., Tensor], parts: int = 1, transposed: bool = False) -> None:
        super().__init__()
        into, out = (6 * parts, 8), (8, 6)
        turn = (lambda s: s[::-1]) if transposed else (lambda s: s)
        self.w1, self.w2 = (nn.Parameter(torch.randn(3, *turn(shape)) / 3) for shape in (into, out))
        self.b1, self.b2 = nn.Parameter(torch.randn(3, 6 * parts)), nn.Parameter(torch.randn(3, 8))
        self.router, self.run = nn.Linear(8, 3), run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x, self.router(x).softmax(-1))


def loop(m: Experts, x: Tensor, weights: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for e in range(3):
        h = F.gelu(F.linear(x, m.w1[e], m.b1[e]))
        out = out + weights[:, e, None] * F.linear(h, m.w2[e], m.b2[e])
    return out


def zipped(m: Experts, x: Tensor, weights: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for w1, w2, own in zip(m.w1, m.w2.unbind(), weights.unbind(1), strict=True):
        out = out + own[:, None] * (F.relu(x @ w1.T) @ w2.t())
    return out


def products(m: Experts, x: Tensor, weights: Tensor) -> Tensor:
    h = F.silu(torch.bmm(x.expand(3, *x.shape), m.w1) + m.b1[:, None])
    return (torch.baddbmm(m.b2[:, None], h, m.w2) * weights.t()[..., None]).sum(0)


def gathered(m: Experts, x: Tensor, weights: Tensor) -> Tensor:
    best = weights.argmax(-1)
    h = torch.bmm(m.w1[best], x.unsqueeze(-1)).squeeze(-1) + m.b1[best]
    gate, up = h.chunk(2, -1)
    out = torch.matmul(m.w2[best], (F.silu(gate) * up)[..., None])[..., 0]
    return out * weights.amax(-1, keepdim=True)


def hit(m: Experts, x: Tensor, weights: Tensor) -> Tensor:
    out, best = torch.zeros_like(x), weights.argmax(-1)
    for e in best.unique():
        rows = (best == e).nonzero()[:, 0]
        h = x[rows] @ m.w1[e] + m.b1[e]
        h = h[..., ::2].tanh() * h[..., 1::2]
        out.index_add_(0, rows, h @ m.w2[e] + m.b2[e])
    return out


def model_of(run: Callable[..., Tensor], **how: Any) -> Callable[[], Built]:
    """Return a function that builds a network with experts between two layers."""

    def build() -> Built:
        experts = Experts(run, **how)
        return nn.Sequential(nn.Linear(5, 8), experts, nn.Linear(8, 3)), torch.randn(12, 5)

    return build


#: Name → how it is built; experts as people write them.
WRITTEN = {
    "loop over all": model_of(loop),
    "zip of all": model_of(zipped),
    "batched products": model_of(products, transposed=True),
    "gathered by token": model_of(gathered, parts=2),
    "loop over those hit": model_of(hit, parts=2, transposed=True),
}
