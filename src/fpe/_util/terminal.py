"""Lay out tables, show progress on a terminal, and silence the loggers of other libraries."""

from __future__ import annotations

import itertools
import logging
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

#: Seconds between two lines of progress where there is no terminal.
SECONDS_APART = 15.0
#: The rate is that of the last steps, in so many seconds, and is known after the least of them.
RECENT, LEAST = 60.0, 5.0


@contextmanager
def progress_bar(label: str, total: int, visible: bool = True) -> Iterator[Callable[..., None]]:
    """Show progress on standard error while the block runs: a bar on a terminal, else a line now and then.

    Yields a function to call after each step with a short text, which is shown behind the bar; or with a
    text, the number of finished steps and the total.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not visible:
        yield lambda text, done=None, total=None: None
        return
    if not console.is_terminal:
        yield _Lines(label, total)
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


def say(text: str) -> None:
    """Write a line to standard error, where progress is."""
    print(text, file=sys.stderr, flush=True)


class _Lines:
    """Writes progress as lines, with at least `SECONDS_APART` between them."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done = label, total, 0
        self.last = time.monotonic()
        self.recent = deque[tuple[float, int]]()  # when, and how many steps were done; what starts up is none

    def __call__(self, text: str, done: int | None = None, total: int | None = None) -> None:
        self.done, self.total = self.done + 1 if done is None else done, total or self.total
        now = time.monotonic()
        if self.done:
            self.recent.append((now, self.done))
        while len(self.recent) > 2 and now - self.recent[1][0] > RECENT:
            self.recent.popleft()
        if now - self.last < SECONDS_APART or not self.done:
            return
        self.last = now
        say(f"{self.label}: {self.done} of {self.total}{self._left(now)}; {text}")

    def _left(self, now: float) -> str:
        """Say how much time is left, as soon as the rate is known."""
        since, before = self.recent[0]
        if now - since < LEAST or self.done <= before or self.done >= self.total:
            return ""
        minutes = (now - since) * (self.total - self.done) / (self.done - before) / 60
        return f", about {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"


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


@contextmanager
def loading_quietly() -> Iterator[None]:
    """Keep what torchao reports off the terminal, such as libraries for GPUs: transformers imports it."""
    with silenced("torchao", "torch.utils._pytree", above=logging.WARNING):
        yield


def braced(names: Sequence[str]) -> str:
    """Write several names of one parent as one: ``mlp.{gate, up}``."""
    if len(names) == 1:
        return names[0]
    parents = {name.rpartition(".")[0] for name in names}
    if len(parents) > 1:
        return ", ".join(names)
    parent = parents.pop()
    last = ", ".join(name.rpartition(".")[2] for name in names)
    return f"{parent}.{{{last}}}" if parent else last


def folded(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Write rows that differ only in the number of a layer as one, such as ``h.{0-11}.mlp``."""
    numbers = re.compile(r"(?<=\.)\d+(?=\.)")
    groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for row in rows:
        groups.setdefault(tuple(numbers.sub("#", cell) for cell in row), []).append(row)
    lines = []
    for alike in groups.values():
        found = [numbers.findall(row[0]) for row in alike]
        differing = [i for i in range(len(found[0])) if len({f[i] for f in found}) > 1]
        if len(alike) < 2 or len(differing) != 1:
            lines += alike
            continue
        first, span = found[0][differing[0]], _span(sorted(int(f[differing[0]]) for f in found))
        lines.append(tuple(re.sub(rf"(?<=\.){first}(?=\.)", span, cell, count=1) for cell in alike[0]))
    return lines


def _span(values: Sequence[int]) -> str:
    """Write sorted integers as ``{0-3,7}``."""
    runs = []
    for _, run in itertools.groupby(enumerate(values), lambda pair: pair[1] - pair[0]):
        ends = [value for _, value in run]
        runs.append(str(ends[0]) if len(ends) == 1 else f"{ends[0]}-{ends[-1]}")
    return "{" + ",".join(runs) + "}"


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lay a table out in lines: the first `left` columns flush left, the rest flush right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, strict=True)
        return "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(cells)).rstrip()

    return [line(head), "  ".join("-" * w for w in widths), *(line(row) for row in rows)]
