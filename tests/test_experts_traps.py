"""Stacked weights that look like those of experts: refused with a reason, or right by the oracle."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fpe
from experts import Experts
from fpe.errors import ModelError
from fpe.graph import find_groups, verify
from oracle import copied

X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)).double()


def each(hidden):
    """Return a forward pass over all experts, with something done to the hidden neurons of each."""

    def run(m, x, weights):
        out = torch.zeros_like(x)
        for e in range(3):
            h = hidden(m, F.linear(x, m.w1[e], m.b1[e]), e)
            out = out + weights[:, e, None] * F.linear(h, m.w2[e], m.b2[e])
        return out

    return run


def over_hit(hidden):
    """Return a forward pass over the experts that are hit."""

    def run(m, x, weights):
        out, best = torch.zeros_like(x), weights.argmax(-1)
        for e in best.unique():
            rows = (best == e).nonzero()[:, 0]
            h = hidden(m, F.linear(x[rows], m.w1[e], m.b1[e]), int(e))
            out.index_add_(0, rows, F.linear(h, m.w2[e], m.b2[e]))
        return out

    return run


def regularized(m, x, weights):
    return each(lambda m, h, e: h.relu())(m, x, weights) + m.w1.sum()


def soft_merged(m, x, weights):
    w1, w2 = (torch.einsum("ne,eoi->noi", weights, w) for w in (m.w1, m.w2))
    return torch.bmm(w2, torch.bmm(w1, x[..., None]).relu())[..., 0]


def tied(m, x, weights):
    h = (x @ m.w1[0].t()).relu() + (x @ m.w1[1].t()).relu() + (x @ m.w1[2].t()).relu()
    return h @ m.w1[0] + h @ m.w1[1] + h @ m.w1[2] + F.linear(h, m.w2[0])


def part_of_a_weight(m, x, weights):
    return (
        F.linear(F.linear(x, m.w1[0, :3]).repeat(1, 2).relu(), m.w2[0]) + F.linear(x, m.w1[1]) @ m.w2[1].t()
    )


def averaged(m, x, weights):
    return F.linear(F.linear(x, m.w1.mean(0)).relu(), m.w2.mean(0))


def flattened(m, x, weights):
    h = F.linear(x, m.w1.flatten(0, 1)).relu().unflatten(1, (3, 6))
    return sum(F.linear(h[:, e], m.w2[e]) for e in range(3))


def other_bias(m, x, weights):
    return sum(F.linear((x @ m.w1[e].t() + m.b1[2 - e]).relu(), m.w2[e]) for e in range(3)) + m.b1[0, 0]


#: Name → forward pass, and a part of the reason for which the experts stay dense.
REFUSED = {
    "softmax": (each(lambda m, h, e: h.softmax(-1)), "'softmax'"),
    "softmax of one expert": (each(lambda m, h, e: h.softmax(-1) if e == 1 else h.relu()), "'softmax'"),
    "softmax of one that is hit": (over_hit(lambda m, h, e: h.softmax(-1) if e == 1 else h), "'softmax'"),
    "norm of the neurons": (each(lambda m, h, e: F.layer_norm(h, (6,))), "'layer_norm'"),
    "written down": (each(lambda m, h, e: h.relu().view(-1, 6)), "written down"),
    "number of neurons": (each(lambda m, h, e: h.relu() / h.shape[-1] ** 0.5), "on their number"),
    "number of those hit": (over_hit(lambda m, h, e: h.relu() / h.shape[-1] ** 0.5), "on their number"),
    "neurons picked out": (each(lambda m, h, e: h[:, [5, 1, 2, 3, 4, 0]]), "picked out by 'index'"),
    "cumulative sum": (each(lambda m, h, e: h.cumsum(-1)), "'cumsum'"),
    "rolled": (each(lambda m, h, e: h.roll(1, -1)), "'roll'"),
    "scale of each neuron": (each(lambda m, h, e: h.relu() * m.scale[e]), "meet another tensor in 'mul'"),
    "scale of all": (each(lambda m, h, e: h.relu() * m.scale[0]), "meet another tensor in 'mul'"),
    "norm of the weights": (regularized, "as the weights of a linear layer alone"),
    "merged softly": (soft_merged, "w1"),
    "tied to its transpose": (tied, "two orientations"),
    "a part of a weight": (part_of_a_weight, "as the weights of a linear layer alone"),
    "averaged": (averaged, "w1"),
    "flattened": (flattened, "w1"),
    "biases of another expert": (other_bias, "w1"),
}


def built(run, change=lambda m: None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        experts = Experts(run)
        experts.scale = nn.Parameter(torch.rand(3, 6) + 0.5)
        change(experts)
        return nn.Sequential(nn.Linear(5, 8), experts, nn.Linear(8, 3)).double()


def names_of(groups):
    return [name for group in groups for name in group.producers]


@pytest.mark.parametrize("name", REFUSED)
def test_experts_that_mix_neurons_or_use_weights_otherwise_stay_dense(name):
    run, reason = REFUSED[name]
    model = built(run)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ModelError) as error:
        fpe.expand(model, layers=["1.stacked.w1"], example_inputs=X)
    assert reason in str(error.value)
    assert type(model[1]) is Experts
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def side_by_side(m, x, weights):
    h = torch.cat([F.linear(x, w).relu() for w in m.w1], -1)
    return m.out(h)


def by_token(m, x, weights):
    return (m.w2[weights.argmax(-1)] @ (m.w1[weights.argmax(-1)] @ x[..., None]).relu())[..., 0]


def square(m):
    m.w1, m.w2 = (nn.Parameter(torch.randn(3, 8, 8)) for _ in range(2))
    m.b1, m.b2 = (nn.Parameter(torch.randn(3, 8)) for _ in range(2))


#: Name → forward pass, and a change of the module; all are expanded.
FOLLOWED = {
    "by token": (by_token, lambda m: None),
    "square": (each(lambda m, h, e: h.relu()), square),
    "square, transposed": (
        lambda m, x, w: sum((x @ m.w1[e] + m.b1[e]).relu() @ m.w2[e] for e in range(3)),
        square,
    ),
    "square, one transposed": (
        lambda m, x, w: sum(F.linear((x @ m.w1[e]).relu(), m.w2[e], m.b2[e]) for e in range(3)),
        square,
    ),
    "those hit": (over_hit(lambda m, h, e: h.relu()), lambda m: None),
    "an activation of its own": (each(lambda m, h, e: h.tanh() if e == 1 else h.relu()), lambda m: None),
    "biases later": (
        lambda m, x, w: sum((F.linear(x, m.w1[e]) + m.b1[e]).relu() @ m.w2[e].mT for e in range(3)),
        lambda m: None,
    ),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_experts_in_an_unusual_form_are_right_by_the_oracle(name):
    model = built(*FOLLOWED[name])
    groups = [group for group in find_groups(model, X).groups if group.name == "1.stacked.w1"]
    assert len(groups) == 1
    verify(model, groups, X)
    wide = fpe.expand(model, 2, layers=["1"], example_inputs=X)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    whole = copied(model, [vars(group) for group in groups], 3)
    for training in (False, True):
        dense = copy.deepcopy(model).train(training)(X)
        assert dense.abs().max() > 1e-3
        torch.testing.assert_close(whole.train(training)(X), dense, rtol=1e-6, atol=1e-6)


def test_experts_side_by_side_are_one_cycle_of_inputs_each():
    def with_out(m):
        m.out = nn.Linear(18, 8)

    model = built(side_by_side, with_out)
    (group,) = [g for g in find_groups(model, X).groups if g.name == "1.stacked.w1"]
    assert group.consumers == ("1.out",)
    assert group.input_layouts == ((1, 1, 1),)
    verify(model, group, X)
    assert fpe.count_nonzero(fpe.expand(model, layers=["1.w1"], example_inputs=X)) == fpe.count_nonzero(model)


def test_experts_that_no_values_of_the_batch_reach_are_named():
    def run(m, x, weights):
        out = torch.zeros_like(x)
        for e in (weights.argmax(-1) % 2).unique():
            out = out + F.linear(F.linear(x, m.w1[e]).relu(), m.w2[e])
        return out

    with pytest.raises(ModelError, match="experts 2 are not reached by example_inputs"):
        fpe.plan(built(run), layers=["1.w1"], example_inputs=X)


class Kernels(nn.Module):
    """Parameters with three axes that are no experts: kernels, and places that are added."""

    def __init__(self):
        super().__init__()
        self.kernel, self.places = nn.Parameter(torch.randn(6, 4, 3)), nn.Parameter(torch.randn(2, 1, 9))
        self.out = nn.Conv1d(6, 2, 1)

    def forward(self, x):
        return self.out(F.conv1d(x, self.kernel, padding=1).relu()) + self.places.flatten(0, 1)


def test_parameters_with_three_axes_that_are_no_experts_stay_as_they_are():
    model, x = Kernels(), torch.randn(2, 4, 9)
    found = find_groups(model, x)
    assert found.groups == ()
    assert "it is a Kernels; only linear layers" in {s.name: s.reason for s in found.skipped}[""]


def test_a_parameter_of_two_modules_is_refused():
    model = built(each(lambda m, h, e: h.relu()))
    model.append(Experts(each(lambda m, h, e: h.relu())).double())
    model[2], model[3].w1 = nn.Linear(8, 8).double(), model[1].w1
    with pytest.raises(ModelError, match="shares its parameters with"):
        fpe.plan(model, layers=["1.w1"], example_inputs=X)
