"""What a file holds: its bytes without compression, and its text as UTF-8."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
import zlib
from pathlib import Path

from fpe.errors import DataError

#: First bytes of a compressed file, and what decompresses it.
_COMPRESSED = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ\x00": lzma.decompress}
#: Byte order marks; the longer of two with the same beginning comes first.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file, decompressed if its first bytes say gzip, bzip2, xz or zip.

    Raises
    ------
    DataError
        If the file is missing, empty or broken, or a zip archive holds more than one file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error
    try:
        for mark, decompress in _COMPRESSED.items():
            if data.startswith(mark):
                data = decompress(data)
                break
        else:
            if data.startswith(b"PK\x03\x04"):
                data = _only_member(data, path)
    except (
        OSError,
        EOFError,
        ValueError,
        zlib.error,
        lzma.LZMAError,
        zipfile.BadZipFile,
        RuntimeError,
    ) as error:
        raise DataError(
            f"{path} is compressed, but truncated or broken ({error}); fetch it again."
        ) from error
    if not data.strip():
        raise DataError(f"{path} is empty; give a file with data.")
    return data


def as_utf8(data: bytes, path: Path) -> tuple[bytes, str | None]:
    """Return text as UTF-8, and the name of its encoding if that was guessed.

    A byte order mark says the encoding; without one it is UTF-8, or UTF-16 where every other byte is zero, or
    else Windows-1252, of which Latin-1's printable characters are a part.

    Raises
    ------
    DataError
        If the bytes are no text.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _recoded(data, encoding, path), None
    if b"\0" in data:
        odd = data[1:2001:2].count(0) > data[0:2000:2].count(0)
        return _recoded(data, "utf-16-le" if odd else "utf-16-be", path), "UTF-16"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        try:
            return data.decode("cp1252").encode(), "Latin-1 (Windows-1252)"
        except UnicodeDecodeError:
            return data.decode("latin-1").encode(), "Latin-1"
    return data, None


def _recoded(data: bytes, encoding: str, path: Path) -> bytes:
    try:
        return data.decode(encoding).encode()
    except UnicodeError as error:
        raise DataError(f"{path} is no text in {encoding.upper()} ({error}); write it as UTF-8.") from error


def _only_member(data: bytes, path: Path) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [
            name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")
        ]
        if len(members) != 1:
            shown = ", ".join(members[:5]) or "none"
            raise DataError(
                f"{path} holds {len(members)} files ({shown}); unpack it, and name the table that is meant."
            )
        return archive.read(members[0])
