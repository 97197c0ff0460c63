"""The models of ``make zoo``: how each is built, and which of its layers are hidden ones.

Hidden layers are named here by hand, per architecture, and never by what fpe finds: the first layers of MLPs,
the inner convolutions of blocks, the gates that multiply them. Channels of residual sums are no hidden layer,
nor are the projections of attention.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

#: Sizes of tiny models of transformers, by all names that configurations have for them.
_SIZES: dict[str, Any] = {
    "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "word_embed_proj_dim": 32,
    "embedding_size": 16,
    "intermediate_size": 48, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "d_ff": 48, "n_inner": 48,
    "hidden_dim": 48, "ffn_dim": 48, "d_inner": 48, "dff": 48, "moe_intermediate_size": 24,
    "num_hidden_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "num_layers": 2, "n_layer": 2,
    "n_layers": 2, "num_encoder_layers": 2, "num_decoder_layers": 2,
    "num_attention_heads": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_heads": 4,
    "n_head": 4, "n_heads": 4, "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "d_kv": 8, "rotary_dim": 8,
    "max_position_embeddings": 64, "n_positions": 64, "sliding_window": 16, "type_vocab_size": 2,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "shared_expert_intermediate_size": 24,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "image_size": 32, "patch_size": 8, "num_channels": 3, "use_cache": False,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes
    ----------
    name : str
        As in the table.
    source : str
        ``"transformers"``, ``"timm"``, or ``"by hand"``: in tests/ or zoo_hand.py.
    kind : str
        The type of a configuration of transformers, a name of timm, or a name of those by hand.
    hidden : str
        A regular expression that the whole names of all hidden layers match, and no others: modules, or
        parameters with three axes.
    sizes : mapping
        Arguments that make it tiny.
    gaps : tuple of int
        The rows of the list of gaps, in docs/results/models.md, to which it belongs.
    full : bool
        Whether it is compiled too.
    """

    name: str
    source: str
    kind: str
    hidden: str
    sizes: Mapping[str, Any] = field(default_factory=dict)
    gaps: tuple[int, ...] = ()
    full: bool = False

    def build(self) -> tuple[nn.Module, Any]:
        """Return the model with random weights, and a batch; the same each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _SOURCES[self.source](self)


def _of_transformers(entry: Entry) -> tuple[nn.Module, Any]:
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from fpe.graph.inputs import inputs_for

    kind = CONFIG_MAPPING[entry.kind]
    known = {*inspect.signature(kind.__init__).parameters, *getattr(kind, "__annotations__", {})}
    sizes = {key: value for key, value in _SIZES.items() if key in known}
    model = AutoModel.from_config(kind(**(sizes | dict(entry.sizes))))
    return disturbed(model), inputs_for(model)


def _of_timm(entry: Entry) -> tuple[nn.Module, Any]:
    use_timm()
    import timm

    model = timm.create_model(entry.kind, num_classes=5, **entry.sizes)
    size = entry.sizes.get("img_size", 64)  # smaller ones leave one place, on which batch norms give signs
    return disturbed(model), torch.randn(4, 3, size, size)


def _by_hand(entry: Entry) -> tuple[nn.Module, Any]:
    from zoo_hand import HAND

    import foreign_gates  # noqa: F401  (registers its models)
    from foreign import FOREIGN
    from zoo import ZOO

    if entry.kind in HAND:
        model, batch = HAND[entry.kind]()
        return disturbed(model), batch
    return ZOO[entry.kind]() if entry.kind in ZOO else FOREIGN[entry.kind][0]()


_SOURCES = {"transformers": _of_transformers, "timm": _of_timm, "by hand": _by_hand}


def use_timm() -> None:
    """Let timm be imported from build/zoo, where ``make zoo`` installs it, also beside torch without CUDA."""
    folder = str(Path(__file__).parents[2] / "build" / "zoo")
    if folder not in sys.path:
        sys.path.append(folder)
    # torchvision's wheel is built for CUDA; beside another torch its operators are missing, of which
    # importing it needs these two and no model here any. A worker may have inherited the path without them.
    if not hasattr(torch.ops.torchvision, "nms"):
        for name in ("nms", "qnms"):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", signature)


def disturbed(model: nn.Module) -> nn.Module:
    """Make the entries of biases, norms and scales differ, so that neurons that are exchanged show."""
    for module in model.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.data.add_(0.1 * torch.rand_like(tensor))
    return model
