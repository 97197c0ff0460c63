"""Models that users have changed since they were expanded, or that keep layers in unusual places."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fpe
from fpe.errors import ModelError
from fpe.packing.bits import byte_shifts
from fpe.packing.codes import product


def blocks(activation=nn.ReLU):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(64, 16), activation(), nn.Linear(16, 10))
    return fpe.expand(dense, factor=2, split="shared", prune="columns").eval()


class Beside(nn.Module):
    """A layer with a small map beside it, as adapters are."""

    def __init__(self, layer, inputs, outputs):
        super().__init__()
        self.layer, self.more = layer, nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.layer(x) + self.more(x)


def with_norm(model):
    model.insert(1, nn.BatchNorm1d(32))
    model[1].running_mean.normal_()
    return model


def with_prelu(model):
    model[1] = nn.PReLU(32)
    nn.init.normal_(model[1].weight)
    return model


def beside_the_consumer(model):
    model[2] = Beside(model[2], 32, 10)
    return model


def beside_the_producer(model):
    model[0] = Beside(model[0], 64, 32)
    return model


def with_a_hook(model):
    steered = torch.randn(32)
    model[1].register_forward_hook(lambda module, inputs, output: output + steered)
    return model


CHANGES = [with_norm, with_prelu, beside_the_consumer, beside_the_producer, with_a_hook]


@torch.no_grad()
@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_was_changed_packs_to_the_same_function(change, saved, tmp_path):
    model = change(blocks()).eval()
    if saved and change is not with_a_hook:
        fpe.save(model, tmp_path / "model.safetensors")
        like = change(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)))
        if change in (with_norm, with_prelu, beside_the_consumer, beside_the_producer):
            like = copy.deepcopy(model)
        model = fpe.load(tmp_path / "model.safetensors", like=like).eval()
    x = torch.randn(7, 64)
    torch.testing.assert_close(fpe.pack(model)(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_model_that_was_not_changed_is_still_reordered(tmp_path):
    model = blocks(nn.GELU)
    fpe.save(model, tmp_path / "model.safetensors")
    like = nn.Sequential(nn.Linear(64, 16), nn.GELU(), nn.Linear(16, 10))
    for own in (model, copy.deepcopy(model), fpe.load(tmp_path / "model.safetensors", like=like)):
        assert fpe.pack(own)[0].restore is None
        assert fpe.pack(fpe.unpack(fpe.pack(own)))[0].restore is None


class Captured(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 16), nn.Linear(16, 10)
        self.run = lambda x: self.fc2(torch.relu(self.fc1(x)))

    def forward(self, x):
        return self.run(x)


@pytest.mark.parametrize("make", [lambda m: fpe.expand(m, factor=2), fpe.with_masks])
def test_functions_that_have_captured_layers_are_named(make):
    with pytest.raises(ModelError, match="attribute 'run' of 'Captured'"):
        make(Captured())


def test_functions_that_have_captured_the_model_see_what_is_expanded_in_place():
    model = Captured()
    fpe.expand_(model, factor=2, example_inputs=torch.randn(3, 64))
    model(torch.randn(3, 64)).sum().backward()
    assert model.fc1.weight.grad.shape == (32, 64)
    with pytest.raises(ModelError, match="'run'"):
        fpe.pack(model)


class Named(nn.Module):
    """Uses its layers by a dict, a list and a tuple that are no modules."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 2)
        self.by_name = {"in": self.a}
        self.between = [self.b]
        self.last = (self.c,)

    def forward(self, x):
        x = torch.relu(self.by_name["in"](x))
        return self.last[0](torch.relu(self.between[0](x)))


@pytest.mark.parametrize("how", ["masks", "in place"])
def test_layers_in_dicts_lists_and_tuples_are_replaced_too(how):
    model = Named()
    if how == "masks":
        model = fpe.with_masks(model)
    else:
        fpe.expand_(model, factor=2, example_inputs=torch.randn(3, 8))
    model(torch.randn(3, 8)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.by_name["in"] is model.a
    assert model.last[0] is model.c


@pytest.mark.parametrize(
    ("compute", "more"),
    [(parametrizations.weight_norm, 32), (parametrizations.spectral_norm, 0), (nn.utils.spectral_norm, 0)],
)
def test_masked_entries_of_a_computed_weight_do_not_count(compute, more):
    model = fpe.expand(fpe.mlp(64, 16, 10), factor=2)
    count = fpe.count_nonzero(model)
    compute(model[0])
    assert fpe.count_nonzero(model) == count + more


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_row_of_halves_is_as_exact_as_many(dtype):
    """A child's sum is a difference, in which a sibling's large input must cancel."""
    torch.manual_seed(0)
    values, x = torch.randn(8, 64).to(dtype) / 8, torch.randn(64).to(dtype)
    codes = torch.randint(0, 256, (1, 8, 8), dtype=torch.uint8)
    x[5] = 1e4
    found = product(values, codes, x, 2, byte_shifts(values.device))
    exact = product(values.double(), codes, x.double(), 2, byte_shifts(values.device))
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=1e-2)
