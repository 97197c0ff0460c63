"""Splits: children share a neuron's inputs out, disjoint and complete, as each split promises."""

import itertools
import re

import numpy as np
import pytest
import torch
from torch import nn

import fpe
from fpe.errors import ArgumentError
from fpe.expansion import steps as procedure
from fpe.expansion.splits import (
    SPLITS,
    GramSplit,
    LabelSplit,
    RandomSplit,
    SharedSplit,
    TwoFourSplit,
    as_split,
)

NAMES = r"'random', 'shared', 'gram', '2:4', 'shared-N' \(N groups\)"


def assign(split, neurons, inputs, factor, seed=0):
    return split.assign(torch.zeros(neurons, inputs), factor, np.random.default_rng(seed))


def sizes(children, factor):
    """Count the inputs of each child, shape (neurons, factor)."""
    return torch.stack([(children == child).sum(1) for child in range(factor)], dim=1)


def from_child_0(children):
    """Name the child that holds input 0 child 0: with two children this leaves no freedom of names."""
    return (children.long() - children[:, :1].long()) % 2


def chi_square(children, allowed):
    """Return the statistic against "all allowed rows are equally likely"; any other row is an error."""
    counts = dict.fromkeys(allowed, 0)
    for row in children.tolist():
        counts[tuple(row)] += 1
    expected = len(children) / len(allowed)
    return sum((n - expected) ** 2 for n in counts.values()) / expected


@pytest.mark.parametrize("split", [RandomSplit(), SharedSplit()], ids=repr)
@pytest.mark.parametrize(("inputs", "factor"), [(2, 2), (7, 2), (8, 3), (9, 3), (5, 5), (11, 4), (300, 290)])
def test_sizes_of_children_differ_by_at_most_one_and_none_is_empty(split, inputs, factor):
    children = assign(split, 20, inputs, factor)
    assert children.shape == (20, inputs)
    count = sizes(children, factor)
    assert (count.sum(1) == inputs).all()
    assert count.min() == inputs // factor
    assert count.max() == -(-inputs // factor)


@pytest.mark.parametrize(
    ("inputs", "allowed"),
    [
        (4, [row for row in itertools.product((0, 1), repeat=4) if sum(row) == 2]),
        (5, [row for row in itertools.product((0, 1), repeat=5) if sum(row) == 2]),
    ],
)
def test_random_draws_all_balanced_partitions_equally_often(inputs, allowed):
    children = assign(RandomSplit(), 6000, inputs, 2)
    bound = {6: 20.5, 10: 27.9}[len(allowed)]  # 0.1 % of the chi-square law with 5 and 9 degrees of freedom
    assert chi_square(children, allowed) < bound


def test_random_with_one_input_for_each_child_draws_all_orders_equally_often():
    children = assign(RandomSplit(), 6000, 3, 3)
    assert chi_square(children, list(itertools.permutations(range(3)))) < 20.5


def test_random_neurons_draw_their_own_partitions():
    assert len(assign(RandomSplit(), 50, 12, 2).unique(dim=0)) > 25


def test_shared_rows_are_all_equal():
    children = assign(SharedSplit(), 50, 12, 3)
    assert len(children.unique(dim=0)) == 1


def test_each_group_of_a_shared_split_draws_its_own_partition():
    """Six neurons in three groups: two rows of each are equal, and each is balanced."""
    children = assign(SharedSplit(groups=3), 6, 40, 4)
    assert torch.equal(children[::2], children[1::2])
    assert len(children.unique(dim=0)) == 3
    assert (sizes(children, 4) == 10).all()


def test_in_a_layer_of_fewer_neurons_each_is_a_group():
    children = assign(SharedSplit(groups=8), 3, 40, 4)
    assert len(children.unique(dim=0)) == 3
    assert torch.equal(children, assign(SharedSplit(groups=3), 3, 40, 4))


def test_one_group_is_the_shared_split():
    assert SharedSplit(groups=1) == SharedSplit() == SPLITS["shared"]
    assert torch.equal(assign(SharedSplit(groups=1), 5, 12, 3), assign(SharedSplit(), 5, 12, 3))
    assert [repr(SharedSplit()), repr(SharedSplit(groups=4))] == ["SharedSplit()", "SharedSplit(groups=4)"]


def test_groups_are_named():
    assert as_split("shared-8") == SharedSplit(groups=8)
    with pytest.raises(ArgumentError, match="groups is 0"):
        as_split("shared-0")
    with pytest.raises(ArgumentError, match=r"unknown split 'shared-'.*Did you mean 'shared'"):
        as_split("shared-")


@pytest.mark.parametrize("groups", [0, -1, 2.0, True, "4", None])
def test_groups_are_a_number(groups):
    with pytest.raises(ArgumentError, match=f"groups is {groups!r}; give an integer"):
        SharedSplit(groups=groups)


@pytest.mark.parametrize(
    ("neurons", "groups", "cut"), [(6, 4, 3), (20, 8, 5), (7, 4, 1), (8, 8, 8), (3, 8, 3)]
)
def test_groups_are_of_one_size(neurons, groups, cut):
    """The largest number that divides the neurons, and no more than asked for; the plan says which."""
    assert len(assign(SharedSplit(groups), neurons, 40, 4).unique(dim=0)) == cut
    plan = fpe.plan(fpe.mlp(40, neurons, 2), split=SharedSplit(groups))
    assert plan.layers[0].groups == cut
    assert (f"40 inputs, {cut} groups" in str(plan)) == (cut > 1)


def test_shared_draws_all_balanced_partitions_equally_often():
    rng = np.random.default_rng(0)
    rows = torch.cat([SharedSplit().assign(torch.zeros(1, 4), 2, rng) for _ in range(3000)])
    allowed = [row for row in itertools.product((0, 1), repeat=4) if sum(row) == 2]
    assert chi_square(rows, allowed) < 20.5


def test_two_groups_for_two_children_have_only_one_partition():
    children = assign(LabelSplit([7, 7, -1, 7, -1, -1]), 9, 6, 2)
    assert from_child_0(children).tolist() == [[0, 0, 1, 0, 1, 1]] * 9


def test_the_largest_group_stands_alone_when_the_rest_balance_it():
    """Groups of 3, 1, 1 and 1 for two children: whoever comes first, no child has more than 4 inputs."""
    children = assign(LabelSplit([0, 0, 0, 1, 2, 3]), 200, 6, 2)
    assert (children[:, :3] == children[:, :1]).all()
    count = sizes(children, 2)
    assert ((count[:, 0] - count[:, 1]).abs() <= 3).all()
    assert (count > 0).all()


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_groups_keep_labels_together_and_spread_equal_groups_evenly(factor):
    labels = [5, 1, 5, 2, 1, 2, 3, 4, 3, 4, 9, 9]  # six groups of two
    children = assign(LabelSplit(labels), 40, 12, factor)
    for label in set(labels):
        members = children[:, [i for i, other in enumerate(labels) if other == label]]
        assert (members == members[:, :1]).all()
    groups = sizes(children, factor) // 2
    assert groups.min() == 6 // factor
    assert groups.max() == -(-6 // factor)
    assert len(children.unique(dim=0)) > 10


def test_groups_draw_all_balanced_deals_equally_often():
    allowed = [row for row in itertools.product((0, 1), repeat=4) if sum(row) == 2]
    assert chi_square(assign(LabelSplit([0, 1, 2, 3]), 6000, 4, 2), allowed) < 20.5


def test_groups_shared_give_all_neurons_one_partition():
    split = LabelSplit([0, 0, 1, 1, 2, 2, 3, 3], shared=True)
    assert split.shared
    assert len(assign(split, 30, 8, 2).unique(dim=0)) == 1


@pytest.mark.parametrize("make", [list, np.array, torch.tensor, tuple])
def test_groups_take_labels_of_any_kind_and_compare_by_value(make):
    assert LabelSplit(make([0, 1, 1])) == LabelSplit([0, 1, 1])
    assert repr(LabelSplit(make([0, 1, 1]))) == "LabelSplit(2 labels of 3 inputs)"
    assert repr(LabelSplit([0, 1, 1], shared=True)) == "LabelSplit(2 labels of 3 inputs, shared=True)"


@pytest.mark.parametrize("split", [GramSplit(clusters=2), GramSplit(clusters=2, shared=True)], ids=repr)
def test_gram_keeps_obvious_clusters_together(split):
    """Inputs 0, 2, 4 use neuron 0, inputs 1, 3, 5 neuron 1: their Gram rows are two clusters."""
    weight = torch.tensor([[2.0, 0.0, 2.0, 0.1, 2.0, 0.0], [0.0, 3.0, 0.1, 3.0, 0.0, 3.0]])
    children = split.assign(weight, 2, np.random.default_rng(0))
    assert from_child_0(children).tolist() == [[0, 1, 0, 1, 0, 1]] * 2


def test_gram_balances_four_clusters_over_two_children():
    weight = torch.zeros(4, 8)
    for neuron in range(4):
        weight[neuron, 2 * neuron : 2 * neuron + 2] = neuron + 1.0
    children = GramSplit(clusters=4).assign(weight, 2, np.random.default_rng(1))
    assert (children[:, 0::2] == children[:, 1::2]).all()
    assert (sizes(children, 2) == 4).all()


def test_gram_of_a_constant_layer_still_gives_each_child_inputs():
    with pytest.warns(UserWarning, match="1 cluster of inputs, too few for 3") as told:
        children = GramSplit().assign(torch.ones(4, 9), 3, np.random.default_rng(0))
    assert len(told) == 1
    assert (sizes(children, 3) == 3).all()


def test_the_plan_and_the_summary_say_where_gram_found_no_clusters():
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    nn.init.ones_(model[0].weight)
    with pytest.warns(UserWarning, match="layer '0': its Gram matrix") as told:
        wide = fpe.expand(model, 2, split="gram", layers=["0", "2"])
    assert len(told) == 1
    assert [len(layer.notes) for layer in wide.fpe_plan.layers] == [1, 0]
    for shown in (wide.fpe_plan, fpe.summary(model, wide)):
        assert "otherwise than asked:\n  0: its Gram matrix has 1 cluster" in str(shown)


@pytest.mark.parametrize("inputs", [1, 2, 3, 4, 7, 8, 14])
def test_two_four_gives_two_of_each_four_to_each_child(inputs):
    children = assign(TwoFourSplit(), 60, inputs, 2)
    fours = children[:, : inputs // 4 * 4].reshape(60, -1, 4)
    assert (fours.sum(2) == 2).all()
    rest = sizes(children[:, inputs // 4 * 4 :], 2)
    assert ((rest[:, 0] - rest[:, 1]).abs() <= 1).all()


def test_two_four_draws_the_six_ways_equally_often():
    allowed = [row for row in itertools.product((0, 1), repeat=4) if sum(row) == 2]
    assert chi_square(assign(TwoFourSplit(), 6000, 4, 2), allowed) < 20.5


@pytest.mark.parametrize("split", [*SPLITS.values(), LabelSplit([0, 1, 2, 3] * 4)], ids=repr)
def test_the_same_seed_gives_the_same_partition_and_another_one_another(split):
    weight = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    first, again, other = (split.assign(weight, 2, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class Own:
    """A split of the user's own."""

    shared = False

    def __init__(self, children):
        self.children = children

    def __repr__(self):
        return "Own()"

    def problem(self, inputs, factor):
        return None

    def assign(self, weight, factor, rng):
        return self.children


def test_a_split_of_the_users_own_is_used_as_it_is():
    children = torch.tensor([[0, 0, 0, 1], [1, 0, 1, 0]])
    model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    wide = fpe.expand(model, split=Own(children))
    keeps = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 1], [0, 1, 0, 1], [1, 0, 1, 0]])
    assert (wide[0].fpe_mask <= keeps).all()
    assert wide[0].fpe_mask.sum() + wide[2].fpe_mask.sum() == 8 + 2 - 2  # two biases were copied


@pytest.mark.parametrize(
    ("children", "message"),
    [
        (
            torch.zeros(3, dtype=torch.long),
            "returned shape (3,) and type torch.int64; it must return",
        ),
        (
            torch.zeros(2, 4),
            "returned shape (2, 4) and type torch.float32; it must return",
        ),
        (
            torch.tensor([[0, 1, 2, 0], [0, 1, 0, 1]]),
            "split Own() returned children 0 to 2; allowed are 0 to 1.",
        ),
        (
            torch.tensor([[0, 1, -1, 0], [0, 1, 0, 1]]),
            "split Own() returned children -1 to 1; allowed are 0 to 1.",
        ),
    ],
)
def test_what_a_split_of_the_users_own_returns_is_checked(children, message):
    with pytest.raises(ArgumentError) as error:
        procedure.partition(torch.ones(2, 4), 2, Own(children), np.random.default_rng(0))
    assert message in str(error.value)


@pytest.mark.parametrize("children", [None, [[0, 1, 0, 1]] * 2, np.zeros((2, 4), int)], ids=type)
def test_a_split_that_returns_no_tensor_is_refused(children):
    with pytest.raises(ArgumentError, match=r"split Own\(\) returned .* must return"):
        procedure.partition(torch.ones(2, 4), 2, Own(children), np.random.default_rng(0))


@pytest.mark.parametrize("name", SPLITS)
def test_as_split_knows_each_name_and_passes_objects_through(name):
    assert as_split(name) is SPLITS[name]
    assert as_split(SPLITS[name]) is SPLITS[name]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("randm", f"unknown split 'randm'; allowed are {NAMES} .* Did you mean 'random'"),
        ("Shard", f"unknown split 'Shard'; allowed are {NAMES} .* Did you mean 'shared'"),
        ("zzz", f"unknown split 'zzz'; allowed are {NAMES} and fpe.LabelSplit.labels..$"),
        (3, f"split is 3; give one of {NAMES}"),
        (None, f"split is None; give one of {NAMES}"),
        (RandomSplit, "split is <class .*RandomSplit'>; give one of"),
    ],
)
def test_as_split_says_what_is_allowed(split, message):
    with pytest.raises(ArgumentError, match=message):
        as_split(split)


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        ([[0, 1], [1, 0]], "shape (2, 2) and type int64"),
        ([0.5, 1.0], "shape (2,) and type float64"),
        ([], "shape (0,) and type float64"),
        ([True, False], "shape (2,) and type bool"),
        (3, "shape () and type int64"),
    ],
)
def test_groups_refuse_labels_that_are_no_flat_list_of_integers(labels, what):
    with pytest.raises(ArgumentError, match=re.escape(f"labels have {what}")):
        LabelSplit(labels)


@pytest.mark.parametrize(
    ("split", "inputs", "factor", "problem"),
    [
        (RandomSplit(), 2, 2, None),
        (SharedSplit(), 2, 2, None),
        (TwoFourSplit(), 3, 2, None),
        (TwoFourSplit(), 8, 3, "split '2:4' needs factor 2, not 3"),
        (LabelSplit([0, 1]), 2, 2, None),
        (
            LabelSplit([0, 1, 2]),
            4,
            2,
            "3 labels, but the layer has 4 inputs",
        ),
        (
            LabelSplit([0, 0, 1, 1]),
            4,
            3,
            "2 different labels, too few for 3 children",
        ),
        (GramSplit(), 4, 4, None),
        (GramSplit(clusters=3), 4, 3, None),
        (
            GramSplit(clusters=5),
            4,
            2,
            "GramSplit asks for 5 clusters; allowed are 2 ",
        ),
        (
            GramSplit(clusters=2),
            8,
            3,
            "GramSplit asks for 2 clusters; allowed are 3 ",
        ),
    ],
)
def test_splits_say_which_layers_they_cannot_split(split, inputs, factor, problem):
    found = split.problem(inputs, factor)
    assert found is None if problem is None else problem in found
