"""One table of tiny models, and what the tests ask of all of them.

Every expanded layer of the table reads 8 inputs, so that one list of labels fits all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpe.expansion.index_maps import drop_maps_

Built = tuple[nn.Module, Tensor]

MODELS: dict[str, Callable[[], Built]] = {}

#: Labels for `fpe.LabelSplit` that fit each expanded layer of the table.
LABELS = [0, 0, 1, 1, 2, 2, 3, 3]


def tiny(build: Callable[[], nn.Module]) -> Callable[[], Built]:
    """Enter a model into the table under its function's name: the same weights each time."""

    def built() -> Built:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build()
            for module in model.modules():
                if isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.BatchNorm1d | nn.PReLU):
                    _move_from_defaults(module)
            return model, torch.randn(5, 8)

    MODELS[build.__name__] = built
    return built


def forget_maps_(model: nn.Module) -> None:
    """Take from a model what its layers know of their expansion, as in one that a user has masked by hand."""
    for module in model.modules():
        drop_maps_(module)


def _move_from_defaults(module: nn.Module) -> None:
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data.add_(torch.rand_like(tensor))


@tiny
def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))


@tiny
def without_biases() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))


@tiny
def two_hidden() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


@tiny
def three_hidden() -> nn.Module:
    first = (nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU())
    return nn.Sequential(*first, nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2))


@tiny
def layer_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2))


@tiny
def rms_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4), nn.RMSNorm(4), nn.ReLU(), nn.Linear(4, 2))


@tiny
def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


@tiny
def prelu() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4), nn.PReLU(4), nn.Linear(4, 2))


@tiny
def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2))


class Functional(nn.Module):
    """A plain module with its activation in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(8, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(x)))


@tiny
def functional() -> nn.Module:
    return Functional()


class Skip(nn.Module):
    """A skip around a hidden block: `first` is read by `hidden` and by `short`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 6)
        self.hidden = nn.Linear(6, 4)
        self.last = nn.Linear(4, 2)
        self.short = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        return self.last(F.relu(self.hidden(h))) + self.short(h)


@tiny
def skip() -> nn.Module:
    return Skip()


@tiny
def nested() -> nn.Module:
    inner = nn.Sequential(nn.Linear(8, 4), nn.Sequential(nn.ReLU(), nn.Identity()))
    return nn.Sequential(inner, nn.Sequential(nn.Dropout(0.1)), nn.Linear(4, 2))


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Record all that a call must not change: modules, modes, tensors, gradients."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "tensors": {name: (id(t), t._version, t.requires_grad, t.detach().clone()) for name, t in tensors},
        "grads": {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()},
        "attributes": sorted(vars(model)),
    }


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    """Compare a model with its `snapshot`, bit for bit."""
    after = snapshot(model)
    assert after["modules"] == before["modules"]
    assert after["attributes"] == before["attributes"]
    assert after["tensors"].keys() == before["tensors"].keys()
    for name, (*facts, value) in before["tensors"].items():
        *now, new = after["tensors"][name]
        assert now == facts, name
        assert same_bits(new, value), name
    for name, grad in before["grads"].items():
        now = after["grads"][name]
        assert (now is None) == (grad is None), name
        assert grad is None or same_bits(now, grad), name


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors have the same type, shape and bytes (NaN and the sign of zero included)."""
    raw = [t.detach().contiguous().flatten().view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)


def same_state(a: nn.Module, b: nn.Module) -> bool:
    """Tell whether two models have the same state dict, bit for bit."""
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(same_bits(one[name], other[name]) for name in one)


def same_values(a: nn.Module, b: nn.Module) -> bool:
    """Tell whether two models have the same state dict, bit for bit but for the sign of zeros."""
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(same_bits(one[name] + 0, other[name] + 0) for name in one)
