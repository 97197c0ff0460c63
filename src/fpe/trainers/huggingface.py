"""Callbacks for the Trainer of transformers: two lines more, and a model is expanded, or rewired."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fpe.checkpoint import reshape_, shapes_of
from fpe.errors import ArgumentError, CheckpointError, ModelError
from fpe.files import write_atomically
from fpe.inplace import check_moments, expand_
from fpe.masked import MaskedLayer
from fpe.rewiring.policies import Policy, as_policy
from fpe.rewiring.rewirer import Rewirer
from fpe.rewiring.schedule import Schedule

FILE = "fpe.json"
REWIRER = "fpe-rewirer.pt"


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


class Rewire(TrainerCallback):
    """Let the masks of an expanded model move while it is trained.

    For a model that `Expand`, which must stand before it, or `fpe.expand` has expanded. Every checkpoint gets
    a file ``fpe-rewirer.pt``.

    Parameters
    ----------
    policy, schedule, seed
        As for `fpe.Rewirer`. The schedule refers to the steps that are left when the model is expanded.
    resume_from_checkpoint : path-like, optional
        A checkpoint of a Trainer with this callback, to go on from; give it to ``trainer.train`` too.

    Raises
    ------
    ArgumentError
        For an unknown policy.
    CheckpointError
        If there is no such checkpoint, or when it begins, if that is of another model or policy.
    """

    def __init__(
        self,
        policy: str | Policy = "rigl",
        schedule: Schedule | None = None,
        seed: int = 0,
        resume_from_checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        self.policy = as_policy(policy)
        self.how: dict[str, Any] = {"schedule": schedule, "seed": seed}
        self.rewirer: Rewirer | None = None
        self._stored: dict[str, Any] | None = None
        if resume_from_checkpoint is not None:
            folder = Path(resume_from_checkpoint)
            if not folder.is_dir():
                raise CheckpointError(
                    f"there is no folder {folder}; give a checkpoint that the Trainer wrote."
                )
            if (folder / REWIRER).is_file():  # else it was written before the expansion
                self._stored = torch.load(folder / REWIRER, weights_only=True)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin when there are masks."""
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        if self.rewirer is None and any(isinstance(m, MaskedLayer) for m in model.modules()):
            steps = self._stored["steps"] if self._stored else state.max_steps - state.global_step
            self.rewirer = Rewirer(model, optimizer, self.policy, steps=steps, **self.how)
            if self._stored is not None:
                self.rewirer.load_state_dict(self._stored)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count a step, and let masks move if it is time."""
        if self.rewirer is not None:
            self.rewirer.step()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what is needed to resume beside the checkpoint."""
        if self.rewirer is None:
            return
        own = self.rewirer.state_dict()  # all processes take part in it
        if args.should_save:
            folder = Path(args.output_dir or ".", f"checkpoint-{state.global_step}")
            write_atomically(folder / REWIRER, lambda temporary: torch.save(own, temporary))


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
