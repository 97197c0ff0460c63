"""Experts whose weights are stacked in one parameter are expanded like MLPs, each with masks of its own."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from torch import nn

import fpe
from experts import DECODERS, WRITTEN
from fpe.errors import BudgetError, ModelError
from fpe.graph import find_groups, verify
from oracle import copied, double, without_chance
from zoo import answer

#: Of each model, how its experts are computed; None for its own way.
CASES = [(name, how) for name in DECODERS for how in ("eager", "grouped_mm", "batched_mm")]
CASES = [case for case in CASES if case[0] != "Llama 4"] + [(name, None) for name in ("Llama 4", *WRITTEN)]


@functools.cache
def built(name, how):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, batch = (DECODERS | WRITTEN)[name]()
    if how is not None:
        model.set_experts_implementation(how)
    for module in model.modules():
        for key, own in module.named_parameters(recurse=False):
            if own.dim() == 3 or key.endswith("_bias"):
                nn.init.normal_(own, std=0.3, generator=torch.Generator().manual_seed(own.numel()))
    return model.eval(), batch


def of_experts(groups):
    return [group for group in groups if ".stacked." in group.name and ".stacked." in group.consumers[0]]


@functools.cache
def groups_of(name, how):
    return of_experts(find_groups(*built(name, how)).groups)


@functools.cache
def expanded(name, how):
    model, batch = built(name, how)
    names = [group.name for group in groups_of(name, how)]
    return fpe.expand(model, layers=names, example_inputs=batch, seed=1)


@pytest.mark.parametrize(("name", "how"), CASES)
def test_the_experts_are_found_and_verified_and_whole_copies_compute_the_same(name, how):
    model, batch = built(name, how)
    before = [(n, p) for n, p in model.named_parameters()]
    groups = groups_of(name, how)
    assert len(groups) == (1 if name in (*WRITTEN, "DeepSeek-V3") else 2)
    verify(model, groups, batch)
    assert all(a == b and p is q for (a, p), (b, q) in zip(before, model.named_parameters(), strict=True))
    finer, call = without_chance(copy.deepcopy(model)), batch
    if how != "grouped_mm":  # which runs in single precision only
        finer, call = double(finer, batch)
    for factor in (2, 3):
        wide = copied(finer, [vars(group) for group in groups], factor)
        assert sum(p.numel() for p in wide.parameters()) > sum(p.numel() for p in model.parameters())
        for training in (False, True):
            dense = answer(copy.deepcopy(finer).train(training), call)
            assert dense.abs().max() > 1e-3
            torch.testing.assert_close(answer(wide.train(training), call), dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "how"), CASES)
def test_the_count_is_kept_and_masks_hold_while_trained(name, how):
    model, batch = built(name, how)
    wide = copy.deepcopy(expanded(name, how)).train()
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    for group in groups_of(name, how):
        producer, consumer = (wide.get_submodule(n) for n in (group.producers[0], group.consumers[0]))
        free = producer.oriented(producer.fpe_mask)  # (outputs, inputs, experts)
        children = free.unflatten(0, (group.parts, -1, 2)).amax(0)  # (neurons, children, inputs, experts)
        assert consumer.oriented(consumer.weight).shape[1] == 2 * len(children)
        assert bool((children.sum(1) <= 1).all())  # children share the inputs, of gate and up alike
        assert not torch.equal(children[..., 0], children[..., 1])  # each expert has its own partition
    optimizer = torch.optim.Adam(wide.parameters(), lr=1e-2)
    before = [p.detach().clone() for p in wide.parameters()]
    for _ in range(10):
        optimizer.zero_grad()
        answer(wide, batch).square().mean().backward()
        optimizer.step()
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    assert fpe.project_(wide) == 0
    assert any(not torch.equal(a, b) for a, b in zip(before, wide.parameters(), strict=True))


@pytest.mark.parametrize(("name", "how"), [c for c in CASES if c[1] in (None, "eager")])
def test_it_is_saved_and_loaded_copied_and_pickled(name, how, tmp_path):
    model, batch = built(name, how)
    wide = expanded(name, how)
    fpe.save(wide, tmp_path / "wide.safetensors")
    again = fpe.load(tmp_path / "wide.safetensors", like=model)
    expected = answer(wide, batch)
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in wide.named_parameters()]
    assert torch.equal(answer(again.eval(), batch), expected)
    assert torch.equal(answer(copy.deepcopy(wide), batch), expected)
    assert fpe.count_nonzero(again) == fpe.count_nonzero(model)
    layers = {n: m for n, m in wide.named_modules() if hasattr(m, "stacked")}
    for layer in layers.values():
        own = pickle.loads(pickle.dumps(layer))
        assert all(torch.equal(a, b) for a, b in zip(own.buffers(), layer.buffers(), strict=True))
        assert repr(own) == repr(layer)
    assert "MaskedStackedLinear" in str(fpe.summary(model, wide))


CASE = ("loop over those hit", None)  # transposed, gate and up in turn, with biases


@pytest.mark.parametrize("moments", ["fresh", "kept"])
def test_experts_are_expanded_in_place_with_their_optimizer(moments):
    model, batch = copy.deepcopy(built(*CASE)[0]), built(*CASE)[1]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    answer(model, batch).square().mean().backward()
    optimizer.step()
    count, old = fpe.count_nonzero(model), optimizer.state[model[1].w1]["exp_avg"].clone()
    plan = fpe.expand_(model, optimizer=optimizer, moments=moments, layers=["1"], example_inputs=batch)
    assert [layer.group.name for layer in plan.layers] == ["1.stacked.w1"]
    assert fpe.count_nonzero(model) == count
    layer = model[1].stacked.w1
    if moments == "kept":  # of gate and up of each neuron, for both of its children
        kept = optimizer.state[layer.weight]["exp_avg"].unflatten(2, (6, 2, 2))
        whole = old.unflatten(2, (6, 1, 2)).expand_as(kept) * layer.fpe_mask.unflatten(2, (6, 2, 2))
        assert torch.equal(kept, whole)
    for _ in range(3):
        answer(model, batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert fpe.count_nonzero(model) == count


def test_a_failure_in_place_leaves_the_parameters_where_they_were(monkeypatch):
    model, batch = copy.deepcopy(built(*CASE)[0]), built(*CASE)[1]
    parameters = list(model.named_parameters())

    def failing(*_, **__):
        raise RuntimeError("on purpose")

    monkeypatch.setattr("fpe.expansion.inplace.check_wide", failing)
    with pytest.raises(RuntimeError, match="on purpose"):
        fpe.expand_(model, layers=["1"], example_inputs=batch)
    after = list(model.named_parameters())
    assert all(a == b and p is q for (a, p), (b, q) in zip(parameters, after, strict=True))


def test_the_layers_have_the_names_of_their_module_and_parameter_too():
    model, batch = built("Mixtral", "grouped_mm")
    for names in ("*.experts", "*.experts.gate_up_proj", "*.stacked.gate_up_proj"):
        plan = fpe.plan(model, layers=names, example_inputs=batch)
        assert len(plan.layers) == 2
    assert "4,608 of 6,784 (68%)" in str(plan)


def test_a_plan_is_applied_later_and_to_an_equal_model():
    model, batch = built(*CASE)
    plan = fpe.plan(model, layers=["1"], example_inputs=batch)
    wide, other = fpe.expand(model, plan=plan), fpe.expand(copy.deepcopy(model), plan=plan)
    assert torch.equal(wide[1].stacked.w1.weight, other[1].stacked.w1.weight)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)


def test_expanded_experts_are_expanded_again():
    model, batch = built(*CASE)
    wide = fpe.expand(model, layers=["1"], example_inputs=batch)
    again = fpe.expand(wide, layers=["1"], example_inputs=batch)
    assert fpe.count_nonzero(again) == fpe.count_nonzero(model)
    assert again[1].stacked.w1.weight.shape == (3, 8, 48)


@pytest.mark.parametrize(("name", "how"), CASES)
def test_they_are_packed_to_values_and_bits_and_stored(name, how, tmp_path):
    model, batch = built(name, how)
    wide = expanded(name, how)
    packed = fpe.pack(wide, example_inputs=batch).eval()
    rows = [row for row in packed.fpe_packing.rows if ".stacked." in row.name]
    assert len(rows) == 2 * len(groups_of(name, how))
    assert {row.format for row in rows} == {"bitmask"}
    assert all(row.bytes[2] <= 1.12 * row.bytes[0] for row in rows)
    assert fpe.count_nonzero(packed) == fpe.count_nonzero(model)
    expected = answer(copy.deepcopy(wide).eval(), batch)
    fpe.save(packed, tmp_path / "m.safetensors")
    loaded = fpe.load(tmp_path / "m.safetensors", like=model).eval()
    for own in (packed, loaded, pickle.loads(pickle.dumps(loaded))):
        torch.testing.assert_close(answer(own, batch), expected)  # without gradients: expert by expert
        with torch.enable_grad():
            torch.testing.assert_close(answer(own, batch), expected)
    back = fpe.unpack(loaded).state_dict()
    assert all(torch.equal(tensor, back[key]) for key, tensor in wide.state_dict().items())


def test_other_layers_are_packed_as_asked_for_and_experts_as_they_can_be():
    model, batch = built("batched products", None)
    wide = fpe.expand(model, layers=["0", "1.stacked.w1"], example_inputs=batch)
    packed = fpe.pack(wide, format="sparse", example_inputs=batch)
    formats = {row.name: row.format for row in packed.fpe_packing.rows}
    stacked = dict.fromkeys(["1.stacked.w1", "1.stacked.w2"], "bitmask")
    assert formats == {"0": "sparse", "1.router": "sparse", **stacked}
    with pytest.raises(ModelError, match="w1' is experts stacked in one parameter, which is packed"):
        fpe.pack(wide, format={"1.stacked.w1": "codes"})


def test_prunings_of_columns_are_for_single_layers():
    model, batch = built("loop over all", None)
    with pytest.raises(BudgetError, match="stacked in one parameter"):
        fpe.plan(model, layers=["1.w1"], split="shared", prune="columns", example_inputs=batch)


def test_a_compiled_model_computes_the_same_and_its_masks_hold():
    model, batch = built("gathered by token", None)
    wide = fpe.expand(model, layers=["1.w1"], example_inputs=batch)
    compiled = torch.compile(wide)
    torch.testing.assert_close(compiled(batch), wide(batch))
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.1)
    compiled(batch).square().mean().backward()
    optimizer.step()
    assert fpe.project_(wide) == 0


def test_masks_of_experts_are_rewired():
    model, batch = built(*CASE)
    wide = fpe.expand(model, layers=["1"], example_inputs=batch).train()
    before = wide[1].stacked.w1.fpe_mask.clone()
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.01)
    rewirer = fpe.Rewirer(wide, optimizer, steps=40, schedule=fpe.RewiringSchedule(every=2))
    for _ in range(12):
        optimizer.zero_grad()
        answer(wide, batch).square().mean().backward()
        optimizer.step()
        rewirer.step()
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    assert not torch.equal(before, wide[1].stacked.w1.fpe_mask)
