"""fpe.expand_: the model in place, and its optimizer with it."""

import pytest
import torch
from torch import nn

import fpe
from fpe.errors import ArgumentError, BudgetError, ModelError
from models import MODELS, assert_unchanged, same_state, snapshot
from zoo import ZOO, answer


def trained(name, make=torch.optim.Adam, steps=3, **how):
    """Return a model, a batch, and an optimizer that has taken some steps."""
    model, batch = ZOO[name]() if name in ZOO else MODELS[name]()
    optimizer = make(model.parameters(), lr=1e-3, **how)
    for _ in range(steps):
        step(model, batch, optimizer)
    return model, batch, optimizer


def step(model, batch, optimizer):
    optimizer.zero_grad()
    answer(model, batch).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["mlp", "batch_norm", "CNN-BatchNorm-Flatten", "GPT-2", "LLaMA"])
def test_in_place_gives_what_a_copy_would_be(name):
    model, batch, optimizer = trained(name)
    copied = fpe.expand(model, 2, example_inputs=batch, seed=4)
    before = id(model), fpe.count_nonzero(model)
    plan = fpe.expand_(model, optimizer, factor=2, example_inputs=batch, seed=4)
    assert plan == copied.fpe_plan == model.fpe_plan
    assert same_state(model, copied)
    assert (id(model), fpe.count_nonzero(model)) == before


@pytest.mark.parametrize("moments", ["fresh", "kept"])
@pytest.mark.parametrize("name", ["mlp", "batch_norm", "CNN-BatchNorm-Flatten", "GPT-2"])
def test_the_optimizer_trains_what_the_model_has_now(name, moments):
    model, batch, optimizer = trained(name)
    fpe.expand_(model, optimizer, moments, factor=2, example_inputs=batch)
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in owned} == {id(p) for p in model.parameters()}
    assert len(owned) == len(list(model.parameters()))
    before = fpe.count_nonzero(model)
    step(model, batch, optimizer)
    assert fpe.count_nonzero(model) == before
    for layer in (m for m in model.modules() if isinstance(m, fpe.MaskedLayer)):
        assert (layer.weight[layer.fpe_mask == 0] == 0).all()
        state = optimizer.state[layer.weight]
        assert (state["exp_avg"][layer.fpe_mask == 0] == 0).all()
        assert state["step"].item() == (1 if moments == "fresh" else 4)


def test_fresh_moments_are_those_of_a_new_optimizer():
    model, batch, optimizer = trained("mlp")
    twin = fpe.expand(model, 2, example_inputs=batch)
    fpe.expand_(model, optimizer, factor=2, example_inputs=batch)
    new = torch.optim.Adam(twin.parameters(), lr=1e-3)
    for _ in range(3):
        step(model, batch, optimizer)
        step(twin, batch, new)
    assert same_state(model, twin)


def test_kept_moments_are_the_parents():
    """Row by row in the producer, column by column in the consumer, none where a weight is held at zero."""
    model, batch, optimizer = trained("mlp")
    old = [optimizer.state[p]["exp_avg_sq"].clone() for p in model.parameters()]
    fpe.expand_(model, optimizer, "kept", factor=2, example_inputs=batch)
    new = [optimizer.state[p]["exp_avg_sq"] for p in model.parameters()]
    assert torch.equal(new[0], old[0].repeat_interleave(2, 0) * model[0].fpe_mask)
    assert torch.equal(new[1], old[1].repeat_interleave(2))
    assert torch.equal(new[2], old[2].repeat_interleave(2, 1) * model[2].fpe_mask)
    assert torch.equal(new[3], old[3])


def test_kept_moments_follow_flattened_channels_and_transposed_weights():
    model, batch, optimizer = trained("CNN-BatchNorm-Flatten")
    old = optimizer.state[model[9].weight]["exp_avg"].clone()
    fpe.expand_(model, optimizer, "kept", layers=["4"], factor=2, example_inputs=batch)
    expected = old.view(10, 8, 4).repeat_interleave(2, 1).flatten(1) * model[9].fpe_mask
    assert torch.equal(optimizer.state[model[9].weight]["exp_avg"], expected)

    model, batch, optimizer = trained("GPT-2")
    mlp = model.transformer.h[0].mlp
    old = optimizer.state[mlp.c_fc.weight]["exp_avg"].clone()
    fpe.expand_(model, optimizer, "kept", factor=2, example_inputs=batch)
    expected = old.t().repeat_interleave(2, 0) * mlp.c_fc.fpe_mask
    assert torch.equal(optimizer.state[mlp.c_fc.weight]["exp_avg"], expected)


def test_a_schedule_goes_on():
    model, batch, optimizer = trained("mlp")
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    fpe.expand_(model, optimizer, factor=2, example_inputs=batch)
    step(model, batch, optimizer)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 5e-4


def test_a_compiled_model_is_expanded_inside():
    model, batch, optimizer = trained("mlp")
    compiled = torch.compile(model, backend="eager")
    compiled(batch)
    fpe.expand_(compiled, optimizer, factor=2, example_inputs=batch)
    assert model[0].out_features == 8
    assert torch.equal(compiled(batch), model(batch))


def test_state_that_does_not_go_entry_by_entry_cannot_be_kept():
    model, batch, optimizer = trained("mlp", torch.optim.Adafactor)
    before = snapshot(model)
    with pytest.raises(ArgumentError, match=r"Adafactor keeps 'row_var' of shape .* give moments='fresh'"):
        fpe.expand_(model, optimizer, "kept", factor=2, example_inputs=batch)
    assert_unchanged(model, before)
    fpe.expand_(model, optimizer, "fresh", factor=2, example_inputs=batch)
    step(model, batch, optimizer)


class Written(nn.Module):
    """Has its number of neurons written down."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)).view(-1, 4))


@pytest.mark.parametrize(
    ("model", "how", "kind"),
    [
        (Written(), {"factor": 2}, ModelError),
        (fpe.mlp(8, 4, 2, seed=0), {"factor": 0}, ArgumentError),
        (fpe.mlp(8, 4, 60, seed=0), {"split": "shared", "prune": "columns"}, BudgetError),
        (fpe.mlp(8, 4, 2, seed=0), {"moments": "old"}, ArgumentError),
    ],
    ids=["written down", "factor", "budget", "moments"],
)
def test_what_fails_leaves_model_and_optimizer_as_they_were(model, how, kind):
    x = torch.ones(3, 8)
    optimizer = torch.optim.Adam(model.parameters())
    step(model, x, optimizer)
    before, state = snapshot(model), optimizer.state_dict()
    owned = [id(p) for p in optimizer.param_groups[0]["params"]]
    with pytest.raises(kind):
        fpe.expand_(model, optimizer, **how, example_inputs=x)
    assert_unchanged(model, before)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == owned
    after = optimizer.state_dict()
    assert after["state"].keys() == state["state"].keys()


def test_a_forward_put_on_one_model_is_expanded_in_place_and_not_copied():
    """A copy would go on calling the original, as after accelerate has wrapped it for mixed precision."""
    model, x = MODELS["mlp"]()
    original = model.forward
    model.forward = lambda x: original(x).float()
    with pytest.raises(ModelError, match="has a forward of its own, put on this one module"):
        fpe.expand(model, example_inputs=x)
    fpe.expand_(model, example_inputs=x)
    assert model[0].out_features == 8
    assert model(x).shape == (5, 2)
