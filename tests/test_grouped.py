"""Convolutions in groups, and norms over a concatenation: both have neurons beside others."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fpe
from fpe.errors import ModelError
from fpe.expansion.planner import Measurements
from fpe.graph import NeuronGroup, find_groups, verify
from grouped import FOUND, IMAGE, Net, shuffled
from models import assert_unchanged, same_values, snapshot
from oracle import copied


def built(make, shape):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().double()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.PReLU):
                for tensor in (*module.parameters(), *module.buffers()):
                    tensor.data = tensor.data + torch.rand_like(tensor) if tensor.dim() else tensor.data
    return model, torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def assert_right(model, groups, x):
    """Permute the neurons of groups, and copy those of each by the oracle, in both modes."""
    verify(model, groups, x)
    for group in groups:
        for factor in (2, 3):
            wide = copied(model, [vars(group)], factor)
            for training in (False, True):
                dense = copy.deepcopy(model).train(training)(x)
                assert dense.abs().max() > 1e-3
                torch.testing.assert_close(copy.deepcopy(wide).train(training)(x), dense)


@pytest.mark.parametrize("name", FOUND)
def test_they_are_found_verified_and_right_by_the_oracle(name):
    make, shape, producers = FOUND[name]
    model, x = built(make, shape)
    groups = find_groups(model, x).groups
    found = {n: group.parts for group in groups for n in group.producers}
    assert found == (producers or {n: 1 for n, m in model.named_modules() if isinstance(m, nn.Conv2d)})
    assert_right(model, groups, x)


@pytest.mark.parametrize("name", FOUND)
def test_they_are_expanded_trained_saved_loaded_and_packed(name, tmp_path):
    make, shape, _ = FOUND[name]
    model, x = built(make, shape)
    before, layers = snapshot(model), [group.name for group in find_groups(model, x).groups]
    wide = fpe.expand(model, 2, layers=layers, example_inputs=x).train()
    assert_unchanged(model, before)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    optimizer = torch.optim.Adam(wide.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        wide(x).square().mean().backward()
        optimizer.step()
    assert fpe.project_(wide) == 0
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    expected = wide.eval()(x)
    packed = fpe.pack(wide, example_inputs=x)
    assert not any(isinstance(module, fpe.MaskedLayer) for module in packed.modules())
    for own in (wide, packed):
        torch.testing.assert_close(own(x), expected)
        fpe.save(own, tmp_path / "model.safetensors")
        loaded = fpe.load(tmp_path / "model.safetensors", like=model).eval()
        torch.testing.assert_close(loaded(x), expected)
        assert own is not wide or same_values(loaded, wide)
        unpacked = wide if own is wide else fpe.unpack(loaded)
        torch.testing.assert_close(unpacked(x), expected)


@pytest.mark.parametrize("how", [
    {"target_fraction": 0.5}, {"target_fraction": 0.5, "target": "capacity"}, {"factor": 3},
    {"split": "shared", "prune": "children"}, {"split": fpe.CorrelationSplit()}, {"convolutions": "taps"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", ["ResNeXt", "DenseNet", "other groups behind"])
def test_other_ways_of_expanding_and_a_second_time_keep_the_count_and_the_groups(name, how):
    model, x = built(*FOUND[name][:2])
    wide = fpe.expand(model, example_inputs=x, **how)
    again = fpe.expand(wide, example_inputs=x, convolutions="taps", budget="network")
    for own in (wide, again):
        assert fpe.count_nonzero(own) == fpe.count_nonzero(model)
        assert own(x).shape == model(x).shape
    assert [getattr(m, "groups", 1) for m in wide.modules()] == [
        getattr(m, "groups", 1) for m in model.modules()
    ]


def test_children_of_a_neuron_split_the_inputs_of_its_own_group():
    """With enough zeros to prune, the expansion of a linear model computes what the dense one does."""
    model = nn.Sequential(
        nn.Conv2d(3, 12, 1, bias=False), nn.Conv2d(12, 12, 1, groups=3, bias=False), nn.Conv2d(12, 2, 1)
    )
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        model[2].weight[:, :8] = 0
        model[1].weight[:, :2] = 0
    wide = fpe.expand(model, layers=["1"], example_inputs=x, budget="network")
    free = wide[1].fpe_mask[..., 0, 0].unflatten(0, (3, 4, 2))  # (groups, neurons, children, inputs)
    assert bool((free.sum(2) <= 1).all())
    torch.testing.assert_close(wide(x), model(x))


def test_a_norm_over_two_groups_has_the_moments_of_its_parents():
    model, x = built(*FOUND["PReLU over two layers"][:2])
    optimizer = torch.optim.Adam(model.parameters())
    model(x).square().mean().backward()
    optimizer.step()
    old = optimizer.state[model.bent.weight]["exp_avg"].clone()
    fpe.expand_(model, optimizer=optimizer, moments="kept", layers=["a", "a2"], example_inputs=x)
    assert torch.equal(optimizer.state[model.bent.weight]["exp_avg"], old.repeat_interleave(2))


#: Name → model, and a part of the reason why "a" stays dense.
TRAPS = {
    "one layer for each group": (
        lambda: Net(lambda t, x: t.end(torch.cat([t.a(x), t.a2(x)], 1)), end=nn.Conv2d(24, 2, 1, groups=2)),
        "'end' is a convolution in 2 groups, which do not all consume its neurons alike",
    ),
    "beside the input": (
        lambda: Net(
            lambda t, x: t.end(torch.cat([t.a(x), x[:, :, 2:, 2:]], 1)), end=nn.Conv2d(15, 3, 1, groups=3)
        ),
        "in 3 groups, which do not all consume its neurons alike",
    ),
    "channels in another order": (lambda: Net(shuffled), "are split by"),
    "channels rolled": (lambda: Net(lambda t, x: t.out18(t.grouped(t.a(x).roll(1, 1)))), "'roll'"),
    "a softmax within groups": (
        lambda: Net(lambda t, x: t.grouped(t.a(x).unflatten(1, (3, 4)).softmax(2).flatten(1, 2))),
        "are split by",
    ),
    "groups of coprime numbers": (
        lambda: Net(
            lambda t, x: t.out(t.five(t.grouped(t.a(x)))),
            a=nn.Conv2d(3, 12, 3, groups=3),
            grouped=nn.Conv2d(12, 8, 1),
            five=nn.Conv2d(8, 12, 1),
        ),
        None,
    ),
    "no neurons left": (
        lambda: Net(
            lambda t, x: t.end(t.a(t.a2(x))),
            a=nn.Conv2d(12, 6, 1, groups=3),
            end=nn.Conv2d(6, 4, 1, groups=2),
        ),
        "in 2 groups, which do not all consume its neurons alike",
    ),
    "a norm within groups over others": (
        lambda: Net(lambda t, x: t.out24(t.wide(torch.cat([t.a(x), t.a2(x)], 1))), wide=nn.GroupNorm(2, 24)),
        "GroupNorm is over other values too",
    ),
    "a layer norm over others": (
        lambda: Net(
            lambda t, x: t.flat(t.wide(torch.cat([t.a(x).mean((2, 3)), x.mean((2, 3))], 1))),
            wide=nn.LayerNorm(15),
            flat=nn.Linear(15, 2),
        ),
        "LayerNorm is over other values too",
    ),
    "a norm in two layouts": (
        lambda: Net(
            lambda t, x: t.out24(
                t.norm24(torch.cat([t.a(x), t.a2(x)], 1)) - t.norm24(torch.cat([t.a2(x), t.a(x)], 1))
            )
        ),
        "it takes its neurons in several layouts",
    ),
    "a norm of others too": (
        lambda: Net(lambda t, x: t.out(t.norm(t.a(x))) + t.norm(x.repeat(1, 4, 1, 1)).mean()),
        "'norm' is used 2 times in one forward pass, not always for these neurons",
    ),
    "a softmax beside a norm": (
        lambda: Net(lambda t, x: t.out24(t.norm24(torch.cat([t.a(x), t.a2(x)], 1)).softmax(1))),
        "'softmax'",
    ),
    "halves of a concatenation": (
        lambda: Net(lambda t, x: t.out(F.glu(t.norm24(torch.cat([t.a(x), t.a2(x)], 1)), 1))),
        "meet other values in 'glu'",
    ),
    "a sum with the other half": (
        lambda: Net(lambda t, x: t.out(sum(t.norm24(torch.cat([t.a(x), t.a2(x)], 1)).chunk(2, 1)))),
        "'norm24' has in other places",
    ),
    "a product with what is beside": (
        lambda: Net(
            lambda t, x: (lambda a, b: t.out24(torch.cat([a, b], 1)) + t.out(a * b))(t.a(x), t.a2(x))
        ),
        "'out24' has in other places",
    ),
    "grouped weights used again": (
        lambda: Net(lambda t, x: t.out18(t.grouped(t.a(x))) + t.grouped.weight.sum()),
        "'grouped' is used 2 times",
    ),
    "several kernels folded": (
        lambda: Net(lambda t, x: t.out(t.more(t.a(x)).unflatten(1, (12, 2)).sum(2))),
        "are split by 'unflatten'",
    ),
    "several kernels in halves": (
        lambda: Net(lambda t, x: t.out(F.glu(t.more(t.a(x)), 1))),
        None,
    ),
    "another function in training": (
        lambda: Net(lambda t, x: t.out18(t.grouped(t.a(x).softmax(1) if t.training else t.a(x)))),
        "in training mode",
    ),
    "the number of groups written down": (
        lambda: Net(lambda t, x: t.out18(F.conv2d(t.a(x), t.grouped.weight, groups=3))),
        "'grouped' is not called as a layer",
    ),
    "a width written down": (
        lambda: Net(lambda t, x: t.out18(t.grouped(t.a(x)[:, :12]))),
        "written down",
    ),
    "a width in a scale": (
        lambda: Net(lambda t, x: t.out18(F.relu(t.grouped(t.a(x))) / t.a(x).shape[1])),
        "something depends on their number",
    ),
    "gates in another order": (
        lambda: Net(
            lambda t, x: (lambda h: t.out18(h * t.excite(t.squeeze(h.mean((2, 3), True))).flip(1)))(
                t.grouped(t.a(x))
            )
        ),
        None,
    ),
}


@pytest.mark.parametrize("name", TRAPS)
def test_what_only_looks_alike_is_refused_or_right(name):
    make, reason = TRAPS[name]
    model, x = built(make, IMAGE)
    before = snapshot(model)
    if reason is None:
        groups = find_groups(model, x).groups
        assert groups
        assert_right(model, groups, x)
        return
    with pytest.raises(ModelError) as error:
        fpe.plan(model, layers=["a"], example_inputs=x)
    assert reason in str(error.value)
    assert_unchanged(model, before)


def test_a_group_by_hand_may_be_in_groups_and_between_others():
    model, x = built(*FOUND["ResNeXt"][:2])
    for group in find_groups(model, x).groups:
        assert fpe.plan(model, layers=[group], example_inputs=x).layers[0].group == group
    with pytest.raises(ModelError, match="has 4 inputs, but 'a' has 12 neurons"):
        fpe.plan(model, layers=[NeuronGroup("a", "grouped", "norm")], example_inputs=x)
    model, x = built(*FOUND["PReLU over two layers"][:2])
    first, second = find_groups(model, x).groups
    assert first == NeuronGroup("a", "out24", "bent", ((1, -12),), between_layouts=((1, -12),))
    assert second == NeuronGroup("a2", "out24", "bent", ((-12, 1),), between_layouts=((-12, 1),))
    wrong = NeuronGroup("a", "out24", "bent", ((1, -12),), between_layouts=((-12, 1),))
    with pytest.raises(ModelError, match="the output moves by"):
        fpe.plan(model, layers=[wrong], example_inputs=x)
    with pytest.raises(ModelError, match="give a layout for each"):
        fpe.plan(
            model, layers=[NeuronGroup("a", "out", "norm", between_layouts=((1,), (1,)))], example_inputs=x
        )


def test_inputs_of_each_group_are_ranked_by_their_own_activations():
    model, x = built(*FOUND["other groups behind"][:2])
    how = {"split": "shared", "prune": fpe.InputPruning(by="activation")}
    wide = fpe.expand(model, layers=["grouped4"], example_inputs=x, **how)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    measured = Measurements(model, ["grouped"], x, samples=True)
    h = F.relu(model.a(x)).square().mean((0, 2, 3)).sqrt().detach()
    torch.testing.assert_close(measured.scale("grouped"), h.view(3, 1, 4).expand(3, 6, 4).flatten(0, 1))
