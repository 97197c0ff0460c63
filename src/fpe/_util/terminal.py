"""Show progress on a terminal, and keep other libraries' remarks out of the output."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(label: str, total: int, visible: bool = True) -> Iterator[Callable[..., None]]:
    """Show a bar on standard error while the block runs, if that is a terminal.

    Parameters
    ----------
    label : str
        Stands before the bar.
    total : int
        Steps to come.
    visible : bool, default True
        False shows nothing anywhere.

    Yields
    ------
    callable
        Call it after each step with a short text, which stands behind the bar; or with a text, how many
        steps are done, and of how many.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (visible and console.is_terminal):
        yield lambda text, done=None, total=None: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
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
