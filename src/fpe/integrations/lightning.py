"""Callbacks for Lightning that expand or rewire a network of a LightningModule."""

from __future__ import annotations

import math
import os
from typing import Any, TextIO

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from fpe.errors import ArgumentError, CheckpointError, ModelError
from fpe.expansion.inplace import plan_ahead
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
from fpe.rewiring.policies import RewiringPolicy
from fpe.rewiring.schedule import RewiringSchedule

ADVICE = (
    "Load it by a Trainer with the Expand callback, or call fpe.integrations.lightning.restore_shape(self, "
    "checkpoint) in the LightningModule's on_load_checkpoint; weights without the callbacks' state "
    "(save_weights_only) have no shape to restore."
)
_PREFIX = "fpe.Expand("


class Expand(ExpandBase, Callback):
    """Expand a network of a LightningModule before an epoch; its optimizers continue.

    The same script resumes from later checkpoints with ``trainer.fit(…, ckpt_path=…)``.
    ``load_from_checkpoint`` calls no callbacks; it needs `restore_shape`. A checkpoint from before the
    expansion, such as ``ckpt_path="best"``, makes the network dense again. One callback can be used for
    several fits, one after another.

    Parameters
    ----------
    epoch : int, default 0
        Counted from 0. With several processes only 0 is possible.
    network : str, optional
        Name of the network in the LightningModule; by default its only child with parameters.
    moments : str, default "fresh"
        As for `fpe.expand_`.
    **how
        All other arguments of `fpe.expand`.

    Warns
    -----
    UserWarning
        If training ends before the epoch, or if the network is expanded already.
    """

    advice = ADVICE

    def __init__(
        self, epoch: int = 0, *, network: str | None = None, moments: str = "fresh", **how: Any
    ) -> None:
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise ArgumentError(
                f"epoch is {epoch!r}; give an integer of at least 0: networks are expanded between epochs."
            )
        super().__init__(epoch, moments, how)
        self.network = network
        self.shapes: dict[str, Any] | None = None

    @property
    def state_key(self) -> str:
        """One such callback for each network."""
        return f"{_PREFIX}{self.network or ''})"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Register the hooks for loading; expand at epoch 0, before anything is wrapped."""
        network = network_of(pl_module, self.network, "Expand")
        if stage == "fit":
            self._check_averages(trainer)
            self.shapes, self._warned = None, False
        loading_of(network, ADVICE)
        self._reshape_on_load(pl_module)
        if stage != "fit":
            return
        if is_expanded(network):
            self._warn_expanded()
            self.shapes = shapes_of(network)
        elif trainer.world_size > 1 and self.epoch > 0:
            raise ModelError(
                f"Expand(epoch={self.epoch}) on {trainer.world_size} processes: a wrapped network cannot be "
                "expanded. Train it in one run, and expand it at epoch 0 of another."
            )
        elif self.epoch == 0:
            self._expand(network, [])

    def _check_averages(self, trainer: Trainer) -> None:
        """Refuse callbacks that would average the dense network's weights."""
        for callback in _averaging(trainer):
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            if self.epoch > 0 or callbacks.index(self) > callbacks.index(callback):
                name = type(callback).__name__
                raise ModelError(
                    f"{name} copies the network at the start, and its average would be of the dense one; "
                    f"give Expand(epoch=0), and put it before {name} in callbacks."
                )

    def _reshape_on_load(self, pl_module: LightningModule) -> None:
        """Restore a checkpoint's shape: Lightning loads weights before the callbacks' state."""
        original = pl_module.on_load_checkpoint

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            restore_shape(pl_module, checkpoint)
            stored = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("shapes")
            if stored is not None or not state_has_masks(checkpoint["state_dict"]):
                self.shapes = stored
            original(checkpoint)

        pl_module.on_load_checkpoint = on_load_checkpoint  # type: ignore[method-assign]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the hook from the module."""
        vars(pl_module).pop("on_load_checkpoint", None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check everything before the first step."""
        if self.shapes is None:
            plan_ahead(network_of(pl_module, self.network, "Expand"), self.how)
            epochs = _epochs(trainer)
            if self.epoch >= epochs:
                self._warn_too_late(f"it ends after {epochs:g} epochs")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if the epoch was not reached."""
        if self.shapes is None:
            self._warn_too_late(f"it ended in epoch {trainer.current_epoch:,}")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Expand when the epoch is reached."""
        if self.shapes is None and trainer.current_epoch >= self.epoch:
            self._expand(network_of(pl_module, self.network, "Expand"), trainer.optimizers)

    def _expand(self, network: nn.Module, optimizers: list[Optimizer]) -> None:
        super()._expand(network, _trainers_of(network, optimizers))
        self.shapes = shapes_of(network)

    def state_dict(self) -> dict[str, Any]:
        """Return the shapes, for a checkpoint."""
        return {"shapes": self.shapes}


class Rewire(RewireBase, Callback):
    """Change the masks of an expanded network of a LightningModule while it is trained.

    For a network that `fpe.expand`, or an `Expand` before this callback, has expanded. Training can be
    resumed from checkpoints. One callback can be used for several fits, one after another.

    Parameters
    ----------
    policy, schedule, seed
        As for `fpe.Rewirer`.
    network : str, optional
        As for `Expand`.
    steps : int, optional
        Steps of the optimizer after the expansion, to which the schedule refers; by default the trainer's
        remaining ones.

    Warns
    -----
    UserWarning
        If no mask will change, or has changed.
    """

    def __init__(
        self,
        policy: str | RewiringPolicy = "rigl",
        *,
        network: str | None = None,
        schedule: RewiringSchedule | None = None,
        seed: int = 0,
        steps: int | None = None,
    ) -> None:
        super().__init__(policy, schedule, seed)
        self.network, self.steps = network, steps
        self._stored: dict[str, Any] | None = None
        self._last = 0

    @property
    def state_key(self) -> str:
        """One such callback for each network."""
        return f"fpe.Rewire({self.network or ''})"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset the rewirer; refuse averages of weights."""
        if stage != "fit":
            return
        self.rewirer = self._stored = None
        for callback in _averaging(trainer):
            raise ModelError(
                f"{type(callback).__name__} beside {type(self).__name__}: an average over dynamic masks has "
                "more non-zero weights than any of its networks. Give only one of the two callbacks."
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Make the rewirer as soon as there are masks."""
        if self.rewirer is not None:
            return
        network = network_of(pl_module, self.network, type(self).__name__)
        if has_masks(network):
            steps = self.steps or trainer.estimated_stepping_batches - trainer.global_step
            if steps == math.inf and not self._stored:
                raise ArgumentError(
                    f"the number of remaining steps is unknown; give {type(self).__name__}(steps=…)."
                )
            steps = 0 if self._stored else int(steps)
            self._begin(network, _trainers_of(network, trainer.optimizers), steps, self._stored)
            self._last = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step, if this batch has completed one."""
        if self.rewirer is not None and trainer.global_step > self._last:
            self._last = trainer.global_step
            self.rewirer.step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if there were no masks."""
        self._warn_unless_begun()

    def state_dict(self) -> dict[str, Any]:
        """Return the rewirer's state, for a checkpoint."""
        return {"rewirer": self._stored if self.rewirer is None else self.rewirer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store a checkpoint's state until there are masks."""
        self._stored = state_dict["rewirer"]


class Prune(PruneBase, Rewire):
    """Prune a network of a LightningModule gradually while it is trained.

    With a budget, for a network of `fpe.with_masks`. Without one, for a trained network that `fpe.expand`, or
    an `Expand` before this callback, has expanded: its masks are opened, and it is pruned back to its count.

    Parameters
    ----------
    budget : int, optional
        Non-zero parameters of the network in the end.
    network, steps
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
        network: str | None = None,
        steps: int | None = None,
        shrink: float = 1.0,
        **how: Any,
    ) -> None:
        super().__init__(budget, shrink, how)
        self.network, self.steps = network, steps
        self._stored, self._last = None, 0

    @property
    def state_key(self) -> str:
        """One such callback for each network."""
        return f"fpe.Prune({self.network or ''})"


class Log(Callback):
    """Log the count of non-zero parameters, the density, and what `Rewire` and `Prune` do; put it after them.

    The trainer's loggers get ``fpe/nonzero``, ``fpe/density`` and, once masks change, ``fpe/rewirings`` and
    ``fpe/grown``, by ``self.log`` at every step, and so every ``log_every_n_steps``.

    Parameters
    ----------
    file : path-like or text stream, optional
        Add a line of JSON for each event, as `fpe.integrations.events.EventLog` does; process 0 writes.
    network : str, optional
        As for `Expand`.
    """

    def __init__(
        self, file: str | os.PathLike[str] | TextIO | None = None, *, network: str | None = None
    ) -> None:
        self.events, self.network = EventLog(file), network

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the count before the first step."""
        self.events = EventLog(self.events.file)
        self._record(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record an expansion."""
        self._record(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record changes of masks, and log the last event's numbers."""
        self._record(trainer, pl_module)
        for name, value in metrics(self.events.last).items():
            # In double precision: single precision rounds counts above 16,777,216.
            pl_module.log(name, torch.tensor(value, dtype=torch.float64), on_step=True, on_epoch=False)

    def _record(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        network, rewirer = network_of(pl_module, self.network, "Log"), rewirer_among(callbacks, self.network)
        self.events.record(network, trainer.global_step, rewirer, write=trainer.is_global_zero)


def restore_shape(pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Give the networks of a LightningModule, in place, the shape of a checkpoint, so that it can be loaded.

    For ``load_from_checkpoint``, which calls no callbacks; a Trainer with `Expand` does this itself. A
    checkpoint from before the expansion changes nothing.

    Raises
    ------
    CheckpointError
        If the shapes are missing or those of another architecture.

    Examples
    --------
    In the LightningModule::

        def on_load_checkpoint(self, checkpoint):
            fpe.integrations.lightning.restore_shape(self, checkpoint)
    """
    restored = False
    for key, state in checkpoint.get("callbacks", {}).items():
        if key.startswith(_PREFIX) and state.get("shapes") is not None:
            network = network_of(pl_module, key.removeprefix(_PREFIX).removesuffix(")") or None, "Expand")
            with reversible(network, ADVICE):
                reshape_(network, state["shapes"])
            restored = True
    if state_has_masks(checkpoint["state_dict"]) and not restored and not has_masks(pl_module):
        raise CheckpointError(
            f"the weights are those of an expanded network, and its shapes are missing. {ADVICE}"
        )


def network_of(pl_module: LightningModule, name: str | None, callback: str) -> nn.Module:
    """Return the network of a callback: by name, or the only child with parameters."""
    if name is not None:
        return pl_module.get_submodule(name)
    children = [n for n, m in pl_module.named_children() if any(True for _ in m.parameters())]
    if len(children) != 1:
        raise ModelError(
            f"{type(pl_module).__name__} has {len(children)} children with parameters "
            f"({', '.join(map(repr, children)) or 'none'}); say which one is the network: "
            f"{callback}(network='…')."
        )
    return pl_module.get_submodule(children[0])


def _averaging(trainer: Trainer) -> list[Callback]:
    """Return the callbacks that average weights."""
    kinds = {"StochasticWeightAveraging", "WeightAveraging"}
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [each for each in callbacks if kinds & {kind.__name__ for kind in type(each).__mro__}]


def _epochs(trainer: Trainer) -> float:
    """Return how many epochs begin, infinity if that is not known."""
    epochs = [math.inf if trainer.max_epochs in (None, -1) else float(trainer.max_epochs or 0)]
    if trainer.max_steps != -1 and math.isfinite(trainer.num_training_batches):
        per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        epochs.append(float(math.ceil(trainer.max_steps / max(1, per_epoch))))
    return min(epochs)


def _trainers_of(network: nn.Module, optimizers: list[Optimizer]) -> list[Optimizer]:
    """Return the optimizers that train the network."""
    own = {id(p) for p in network.parameters()}
    return [o for o in optimizers if any(id(p) in own for g in o.param_groups for p in g["params"])]
