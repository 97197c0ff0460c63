"""A model that cannot be exported as a whole is followed part by part, equal parts once."""

import pytest
import torch
from torch import nn

import fpe
from fpe.graph import follow, search
from oracle import copied


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

    def counted(model, call, training=False, opaque=None):
        made.append(type(model).__name__)
        return exported(model, call, training, opaque)

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
    assert exports == ["Branches", "Branches", "Block", "Branches"]  # the last without those that fail
    assert not skipped.keys() & {"blocks.0.blocks.0.up", "blocks.1.blocks.0.up"}


class Looks(nn.Module):
    """A module that looks at values, so that it cannot be exported; `inside` is what it computes."""

    def __init__(self, inside=lambda m, x: m.layer(x), *shared):
        super().__init__()
        self.layer, self.inside, self.shared = nn.Linear(6, 6), inside, nn.ModuleList(shared)

    def forward(self, x, *more):
        return self.inside(self, x if x.abs().max() < 1e9 else -x)


class Half(nn.Module):
    """The first, or the second, half of an MLP."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)

    def forward(self, x):
        return torch.relu(self.dense(x))


class Around(nn.Module):
    """An MLP in two modules behind one that cannot be exported, and a head."""

    def __init__(self, follow, looks=Looks, shared=False):
        super().__init__()
        self.follow = follow
        self.first, self.second, self.head = Half(6, 8), Half(8, 6), Block(0)
        self.looks = looks(lambda m, x: m.layer(x) + x, *([self.first] if shared else []))
        self.wide = nn.Linear(8, 6)

    def forward(self, x):
        return self.follow(self, x)


def plainly(m, x):
    x = m.looks(x)
    return m.head(x + m.second(m.first(x)))


def leaking(m, x):
    h = m.first(m.looks(x))
    m.looks.inside = lambda own, y: own.layer(y) + h.softmax(-1).sum(1, True) * h[:, :1]
    return m.head(m.second(h) + m.looks(x))


def attending(m, x):
    m.looks.inside = lambda own, y: (y @ y.T).softmax(-1) @ own.layer(y)
    return plainly(m, x)


#: Name → model, and whether "first.dense" is found; else a part of the reason.
AROUND = {
    "an MLP in two modules": (lambda: Around(plainly), True),
    "called twice": (lambda: Around(lambda m, x: plainly(m, m.looks(x))), True),
    "a sum with what is inside": (
        lambda: Around(lambda m, x: m.head(m.second(m.first(x)) * m.looks(x))),
        True,
    ),
    "a gate for all": (lambda: Around(lambda m, x: m.head(m.second(m.first(x) * m.looks(x)[:, :1]))), True),
    "neurons that enter it": (
        lambda: Around(lambda m, x: m.head(m.second(m.first(x)) + m.looks(x, m.first(x)))),
        "its neurons enter 'looks', into which fpe cannot follow",
    ),
    "neurons that it returns": (
        lambda: Around(lambda m, x: m.head(m.wide(m.first(x)) + m.looks(m.second(m.first(x))))),
        True,
    ),
    "a gate for each": (
        lambda: Around(lambda m, x: m.head(m.second(m.first(x) * m.looks(x)[:, [0, 1, 2, 3, 4, 5, 0, 1]]))),
        "meet another tensor in 'mul'",
    ),
    "a layer that is inside too": (lambda: Around(plainly, shared=True), "shares layers with a module"),
    "neurons behind its back": (lambda: Around(leaking), "the output moves by"),
    "a branch of the whole": (
        lambda: Around(
            lambda m, x: plainly(m, x) if x.sum() < 1e9 else m.head(m.first(x).softmax(-1)[:, :6])
        ),
        "its neurons leave 'first', beyond which the forward pass cannot be followed",
    ),
    "a softmax between": (
        lambda: Around(lambda m, x: m.head(m.looks(x) + m.second(m.first(x).softmax(-1)))),
        "'softmax'",
    ),
}


@pytest.mark.parametrize("name", AROUND)
def test_modules_that_cannot_be_exported_leave_the_rest_of_a_model_to_be_followed(name):
    make, found = AROUND[name]
    torch.manual_seed(0)
    model, x = make().double(), torch.randn(5, 6).double()
    if found is not True:
        with pytest.raises(fpe.errors.ModelError) as error:
            fpe.plan(model, layers=["first.dense"], example_inputs=x)
        assert found in str(error.value)
        return
    found = search.find_groups(model, x)
    assert [group.name for group in found.groups] == ["first.dense", "head.up"]
    assert "looks.layer" in {skip.name for skip in found.skipped}
    fpe.graph.verify(model, found.groups, x)
    wide = fpe.expand(model, layers=["first.dense"], example_inputs=x)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    for factor in (2, 3):
        whole = copied(model, [vars(group) for group in found.groups], factor)
        for training in (False, True):
            torch.testing.assert_close(whole.train(training)(x), model.train(training)(x))


def test_an_attention_that_looks_at_values_makes_a_transformer_whose_head_is_left_alone():
    model, x = Around(attending), torch.randn(5, 6)
    model.head = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    plan = fpe.plan(model, example_inputs=x)
    assert [layer.group.name for layer in plan.layers] == ["first.dense"]
    assert "head of a transformer" in next(s.reason for s in plan.skipped if s.name == "head.0")
