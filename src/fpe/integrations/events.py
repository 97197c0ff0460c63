"""Events of a training: a model is expanded, rewired or pruned. Callbacks log them, as lines of JSON too."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from torch import nn

from fpe._util.modules import unwrapped
from fpe.errors import ArgumentError, WriteError
from fpe.integrations.base import RewireBase
from fpe.masked import HasMasks
from fpe.rewiring.gradual import PruningSchedule
from fpe.rewiring.sites import whole_count


class EventLog:
    """Notice when a model is expanded, rewired or pruned, and write a line of JSON for each such event.

    `record` costs little at steps without an event: it counts only when something has changed.

    Parameters
    ----------
    file : path-like or text stream, optional
        Lines are added to it. By default none are written; `record` returns them.

    Examples
    --------
    >>> import torch, fpe
    >>> from fpe.integrations.events import EventLog
    >>> log, wide = EventLog(), fpe.expand(fpe.mlp(8, 4, 2, seed=0), factor=2)
    >>> optimizer = torch.optim.Adam(wide.parameters())
    >>> rewirer = fpe.Rewirer(wide, optimizer, "set", steps=100, schedule=fpe.RewiringSchedule(every=40))
    >>> for step in range(1, 51):
    ...     optimizer.zero_grad()
    ...     wide(torch.randn(16, 8)).square().mean().backward()
    ...     optimizer.step()
    ...     rewirer.step()
    ...     event = log.record(wide, step, rewirer)
    ...     if event:
    ...         print(event["event"], event["step"], event["nonzero"], event["rewirings"])
    start 1 46 0
    rewiring 40 46 1
    """

    def __init__(self, file: str | os.PathLike[str] | TextIO | None = None) -> None:
        if not (file is None or isinstance(file, str | os.PathLike) or hasattr(file, "write")):
            raise ArgumentError(f"file is {file!r}; give a path, or a text stream such as sys.stdout.")
        self.file = file
        self.last: dict[str, Any] | None = None  # the last event
        self._known: tuple[Any, ...] | None = None

    def record(
        self, model: nn.Module, step: int, rewirer: Any = None, *, write: bool = True
    ) -> dict[str, Any] | None:
        """Return what has happened since the last call, and write it; None if nothing has.

        Parameters
        ----------
        model : nn.Module
            The model that is trained.
        step : int
            Steps of the optimizer so far.
        rewirer : Rewirer, BlockRewirer, GradualPruner or BlockPruner, optional
            What changes its masks.
        write : bool, default True
            Whether this process writes. If a model is sharded, all processes must call this.

        Returns
        -------
        dict or None
            ``event`` (``"start"``, ``"expansion"``, ``"dense"`` if layers have become dense again,
            ``"opening"`` of masks, ``"rewiring"`` or ``"pruning"``), ``step``, ``nonzero``, ``density`` and,
            if there is a rewirer, ``rewirings`` and ``grown``, the weights that it has grown so far.

        Raises
        ------
        WriteError
            If the line cannot be written.
        """
        network = unwrapped(model)
        inner = getattr(rewirer, "rewirer", None) or rewirer  # a pruner's own, which goes on at the budget
        layers = sum(isinstance(module, HasMasks) for module in network.modules())
        now = (layers, rewirer is not None, _pruned_at(rewirer), getattr(inner, "rewirings", 0))
        if now == self._known:
            return None
        before, self._known = self._known, now
        nonzero, parameters = whole_count(network), sum(p.numel() for p in network.parameters())
        if before is None:
            event = "start"
        elif layers != before[0]:
            event = "expansion" if layers > before[0] else "dense"
        elif now[2:] != before[2:]:
            event = "pruning" if now[2] != before[2] else "rewiring"
        elif self.last is not None and nonzero == self.last["nonzero"]:
            return None
        else:
            event = "opening"
        found = {"event": event, "step": step, "nonzero": nonzero, "density": nonzero / max(1, parameters)}
        if hasattr(inner, "grown"):
            found |= {"rewirings": inner.rewirings, "grown": sum(inner.grown.values())}
        self.last = found
        if write:
            self._write(json.dumps(found) + "\n")
        return found

    def _write(self, line: str) -> None:
        try:
            if isinstance(self.file, str | os.PathLike):
                Path(self.file).parent.mkdir(parents=True, exist_ok=True)
                with open(self.file, "a", encoding="utf-8") as stream:
                    stream.write(line)
            elif self.file is not None:
                self.file.write(line)
                self.file.flush()
        except OSError as error:
            raise WriteError(
                f"the event cannot be written to {self.file} ({error}); free some space, or give another one."
            ) from error


def metrics(event: dict[str, Any] | None) -> dict[str, float]:
    """Return the numbers of an event, for loggers."""
    return {f"fpe/{name}": value for name, value in (event or {}).items() if name not in ("event", "step")}


def rewirer_among(callbacks: Iterable[Any], network: str | None = None) -> Any:
    """Return what the callbacks of a trainer have made to change the masks of a network; None if nothing."""
    made = (
        c.rewirer for c in callbacks if isinstance(c, RewireBase) and getattr(c, "network", None) == network
    )
    return next((rewirer for rewirer in made if rewirer is not None), None)


def _pruned_at(rewirer: Any) -> int:
    """Return the step after which a pruner has pruned last; 0 for others."""
    schedule = getattr(rewirer, "schedule", None)
    if not isinstance(schedule, PruningSchedule):
        return 0
    return schedule.latest(rewirer.taken, rewirer.steps)
