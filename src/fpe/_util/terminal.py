"""Show progress on a terminal, and silence the loggers of other libraries."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(label: str, total: int, visible: bool = True) -> Iterator[Callable[..., None]]:
    """Show a progress bar on standard error while the block runs, if that is a terminal.

    Yields a function to call after each step with a short text, which is shown behind the bar; or with a
    text, the number of finished steps and the total.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (visible and console.is_terminal):
        yield lambda text, done=None, total=None: None
        return
    described, texts = TextColumn("{task.description}"), TextColumn("{task.fields[text]}")
    columns = (described, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), texts)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=total, text="")

        def advance(text: str, done: int | None = None, total: int | None = None) -> None:
            if done is None:
                progress.update(task, advance=1, text=text)
            else:
                progress.update(task, completed=done, total=total, text=text)

        yield advance


@contextmanager
def silenced(*names: str, above: int = logging.ERROR) -> Iterator[None]:
    """Let the loggers of these names, and those below them, report only what is worse than `above`."""
    prefixes = tuple(f"{name}." for name in names)
    below = [name for name in logging.root.manager.loggerDict if name.startswith(prefixes)]
    # Most loggers have no level of their own, but that of their parent; setting each takes long.
    loggers = [*map(logging.getLogger, names)]
    loggers += [logger for logger in map(logging.getLogger, below) if logger.level]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(logger.level, above + 1))
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
