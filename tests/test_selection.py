"""Which groups are expanded: those given by hand, by name and by pattern, together."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fpe
from fpe import NeuronGroup
from fpe.errors import ArgumentError, ModelError


class Net(nn.Module):
    """Two hidden layers, then a gated one; `fixed` has its width written down in the forward pass."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 5)
        self.gate, self.up, self.head = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))
        return self.head(F.silu(self.gate(h)) * self.up(h))


X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
B = NeuronGroup("b", "c")


def planned(layers, **more):
    plan = fpe.plan(Net(), layers=layers, example_inputs=X, **more)
    return {layer.group: layer.factor for layer in plan.layers}, plan


@pytest.mark.parametrize("layers", [["*", B], [B, "*"], ["b", B], [B, "b", "?"]])
def test_a_group_given_by_hand_is_taken_instead_of_what_a_pattern_finds(layers):
    """It has layouts, so that it can be told from the group that is found."""
    by_hand = NeuronGroup("b", "c", input_layouts=((1,),))
    chosen, _ = planned([by_hand if entry is B else entry for entry in layers])
    assert [group for group in chosen if group.producers == ("b",)] == [by_hand]


def test_a_wrong_group_given_by_hand_is_refused_even_if_a_pattern_finds_the_right_one():
    with pytest.raises(ModelError, match="the neurons of 'a' cannot be expanded"):
        planned(["*", NeuronGroup("a", "c")])


def test_groups_stay_in_the_order_of_the_forward_pass():
    chosen, _ = planned(["c", "gate", B, "a"])
    assert [group.name for group in chosen] == ["a", "b", "c", "gate"]


def test_a_mapping_gives_each_group_a_factor_of_its_own():
    chosen, _ = planned({"*": 2, B: 3, "c": 4})
    assert {group.name: factor for group, factor in chosen.items()} == {"a": 2, "b": 3, "c": 4, "gate": 2}
    assert planned({B: 2, "b": 2})[0] == {B: 2}


def test_a_gated_pair_given_by_hand_replaces_the_pair_and_a_part_of_it_is_not_completed():
    pair = NeuronGroup(("up", "gate"), "head")
    assert planned({"gate": 3, pair: 3})[0] == {pair: 3}
    with pytest.raises(ModelError, match="the neurons of 'gate' cannot be expanded"):
        planned(["up", NeuronGroup("gate", "head")])


@pytest.mark.parametrize(
    ("layers", "both"),
    [
        (
            [B, NeuronGroup("b", "c", input_layouts=((1,),))],
            ["NeuronGroup(producers=('b',)", "input_layouts=((1,),)"],
        ),
        ({B: 2, "b": 3}, ["factor 3 by its name", "2 by the group of 'b'"]),
        ({NeuronGroup(("gate", "up"), "head"): 2, "up": 3}, ["'up' has factor 3", "the group of 'gate'"]),
    ],
)
def test_contradictions_are_refused_by_the_names_of_both(layers, both):
    with pytest.raises(ArgumentError) as error:
        planned(layers)
    assert all(part in str(error.value) for part in both)


def test_a_factor_of_a_group_is_checked_as_that_of_a_name():
    with pytest.raises(ArgumentError, match="factor is 0"):
        planned({B: 0})


def test_a_layer_that_cannot_be_followed_may_be_named_beside_the_group_that_gives_it():
    class Hidden(Net):
        def forward(self, x):
            h = F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))
            return self.head(F.silu(self.gate(h)) * self.up(h)) if h.sum() > -1 else h

    model, given = Hidden(), NeuronGroup("a", "b")
    plan = fpe.plan(model, layers=["a", given], example_inputs=X)
    assert [layer.group for layer in plan.layers] == [given]
    assert "a" not in {skip.name for skip in plan.skipped}


class Chain(nn.Module):
    """Linear layers, the first with its width written down."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(layers)])
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        for layer in self.layers:
            x = F.relu(layer(x)).view(-1, 8) if layer is self.layers[0] else F.relu(layer(x))
        return self.head(x)


@pytest.mark.parametrize(("layers", "expanded"), [(2, ["1"]), (3, ["2"]), (4, ["2"]), (5, ["2", "4"])])
def test_a_consumer_of_a_layer_that_is_left_out_is_expanded_if_it_stands_before_no_other(layers, expanded):
    model = Chain(layers)
    plan = fpe.plan(model, example_inputs=torch.randn(4, 8))
    assert [layer.group.name for layer in plan.layers] == [f"layers.{n}" for n in expanded]
    reasons = {skip.name: skip.reason for skip in plan.skipped}
    assert "written down" in reasons["layers.0"]
    if layers > 2:
        assert "it is consumed by 'layers.2', which is expanded" in reasons["layers.1"]
    wide = fpe.expand(model, plan=plan)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    named = fpe.plan(model, layers=["layers.1"], example_inputs=torch.randn(4, 8))
    assert [layer.group.name for layer in named.layers] == ["layers.1"]


def test_a_consumer_of_a_layer_without_enough_to_prune_is_expanded_instead():
    sizes = (4, 4, 64, 8, 8, 2)
    layers = [layer for i, o in itertools.pairwise(sizes) for layer in (nn.Linear(i, o), nn.ReLU())]
    plan = fpe.plan(nn.Sequential(*layers), split="shared", prune="columns")
    reasons = {skip.name: skip.reason for skip in plan.skipped}
    assert "can prune only" in reasons["0"]
    assert [layer.group.name for layer in plan.layers] == ["4"]
    assert "it is consumed by '4'" in reasons["2"]
