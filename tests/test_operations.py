"""Operations along the neurons' axis are refused; along another, their neurons are right by the oracle."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fpe
from fpe.errors import ModelError
from fpe.graph import find_groups, verify
from oracle import copied

WIDTH = 6


class Between(nn.Module):
    """A layer `a`, an operation on its neurons, and a head; the neurons stand last of three axes."""

    def __init__(self, operation, inputs=WIDTH):
        super().__init__()
        self.a, self.head, self.operation = nn.Linear(8, WIDTH), nn.Linear(inputs, 2), operation
        self.tokens = nn.LayerNorm(4)
        self.register_buffer("adjacency", torch.rand(4, 4))
        self.register_buffer("places", torch.tensor([1, 0, 1, 2]))
        self.register_buffer("per_neuron", torch.rand(WIDTH))

    def forward(self, x):
        return self.head(self.operation(self, F.gelu(self.a(x))))


def images(h):
    """Return (batch, neurons, 2, 2) of (batch, 4, neurons)."""
    return h.transpose(1, 2).unflatten(2, (2, 2))


#: Name → operation on (batch, tokens, neurons), and the head's inputs for each neuron.
FOLLOWED = {
    "reshape_as": (lambda m, h: h.flatten(0, 1).reshape_as(h), 1),
    "view_as": (lambda m, h: h.flatten(0, 1).view_as(h), 1),
    "stack": (lambda m, h: torch.stack([h, h.tanh()], 0).sum(0), 1),
    "stack behind": (lambda m, h: torch.stack([h, h.tanh()], -1).flatten(2), 2),
    "repeat tokens": (lambda m, h: h.repeat(1, 2, 1), 1),
    "repeat neurons": (lambda m, h: h.repeat(1, 1, 2), 2),
    "a new axis by repeat": (lambda m, h: h.repeat(2, 1, 1, 1).mean(0), 1),
    "roll": (lambda m, h: h.roll(1, 1), 1),
    "flip": (lambda m, h: h.flip(1), 1),
    "scatter_add": (
        lambda m, h: torch.zeros_like(h).scatter_add(1, m.places[None, :, None].expand_as(h), h),
        1,
    ),
    "index_add": (lambda m, h: h.new_zeros(h.shape).index_add(1, m.places, h), 1),
    "adjacency": (lambda m, h: m.adjacency @ h, 1),
    "adjacency from the right": (lambda m, h: (h.transpose(1, 2) @ m.adjacency).transpose(1, 2), 1),
    "bmm": (lambda m, h: torch.bmm(m.adjacency.expand(len(h), 4, 4), h), 1),
    "grid_sample": (
        lambda m, h: F.grid_sample(images(h), m.adjacency.expand(len(h), 4, 4)[..., :2].unsqueeze(1)).mean(
            (2, 3)
        ),
        1,
    ),
    "atan": (lambda m, h: h.atan(), 1),
    "clip": (lambda m, h: h.clip(-0.5, 0.5), 1),
    "norm of tokens": (lambda m, h: F.normalize(h, dim=1), 1),
    "softmax of tokens": (lambda m, h: h.softmax(1), 1),
    "log_softmax of tokens": (lambda m, h: F.log_softmax(h, 1), 1),
    "cumsum of tokens": (lambda m, h: h.cumsum(1), 1),
    "layer norm of tokens": (lambda m, h: m.tokens(h.transpose(1, 2)).transpose(1, 2), 1),
    "a constant for all": (lambda m, h: h + torch.ones(h.shape[-1]) * 2, 1),
    "one value expanded": (lambda m, h: h * h.new_ones(1).expand_as(h), 1),
    "two casts": (lambda m, h: h.float().to(h.dtype) + h, 1),
}

#: Name → operation, and a part of the reason for which it is refused.
REFUSED = {
    "reshape_as": (lambda m, h: h.transpose(1, 2).reshape_as(h), "split by 'reshape_as'"),
    "stack": (lambda m, h: torch.stack([h, m.per_neuron.expand_as(h)], 0).sum(0), "in 'stack'"),
    "roll": (lambda m, h: h.roll(1, -1), "'roll'"),
    "roll of all entries": (lambda m, h: h.roll(1), "'roll'"),
    "flip": (lambda m, h: h.flip(1, 2), "'flip'"),
    "scatter_add": (
        lambda m, h: torch.zeros_like(h).scatter_add(2, m.places[None, :, None].expand_as(h), h),
        "'scatter_add'",
    ),
    "scatter_add to others": (
        lambda m, h: m.per_neuron.expand_as(h).scatter_add(1, m.places[None, :, None].expand_as(h), h),
        "meet another tensor in 'scatter_add'",
    ),
    "index_add": (
        lambda m, h: h.new_zeros(h.shape).index_add(2, torch.arange(WIDTH).flip(0), h),
        "'index_add'",
    ),
    "product of neurons": (lambda m, h: (h @ h.transpose(1, 2)) @ h, "'matmul'"),
    "product over neurons": (lambda m, h: h @ torch.eye(WIDTH).flip(0), "'matmul'"),
    "attention over tokens": (
        lambda m, h: m.adjacency.softmax(-1) @ h,
        "its neurons are passed to attention, 'matmul'",
    ),
    "grid_sample": (
        lambda m, h: F.grid_sample(h[:, None], m.adjacency[..., :2].expand(len(h), 4, 4, 2)).flatten(2)[
            ..., :WIDTH
        ],
        "'grid_sampler'",
    ),
    "norm of neurons": (lambda m, h: F.normalize(h, dim=-1), "'linalg_vector_norm'"),
    "softmax of neurons": (lambda m, h: h.softmax(-1), "'softmax'"),
    "cumsum of neurons": (lambda m, h: h.cumsum(-1), "'cumsum'"),
    "constants of their own": (lambda m, h: h + torch.arange(WIDTH), "meet another tensor in 'add'"),
    "one value expanded by hand": (lambda m, h: h * m.per_neuron[:1].expand(WIDTH), "written down"),
}


def built(operation, each=1):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Between(operation, each * WIDTH).double()


X = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("name", FOLLOWED)
def test_an_operation_along_another_axis_is_followed(name):
    model = built(*FOLLOWED[name])
    groups = find_groups(model, X).groups
    assert [group.producers for group in groups] == [("a",)]
    verify(model, groups, X)
    assert fpe.count_nonzero(fpe.expand(model, 2, example_inputs=X)) == fpe.count_nonzero(model)
    whole = copied(model, [vars(group) for group in groups], 3)
    for training in (False, True):
        dense = copy.deepcopy(model).train(training)(X)
        assert dense.abs().max() > 1e-3
        torch.testing.assert_close(whole.train(training)(X), dense, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_an_operation_that_mixes_neurons_is_refused(name):
    operation, reason = REFUSED[name]
    with pytest.raises(ModelError) as error:
        fpe.plan(built(operation), layers=["a"], example_inputs=X)
    assert reason in str(error.value)
