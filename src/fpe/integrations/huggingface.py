"""Callbacks for the Trainer of transformers that expand or rewire its model."""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path
from types import MethodType
from typing import Any, TextIO

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from fpe._util.files import write_atomically
from fpe.errors import ArgumentError, CheckpointError, ModelError
from fpe.expansion.inplace import plan_ahead
from fpe.expansion.pruning import as_pruning
from fpe.graph.layers import is_transposed
from fpe.integrations.base import (
    ExpandBase,
    PruneBase,
    RewireBase,
    has_masks,
    is_expanded,
    loading_of,
    reversible,
    state_has_masks,
)
from fpe.integrations.events import EventLog, metrics, rewirer_among
from fpe.io.checkpoint import reshape_, shapes_of
from fpe.masked import BIAS_MASK, MASK, MaskedLayer
from fpe.rewiring.policies import RewiringPolicy
from fpe.rewiring.schedule import RewiringSchedule

FILE = "fpe.json"
REWIRER = "fpe-rewirer.pt"
ADVICE = (
    "Give the model the checkpoint's shape first, before the Trainer is made: "
    "fpe.integrations.huggingface.restore_shape(model, folder)."
)
#: Tolerance for the Trainer's epoch, which is a sum of floats.
SLACK = 1e-6


class Expand(ExpandBase, TrainerCallback):
    """Expand the model before an epoch; the Trainer's optimizer and schedule continue.

    Later checkpoints, and folders that ``trainer.save_model`` or ``model.save_pretrained`` writes, get a file
    ``fpe.json`` with the shapes. To resume, call `restore_shape` on the dense model before the Trainer is
    made. Weights from before the expansion, as of ``load_best_model_at_end``, make the model dense again. One
    callback can be used by several Trainers, one after another.

    Parameters
    ----------
    epoch : float, default 0
        Counted from 0; 0.5 is after half of the first pass over the data. With several processes, expand the
        model before the Trainer is made.
    moments : str, default "fresh"
        As for `fpe.expand_`.
    **how
        All other arguments of `fpe.expand`; not a ranking by gradient, since the Trainer clears gradients.

    Warns
    -----
    UserWarning
        If training ends before the epoch, or if the model is expanded already.
    """

    advice = ADVICE

    def __init__(self, epoch: float = 0, *, moments: str = "fresh", **how: Any) -> None:
        if isinstance(epoch, bool) or not isinstance(epoch, int | float) or not 0 <= epoch < math.inf:
            raise ArgumentError(f"epoch is {epoch!r}; give a number of at least 0, 0.5 for half an epoch.")
        super().__init__(epoch, moments, how)
        prune = as_pruning(how.get("prune", "magnitude"))
        if prune.needs_scores == "gradients":
            raise ArgumentError(
                f"prune is {prune!r}, and the Trainer clears the gradients after each step; give another "
                "ranking, or call fpe.expand_ in a loop of your own."
            )
        self.done = False

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Register the hook: loading begins before training."""
        loading_of(kwargs["model"], ADVICE)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check everything before the first step."""
        model = kwargs["model"]
        self.done, self._warned = is_expanded(model), False
        _check_optimizer(model, kwargs.get("optimizer"))
        if self.done:
            if not state.global_step:  # otherwise its shape was restored from a checkpoint
                self._warn_expanded()
            return
        if args.world_size > 1:
            raise ModelError(
                f"Expand on {args.world_size} processes: the model is wrapped for them when training starts. "
                "Expand it before the Trainer is made: model = fpe.expand(model, …)."
            )
        plan_ahead(model, self.how)
        last = _last_epoch(args, state, kwargs.get("train_dataloader"))
        if last is not None and self.epoch > last + SLACK:
            self._warn_too_late(f"the last of its {state.max_steps:,} steps begins at epoch {last:.3g}")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Expand when the epoch is reached."""
        if not self.done and (state.epoch or 0) + SLACK >= self.epoch:
            self._expand(kwargs["model"], kwargs["optimizer"])
            _save_with_shapes_(kwargs["model"])
            self.done = True

    on_epoch_begin = on_step_begin

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn if the epoch was not reached."""
        if not self.done:
            self._warn_too_late(f"it ended at epoch {state.epoch or 0:.3g}")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the shapes beside the checkpoint."""
        if self.done and args.should_save:
            _write_shapes(kwargs["model"], _checkpoint(args, state))


class Rewire(RewireBase, TrainerCallback):
    """Change the masks of an expanded model while it is trained.

    For a model that `fpe.expand`, or an `Expand` before this callback, has expanded. Every checkpoint gets a
    file ``fpe-rewirer.pt``. One callback can be used by several Trainers, one after another.

    Parameters
    ----------
    policy, schedule, seed
        As for `fpe.Rewirer`. The schedule refers to the steps after the expansion.
    resume_from_checkpoint : path-like, optional
        A checkpoint of a Trainer with this callback, to resume; give it to ``trainer.train`` too.

    Warns
    -----
    UserWarning
        If no mask will change, or has changed, or if only one of training and rewirer resumes.
    """

    def __init__(
        self,
        policy: str | RewiringPolicy = "rigl",
        *,
        schedule: RewiringSchedule | None = None,
        seed: int = 0,
        resume_from_checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(policy, schedule, seed)
        self._stored = self._state_in(resume_from_checkpoint)

    @staticmethod
    def _state_in(checkpoint: str | os.PathLike[str] | None) -> dict[str, Any] | None:
        path = None if checkpoint is None else _folder(checkpoint) / REWIRER
        if path is None or not path.is_file():  # the checkpoint is from before the expansion
            return None
        state: dict[str, Any] = torch.load(path, weights_only=True)
        return state

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Reset the rewirer, and warn if only one of training and rewirer resumes."""
        self.rewirer = None
        if self._stored and not state.global_step:
            warnings.warn(
                f"{type(self).__name__}(resume_from_checkpoint=…) is not used: training starts at step 0; "
                "give the "
                "checkpoint to trainer.train(resume_from_checkpoint=…) too.",
                stacklevel=2,
            )
        if state.global_step and self._stored is None and has_masks(kwargs["model"]):
            warnings.warn(
                f"training resumes at step {state.global_step:,}, and the schedule of {type(self).__name__} "
                "begins again; give the checkpoint to its resume_from_checkpoint=… too.",
                stacklevel=2,
            )
        self._resumed = self._stored if state.global_step else None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the rewirer as soon as there are masks."""
        model, steps = kwargs["model"], state.max_steps - state.global_step
        if self.rewirer is None and has_masks(model):
            self._begin(model, kwargs["optimizer"], steps, self._resumed)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a step, and change masks if it is time."""
        if self.rewirer is not None:
            self.rewirer.step()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn if there were no masks."""
        self._warn_unless_begun()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the rewirer's state beside the checkpoint."""
        if self.rewirer is not None:
            own = self.rewirer.state_dict()  # all processes take part in it
            if args.should_save:
                write_atomically(_checkpoint(args, state) / REWIRER, lambda file: torch.save(own, file))


class Prune(PruneBase, Rewire):
    """Prune a model gradually while it is trained.

    With a budget, for a network of `fpe.with_masks`. Without one, for a trained network that `fpe.expand`, or
    an `Expand` before this callback, has expanded: its masks are opened, and it is pruned back to its count.

    Parameters
    ----------
    budget : int, optional
        Non-zero parameters of the network in the end.
    resume_from_checkpoint : path-like, optional
        As for `Rewire`.
    shrink : float, default 1.0
        As for `fpe.open_masks_`, without a budget; 0.3 is good for trained networks of one hidden layer.
    **how
        All other arguments of `fpe.GradualPruner`. Without a budget the schedule is by default
        ``PruningSchedule(begin=0, end=0.85)``.
    """

    def __init__(
        self,
        budget: int | None = None,
        *,
        resume_from_checkpoint: str | os.PathLike[str] | None = None,
        shrink: float = 1.0,
        **how: Any,
    ) -> None:
        super().__init__(budget, shrink, how)
        self._stored = self._state_in(resume_from_checkpoint)


class Log(TrainerCallback):
    """Log the count of non-zero parameters, the density, and what `Rewire` and `Prune` do, at each event.

    Add it after the Trainer is made: ``trainer.add_callback(Log(trainer))``. ``trainer.log`` passes
    ``fpe/nonzero``, ``fpe/density`` and, once masks change, ``fpe/rewirings`` and ``fpe/grown`` to all that
    ``report_to`` names, and to ``trainer.state.log_history``.

    Parameters
    ----------
    trainer : transformers.Trainer
        Whose ``log`` is called.
    file : path-like or text stream, optional
        Add a line of JSON for each event, as `fpe.integrations.events.EventLog` does; process 0 writes.
    """

    def __init__(self, trainer: Any, file: str | os.PathLike[str] | TextIO | None = None) -> None:
        if not hasattr(trainer, "log") or not hasattr(trainer, "callback_handler"):
            raise ArgumentError(
                f"trainer is {trainer!r}; make the Trainer first, then trainer.add_callback(Log(trainer))."
            )
        self.trainer, self.events = trainer, EventLog(file)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the count before the first step."""
        self.events = EventLog(self.events.file)
        self._record(state, control, kwargs["model"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record an expansion."""
        self._record(state, control, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record changes of masks."""
        self._record(state, control, kwargs["model"])

    def _record(self, state: Any, control: Any, model: nn.Module) -> None:
        rewirer = rewirer_among(self.trainer.callback_handler.callbacks)
        event = self.events.record(model, state.global_step, rewirer, write=state.is_world_process_zero)
        if event is not None:
            wanted = control.should_log  # which log resets, and the loss of this step would not be logged
            self.trainer.log(metrics(event))
            control.should_log = wanted


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir or ".", f"checkpoint-{state.global_step}")


def _folder(folder: str | os.PathLike[str]) -> Path:
    if not Path(folder).is_dir():
        raise CheckpointError(f"there is no folder {folder}; give a checkpoint that the Trainer wrote.")
    return Path(folder)


def _last_epoch(args: Any, state: Any, loader: Any) -> float | None:
    """Return the epoch at which the last step begins, None for data of unknown length."""
    try:
        batches = len(loader)
    except TypeError:  # a stream
        return None
    accumulated = args.gradient_accumulation_steps
    epochs, steps = divmod(state.max_steps - 1, max(1, math.ceil(batches / accumulated)))
    last: float = epochs + min(1.0, steps * accumulated / max(1, batches))
    return last


def _check_optimizer(model: nn.Module, optimizer: Any) -> None:
    """Refuse an optimizer that still trains the layers of a model that has become dense again."""
    if optimizer is None or not loading_of(model, ADVICE).restored:
        return
    own = {id(parameter) for parameter in model.parameters()}
    if any(id(p) not in own for group in optimizer.param_groups for p in group["params"]):
        raise ModelError(
            "the model is dense again, since dense weights have been loaded, and the optimizer of this "
            "Trainer trains its expanded layers; make a new Trainer."
        )


def save_pretrained(
    model: PreTrainedModel,
    save_directory: str | os.PathLike[str],
    is_main_process: bool = True,
    **settings: Any,
) -> None:
    """Save a model of transformers as its own ``save_pretrained`` does, with its shapes for `restore_shape`.

    The folder's ``fpe.json`` is removed if the model is not expanded. The masked layers of a model that
    `fpe.widen` or `fpe.with_masks` returned are written as the plain layers that they were, so that
    ``from_pretrained`` reads the folder. All arguments are those of ``save_pretrained``.
    """
    resumed = "save_pretrained" in vars(model)  # a Trainer's own, whose checkpoints have the masks
    if has_masks(model) and not is_expanded(model) and not resumed:
        settings = {"state_dict": _plain_state(model), **settings}
    type(model).save_pretrained(model, save_directory, is_main_process, **settings)
    if is_main_process:
        _write_shapes(model, Path(save_directory))


def _plain_state(model: PreTrainedModel) -> dict[str, Any]:
    """Return the state of a model in which masked layers are the layers of its class."""
    with torch.device("meta"):
        plain = type(model)(model.config)
    state = model.state_dict()
    state = {name: t for name, t in state.items() if name.rpartition(".")[2] not in (MASK, BIAS_MASK)}
    for name, module in model.named_modules():
        if isinstance(module, MaskedLayer) and is_transposed(plain.get_submodule(name)):
            state[f"{name}.weight"] = module.weight.detach().t().contiguous()
    return state


def _save_with_shapes_(model: nn.Module) -> None:
    """Let ``model.save_pretrained``, which ``trainer.save_model`` calls, write the shapes."""
    if isinstance(model, PreTrainedModel):
        model.save_pretrained = MethodType(save_pretrained, model)  # type: ignore[method-assign]


def _write_shapes(model: nn.Module, folder: Path) -> None:
    if is_expanded(model):
        text = json.dumps(shapes_of(model))
        write_atomically(folder / FILE, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    else:
        (folder / FILE).unlink(missing_ok=True)


def restore_shape(model: nn.Module, folder: str | os.PathLike[str]) -> nn.Module:
    """Give a dense model, in place, the shape of an expanded one's checkpoint, so that it can be loaded next.

    Parameters
    ----------
    model : nn.Module
        The dense model; changed, and returned.
    folder : path-like
        A checkpoint of a Trainer with `Expand`, or written by its ``save_model`` or by `save_pretrained`. One
        from before the expansion changes nothing, with a warning.

    Raises
    ------
    CheckpointError
        If there is no such folder, or its shapes are missing or those of another model.
    """
    path = _folder(folder) / FILE
    if path.is_file():
        with reversible(model, ADVICE):
            reshape_(model, json.loads(path.read_text(encoding="utf-8")))
        _save_with_shapes_(model)
        return model
    for weights in sorted(path.parent.glob("*.safetensors")):
        with safe_open(weights, framework="pt") as file:
            if state_has_masks(dict.fromkeys(file.keys())):
                raise CheckpointError(
                    f"{folder} has the weights of an expanded model, and no {FILE} with its shapes; give a "
                    "folder that a Trainer with Expand, or fpe.integrations.huggingface.save_pretrained, "
                    "wrote."
                )
    warnings.warn(
        f"{folder} has no {FILE}: its model is dense, and there is no shape to restore.", stacklevel=2
    )
    return model
