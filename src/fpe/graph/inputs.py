"""One batch for a model: as the user gave it, or made for a model of transformers."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Call = tuple[tuple[Any, ...], dict[str, Any]]
#: What is not looked through for tensors.
_HOLDS_NOTHING = (type(None), str, bytes, bytearray, range, int, float, complex, type, ModuleType, nn.Module)
#: So many items of an iterator are looked at.
_LONGEST = 10_000


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


def tensors_in(value: Any, consume: bool = False) -> list[Tensor]:
    """Return the tensors in anything that a model may return, caches and other objects included.

    Parameters
    ----------
    value : object
        Also looked through: containers, attributes, slots, what functions have captured, but not modules.
    consume : bool, default False
        Whether to run through iterators, which nobody can do after that, and to take NumPy's arrays and
        Python's floating-point numbers for tensors.
    """
    found: list[Tensor] = []
    left, seen = [value], {}
    while left:
        part = left.pop()
        if isinstance(part, Tensor):
            found.append(part)
        elif consume and isinstance(part, float | np.ndarray | np.floating):
            with suppress(TypeError):  # an array of objects
                found.append(torch.as_tensor(part))
        elif not isinstance(part, _HOLDS_NOTHING) and id(part) not in seen:
            seen[id(part)] = part  # kept alive, so that no other object gets its identity
            left += reversed(_parts(part, consume))
    return found


def _parts(value: Any, consume: bool) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, Iterator):
        return list(islice(value, _LONGEST)) if consume else []
    if isinstance(value, Collection):
        return list(value)
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    parts = list(getattr(value, "__dict__", {}).values())
    slots = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    names = [name for held in slots for name in ((held,) if isinstance(held, str) else held)]
    parts += [getattr(value, name) for name in names if hasattr(value, name)]
    cells = getattr(value, "__closure__", None) or ()
    return parts + [cell.cell_contents for cell in cells if hasattr(cell, "cell_contents")]
