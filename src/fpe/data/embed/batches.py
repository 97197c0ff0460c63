"""Run batches of images or texts through an encoder, shard by shard; set aside what cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpe.data.embed.encoders import Encoder
from fpe.data.embed.images import read_image
from fpe.data.embed.items import Items


@dataclass(frozen=True)
class Batch:
    """What one batch gave.

    Attributes
    ----------
    shard : tuple of str and int
        Part and number of the shard that it belongs to.
    last : bool
        Whether the shard is whole with it.
    embeddings : Tensor or None
        Of the items that were read, (items, features), float32 on the CPU; None if there are none.
    good : list of int
        Positions in the batch of those that were read.
    size : int
        Number of items, broken ones included.
    broken : dict of str to str
        Names of the items that cannot be read, and why.
    """

    shard: tuple[str, int]
    last: bool
    embeddings: Tensor | None
    good: list[int]
    size: int
    broken: dict[str, str]


@torch.inference_mode()
def embedded(
    encoder: Encoder,
    items: Items,
    shards: Sequence[tuple[tuple[str, int], np.ndarray]],
    batch_size: int,
    device: str,
    workers: int,
) -> Iterator[Batch]:
    """Yield the embeddings of each batch; a batch never spans two shards.

    Parameters
    ----------
    encoder : Encoder
        On `device`.
    items : Items
        What is embedded.
    shards : sequence
        Part and number of each shard, and its rows.
    batch_size : int
        Items of a batch, at most.
    device : str
        Where the encoder computes.
    workers : int
        Processes that read and prepare; 0 for none.
    """
    cut = [
        (shard, rows[i : i + batch_size], i + batch_size >= len(rows))
        for shard, rows in shards
        for i in range(0, len(rows), batch_size)
    ]
    loader = torch.utils.data.DataLoader(
        _Prepared(items, encoder.prepare, [(part, rows) for (part, _), rows, _ in cut]),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=device.startswith("cuda"),
    )
    for (shard, rows, last), (tensors, good, broken) in zip(cut, loader, strict=True):
        embeddings = None
        if good:
            moved = {key: value.to(device, non_blocking=True) for key, value in tensors.items()}
            embeddings = encoder.forward(moved).float().cpu()
        yield Batch(shard, last, embeddings, good, len(rows), broken)


class _Prepared(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The tensors of each batch, positions of the items that were read, and why others were not."""

    def __init__(
        self, items: Items, prepare: Callable[[Sequence[Any]], Any], batches: list[tuple[str, np.ndarray]]
    ) -> None:
        self.items, self.prepare, self.batches = items, prepare, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], list[int], dict[str, str]]:
        part, rows = self.batches[index]
        source = self.items.parts[part]
        read: dict[int, Any] = {}
        broken: dict[str, str] = {}
        for place, value in enumerate(source.take(rows)):
            try:
                read[place] = read_image(value) if self.items.kind == "image" else value
            except Exception as error:  # whatever a broken image makes of its library
                broken[source.name(rows[place])] = _reason(error)
        return dict(self.prepare(list(read.values()))) if read else {}, list(read), broken


def _reason(error: Exception) -> str:
    """Say what is wrong, without Pillow's mention of objects and paths."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "no image that Pillow knows"
    return str(error).strip().partition("\n")[0] or type(error).__name__
