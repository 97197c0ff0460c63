"""Masked weights stay exactly zero, whatever is done to their layer."""

import copy
import io
import pickle
import shutil

import pytest
import torch
from torch import nn

import fpe
from models import MODELS

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}


def widened(name="layer_norm", seed=0):
    model, x = MODELS[name]()
    return fpe.expand(model, seed=seed), x


def masked_layers(model):
    return [m for m in model.modules() if isinstance(m, fpe.MaskedLinear)]


def assert_held(model):
    masked = [layer.weight[layer.fpe_mask == 0] for layer in masked_layers(model)]
    assert sum(len(weights) for weights in masked) > 0
    assert all((weights == 0).all() for weights in masked)


def train(model, optimizer, x, steps=50):
    """Train towards random targets; returns the sum of what the free weights moved."""
    start = [layer.weight.detach().clone() for layer in masked_layers(model)]
    target = torch.randn(len(x), model(x).shape[1], generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()
    ends = [layer.weight.detach() for layer in masked_layers(model)]
    return sum(float((a - b).abs().sum()) for a, b in zip(start, ends, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_entries_are_zero_after_50_steps(name):
    model, x = widened()
    before = fpe.count_nonzero(model)
    optimizer = OPTIMIZERS[name](model.parameters())
    assert train(model, optimizer, x) > 0
    assert_held(model)
    assert fpe.count_nonzero(model) == before


def test_gradients_and_moments_are_zero_where_masked():
    model, x = widened()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, x, steps=3)
    for layer in masked_layers(model):
        masked = layer.fpe_mask == 0
        state = optimizer.state[layer.weight]
        for tensor in (layer.weight.grad, state["exp_avg"], state["exp_avg_sq"]):
            assert (tensor[masked] == 0).all()
            assert (tensor[~masked] != 0).any()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_needs_enforced_masks():
    def run(enforce):
        model, x = widened("without_biases")
        optimizer = torch.optim.Muon(model.parameters(), lr=0.1)
        if enforce:
            fpe.enforce_masks_(optimizer, model)
        train(model, optimizer, x, steps=5)
        return model

    assert_held(run(True))
    with pytest.raises(AssertionError):
        assert_held(run(False))


def test_enforced_masks_end_with_their_handle():
    model, x = widened()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = fpe.enforce_masks_(optimizer, model)

    def noise():
        with torch.no_grad():
            for layer in masked_layers(model):
                layer.weight.add_(1)

    noise()
    train(model, optimizer, x, steps=1)
    assert_held(model)
    handle.remove()
    noise()
    train(model, optimizer, x, steps=1)
    with pytest.raises(AssertionError):
        assert_held(model)


def torch_saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), torch_saved],
    ids=["deepcopy", "pickle", "save"],
)
def test_a_copy_computes_the_same_and_keeps_its_masks(duplicate):
    model, x = widened()
    twin = duplicate(model)
    assert torch.equal(twin(x), model(x))
    train(twin, torch.optim.Adam(twin.parameters(), lr=0.1), x, steps=10)
    assert_held(twin)
    assert not torch.equal(twin(x), model(x))


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_carries_weights_and_masks(assign):
    model, x = widened(seed=0)
    other, _ = widened(seed=1)
    assert not torch.equal(model(x), other(x))
    other.load_state_dict(copy.deepcopy(model.state_dict()), assign=assign)
    assert torch.equal(model(x), other(x))
    train(other, torch.optim.Adam(other.parameters(), lr=0.1), x, steps=10)
    assert_held(other)


@pytest.mark.parametrize("assign", [False, True])
def test_loading_masks_weights_and_does_not_change_the_callers(assign):
    model, _ = widened()
    state = {k: v.clone() if "mask" in k else torch.ones_like(v) for k, v in model.state_dict().items()}
    before = {k: v.clone() for k, v in state.items()}
    with pytest.warns(UserWarning, match="not zero where the loaded mask is"):
        model.load_state_dict(state, assign=assign)
    assert_held(model)
    assert all(torch.equal(state[k], before[k]) for k in state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_mask_follows_the_type(dtype):
    model, x = widened()
    model.to(dtype)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), x.to(dtype), steps=5)
    assert_held(model)
    assert all(layer.fpe_mask.dtype == dtype for layer in masked_layers(model))


def test_autocast_trains_and_keeps_masks():
    model, x = widened()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(x).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    assert_held(model)
    assert all(layer.weight.dtype == torch.float32 for layer in masked_layers(model))


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
def test_a_compiled_model_computes_the_same_gradients_and_keeps_masks():
    model, x = widened("mlp")
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    for net in (model, compiled):
        net(x).square().mean().backward()
    for plain, fast in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(plain.grad, fast.grad)
    train(compiled, torch.optim.Adam(compiled.parameters(), lr=0.1), x, steps=5)
    assert_held(compiled)


def test_gradients_through_vmap_are_masked_too():
    """Per-sample gradients, as differential privacy and influence functions take them."""
    model, x = widened("mlp")
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters, sample):
        return torch.func.functional_call(model, (parameters, buffers), sample[None]).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    model(x).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(per_sample[name].sum(0), p.grad)
    assert (per_sample["0.weight"][:, model[0].fpe_mask == 0] == 0).all()


def test_the_printed_form_tells_the_density():
    layer = fpe.MaskedLinear(4, 2)
    layer.fpe_mask[0] = 0
    assert repr(layer) == "MaskedLinear(in_features=4, out_features=2, bias=True, density=0.5)"
