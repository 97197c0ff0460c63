"""A wrong group is never taken for a right one, whatever the weights, in whichever mode it is wrong."""

import functools
import itertools
import random
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fpe
from fpe.errors import ModelError
from fpe.graph import NeuronGroup, verify
from models import assert_unchanged, snapshot

GATED = NeuronGroup(("gate", "up"), ("head", "second"))
PLAIN = NeuronGroup("up", ("head", "second"))


class Block(nn.Module):
    """A hidden layer, gated or not, with two consumers; `form` says what its forward pass does besides."""

    def __init__(self, form="right", second=1.0, output=1.0, dtype=torch.float32):
        super().__init__()
        self.form, self.output = form, output
        self.gate, self.up = nn.Linear(8, 6), nn.Linear(8, 6)
        self.norm, self.slope = nn.LayerNorm(6), nn.PReLU(6)
        self.head, self.second = nn.Linear(6, 3), nn.Linear(6, 3)
        with torch.no_grad():
            self.second.weight.mul_(second)
            for layer in (self.head, self.second) if output != 1 else ():
                layer.weight.mul_(output)
        self.to(dtype)

    def forward(self, x):
        h, gate = self.up(x), self.gate(x)
        h = F.gelu(FORMS[self.form](self, h, gate))
        return self.head(h) + self.second(h)


def once_in_training(change):
    return lambda t, h, gate: change(t, h, gate) if t.training else h


def once_in_evaluation(change):
    return lambda t, h, gate: h if t.training else change(t, h, gate)


MIXING = {
    "softmax": lambda t, h, gate: h.softmax(-1),
    "layer norm": lambda t, h, gate: F.layer_norm(h, (6,)),
    "forgotten norm": lambda t, h, gate: t.norm(h),
    "forgotten PReLU": lambda t, h, gate: t.slope(h),
    "sum": lambda t, h, gate: h + 1e-3 * h.sum(-1, keepdim=True),
    "largest": lambda t, h, gate: h + h.amax(-1, keepdim=True),
    "another order": lambda t, h, gate: F.gelu(gate) * h.flip(-1),
    "neighbor": lambda t, h, gate: h + h.roll(1, -1),
    "sorted": lambda t, h, gate: h.sort(-1).values,
    "per neuron": lambda t, h, gate: h * torch.arange(1.0, 7, dtype=h.dtype),
}
FORMS = {
    **MIXING,
    **{f"{name} in training": once_in_training(change) for name, change in MIXING.items()},
    **{f"{name} in evaluation": once_in_evaluation(change) for name, change in MIXING.items()},
    "right": lambda t, h, gate: h,
    "gated": lambda t, h, gate: F.gelu(gate) * h,
    "dropout": lambda t, h, gate: F.dropout(h, 0.5, t.training),
    "alpha dropout": lambda t, h, gate: F.alpha_dropout(h, 0.5, t.training),
    "random slope": lambda t, h, gate: F.rrelu(h, training=t.training),
}
RIGHT = {"right", "gated", "dropout", "alpha dropout", "random slope"}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


def group_of(form):
    return GATED if form == "gated" or form.startswith("another order") else PLAIN


@pytest.mark.parametrize("form", sorted(FORMS.keys() - RIGHT))
def test_a_wrong_group_is_refused_in_all_precisions_and_at_all_scales(form):
    for dtype, second, output in itertools.product(DTYPES, (1.0, 0.05), (1.0, 1e-3, 0.0)):
        with pytest.raises(ModelError, match="the output moves by"):
            verify(Block(form, second, output, dtype), group_of(form), X.to(dtype))


@pytest.mark.parametrize("missing", ["head", "second"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_missing_consumer_is_noticed_however_little_it_weighs(missing, dtype):
    consumer = "second" if missing == "head" else "head"
    for form, weak, output in itertools.product(("right", "gated"), (1.0, 0.05, 0.0), (1.0, 1e-3, 0.0)):
        group = NeuronGroup(group_of(form).producers, (consumer,))
        with pytest.raises(ModelError, match="the output moves by"):
            verify(Block(form, weak, output, dtype), group, X.to(dtype))


@pytest.mark.parametrize("form", sorted(RIGHT))
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_right_group_is_accepted_in_all_precisions_and_at_all_scales(form, dtype):
    for second, output in itertools.product((1.0, 0.05, 0.0), (1.0, 1e-3, 0.0)):
        verify(Block(form, second, output, dtype), group_of(form), X.to(dtype))


class Mixture(nn.Module):
    """Several hidden layers of which some are mixed."""

    def __init__(self, wrong, depth=8):
        super().__init__()
        self.wrong = wrong
        self.up = nn.ModuleList(nn.Linear(8, 6) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(6, 8) for _ in range(depth))

    def forward(self, x):
        for i, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            h = F.relu(up(x))
            x = x + down(h.flip(-1) * h if i in self.wrong else h)
        return x


def test_every_wrong_group_among_right_ones_is_named():
    groups = [NeuronGroup(f"up.{i}", f"down.{i}") for i in range(8)]
    with pytest.raises(ModelError) as error:
        verify(Mixture({2, 5}), groups, X)
    assert [f"'up.{i}'" in str(error.value) for i in range(8)] == [i in (2, 5) for i in range(8)]
    verify(Mixture(set()), groups, X)


class Unused(nn.Module):
    """A consumer whose output goes nowhere."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 6), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x):
        h = F.relu(self.a(x))
        return self.b(h) + 0 * self.c(h)


def test_what_does_not_move_the_output_cannot_be_verified():
    with pytest.raises(ModelError, match="does not depend on the order of the neurons in 'c'"):
        verify(Unused(), NeuronGroup("a", ("b", "c")), X)
    with pytest.raises(ModelError, match="only one neuron"):
        verify(nn.Sequential(nn.Linear(8, 1), nn.ReLU(), nn.Linear(1, 2)), NeuronGroup("0", "2"), X)


def test_a_model_that_computes_coarsely_whatever_it_is_given_cannot_be_verified():
    class Coarse(nn.Sequential):
        def forward(self, x):
            return super().forward(x).bfloat16()

    model = Coarse(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(ModelError, match="precision"):
        verify(model, NeuronGroup("0", "2"), X)


def test_a_model_that_does_not_run_in_training_is_verified_in_evaluation_with_a_warning():
    class Deployed(Block):
        def forward(self, x):
            if self.training:
                raise NotImplementedError("for inference only")
            return super().forward(x)

    with pytest.warns(UserWarning, match="training mode.*for inference only"):
        verify(Deployed(), PLAIN, X)
    with (
        pytest.warns(UserWarning, match="training mode"),
        pytest.raises(ModelError, match="in evaluation mode"),
    ):
        verify(Deployed("softmax"), PLAIN, X)


GENERATOR = torch.Generator()


class Noisy(nn.Module):
    """Draws from every generator there is, and keeps what it has seen."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 2)
        self.own, self.kept, self.seen = torch.Generator(), {}, []

    def forward(self, x):
        noise = torch.randn(1) + torch.randn(1, generator=GENERATOR) + torch.randn(1, generator=self.own)
        self.kept["bias"] = self.kept.get("bias", self.a.bias * 2)
        self.seen.append(x)
        return self.b(F.relu(self.a(x) + 0 * self.kept["bias"])) + noise + random.random() + np.random.rand()


def test_neither_the_model_nor_any_generator_of_random_numbers_is_moved():
    model = Noisy().train()
    before = snapshot(model)
    states = [g.get_state() for g in (torch.default_generator, GENERATOR, model.own)]
    python, numpys = random.getstate(), np.random.get_state()[1].copy()
    verify(model, NeuronGroup("a", "b"), X)
    assert_unchanged(model, before)
    assert model.kept == {}
    assert model.seen == []
    after = [g.get_state() for g in (torch.default_generator, GENERATOR, model.own)]
    assert all(map(torch.equal, states, after))
    assert random.getstate() == python
    assert (np.random.get_state()[1] == numpys).all()


def test_a_plan_leaves_a_group_out_by_name_that_cannot_be_verified_unless_it_was_asked_for():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.unused = nn.Linear(8, 6), nn.Linear(6, 4), nn.Linear(6, 4)
            self.c, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            h = F.relu(self.a(x))
            return self.head(F.relu(self.c(F.relu(self.b(h) + 0 * self.unused(h)))))

    plan = fpe.plan(Two(), example_inputs=X)
    assert [layer.group.name for layer in plan.layers] == ["c"]
    reasons = {skip.name: skip.reason for skip in plan.skipped}
    assert "does not depend on the order of the neurons in 'unused'" in reasons["a"]
    with pytest.raises(ModelError, match="the neurons of 'a' cannot be expanded"):
        fpe.plan(Two(), layers=["a"], example_inputs=X)
    assert [layer.group.name for layer in fpe.plan(Two(), layers="?", example_inputs=X).layers] == ["c"]
    # 'unused' consumes one group and produces, with 'b', another one: neither can be verified.
    both = fpe.plan(Two(), layers="*", example_inputs=X)
    assert [layer.group.name for layer in both.layers] == ["c"]
    assert "in 'unused'" in {skip.name: skip.reason for skip in both.skipped}["a"]


class Slots:
    __slots__ = ("mixed",)

    def __init__(self, mixed):
        self.mixed = mixed


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda t: (t,),
        Slots,
        lambda t: lambda: t,
        lambda t: (row for row in t),
        lambda t: functools.partial(torch.add, t),
        lambda t: deque([t]),
        lambda t: t.detach().numpy(),
        lambda t: t.std().item(),
        lambda t: functools.reduce(lambda inner, _: [inner], range(30), t),
    ],
    ids=["tuple", "slots", "closure", "iterator", "partial", "deque", "array", "number", "deep"],
)
def test_what_only_training_returns_is_seen_in_objects_and_closures(wrapped):
    """The sum over neurons runs at any width, so that only the verification can notice it."""

    class Mixes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x):
            hidden = torch.relu(self.a(x))
            return (self.c(hidden), wrapped(hidden.cumsum(-1))) if self.training else self.c(hidden)

    with pytest.raises(ModelError, match="in training mode"):
        fpe.expand(Mixes(), 2, example_inputs=torch.randn(4, 8))
