"""Throughput of ``fpe embed`` on 2,000 small images, reading and preparing them included.

Named alternative: the bare encoder's forward passes over batches that lie ready in memory, in the same
rounds. The encoder is a CLIP whose tower of images has the size of DeiT-Tiny (224 × 224 pixels, 12 layers of
192), with random weights. Usage: python reproduction/benchmarks/embed.py [--rounds 3] [--images 2000] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from fpe._util.files import write_json
from fpe.compare.store import provenance
from fpe.data.embed.encoders import load_encoder
from fpe.data.embed.run import embed

SIDE, BATCH = 224, 64


def write_images(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(count // 2):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
                folder / name / f"{i}.png"
            )


def write_encoder(folder: Path) -> None:
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 12, "num_attention_heads": 3}
    vision |= {"image_size": SIDE, "patch_size": 16, "projection_dim": 128}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)


def bare(encoder, images: int) -> float:
    """Return images per second of forward passes alone."""
    batch = {"pixel_values": torch.randn(BATCH, 3, SIDE, SIDE)}
    with torch.inference_mode():
        encoder.forward(batch)
        start = time.perf_counter()
        for _ in range(images // BATCH):
            encoder.forward(batch)
    return images // BATCH * BATCH / (time.perf_counter() - start)


def whole(source: Path, encoder: Path, out: Path, images: int, workers: int) -> float:
    """Return images per second between the first batch and the last, as a long run has them."""
    times: list[tuple[float, int]] = []
    embed(
        str(source),
        out,
        encoder=str(encoder),
        batch_size=BATCH,
        workers=workers,
        on_batch=lambda done, _: times.append((time.perf_counter(), done)),
    )
    (begin, first), (end, last) = times[0], times[-1]
    return (last - first) / (end - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images", arguments.images)
        write_encoder(folder / "clip")
        encoder = load_encoder(str(folder / "clip"), "image", device="cpu")
        rounds = []
        for number in range(arguments.rounds):
            row = {"bare": bare(encoder, arguments.images)}
            for workers in (1, 0):
                out = folder / f"out-{number}-{workers}"
                row[f"workers-{workers}"] = whole(
                    folder / "images", folder / "clip", out, arguments.images, workers
                )
            rounds.append(row)
            print({key: round(value, 1) for key, value in row.items()}, flush=True)
    ratios = {key: sorted(row[key] / row["bare"] for row in rounds) for key in ("workers-1", "workers-0")}
    for key, values in ratios.items():
        spread = f"({values[0]:.2f} to {values[-1]:.2f})"
        print(f"{key}: {statistics.median(values):.2f} {spread} of the bare encoder's rate")
    if arguments.out:
        record = {"images": arguments.images, "rounds": rounds, "ratios": ratios, "provenance": provenance()}
        write_json(arguments.out, record)


if __name__ == "__main__":
    main()
