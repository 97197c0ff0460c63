"""Throughput of ``fpe embed`` on small images, reading and preparing them included.

Named alternative: the bare encoder's forward passes over batches that are ready in memory, in the same
rounds. The encoder is a CLIP whose image tower has the size of DeiT-Tiny (224 × 224 pixels, 12 layers of
192), with random weights. Usage: python reproduction/benchmarks/embed.py [--rounds 3] [--images 2000] [--record]
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from common import by_turns, options, record, seconds, spread

from fpe.data.embed.encoders import load_encoder
from fpe.data.embed.run import embed

BATCH = 64


def write_images(folder: Path, count: int) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(count // 2):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def write_encoder(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 12, "num_attention_heads": 3}
    vision |= {"image_size": 224, "patch_size": 16, "projection_dim": 128}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)


@torch.inference_mode()
def bare(encoder: Any, images: int) -> float:
    """Return images per second of forward passes alone."""
    batch = {"pixel_values": torch.randn(BATCH, 3, 224, 224)}
    encoder.forward(batch)
    count = max(1, images // BATCH)
    return count * BATCH / seconds(lambda: [encoder.forward(batch) for _ in range(count)])


def whole(folder: Path, out: Path, workers: int) -> float:
    """Return images per second between the first batch and the last, as a long run has them."""
    times: list[tuple[float, int]] = []
    embed(
        str(folder / "images"),
        out,
        encoder=str(folder / "clip"),
        batch_size=BATCH,
        workers=workers,
        on_batch=lambda done, _: times.append((time.perf_counter(), done)),
    )
    (begin, first), (end, last) = times[0], times[-1]
    return (last - first) / (end - begin)


def main() -> None:
    given = options(__doc__, rounds=3, images=2000)
    with tempfile.TemporaryDirectory() as name:
        folder, number = Path(name), itertools.count()
        write_images(folder / "images", given.images)
        write_encoder(folder / "clip")
        encoder = load_encoder(str(folder / "clip"), "image", device="cpu")
        runs = {"bare": lambda: bare(encoder, given.images)}
        for workers in (1, 0):
            runs[f"workers-{workers}"] = lambda w=workers: whole(folder, folder / f"out-{next(number)}", w)
        rates = by_turns(runs, given.rounds)
    ratios = {key: rates[key] / rates["bare"] for key in ("workers-1", "workers-0")}
    for key, values in ratios.items():
        print(f"{key}: {spread(values)} of the bare encoder's {spread(rates['bare'], '.0f')} images a second")
    if given.record:
        rates |= {f"{key}, ratio": values for key, values in ratios.items()}
        record("embed", {"images": given.images, **{key: list(values) for key, values in rates.items()}})


if __name__ == "__main__":
    main()
