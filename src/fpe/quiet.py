"""Keep a library's own remarks out of what a command prints."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silenced(*names: str, above: int = logging.ERROR) -> Iterator[None]:
    """Let the loggers of these names, and those below them, report nothing that is not worse than `above`."""
    known = [
        name for name in logging.root.manager.loggerDict if name.startswith(tuple(f"{n}." for n in names))
    ]
    loggers = [logging.getLogger(name) for name in (*names, *known)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(logger.level, above + 1))
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
