"""Frozen encoders of images and texts, from the Hugging Face hub or a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fpe.errors import ArgumentError


@dataclass(frozen=True)
class Encoder:
    """A frozen encoder.

    Attributes
    ----------
    model : nn.Module
        In evaluation mode, on its device.
    prepare : callable
        Turns a list of images or texts into the tensors of a batch; runs in other processes.
    forward : callable
        Turns such tensors, on the device, into embeddings, (batch, features).
    """

    model: nn.Module
    prepare: Callable[[Sequence[Any]], dict[str, Tensor]]
    forward: Callable[[dict[str, Tensor]], Tensor]


class Pixels:
    """Turns RGB images into pixel values, as the encoder's own processor does."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, images: Sequence[Any]) -> dict[str, Tensor]:
        """Return ``{"pixel_values": (batch, 3, height, width)}``."""
        return {"pixel_values": self.processor(list(images), return_tensors="pt")["pixel_values"]}


def load_encoder(name: str, kind: str, device: str, half: bool = False) -> Encoder:
    """Load an encoder of images or of texts.

    Of images: CLIP, SigLIP and their like give their projected image features, others (DINOv2, ViT) their
    pooled output, or the first token where there is none. Of texts: what sentence-transformers makes of
    it, with mean pooling where the model says nothing.

    Parameters
    ----------
    name : str
        Of the hub, or a folder.
    kind : str
        "image" or "text".
    device : str
        Where it computes.
    half : bool, default False
        Compute in half precision: float16 on a GPU, bfloat16 on a CPU.

    Raises
    ------
    ArgumentError
        If it cannot be loaded, or a library is missing.
    """
    dtype = (torch.float16 if device.startswith("cuda") else torch.bfloat16) if half else torch.float32
    load = _load_images if kind == "image" else _load_texts
    try:
        return load(name, torch.device(device), dtype)
    except ImportError as error:
        raise ArgumentError(
            f"fpe embed needs transformers, and sentence-transformers for texts ({error}): pip install "
            "'fixed-parameter-expansion[embed]'"
        ) from error
    except Exception as error:  # no network, no such name, a broken folder: whatever it may end with
        reason = str(error).strip().partition("\n")[0]
        raise ArgumentError(
            f"the {kind} encoder {name} could not be loaded ({type(error).__name__}: {reason}). Give a name "
            "of the Hugging Face hub, or a folder that save_pretrained wrote, processor included."
        ) from error


def _load_images(name: str, device: torch.device, dtype: torch.dtype) -> Encoder:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    config = transformers.AutoConfig.from_pretrained(name)
    processor = transformers.AutoImageProcessor.from_pretrained(name)
    pixels = Pixels(processor)
    kind: Any = transformers.AutoModel
    if config.model_type == "clip":  # without the tower of texts
        kind = transformers.CLIPVisionModelWithProjection
    model = kind.from_pretrained(name, dtype=dtype).to(device).eval().requires_grad_(False)

    def forward(batch: dict[str, Tensor]) -> Tensor:
        values = batch["pixel_values"].to(dtype)
        if config.model_type == "clip":
            embeddings: Tensor = model(pixel_values=values).image_embeds
        elif hasattr(model, "get_image_features"):
            features = model.get_image_features(pixel_values=values)
            embeddings = features if isinstance(features, Tensor) else features.pooler_output
        else:
            output = model(pixel_values=values)
            pooled = getattr(output, "pooler_output", None)
            embeddings = output.last_hidden_state[:, 0] if pooled is None else pooled
        return embeddings.flatten(1)

    return Encoder(model, pixels, forward)


def _load_texts(name: str, device: torch.device, dtype: torch.dtype) -> Encoder:
    from sentence_transformers import SentenceTransformer

    if not Path(name).is_dir() and name.startswith((".", "/")):
        raise FileNotFoundError(f"there is no folder {name}")
    model = SentenceTransformer(name, device=str(device)).to(dtype).eval().requires_grad_(False)

    def prepare(texts: Sequence[str]) -> dict[str, Tensor]:
        made = model.preprocess(list(texts))
        return {key: value for key, value in made.items() if isinstance(value, Tensor)}

    def forward(batch: dict[str, Tensor]) -> Tensor:
        embeddings: Tensor = model(batch)["sentence_embedding"]
        return embeddings

    return Encoder(model, prepare, forward)
