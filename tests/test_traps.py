"""Forward passes that look expandable and are not, or are in an unusual way: none gives a wrong network.

Each trap has a hidden layer ``a``. It is either refused, by name and with a reason, and left as it was; or
expanded, and then its neurons can be permuted, and with an identity for its activation it computes what the
dense one does.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fpe
from fpe.errors import ModelError
from fpe.graph import find_groups, verify
from models import assert_unchanged, snapshot


class Trap(nn.Module):
    """Layers for all traps; `follow` is the forward pass, with the activation as an argument."""

    def __init__(self, follow, act=F.gelu):
        super().__init__()
        self.follow, self.act = follow, act
        self.a, self.a2 = nn.Linear(24, 6), nn.Linear(24, 6)
        self.b, self.head, self.wide_head = nn.Linear(6, 6), nn.Linear(6, 2), nn.Linear(12, 2)
        self.flat_head = nn.Linear(6 * 16, 2)
        self.conv, self.conv2 = nn.Conv2d(6, 6, 3), nn.Conv2d(6, 4, 3)
        self.grouped, self.depthwise = nn.Conv2d(6, 4, 3, groups=2), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.tokens, self.norm = nn.Conv1d(5, 5, 1), nn.BatchNorm1d(5)
        self.group_norm, self.layer_norm = nn.GroupNorm(3, 6), nn.LayerNorm(6)
        self.register_buffer("shift", torch.linspace(-1, 1, 6))
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.free = nn.Parameter(torch.randn(6, 2))

    def forward(self, x):
        return self.follow(self, x, self.act)


def hard_coded(t, x, act):
    return t.head(act(t.a(x)).view(-1, 6))


def hidden_state(t, x, act):
    t.last = act(t.a(x))
    return t.head(t.last)


def branch_on_data(t, x, act):
    h = t.a(x)
    return t.head(act(h) if x.sum() > 0 else h.softmax(-1))


def frozen_body(t, x, act):
    with torch.no_grad():
        h = act(t.a(x))
    return t.head(h)


def in_place(t, x, act):
    h = t.a(x)
    h += t.shift
    return t.head(act(h))


class Twice(torch.autograd.Function):
    """An operation of the user's own, which may do anything."""

    @staticmethod
    def forward(ctx, h):
        return h.flip(-1)

    @staticmethod
    def backward(ctx, grad):
        return grad.flip(-1)


VECTOR, IMAGE, SEQUENCE = (4, 24), (2, 6, 8, 8), (4, 5, 24)

#: Name → forward pass, shape of the input, layer, and a part of the reason for which it is refused.
REFUSED = {
    "hidden softmax": (lambda t, x, act: t.head(t.a(x).softmax(-1)), VECTOR, "'softmax'"),
    "sort": (lambda t, x, act: t.head(act(t.a(x)).sort(-1).values), VECTOR, "'sort'"),
    "cumsum": (lambda t, x, act: t.head(act(t.a(x)).cumsum(-1)), VECTOR, "'cumsum'"),
    "vector norm": (lambda t, x, act: t.head(F.normalize(t.a(x), dim=-1)), VECTOR, "'linalg_vector_norm'"),
    "mean over neurons": (
        lambda t, x, act: t.head(t.a(x) - t.a(x).mean(-1, keepdim=True)),
        VECTOR,
        "added up or compared by 'mean'",
    ),
    "centered": (
        lambda t, x, act: (lambda h: t.head(h - h.mean(-1, keepdim=True)))(t.a(x)),
        VECTOR,
        "added up or compared by 'mean'",
    ),
    "glu": (lambda t, x, act: F.glu(t.a(x), -1) @ t.free[:3], VECTOR, "'matmul'"),
    "chunk": (lambda t, x, act: t.a(x).chunk(2, -1)[0] @ t.free[:3], VECTOR, "'matmul'"),
    "some neurons": (lambda t, x, act: act(t.a(x))[:, :1] @ t.free[:1], VECTOR, "'slice'"),
    "another order": (lambda t, x, act: t.head(act(t.a(x))[:, [1, 0, 3, 2, 5, 4]]), VECTOR, "picked out"),
    "flipped": (
        lambda t, x, act: t.head(Twice.apply(t.a(x))),
        VECTOR,
        "not known to treat each neuron alone",
    ),
    "also returned": (
        lambda t, x, act: (lambda h: (t.head(h), {"more": [h]}))(act(t.a(x))),
        VECTOR,
        "outputs of the network",
    ),
    "heads": (
        lambda t, x, act: t.head(act(t.a(x)).view(-1, 2, 3).softmax(1).flatten(1)),
        VECTOR,
        "split by 'view'",
    ),
    "split and joined": (
        lambda t, x, act: t.head(act(t.a(x)).view(-1, 2, 3).flatten(1)),
        VECTOR,
        "split by 'view'",
    ),
    "residual": (
        lambda t, x, act: (lambda h: t.head(h + t.b(act(h))))(t.a(x)),
        VECTOR,
        "meet other neurons in 'add'",
    ),
    "attention of neurons": (
        lambda t, x, act: (lambda h: t.head((h @ h.transpose(-1, -2)).softmax(-1) @ h))(t.a(x)),
        SEQUENCE,
        "'matmul'",
    ),
    "buffer added": (lambda t, x, act: t.head(act(t.a(x) + t.shift)), VECTOR, "'shift', which has an entry"),
    "buffer added in place": (in_place, VECTOR, "'shift', which has an entry"),
    "functional weight": (lambda t, x, act: F.linear(act(t.a(x)), t.head.weight), VECTOR, "used directly"),
    "functional producer": (
        lambda t, x, act: t.head(act(F.linear(x, t.a.weight, t.a.bias))),
        VECTOR,
        "used directly",
    ),
    "weight used again": (
        lambda t, x, act: t.head(act(t.a(x))) + t.head.weight.sum(),
        VECTOR,
        "used 2 times",
    ),
    "free matrix": (lambda t, x, act: act(t.a(x)) @ t.free, VECTOR, "'matmul'"),
    "functional norm": (
        lambda t, x, act: t.head(F.layer_norm(t.a(x), (6,))),
        VECTOR,
        "not a norm that can widen",
    ),
    "norm over tokens": (lambda t, x, act: t.head(act(t.norm(t.a(x)))), SEQUENCE, "works along another axis"),
    "convolution over tokens": (lambda t, x, act: t.tokens(act(t.a(x))), SEQUENCE, "along another axis"),
    "pooled neurons": (
        lambda t, x, act: F.avg_pool1d(t.a(x), 2) @ t.free[:3],
        VECTOR,
        "mixed by 'avg_pool1d'",
    ),
    "branch on data": (branch_on_data, VECTOR, "cannot be followed (GuardOnDataDependent"),
    "number written down": (hard_coded, VECTOR, "has the number of neurons written down"),
}

#: Name → forward pass, shape of the input, the layers that are expanded.
EXPANDED = {
    "plain": (lambda t, x, act: t.head(act(t.a(x))), VECTOR, ["a"]),
    "frozen body": (frozen_body, VECTOR, []),
    "kept as an attribute": (hidden_state, VECTOR, ["a"]),
    "scalar parameter": (lambda t, x, act: t.head(act(t.a(x)) * t.scale), VECTOR, ["a"]),
    "one gate for all": (lambda t, x, act: t.head(act(t.a(x)) * x[:, :1]), VECTOR, ["a"]),
    "twice side by side": (
        lambda t, x, act: (lambda h: t.wide_head(torch.cat([h, -h], -1)))(t.a(x)),
        VECTOR,
        ["a"],
    ),
    "beside the input": (
        lambda t, x, act: t.wide_head(torch.cat([x[:, :6], act(t.a(x))], -1)),
        VECTOR,
        ["a"],
    ),
    "two beside each other": (
        lambda t, x, act: t.wide_head(torch.cat([act(t.a(x)), act(t.a2(x))], -1)),
        VECTOR,
        ["a", "a2"],
    ),
    "gate and up": (lambda t, x, act: t.head(act(t.a(x)) * t.a2(x)), VECTOR, ["a", "a2"]),
    "one token taken": (lambda t, x, act: t.head(act(t.a(x))[:, 0]), SEQUENCE, ["a"]),
    "mean over tokens": (lambda t, x, act: t.head(act(t.a(x)).mean(1)), SEQUENCE, ["a"]),
    "channels last": (
        lambda t, x, act: t.flat_head(act(t.conv(x))[..., :4, :4].permute(0, 2, 3, 1).flatten(1)),
        IMAGE,
        ["conv"],
    ),
    "channels first": (
        lambda t, x, act: t.flat_head(act(t.conv(x))[..., :4, :4].flatten(1)),
        IMAGE,
        ["conv"],
    ),
    "grouped convolution": (lambda t, x, act: t.grouped(act(t.conv(x))), IMAGE, ["conv"]),
    "depthwise between": (lambda t, x, act: t.conv2(act(t.depthwise(t.conv(x)))), IMAGE, ["conv"]),
    "consumed as a sequence": (
        lambda t, x, act: t.head(act(t.conv(x)).flatten(2).transpose(1, 2)),
        IMAGE,
        ["conv"],
    ),
}  # fmt: skip


def built(follow, act=F.gelu):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Trap(follow, act)


def batch_of(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_expanded_is_refused_by_name_and_left_alone(name):
    follow, shape, reason = REFUSED[name]
    model, x = built(follow), batch_of(shape)
    before, state = snapshot(model), torch.get_rng_state()
    with pytest.raises(ModelError) as error:
        fpe.expand(model, layers=["conv" if len(shape) == 4 else "a"], example_inputs=x)
    assert reason in str(error.value)
    assert_unchanged(model, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", REFUSED)
def test_without_being_asked_for_it_is_left_out_too(name):
    """By default only what is understood is expanded, and what comes out runs in the same shapes."""
    follow, shape, _ = REFUSED[name]
    model, x = built(follow), batch_of(shape)
    try:
        wide = fpe.expand(model, example_inputs=x)
    except ModelError:
        return
    expanded = [n for layer in wide.fpe_plan.layers for n in layer.group.producers]
    assert ("conv" if len(shape) == 4 else "a") not in expanded
    verify(wide, [layer.group for layer in wide.fpe_plan.layers], x)


def made_linear(model, plan):
    """Remove what is not linear besides the activation: biases, shifts, means; and make weights to prune.

    With as many zeros among the weights as there are copies, pruning masks no other weight. The gate of a
    gated pair becomes the constant 1.
    """
    with torch.no_grad():
        for layer in plan.layers:
            *gates, _ = layer.group.producers
            for name in layer.group.producers:
                module = model.get_submodule(name)
                module.weight.mul_(name not in gates)
                module.bias.fill_(float(name in gates))
                if name not in gates:
                    rows = module.weight.flatten(1)
                    rows.view(-1)[
                        rows.abs().flatten().argsort()[: min(layer.copies, rows.numel() * 3 // 4)]
                    ] = 0
            for name in layer.group.between:
                model.get_submodule(name).bias.zero_()
            for name in layer.group.consumers:
                consumer = model.get_submodule(name).weight.flatten(1)
                consumer.mul_(torch.arange(len(consumer))[:, None] != 0)


@pytest.mark.parametrize("name", EXPANDED)
def test_what_is_expanded_computes_what_the_dense_network_does(name):
    follow, shape, layers = EXPANDED[name]
    x = batch_of(shape)
    model = built(follow)
    found = [n for group in find_groups(model, x).groups for n in group.producers]
    assert found == layers
    if not layers:
        with pytest.raises(ModelError, match="there is nothing to expand"):
            fpe.expand(model, example_inputs=x)
        return
    wide = fpe.expand(model, 2, layers=layers, example_inputs=x)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    verify(wide, find_groups(wide, x).groups, x)

    linear = built(follow, act=lambda h: h)
    made_linear(linear, wide.fpe_plan)
    same = fpe.expand(linear, 2, layers=layers, example_inputs=x, budget="network")
    dense = linear(x)
    assert dense.abs().max() > 0.01
    torch.testing.assert_close(same(x), dense, rtol=1e-4, atol=1e-5)
    changed = linear(batch_of(shape) * 2)
    assert not torch.allclose(changed, dense)


def test_what_a_forward_pass_leaves_behind_is_cleared_away():
    """An attribute that it sets, a buffer that it counts in: the model is as it was."""

    def follow(t, x, act):
        t.shift += 1
        t.last = act(t.a(x))
        return t.head(t.last)

    model, x = built(follow), batch_of(VECTOR)
    before = vars(model).copy(), model.shift.clone()
    fpe.expand(model, example_inputs=x, layers=["a"])
    assert vars(model) == before[0]
    assert torch.equal(model.shift, before[1])


def test_there_are_at_least_twenty_traps():
    assert len(REFUSED) >= 20


def test_the_other_branch_of_a_forward_pass_cannot_hide_a_mixture():
    """On this batch the softmax is not taken; a trace of one run would not show it."""
    model, x = built(branch_on_data), batch_of(VECTOR).abs()
    assert find_groups(model, x).groups == ()
    assert find_groups(model, -x).groups == ()


@pytest.mark.parametrize("norm", ["group_norm", "layer_norm"])
@pytest.mark.parametrize("factor", [2, 3])
def test_norms_over_neurons_see_children_in_the_place_of_their_parent(norm, factor):
    """Full copies of all neurons leave the norm's statistics as they were, so the output does not move."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(8, 6), getattr(built(None), norm), nn.ReLU(), nn.Linear(6, 2))
    nn.init.uniform_(dense[1].weight)
    nn.init.uniform_(dense[1].bias)
    x = torch.randn(5, 8)
    wide = fpe.expand(dense, factor, layers=["0"], example_inputs=x)
    with torch.no_grad():
        wide[0].weight.copy_(dense[0].weight.repeat_interleave(factor, 0))
        wide[0].bias.copy_(dense[0].bias.repeat_interleave(factor))
        wide[3].weight.copy_(dense[3].weight.repeat_interleave(factor, 1) / factor)
    torch.testing.assert_close(wide(x), dense(x))


class Written(nn.Module):
    """Two pairs of layers; between those of the first pair, `fixed` has the width written down."""

    def __init__(self, fixed):
        super().__init__()
        self.a, self.a_out = nn.Linear(24, 6), nn.Linear(6, 8)
        self.norm, self.b, self.b_out = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.fixed = fixed

    def forward(self, x):
        h = self.norm(self.a_out(F.relu(self.fixed(self, self.a(x)))))
        return self.b_out(F.relu(self.b(h)))


#: Forward passes in which the number of neurons of `a` is written down.
WIDTHS = {
    "view": lambda t, h: h.view(-1, 6),
    "view in training": lambda t, h: h.view(-1, 6) if t.training else h,
    "slice": lambda t, h: h[:, :6],
    "check": lambda t, h: h if h.shape[1] == 6 else h[:, :1],
}


@pytest.mark.parametrize("name", WIDTHS)
def test_a_width_written_down_is_named_in_the_plan_and_the_rest_expanded(name):
    model, x = Written(WIDTHS[name]), torch.randn(4, 24)
    plan = fpe.plan(model, example_inputs=x)
    wide = fpe.expand(model, example_inputs=x)
    wide.train()(x)
    assert wide.eval()(x).shape == (4, 2)
    assert [layer.group for layer in wide.fpe_plan.layers] == [layer.group for layer in plan.layers]
    names = [n for layer in plan.layers for n in layer.group.producers]
    assert "b" in names
    assert "a" not in names
    assert "a" in {skip.name for skip in plan.skipped}
    with pytest.raises(ModelError, match="'a'"):
        fpe.plan(model, layers=["a"], example_inputs=x)


def test_several_widths_written_down_are_all_found():
    torch.manual_seed(0)
    parts = [Written(WIDTHS["view"] if n in (0, 3) else lambda t, h: h) for n in range(4)]
    for part in parts:
        part.b_out = nn.Linear(8, 24)
    plan = fpe.plan(nn.Sequential(*parts), example_inputs=torch.randn(4, 24))
    reasons = {skip.name: skip.reason for skip in plan.skipped if "written down" in skip.reason}
    assert set(reasons) == {"0.a", "3.a"}
    assert {"1.a", "2.a", "0.b", "3.b"} <= {layer.group.name for layer in plan.layers}
