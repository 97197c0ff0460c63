"""The four steps of section 2.3, each alone: partition, duplicate, prune, mask."""

import numpy as np
import pytest
import torch
from torch import nn

from fpe import MaskedLinear
from fpe.expansion.index_maps import IndexMap
from fpe.expansion.pruning import MagnitudePruning
from fpe.expansion.splits import SPLITS, LabelSplit
from fpe.expansion.steps import Weights, duplicate, mask, partition, prune_, widen
from models import assert_unchanged, same_bits, snapshot

CHILDREN = torch.tensor([[0, 1, 0], [1, 0, 1]])


def weights(weight, bias=None, free=None):
    weight = torch.tensor(weight)
    free = torch.ones_like(weight) if free is None else torch.tensor(free)
    return Weights(weight, None if bias is None else torch.tensor(bias), free)


def producer():
    return weights([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [7.0, 8.0])


def test_a_factor_of_one_gives_every_input_to_the_only_child():
    children = partition(torch.ones(2, 3), 1, SPLITS["random"], np.random.default_rng(0))
    assert children.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_partition_asks_the_split_and_draws_from_the_generator():
    weight = torch.arange(12.0).view(2, 6)
    for split in (*SPLITS.values(), LabelSplit([0, 0, 1, 1, 2, 2])):
        asked = split.assign(weight, 2, np.random.default_rng(5))
        assert torch.equal(partition(weight, 2, split, np.random.default_rng(5)), asked)


def test_children_are_adjacent_rows_and_copies_are_not_divided():
    wide = duplicate(producer(), [weights([[1.0, 2.0]], [9.0]), weights([[3.0, 4.0]])], CHILDREN, 2)
    assert wide[0].weight.tolist() == [[1, 0, 3], [0, 2, 0], [0, 5, 0], [4, 0, 6]]
    assert wide[0].mask.tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert wide[0].bias.tolist() == [7, 7, 8, 8]
    assert wide[1].weight.tolist() == [[1, 1, 2, 2]]
    assert wide[1].mask.tolist() == [[1, 1, 1, 1]]
    assert wide[1].bias.tolist() == [9]
    assert wide[2].weight.tolist() == [[3, 3, 4, 4]]
    assert wide[2].bias is None


def test_what_is_masked_stays_so_in_all_children_and_copies():
    masked = weights([[1.0, 2.0, 0.0], [4.0, 0.0, 6.0]], None, [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    wide = duplicate(masked, [weights([[0.0, 2.0]], None, [[0.0, 1.0]])], CHILDREN, 2)
    assert wide[0].mask.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1]]
    assert wide[0].weight.tolist() == [[1, 0, 0], [0, 2, 0], [0, 0, 0], [4, 0, 6]]
    assert wide[1].mask.tolist() == [[0, 0, 1, 1]]


def test_a_free_zero_stays_free():
    wide = duplicate(weights([[0.0, 2.0, 0.0], [4.0, 5.0, 6.0]]), [], CHILDREN, 2)
    assert wide[0].mask.sum() == 6
    assert wide[0].mask[0].tolist() == [1, 0, 1]


def test_duplicate_makes_new_tensors_and_leaves_its_arguments_alone():
    first, consumer = producer(), weights([[1.0, 2.0]], [9.0])
    for factor, children in ((1, torch.zeros(2, 3, dtype=torch.uint8)), (2, CHILDREN)):
        for new in duplicate(first, [consumer], children, factor):
            for tensor in (new.weight, new.bias, new.mask):
                tensor.fill_(-1)
    assert first.weight.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert first.bias.tolist() == [7, 8]
    assert consumer.weight.tolist() == [[1, 2]]
    assert consumer.bias.tolist() == [9]
    assert first.mask.all()
    assert consumer.mask.all()


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["random", "shared", "gram"])
def test_pre_activations_of_children_add_up_to_the_parents(name, factor):
    """Without the bias; whole numbers, so that the sums are exact."""
    rng = np.random.default_rng(factor)
    first = weights(rng.integers(-9, 10, (5, 8)).astype(float).tolist())
    x = torch.from_numpy(rng.integers(-9, 10, (7, 8)).astype(float)).float()
    children = partition(first.weight, factor, SPLITS[name], rng)
    (wide,) = duplicate(first, [], children, factor)
    assert torch.equal((x @ wide.weight.T).view(7, 5, factor).sum(2), x @ first.weight.T)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_with_identity_activation_only_the_copied_bias_moves_the_output(factor):
    """Each of the factor − 1 further copies of b1 reaches the output through W2."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: torch.from_numpy(rng.integers(-9, 10, shape).astype(float))  # noqa: E731
    first = Weights(draw(5, 8), draw(5), torch.ones(5, 8).double())
    consumer = Weights(draw(3, 5), draw(3), torch.ones(3, 5).double())
    x = draw(7, 8)
    wide = duplicate(first, [consumer], partition(first.weight, factor, SPLITS["random"], rng), factor)
    before = (x @ first.weight.T + first.bias) @ consumer.weight.T + consumer.bias
    after = (x @ wide[0].weight.T + wide[0].bias) @ wide[1].weight.T + wide[1].bias
    assert torch.equal(after, before + (factor - 1) * (consumer.weight @ first.bias))


def test_as_many_of_the_smallest_weights_are_pruned_as_were_copied():
    """Two weights and two biases were copied: 1, 1 and 1 are pruned, then the first 2."""
    wide = duplicate(producer(), [weights([[1.0, 2.0]], [9.0])], CHILDREN, 2)
    prune_(wide, 4, MagnitudePruning(), 2)
    assert wide[0].mask.tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 0, 1]]
    assert wide[0].weight.tolist() == [[0, 0, 3], [0, 0, 0], [0, 5, 0], [4, 0, 6]]
    assert wide[1].mask.tolist() == [[0, 0, 1, 1]]
    assert wide[1].weight.tolist() == [[0, 0, 2, 2]]
    assert wide[0].bias.tolist() == [7, 7, 8, 8]
    assert wide[1].bias.tolist() == [9]
    free = sum(int(w.mask.sum()) + len(w.bias) for w in wide)
    assert free == (6 + 2) + (2 + 1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frozen", [(), ("weight",), ("bias",), ("weight", "bias")])
def test_the_masked_layer_keeps_the_weights_the_mode_and_what_is_trained(frozen, training):
    layer = nn.Linear(2, 1).train(training)
    for name in frozen:
        getattr(layer, name).requires_grad_(False)
    before = snapshot(layer)
    given = weights([[0.0, 2.0]], [9.0], [[0.0, 1.0]])
    masked = mask(layer, given)
    assert type(masked) is MaskedLinear
    assert masked.weight.data_ptr() == given.weight.data_ptr()
    assert masked.fpe_mask is given.mask
    assert masked.bias.tolist() == [9]
    assert masked.training is training
    assert (masked.weight.requires_grad, masked.bias.requires_grad) == (
        "weight" not in frozen,
        "bias" not in frozen,
    )
    assert masked(torch.tensor([[5.0, 3.0]])).tolist() == [[15]]
    assert_unchanged(layer, before)


def test_a_layer_without_bias_becomes_a_masked_one_without():
    masked = mask(nn.Linear(2, 1, bias=False), weights([[1.0, 2.0]]))
    assert masked.bias is None
    assert [name for name, _ in masked.named_parameters()] == ["weight"]


def test_weights_of_a_masked_layer_bring_its_mask_along():
    layer = MaskedLinear.from_arrays(torch.tensor([[0.0, 2.0]]), None, torch.tensor([[0.0, 1.0]]))
    assert Weights.of(layer).mask.tolist() == [[0, 1]]
    assert Weights.of(nn.Linear(2, 1)).mask.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("module", "attribute", "width"),
    [
        (nn.LayerNorm(2), "normalized_shape", (6,)),
        (nn.RMSNorm(2), "normalized_shape", (6,)),
        (nn.BatchNorm1d(2), "num_features", 6),
        (nn.PReLU(2), "num_parameters", 6),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_each_entry_of_a_norm_stands_once_for_each_child(module, attribute, width):
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for start, tensor in enumerate(t for t in tensors.values() if t.shape == (2,)):
        tensor.data.copy_(torch.tensor([start + 1.0, -start - 0.5]))
    module.weight.requires_grad_(False)
    before = snapshot(module)
    wide = widen(module, IndexMap(2, 3).parent, 2)
    assert getattr(wide, attribute) == width
    state = wide.state_dict()
    for name, tensor in module.state_dict().items():
        expected = tensor if tensor.dim() == 0 else tensor[[0, 0, 0, 1, 1, 1]]
        assert same_bits(state[name], expected), name
    assert not wide.weight.requires_grad
    assert wide(torch.randn(4, 6)).shape == (4, 6)
    assert_unchanged(module, before)


@pytest.mark.parametrize("neurons", [1, 4])
def test_a_prelu_with_one_slope_for_all_neurons_keeps_it(neurons):
    wide = widen(nn.PReLU(), IndexMap(neurons, 3).parent, neurons)
    assert wide.weight.tolist() == [0.25]
    assert wide.num_parameters == 1


def test_a_norm_without_parameters_only_gets_its_new_width():
    assert widen(nn.LayerNorm(2, elementwise_affine=False), IndexMap(2, 3).parent, 2).normalized_shape == (6,)
    wide = widen(nn.BatchNorm1d(2, affine=False, track_running_stats=False), IndexMap(2, 3).parent, 2)
    assert wide.num_features == 6
    assert wide.state_dict() == {}
