"""Tiny models that keep something of each forward pass, in all the places where people keep things."""

from __future__ import annotations

import functools
import itertools
import logging
import random
import threading
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Name → a function that returns a model that takes a batch of shape (5, 8).
KEEPERS: dict[str, Callable[[], nn.Module]] = {}

#: A file's own cache.
SEEN: dict[str, Tensor] = {}


def keeper(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Enter a model into the table under the name of its class or function."""
    KEEPERS[build.__name__] = build
    return build


class Net(nn.Module):
    """Two layers; `keep` gets the activations between them, and keeps something of them."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(8, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.keep(F.relu(self.hidden(x))))

    def keep(self, h: Tensor) -> Tensor:
        return h


@keeper
class DictOfTensors(Net):
    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if "b" not in self.cache:
            self.cache["b"] = self.head.bias * 2
        return super().forward(x) + self.cache["b"]


@keeper
class NestedDict(DictOfTensors):
    def __init__(self) -> None:
        super().__init__()
        self.deep = {"a": [{"b": self.cache}], "c": (self.cache,)}


@keeper
class ListOfActivations(Net):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def keep(self, h: Tensor) -> Tensor:
        self.seen.append(h)
        return h


@keeper
class SetOfShapes(Net):
    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def keep(self, h: Tensor) -> Tensor:
        self.shapes.add(tuple(h.shape))
        return h


@keeper
class Feature(Net):
    def keep(self, h: Tensor) -> Tensor:
        self.feature = h
        return h


@keeper
class Counter(Net):
    calls = 0

    def keep(self, h: Tensor) -> Tensor:
        self.calls += 1
        return h


@dataclass
class Record:
    count: int = 0
    means: list[Any] = field(default_factory=list)


@keeper
class RecordObject(Net):
    def __init__(self) -> None:
        super().__init__()
        self.record = Record()

    def keep(self, h: Tensor) -> Tensor:
        self.record.count += 1
        self.record.means.append(h)
        return h


class Slotted:
    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last: Any = None


@keeper
class SlotsObject(Net):
    def __init__(self) -> None:
        super().__init__()
        self.state = Slotted()

    def keep(self, h: Tensor) -> Tensor:
        self.state.last = h
        return h


@keeper
class LazyBuffer(Net):
    def forward(self, x: Tensor) -> Tensor:
        if "positions" not in self._buffers:
            self.register_buffer("positions", torch.arange(2.0))
        return super().forward(x) + self.positions


@keeper
class MovingBuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return super().forward(x)


@keeper
class OwnProperty(Net):
    _scale: Tensor | None = None

    @property
    def scale(self) -> Tensor:
        if self._scale is None:
            self._scale = self.head.bias.exp()
        return self._scale

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


@keeper
class CachedProperty(Net):
    @functools.cached_property
    def scale(self) -> Tensor:
        return self.head.bias.exp()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


@keeper
class ClassCache(Net):
    cache: ClassVar[dict[str, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        if "grid" not in self.cache:
            self.cache["grid"] = torch.arange(2.0)
        return super().forward(x) + self.cache["grid"]


@keeper
class ClassAttribute(Net):
    latest: Any = None
    runs = 0

    def keep(self, h: Tensor) -> Tensor:
        type(self).latest = h
        type(self).runs += 1
        return h


@keeper
class FileCache(Net):
    def forward(self, x: Tensor) -> Tensor:
        if "grid" not in SEEN:
            SEEN["grid"] = torch.arange(2.0)
        return super().forward(x) + SEEN["grid"]


@functools.lru_cache
def grid(size: int) -> Tensor:
    return torch.arange(float(size))


@keeper
class CachedFunction(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + grid(2)


@keeper
def hook_into_a_list() -> nn.Module:
    model, seen = Net(), []
    model.seen = seen
    model.head.register_forward_hook(lambda module, args, output: seen.append(output))
    return model


@keeper
class HookOfItsOwn(Net):
    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, Tensor] = {}
        self.register_forward_hook(self.take)

    def take(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.outputs["last"] = output


@keeper
class HooksAtFirstRun(Net):
    """Adds hooks in its first forward pass, as models of transformers do to return hidden states."""

    hooked = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.hooked:
            self.act_hook = self.head.register_forward_pre_hook(lambda module, args: None)
            self.hooked = True
        return super().forward(x)


@keeper
class ClampedWeights(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.head.weight.data.clamp_(-0.1, 0.1)
        return super().forward(x)


@keeper
class ReplacedWeights(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.head.weight.data = torch.renorm(self.head.weight.data, 2, 0, 0.1)
        return super().forward(x)


@keeper
class RenormedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.net = nn.Embedding(3, 8, max_norm=0.1), Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + self.table(torch.zeros(5, dtype=torch.long)))


@keeper
class RandomNumbers(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (random.random() + np.random.rand() + torch.rand(()))


@keeper
class OwnGenerator(Net):
    def __init__(self) -> None:
        super().__init__()
        self.random, self.numpy = random.Random(0), np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (self.random.random() + self.numpy.random())


@keeper
class Locked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lock, self.counts = threading.Lock(), {"calls": 0}
        self.both = [self.lock, self.counts]

    def keep(self, h: Tensor) -> Tensor:
        with self.lock:
            self.both[1]["calls"] += 1
        return h


@keeper
def has_run_before() -> nn.Module:
    """Keep a tensor with a history of gradients, which ``copy.deepcopy`` refuses."""
    model = Feature()
    model(torch.randn(5, 8)).sum().backward()
    return model


@keeper
class Weak(Net):
    def __init__(self) -> None:
        super().__init__()
        self.itself, self.notes = weakref.ref(self), {}

    def keep(self, h: Tensor) -> Tensor:
        self.notes["calls"] = len(self.notes) + 1
        return h


@keeper
class Iterating(Net):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count()

    def keep(self, h: Tensor) -> Tensor:
        next(self.numbers)
        return h


@keeper
class ModesOfItsOwn(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.head.train()
        self.hidden.bias.requires_grad_(False)
        return super().forward(x)


@keeper
class Talking(Net):
    def forward(self, x: Tensor) -> Tensor:
        logging.getLogger("talking").info("forward")
        return super().forward(x)


@keeper
class WritesIntoItsInput(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


@keeper
def trained_in_part() -> nn.Module:
    model = DictOfTensors()
    model.hidden.weight.register_hook(lambda gradient: gradient * 2)
    model(torch.randn(5, 8)).sum().backward()
    model.cache.clear()
    model.head.eval()
    model.hidden.requires_grad_(False)
    return model


@keeper
def forward_of_its_own() -> nn.Module:
    """Replace the forward pass of this one model by a function that counts its calls."""
    model, calls = Net(), []
    own = model.forward

    def counted(self: nn.Module, x: Tensor) -> Tensor:
        calls.append(1)
        return own(x)

    model.calls, model.forward = calls, types.MethodType(counted, model)
    return model
