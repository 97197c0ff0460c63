"""A layer that scales and shifts the neurons of another: expanded, pruned, rewired and packed with it."""

import itertools

import pytest
import torch
from torch.nn import functional as F

import fpe
from models import same_values
from test_modulated_traps import FILM, VECTOR, batch_of, built, modulated


def test_scale_and_shift_of_a_child_take_the_same_inputs():
    """With enough zeros to prune, no other weight is masked; other inputs are split on their own."""
    model, batch = built(FILM), batch_of(VECTOR)
    with torch.no_grad():
        model.head.weight.zero_()
        model.a.weight[:, :4] = 0
        model.m.weight[:, :2] = 0
    wide = fpe.expand(model, 2, example_inputs=batch, budget="network")
    scale, shift = wide.m.weight.chunk(2)
    assert torch.equal(scale != 0, shift != 0)
    for name in ("a", "m"):
        dense, new = model.get_submodule(name).weight, wide.get_submodule(name).weight
        assert (new.unflatten(0, (-1, 2)).sum(1) == dense).all()
        assert torch.equal(new[new != 0], dense.repeat_interleave(2, 0)[new != 0])


HOW = [
    *itertools.product(["random", "shared", "gram", fpe.CorrelationSplit()], ["magnitude", "balanced"]),
    *itertools.product(["shared", "shared-2"], ["columns", "children", fpe.InputPruning("activation")]),
]


@pytest.mark.parametrize(("split", "prune"), HOW, ids=str)
@pytest.mark.parametrize(
    "follow", [FILM, modulated(lambda t, x, s, b: t.head(F.glu(t.c(x), -1) * (t.a(x) + b)))]
)
def test_all_splits_and_prunings_keep_the_count(follow, split, prune):
    model, batch = built(follow), batch_of(VECTOR)
    blocks = prune not in ("magnitude", "balanced")
    for how in ({}, *([] if blocks else [{"budget": "network"}, {"target_fraction": 0.5}])):
        wide = fpe.expand(model, 2, split=split, prune=prune, example_inputs=batch, **how)
        assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
        packed = fpe.pack(wide, example_inputs=batch)
        assert same_values(fpe.unpack(packed), wide)


@pytest.mark.parametrize("target", ["participation", "capacity"])
def test_the_most_polysemantic_neurons_alone_can_be_expanded(target):
    model, batch = built(FILM), batch_of(VECTOR)
    wide = fpe.expand(model, 2, target_fraction=0.5, target=target, example_inputs=batch)
    assert (len(wide.a.weight), len(wide.m.weight)) == (9, 18)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)


def trained(wide, batch, each):
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.05)
    step = each(optimizer)
    for _ in range(20):
        optimizer.zero_grad()
        wide(*batch).square().sum().backward()
        optimizer.step()
        step.step()
    for name in ("a", "m", "c"):
        layer = wide.get_submodule(name)
        if isinstance(layer, fpe.MaskedLayer):
            assert (layer.weight[layer.fpe_mask == 0] == 0).all()


#: A layer with one output for each neuron, and one with two, over the same inputs.
SAME_INPUTS = modulated(lambda t, x, s, b: t.head(F.glu(t.c(x), -1) * t.a(x)))


@pytest.mark.parametrize("unit", ["weight", "column"])
def test_masks_can_be_rewired(unit):
    model, batch = built(SAME_INPUTS), batch_of(VECTOR)
    wide = fpe.expand(model, 2, split="shared", prune="columns", example_inputs=batch)
    before, count = wide.c.fpe_mask.clone(), fpe.count_nonzero(wide)
    assert wide.fpe_plan.layers[0].group.parts == (2, 1)
    policy = fpe.RewiringPolicy(unit=unit)
    schedule = fpe.RewiringSchedule(every=5)
    trained(wide, batch, lambda o: fpe.Rewirer(wide, o, steps=20, policy=policy, schedule=schedule))
    assert fpe.count_nonzero(wide) == count
    assert not torch.equal(before, wide.c.fpe_mask)
    if unit == "column":
        first, second, gate = (  # the inputs of each block; what is less than a column was pruned alone
            mask.unflatten(0, (6, 2)).any(0) for mask in (*wide.c.fpe_mask.chunk(2), wide.a.fpe_mask)
        )
        assert torch.equal(first, second)
        assert torch.equal(first, gate)


def test_a_split_of_other_inputs_has_its_own_masks_when_rewired():
    model, batch = built(FILM), batch_of(VECTOR)
    wide = fpe.expand(model, 2, example_inputs=batch)
    count = fpe.count_nonzero(wide)
    schedule = fpe.RewiringSchedule(every=5)
    policy = fpe.RewiringPolicy(partition="kept")
    trained(wide, batch, lambda o: fpe.Rewirer(wide, o, steps=20, policy=policy, schedule=schedule))
    assert fpe.count_nonzero(wide) == count
    for name in ("a", "m"):
        assert wide.get_submodule(name).fpe_mask.unflatten(0, (-1, 2)).sum(1).max() <= 1


def test_a_model_is_expanded_in_place_while_it_is_trained():
    model, batch = built(FILM), batch_of(VECTOR)
    optimizer = torch.optim.AdamW(model.parameters())
    model(*batch).square().sum().backward()
    optimizer.step()
    moment = optimizer.state[model.m.weight]["exp_avg"].clone()
    count = fpe.count_nonzero(model)
    fpe.expand_(model, 2, optimizer=optimizer, moments="kept", example_inputs=batch)
    assert fpe.count_nonzero(model) == count
    new = optimizer.state[model.m.weight]["exp_avg"]
    assert torch.equal(new, moment.repeat_interleave(2, 0) * model.m.fpe_mask)
    optimizer.zero_grad()
    model(*batch).square().sum().backward()
    optimizer.step()
    assert fpe.count_nonzero(model) == count


def test_masks_are_pruned_gradually():
    model, batch = built(FILM), batch_of(VECTOR)
    wide = fpe.expand(model, 2, example_inputs=batch)
    budget = fpe.count_nonzero(wide) - 40
    trained(wide, batch, lambda o: fpe.GradualPruner(wide, o, budget=budget, steps=20))
    assert fpe.count_nonzero(wide) == budget


@pytest.mark.parametrize("follow", [FILM, SAME_INPUTS])
def test_packed_blocks_are_rewired_and_pruned(follow):
    model, batch = built(follow), batch_of(VECTOR)
    wide = fpe.expand(model, 2, split="shared", prune="columns", example_inputs=batch)
    packed = fpe.pack(wide, example_inputs=batch)
    count = fpe.count_nonzero(packed)
    schedule = fpe.RewiringSchedule(every=5)
    trained(packed, batch, lambda o: fpe.BlockRewirer(packed, o, steps=20, schedule=schedule))
    assert fpe.count_nonzero(packed) == count
    trained(
        packed, batch, lambda o: fpe.BlockPruner(packed, o, budget=count - 40, steps=20, score="magnitude")
    )
    assert fpe.count_nonzero(packed) <= count - 40
    unpacked = fpe.unpack(packed)
    torch.testing.assert_close(unpacked.eval()(*batch), packed.eval()(*batch))
