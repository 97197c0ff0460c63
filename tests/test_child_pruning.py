"""Child pruning: the least children are not created, and the layers that consume them stay dense."""

import itertools
import json
import warnings

import pytest
import torch
from torch import nn

import fpe
from fpe.errors import ArgumentError, BudgetError, ModelError
from fpe.expansion.pruning import ChildPruning
from fpe.rewiring.policies import POLICIES
from fpe.rewiring.sites import find_sites

# Four children, two of each block. Their mean squares are 3, 2, 1 and 6.
SQUARES = torch.tensor([12.0, 8, 4, 30])
ENTRIES = torch.tensor([4, 4, 4, 5])
BLOCKS = torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("count", "dropped"), [(0, []), (7, []), (8, [1, 2]), (16, [1, 2]), (17, [0, 1, 2, 3])]
)
def test_equally_many_children_of_each_block_are_dropped_the_least_mean_squares_first(count, dropped):
    """One of each block has 4 + 4 parameters, the other two 4 + 5."""
    assert ChildPruning().dropped_children(SQUARES, ENTRIES, BLOCKS, count).tolist() == dropped


def large_reader(seed=1):
    return fpe.mlp(12, 16, 30, seed=seed)


def of_origin(wide):
    """Return the children's weights and their consumers', by what the plan says of them."""
    (layer,) = wide.fpe_plan.layers
    index_map = wide[0].fpe_neurons
    assert layer.neurons_after == len(index_map.parent) == layer.neurons * layer.factor - len(layer.dropped)
    return layer, index_map


@pytest.mark.parametrize(
    ("split", "sizes"),
    [
        *(
            ("shared", sizes)
            for sizes in ((12, 16, 12), (40, 64, 40), (48, 24, 96), (30, 40, 77), (64, 8, 2))
        ),
        *(("shared-4", sizes) for sizes in ((64, 128, 64), (48, 200, 300), (64, 8, 2))),
    ],
)
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_the_count_is_kept_consumers_stay_dense_and_blocks_are_of_one_size(sizes, factor, split):
    model = fpe.mlp(*sizes, seed=1)
    planned = fpe.plan(model, factor, split=split, prune="children", seed=2)
    wide = fpe.expand(model, factor, split=split, prune="children", seed=2)
    layer, index_map = of_origin(wide)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model) == planned.nonzero
    assert planned.layers[0].neurons_after == wide[0].out_features == layer.neurons_after
    assert bool(wide[2].fpe_mask.all())
    block = index_map.parent * layer.groups // layer.neurons * factor + index_map.child
    assert block.bincount().unique().numel() == 1
    assert model[0].out_features <= wide[0].out_features <= factor * model[0].out_features
    assert torch.equal(wide[0].bias, model[0].bias[index_map.parent])
    assert torch.equal(wide[2].weight, model[2].weight[:, index_map.parent])


def test_what_stays_unpaid_is_less_than_one_child_of_each_block_and_goes_from_their_columns():
    model = large_reader()
    wide = fpe.expand(model, 2, split="shared", prune="children", seed=2)
    layer, _ = of_origin(wide)
    # 16 × 31 copies; two children have the 12 inputs between them, and 31 each.
    assert len(layer.dropped) == 16 * 31 // (12 + 2 * 31) * 2 == 12
    rest = 16 * 31 - 6 * (12 + 2 * 31)
    assert int(wide[0].fpe_mask.sum()) == len(wide[0].fpe_mask) // 2 * 12 - rest


def test_children_with_small_incoming_and_outgoing_weights_are_dropped():
    model = large_reader()
    with torch.no_grad():
        model[0].weight[:4] *= 0.01
        model[2].weight[:, :4] *= 0.01
    wide = fpe.expand(model, 2, split="shared", prune="children", seed=2)
    assert {child // 2 for child in wide.fpe_plan.layers[0].dropped} >= {0, 1, 2, 3}


def test_with_a_small_head_no_child_is_dropped_and_columns_are_pruned():
    model = fpe.mlp(64, 16, 3, seed=1)
    wide = fpe.expand(model, 2, split="shared-2", prune="children", seed=2)
    columns = fpe.expand(model, 2, split="shared-2", prune="columns", seed=2)
    assert wide.fpe_plan.layers[0].dropped == ()
    assert torch.equal(wide[0].fpe_mask, columns[0].fpe_mask)


@pytest.mark.parametrize("split", ["shared", "shared-2"])
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("sizes", list(itertools.product((3, 4, 6), (2, 4), (1, 3, 9))))
def test_where_single_weights_are_pruned_the_plan_and_all_others_say_so(sizes, factor, split):
    """Consumers are dense just where nothing is said; a warning names the layer, and the user's line."""
    model = fpe.mlp(*sizes, seed=1)
    planned = fpe.plan(model, factor, split=split, prune="children", seed=2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        wide = fpe.expand(model, factor, split=split, prune="children", seed=2)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    (layer,) = wide.fpe_plan.layers
    assert layer.notes == planned.layers[0].notes
    assert bool(layer.notes) is not bool(wide[2].fpe_mask.all())
    assert [(one.filename, "'0'" in str(one.message)) for one in told] == [(__file__, True)] * len(
        layer.notes
    )
    for shown in (planned, wide.fpe_plan, fpe.summary(model, wide)):
        assert ("single weights" in str(shown)) is bool(layer.notes)
    assert fpe.expansion.plan.Plan.from_dict(json.loads(json.dumps(wide.fpe_plan.to_dict()))) == wide.fpe_plan


def test_single_weights_are_pruned_where_columns_are_too_few_and_a_warning_says_so():
    masks = [torch.ones(2, 2), torch.ones(3, 2)]
    with pytest.warns(UserWarning, match="single weights"):
        ChildPruning().prune_([torch.ones(2, 2), torch.ones(3, 2)], masks, 5, 2)
    assert [int(mask.sum()) for mask in masks] == [0, 5]
    with pytest.raises(BudgetError):
        ChildPruning().prune_([torch.ones(2, 2), torch.ones(3, 2)], masks, 6, 2)


@pytest.mark.parametrize("split", ["shared", "shared-4"])
def test_it_packs_into_blocks_and_a_dense_consumer_and_back(split):
    model = fpe.mlp(64, 128, 64, seed=1)
    wide = fpe.expand(model, 2, split=split, prune="children", seed=2)
    packed, x = fpe.pack(wide), torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(packed(x), wide(x), rtol=1e-5, atol=1e-6)
    assert [row.format for row in packed.fpe_packing.rows] == ["blocks", "dense"]
    assert type(packed[2]) is nn.Linear
    assert sum(p.nbytes for p in packed.parameters()) <= 1.02 * sum(p.nbytes for p in model.parameters())
    again = fpe.unpack(packed)
    for name, tensor in wide.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_layers_that_read_each_other_are_narrowed_one_after_the_other():
    hidden = [
        nn.Linear(32, 48),
        nn.BatchNorm1d(48),
        nn.ReLU(),
        nn.Linear(48, 48),
        nn.LayerNorm(48),
        nn.ReLU(),
    ]
    model = nn.Sequential(*hidden, nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 5))
    how = {"layers": ["0", "3"], "example_inputs": torch.randn(4, 32), "seed": 0}
    planned = fpe.plan(model, 2, split="shared", prune="children", **how)
    wide = fpe.expand(model, 2, split="shared", prune="children", **how)
    first, second = wide.fpe_plan.layers
    assert second.inputs == first.neurons_after == wide[3].in_features
    assert planned.layers[0].neurons_after == first.neurons_after == wide[1].num_features
    assert planned.layers[1].neurons_after == second.neurons_after == wide[4].normalized_shape[0]
    assert second.neurons_after == wide[6].in_features
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    packed, x = fpe.pack(wide.eval()), torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(packed(x), wide(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("convolutions", ["channels", "taps"])
def test_convolutions_lose_whole_children(convolutions):
    model = nn.Sequential(nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3))
    x = torch.randn(2, 8, 7, 7, generator=torch.Generator().manual_seed(0))
    how = {"layers": ["0"], "example_inputs": x, "convolutions": convolutions}
    planned = fpe.plan(model, 2, split="shared", prune="children", **how)
    wide = fpe.expand(model, 2, split="shared", prune="children", **how).eval()
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    assert 12 < wide[0].out_channels == wide[1].num_features == planned.layers[0].neurons_after < 24
    torch.testing.assert_close(fpe.pack(wide)(x), wide(x), rtol=1e-5, atol=1e-5)


def test_a_network_with_masks_drops_as_many_children_as_needed():
    """The second expansion of one layer, whose children have fewer weights than planned."""
    once = fpe.expand(large_reader(), 2, split="random", seed=2)
    twice = fpe.expand(once, 2, split="shared", prune="children", seed=3)
    layer, _ = of_origin(twice)
    assert layer.dropped
    assert fpe.count_nonzero(twice) == fpe.count_nonzero(once)


def test_moments_follow_the_children_that_are_there():
    model, x = large_reader(), torch.randn(9, 12, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters())
    model(x).square().mean().backward()
    optimizer.step()
    moments = [optimizer.state[p]["exp_avg"].clone() for p in model.parameters()]
    fpe.expand_(
        model, optimizer=optimizer, moments="kept", factor=2, split="shared", prune="children", seed=2
    )
    _, index_map = of_origin(model)
    now = [optimizer.state[p]["exp_avg"] for p in model.parameters()]
    assert torch.equal(now[0], moments[0][index_map.parent] * model[0].fpe_mask)
    assert torch.equal(now[1], moments[1][index_map.parent])
    assert torch.equal(now[2], moments[2][:, index_map.parent])
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def test_who_has_left_goes_through_a_file(tmp_path):
    wide = fpe.expand(large_reader(), 2, split="shared", prune="children")
    fpe.save(wide, tmp_path / "wide")
    again = fpe.load(tmp_path / "wide", like=large_reader(seed=5))
    assert again.fpe_plan == wide.fpe_plan
    assert again.fpe_plan.prune == "ChildPruning()"
    assert torch.equal(again[0].weight, wide[0].weight)
    fpe.save(fpe.pack(wide), tmp_path / "packed")
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        fpe.load(tmp_path / "packed", like=large_reader())(x), wide(x), rtol=1e-5, atol=1e-6
    )


def test_columns_move_between_the_children_that_are_there():
    """A parent may have both children, one, or none; blocks are those of the plan."""
    wide = fpe.expand(large_reader(), 2, split="shared", prune="children", seed=2)
    layer, index_map = of_origin(wide)
    site = next(s for s in find_sites(wide, POLICIES["columns"])[0] if s.name == "0")
    assert site.index_map.dropped == layer.dropped
    for parent, rows in enumerate(site.children.tolist()):
        own = [row for row in rows if row < layer.neurons_after]
        assert own == (index_map.parent == parent).nonzero().flatten().tolist()
    for role, rows in enumerate(site.blocks):
        assert bool((index_map.child[rows] == role).all())


@pytest.mark.parametrize("policy", ["columns", "accumulated"])
def test_masks_move_at_a_constant_count(policy):
    wide = fpe.expand(fpe.mlp(24, 32, 30, seed=1), 2, split="shared", prune="children", seed=2)
    before, mask = fpe.count_nonzero(wide), wide[0].fpe_mask.clone()
    optimizer = torch.optim.Adam(wide.parameters(), lr=1e-2)
    rewirer = fpe.Rewirer(wide, optimizer, policy=policy, steps=10, schedule=fpe.RewiringSchedule(every=2))
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        optimizer.zero_grad()
        wide(torch.randn(16, 24, generator=generator)).square().mean().backward()
        rewirer.step()
        optimizer.step()
    assert fpe.count_nonzero(wide) == before
    assert not torch.equal(wide[0].fpe_mask, mask)


def test_a_classifier_takes_it():
    from sklearn.datasets import load_digits

    from fpe.sklearn import FPEClassifier

    x, y = load_digits(return_X_y=True)
    how = {"split": "shared", "prune": "children", "warmup_epochs": 3, "epochs": 3}
    fitted = FPEClassifier(64, random_state=0, **how).fit(x / 16, y)
    assert fitted.score(x / 16, y) > 0.8


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"split": "random"},
            "ChildPruning.* needs one partition .* RandomSplit.*use split='shared'",
        ),
        (
            {"split": "shared", "budget": "network"},
            "ChildPruning.*layer by layer; give budget='group'",
        ),
        (
            {"split": "shared", "target_fraction": 0.5},
            "ChildPruning.* needs all neurons of a layer expanded; leave target_fraction out",
        ),
    ],
)
def test_what_it_cannot_do_is_said(how, message):
    with pytest.raises(ArgumentError, match=message):
        fpe.expand(large_reader(), 2, prune="children", **how)


def test_norms_over_several_pieces_of_the_neurons_are_refused():
    model = nn.Sequential(nn.Linear(12, 16), nn.GroupNorm(4, 16), nn.ReLU(), nn.Linear(16, 30))
    with pytest.raises(ModelError, match="GroupNorm '1' cuts its neurons into 4 equal pieces"):
        fpe.plan(model, 2, split="shared", prune="children", example_inputs=torch.randn(4, 12))


def test_what_cannot_be_paid_at_all_is_refused():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.PReLU(3), nn.Linear(3, 1))
    with pytest.raises(BudgetError, match=r"factor 2 makes 15 copies, and .* only 12 weights"):
        fpe.plan(model, 2, split="shared", prune="children")
    assert fpe.ChildPruning() == ChildPruning()
