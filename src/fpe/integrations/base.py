"""Shared by the callbacks of all trainers: expanding, rewiring, and loading weights of both shapes."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fpe._util.modules import replace_modules_, uncompiled, unwrapped
from fpe.errors import CheckpointError
from fpe.expansion.index_maps import groups_in
from fpe.expansion.inplace import check_moments, expand_
from fpe.expansion.plan import Plan
from fpe.masked import MASK, MaskedLayer, check_masks, count_nonzero
from fpe.packing.layers import PackedLayer
from fpe.rewiring.gradual import PruningSchedule
from fpe.rewiring.model_masks import check_shrink, open_masks_
from fpe.rewiring.policies import RewiringPolicy, as_policy
from fpe.rewiring.pruner import GradualPruner
from fpe.rewiring.rewirer import Rewirer
from fpe.rewiring.schedule import RewiringSchedule

_ATTRIBUTE = "fpe_loading"


class ExpandBase:
    """Expand a network at an epoch of its training."""

    advice = ""  # how to load expanded weights

    def __init__(self, epoch: float, moments: str, how: dict[str, Any]) -> None:
        check_moments(moments)
        self.epoch, self.moments, self.how = epoch, moments, how
        self._warned = False

    def _expand(self, network: nn.Module, optimizers: Any) -> None:
        with reversible(network, self.advice):
            expand_(network, optimizer=optimizers, moments=self.moments, **self.how)

    def _warn_too_late(self, end: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"Expand(epoch={self.epoch:g}) does not expand the model in this training: {end}. Give an "
                "earlier epoch, counted from 0.",
                stacklevel=3,
            )

    def _warn_expanded(self) -> None:
        warnings.warn(
            "the model is expanded already, and Expand does not change it; give the trainer a new dense one.",
            stacklevel=3,
        )


class RewireBase:
    """Rewire a network, from the first step at which it has masks."""

    def __init__(self, policy: str | RewiringPolicy, schedule: RewiringSchedule | None, seed: int) -> None:
        self.policy = as_policy(policy)
        self.how: dict[str, Any] = {"schedule": schedule, "seed": seed}
        self.rewirer: Rewirer | GradualPruner | None = None

    def _make(
        self, network: nn.Module, optimizers: Any, steps: int, stored: dict[str, Any] | None
    ) -> Rewirer | GradualPruner:
        return Rewirer(network, optimizers, self.policy, steps=steps, **self.how)

    def _begin(self, network: nn.Module, optimizers: Any, steps: int, stored: dict[str, Any] | None) -> None:
        """Make the rewirer for `steps`, or resume the stored one; warn if no mask will change."""
        steps = stored["steps"] if stored else steps
        self.rewirer = self._make(network, optimizers, steps, stored)
        if stored is not None:
            self.rewirer.load_state_dict(stored)
        schedule = self.rewirer.schedule
        if isinstance(schedule, RewiringSchedule) and not schedule.rewires(schedule.every, steps):
            warnings.warn(
                f"Rewire changes no masks in {steps:,} steps: {schedule} changes them every "
                f"{schedule.every:,} steps, before step {schedule.until * steps:g}. Give a shorter "
                "interval, or train longer.",
                stacklevel=3,
            )

    def _warn_unless_begun(self) -> None:
        if self.rewirer is None:
            warnings.warn(
                f"{type(self).__name__} has changed no masks: no layer of the model has one. Expand the "
                "model first, by fpe.expand or an Expand callback before it.",
                stacklevel=3,
            )


class PruneBase(RewireBase):
    """Prune a network gradually, from the first step at which it has masks."""

    def __init__(self, budget: int | None, shrink: float, how: dict[str, Any]) -> None:
        check_shrink(shrink)
        self.budget, self.shrink, self.how = budget, shrink, how
        self.rewirer = None

    def _make(
        self, network: nn.Module, optimizers: Any, steps: int, stored: dict[str, Any] | None
    ) -> GradualPruner:
        how, budget = self.how, self.budget
        if budget is None:
            how = {"schedule": PruningSchedule(begin=0.0, end=0.85), **how}
            if stored is not None:  # the masks have been opened
                budget = stored["budget"]
            else:
                check_masks(unwrapped(network), "the masks are opened")
                budget = count_nonzero(unwrapped(network))
                open_masks_(unwrapped(network), shrink=self.shrink)
        return GradualPruner(network, optimizers, budget=budget, steps=steps, **how)


def is_expanded(model: nn.Module) -> bool:
    """Tell whether a model has expanded layers."""
    return bool(groups_in(model))


def has_masks(model: nn.Module) -> bool:
    """Tell whether a model has masked layers."""
    return any(isinstance(module, MaskedLayer) for module in model.modules())


def state_has_masks(state: Mapping[str, Any], prefix: str = "") -> bool:
    """Tell whether a state dict, or its part with a prefix, is of an expanded network."""
    return any(name.startswith(prefix) and name.rpartition(".")[2] == MASK for name in state)


class Loading:
    """A hook of ``load_state_dict`` that makes an expanded network dense again for dense weights.

    A dense network refuses the weights of an expanded one, with the advice.
    """

    def __init__(self, advice: str) -> None:
        self.advice = advice
        self.dense: dict[str, nn.Module] = {}  # layers without values, as they were before the expansion
        self.restored = False

    def __call__(
        self, network: nn.Module, state: Mapping[str, Any], prefix: str, metadata: Any, *rest: Any
    ) -> None:
        """Check a state dict before it is loaded."""
        if any(isinstance(module, PackedLayer) for module in network.modules()):
            return
        masks, expanded = state_has_masks(state, prefix), has_masks(network)
        if masks and not expanded:
            raise CheckpointError(
                f"the weights are those of an expanded model, and this {type(network).__name__} is dense. "
                f"{self.advice}"
            )
        if expanded and not masks and self.dense:
            self._restore_(network, state, prefix)

    def _restore_(self, network: nn.Module, state: Mapping[str, Any], prefix: str) -> None:
        """Restore the dense layers if the state has all their values; refuse it if it has only some."""
        needed = {
            f"{prefix}{name}.{key}": tensor.shape
            for name, layer in self.dense.items()
            for key, tensor in layer.state_dict().items()
        }
        given = {key: state[key].shape for key in needed if key in state}
        if any(needed[key] != shape for key, shape in given.items()):
            return  # of another model, which torch refuses
        if len(given) < len(needed):
            own = network.state_dict(prefix=prefix)
            if all(key in own and own[key].shape == shape for key, shape in given.items()):
                return  # a part of the expanded network
            raise CheckpointError(
                f"the weights have only {len(given)} of the {len(needed)} tensors of the layers of the dense "
                f"{type(network).__name__} that were expanded. Load all files into a new dense model."
            )
        for name, layer in self.dense.items():
            now = network.get_submodule(name)
            layer.train(now.training)
            for like in itertools.islice(itertools.chain(now.parameters(), now.buffers()), 1):
                layer.to_empty(device=like.device).to(like.dtype)
        replace_modules_(network, self.dense)
        for module in network.modules():
            if isinstance(vars(module).get("fpe_plan"), Plan):
                del module.fpe_plan
        self.dense, self.restored = {}, True


def loading_of(network: nn.Module, advice: str) -> Loading:
    """Return the hook of a network, registering one if it has none."""
    network = uncompiled(network)
    hook = vars(network).get(_ATTRIBUTE)
    if not isinstance(hook, Loading):
        hook = Loading(advice)
        network.register_load_state_dict_pre_hook(hook)  # type: ignore[no-untyped-call]
        setattr(network, _ATTRIBUTE, hook)
    return hook


@contextmanager
def reversible(network: nn.Module, advice: str) -> Iterator[None]:
    """Let a network that is expanded within the block load dense weights again later."""
    network = uncompiled(network)
    before = dict(network.named_modules())
    yield
    changed = {
        name: _without_values(old)
        for name, old in before.items()
        if name and network.get_submodule(name) is not old
    }
    if changed:
        hook = loading_of(network, advice)
        hook.dense, hook.restored = {**changed, **hook.dense}, False


def _without_values(layer: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {}
    for tensor in itertools.chain(layer.parameters(), layer.buffers()):
        empty: Tensor = tensor.detach().to("meta")
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, tensor.requires_grad)
        memo[id(tensor)] = empty
    return copy.deepcopy(layer, memo)
