"""State dicts of a network from before and after its expansion, loaded into it by whoever trains it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fpe._util.modules import replace_modules_, uncompiled
from fpe.errors import CheckpointError
from fpe.expansion.plan import Plan
from fpe.masked import MASK, MaskedLayer
from fpe.packing.layers import PackedLayer

_ATTRIBUTE = "fpe_loading"


class Loading:
    """A hook of a network's ``load_state_dict``, for as long as a callback may change the network's shape.

    A state of the dense network that meets the expanded one puts the dense layers back. The state of an
    expanded network that meets the dense one is refused, in words.

    Parameters
    ----------
    advice : str
        What to do about a state that is refused.
    """

    def __init__(self, advice: str) -> None:
        self.advice = advice
        self.dense: dict[str, nn.Module] = {}  # layers without values, as they were before the expansion
        self.restored = False

    def __call__(
        self, network: nn.Module, state: Mapping[str, Any], prefix: str, metadata: Any, *rest: Any
    ) -> None:
        """Look at a state dict before it is read."""
        if any(isinstance(module, PackedLayer) for module in network.modules()):
            return
        masks = holds_masks(state, prefix)
        expanded = [name for name, m in network.named_modules() if isinstance(m, MaskedLayer)]
        if masks and not expanded:
            raise CheckpointError(
                f"the weights are those of an expanded model, and this {type(network).__name__} is dense. "
                f"{self.advice}"
            )
        if expanded and not masks and self.dense:
            self._restore(network, state, prefix)

    def _restore(self, network: nn.Module, state: Mapping[str, Any], prefix: str) -> None:
        """Put the dense layers back if the state holds all their values; refuse a part of these."""
        needed = {
            f"{prefix}{name}.{key}": tensor.shape
            for name, layer in self.dense.items()
            for key, tensor in layer.state_dict().items()
        }
        given = {key: state[key].shape for key in needed if key in state}
        if any(needed[key] != shape for key, shape in given.items()):
            return  # of another model, which torch names
        if len(given) < len(needed):
            own = network.state_dict(prefix=prefix)
            if all(key in own and own[key].shape == shape for key, shape in given.items()):
                return  # a part that fits as it is
            raise CheckpointError(
                f"the weights are those of the dense {type(network).__name__}, and have only {len(given)} "
                f"of the {len(needed)} tensors of the layers that were expanded, as one file of several has. "
                "Load all files into a new dense model."
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
    """Return the hook of a network, which gets one if it has none."""
    network = uncompiled(network)
    hook = vars(network).get(_ATTRIBUTE)
    if not isinstance(hook, Loading):
        hook = Loading(advice)
        network.register_load_state_dict_pre_hook(hook)  # type: ignore[no-untyped-call]
        setattr(network, _ATTRIBUTE, hook)
    return hook


@contextmanager
def dense_kept(network: nn.Module, advice: str) -> Iterator[None]:
    """Let a network that is expanded within the block take the weights of the dense one again later."""
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


def holds_masks(state: Mapping[str, Any], prefix: str = "") -> bool:
    """Tell whether a state dict, or its part with a prefix, is of an expanded network."""
    return any(name.startswith(prefix) and name.rpartition(".")[2] == MASK for name in state)


def _without_values(layer: nn.Module) -> nn.Module:
    """Return a copy of a layer whose tensors are on the meta device."""
    memo: dict[int, Any] = {}
    for tensor in itertools.chain(layer.parameters(), layer.buffers()):
        empty: Tensor = tensor.detach().to("meta")
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, tensor.requires_grad)
        memo[id(tensor)] = empty
    return copy.deepcopy(layer, memo)
