"""Embed a data set once with a frozen encoder; an interrupted run is resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fpe import __version__
from fpe._util.files import read_json, write_json
from fpe.data.embed.batches import Batch, embedded
from fpe.data.embed.encoders import load_encoder
from fpe.data.embed.items import Items, open_items
from fpe.data.shards import FORMATS, MANIFEST, shard_path, write_shard
from fpe.errors import ArgumentError, DataError, raise_problems

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
    test : str or None
        A table, the test part of another one.
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
    test: str | None = None
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
    skip_broken: bool = False,
) -> dict[str, Any]:
    """Embed a data set into a folder, which `fpe.data.load` and ``fpe fit`` then read.

    A shard is whole or absent. Called again, it makes those that are absent, and those whose files have
    changed; the bytes are those of an uninterrupted run on the same machine.

    Parameters
    ----------
    source : str
        As for `fpe.data.embed.items.open_items`.
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
    skip_broken : bool, default False
        Leave out images that cannot be read, and list them in ``embeddings.json``; by default they are an
        error once all others are embedded.

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
        If the source, or some of its images, cannot be read; all of them are named.
    KeyboardInterrupt
        After Ctrl-C, with a message that says what is finished and how to go on.
    """
    config = config or EmbedConfig()
    config.check()
    if workers is not None and workers < 0:
        raise ArgumentError(f"workers is {workers}; give a number of processes, or 0 for none.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    items = open_items(source, config.label, config.column, config.classes, config.seed, config.test)
    name = config.encoder or (IMAGES if items.kind == "image" else TEXTS)
    test = None if config.test is None else Path(config.test).name
    config = dataclasses.replace(config, encoder=name, label=items.label, column=items.column, test=test)
    manifest = _manifest(source, config, items)
    old: dict[str, Any] | None = read_json(out / MANIFEST)
    kept = set() if old is None or fresh else _unchanged(out, old, manifest)
    shards = _shards(manifest)
    manifest["broken"] = {name: own for name, own in (old or {}).get("broken", {}).items() if name in kept}
    absent = [shard for shard, file in shards.items() if file not in kept or not (out / file).exists()]
    outdated = [file for file in _shards(old or manifest).values() if file not in kept]
    outdated = [file for file in outdated if (out / file).exists()]
    if absent or outdated:
        encoder = load_encoder(name, items.kind, device, config.half)
        for file in outdated:
            (out / file).unlink()
        if outdated and not fresh:
            warnings.warn(
                f"{source} has changed; {len(outdated)} shards in {out} are outdated.", stacklevel=2
            )
        if items.kind == "text":  # tokenizers have threads of their own
            workers = 0
        elif workers is None:
            workers = 8 if device.startswith("cuda") else 1
        _store(out, manifest, items)
        batches = embedded(
            encoder,
            items,
            [(shard, _rows(items, config, *shard)) for shard in absent],
            config.batch_size,
            device,
            workers,
        )
        try:
            _make(out, manifest, items, batches, absent, skip_broken, on_batch)
        except KeyboardInterrupt:
            made = sum((out / file).exists() for file in shards.values())
            raise KeyboardInterrupt(
                f"stopped. {made} of {len(shards)} shards are finished and kept in {out}; "
                "run the same command again to go on from there."
            ) from None
    else:  # the files beside those that are embedded may have changed
        _store(out, manifest, items)
    _check_classes(manifest, items)
    return manifest


def _manifest(source: str, config: EmbedConfig, items: Items) -> dict[str, Any]:
    """Return what ``embeddings.json`` will hold, before it is known which images are broken."""
    size = config.shard_size
    counts = {part: -(-len(rows) // size) for part, rows in items.rows.items()}
    here = Path(source).exists()
    return {
        "fpe": __version__,
        "source": Path(source).name if here else source,
        "place": hashlib.sha256(str(Path(source).resolve()).encode()).hexdigest()[:16] if here else None,
        "kind": items.kind,
        **dataclasses.asdict(config),
        "items": {part: len(rows) for part, rows in items.rows.items()},
        "shards": counts,
        "digests": {
            part: [_digest(items, config, part, number) for number in range(count)]
            for part, count in counts.items()
        },
        "classes": items.classes,
        "left_out": dict(items.left_out),
        "notes": items.notes,
        "broken": {},
    }


def _digest(items: Items, config: EmbedConfig, part: str, number: int) -> str:
    """Return what stands for the content of a shard: items, class numbers and names."""
    rows = _rows(items, config, part, number)
    labels = items.labels[part][number * config.shard_size :][: len(rows)]
    names = [items.classes[label] for label in np.unique(labels)]
    digest = hashlib.sha256(repr(names).encode() + labels.tobytes() + items.parts[part].mark(rows))
    return digest.hexdigest()[:16]


def _unchanged(out: Path, old: dict[str, Any], manifest: dict[str, Any]) -> set[str]:
    """Return the files of the shards whose content is still the same; refuse a folder of other embeddings."""
    content = ("items", "shards", "digests", "classes", "left_out", "notes", "broken", "place")
    differing = [key for key in manifest if key not in content and old.get(key) != manifest[key]]
    what = [f"{key} {old.get(key)!r}, now {manifest[key]!r}" for key in differing]
    if "digests" not in old:
        what.append("written by an earlier version of fpe")
    elif old["digests"] != manifest["digests"] and old["place"] != manifest["place"]:
        what.append(f"made from another {manifest['source']}")
    if what:
        raise ArgumentError(
            f"{out} holds other embeddings ({'; '.join(what)}); give another --out, or --fresh to throw "
            "them away."
        )
    before = {file: old["digests"][part][n] for (part, n), file in _shards(old).items()}
    return {f for (part, n), f in _shards(manifest).items() if before.get(f) == manifest["digests"][part][n]}


def _shards(manifest: dict[str, Any]) -> dict[tuple[str, int], str]:
    """Return the file name of each shard, by part and number."""
    return {
        (part, number): shard_path(Path(), part, number, manifest["format"]).name
        for part, count in manifest["shards"].items()
        for number in range(count)
    }


def _rows(items: Items, config: EmbedConfig, part: str, number: int) -> np.ndarray:
    return items.rows[part][number * config.shard_size :][: config.shard_size]


def _store(out: Path, manifest: dict[str, Any], items: Items) -> None:
    """Count the embeddings, and write ``embeddings.json``."""
    for part, rows in items.rows.items():
        broken = [len(own) for file, own in manifest["broken"].items() if file.startswith(f"{part}-")]
        manifest["items"][part] = len(rows) - sum(broken)
    write_json(out / MANIFEST, manifest)


def _make(
    out: Path,
    manifest: dict[str, Any],
    items: Items,
    batches: Iterable[Batch],
    absent: list[tuple[str, int]],
    skip_broken: bool,
    on_batch: Callable[[int, int], None] | None,
) -> None:
    """Write the shards that are absent; raise at the end if images are broken and not to be skipped."""
    size, dtype = manifest["shard_size"], manifest["dtype"]
    total = sum(len(rows) for rows in items.rows.values())
    done = total - sum(len(items.rows[part][n * size :][:size]) for part, n in absent)
    unread: dict[str, str] = {}
    whole: list[Batch] = []
    for batch in batches:
        done += batch.size
        whole.append(batch)
        if batch.last:
            part, number = batch.shard
            path = shard_path(out, part, number, manifest["format"])
            broken = {name: why for each in whole for name, why in each.broken.items()}
            unread |= broken
            if broken and skip_broken:
                manifest["broken"][path.name] = broken
                _store(out, manifest, items)
            if not broken or skip_broken:
                made = [each.embeddings for each in whole if each.embeddings is not None]
                if not made:
                    raise DataError(f"no image of shard {path.name} can be read{_listed(broken)}")
                embeddings = torch.cat(made)
                if manifest["normalize"]:
                    embeddings = torch.nn.functional.normalize(embeddings, dim=1)
                X = embeddings.to(getattr(torch, dtype)).numpy()
                if not np.isfinite(X).all():
                    raise DataError(
                        f"embeddings of shard {number} of the {part} part are NaN or too large for {dtype}; "
                        "use dtype float32, and no half precision."
                    )
                good = np.concatenate([[p in each.good for p in range(each.size)] for each in whole])
                write_shard(path, X, items.labels[part][number * size :][: len(good)][good], items.classes)
            whole = []
        if on_batch is not None:
            on_batch(done, total)
    if unread and not skip_broken:
        raise DataError(
            f"{len(unread)} of {total:,} images cannot be read. Mend or remove them and run the command "
            "again, or leave them out with --skip-broken (skip_broken=True). Shards without them are kept in "
            f"{out}.{_listed(unread)}"
        )


def _listed(broken: dict[str, str]) -> str:
    return "".join(f"\n  {name}: {why}" for name, why in broken.items())


def _check_classes(manifest: dict[str, Any], items: Items) -> None:
    """Refuse a class whose images are all broken."""
    broken = {name for own in manifest["broken"].values() for name in own}
    if broken:
        pairs = zip(items.rows["train"], items.labels["train"], strict=True)
        read = {int(label) for row, label in pairs if items.parts["train"].name(row) not in broken}
        lost = [name for number, name in enumerate(items.classes) if number not in read]
        if lost:
            raise DataError(
                f"none of the training images of {', '.join(lost)} can be read; mend or remove them."
            )
