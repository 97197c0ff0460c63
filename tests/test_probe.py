"""A copy of a model with random weights shows what its neurons do; equal layers share them."""

import pytest
import torch
from torch import nn

import fpe
from fpe.errors import ModelError
from fpe.graph import NeuronGroup, find_groups, verify
from fpe.graph.copies import repeatable
from fpe.graph.inputs import as_call
from fpe.graph.probe import Probe


class Layer(nn.Module):
    """Attention-free layer of a transformer."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return x + self.dropout(self.down(nn.functional.gelu(self.up(self.norm(x)))))


class Deep(nn.Sequential):
    def __init__(self, depth, dropout=0.0):
        super().__init__(*(Layer(dropout) for _ in range(depth)), nn.Linear(8, 3))


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def test_equal_layers_share_their_random_weights_and_no_others():
    model = Deep(5)
    groups = find_groups(model, X).groups
    probe = Probe(model, groups, as_call(X), True)
    ups = {layer.up.weight.data_ptr() for layer in list(probe.copy)[:-1]}
    downs = {layer.down.weight.data_ptr() for layer in list(probe.copy)[:-1]}
    assert (len(ups), len(downs)) == (1, 1)
    assert not ups & downs
    assert all(layer.up.weight.std() > 0.1 for layer in list(probe.copy)[:-1])
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in probe.copy.parameters()}


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_a_large_table_takes_the_memory_of_one_sequence(max_norm):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.body = nn.Embedding(130_000, 8, max_norm=max_norm), Deep(2)

        def forward(self, ids):
            return self.body(self.table(ids)) @ self.table.weight[:5, :3].T

    model, ids = Words(), torch.arange(0, 130_000, 9_999)
    probe = Probe(model, find_groups(model, ids).groups, as_call(ids), True)
    table = probe.copy.table.weight
    assert table.shape == (130_000, 8)
    size = table.untyped_storage().nbytes()
    assert size >= 8 * table.numel() if max_norm else size == 8 * (7 * 130_000 + 8)
    assert torch.linalg.matrix_rank(table[:50]) == 8
    assert len(fpe.plan(model, example_inputs=ids).layers) == 2


def test_outputs_have_size_one_and_stay_the_same():
    probe = Probe(Deep(30), (), as_call(X), True)
    again = probe.outputs({}, False)
    torch.testing.assert_close(again, probe.whole[False], rtol=0, atol=0)
    assert sorted(probe.sizes) == sorted(n for n, m in probe.copy.named_modules() if isinstance(m, nn.Linear))
    assert abs(float(again[0].square().mean().sqrt()) - 1) < 1e-9


def test_a_run_does_not_change_what_the_next_one_computes():
    probe = Probe(Deep(2), (), as_call(X), True)
    wide = {"0.up": nn.Linear(8, 12, dtype=torch.float64)}
    first, second = (probe.outputs({}, False, instead=wide) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(probe.outputs({}, False), probe.whole[False], rtol=0, atol=0)


def test_consumers_of_equal_layers_that_are_mistaken_for_each_other_are_found():
    model = Deep(2)
    right = [NeuronGroup(f"{i}.up", (f"{i}.down",)) for i in range(2)]
    verify(model, right, X)
    with pytest.raises(ModelError, match=r"'0.up' cannot be expanded"):
        verify(model, [NeuronGroup("0.up", ("1.down",)), NeuronGroup("1.up", ("0.down",))], X)


def test_a_run_does_not_change_the_state_of_modules_that_are_put_in():
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    probe = Probe(model, (), as_call(X), True)
    wide = {"1": nn.BatchNorm1d(4, dtype=torch.float64)}
    first = probe.outputs({}, False, instead=wide)
    probe.outputs({}, True, instead=wide)
    torch.testing.assert_close(probe.outputs({}, False, instead=wide), first, rtol=0, atol=0)


class Attention(nn.Module):
    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.3 if self.training else 0.0)


class Drawn(nn.Module):
    """Draws its own mask."""

    def forward(self, x):
        kept = torch.empty_like(x).bernoulli_(0.8) if self.training else torch.full_like(x, 0.8)
        return x * kept / 0.8


@pytest.mark.parametrize("module", [nn.Dropout(0.4), nn.Dropout1d(0.4), Attention(), Drawn()])
def test_training_computes_what_evaluation_does_while_nothing_is_dropped(module):
    x = torch.randn(2, 3, 4, 8)[0]
    found = []
    for training in (True, False):
        with repeatable(module, training):
            found.append(module(x))
    torch.testing.assert_close(*found)
