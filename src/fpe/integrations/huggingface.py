"""Callbacks for the Trainer of transformers: two lines more, and a model is expanded, or rewired."""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fpe._util.files import write_atomically
from fpe.errors import ArgumentError, CheckpointError, ModelError
from fpe.expansion.inplace import check_moments, expand_, foresee
from fpe.expansion.plan import plans_in
from fpe.expansion.pruning import InputPruning, as_pruning
from fpe.integrations.loading import dense_kept, holds_masks, loading_of
from fpe.integrations.warn import (
    has_masks,
    warn_expanded_already,
    warn_no_masks,
    warn_too_late,
    warn_unless_moving,
)
from fpe.io.checkpoint import reshape_, shapes_of
from fpe.rewiring.policies import RewiringPolicy, as_policy
from fpe.rewiring.rewirer import Rewirer
from fpe.rewiring.schedule import RewiringSchedule

FILE = "fpe.json"
REWIRER = "fpe-rewirer.pt"
ADVICE = (
    "Give the model the checkpoint's shape first, before the Trainer is made: "
    "fpe.integrations.huggingface.restore_shape(model, folder)."
)
#: By how much the Trainer's epoch, a sum of floats, may be off.
SLACK = 1e-6


class Expand(TrainerCallback):
    """Expand the model before an epoch, and let the trainer's optimizer and schedule go on.

    Every checkpoint that is written after it gets a small file ``fpe.json`` with its shapes, and so does
    every folder that ``trainer.save_model`` or ``model.save_pretrained`` writes. To resume, call
    `restore_shape` on the dense model before the Trainer is made. Weights from before the expansion, as of
    ``load_best_model_at_end``, make the model dense again. One callback serves any number of Trainers, one
    after another.

    Parameters
    ----------
    epoch : float, default 0
        Counted from 0; 1.0 is after one pass over the data, 0.5 before the first step after half of it.
        Training on several processes wraps the model when it starts: there, expand it before the Trainer
        is made.
    moments : str, default "fresh"
        As for `fpe.expand_`.
    **how
        All other arguments of `fpe.expand`; not a ranking by gradient, since the Trainer clears gradients.

    Raises
    ------
    ArgumentError
        For a bad epoch or `moments`, or a ranking by gradient.
    ModelError, BudgetError
        When training starts: if the model cannot be expanded as asked, or on several processes, or if the
        Trainer has loaded dense weights into a model that its optimizer knows expanded.
    CheckpointError
        If weights of an expanded model are loaded into the dense one.

    Warns
    -----
    UserWarning
        If training ends before the epoch (at the start where the length of the data is known, else at the
        end), or if a model that is expanded already is left as it is.
    """

    def __init__(self, epoch: float = 0, moments: str = "fresh", **how: Any) -> None:
        if isinstance(epoch, bool) or not isinstance(epoch, int | float) or not 0 <= epoch < math.inf:
            raise ArgumentError(f"epoch is {epoch!r}; give a number of at least 0, 0.5 for half an epoch.")
        check_moments(moments)
        prune = as_pruning(how.get("prune", "magnitude"))
        if isinstance(prune, InputPruning) and prune.by == "gradient":
            raise ArgumentError(
                f"prune is {prune!r}, and the Trainer clears the gradients after each step; give another "
                "ranking, or call fpe.expand_ in a loop of your own."
            )
        self.epoch, self.moments, self.how = epoch, moments, how
        self.done = self._warned = False

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Be there when the Trainer reads a checkpoint, which is before training begins."""
        loading_of(kwargs["model"], ADVICE)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse what cannot be done, before any step; take a model that has been expanded as it is."""
        model = kwargs["model"]
        self.done, self._warned = bool(plans_in(model)), False
        _check_trained(model, kwargs.get("optimizer"))
        if self.done:
            if not state.global_step:  # not a checkpoint whose shape was restored
                warn_expanded_already()
            return
        if args.world_size > 1:
            raise ModelError(
                f"Expand on {args.world_size} processes: the model is wrapped for them when training starts. "
                "Expand it before the Trainer is made: model = fpe.expand(model, …)."
            )
        foresee(model, self.how)
        last = _last_epoch(args, state, kwargs.get("train_dataloader"))
        if last is not None and self.epoch > last + SLACK:
            self._warned = True
            warn_too_late(self.epoch, f"the last of its {state.max_steps:,} steps begins at epoch {last:.3g}")

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Expand when the epoch has come."""
        if not self.done and (state.epoch or 0) + SLACK >= self.epoch:
            model = kwargs["model"]
            with dense_kept(model, ADVICE):
                expand_(model, kwargs["optimizer"], self.moments, **self.how)
            _save_with_shapes(model)
            self.done = True

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Expand when the epoch has come, if that is within one."""
        self.on_epoch_begin(args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say if the epoch has not come."""
        if not self.done and not self._warned:
            warn_too_late(self.epoch, f"it ended at epoch {state.epoch or 0:.3g}")

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the shapes beside the checkpoint."""
        if self.done and args.should_save:
            _write_shapes(kwargs["model"], Path(args.output_dir or ".", f"checkpoint-{state.global_step}"))


class Rewire(TrainerCallback):
    """Let the masks of an expanded model move while it is trained.

    For a model that `Expand`, which must stand before it, or `fpe.expand` has expanded. Every checkpoint gets
    a file ``fpe-rewirer.pt``. One callback serves any number of Trainers, one after another.

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

    Warns
    -----
    UserWarning
        If no mask will move, or has moved, or if only one of training and rewirer resumes.
    """

    def __init__(
        self,
        policy: str | RewiringPolicy = "rigl",
        schedule: RewiringSchedule | None = None,
        seed: int = 0,
        resume_from_checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        self.policy = as_policy(policy)
        self.how: dict[str, Any] = {"schedule": schedule, "seed": seed}
        self.rewirer: Rewirer | None = None
        self._stored: dict[str, Any] | None = None
        self._resumed: dict[str, Any] | None = None
        if resume_from_checkpoint is not None:
            folder = Path(resume_from_checkpoint)
            if not folder.is_dir():
                raise CheckpointError(
                    f"there is no folder {folder}; give a checkpoint that the Trainer wrote."
                )
            if (folder / REWIRER).is_file():  # else it was written before the expansion
                self._stored = torch.load(folder / REWIRER, weights_only=True)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget the model that was trained before."""
        self.rewirer = None
        self._resumed = self._stored if state.global_step else None
        if self._stored and not state.global_step:
            warnings.warn(
                "Rewire(resume_from_checkpoint=…) is not used, since training starts at step 0; give the "
                "checkpoint to trainer.train(resume_from_checkpoint=…) too.",
                stacklevel=2,
            )
        if state.global_step and self._stored is None and has_masks(kwargs["model"]):
            warnings.warn(
                f"training resumes at step {state.global_step:,}, and the schedule of Rewire starts anew "
                "there; give the checkpoint to Rewire(resume_from_checkpoint=…) too.",
                stacklevel=2,
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin when there are masks."""
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        if self.rewirer is None and has_masks(model):
            stored = self._resumed
            steps = stored["steps"] if stored else state.max_steps - state.global_step
            self.rewirer = Rewirer(model, optimizer, self.policy, steps=steps, **self.how)
            if stored is not None:
                self.rewirer.load_state_dict(stored)
            warn_unless_moving(self.rewirer)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say if there were no masks."""
        if self.rewirer is None:
            warn_no_masks()

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


def _last_epoch(args: TrainingArguments, state: TrainerState, loader: Any) -> float | None:
    """Return the epoch at which the last step begins, None if the length of the data is not known."""
    try:
        batches = len(loader)
    except TypeError:  # a stream
        return None
    accumulated = args.gradient_accumulation_steps
    per_epoch = max(1, math.ceil(batches / accumulated))
    epochs, steps = divmod(state.max_steps - 1, per_epoch)
    return epochs + min(1.0, steps * accumulated / max(1, batches))


def _check_trained(model: nn.Module, optimizer: Any) -> None:
    """Refuse an optimizer that still trains the layers of a model that has been made dense again."""
    if optimizer is None or not loading_of(model, ADVICE).restored:
        return
    own = {id(parameter) for parameter in model.parameters()}
    if any(id(p) not in own for group in optimizer.param_groups for p in group["params"]):
        raise ModelError(
            "the model is dense again, since weights from before its expansion have been loaded, and the "
            "optimizer of this Trainer trains the layers that it had; make a new Trainer."
        )


def save_pretrained(
    model: PreTrainedModel,
    save_directory: str | os.PathLike[str],
    is_main_process: bool = True,
    **settings: Any,
) -> None:
    """Save a model of transformers as its own ``save_pretrained`` does, with its shapes beside the weights.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Expanded, so that `restore_shape` can give a dense model its shape, or dense.
    save_directory : path-like
        The folder; a file ``fpe.json`` of an expanded model that is overwritten by a dense one is removed.
    is_main_process, **settings
        As for ``save_pretrained``.
    """
    type(model).save_pretrained(model, save_directory, is_main_process, **settings)
    if is_main_process:
        _write_shapes(model, Path(save_directory))


def _save_with_shapes(model: nn.Module) -> None:
    """Let the model's own ``save_pretrained``, which ``trainer.save_model`` calls, write its shapes."""
    if isinstance(model, PreTrainedModel):
        model.save_pretrained = MethodType(save_pretrained, model)  # type: ignore[method-assign]


def _write_shapes(model: nn.Module, folder: Path) -> None:
    """Write the shapes of an expanded model beside its weights; a dense model has none."""
    if plans_in(model):
        text = json.dumps(shapes_of(model))
        write_atomically(folder / FILE, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    else:
        (folder / FILE).unlink(missing_ok=True)


def restore_shape(model: nn.Module, folder: str | os.PathLike[str]) -> nn.Module:
    """Give a dense model, in place, the shape of a checkpoint of an expanded one, so that it can be loaded.

    Parameters
    ----------
    model : nn.Module
        The dense model; its weights will be those of the checkpoint. It is changed, and returned.
    folder : path-like
        A checkpoint of a Trainer with `Expand`, or what its ``save_model``, or `save_pretrained`, wrote; one
        that was written before the expansion changes nothing.

    Raises
    ------
    CheckpointError
        If there is no such folder, or its shapes are of another model, or are missing beside the weights of
        an expanded one.

    Warns
    -----
    UserWarning
        If there is nothing to restore.
    """
    if not Path(folder).is_dir():
        raise CheckpointError(f"there is no folder {folder}; give a checkpoint that the Trainer wrote.")
    path = Path(folder, FILE)
    if path.is_file():
        with dense_kept(model, ADVICE):
            reshape_(model, json.loads(path.read_text(encoding="utf-8")))
        _save_with_shapes(model)
        return model
    if _has_masks(Path(folder)):
        raise CheckpointError(
            f"{folder} holds the weights of an expanded model, and no {FILE} with its shapes; take one "
            "that a Trainer with Expand wrote, or fpe.integrations.huggingface.save_pretrained, or a file of "
            "fpe.save."
        )
    warnings.warn(
        f"{folder} has no {FILE}: its model is not expanded, and there is no shape to restore.", stacklevel=2
    )
    return model


def _has_masks(folder: Path) -> bool:
    """Tell whether the weights in a folder are those of an expanded model."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if holds_masks(dict.fromkeys(file.keys())):
                return True
    return False
