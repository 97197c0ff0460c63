"""Masked parameters in files: the free values alone, and the mask in few bytes.

Since format 6, a parameter with masked entries is stored, under its own name, as a tensor with one axis: its
free values, in the order of the flattened parameter. Parameters without masked entries are stored as they
are.

The mask of a masked layer is stored under the name of its buffer, ``fpe_mask`` or ``fpe_bias_mask``, as
bytes. The first one tells two layouts apart; the shorter is used.

- 0, bits: one bit for each entry of the flattened mask, 1 where it is free. Entry i is bit i % 8, the least
  significant first, of byte i // 8. The last byte is filled up with zeros.
- 1, gaps: of each free entry of the flattened mask, in order, the number of masked entries between it and the
  free entry before it, or the beginning: one byte below 255, after a byte 255 for each 255 that are left out.

The mask of a weight that is free as a whole is not stored. Packed layers have no masks: their buffers,
``zero_positions`` or ``codes``, say which of the stored weights are masked.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fpe.masked import BIAS_MASK, MASK, HasMasks, MaskedLayer

#: The layouts of a mask.
_BITS, _GAPS = 0, 1
#: A byte that stands for so many masked entries, without a free one after them.
_SKIP = 255


def encode_mask(free: Tensor) -> Tensor:
    """Store a mask in the shorter of two layouts, which the module's documentation describes.

    Parameters
    ----------
    free : Tensor
        Of any shape and type; not 0 where an entry is free.

    Returns
    -------
    Tensor
        Bytes, uint8, on the CPU. `decode_mask` gives the mask back.

    Examples
    --------
    >>> import torch
    >>> from fpe.io.compact import decode_mask, encode_mask
    >>> free = torch.tensor([[1, 0, 1], [0, 0, 1]])
    >>> encode_mask(free).tolist()  # layout 0; bits 0, 2 and 5
    [0, 37]
    >>> torch.equal(decode_mask(encode_mask(free), (2, 3)), free != 0)
    True
    """
    flat = (free != 0).cpu().reshape(-1).numpy()
    bits = np.packbits(flat, bitorder="little")
    if np.count_nonzero(flat) >= len(bits):  # each takes a byte at least
        return _bytes(_BITS, bits)
    gaps = np.diff(np.flatnonzero(flat), prepend=-1) - 1
    skips = gaps // _SKIP
    coded = np.full(len(gaps) + skips.sum(), _SKIP, np.uint8)
    coded[np.cumsum(skips + 1) - 1] = gaps % _SKIP
    return _bytes(_GAPS, coded) if len(coded) < len(bits) else _bytes(_BITS, bits)


def _bytes(layout: int, content: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.array([layout], np.uint8), content]))


def decode_mask(stored: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the mask of this shape that `encode_mask` stored: booleans, on the CPU.

    Raises
    ------
    ValueError
        If the bytes are not those of a mask of this shape.
    """
    entries, content = torch.Size(shape).numel(), stored.cpu().numpy()
    layout, coded = content[:1].tolist(), content[1:]
    if layout == [_BITS] and len(coded) == -(-entries // 8):
        flat = np.unpackbits(coded, count=entries, bitorder="little")
        return torch.from_numpy(flat).view(torch.bool).reshape(tuple(shape))
    if layout == [_GAPS]:
        places = np.cumsum(np.where(coded == _SKIP, _SKIP, coded.astype(np.int64) + 1)) - 1
        places = places[coded != _SKIP]
        if not len(places) or places[-1] < entries:
            flat = np.zeros(entries, np.bool_)
            flat[places] = True
            return torch.from_numpy(flat).reshape(tuple(shape))
    raise ValueError(f"the {len(content)} bytes of a mask are not those of one of shape {tuple(shape)}")


def free_values(values: Tensor, free: Tensor) -> Tensor:
    """Return the entries of a tensor that are free, flattened."""
    return values[free.to(values.device) != 0]


def spread_values(values: Tensor, free: Tensor) -> Tensor:
    """Return the tensor, zero where it is masked, whose `free_values` these are."""
    if values.shape != (count := int(free.count_nonzero()),):
        raise ValueError(
            f"there are {tuple(values.shape)} values for the {count} free entries of a parameter"
        )
    return values.new_zeros(free.shape).masked_scatter_(free, values)


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the masks of the parameters that have masked entries, by name, all names of a shared layer."""
    return {
        prefix + name: free
        for prefix, layer in _masked_layers(model)
        for name, _ in layer.named_parameters(recurse=False)
        if (free := layer.free(name)) is not None and not bool((free != 0).all())
    }


def mask_buffers(model: nn.Module) -> dict[str, str]:
    """Return the name of the parameter of each mask in the state dict of a model's masked layers."""
    pairs = {MASK: "weight", BIAS_MASK: "bias"}
    return {
        prefix + buffer: prefix + name
        for prefix, layer in _masked_layers(model)
        if isinstance(layer, MaskedLayer)
        for buffer, name in pairs.items()
    }


def restore_(tensors: dict[str, Tensor], model: nn.Module, aliases: Container[str]) -> None:
    """Decode the masks of a file, in place, and spread its values over the shapes of their parameters.

    `model` has the shapes of the file's; buffers of packed layers are set. `aliases` are names of parameters
    whose values are stored under another name.
    """
    masks: dict[str, Tensor | None] = {}
    for buffer, name in mask_buffers(model).items():
        if buffer in tensors or buffer.endswith(MASK):
            shape = model.get_parameter(name).shape
            free = decode_mask(tensors[buffer], shape) if buffer in tensors else torch.ones(shape).bool()
            tensors[buffer], masks[name] = free.to(tensors[name].dtype), free
    for prefix, layer in _masked_layers(model):
        if not isinstance(layer, MaskedLayer):
            for name, own in layer.named_buffers(recurse=False):
                own.copy_(tensors[prefix + name])
            masks |= {prefix + n: layer.free(n) for n, _ in layer.named_parameters(recurse=False)}
    for name, mask in masks.items():
        if mask is not None and name not in aliases and not bool((mask != 0).all()):
            tensors[name] = spread_values(tensors[name], mask.cpu() != 0)


def _masked_layers(model: nn.Module) -> Iterator[tuple[str, HasMasks]]:
    """Yield each layer that may have masked entries, with the prefix of its names."""
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, HasMasks):
            yield f"{name}." if name else "", module
