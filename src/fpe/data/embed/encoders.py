"""Frozen encoders of images and texts, from the Hugging Face hub or a folder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fpe._util.extras import need
from fpe.errors import ArgumentError


@dataclass(frozen=True)
class Encoder:
    """A frozen encoder, in evaluation mode and on its device."""

    model: nn.Module
    #: Turns images or texts into the tensors of a batch; runs in other processes.
    prepare: Callable[[Sequence[Any]], dict[str, Tensor]]
    #: Turns these, on the device, into embeddings, (batch, features).
    forward: Callable[[dict[str, Tensor]], Tensor]


def load_encoder(name: str, kind: str, *, device: str, half: bool = False) -> Encoder:
    """Load an encoder of images or texts by its name on the hub or its folder; `kind` is "image" or "text".

    Of images, CLIP, SigLIP and their like give their projected image features, others (DINOv2, ViT) their
    pooled output, or else the first token. Of texts, sentence-transformers gives its own embedding, which is
    the mean over tokens where the model does not say. `half` computes in float16 on a GPU, in bfloat16 on a
    CPU.
    """
    dtype = (torch.float16 if device.startswith("cuda") else torch.bfloat16) if half else torch.float32
    library = need("transformers" if kind == "image" else "sentence_transformers", "embed")
    load = _load_images if kind == "image" else _load_texts
    try:
        return load(library, name, torch.device(device), dtype)
    except Exception as error:  # no network, no such name, a broken folder
        reason = str(error).strip().partition("\n")[0]
        raise ArgumentError(
            f"the {kind} encoder {name} could not be loaded ({type(error).__name__}: {reason}); give a "
            "name of the Hugging Face hub, or a folder that save_pretrained wrote, processor included."
        ) from error


def _pixels(processor: Any, images: Sequence[Any]) -> dict[str, Tensor]:
    return {"pixel_values": processor(list(images), return_tensors="pt")["pixel_values"]}


def _load_images(transformers: Any, name: str, device: torch.device, dtype: torch.dtype) -> Encoder:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    is_clip = transformers.AutoConfig.from_pretrained(name).model_type == "clip"
    processor = transformers.AutoImageProcessor.from_pretrained(name)
    # Of CLIP without the text encoder.
    kind = transformers.CLIPVisionModelWithProjection if is_clip else transformers.AutoModel
    model = kind.from_pretrained(name, dtype=dtype).to(device).eval().requires_grad_(False)

    def forward(batch: dict[str, Tensor]) -> Any:
        values = {"pixel_values": batch["pixel_values"].to(dtype)}
        output = getattr(model, "get_image_features", model)(**values)
        if isinstance(output, Tensor):
            return output.flatten(1)
        for name in ("image_embeds", "pooler_output"):
            if getattr(output, name, None) is not None:
                return getattr(output, name).flatten(1)
        return output.last_hidden_state[:, 0]

    return Encoder(model, functools.partial(_pixels, processor), forward)


def _load_texts(library: Any, name: str, device: torch.device, dtype: torch.dtype) -> Encoder:
    if not Path(name).is_dir() and name.startswith((".", "/")):
        raise FileNotFoundError(f"there is no folder {name}")
    model = library.SentenceTransformer(name, device=str(device)).to(dtype).eval().requires_grad_(False)

    def prepare(texts: Sequence[str]) -> dict[str, Tensor]:
        tensors = model.preprocess(list(texts))
        return {key: value for key, value in tensors.items() if isinstance(value, Tensor)}

    return Encoder(model, prepare, lambda batch: model(batch)["sentence_embedding"])
