"""Experts that no token of the batch reaches are judged alone, with what reaches an expert of their kind."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fpe
from fpe.graph import find_groups, verify
from oracle import copied


class Expert(nn.Module):
    """A hidden layer; `mixing` is what some of them do to it besides."""

    def __init__(self, mixing=None):
        super().__init__()
        self.up, self.down, self.mixing = nn.Linear(8, 6), nn.Linear(6, 8), mixing

    def forward(self, x):
        h = F.gelu(self.up(x))
        return self.down(h if self.mixing is None else self.mixing(h))


class Other(Expert):
    """Another class that computes the same."""


class Routed(nn.Module):
    """Tokens go to the expert of the sign of their first feature; experts 2 and 3 are for NaNs."""

    def __init__(self, *experts, only_hit=True):
        super().__init__()
        self.inner, self.experts, self.head = nn.Linear(8, 8), nn.ModuleList(experts), nn.Linear(8, 2)
        self.only_hit = only_hit

    def forward(self, x):
        chosen = torch.where(x[:, 0] > 0, 0, 1) + 2 * x[:, 0].isnan()
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = torch.where(chosen == number)[0]
            if not self.only_hit or len(rows):
                out = out.index_add(0, rows, expert(x[rows]))
        return self.head(out + x)


def routed(*experts, **how):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = [make() for make in experts or (Expert,) * 4]
        return Routed(*made, **how), torch.randn(12, 8)


UP = [f"experts.{number}.up" for number in range(4)]


@pytest.mark.parametrize("only_hit", [True, False])
def test_experts_that_are_not_reached_are_expanded_like_their_siblings(only_hit):
    model, x = routed(only_hit=only_hit)
    wide = fpe.expand(model, example_inputs=x)
    assert [layer.group.name for layer in wide.fpe_plan.layers] == UP
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    verify(model, find_groups(model, x).groups, x)
    every = torch.cat([x, torch.full((3, 8), float("nan"))])
    finer = copy.deepcopy(model).double()
    groups = [vars(layer.group) for layer in wide.fpe_plan.layers]
    for expert in range(4):
        part, inputs = f"experts.{expert}", torch.randn(5, 8).double()
        whole = copied(finer, groups, 3).get_submodule(part)
        torch.testing.assert_close(whole(inputs), finer.get_submodule(part)(inputs))
    assert wide(every).shape == model(every).shape


def softmax(h):
    return h.softmax(-1)


def first(h):
    return h * torch.tensor([2.0, 1, 1, 1, 1, 1])


def width(h):
    return h / h.shape[-1]


#: What expert 3, which is not reached, does besides, and a part of the reason for which it is left dense.
TRAPS = {
    "softmax": (softmax, "'softmax'"),
    "constants": (first, "meet another tensor in 'mul'"),
    "number of neurons": (width, "something depends on their number"),
    "cumulative sum": (lambda h: h.cumsum(-1), "'cumsum'"),
    "view": (lambda h: h.view(-1, 6), "written down"),
}


@pytest.mark.parametrize("only_hit", [True, False])
@pytest.mark.parametrize("name", TRAPS)
def test_an_expert_that_is_not_reached_and_mixes_its_neurons_stays_dense(name, only_hit):
    mixing, reason = TRAPS[name]
    model, x = routed(Expert, Expert, Expert, lambda: Expert(mixing), only_hit=only_hit)
    plan = fpe.plan(model, example_inputs=x)
    assert [layer.group.name for layer in plan.layers] == UP[:3]
    reasons = {skip.name: skip.reason for skip in plan.skipped}
    assert reason in reasons["experts.3.up"]


def test_an_expert_of_another_class_has_no_sibling_that_is_reached():
    model, x = routed(Expert, Expert, Expert, Other)
    plan = fpe.plan(model, example_inputs=x)
    assert [layer.group.name for layer in plan.layers] == UP[:3]
    assert "not reached" in {skip.name: skip.reason for skip in plan.skipped}["experts.3.up"]


def test_an_expert_of_another_width_has_no_sibling_that_is_reached():
    def narrow():
        own = Expert()
        own.up, own.down = nn.Linear(8, 5), nn.Linear(5, 8)
        return own

    model, x = routed(Expert, Expert, Expert, narrow)
    plan = fpe.plan(model, example_inputs=x)
    assert [layer.group.name for layer in plan.layers] == UP[:3]
