"""A callback for the Trainer of transformers: two lines more in a script, and the model is expanded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fpe.checkpoint import reshape_, shapes_of
from fpe.errors import ArgumentError, CheckpointError, ModelError
from fpe.files import write_atomically
from fpe.inplace import check_moments, expand_

FILE = "fpe.json"


class Expand(TrainerCallback):
    """Expand the model before an epoch, and let the trainer's optimizer and schedule go on.

    Every checkpoint that is written after it gets a small file ``fpe.json`` with its shapes. To resume,
    call `restore_shape` on the dense model before the Trainer is made.

    Parameters
    ----------
    epoch : float, default 0
        Counted from 0; 1.0 is after one pass over the data. Training on several processes wraps the model
        when it starts: there, expand it before the Trainer is made.
    moments : str, default "fresh"
        As for `fpe.expand_`.
    **how
        All other arguments of `fpe.expand`.

    Raises
    ------
    ArgumentError
        For a bad epoch or `moments`.
    ModelError
        When training starts on several processes.
    """

    def __init__(self, epoch: float = 0, moments: str = "fresh", **how: Any) -> None:
        if isinstance(epoch, bool) or not isinstance(epoch, int | float) or epoch < 0:
            raise ArgumentError(f"epoch is {epoch!r}; give a number of at least 0.")
        check_moments(moments)
        self.epoch, self.moments, self.how = epoch, moments, how
        self.done = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse what cannot be done, before any step; take a model that has been expanded as it is."""
        self.done = hasattr(kwargs["model"], "fpe_plan")
        if not self.done and args.world_size > 1:
            raise ModelError(
                f"Expand on {args.world_size} processes: the model is wrapped for them when training starts. "
                "Expand it before the Trainer is made: model = fpe.expand(model, …)."
            )

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Expand when the epoch has come."""
        if not self.done and round(state.epoch or 0, 6) >= self.epoch:
            expand_(kwargs["model"], kwargs["optimizer"], self.moments, **self.how)
            self.done = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the shapes beside the checkpoint."""
        if self.done and args.should_save:
            folder = Path(args.output_dir or ".", f"checkpoint-{state.global_step}")
            text = json.dumps(shapes_of(kwargs["model"]))
            write_atomically(folder / FILE, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def restore_shape(model: nn.Module, folder: str | os.PathLike[str]) -> nn.Module:
    """Give a dense model, in place, the shape of a checkpoint of an expanded one, so that it can be loaded.

    Parameters
    ----------
    model : nn.Module
        The dense model; its weights will be those of the checkpoint. It is changed, and returned.
    folder : path-like
        A checkpoint of a Trainer with `Expand`; one that was written before the expansion changes nothing.

    Raises
    ------
    CheckpointError
        If there is no such folder, or its shapes are of another model.
    """
    if not Path(folder).is_dir():
        raise CheckpointError(f"there is no folder {folder}; give a checkpoint that the Trainer wrote.")
    path = Path(folder, FILE)
    if path.is_file():
        reshape_(model, json.loads(path.read_text(encoding="utf-8")))
    return model
