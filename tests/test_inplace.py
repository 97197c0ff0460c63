"""fpe.expand_: the model in place, and its optimizer with it."""

import copy

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
    plan = fpe.expand_(model, optimizer=optimizer, factor=2, example_inputs=batch, seed=4)
    assert plan == copied.fpe_plan == model.fpe_plan
    assert same_state(model, copied)
    assert (id(model), fpe.count_nonzero(model)) == before


@pytest.mark.parametrize("moments", ["fresh", "kept"])
@pytest.mark.parametrize("name", ["mlp", "batch_norm", "CNN-BatchNorm-Flatten", "GPT-2"])
def test_the_optimizer_trains_what_the_model_has_now(name, moments):
    model, batch, optimizer = trained(name)
    fpe.expand_(model, optimizer=optimizer, moments=moments, factor=2, example_inputs=batch)
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
    fpe.expand_(model, optimizer=optimizer, factor=2, example_inputs=batch)
    new = torch.optim.Adam(twin.parameters(), lr=1e-3)
    for _ in range(3):
        step(model, batch, optimizer)
        step(twin, batch, new)
    assert same_state(model, twin)


def test_kept_moments_are_the_parents():
    """Row by row in the producer, column by column in the consumer, none where a weight is masked."""
    model, batch, optimizer = trained("mlp")
    old = [optimizer.state[p]["exp_avg_sq"].clone() for p in model.parameters()]
    fpe.expand_(model, optimizer=optimizer, moments="kept", factor=2, example_inputs=batch)
    new = [optimizer.state[p]["exp_avg_sq"] for p in model.parameters()]
    assert torch.equal(new[0], old[0].repeat_interleave(2, 0) * model[0].fpe_mask)
    assert torch.equal(new[1], old[1].repeat_interleave(2))
    assert torch.equal(new[2], old[2].repeat_interleave(2, 1) * model[2].fpe_mask)
    assert torch.equal(new[3], old[3])


def test_kept_moments_follow_flattened_channels_and_transposed_weights():
    model, batch, optimizer = trained("CNN-BatchNorm-Flatten")
    old = optimizer.state[model[9].weight]["exp_avg"].clone()
    fpe.expand_(model, optimizer=optimizer, moments="kept", layers=["4"], factor=2, example_inputs=batch)
    expected = old.view(10, 8, 4).repeat_interleave(2, 1).flatten(1) * model[9].fpe_mask
    assert torch.equal(optimizer.state[model[9].weight]["exp_avg"], expected)

    model, batch, optimizer = trained("GPT-2")
    mlp = model.transformer.h[0].mlp
    old = optimizer.state[mlp.c_fc.weight]["exp_avg"].clone()
    fpe.expand_(model, optimizer=optimizer, moments="kept", factor=2, example_inputs=batch)
    expected = old.t().repeat_interleave(2, 0) * mlp.c_fc.fpe_mask
    assert torch.equal(optimizer.state[mlp.c_fc.weight]["exp_avg"], expected)


def test_a_schedule_goes_on():
    model, batch, optimizer = trained("mlp")
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    fpe.expand_(model, optimizer=optimizer, factor=2, example_inputs=batch)
    step(model, batch, optimizer)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 5e-4


def test_a_compiled_model_is_expanded_inside():
    model, batch, optimizer = trained("mlp")
    compiled = torch.compile(model, backend="eager")
    compiled(batch)
    fpe.expand_(compiled, optimizer=optimizer, factor=2, example_inputs=batch)
    assert model[0].out_features == 8
    assert torch.equal(compiled(batch), model(batch))


def test_state_that_does_not_go_entry_by_entry_cannot_be_kept():
    model, batch, optimizer = trained("mlp", torch.optim.Adafactor)
    before = snapshot(model)
    with pytest.raises(ArgumentError, match=r"Adafactor keeps 'row_var'"):
        fpe.expand_(model, optimizer=optimizer, moments="kept", factor=2, example_inputs=batch)
    assert_unchanged(model, before)
    fpe.expand_(model, optimizer=optimizer, moments="fresh", factor=2, example_inputs=batch)
    step(model, batch, optimizer)


def expected(model, name, parameter, value):
    """Return a moment of the dense `mlp` as the children of its expansion by 2 inherit it."""
    wide = {"0.weight": (2, 1), "0.bias": (2,), "2.weight": (1, 2), "2.bias": (1,)}[f"{name}.{parameter}"]
    for axis, times in enumerate(wide):
        value = value.repeat_interleave(times, axis)
    layer = model.get_submodule(name)
    return value * layer.fpe_mask if parameter == "weight" else value


@pytest.mark.parametrize(
    ("make", "how"),
    [
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "foreach": True}),
        (torch.optim.SGD, {"momentum": 0.9, "fused": True}),
        (torch.optim.Adam, {"amsgrad": True, "foreach": True}),
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.NAdam, {"foreach": False}),
        (torch.optim.Adadelta, {}),
        (torch.optim.Rprop, {}),
        (torch.optim.ASGD, {}),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else value.__name__,
)
def test_the_state_of_any_optimizer_is_gathered_entry_by_entry(make, how):
    """All of each parameter's size is gathered; counts of steps and other single numbers stay."""
    model, batch, optimizer = trained("mlp", make, **how)
    old = {(n, p): copy.deepcopy(optimizer.state[t]) for n, m in model.named_modules()
           for p, t in m.named_parameters(recurse=False)}  # fmt: skip
    fpe.expand_(model, optimizer=optimizer, moments="kept", factor=2, example_inputs=batch)
    assert len(optimizer.state) == len(old)
    for (name, parameter), state in old.items():
        new = optimizer.state[model.get_submodule(name).get_parameter(parameter)]
        assert new.keys() == state.keys()
        for key, value in state.items():
            if torch.is_tensor(value) and value.dim():
                assert torch.equal(new[key], expected(model, name, parameter, value)), (name, key)
            else:
                assert new[key] == value
    before = fpe.count_nonzero(model)
    step(model, batch, optimizer)
    assert fpe.count_nonzero(model) == before


def test_momentum_that_has_not_begun_stays_so():
    model, batch = MODELS["mlp"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    fpe.expand_(model, optimizer=optimizer, moments="kept", factor=2, example_inputs=batch)
    assert not any(state.get("momentum_buffer") is not None for state in optimizer.state.values())
    step(model, batch, optimizer)


def test_lbfgs_begins_its_history_anew_and_keeps_none():
    model, batch, _ = trained("mlp")
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure():
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ArgumentError, match=r"LBFGS .* give moments='fresh'"):
        fpe.expand_(model, optimizer=optimizer, moments="kept", factor=2, example_inputs=batch)
    assert equal(optimizer.state_dict(), before)
    fpe.expand_(model, optimizer=optimizer, factor=2, example_inputs=batch)
    count, loss = fpe.count_nonzero(model), closure().item()
    optimizer.step(closure)
    assert closure().item() < loss
    assert fpe.count_nonzero(model) == count
    assert (model[0].weight[model[0].fpe_mask == 0] == 0).all()


@pytest.mark.parametrize("moments", ["fresh", "kept"])
def test_several_optimizers_take_over_their_own_parameters(moments):
    """One trains the weights, one the biases; another model's optimizer in the list is left alone."""
    model, batch = MODELS["mlp"]()
    other = nn.Linear(2, 2)
    weights = torch.optim.Adam([model[0].weight, model[2].weight], lr=1e-3)
    biases = torch.optim.SGD([model[0].bias, model[2].bias], lr=1e-3, momentum=0.9)
    foreign = torch.optim.Adam(other.parameters())
    step(other, torch.ones(1, 2), foreign)
    for _ in range(2):
        for optimizer in (weights, biases):
            step(model, batch, optimizer)
    before = copy.deepcopy(foreign.state_dict())
    fpe.expand_(model, optimizer=[weights, biases, foreign], moments=moments, factor=2, example_inputs=batch)
    assert [id(p) for p in weights.param_groups[0]["params"]] == [id(model[0].weight), id(model[2].weight)]
    assert [id(p) for p in biases.param_groups[0]["params"]] == [id(model[0].bias), id(model[2].bias)]
    assert equal(foreign.state_dict(), before)
    assert len(weights.state) == len(biases.state) == (0 if moments == "fresh" else 2)


def test_a_parameter_that_no_given_optimizer_trains_is_named():
    model, batch = MODELS["mlp"]()
    weights = torch.optim.Adam([model[0].weight, model[2].weight])
    with pytest.warns(UserWarning, match=r"no given optimizer trains '0\.bias', '2\.bias'"):
        fpe.expand_(model, optimizer=weights, factor=2, example_inputs=batch)
    model, batch = MODELS["mlp"]()
    model[0].bias.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"no given optimizer trains '2\.bias'"):
        fpe.expand_(
            model, optimizer=torch.optim.Adam([model[0].weight, model[2].weight]), example_inputs=batch
        )


@pytest.mark.parametrize("optimizer", ["adam", [None], 3])
def test_what_is_no_optimizer_is_refused(optimizer):
    model, batch = MODELS["mlp"]()
    with pytest.raises(ArgumentError, match=r"give a torch\.optim\.Optimizer, or a list"):
        fpe.expand_(model, optimizer=optimizer, example_inputs=batch)


def in_backward(parameter):
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    parameter.register_post_accumulate_grad_hook(lambda p: optimizer.step())


@pytest.mark.parametrize(
    "register", [lambda p: p.register_hook(lambda g: g / 2), in_backward], ids=["gradient", "in backward"]
)
@pytest.mark.parametrize("module", ["0", "1", "3"])
def test_hooks_of_parameters_that_would_be_lost_are_refused_by_name(register, module):
    """Of the producer, the norm between and the consumer, all of which get new parameters."""
    model, batch = MODELS["batch_norm"]()
    register(model.get_submodule(module).weight)
    before = snapshot(model)
    for call in (fpe.plan, fpe.expand, fpe.expand_):
        with pytest.raises(ModelError, match=rf"'{module}\.weight' has a hook .*register"):
            call(model, example_inputs=batch)
    assert_unchanged(model, before)


def test_hooks_of_parameters_that_stay_go_on_in_place_and_are_refused_in_a_copy():
    layers = nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)
    model = nn.Sequential(*layers)
    batch, seen = torch.ones(3, 8), []
    model[4].bias.register_hook(seen.append)
    with pytest.raises(ModelError, match=r"'4\.bias' has a hook"):
        fpe.expand(model, 2, layers=["0"], example_inputs=batch)
    fpe.expand_(model, factor=2, layers=["0"], example_inputs=batch)
    model(batch).sum().backward()
    assert len(seen) == 1


@pytest.fixture
def alone():
    """One process that takes part in a group of one."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("wrap", ["DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"])
@pytest.mark.parametrize("inside", [False, True])
def test_models_wrapped_for_several_processes_are_refused(alone, wrap, inside):
    from torch.distributed import fsdp

    model = fpe.mlp(8, 4, 2, seed=0)
    if wrap == "DistributedDataParallel":
        model = nn.parallel.DistributedDataParallel(model)
    elif wrap == "FullyShardedDataParallel":
        model = fsdp.FullyShardedDataParallel(model, device_id=torch.device("cpu"))
    else:
        fsdp.fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    model = nn.Sequential(nn.Identity(), model) if inside else model
    for call in (fpe.plan, fpe.expand, fpe.expand_):
        with pytest.raises(ArgumentError, match=f"{wrap}; expand the model first, and wrap it then"):
            call(model)


def equal(a, b):
    """Compare nested states, tensors bit for bit."""
    if torch.is_tensor(a):
        return torch.is_tensor(b) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


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
    before, state = snapshot(model), copy.deepcopy(optimizer.state_dict())
    owned = [id(p) for p in optimizer.param_groups[0]["params"]]
    with pytest.raises(kind):
        fpe.expand_(model, optimizer=optimizer, **how, example_inputs=x)
    assert_unchanged(model, before)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == owned
    assert equal(optimizer.state_dict(), state)


def test_a_forward_put_on_one_model_is_expanded_in_place_and_not_copied():
    """A copy would go on calling the original, as after accelerate has wrapped it for mixed precision."""
    model, x = MODELS["mlp"]()
    original = model.forward
    model.forward = lambda x: original(x).float()
    with pytest.raises(ModelError, match="has a forward of its own"):
        fpe.expand(model, example_inputs=x)
    fpe.expand_(model, example_inputs=x)
    assert model[0].out_features == 8
    assert model(x).shape == (5, 2)
