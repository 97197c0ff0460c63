"""One batch for a model: as the user gave it, or made for a model of transformers."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Call = tuple[tuple[Any, ...], dict[str, Any]]


def as_call(example_inputs: Any) -> Call:
    """Return positional and named arguments: a tensor is one of the first, a tuple several, a dict names."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple):
        return example_inputs, {}
    return (example_inputs,), {}


def inputs_for(model: nn.Module) -> dict[str, Any] | None:
    """Make a small batch for a model of transformers from its configuration; None for any other model.

    Parameters
    ----------
    model : nn.Module
        Not run.

    Returns
    -------
    dict or None
        Keyword arguments: two short texts, two random images, or both, as the forward pass asks. Torch's
        random state is not moved.
    """
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        return None
    config = model.config
    asked = set(inspect.signature(model.forward).parameters)
    generator = torch.Generator().manual_seed(0)
    batch: dict[str, Any] = {}
    text = getattr(config, "text_config", None) or config
    image = getattr(config, "vision_config", None) or config
    if "input_ids" in asked and hasattr(text, "vocab_size"):
        batch["input_ids"] = torch.randint(1, text.vocab_size, (2, 8), generator=generator)
        if getattr(config, "is_encoder_decoder", False):
            batch["decoder_input_ids"] = torch.randint(1, text.vocab_size, (2, 6), generator=generator)
    if "pixel_values" in asked and hasattr(image, "image_size"):
        size = image.image_size if isinstance(image.image_size, list | tuple) else [image.image_size] * 2
        shape = (2, getattr(image, "num_channels", 3), *size)
        batch["pixel_values"] = torch.rand(shape, generator=generator)
    if "use_cache" in asked:
        batch["use_cache"] = False
    device, dtype = _place(model)
    if not any(isinstance(v, Tensor) for v in batch.values()):
        return None
    return {k: _moved(v, device, dtype) for k, v in batch.items()}


def _place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    first = next(model.parameters())
    return first.device, first.dtype


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


def tensors_in(value: Any, depth: int = 6) -> list[Tensor]:
    """Return the tensors in anything that a model may return, caches and other objects included."""
    if isinstance(value, Tensor):
        return [value]
    if depth == 0 or value is None or isinstance(value, str | bytes | int | float | bool | type | nn.Module):
        return []
    if isinstance(value, Mapping):
        children = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        children = list(value)
    else:
        children = list(getattr(value, "__dict__", {}).values())
        slots = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
        names = [name for held in slots for name in ((held,) if isinstance(held, str) else held)]
        children += [getattr(value, name) for name in names if hasattr(value, name)]
        cells = getattr(value, "__closure__", None) or ()
        children += [cell.cell_contents for cell in cells if hasattr(cell, "cell_contents")]
    return [tensor for child in children for tensor in tensors_in(child, depth - 1)]
