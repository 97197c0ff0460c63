"""Readers that pay in whole columns: groups of their outputs stop reading children, and are dense blocks."""

import pytest
import torch
from torch import nn

import fpe
from fpe.columns import Columns, reader_blocks
from fpe.errors import ArgumentError, BudgetError

# Two neurons, five inputs: child 0 has inputs 0, 1, 2 and child 1 has inputs 3, 4. All weights are 10.
FREE = torch.tensor([[1.0, 1, 1, 0, 0], [0, 0, 0, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 1, 1]])
# Four outputs in two groups, of four children. Each group's mean squares: 1, 4, 9, 16 and 4, 1, 16, 9.
READER = torch.tensor([[1.0, 2, 3, 4], [1, 2, 3, 4], [2, 1, 4, 3], [2, 1, 4, 3]])


def pay(count, columns=None, reader=READER, free=None):
    """Let a layer of weights 10 and its reader pay; return both masks."""
    masks = [FREE.clone(), torch.ones_like(reader) if free is None else free.clone()]
    weights = [10 * masks[0], reader * masks[1]]
    (columns or Columns(reader_groups=2)).pay(weights, masks, count, 2)
    assert 10 + reader.numel() - sum(int(m.sum()) for m in masks) == count + (0 if free is None else 1)
    return masks


@pytest.mark.parametrize(
    ("count", "reader"),
    [
        (0, [[1, 1, 1, 1], [1, 1, 1, 1]]),
        (2, [[0, 1, 1, 1], [1, 1, 1, 1]]),  # mean square 1, of which there are two: the first group
        (4, [[0, 1, 1, 1], [1, 0, 1, 1]]),
        (6, [[0, 1, 0, 1], [1, 0, 1, 1]]),  # not child 1, which nobody else reads
        (8, [[0, 1, 0, 1], [1, 0, 1, 0]]),
    ],
)
def test_groups_of_a_reader_stop_reading_children_by_mean_square(count, reader):
    """Each in turn, so that both keep as many; and each child keeps the group that it means most to."""
    producer, mask = pay(count)
    assert torch.equal(producer, FREE)
    assert mask.tolist() == [reader[0], reader[0], reader[1], reader[1]]


def test_when_readers_have_paid_all_they_can_the_expanded_layer_does():
    """Ten: eight of the reader, then the first column that may leave of the block of most inputs."""
    producer, reader = pay(10)
    assert reader.sum(0).tolist() == [2, 2, 2, 2]
    assert producer.tolist() == [[1, 0, 1, 0, 0], [0, 0, 0, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 1, 1]]


def test_columns_of_all_layers_leave_by_mean_square_not_by_norm():
    """A reader's column has four weights of 9, of norm 18, and the layer's two of 10, of norm 14."""
    producer, reader = pay(4, reader=torch.full((8, 4), 9.0))
    assert torch.equal(producer, FREE)
    assert reader[:, 2].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_what_no_whole_column_can_pay_goes_by_magnitude_but_for_what_stays():
    """One: less than a column. The smallest weight of the reader is one that its child's last group reads."""
    reader = torch.tensor([[5.0, 7], [5, 7], [1, 7], [1, 7]]).repeat(1, 2)
    free = torch.ones(4, 4)
    free[3, 3] = 0
    reader[0, 0] = 0.5
    _, mask = pay(1, reader=reader, free=free)
    assert mask[2:].tolist() == [[0, 1, 1, 1], [1, 1, 1, 0]]
    assert bool(mask[:2].all())


@pytest.mark.parametrize(
    ("outputs", "groups", "expected"),
    [(4, 2, [0, 0, 1, 1]), (5, 2, [0, 0, 0, 1, 1]), (2, 3, [0, 1]), (3, 1, [0, 0, 0])],
)
def test_groups_of_a_reader_are_adjacent_and_of_one_size_or_one_more(outputs, groups, expected):
    assert reader_blocks(outputs, groups).tolist() == expected


@pytest.mark.parametrize("sizes", [(12, 16, 12), (40, 64, 40), (48, 24, 96), (30, 20, 77)])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_large_readers_leave_dense_blocks_at_exactly_the_budget(sizes, factor):
    """No child is left that nobody reads, and only what no column can pay makes holes."""
    _, neurons, outputs = sizes
    model = fpe.mlp(*sizes, seed=1)
    wide = fpe.expand(model, factor, "shared", f"columns-{factor}", seed=2)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    mask = wide[2].weight_mask
    assert bool(mask.any(0).all())
    blocks = [mask[reader_blocks(outputs, factor) == group] for group in range(factor)]
    kept = [int(block.any(0).sum()) for block in blocks]
    assert max(kept) - min(kept) <= 1
    stored = sum(k * len(block) for k, block in zip(kept, blocks, strict=True))
    assert stored - int(mask.sum()) < max(neurons, max(map(len, blocks)))


@pytest.mark.parametrize("planned", [True, False])
def test_readers_of_groups_pack_into_blocks(planned):
    """Of the plan, or of outputs that read the same children where that is lost."""
    model = fpe.mlp(64, 128, 64, seed=1)
    wide = fpe.expand(model, 2, "shared", "columns-2", seed=2)
    if not planned:
        del wide.fpe_plan
    packed, x = fpe.pack(wide), torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(packed(x), wide(x), rtol=1e-5, atol=1e-6)
    assert [row.why for row in packed.fpe_packing.rows] == ["2 blocks, all of it free"] * 2
    again = fpe.unpack(packed)
    for name, tensor in wide.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_outputs_of_a_reader_stand_in_their_order_whichever_group_keeps_more():
    """The first keeps least; sorted by numbers of children, blocks would stand in another order."""
    model = fpe.mlp(60, 101, 42, seed=1)
    with torch.no_grad():
        model[2].weight[:14] *= 0.9
    wide = fpe.expand(model, 2, "shared", "columns-3", seed=2)
    kept = [int(group.any(0).sum()) for group in wide[2].weight_mask.split(14)]
    packed = fpe.pack(wide)
    assert (kept, packed[2].restore) == ([98, 99, 99], None)
    assert packed[2].weight_0.shape == (3, 99, 14)


def test_a_reader_that_is_expanded_itself_packs_into_a_block_of_each_child_in_each_group():
    model = nn.Sequential(
        nn.Linear(32, 48),
        nn.ReLU(),
        nn.Linear(48, 48),
        nn.ReLU(),
        nn.Linear(48, 32),
        nn.ReLU(),
        nn.Linear(32, 5),
    )
    wide = fpe.expand(model, 2, "shared", "columns-2", layers=["0", "2"], seed=0)
    packed, x = fpe.pack(wide), torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(packed(x), wide(x), rtol=1e-5, atol=1e-6)
    assert [row.format for row in packed.fpe_packing.rows] == ["blocks"] * 3
    assert packed.fpe_packing.rows[1].why.startswith("4 blocks")
    stored, dense = (sum(t.nbytes for t in m.parameters()) for m in (packed, model))
    assert stored <= 1.02 * dense


def test_readers_that_are_convolutions_stop_reading_channels():
    model = nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3))
    x = torch.randn(2, 8, 7, 7, generator=torch.Generator().manual_seed(0))
    wide = fpe.expand(model, 2, "shared", "columns-2", layers=["0"], example_inputs=x, seed=0)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    taps = wide[2].weight_mask.flatten(2).sum(2)
    assert set(taps.unique().tolist()) <= {0.0, 9.0} | {float(t) for t in range(9)}
    assert int(((taps > 0) & (taps < 9)).sum()) <= 1
    packed = fpe.pack(wide)
    torch.testing.assert_close(packed(x), wide(x), rtol=1e-5, atol=1e-5)


def test_the_plan_keeps_the_groups_through_a_file(tmp_path):
    wide = fpe.expand(fpe.mlp(16, 24, 16), 2, "shared", "columns-2")
    assert wide.fpe_plan.prune == "Columns(reader_groups=2)"
    fpe.save(wide, tmp_path / "wide")
    again = fpe.load(tmp_path / "wide", fpe.mlp(16, 24, 16))
    assert again.fpe_plan == wide.fpe_plan
    assert [layer.reader_groups for layer in again.fpe_plan.layers] == [2]


def test_too_few_groups_are_refused_before_anything_is_copied():
    with pytest.raises(BudgetError) as error:
        fpe.plan(fpe.mlp(16, 24, 16), 3, "shared", "columns")
    assert str(error.value) == (
        "layer '0': factor 3 makes 816 copies, and only 312 weights in the columns that may leave could pay "
        "for them; give a smaller factor, prune='columns-3' or prune='magnitude'."
    )
    with pytest.raises(BudgetError, match=r"only 4128 .* give a smaller factor or prune='magnitude'"):
        fpe.plan(fpe.mlp(16, 24, 16), 12, "shared", "columns-12")


@pytest.mark.parametrize("groups", [-1, 1.5, True, "2"])
def test_a_number_of_groups_that_is_none_is_refused(groups):
    with pytest.raises(ArgumentError) as error:
        Columns(reader_groups=groups)
    assert str(error.value) == f"Columns: reader_groups is {groups!r}; give an integer of at least 0."


def test_groups_of_readers_go_with_the_norm_only():
    with pytest.raises(ArgumentError) as error:
        Columns("activation", reader_groups=2)
    assert str(error.value) == (
        "Columns: reader_groups is 2, and by is 'activation'; columns of readers are ranked by 'norm' only: "
        "give by='norm', or reader_groups=0."
    )
