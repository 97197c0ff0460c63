"""Models that are built in a way of their own: found, right by the oracle, trained, saved, packed."""

import copy
import functools
import warnings

import pytest
import torch

import foreign_gates  # noqa: F401  (registers its models)
import foreign_modulated  # noqa: F401
import fpe
from foreign import FOREIGN
from models import same_values
from oracle import copied, double, without_chance
from untouched import untouched
from zoo import answer


@functools.cache
def expanded(name):
    """Return a model with its batch and its expansion by 2, made once; tests must not change it."""
    model, batch = FOREIGN[name][0]()
    with untouched(model, batch):
        wide = fpe.expand(model, 2, example_inputs=batch, seed=3)
    return model, batch, wide


@pytest.mark.parametrize("name", FOREIGN)
def test_the_hidden_layers_are_found_and_counted_exactly(name):
    model, batch, wide = expanded(name)
    found = [n for layer in wide.fpe_plan.layers for n in layer.group.producers]
    assert sorted(found) == sorted(FOREIGN[name][1])
    assert answer(wide, batch).shape == answer(model, batch).shape
    for layer in wide.fpe_plan.layers:
        assert layer.neurons_after == 2 * layer.neurons
        for producer in layer.group.producers:
            rows = len(wide.get_submodule(producer).fpe_mask)
            assert rows == layer.group.parts_of(producer) * layer.neurons_after
    again = fpe.expand(wide, 2, example_inputs=batch, seed=4)
    for each in (wide, again):
        dense = sum(p.numel() for p in model.parameters())
        assert sum(int(p.count_nonzero()) for p in each.parameters()) <= dense
        assert fpe.count_nonzero(each) == fpe.count_nonzero(model) == dense


@pytest.mark.parametrize("name", FOREIGN)
def test_whole_copies_of_all_neurons_compute_what_the_dense_network_does(name):
    model, batch = FOREIGN[name][0]()
    groups = [layer.group for layer in expanded(name)[2].fpe_plan.layers]
    model, batch = double(without_chance(model), batch)
    for factor in (2, 3):
        wide = copied(model, [vars(group) for group in groups], factor)
        assert sum(p.numel() for p in wide.parameters()) > sum(p.numel() for p in model.parameters())
        for training in (False, True):
            dense = answer(copy.deepcopy(model).train(training), batch)
            assert dense.abs().max() > 1e-3
            # What a model casts to single precision by itself is rounded there.
            found = answer(wide.train(training), batch)
            torch.testing.assert_close(found, dense, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FOREIGN)
def test_it_is_trained_saved_loaded_and_packed(name, tmp_path):
    model, batch, wide = expanded(name)
    wide = copy.deepcopy(wide).train()
    before = {n: p.detach().clone() for n, p in wide.named_parameters()}
    optimizer = torch.optim.AdamW(wide.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        answer(wide, batch).square().mean().backward()
        optimizer.step()
    masked = {n: m for n, m in wide.named_modules() if isinstance(m, fpe.MaskedLayer)}
    for n, module in masked.items():
        assert (module.weight[module.fpe_mask == 0] == 0).all()
        assert torch.equal(module.weight, before[f"{n}.weight"]) is not bool(module.fpe_mask.any())
    wide.eval()
    file = tmp_path / "wide.safetensors"
    fpe.save(wide, file)
    again = fpe.load(file, like=model)
    assert same_values(again, wide)
    assert again.fpe_plan == wide.fpe_plan
    assert torch.equal(answer(again.eval(), batch), answer(wide, batch))
    for own in (wide, again):
        packed = fpe.pack(own, example_inputs=batch)
        torch.testing.assert_close(answer(packed.eval(), batch), answer(wide, batch), rtol=1e-4, atol=1e-5)
    assert same_values(fpe.unpack(packed), wide)


@pytest.mark.parametrize("prune", ["columns", "children"])
@pytest.mark.parametrize("name", FOREIGN)
def test_dense_blocks_keep_the_count_and_are_packed(name, prune):
    model, batch, _ = expanded(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # children may leave single weights over
            wide = fpe.expand(model, 2, split="shared", prune=prune, example_inputs=batch)
    except fpe.errors.BudgetError:
        assert prune == "columns"  # the consumers are too large
        return
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    wide.eval()
    packed = fpe.pack(wide, example_inputs=batch).eval()
    torch.testing.assert_close(answer(packed, batch), answer(wide, batch), rtol=1e-4, atol=1e-5)
    assert same_values(fpe.unpack(packed), wide)
