"""Read one image, of any kind that Pillow knows, as 8-bit RGB."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np

from fpe.errors import ArgumentError

#: Kinds that Pillow recognises but cannot read on every machine, or at all.
_RECOGNISED_ONLY = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
#: Images that Pillow cannot read; a class folder that holds nothing else is an error.
UNREADABLE = (".heic", ".heif", ".jxl", ".svg", ".cr2", ".nef", ".arw", ".dng", ".raw")


@functools.cache
def _endings() -> frozenset[str]:
    """Return the file name endings of what Pillow reads."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ArgumentError(
            f"fpe embed needs Pillow ({error}): pip install 'fixed-parameter-expansion[embed]'"
        ) from error
    kinds = Image.registered_extensions()
    return frozenset(
        end for end, kind in kinds.items() if kind in Image.OPEN and kind not in _RECOGNISED_ONLY
    )


def is_image_name(name: str) -> bool:
    """Say whether a name has the ending of an image that Pillow reads."""
    return Path(name).suffix.lower() in _endings()


def is_image(path: Path) -> bool:
    """Say whether a file is an image that Pillow reads: by its ending, or else by its content."""
    if is_image_name(path.name):
        return True
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.format not in _RECOGNISED_ONLY
    except Exception:  # whatever a file that is no image makes of the plugins
        return False


def read_image(source: Any) -> Any:
    """Read an image as 8-bit RGB.

    It is turned as its EXIF data say. What is transparent becomes white. 16-bit values are scaled from
    0 … 65535 to 0 … 255, floating-point values from 0 … 1. Of several frames the first is taken.

    Parameters
    ----------
    source : path-like, bytes or mapping
        A file, its content, or ``{"bytes": …, "path": …}`` as Hugging Face datasets store images.

    Returns
    -------
    PIL.Image.Image
        Of mode RGB.

    Raises
    ------
    Exception
        Whatever Pillow raises for a broken file; ValueError for pixels without a known range.
    """
    from PIL import Image

    if isinstance(source, dict):
        if source.get("bytes") is None and not Path(source.get("path") or "").is_file():
            import datasets  # files in archives

            return _as_rgb(datasets.Image().decode_example(source))
        source = source.get("bytes") or source["path"]
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return _as_rgb(image)


def _as_rgb(image: Any) -> Any:
    from PIL import Image, ImageOps

    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data beside sound pixels
        image.info.pop("exif", None)
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA") if image.mode not in ("La", "RGBa") else _unmultiplied(image)
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _unmultiplied(image: Any) -> Any:
    """Turn premultiplied alpha into RGBA."""
    return image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")


def _eight_bits(image: Any) -> np.ndarray:
    """Scale grey values of more than eight bits by the range of their type, never by what an image holds."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError("floating-point pixels outside 0 … 1; convert them to 8 or 16 bits")
        values = values * 255
    elif image.mode.startswith("I;16") or getattr(image, "format", None) == "PNG":
        values = values / 257
    else:
        raise ValueError("32-bit integer pixels have no known range; convert them to 8 or 16 bits")
    return np.rint(values).astype(np.uint8)
