"""Embed a data set once with a frozen encoder; stop and go on at any time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpe._version import __version__
from fpe.embed.encoders import Encoder, load_encoder
from fpe.embed.items import Items, open_items
from fpe.embed.shards import FORMATS, MANIFEST, shard_path, write_shard
from fpe.errors import ArgumentError, DataError, raise_problems
from fpe.files import read_json, write_json

#: CLIP ViT-B/16 is the paper's (2.2.2).
IMAGES, TEXTS = "openai/clip-vit-base-patch16", "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class EmbedConfig:
    """How a data set is embedded; the defaults of ``fpe embed``.

    Attributes
    ----------
    encoder : str or None
        A name of the Hugging Face hub or a folder; None for CLIP ViT-B/16 (images), as in the paper, or
        all-MiniLM-L6-v2 (texts).
    normalize : bool
        Scale each embedding to length 1.
    dtype : str
        Of the stored numbers, "float16" or "float32".
    half : bool
        Let the encoder compute in half precision too.
    format : str
        Of the shards, "safetensors" or "parquet".
    shard_size : int
        Embeddings of a shard: what is lost at most when it is interrupted.
    batch_size : int
        Images or texts that go through the encoder at a time.
    label, column : str or None
        Columns of labels and of images or texts; None to find them.
    classes : int or None
        So many classes only, chosen at random.
    seed : int
        Of that choice.
    """

    encoder: str | None = None
    normalize: bool = True
    dtype: str = "float16"
    half: bool = False
    format: str = "safetensors"
    shard_size: int = 4096
    batch_size: int = 64
    label: str | None = None
    column: str | None = None
    classes: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise an `ArgumentError` that names all that is wrong."""
        problems = []
        for name, allowed in (("dtype", ("float16", "float32")), ("format", FORMATS)):
            if getattr(self, name) not in allowed:
                problems.append(f"{name} is {getattr(self, name)!r}; allowed are {' and '.join(allowed)}.")
        for name in ("shard_size", "batch_size"):
            if getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}; give at least 1.")
        raise_problems(problems, ArgumentError, "the embedding")


def embed(
    source: str,
    out: Path,
    config: EmbedConfig | None = None,
    device: str | None = None,
    workers: int | None = None,
    fresh: bool = False,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Embed a data set into a folder, which `fpe.data.load` and ``fpe fit`` then read.

    A shard is whole or absent. Called again, it makes those that are absent; the bytes are those of an
    uninterrupted run on the same machine.

    Parameters
    ----------
    source : str
        As for `fpe.embed.items.open_items`.
    out : Path
        Gets the shards and ``embeddings.json``, which says what they are.
    config : EmbedConfig, optional
        How.
    device : str, optional
        Where the encoder computes; by default a GPU if there is one.
    workers : int, optional
        Processes that read and prepare images; 0 for none. By default one beside a CPU, eight beside a GPU;
        for texts always none.
    fresh : bool, default False
        Throw away the shards of an earlier run.
    on_batch : callable, optional
        Gets how many items of how many are finished, after each batch.

    Returns
    -------
    dict
        What ``embeddings.json`` holds.

    Raises
    ------
    ArgumentError
        For arguments that mean nothing, an encoder that cannot be loaded, or a folder that holds other
        embeddings.
    DataError
        If the source, or one of its images, cannot be read.
    KeyboardInterrupt
        After Ctrl-C, with a message that says what is finished and how to go on.
    """
    config = config or EmbedConfig()
    config.check()
    if workers is not None and workers < 0:
        raise ArgumentError(f"workers is {workers}; give a number of processes, or 0 for none.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    items = open_items(source, config.label, config.column, config.classes, config.seed)
    name = config.encoder or (IMAGES if items.kind == "image" else TEXTS)
    config = dataclasses.replace(config, encoder=name)
    manifest = _manifest(source, config, items)
    stored = _stored(out, manifest, fresh)
    absent = [
        (part, number)
        for part, count in manifest["shards"].items()
        for number in range(count)
        if fresh or not shard_path(out, part, number, config.format).exists()
    ]
    total = sum(len(rows) for rows in items.rows.values())
    done = total - sum(len(_rows(items, config, *shard)) for shard in absent)
    if absent:
        encoder = load_encoder(name, items.kind, device, config.half)
        if items.kind == "text":  # tokenizers have threads of their own
            workers = 0
        elif workers is None:
            workers = 8 if device.startswith("cuda") else 1
        for path in _shard_paths(out, stored or manifest) if fresh else ():
            path.unlink(missing_ok=True)
        write_json(out / MANIFEST, manifest)
        try:
            for (part, number), X, count in _shards(encoder, items, config, absent, device, workers):
                if X is not None:
                    y = items.labels[part][number * config.shard_size :][: len(X)]
                    write_shard(shard_path(out, part, number, config.format), X, y, items.classes)
                done += count
                if on_batch is not None:
                    on_batch(done, total)
        except KeyboardInterrupt:
            made = sum(shard_path(out, *shard, config.format).exists() for shard in absent)
            every = sum(manifest["shards"].values())
            raise KeyboardInterrupt(
                f"stopped. {every - len(absent) + made} of {every} shards are finished and kept in {out}; "
                "run the same command again to go on from there."
            ) from None
    return manifest


def _manifest(source: str, config: EmbedConfig, items: Items) -> dict[str, Any]:
    size = config.shard_size
    return {
        "fpe": __version__,
        "source": source if not Path(source).exists() else Path(source).name,
        "fingerprint": items.fingerprint(),
        "kind": items.kind,
        **dataclasses.asdict(config),
        "items": {part: len(rows) for part, rows in items.rows.items()},
        "shards": {part: -(-len(rows) // size) for part, rows in items.rows.items()},
        "classes": items.classes,
    }


def _stored(out: Path, manifest: dict[str, Any], fresh: bool) -> dict[str, Any] | None:
    """Return the manifest that the folder has, if any; refuse one of other embeddings."""
    stored: dict[str, Any] | None = read_json(out / MANIFEST)
    if stored is not None and stored != manifest and not fresh:
        differing = [
            f"{key} {stored.get(key)!r}, now {manifest[key]!r}"
            for key in manifest
            if stored.get(key) != manifest[key] and key != "classes"
        ]
        raise ArgumentError(
            f"{out} holds other embeddings ({'; '.join(differing) or 'other classes'}); give another --out, "
            "or --fresh to throw them away."
        )
    return stored


def _shard_paths(out: Path, manifest: dict[str, Any]) -> list[Path]:
    """Return the files of all shards that a manifest names."""
    return [
        shard_path(out, part, number, manifest["format"])
        for part, count in manifest["shards"].items()
        for number in range(count)
    ]


def _rows(items: Items, config: EmbedConfig, part: str, number: int) -> np.ndarray:
    return items.rows[part][number * config.shard_size :][: config.shard_size]


class _Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The batches to come, prepared; a batch never spans two shards."""

    def __init__(self, items: Items, prepare: Any, batches: list[tuple[str, np.ndarray]]) -> None:
        self.items, self.prepare, self.batches = items, prepare, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        part, rows = self.batches[index]
        try:
            values = self.items.parts[part][rows.tolist()][self.items.column]
            if any(value is None for value in values):
                raise ValueError("it is empty")
            return dict(self.prepare(values))
        except Exception as error:  # whatever a broken image makes of its library
            raise DataError(
                f"rows {rows[0]} to {rows[-1]} (from 0) of the {part} part cannot be read: {error}. Mend or "
                "remove what is broken, and run the same command again."
            ) from error


@torch.inference_mode()
def _shards(
    encoder: Encoder,
    items: Items,
    config: EmbedConfig,
    absent: list[tuple[str, int]],
    device: str,
    workers: int,
) -> Iterator[tuple[tuple[str, int], np.ndarray | None, int]]:
    """Yield after each batch the shard, its embeddings if it is whole now, and the size of the batch."""
    batches, ends = [], []
    for part, number in absent:
        rows = _rows(items, config, part, number)
        cut = [rows[i : i + config.batch_size] for i in range(0, len(rows), config.batch_size)]
        batches += [(part, batch) for batch in cut]
        ends += [None] * (len(cut) - 1) + [(part, number)]
    loader = torch.utils.data.DataLoader(
        _Rows(items, encoder.prepare, batches),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=device.startswith("cuda"),
    )
    whole: list[Tensor] = []
    for (_, rows), end, batch in zip(batches, ends, loader, strict=True):
        made = encoder.forward(
            {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        ).float()
        if config.normalize:
            made = torch.nn.functional.normalize(made, dim=1)
        whole.append(made.to(getattr(torch, config.dtype)).cpu())
        if end is None:
            yield (batches[0][0], -1), None, len(rows)
            continue
        embeddings, whole = torch.cat(whole).numpy(), []
        if not np.isfinite(embeddings).all():
            raise DataError(
                f"embeddings of shard {end[1]} of the {end[0]} part are NaN or too large for {config.dtype}; "
                "use dtype float32, and no half precision."
            )
        yield end, embeddings, len(rows)
