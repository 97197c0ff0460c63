"""Budget: what counts as non-zero, and exactly which weights are pruned."""

import pytest
import torch
from torch import nn

import fpe
from fpe.errors import ArgumentError, BudgetError
from fpe.expansion.pruning import PRUNINGS, InputPruning, MagnitudePruning, Pruning, as_pruning
from fpe.masked import count_free
from models import MODELS


def prune_(method, weights, count, masks=None, factor=2):
    """Prune float weights; return the masks as nested lists."""
    weights = [torch.tensor(w, dtype=torch.float32) for w in weights]
    free = [torch.ones_like(w) if masks is None else torch.tensor(masks[i]) for i, w in enumerate(weights)]
    before = [w.clone() for w in weights]
    method.prune_(weights, free, count, factor)
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))
    return [mask.int().tolist() for mask in free]


LAYERS = [[[1.0, -2.0], [3.0, 0.5]], [[2.0, -0.5]]]


@pytest.mark.parametrize(
    ("count", "masks"),
    [
        (0, [[[1, 1], [1, 1]], [[1, 1]]]),
        (1, [[[1, 1], [1, 0]], [[1, 1]]]),  # 0.5 stands in both layers: the earlier goes
        (2, [[[1, 1], [1, 0]], [[1, 0]]]),
        (3, [[[0, 1], [1, 0]], [[1, 0]]]),
        (4, [[[0, 0], [1, 0]], [[1, 0]]]),  # −2 and 2 are equal magnitudes
        (5, [[[0, 0], [1, 0]], [[0, 0]]]),
        (6, [[[0, 0], [0, 0]], [[0, 0]]]),
    ],
)
def test_the_smallest_magnitudes_of_all_layers_are_pruned_and_ties_go_by_index(count, masks):
    assert prune_(MagnitudePruning(), LAYERS, count) == masks


def test_among_equal_weights_the_first_are_pruned_row_by_row_and_layer_by_layer():
    weights = [[[1.0, 1.0], [-1.0, 1.0]], [[-1.0, 1.0]], [[1.0]]]
    assert prune_(MagnitudePruning(), weights, 5) == [[[0, 0], [0, 0]], [[0, 1]], [[1]]]


def test_masked_zeros_cannot_be_pruned_but_free_zeros_can():
    weights = [[[0.0, 0.0, 5.0]], [[-0.0, 1.0]]]
    masks = [[[0.0, 1.0, 1.0]], [[1.0, 1.0]]]
    assert prune_(MagnitudePruning(), weights, 1, masks) == [[[0, 0, 1]], [[1, 1]]]
    assert prune_(MagnitudePruning(), weights, 2, masks) == [[[0, 0, 1]], [[0, 1]]]
    assert prune_(MagnitudePruning(), weights, 3, masks) == [[[0, 0, 1]], [[0, 0]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_ties_are_exact_in_every_type_and_across_pieces_of_a_large_layer(dtype):
    size = (1 << 18) + 10
    weights = [torch.full((1, size), 0.3, dtype=dtype), torch.full((1, 4), -0.3, dtype=dtype)]
    masks = [torch.ones_like(w) for w in weights]
    MagnitudePruning().prune_(weights, masks, size + 2, 2)
    assert count_free(masks[0]) == 0
    assert masks[1].tolist() == [[0, 0, 1, 1]]


def test_magnitude_pruning_of_too_many_is_refused_and_changes_no_mask():
    masks = [torch.ones(2, 2), torch.tensor([[1.0, 0.0]])]
    before = [m.clone() for m in masks]
    with pytest.raises(BudgetError, match=r"6 weights .* only 5 are free"):
        MagnitudePruning().prune_([torch.ones(2, 2), torch.ones(1, 2)], masks, 6, 2)
    assert all(torch.equal(m, b) for m, b in zip(masks, before, strict=True))


# Two neurons, five inputs: child 0 has inputs 0, 1, 2 and child 1 has inputs 3, 4.
# Norms of the columns: 5, √2, √0.5 and 2, 5.
BLOCKS = [
    [3.0, 1.0, 0.5, 0.0, 0.0],
    [0.0, 0.0, 0.0, 2.0, 4.0],
    [4.0, 1.0, 0.5, 0.0, 0.0],
    [0.0, 0.0, 0.0, 0.0, 3.0],
]
CONSUMER = [[0.1, 9.0, 8.0, 7.0]]
FREE = [[1.0, 1, 1, 0, 0], [0, 0, 0, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("count", "first", "consumer"),
    [
        (0, FREE, [1, 1, 1, 1]),
        (2, [[1, 1, 0, 0, 0], [0, 0, 0, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1]], [1, 1, 1, 1]),
        (4, [[1, 0, 0, 0, 0], [0, 0, 0, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 1, 1]], [1, 1, 1, 1]),
        (6, [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]], [1, 1, 1, 1]),
    ],
)
def test_whole_columns_of_smallest_norm_are_pruned(count, first, consumer):
    masks = [FREE, [[1.0, 1, 1, 1]]]
    assert prune_(InputPruning(), [BLOCKS, CONSUMER], count, masks) == [first, [consumer]]


def test_less_than_a_whole_column_is_pruned_by_magnitude():
    """Three: column 2 of child 0 (two weights), then the smallest weight that is left, a free zero."""
    masks = [FREE, [[1.0, 1, 1, 1]]]
    first, consumer = prune_(InputPruning(), [BLOCKS, CONSUMER], 3, masks)
    assert first == [[1, 1, 0, 0, 0], [0, 0, 0, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 1]]
    assert consumer == [[1, 1, 1, 1]]


def test_the_remainder_may_come_from_the_consumer():
    """One: less than a column, so the smallest weight of all; the free zero is now 5."""
    blocks = [list(row) for row in BLOCKS]
    blocks[3][3] = 5.0
    first, consumer = prune_(InputPruning(), [blocks, CONSUMER], 1, [FREE, [[1.0, 1, 1, 1]]])
    assert first == FREE
    assert consumer == [[0, 1, 1, 1]]


def test_equal_columns_are_pruned_by_index_and_the_first_stays_as_the_last_input():
    blocks = [[1.0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]
    free = [[1.0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]
    assert prune_(InputPruning(), [blocks, [[1.0, 1]]], 3, [free, [[1.0, 1]]]) == [
        [[1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 1]],
        [[1, 1]],
    ]


def test_no_block_loses_its_last_input_though_its_column_is_the_smallest():
    """Child 0 has one input of norm 0.1, which stays; child 1 is pruned."""
    blocks = [[0.1, 0.0, 0.0], [0.0, 5.0, 6.0]]
    free = [[1.0, 0, 0], [0, 1, 1]]
    assert prune_(InputPruning(), [blocks, [[7.0, 7]]], 1, [free, [[1.0, 1]]]) == [
        [[1, 0, 0], [0, 0, 1]],
        [[1, 1]],
    ]


def test_no_block_loses_its_last_input_to_the_remainder():
    """Child 0 has one weight; two weights are pruned, fewer than a column of child 1 (three neurons)."""
    blocks = torch.tensor([[0.1, 0, 0], [0, 5, 6], [0, 0, 0], [0, 5, 6], [0, 0, 0], [0, 5, 6]])
    masks = [(blocks != 0).float(), torch.ones(1, 6)]
    InputPruning().prune_([blocks, torch.full((1, 6), 7.0)], masks, 2, 2)
    assert masks[0].view(3, 2, 3).sum((0, 2)).tolist() == [1, 4]


@pytest.mark.parametrize(
    ("count", "first"),
    [
        (2, [[1, 0, 1, 0, 0], [0, 0, 0, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1]]),
        (3, [[1, 0, 1, 0, 0], [0, 0, 0, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 1]]),
        (6, [[0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]),
    ],
)
def test_blocks_of_groups_are_pruned_to_one_size(count, first):
    """Two parents, each a group: four blocks of 3, 2, 3 and 2 inputs. The larger are pruned first."""
    blocks = torch.tensor(BLOCKS)
    blocks[0, 2] = 9
    masks = [torch.tensor(FREE), torch.ones(1, 4)]
    InputPruning().prune_([blocks, torch.tensor(CONSUMER)], masks, count, 2, blocks=torch.arange(4))
    assert masks[0].tolist() == first
    assert masks[1].tolist() == [[1, 1, 1, 1]]


def test_pruning_more_than_the_columns_have_is_refused_and_changes_no_mask():
    masks = [torch.tensor(FREE), torch.ones(1, 4)]
    before = [m.clone() for m in masks]
    with pytest.raises(BudgetError, match=r"7 weights .* columns .* only 6; use prune='children'"):
        InputPruning().prune_([torch.tensor(BLOCKS), torch.tensor(CONSUMER)], masks, 7, 2)
    assert all(torch.equal(m, b) for m, b in zip(masks, before, strict=True))


@pytest.mark.parametrize("by", ["norm", "activation"])
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_columns_of_groups_are_pruned_exactly_and_whole(groups, by):
    """All rows of a block read the same; 8 × 6 copies are whole columns, whatever the size of a block."""
    model, X = fpe.mlp(40, 8, 5, seed=1), torch.rand(20, 40, generator=torch.Generator().manual_seed(0))
    wide = fpe.expand(
        model, 2, split=fpe.SharedSplit(groups), prune=InputPruning(by), example_inputs=X, seed=2
    )
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    assert bool(wide[2].fpe_mask.all())
    blocks = wide[0].fpe_mask.view(groups, 8 // groups, 2, 40)  # rows are parents, then children
    assert torch.equal(blocks, blocks[:, :1].expand_as(blocks))
    assert int(blocks.sum()) == 8 * 40 - 8 * 6
    if groups > 1:  # 34 inputs are left to the two blocks of a group
        assert (blocks[:, 0].sum(dim=2) == 17).all()


@pytest.mark.parametrize("name", ["mlp", "without_biases", "prelu", "functional", "nested"])
@pytest.mark.parametrize("factor", [1, 2])
def test_input_pruning_makes_dense_blocks_at_exactly_the_budget(name, factor):
    """With a shared split, each child of all neurons reads the same inputs, less the remainder."""
    model, _ = MODELS[name]()
    wide = fpe.expand(model, factor, split="shared", prune="columns")
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    layer = next(m for m in wide.modules() if isinstance(m, fpe.MaskedLinear))
    blocks = layer.fpe_mask.view(-1, factor, 8).sum(0)
    ragged = (blocks > 0) & (blocks < len(layer.fpe_mask) // factor)
    assert ragged.sum() < len(layer.fpe_mask) // factor
    assert (blocks.sum(1) > 0).all()


def test_count_nonzero_counts_weights_biases_and_norms_but_no_buffers():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.PReLU(2), nn.Linear(2, 1, bias=False))
    assert fpe.count_nonzero(model) == (6 + 2) + (2 + 2) + 2 + 2


def test_count_nonzero_counts_a_free_zero():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    assert fpe.count_nonzero(layer) == 8


def test_count_nonzero_counts_a_shared_parameter_once():
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    assert fpe.count_nonzero(nn.Sequential(a, b, a)) == 9 + 3 + 3


def test_count_nonzero_omits_masked_zeros_and_only_those():
    layer = fpe.MaskedLinear(3, 2)
    layer.fpe_mask[:] = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    layer.project()
    with torch.no_grad():
        layer.weight[0, 0] = 0  # free all the same
    assert fpe.count_nonzero(layer) == 3 + 2
    assert fpe.count_nonzero(nn.Sequential(nn.Linear(1, 1), layer)) == 2 + 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.bool])
def test_count_free_is_exact_in_types_that_cannot_represent_the_sum(dtype):
    mask = torch.ones(1, 300_001, dtype=dtype)
    mask[0, 7] = 0
    assert count_free(mask) == 300_000


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        ("magnitud", "unknown prune 'magnitud'.*'balanced'.*Did you mean 'magnitude'"),
        ("zzz", "unknown prune 'zzz'.*'magnitude', 'balanced', 'columns', 'children'.$"),
        (2, "prune is 2; give one of 'magnitude'"),
        (MagnitudePruning, "prune is <class .*MagnitudePruning'>; give one of"),
    ],
)
def test_as_pruning_says_what_is_allowed(prune, message):
    with pytest.raises(ArgumentError, match=message):
        as_pruning(prune)


@pytest.mark.parametrize("name", PRUNINGS)
def test_as_prune_knows_each_name_and_passes_objects_through(name):
    assert as_pruning(name) is PRUNINGS[name]
    assert as_pruning(PRUNINGS[name]) is PRUNINGS[name]


class Largest:
    """A way of paying of the user's own: the largest weights of the first layer, less `short`."""

    needs_shared = False

    def __init__(self, short=0):
        self.short = short

    def __repr__(self):
        return "Largest()"

    def prune_(self, weights, masks, count, factor):
        order = weights[0].abs().flatten().argsort(descending=True)
        masks[0].view(-1)[order[: count - self.short]] = 0


def test_a_pruning_of_the_users_own_is_used():
    model, _ = MODELS["mlp"]()
    wide = fpe.expand(model, prune=Largest())
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    assert wide[2].fpe_mask.all()


class Whole(Largest):
    """As `Largest`, for a shared split, with the four arguments that every method has."""

    needs_shared = True


class InBlocks(Whole):
    """As `Whole`, for a method that asks for the blocks."""

    needs_blocks = True

    def prune_(self, weights, masks, count, factor, blocks):
        self.blocks = blocks
        super().prune_(weights, masks, count, factor)


class Derived(Pruning):
    """A pruning of the user's own with the library's base class."""

    needs_shared = True

    def prune_(self, weights, masks, count, factor, *, blocks=None, scores=None):
        self.blocks = blocks
        Largest().prune_(weights, masks, count, factor)


@pytest.mark.parametrize(
    "method", [Largest(), Whole(), InBlocks(), Derived()], ids=lambda m: type(m).__name__
)
def test_a_pruning_of_the_users_own_is_given_what_it_asks_for(method):
    model = fpe.mlp(12, 4, 2)
    wide = fpe.expand(model, 2, split="shared-2", prune=method)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    if isinstance(method, InBlocks | Derived):
        assert method.blocks.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


def test_a_pruning_of_the_users_own_that_prunes_too_little_is_refused():
    model, _ = MODELS["mlp"]()
    with pytest.raises(BudgetError, match=r"Largest\(\) masked 11 weights instead of 12"):
        fpe.expand(model, prune=Largest(short=1))


@pytest.mark.parametrize("count", [1, 70_000, 150_000, 299_999])
def test_the_sampled_threshold_is_the_sorted_one(count):
    """In layers too large to be sorted whole, the smallest weights are pruned, as in small ones."""
    weights = [torch.randn(500, 400), torch.randn(200, 500)]
    masks = [torch.ones_like(w) for w in weights]
    MagnitudePruning().prune_(weights, masks, count, 2)
    size = torch.cat([w.abs().flatten() for w in weights])
    kept = torch.cat([m.flatten() for m in masks]) > 0
    assert int((~kept).sum()) == count
    assert size[~kept].max() <= size[kept].min()


def test_consumers_keep_at_most_their_share():
    """The consumers keep half of the six weights, the largest; the rest is pruned from the expanded layer."""
    own, consumer = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]), torch.tensor([[90.0, 50, 70, 60]])
    masks = [torch.ones(2, 4), torch.ones(1, 4)]
    MagnitudePruning(consumers=0.5).prune_([own, consumer], masks, 6, 2)
    assert masks[0].tolist() == [[0, 0, 0, 0], [0, 1, 1, 1]]
    assert masks[1].tolist() == [[1, 0, 1, 1]]


@pytest.mark.parametrize(
    ("consumers", "count", "kept"), [(0.9, 4, (4, 4)), (0.01, 4, (8, 0)), (0.25, 1, (8, 3))]
)
def test_what_consumers_or_the_layer_cannot_use_the_others_keep(consumers, count, kept):
    """Consumers never keep more than they have, and the layer never more than it has."""
    masks = [torch.ones(2, 4), torch.ones(1, 4)]
    MagnitudePruning(consumers=consumers).prune_([torch.rand(2, 4), torch.rand(1, 4)], masks, count, 2)
    assert tuple(int(m.sum()) for m in masks) == kept


@pytest.mark.parametrize("consumers", [0, 1, 1.5, "half", True])
def test_a_share_of_consumers_that_is_none_is_refused(consumers):
    with pytest.raises(ArgumentError, match=rf"consumers is {consumers!r}"):
        MagnitudePruning(consumers=consumers)
