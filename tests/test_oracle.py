"""The groups that fpe finds are right by an oracle that knows nothing of fpe: whole copies of all neurons."""

import copy

import pytest
import torch
from torch import nn

from oracle import copied, double, without_chance
from test_zoo import EXPANDED
from zoo import ZOO, answer, expanded


@pytest.mark.parametrize("name", EXPANDED)
def test_whole_copies_of_all_neurons_compute_what_the_dense_network_does(name):
    model, batch = ZOO[name]()
    groups = [layer.group for layer in expanded(name)[2].fpe_plan.layers]
    assert all(len({k for k in own if k > 0}) == 1 for group in groups for own in group.input_layouts)
    named = [vars(group) for group in groups]
    model, batch = double(without_chance(model), batch)
    for factor in (2, 3):
        wide = copied(model, named, factor)
        assert sum(p.numel() for p in wide.parameters()) > sum(p.numel() for p in model.parameters())
        for training in (False, True):
            dense = answer(copy.deepcopy(model).train(training), batch)
            assert dense.abs().max() > 1e-3
            # What a model casts to single precision by itself is rounded there.
            found = answer(wide.train(training), batch)
            torch.testing.assert_close(found, dense, rtol=1e-5, atol=1e-6)


def test_the_oracle_tells_a_wrong_group():
    model, x = nn.Sequential(nn.Linear(8, 6), nn.Softmax(-1), nn.Linear(6, 2)), torch.randn(4, 8)
    wide = copied(model, [{"producers": ("0",), "consumers": ("2",), "between": ()}], 2)
    assert not torch.allclose(wide(x), model(x), rtol=1e-2)
