"""Embed a data set once with a frozen encoder, shard by shard; an interrupted run is resumed."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpe import __version__
from fpe._util.files import read_json, write_json
from fpe.data.embed.encoders import Encoder, load_encoder
from fpe.data.embed.images import Items, read_image
from fpe.data.embed.items import open_items
from fpe.data.embed.shards import FORMATS, MANIFEST, shard_names, write_shard
from fpe.data.parts import some
from fpe.errors import ArgumentError, DataError, raise_problems

#: CLIP ViT-B/16 is the paper's (2.2.2).
IMAGES, TEXTS = "openai/clip-vit-base-patch16", "sentence-transformers/all-MiniLM-L6-v2"
#: What may change between two runs into the same folder.
_CONTENT = ("items", "shards", "digests", "classes", "left_out", "notes", "broken", "place")


def embed(
    source: str,
    out: Path,
    *,
    encoder: str | None = None,
    label: str | None = None,
    column: str | None = None,
    test: str | None = None,
    classes: int | None = None,
    seed: int = 0,
    normalize: bool = True,
    dtype: str = "float16",
    half: bool = False,
    format: str = "safetensors",
    shard_size: int = 4096,
    batch_size: int = 64,
    device: str | None = None,
    workers: int | None = None,
    fresh: bool = False,
    skip_broken: bool = False,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Embed a data set into a folder, which `fpe.data.load` and ``fpe fit`` take as data.

    A shard is complete or absent. Called again, it makes those that are absent, and those whose files have
    changed; the bytes are those of an uninterrupted run on the same machine.

    All keyword arguments but `on_batch` are options of the command; ``fpe embed --help`` describes them. With
    `workers` 0, images are read in this process. Without `skip_broken`, broken images are an error once all
    others are embedded.

    Parameters
    ----------
    source : str
        A folder with a folder of images for each class, also below ``train`` and ``test``; a table with a
        column of texts or images, or a folder of tables ``train`` and ``test``; or what Hugging Face datasets
        reads: a saved data set, a folder of parquet files, or OWNER/NAME on the hub.
    out : Path
        Gets the shards and ``embeddings.json``, which describes them and lists what was left out.
    on_batch : callable, optional
        Gets the number of finished items, and of all, after each batch.

    Returns
    -------
    dict
        The content of ``embeddings.json``.

    Raises
    ------
    ArgumentError
        For arguments out of range, an encoder that cannot be loaded, or a folder of other embeddings.
    DataError
        If the source, or some of its images, cannot be read; all of them are named.
    KeyboardInterrupt
        After Ctrl-C, with a message that says what is finished and how to resume.
    """
    problems = list[str]()
    for name, value, allowed in (("dtype", dtype, ("float16", "float32")), ("format", format, FORMATS)):
        if value not in allowed:
            problems.append(f"{name} is {value!r}; allowed are {' and '.join(allowed)}.")
    sizes = {"shard_size": shard_size, "batch_size": batch_size}
    for name, count, least in (*((*size, 1) for size in sizes.items()), ("workers", workers or 0, 0)):
        if count < least:
            problems.append(f"{name} is {count}; give at least {least}.")
    raise_problems(problems, ArgumentError, "the embedding")
    items = open_items(source, label=label, column=column, test=test, classes=classes, seed=seed)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    encoder = encoder or (IMAGES if items.kind == "image" else TEXTS)
    settings = {"encoder": encoder, "normalize": normalize, "dtype": dtype, "half": half, "format": format}
    settings |= {**sizes, "label": items.label, "column": items.column, "seed": seed}
    settings["test"] = None if test is None else Path(test).name
    manifest, old = _manifest(source, settings, items), read_json(out / MANIFEST)
    files = shard_names(manifest)
    kept = set() if old is None or fresh else _unchanged(out, old, manifest)
    manifest["broken"] = {file: own for file, own in (old or {}).get("broken", {}).items() if file in kept}
    absent = {shard: file for shard, file in files.items() if file not in kept or not (out / file).exists()}
    paths = [out / file for file in shard_names(old or manifest).values() if file not in kept]
    outdated = [path for path in paths if path.exists()]
    frozen = load_encoder(encoder, items.kind, device=device, half=half) if absent or outdated else None
    if outdated and not fresh:
        warnings.warn(f"{source} has changed; {len(outdated)} shards in {out} are outdated.", stacklevel=2)
    for path in outdated:
        path.unlink()
    _store(out, manifest, items)  # also if only files beside those that are embedded have changed
    if frozen is not None:
        if items.kind == "text":  # tokenizers have threads of their own
            workers = 0
        elif workers is None:
            workers = 8 if device.startswith("cuda") else 1
        try:
            _make(out, manifest, items, absent, frozen, device, workers, skip_broken, on_batch)
        except KeyboardInterrupt:
            made = sum((out / file).exists() for file in files.values())
            text = f"stopped. {made} of {len(files)} shards are finished and kept in {out}"
            raise KeyboardInterrupt(f"{text}; run the same command again to resume.") from None
    broken = {name for own in manifest["broken"].values() for name in own}
    pairs = zip(items.rows["train"], items.labels["train"], strict=True) if broken else ()
    found = {int(label) for row, label in pairs if items.parts["train"].name(row) not in broken}
    lost = [name for number, name in enumerate(items.classes) if broken and number not in found]
    if lost:
        raise DataError(f"none of the training images of {some(lost)} can be read; repair or remove them.")
    return manifest


def _manifest(source: str, settings: dict[str, Any], items: Items) -> dict[str, Any]:
    """Return the content of ``embeddings.json``, before it is known which images are broken."""
    is_local, size = Path(source).exists(), settings["shard_size"]
    shards = {part: -(-len(rows) // size) for part, rows in items.rows.items()}
    return {
        "fpe": __version__,
        "source": Path(source).name if is_local else source,
        "place": hashlib.sha256(str(Path(source).resolve()).encode()).hexdigest()[:16] if is_local else None,
        "kind": items.kind,
        **settings,
        "items": {part: len(rows) for part, rows in items.rows.items()},
        "shards": shards,
        "digests": {part: [_digest(items, size, part, i) for i in range(n)] for part, n in shards.items()},
        "classes": items.classes,
        "left_out": dict(items.left_out),
        "notes": items.notes,
        "broken": {},
    }


def _shard(values: np.ndarray, size: int, number: int) -> np.ndarray:
    return values[number * size :][:size]


def _digest(items: Items, size: int, part: str, number: int) -> str:
    """Return a hash of the content of a shard: items, class numbers and names."""
    rows, labels = _shard(items.rows[part], size, number), _shard(items.labels[part], size, number)
    names = [items.classes[label] for label in np.unique(labels)]
    keys = hashlib.sha256(b"".join(repr(key).encode() for key in items.parts[part].keys(rows))).digest()
    return hashlib.sha256(repr(names).encode() + labels.tobytes() + keys).hexdigest()[:16]


def _unchanged(out: Path, old: dict[str, Any], manifest: dict[str, Any]) -> set[str]:
    """Return the files of the shards whose content is still the same; refuse a folder of other embeddings."""
    differing = [key for key in manifest if key not in _CONTENT and old.get(key) != manifest[key]]
    what = [f"{key} {old.get(key)!r}, now {manifest[key]!r}" for key in differing]
    if "digests" not in old:
        what.append("written by an earlier version of fpe")
    elif old["digests"] != manifest["digests"] and old["place"] != manifest["place"]:
        what.append(f"made from another {manifest['source']}")
    if what:
        raise ArgumentError(f"{out} has other embeddings ({'; '.join(what)}); choose another, or --fresh.")
    before = {file: old["digests"][part][n] for (part, n), file in shard_names(old).items()}
    now = {file: manifest["digests"][part][n] for (part, n), file in shard_names(manifest).items()}
    return {file for file, digest in now.items() if before.get(file) == digest}


def _store(out: Path, manifest: dict[str, Any], items: Items) -> None:
    """Count the embeddings, and write ``embeddings.json``."""
    for part, rows in items.rows.items():
        broken = [len(own) for file, own in manifest["broken"].items() if file.startswith(f"{part}-")]
        manifest["items"][part] = len(rows) - sum(broken)
    write_json(out / MANIFEST, manifest)


@torch.inference_mode()
def _make(
    out: Path,
    manifest: dict[str, Any],
    items: Items,
    absent: dict[tuple[str, int], str],
    encoder: Encoder,
    device: str,
    workers: int,
    skip_broken: bool,
    on_batch: Callable[[int, int], None] | None,
) -> None:
    """Write the shards that are absent; raise at the end if images are broken and not to be skipped."""
    size, step, total = manifest["shard_size"], manifest["batch_size"], sum(map(len, items.rows.values()))
    rows = {shard: _shard(items.rows[shard[0]], size, shard[1]) for shard in absent}
    batches = [(part, own[i : i + step]) for (part, _), own in rows.items() for i in range(0, len(own), step)]
    loader = torch.utils.data.DataLoader(
        _Batches(items, encoder, batches),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=device.startswith("cuda"),
    )
    prepared = iter(loader)
    done, all_broken = total - sum(map(len, rows.values())), dict[str, str]()
    for (part, number), file in absent.items():
        embeddings, good, broken = list[Tensor](), list[np.ndarray](), dict[str, str]()
        for tensors, read, unread in islice(prepared, -(-len(rows[part, number]) // step)):
            if tensors:
                moved = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
                embeddings.append(encoder.forward(moved).float().cpu())
            good.append(read)
            broken |= unread
            done += len(read)
            if on_batch is not None:
                on_batch(done, total)
        all_broken |= broken
        if broken and not skip_broken:
            continue
        if broken:
            manifest["broken"][file] = broken
            _store(out, manifest, items)
        if not embeddings:
            raise DataError(f"no image of shard {file} can be read{_listed(broken)}")
        whole = torch.cat(embeddings)
        if manifest["normalize"]:
            whole = torch.nn.functional.normalize(whole, dim=1)
        X = whole.to(getattr(torch, manifest["dtype"])).numpy()
        if not np.isfinite(X).all():
            raise DataError(f"embeddings of {file} are NaN or too large; use dtype float32 without half.")
        write_shard(
            out / file, X, _shard(items.labels[part], size, number)[np.concatenate(good)], items.classes
        )
    if all_broken and not skip_broken:
        raise DataError(
            f"{len(all_broken)} of {total:,} images cannot be read. Repair or remove them and run the "
            "command again, or leave them out with --skip-broken (skip_broken=True). Shards without them are "
            f"kept in {out}."
            f"{_listed(all_broken)}"
        )


def _listed(broken: dict[str, str]) -> str:
    return "".join(f"\n  {name}: {why}" for name, why in broken.items())


class _Batches(torch.utils.data.Dataset[Any]):
    """The tensors of each batch, which of its items were read, and why others were not."""

    def __init__(self, items: Items, encoder: Encoder, batches: list[tuple[str, np.ndarray]]) -> None:
        self.items, self.prepare, self.batches = items, encoder.prepare, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], np.ndarray, dict[str, str]]:
        part, rows = self.batches[index]
        source, values, broken = self.items.parts[part], list[Any](), dict[str, str]()
        read = np.zeros(len(rows), dtype=bool)
        for i, value in enumerate(source.take(rows)):
            try:
                values.append(read_image(value) if self.items.kind == "image" else value)
                read[i] = True
            except Exception as error:  # whatever Pillow raises for a broken image
                why = str(error).strip().partition("\n")[0] or type(error).__name__
                unknown = type(error).__name__ == "UnidentifiedImageError"  # it would name objects and paths
                broken[source.name(rows[i])] = "no image that Pillow can read" if unknown else why
        return dict(self.prepare(values)) if values else {}, read, broken
