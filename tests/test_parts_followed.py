"""A model that cannot be exported as a whole is followed part by part, equal parts once."""

import pytest
import torch
from torch import nn

import fpe
from fpe.graph import follow, search


class Block(nn.Module):
    """An MLP that knows its number, and may mix its neurons."""

    def __init__(self, number, mixes=False, scale=None):
        super().__init__()
        self.number, self.mixes, self.scale = number, mixes, scale
        self.up, self.down = nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x):
        h = torch.relu(self.up(x))
        if self.mixes or (self.scale is not None and float(self.scale) > 1):
            h = h + h.flip(-1)
        return x + self.down(h)


class Branches(nn.Module):
    """Its forward pass depends on the data, so that it cannot be exported."""

    def __init__(self, *blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        for block in self.blocks:
            x = block(x) if x.sum() < 1e9 else x
        return x


@pytest.fixture
def exports(monkeypatch):
    """Return the list of what is exported."""
    made, exported = [], follow.exported

    def counted(model, call, training=False):
        made.append(type(model).__name__)
        return exported(model, call, training)

    monkeypatch.setattr(follow, "exported", counted)
    return made


def names(model):
    found = search.find_groups(model, torch.randn(3, 6))
    return [group.name for group in found.groups], {own.name: own.reason for own in found.skipped}


def test_equal_parts_that_know_their_numbers_are_exported_once(exports):
    model = Branches(*(Block(number) for number in range(8)))
    groups, _ = names(model)
    assert groups == [f"blocks.{number}.up" for number in range(8)]
    assert exports == ["Branches", "Block"]
    wide = fpe.expand(model, 2, example_inputs=torch.randn(3, 6))
    assert [block.up.out_features for block in wide.blocks] == [10] * 8
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)


@pytest.mark.parametrize(
    "other",
    [
        lambda: Block(2, mixes=True),
        lambda: Block(2, scale=torch.tensor(2.0)),  # a constant of the trace, not a buffer
        lambda: _hooked(Block(2)),
        lambda: _of_double_width(Block(2)),
    ],
)
def test_a_part_that_differs_is_exported_on_its_own(other, exports):
    scale = None if other().scale is None else torch.tensor(0.5)
    model = Branches(Block(0, scale=scale), Block(1, scale=scale), other(), Block(3, scale=scale))
    groups, skipped = names(model)
    assert exports == ["Branches", "Block", "Block"]
    wide = other().up.out_features == 10
    assert groups == [f"blocks.{number}.up" for number in ((0, 1, 2, 3) if wide else (0, 1, 3))]
    assert ("blocks.2.up" in skipped) != wide


def _hooked(block):
    block.up.register_forward_hook(lambda module, args, output: output.flip(-1) + output)
    return block


def _of_double_width(block):
    block.up, block.down = nn.Linear(6, 10), nn.Linear(10, 6)
    return block


def test_layers_of_a_part_that_are_tied_in_one_of_two_parts_are_not_alike(exports):
    """Two parts of the same shapes; in one of them both MLPs have the same weight."""
    free, tied = nn.Sequential(Block(0), Block(1)), nn.Sequential(Block(0), Block(1))
    tied[1].up.weight = tied[0].up.weight
    _, skipped = names(Branches(free, tied))
    assert exports == ["Branches", "Sequential", "Sequential"]
    assert {name for name in skipped if name.endswith("up")} == {"blocks.1.0.up", "blocks.1.1.up"}


def test_why_a_part_cannot_be_followed_is_said_of_each(exports):
    _, skipped = names(Branches(Branches(Block(0)), Branches(Block(0))))
    assert exports == ["Branches", "Branches", "Block"]
    assert not skipped.keys() & {"blocks.0.blocks.0.up", "blocks.1.blocks.0.up"}
