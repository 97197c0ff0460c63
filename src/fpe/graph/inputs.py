"""Batches for a model, as the user gave them or made for a model of transformers; tensors in its outputs."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

Call = tuple[tuple[Any, ...], dict[str, Any]]
#: Types that are not searched for tensors.
_OPAQUE = (type(None), str, bytes, bytearray, range, int, float, complex, type, ModuleType, nn.Module)
#: An iterator may be endless: look at so many items.
_MAX_ITEMS = 10_000


class Recorded(NamedTuple):
    """The positional and the named arguments of a call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def as_call(example_inputs: Any) -> Call:
    """Return positional and named arguments: a tensor is one of the first, a tuple several, a dict names."""
    if isinstance(example_inputs, Recorded):
        return example_inputs.args, example_inputs.kwargs
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple):
        return example_inputs, {}
    return (example_inputs,), {}


def copied_call(call: Call) -> Call:
    """Copy the tensors of a batch, since a model may write into its inputs."""
    copied: Call = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, call)
    return copied


def converted(batch: Any, dtype: torch.dtype | None, device: torch.device | None) -> Any:
    """Move the tensors of a batch, the floating-point ones to another precision too."""

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.detach().to(device, dtype if leaf.is_floating_point() else None)

    return tree_map(moved, batch)


def inputs_for(model: nn.Module) -> dict[str, Any] | None:
    """Make two short texts, two random images or both for a model of transformers; None for any other."""
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        return None
    config = model.config
    accepted = set(inspect.signature(model.forward).parameters)
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Any] = {}
    text = getattr(config, "text_config", None) or config
    image = getattr(config, "vision_config", None) or config
    if "input_ids" in accepted and hasattr(text, "vocab_size"):
        tensors["input_ids"] = torch.randint(1, text.vocab_size, (2, 8), generator=generator)
        if getattr(config, "is_encoder_decoder", False):
            tensors["decoder_input_ids"] = torch.randint(1, text.vocab_size, (2, 6), generator=generator)
    if "pixel_values" in accepted and hasattr(image, "image_size"):
        size = image.image_size if isinstance(image.image_size, list | tuple) else [image.image_size] * 2
        shape = (2, getattr(image, "num_channels", 3), *size)
        tensors["pixel_values"] = torch.rand(shape, generator=generator)
    if not tensors:
        return None
    first = next(model.parameters())
    options = {"use_cache": False} if "use_cache" in accepted else {}
    return {**converted(tensors, first.dtype, first.device), **options}


def tensors_in(value: Any, consume: bool = False) -> list[Tensor]:
    """Return the tensors in whatever a model returns: containers, attributes, slots, closures; not modules.

    With `consume`, iterators are run through too, and NumPy arrays and floating-point numbers become tensors.
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
        elif not isinstance(part, _OPAQUE) and id(part) not in seen:
            seen[id(part)] = part  # kept alive, so that no other object gets its identity
            left += reversed(_parts(part, consume))
    return found


def _parts(value: Any, consume: bool) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, Iterator):
        return list(islice(value, _MAX_ITEMS)) if consume else []
    if isinstance(value, Collection):
        return list(value)
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    parts = list(getattr(value, "__dict__", {}).values())
    slots = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    names = [name for own in slots for name in ((own,) if isinstance(own, str) else own)]
    parts += [getattr(value, name) for name in names if hasattr(value, name)]
    cells = getattr(value, "__closure__", None) or ()
    return parts + [cell.cell_contents for cell in cells if hasattr(cell, "cell_contents")]
