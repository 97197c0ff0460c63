"""Planning takes steps in proportion to the number of layers: steps are function calls of Python."""

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fpe.graph import find_groups
from fpe.graph.follow import exported, follow
from fpe.graph.verification import unverified


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x):
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


X = torch.linspace(-1, 1, 12).view(3, 4)


def plain(depth):
    return nn.Sequential(*(m for _ in range(depth) for m in (nn.Linear(4, 4), nn.GELU())), nn.Linear(4, 2))


def gated(depth):
    return nn.Sequential(*(Gated() for _ in range(depth)), nn.Linear(4, 2))


def symbolic(model):
    return lambda: find_groups(model)


def followed(model):
    program = exported(model, ((X,), {}))
    return lambda: follow(model, program)


def verified(model):
    groups = find_groups(model, X).groups
    return lambda: unverified(model, groups, X)


def calls_of(call):
    """Count the calls of Python functions, each step of a generator among them."""
    count = 0

    def counted(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(counted)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    ("build", "step"), [(plain, symbolic), (plain, followed), (gated, followed), (gated, verified)]
)
def test_twice_as_many_layers_take_twice_as_many_steps(build, step):
    step(build(2))()
    few, many = calls_of(step(build(8))), calls_of(step(build(16)))
    assert 1.5 < many / few < 2.4
