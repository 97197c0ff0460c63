"""Which inputs are pruned first: by the norm of their columns, by their activations, by gradients."""

import copy

import pytest
import torch
from torch import nn

import fpe
from fpe.errors import ArgumentError, ModelError
from fpe.expansion.pruning import InputPruning
from models import MODELS, assert_unchanged, same_state, snapshot

# Two neurons, five inputs: child 0 has inputs 0, 1, 2 and child 1 has inputs 3, 4; rows are
# (neuron 0, child 0), (neuron 0, child 1), (neuron 1, child 0), (neuron 1, child 1).
BLOCKS = [
    [3.0, 1.0, 2.0, 0.0, 0.0],
    [0.0, 0.0, 0.0, 2.0, 4.0],
    [4.0, 1.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 0.0, 0.0, 3.0],
]
CONSUMER = [[9.0, 9.0, 9.0, 9.0]]


def leaving(method, count, scale=None, blocks=BLOCKS):
    """Prune blocks; return the inputs that are gone, in order of index."""
    blocks = torch.tensor(blocks)
    inputs = torch.tensor([[1.0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]).repeat(2, 1)
    masks = [inputs.clone(), torch.ones(1, 4)]
    if scale is None:
        method.prune_([blocks, torch.tensor(CONSUMER)], masks, count, 2)
    else:
        method.prune_([blocks, torch.tensor(CONSUMER)], masks, count, 2, scores=torch.tensor(scale))
    assert int(inputs.sum() + 4 - masks[0].sum() - masks[1].sum()) == count
    return [i for i in range(5) if inputs[:, i].any() and not masks[0][:, i].any()]


def test_by_norm():
    """Norms 5, √2, 2, 2, 5: the tie of 2 and 3 goes by index; 0 and 4 stay as the last of their blocks."""
    assert leaving(InputPruning(), 2) == [1]
    assert leaving(InputPruning(), 4) == [1, 2]
    assert leaving(InputPruning(), 6) == [1, 2, 3]


def test_by_activation():
    """Norms 5, √2, 2, 2, 5 times 0.1, 3, 1, 2.5, 1: input 0, of the largest norm, is pruned first."""
    scale = [[0.1, 3.0, 1.0, 2.5, 1.0]] * 2
    assert leaving(InputPruning("activation"), 2, scale) == [0]
    assert leaving(InputPruning("activation"), 4, scale) == [0, 2]
    assert leaving(InputPruning("activation"), 6, scale) == [0, 2, 4]  # 3 and 4 are equal: the first stays


def test_by_gradient():
    """|w·g| over the columns adds up to 3 + 4, 5 + 1, 2 + 0, 0, 4 + 3, though the gradients cancel."""
    scale = [[1.0, -5.0, 1.0, 0.0, 1.0], [-1.0, 1.0, 9.0, 7.0, -1.0]]
    assert leaving(InputPruning("gradient"), 2, scale) == [3]
    assert leaving(InputPruning("gradient"), 4, scale) == [2, 3]
    assert leaving(InputPruning("gradient"), 6, scale) == [1, 2, 3]


@pytest.mark.parametrize("by", ["activation", "gradient"])
def test_inputs_of_no_weight_are_pruned_by_index_and_the_first_of_a_block_stays(by):
    assert leaving(InputPruning(by), 4, [[0.0] * 5] * 2) == [1, 2]
    assert leaving(InputPruning(by), 6, [[0.0] * 5] * 2) == [1, 2, 4]


def test_taps_of_a_channel_count_together():
    """Two channels of two taps: 3² + 0² against 2² + 2²; by gradient 3 against 4."""
    weight = torch.tensor([[[3.0, 0.0], [2.0, 2.0], [9.0, 9.0]]])
    for by, gone in (("activation", 1), ("gradient", 0)):
        masks = [torch.ones(1, 3, 2), torch.ones(1, 1)]
        InputPruning(by).prune_([weight, torch.ones(1, 1)], masks, 2, 1, scores=torch.ones(1, 3, 2))
        assert [c for c in range(3) if not masks[0][0, c].any()] == [gone]


def test_a_ranking_is_printed_only_if_it_is_not_the_usual_one():
    assert repr(InputPruning()) == repr(fpe.InputPruning(by="norm")) == "InputPruning()"
    assert repr(InputPruning("activation")) == "InputPruning(by='activation')"
    model, x = MODELS["mlp"]()
    plan = fpe.plan(model, split="shared", prune=InputPruning(by="activation"), example_inputs=x)
    assert plan.prune == "InputPruning(by='activation')"
    assert "split SharedSplit(), prune InputPruning(by='activation'), seed 0" in str(plan)


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (
            "activations",
            "by is 'activations'; give 'norm' or 'activation' or 'gradient'. Did you mean 'activation'",
        ),
        (None, "by is None; give 'norm' or 'activation' or 'gradient'"),
    ],
)
def test_an_unknown_ranking_is_refused(by, message):
    with pytest.raises(ArgumentError, match=message):
        InputPruning(by=by)


def test_what_must_be_measured_is_asked_for():
    with pytest.raises(ArgumentError, match="give scores="):
        leaving(InputPruning("gradient"), 2)


NEEDS_DATA = "prune=InputPruning(by='activation') needs the inputs of each layer on data; give example_inputs"
NEEDS_GRADIENT = (
    "layer '0' has no gradient, which prune=InputPruning(by='gradient') ranks by; call loss.backward() on a "
    "batch first, and expand before the gradients are cleared."
)


@pytest.mark.parametrize("call", [fpe.plan, fpe.expand, fpe.expand_])
@pytest.mark.parametrize(
    ("by", "kind", "message"),
    [("activation", ArgumentError, NEEDS_DATA), ("gradient", ModelError, NEEDS_GRADIENT)],
)
def test_what_is_missing_is_told_before_anything_is_changed(call, by, kind, message):
    model, _ = MODELS["mlp"]()
    before = snapshot(model)
    with pytest.raises(kind) as error:
        call(model, factor=2, split="shared", prune=InputPruning(by=by))
    assert message in str(error.value)
    assert_unchanged(model, before)


def test_all_layers_without_a_gradient_are_named():
    model = fpe.mlp(30, [6, 4], 1)
    with pytest.raises(ModelError, match=r"2 problems with .*:\n  - layer '0' .*\n  - layer '3' "):
        fpe.plan(model, layers={"0": 2, "3": 2}, split="shared", prune=InputPruning("gradient"))


@pytest.mark.parametrize("by", ["activation", "gradient"])
def test_what_is_not_finite_is_refused(by):
    model, x = MODELS["mlp"]()
    model(x).sum().backward()
    x[0, 3] = torch.nan
    model[0].weight.grad[0, 0] = torch.inf
    what = "gradients" if by == "gradient" else "inputs on example_inputs"
    with pytest.raises(ModelError) as error:
        fpe.expand(model, split="shared", prune=InputPruning(by), example_inputs=x)
    assert str(error.value) == (
        f"layer '0' has {what} that are NaN or infinite, which cannot be ranked; repair them first."
    )


def with_gradients(model, batch):
    """Return a model after a backward pass."""
    with torch.random.fork_rng(devices=[]):
        model(batch).square().mean().backward()
    return model


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def convolutions():
    """Six channels are pruned for the four copies of each neuron and its norm."""
    body = (nn.Conv2d(12, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(4 * 4, 2)), torch.rand(3, 12, 4, 4)


def transposed():
    from transformers.pytorch_utils import Conv1D

    return nn.Sequential(Conv1D(4, 8), nn.GELU(), Conv1D(2, 4)), torch.rand(3, 8)


#: Models in which whole columns can be pruned.
WITH_ROOM = {
    **{name: MODELS[name] for name in ("mlp", "without_biases", "prelu", "functional", "dropout")},
    "gated": lambda: (Gated(), torch.rand(3, 8)),
    "convolutions": convolutions,
    "Conv1D": transposed,
}


@pytest.mark.parametrize("by", ["activation", "gradient"])
@pytest.mark.parametrize("name", WITH_ROOM)
def test_the_count_is_exact_and_the_model_stays_as_it_was(name, by):
    """Norms, convolutions, gated pairs, Conv1D: the same count, mode, hooks and random state."""
    model, batch = WITH_ROOM[name]()
    with_gradients(model, batch).train()
    before, state = snapshot(model), torch.get_rng_state()
    how = {"factor": 2, "split": "shared", "prune": InputPruning(by), "example_inputs": batch, "seed": 3}
    wide = fpe.expand(model, **how)
    assert torch.equal(torch.get_rng_state(), state)
    assert_unchanged(model, before)
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    assert same_state(wide, fpe.expand(model, **how))
    twin = copy.deepcopy(model)
    for mine, its in zip(model.parameters(), twin.parameters(), strict=True):
        its.grad = mine.grad
    fpe.expand_(twin, **how)
    assert same_state(twin, wide)


def test_an_input_that_is_always_zero_is_pruned_first():
    """Its column is the largest by far; on the data it counts nothing."""
    model, x = MODELS["mlp"]()
    x[:, 5] = 0
    with torch.no_grad():
        model[0].weight[:, 5] = 100
    for prune, stays in ((InputPruning(), True), (InputPruning("activation"), False)):
        wide = fpe.expand(model, split="shared", prune=prune, example_inputs=x)
        assert bool(wide[0].fpe_mask[:, 5].any()) == stays


def test_a_channel_that_is_always_zero_is_pruned_first():
    model, x = convolutions()
    x[:, 2] = 0
    with torch.no_grad():
        model[0].weight[:, 2] = 100
    wide = fpe.expand(model, split="shared", prune=InputPruning("activation"), example_inputs=x)
    assert not wide[0].fpe_mask[:, 2].any()
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)


def test_taps_that_are_shared_out_are_ranked_one_by_one():
    """Each tap of a channel is a column of its own; that of no gradient is pruned first."""
    model, x = convolutions()
    with_gradients(model, x)
    model[0].weight.grad[:, 5, 1, 2] = 0
    how = {"split": "shared", "example_inputs": x, "convolutions": "taps"}
    for by in ("activation", "gradient"):
        wide = fpe.expand(model, prune=InputPruning(by), **how)
        assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    assert not wide[0].fpe_mask[:, 5, 1, 2].any()
    assert wide[0].fpe_mask[:, 5].any()


class Bypassed(nn.Module):
    """Takes a layer's tensors instead of calling it, so that no hook sees its inputs."""

    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(8, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(nn.functional.linear(x, self.hidden.weight, self.hidden.bias).relu())


def test_a_layer_that_is_not_called_cannot_be_measured():
    how = {"layers": fpe.NeuronGroup("hidden", "head"), "example_inputs": torch.rand(2, 8)}
    with pytest.raises(ModelError, match="'hidden' is not called"):
        fpe.plan(Bypassed(), split="shared", prune=InputPruning("activation"), **how)


@pytest.mark.parametrize("by", ["activation", "gradient"])
def test_gate_and_up_lose_the_same_inputs(by):
    """The smallest sum over both: input 3 has the smallest gate, but the largest up."""
    model, x = Gated(), torch.ones(2, 8)
    with torch.no_grad():
        for layer, value in ((model.gate, 0.0), (model.up, 50.0)):
            layer.weight.copy_(torch.arange(1.0, 9).expand(4, 8))
            layer.weight[:, 3] = value
    for layer in (model.gate, model.up):
        layer.weight.grad = torch.ones(4, 8)
    wide = fpe.expand(model, split="shared", prune=InputPruning(by), example_inputs=x)
    read = [layer.fpe_mask.any(dim=0) for layer in (wide.gate, wide.up)]
    assert torch.equal(*read)
    assert read[0].tolist() == [False, *[True] * 7]


@pytest.mark.parametrize("by", ["activation", "gradient"])
def test_copies_of_an_input_count_as_it_does_in_the_dense_model(by):
    """Layer 2 consumes neurons of layer 0, expanded before it: the copies of neuron 1 are pruned first."""
    first, second = nn.Linear(20, 5), nn.Linear(5, 6)
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(6, 1))
    with torch.no_grad():
        first.weight.fill_(1.0)
        first.weight[1] = 1e-3
        first.bias.zero_()
        second.weight.fill_(1.0)
    second.weight.grad = torch.ones(6, 5)
    second.weight.grad[:, 1] = 1e-3
    first.weight.grad = torch.ones(5, 20)
    how = {"layers": ["0", "2"], "split": "shared", "example_inputs": torch.ones(2, 20)}
    wide = fpe.expand(model, prune=InputPruning(by), **how)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    assert wide[2].weight.shape == (12, 10)
    assert not wide[2].fpe_mask[:, 2:4].any()


def test_a_classifier_says_that_it_ranks_by_norm():
    from fpe.sklearn import FPEClassifier

    classifier = FPEClassifier(split="shared", prune=InputPruning("gradient"))
    with pytest.raises(ArgumentError, match="give prune='columns'"):
        classifier.fit(torch.rand(20, 4).numpy(), [0, 1] * 10)
