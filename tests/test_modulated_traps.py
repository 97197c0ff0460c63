"""Neurons that a layer beside theirs scales and shifts, and forward passes that only look so."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fpe
from fpe.errors import ModelError
from fpe.graph import NeuronGroup, find_groups, verify
from models import assert_unchanged, snapshot
from oracle import check_copies

VECTOR, IMAGE = (4, 8), (2, 6, 6, 6)


class Modulated(nn.Module):
    """Layers for all traps; `follow` is the forward pass of `x` and a condition. In question is `m`."""

    def __init__(self, follow):
        super().__init__()
        self.follow = follow
        self.a, self.a2, self.c = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 12)
        self.m, self.m3, self.b = nn.Linear(7, 12), nn.Linear(7, 18), nn.Linear(6, 6)
        self.head, self.wide_head, self.half_head = nn.Linear(6, 2), nn.Linear(12, 2), nn.Linear(3, 2)
        self.square, self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.conv, self.conv2 = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.grouped, self.norm, self.pieces = (
            nn.Conv2d(6, 6, 3, groups=2),
            nn.LayerNorm(6),
            nn.GroupNorm(3, 6),
        )

    def forward(self, x, condition):
        return self.follow(self, x, condition)


def built(follow):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Modulated(follow)


def batch_of(shape):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator), torch.randn(shape[0], 7, generator=generator)


def modulated(combine):
    return lambda t, x, c: combine(t, x, *t.m(c).chunk(2, -1))


def on_images(combine):
    return lambda t, x, c: combine(t, t.conv(x), *t.m(c)[..., None, None].chunk(2, 1))


def a_transformer(t, x, c):
    """As adaLN-Zero does on a residual stream: what gates the MLP is of the layer that scales the stream."""
    x = t.a(x)
    shift, scale, gate = t.m3(c).chunk(3, -1)
    return t.head(x + gate * t.fc2(F.gelu(t.fc1(t.norm(x) * (1 + scale) + shift))))


def in_training_flipped(t, x, c):
    scale, shift = t.m(c).chunk(2, -1)
    return t.head(F.gelu(t.a(x) * scale + (shift.flip(-1) if t.training else shift)))


def beside_its_scale(t, x, scale, shift):
    """What is concatenated when nothing yet shows that both are one group."""
    h = t.a(x)
    both = torch.cat([scale, h], -1)
    return t.head(F.gelu(h * scale)) + t.wide_head(both.tanh())


#: Name → forward pass, shape of the input, and a part of the reason for which `m` is refused.
REFUSED = {
    "a scale in another order": (
        modulated(lambda t, x, s, b: t.head(F.gelu(t.a(x) * s.flip(-1) + b))),
        VECTOR,
        "'flip'",
    ),
    "a shift in another order": (
        modulated(lambda t, x, s, b: t.head(F.gelu(t.a(x) * s + b[:, [5, 4, 3, 2, 1, 0]]))),
        VECTOR,
        "picked out by 'index'",
    ),
    "a shift in another order in training": (in_training_flipped, VECTOR, "in training mode"),
    "a softmax of the scale": (
        modulated(lambda t, x, s, b: t.head(F.gelu(t.a(x) * s.softmax(-1) + b))),
        VECTOR,
        "'softmax'",
    ),
    "a scale that is an output too": (
        modulated(lambda t, x, s, b: (t.head(F.gelu(t.a(x) * s + b)), s)),
        VECTOR,
        "outputs of the network",
    ),
    "a shift of a residual sum": (
        modulated(lambda t, x, s, b: (lambda h: t.head(h + t.b(F.gelu(h * s + b)) + b))(t.a(x))),
        VECTOR,
        "meet other neurons in 'add'",
    ),
    "a residual sum of what is scaled and what scales": (
        modulated(lambda t, x, s, b: (lambda h: t.head(h + s * t.b(F.gelu(h + b))))(t.a(x))),
        VECTOR,
        "meet other neurons in 'mul'",
    ),
    "two blocks in a row": (
        lambda t, x, c: (lambda s, b: t.head(t.b(F.gelu(t.square(F.gelu(t.a(x) * s + b)) * s + b))))(
            *t.m(c).chunk(2, -1)
        ),
        VECTOR,
        "meet other neurons in 'mul'",
    ),
    "alternating": (
        lambda t, x, c: (lambda m: t.head(F.gelu(t.a(x) * m[:, ::2] + m[:, 1::2])))(t.m(c)),
        VECTOR,
        "picked out by 'slice'",
    ),
    "pairs in an axis": (
        lambda t, x, c: (lambda m: t.head(F.gelu(t.a(x) * m[..., 0] + m[..., 1])))(t.m(c).view(-1, 6, 2)),
        VECTOR,
        "split by 'view'",
    ),
    "parts that are unequal": (
        lambda t, x, c: (lambda s, b: t.head(F.gelu(t.a(x) * s[:, :6] + s[:, 1:7])) + b.sum())(
            *t.m(c).split([7, 5], -1)
        ),
        VECTOR,
        "picked out by",
    ),
    "parts that overlap": (
        lambda t, x, c: (lambda m: t.head(F.gelu(t.a(x) * m[:, :6] + m[:, 4:10])))(t.m(c)),
        VECTOR,
        "picked out by 'slice'",
    ),
    "parts written down": (
        lambda t, x, c: (lambda m: t.head(F.gelu(t.a(x) * m[:, :6] + m[:, 6:])))(t.m(c)),
        VECTOR,
        "written down",
    ),
    "a scale for two neurons each": (
        modulated(lambda t, x, s, b: t.wide_head(t.c(x) * s.repeat_interleave(2, -1))),
        VECTOR,
        "'repeat_interleave'",
    ),
    "a mean of the scale": (
        modulated(lambda t, x, s, b: t.head(F.gelu(t.a(x) * s.mean(-1, keepdim=True) + b))),
        VECTOR,
        "added up or compared by 'mean'",
    ),
    "all pairs": (
        modulated(lambda t, x, s, b: t.head((t.a(x)[:, :, None] * s[:, None]).sum(-1) + b)),
        VECTOR,
        "meet other neurons in 'mul'",
    ),
    "a scale along the width of an image": (
        lambda t, x, c: (lambda s, b: t.conv2(t.conv(x) * s + b))(*t.m(c)[:, None, None].chunk(2, -1)),
        IMAGE,
        "meet other neurons in 'mul'",
    ),
    "a scale along the channels, a shift along the width": (
        on_images(lambda t, h, s, b: t.conv2(F.silu(h * s + b.transpose(1, 3)))),
        IMAGE,
        "meet other neurons in 'add'",
    ),
    "a convolution in groups": (
        lambda t, x, c: (lambda s, b: t.conv2(t.grouped(x) * s + b))(*t.m(c)[..., None, None].chunk(2, 1)),
        IMAGE,
        "meet other neurons in 'mul'",
    ),
    "the weights used directly": (
        modulated(lambda t, x, s, b: t.head(F.gelu(t.a(x) * s + b)) + t.m.weight.sum()),
        VECTOR,
        "used 2 times",
    ),
    "neurons that have the shift, and others the scale, side by side": (
        modulated(lambda t, x, s, b: t.wide_head(torch.cat([t.a(x) * s, t.b(t.a(x)) + b], -1))),
        VECTOR,
        "meet other neurons in 'add'",
    ),
    "a model that scales its residual stream": (a_transformer, VECTOR, "meet other neurons in 'mul'"),
}

#: Name → forward pass, shape of the input, the producers of the groups, and their parts.
FOUND = {
    "a scale for both halves": (
        modulated(lambda t, x, s, b: t.wide_head(t.c(x) * s.repeat(1, 2))),
        VECTOR,
        {"m": 2, "c": 2},
    ),
    "a group norm in pieces": (
        on_images(lambda t, h, s, b: t.conv2(F.silu(t.pieces(h) * (1 + s) + b))),
        IMAGE,
        {"conv": 1, "m": 2},
    ),
    "two layers beside each other": (
        modulated(lambda t, x, s, b: t.head(F.gelu(t.a(x) * s) + F.gelu(t.a2(x) + b))),
        VECTOR,
        {"a": 1, "m": 2, "a2": 1},
    ),
    "two layers apart": (
        modulated(lambda t, x, s, b: t.head(F.gelu(t.a(x) * s)) + t.half_head(F.glu(t.a2(x) + b, -1))),
        VECTOR,
        {"a": 2, "m": 4, "a2": 2},
    ),
    "halves and quarters": (
        lambda t, x, c: (lambda m: t.half_head(F.glu(t.a(x) * m[0] + m[1], -1)))(t.m(c).chunk(2, -1)),
        VECTOR,
        {"a": 2, "m": 4},
    ),
    "a half and a whole in a sum": (
        modulated(lambda t, x, s, b: t.head(F.gelu(s + t.a(x)))),
        VECTOR,
        {"m": 2, "a": 1},
    ),
    "scaled neurons beside their scale": (
        modulated(beside_its_scale),
        VECTOR,
        {"m": 2, "a": 1},
    ),
    "a scale that meets a shift first": (
        modulated(lambda t, x, s, b: t.head(F.gelu(t.a(x) * (s * b)))),
        VECTOR,
        {"a": 1, "m": 2},
    ),
    "two calls": (
        modulated(lambda t, x, s, b: t.head(F.gelu(t.a(x) * s + b)) - t.head(F.gelu(t.a(-x) * b))),
        VECTOR,
        {"a": 1, "m": 2},
    ),
    "a residual stream of its own": (
        lambda t, x, c: (lambda s, b: t.head(x[:, :6] + t.b(F.gelu(t.a(x) * s + b))))(*t.m(c).chunk(2, -1)),
        VECTOR,
        {"a": 1, "m": 2},
    ),
}


def producers_in(groups):
    return {name: group.parts_of(name) for group in groups for name in group.producers}


@pytest.mark.parametrize("name", REFUSED)
def test_what_only_looks_modulated_is_refused_and_left_alone(name):
    follow, shape, reason = REFUSED[name]
    model, batch = built(follow), batch_of(shape)
    before, layer = snapshot(model), "m3" if follow is a_transformer else "m"
    with pytest.raises(ModelError) as error:
        fpe.plan(model, layers=[layer], example_inputs=batch)
    assert reason in str(error.value)
    assert_unchanged(model, before)
    try:
        plan = fpe.plan(model, example_inputs=batch)
    except ModelError:
        return
    assert layer not in producers_in(layer.group for layer in plan.layers)


@pytest.mark.parametrize("name", FOUND)
def test_what_is_modulated_can_be_permuted_and_whole_copies_compute_the_same(name):
    follow, shape, producers = FOUND[name]
    model, batch = built(follow).double(), tuple(own.double() for own in batch_of(shape))
    groups = find_groups(model, batch).groups
    assert producers_in(groups) == producers
    verify(model, groups, batch)
    wide = fpe.expand(model, 2, layers=[*producers], example_inputs=batch)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    check_copies(model, groups, batch)


FILM = modulated(lambda t, x, s, b: t.head(F.gelu(t.a(x) * (1 + s) + b)))
GROUP = NeuronGroup(("m", "a"), "head", parts=(2, 1))


def test_a_group_by_hand_has_a_number_of_parts_for_each_producer():
    model, batch = built(FILM), batch_of(VECTOR)
    assert find_groups(model, batch).groups == (GROUP,)
    assert fpe.plan(model, layers=[GROUP], example_inputs=batch).layers[0].group == GROUP
    assert (GROUP.parts_of("a"), GROUP.parts_of("m")) == (1, 2)
    for parts, problem in (
        (1, "'a' has 6 outputs, and 12 are those of the neurons of 'm'"),
        ((1, 2), "'a' has 6 outputs, and 24 are those"),
        ((2, 1, 1), "has 2 producers and parts for 3"),
        ((5, 2), "'m' has 12 outputs, not 5 equal parts"),
    ):
        group = NeuronGroup(("m", "a"), "head", parts=parts)
        with pytest.raises(ModelError, match=problem):
            fpe.plan(model, layers=[group], example_inputs=batch)


def test_one_number_of_parts_stays_a_number_also_in_files():
    plain = NeuronGroup(("a", "b"), "head", parts=2)
    assert NeuronGroup(("a", "b"), "head", parts=(2, 2)) == plain
    assert vars(plain)["parts"] == 2
    for group in (plain, GROUP):
        assert NeuronGroup.from_dict(json.loads(json.dumps(vars(group)))) == group
        assert group in {group.under("x").within("x")}


@pytest.mark.parametrize(
    "follow",
    [
        modulated(lambda t, x, s, b: t.head(F.gelu(t.a(x) * s.flip(-1) + b))),
        modulated(lambda t, x, s, b: t.head(F.gelu(t.a(x) * s + b.flip(-1)))),
        lambda t, x, c: t.head(F.gelu(t.a(x) * t.m(c)[:, ::2] + t.m(c)[:, 1::2])),
        modulated(lambda t, x, s, b: t.head(F.gelu(t.a(x) * s + b) + t.fc2(t.fc1(b)))),
        modulated(lambda t, x, s, b: t.head(F.gelu(t.a(x) * s + b)) + b.softmax(-1)[:, :1]),
    ],
)
def test_the_verification_refuses_a_wrong_group(follow):
    model, batch = built(follow), batch_of(VECTOR)
    with pytest.raises(ModelError, match="the output moves by"):
        verify(model, GROUP, batch)
    with pytest.raises(ModelError, match="the output moves by"):
        fpe.plan(model, layers=[GROUP], example_inputs=batch)


def test_all_groups_are_verified_at_once(monkeypatch):
    """One run in each mode shows that the plan is right, so that no group is judged alone."""
    model, batch = built(FILM), batch_of(VECTOR)
    monkeypatch.setattr(fpe.expansion.planner, "unverified", None)
    assert fpe.plan(model, example_inputs=batch).layers[0].group == GROUP
