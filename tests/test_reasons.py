"""What a plan says of the layers that are not expanded, and of the share that is."""

import copy
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fpe
from fpe.graph import find_groups, verify
from oracle import copied

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


class Regions(nn.Module):
    """Two layers in a region that an export keeps apart, then two that are followed."""

    def __init__(self, region):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(8, 6), nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 2)
        self.region = region

    def forward(self, x):
        with self.region():
            x = self.b(F.relu(self.a(x)))
        return self.d(F.relu(self.c(x.to(self.c.weight.dtype))))


def test_layers_without_gradients_are_named_with_the_reason():
    plan = fpe.plan(Regions(torch.no_grad), example_inputs=X)
    reasons = {skip.name: skip.reason for skip in plan.skipped}
    assert [layer.group.name for layer in plan.layers] == ["c"]
    assert "called under torch.no_grad" in reasons["a"]
    assert "called under torch.no_grad" in reasons["b"]


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


def nested():
    stack = ExitStack()
    stack.enter_context(autocast())
    stack.enter_context(torch.enable_grad())
    return stack


def under(region, inside, after=lambda m, h: m.d(F.relu(m.c(h.float())))):
    """Return a forward pass with something in a region."""

    def follow(m, x):
        with region():
            h = inside(m, x)
        return after(m, h)

    return follow


def conditioned(m, x):
    """Compute twice, the first time without gradients, as self-conditioning does."""
    with torch.no_grad():
        first = m.e(F.relu(m.a(x)))
    return m.e(F.relu(m.a(x + first)))


class Free(Regions):
    def __init__(self, follow):
        super().__init__(None)
        self.e, self.follow = nn.Linear(6, 8), follow

    def forward(self, x):
        return self.follow(self, x)


#: Name → forward pass, and the producers; or a part of the reason why "a" stays dense.
REGIONS = {
    "autocast": (under(autocast, lambda m, x: m.b(F.relu(m.a(x)))), ["a", "b", "c"]),
    "autocast around one layer": (
        under(autocast, lambda m, x: m.a(x), lambda m, h: m.d(F.relu(m.c(m.b(h.float().relu()))))),
        ["a", "b", "c"],
    ),
    "nested regions": (under(nested, lambda m, x: m.b(F.relu(m.a(x)))), ["a", "b", "c"]),
    "called with gradients too": (conditioned, ["a"]),
    "a mean over samples without gradients": (
        lambda m, x: m.e(
            under(torch.no_grad, lambda m, h: h.abs().mean(0), lambda m, s: s)(m, m.a(x)) * m.a(x)
        ),
        ["a"],
    ),
    "a softmax under autocast": (under(autocast, lambda m, x: m.b(m.a(x).softmax(-1))), "'softmax'"),
    "a softmax without gradients": (
        lambda m, x: m.b(
            under(torch.no_grad, lambda m, h: h.softmax(-1), lambda m, s: s)(m, m.a(x)) * m.a(x)
        ),
        "'softmax'",
    ),
    "a consumer without gradients": (
        lambda m, x: m.c(under(torch.no_grad, lambda m, h: m.b(h), lambda m, s: s)(m, m.a(x))),
        "its consumer 'b' is called under torch.no_grad",
    ),
    "an output of a region": (
        under(autocast, lambda m, x: (m.b(m.a(x)), m.a(x)), lambda m, h: h),
        "outputs of the network",
    ),
    "a weight under autocast": (
        under(autocast, lambda m, x: F.linear(m.a(x), m.b.weight)),
        "'b' is not called as a layer",
    ),
    "a matrix product under autocast": (
        under(autocast, lambda m, x: m.a(x) @ m.a(x).T, lambda m, h: h),
        "'matmul'",
    ),
}


@pytest.mark.parametrize("name", REGIONS)
def test_regions_are_followed_and_right_by_the_oracle(name):
    follow, found = REGIONS[name]
    torch.manual_seed(0)
    model = Free(follow)
    if isinstance(found, str):
        with pytest.raises(fpe.errors.ModelError) as error:
            fpe.plan(model, layers=["a"], example_inputs=X)
        assert found in str(error.value)
        return
    groups = find_groups(model, X).groups
    assert [group.name for group in groups] == found
    verify(model, groups, X)
    wide = fpe.expand(model, layers=["a"], example_inputs=X)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    for factor in (2, 4):
        whole = copied(model, [vars(group) for group in groups], factor)
        for training in (False, True):
            pair = whole.train(training)(X), copy.deepcopy(model).train(training)(X)
            coarse = "autocast" in name or "nested" in name  # powers of two divide exactly, sums are rounded
            torch.testing.assert_close(*pair, **({"rtol": 0.05, "atol": 0.02} if coarse else {}))


def test_a_plan_counts_the_weights_of_the_layers_that_are_expanded():
    model = Regions(torch.no_grad)
    plan = fpe.plan(model, example_inputs=X)
    assert plan.weights == (5 * 4 + 4 * 2, 8 * 6 + 6 * 5 + 5 * 4 + 4 * 2)
    assert "28 of 106 (26%)" in str(plan)
    assert fpe.Plan.from_dict(plan.to_dict()) == plan


def test_a_group_that_cannot_be_afforded_is_left_out_unless_it_is_asked_for():
    """Of the first group more biases are copied than there are weights that could be pruned."""
    depthwise = nn.Conv2d(6, 6, 5, padding=2, groups=6)
    model = nn.Sequential(
        *(nn.Conv2d(2, 6, 1), depthwise, nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(100, 20)),
        *(nn.ReLU(), nn.Linear(20, 2)),
    )
    x = torch.randn(2, 2, 5, 5)
    plan = fpe.plan(model, example_inputs=x)
    assert [layer.group.name for layer in plan.layers] == ["5"]
    assert "can prune only" in {skip.name: skip.reason for skip in plan.skipped}["0"]
    for layers in (["0"], ["0", "5"]):
        with pytest.raises(fpe.errors.BudgetError, match=r"'0'.*can prune only"):
            fpe.plan(model, layers=layers, example_inputs=x)
