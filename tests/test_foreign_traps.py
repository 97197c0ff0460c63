"""Forward passes that look like those of the table of foreign models: refused, or right by the oracle."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fpe
from fpe.errors import ModelError
from fpe.graph import find_groups, verify
from models import assert_unchanged, snapshot
from oracle import copied

VECTOR, SEQUENCE, IMAGE = (4, 8), (3, 4, 8), (2, 6, 5, 5)


class OtherLinear(nn.Linear):
    """Another function in training mode, which a trace in evaluation mode would not show."""

    def forward(self, x):
        x = x @ self.weight.T + self.bias
        return x.clamp(-1, 1) if self.training else x


class Standardized(nn.Conv2d):
    """A convolution that standardizes its weight."""

    def forward(self, x):
        return self._conv_forward(x, F.normalize(self.weight, dim=1), self.bias)


class ScaledNorm(nn.LayerNorm):
    """A norm whose scale depends on its width."""

    def forward(self, x):
        return super().forward(x) * self.normalized_shape[0] ** 0.5


class NormAndMix(nn.BatchNorm2d):
    """A norm followed by a softmax over the channels."""

    def forward(self, x):
        return super().forward(x).softmax(1)


class Trap(nn.Module):
    """Layers for all traps; `follow` is the forward pass. The layer in question is `a`, or `conv`."""

    def __init__(self, follow):
        super().__init__()
        self.follow = follow
        self.a, self.a2, self.head = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 2)
        self.half_head, self.norm6 = nn.Linear(3, 2), nn.LayerNorm(6)
        self.other_a, self.scaled_norm = OtherLinear(8, 6), ScaledNorm(6)
        self.conv, self.conv2, self.other_conv = nn.Conv2d(6, 6, 3), nn.Conv2d(6, 4, 1), Standardized(6, 6, 3)
        self.reduce, self.restore, self.a3 = nn.Linear(6, 3), nn.Linear(3, 6), nn.Linear(5, 6)
        self.square, self.wide_head = nn.Linear(6, 6), nn.Linear(12, 2)
        self.norm_and_mix = NormAndMix(6)

    def forward(self, x):
        return self.follow(self, x)


def built(follow):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Trap(follow)


def batch_of(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def halves(combine):
    return lambda t, x: combine(t, *t.a(x).chunk(2, -1))


#: Name → forward pass, shape of the input, and a part of the reason for which it is refused.
REFUSED = {
    "some neurons written down": (
        lambda t, x: t.half_head(F.gelu(t.a(x))[:, :3]),
        VECTOR,
        "written down",
    ),
    "halves written down": (
        lambda t, x: (lambda h: t.half_head(h[:, :3] * F.gelu(h[:, 3:])))(t.a(x)),
        VECTOR,
        "written down",
    ),
    "halves that overlap": (
        lambda t, x: (lambda h: t.half_head(h[:, :3] * F.gelu(h[:, 1:4])))(t.a(x)),
        VECTOR,
        "picked out by 'slice'",
    ),
    "even and odd": (
        lambda t, x: (lambda h: t.half_head(h[:, ::2] * F.gelu(h[:, 1::2])))(t.a(x)),
        VECTOR,
        "picked out by 'slice'",
    ),
    "halves in another order": (halves(lambda t, a, b: t.half_head(a * b.flip(-1))), VECTOR, "'flip'"),
    "softmax of one half": (halves(lambda t, a, b: t.half_head(a * b.softmax(-1))), VECTOR, "'softmax'"),
    "unequal parts": (
        lambda t, x: (lambda a, b: t.half_head(F.gelu(b[:, 1:]) * a[:, :1]))(*t.a(x).split([2, 4], -1)),
        VECTOR,
        "picked out by 'slice'",
    ),
    "halves that are outputs too": (
        halves(lambda t, a, b: (t.half_head(a * F.gelu(b)), b)),
        VECTOR,
        "outputs of the network",
    ),
    "a half beside another layer": (
        lambda t, x: t.half_head(t.a(x).chunk(2, -1)[0] * t.a2(x)[:, ::2]),
        VECTOR,
        "meet another tensor in 'mul'",
    ),
    "a width in a scale": (
        lambda t, x: (lambda h: t.head(h * h.shape[-1] ** -0.5))(F.gelu(t.a(x))),
        VECTOR,
        "something depends on their number",
    ),
    "a width in a norm's scale": (
        lambda t, x: t.head(t.scaled_norm(t.a(x))),
        VECTOR,
        "something depends on their number",
    ),
    "a consumer of another function in training": (
        lambda t, x: t.other_a(torch.cat([F.gelu(t.a(x)), x[:, :2]], -1)),
        VECTOR,
        "passed to 'other_a', which is a OtherLinear, of which only nn.Linear is known",
    ),
    "a consumer that standardizes": (
        lambda t, x: t.other_conv(F.gelu(t.conv(x))),
        IMAGE,
        "passed to 'other_conv', which is a Standardized, not a linear",
    ),
    "a norm that mixes": (lambda t, x: t.conv2(t.norm_and_mix(t.conv(x))), IMAGE, "'softmax'"),
    "a consumer that consumes others too": (
        lambda t, x: t.head(F.gelu(t.a(x))) + t.head(x[:, :6]),
        VECTOR,
        "'head' is used 2 times in one forward pass, not always for these neurons",
    ),
    "a norm that norms others too": (
        lambda t, x: t.head(t.norm6(t.a(x))) + t.norm6(x[:, :6]).mean(),
        VECTOR,
        "'norm6' is used 2 times in one forward pass, not always for these neurons",
    ),
    "a layer in a circle": (
        lambda t, x: t.head(t.square(F.gelu(t.square(F.gelu(t.a(x)))))),
        VECTOR,
        "'square' is used 2 times in one forward pass, not always for these neurons",
    ),
    "two calls of which one is an output": (
        lambda t, x: (t.head(F.gelu(t.a(x))), t.a(2 * x)),
        VECTOR,
        "outputs of the network",
    ),
    "two calls of which one is mixed": (
        lambda t, x: t.head(F.gelu(t.a(x)) + t.a(-x).softmax(-1)),
        VECTOR,
        "'softmax'",
    ),
    "called, and its weight used": (
        lambda t, x: t.head(F.gelu(t.a(x)) + F.linear(x, t.a.weight)),
        VECTOR,
        "'a' is not called as a layer: its weight is used directly",
    ),
    "two calls side by side, once each way": (
        lambda t, x: (
            t.wide_head(torch.cat([t.a(x), t.a(-x)], -1)) + t.wide_head(torch.cat([t.a(x), x[:, :6]], -1))
        ),
        VECTOR,
        "'wide_head' takes its neurons in several layouts",
    ),
    "gates by one layer": (
        lambda t, x: (lambda h: t.head(h * t.square(h.mean(1, keepdim=True)).sigmoid()))(F.gelu(t.a(x))),
        SEQUENCE,
        "'square' both produces and consumes them",
    ),
    "gates with a softmax": (
        lambda t, x: (lambda h: t.head(h * t.restore(F.gelu(t.reduce(h))).softmax(-1)))(F.gelu(t.a(x))),
        VECTOR,
        "meet another tensor in 'mul'",
    ),
    "gates in another order": (
        lambda t, x: (lambda h: t.head(h * t.restore(F.gelu(t.reduce(h))).flip(-1)))(F.gelu(t.a(x))),
        VECTOR,
        "meet another tensor in 'mul'",
    ),
    "gates of neighbors": (
        lambda t, x: (lambda h: t.head(h * F.avg_pool1d(h, 3, 1, 1).sigmoid()))(F.gelu(t.a(x))),
        SEQUENCE,
        "'avg_pool1d'",
    ),
    "gates that are outputs too": (
        lambda t, x: (lambda h, g: (t.head(h * g), g))(F.gelu(t.a(x)), t.a2(-x).sigmoid()),
        VECTOR,
        "outputs of the network",
    ),
    "products of all pairs": (
        lambda t, x: t.head((t.a(x)[:, :, None] * t.a2(x)[:, None]).sum(-1)),
        VECTOR,
        "meet other neurons in 'mul'",
    ),
    "a sum of products": (
        lambda t, x: t.head((t.a(x) * t.a2(-x)).sum(-1, keepdim=True) * x[:, :6]),
        VECTOR,
        "added up or compared by 'sum'",
    ),
    "halves that meet others": (
        lambda t, x: t.half_head(F.glu(t.a(x), -1) + x[:, :3]),
        VECTOR,
        "meet another tensor in 'add'",
    ),
}

#: Name → forward pass, shape of the input, the producers of the groups.
FOUND = {
    "both halves": (halves(lambda t, a, b: t.half_head(a * F.gelu(b))), VECTOR, ["a"]),
    "one half": (halves(lambda t, a, b: t.half_head(F.gelu(b))), VECTOR, ["a"]),
    "halves and the whole": (
        lambda t, x: (lambda h: t.head(F.gelu(h)) + t.half_head(F.glu(h, -1)))(t.a(x)),
        VECTOR,
        ["a"],
    ),
    "halves joined in the other order": (
        halves(lambda t, a, b: t.head(torch.cat([F.gelu(b), a], -1))),
        VECTOR,
        ["a"],
    ),
    "halves of two layers": (
        lambda t, x: t.half_head(F.gelu(t.a(x).chunk(2, -1)[0]) * t.a2(x).chunk(2, -1)[1]),
        VECTOR,
        ["a", "a2"],
    ),
    "halves of the tokens": (
        lambda t, x: (lambda a, b: t.head(F.gelu(a) * b))(*t.a(x).chunk(2, 1)),
        SEQUENCE,
        ["a"],
    ),
    "two calls": (lambda t, x: t.head(F.gelu(t.a(x)) + F.gelu(t.a(2 * x))), VECTOR, ["a"]),
    "two calls of the consumer": (
        lambda t, x: (lambda h: t.head(F.gelu(h)) + t.head(2 * h))(t.a(x)),
        VECTOR,
        ["a"],
    ),
    "two calls side by side": (
        lambda t, x: t.wide_head(torch.cat([F.gelu(t.a(x)), t.a(-x)], -1)),
        VECTOR,
        ["a"],
    ),
    "two calls of a gated pair": (
        lambda t, x: t.head(F.gelu(t.a(x)) * t.a2(x)) + t.head(F.gelu(t.a(-x)) * t.a2(-x)),
        VECTOR,
        ["a", "a2"],
    ),
    "two calls of halves": (
        lambda t, x: t.half_head(F.glu(t.a(x), -1)) + t.half_head(F.glu(t.a(-x), -1)),
        VECTOR,
        ["a"],
    ),
    "two calls through a norm": (
        lambda t, x: t.head(F.gelu(t.norm6(t.a(x)))) - t.head(F.gelu(t.norm6(t.a(-x)))),
        VECTOR,
        ["a"],
    ),
    "gates by two layers": (
        lambda t, x: (lambda h: t.head(h * t.restore(F.gelu(t.reduce(h.mean(1)))).sigmoid()[:, None]))(
            F.gelu(t.a(x))
        ),
        SEQUENCE,
        ["a", "restore", "reduce"],
    ),
    "three layers in a product": (
        lambda t, x: t.head(F.gelu(t.a(x)) * t.a2(-x).sigmoid() * t.a3(x[:, :5]).tanh()),
        VECTOR,
        ["a", "a2", "a3"],
    ),
    "the gate comes first": (
        lambda t, x: (lambda g: t.head(g * F.gelu(t.a(x))))(t.a3(x[:, :5]).sigmoid()),
        VECTOR,
        ["a3", "a"],
    ),
    "halves of what is normed": (lambda t, x: t.half_head(F.glu(t.norm6(t.a(x)), -1)), VECTOR, ["a"]),
    "tokens of a gated unit": (lambda t, x: t.head(F.glu(t.a(x), 1)), SEQUENCE, ["a"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_only_looks_alike_is_refused_and_left_alone(name):
    follow, shape, reason = REFUSED[name]
    model, x = built(follow), batch_of(shape)
    before, layer = snapshot(model), "conv" if len(shape) == 4 else "a"
    with pytest.raises(ModelError) as error:
        fpe.plan(model, layers=[layer], example_inputs=x)
    assert reason in str(error.value)
    assert_unchanged(model, before)
    try:
        plan = fpe.plan(model, example_inputs=x)
    except ModelError:
        return
    assert layer not in {n for each in plan.layers for n in each.group.producers}


@pytest.mark.parametrize("name", FOUND)
def test_what_is_found_can_be_permuted_and_whole_copies_compute_the_same(name):
    follow, shape, producers = FOUND[name]
    model, x = built(follow).double(), batch_of(shape).double()
    groups = find_groups(model, x).groups
    assert [n for group in groups for n in group.producers] == producers
    verify(model, groups, x)
    wide = fpe.expand(model, 2, layers=producers, example_inputs=x)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    for factor in (2, 3):
        whole = copied(model, [vars(group) for group in groups], factor)
        for training in (False, True):
            dense = copy.deepcopy(model).train(training)(x)
            assert dense.abs().max() > 1e-3
            torch.testing.assert_close(whole.train(training)(x), dense)


def test_the_verification_refuses_halves_that_are_taken_for_whole_layers():
    """The second half in another order: the group by hand is wrong, whatever the number of parts."""
    model, x = built(halves(lambda t, a, b: t.half_head(a * b.flip(-1)))), batch_of(VECTOR)
    group = fpe.graph.NeuronGroup("a", "half_head", parts=2)
    with pytest.raises(ModelError, match="the output moves by"):
        verify(model, group, x)
    with pytest.raises(ModelError, match="not 4 equal parts"):
        fpe.plan(model, layers=[fpe.graph.NeuronGroup("a", "half_head", parts=4)], example_inputs=x)


def test_a_group_by_hand_may_have_parts():
    model, x = built(halves(lambda t, a, b: t.half_head(a * F.gelu(b)))), batch_of(VECTOR)
    group = fpe.graph.NeuronGroup("a", "half_head", parts=2)
    assert fpe.plan(model, layers=[group], example_inputs=x).layers[0].group == group
    assert find_groups(model, x).groups == (group,)


def test_children_of_a_gated_neuron_take_the_same_inputs_in_both_halves():
    """With enough zeros to prune, no other weight is masked."""
    model, x = built(halves(lambda t, a, b: t.half_head(a * F.gelu(b)))), batch_of(VECTOR)
    with torch.no_grad():
        model.half_head.weight.zero_()
        model.half_head.weight[0] = 1
        model.a.weight[:, :4] = 0
    wide = fpe.expand(model, 2, example_inputs=x, budget="network")
    gate, up = wide.a.weight.chunk(2)
    assert torch.equal(gate != 0, up != 0)
    dense = model.a.weight.repeat_interleave(2, 0)
    assert torch.equal(wide.a.weight[wide.a.weight != 0], dense[wide.a.weight != 0])
    assert (wide.a.weight.unflatten(0, (6, 2)).sum(1) == model.a.weight).all()


@pytest.mark.parametrize("unit", ["weight", "column"])
def test_masks_of_gated_halves_can_be_rewired(unit):
    model, x = built(halves(lambda t, a, b: t.half_head(a * F.gelu(b)))), batch_of(VECTOR)
    wide = fpe.expand(model, 2, split="shared", prune="columns", example_inputs=x)
    before, count = wide.a.fpe_mask.clone(), fpe.count_nonzero(wide)
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.1)
    policy = fpe.RewiringPolicy(unit=unit) if unit == "column" else fpe.RewiringPolicy()
    rewirer = fpe.Rewirer(wide, optimizer, steps=20, policy=policy, schedule=fpe.RewiringSchedule(every=5))
    for _ in range(20):
        optimizer.zero_grad()
        wide(x).square().sum().backward()
        optimizer.step()
        rewirer.step()
    assert fpe.count_nonzero(wide) == count
    assert (wide.a.weight[wide.a.fpe_mask == 0] == 0).all()
    if unit == "column":
        gate, up = wide.a.fpe_mask.chunk(2)
        assert torch.equal(gate, up)
    assert before.shape == wide.a.fpe_mask.shape
