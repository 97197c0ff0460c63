"""Properties of every architecture, width, expansion factor, split, bias and norm."""

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fpe
from fpe.errors import BudgetError
from fpe.expansion import steps as procedure
from fpe.expansion.splits import SPLITS
from test_masked import OPTIMIZERS

NORMS = {"none": None, "layer": nn.LayerNorm, "rms": nn.RMSNorm, "batch": nn.BatchNorm1d, "prelu": nn.PReLU}
settings.register_profile("fpe", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("fpe")

widths = st.lists(st.integers(2, 9), min_size=1, max_size=3)


@st.composite
def networks(draw, norms=tuple(NORMS)):
    """One to three hidden layers of 2 to 9 neurons, over at least 8 inputs."""
    sizes = [draw(st.integers(8, 24)), *draw(widths), draw(st.integers(1, 3))]
    bias, norm = draw(st.booleans()), NORMS[draw(st.sampled_from(norms))]
    torch.manual_seed(draw(st.integers(0, 2**16)))
    layers = []
    for before, after in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after, bias=bias), *([norm(after)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1], bias=bias)).eval()


@st.composite
def expansions(draw):
    """A factor that the narrowest network allows, a split that takes it, and a pruning method."""
    factor = draw(st.integers(1, 4))
    name = draw(st.sampled_from(sorted(SPLITS)))
    if name == "2:4":
        factor = min(factor, 2)
    split = fpe.LabelSplit([0, 1, 2, 3, 4, 5, 6, 7]) if draw(st.integers(0, 9)) == 0 else name
    prune = "columns" if name == "shared" and split == name and draw(st.booleans()) else "magnitude"
    return {"factor": factor, "split": split, "prune": prune, "seed": draw(st.integers(0, 99))}


def expanded(model, how):
    """Expand the first hidden layer; None if that is refused before anything is done."""
    if isinstance(how["split"], fpe.LabelSplit) and model[0].in_features != 8:
        how = {**how, "split": fpe.LabelSplit(range(model[0].in_features))}
    try:
        return fpe.expand(model, layers=["0"], **how)
    except BudgetError:
        return None


@given(networks(), expansions())
def test_the_count_of_non_zeros_is_exactly_the_same(model, how):
    wide = expanded(model, how)
    if wide is not None:
        assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
        masked = [
            p[m._buffers["fpe_mask"] == 0] for m in wide if "fpe_mask" in m._buffers for p in [m.weight]
        ]
        assert all((weights == 0).all() for weights in masked)


@given(networks(), expansions())
def test_children_partition_their_parent(model, how):
    """Disjoint and complete before pruning; after it each kept weight is its parent's, each once at most."""
    wide = expanded(model, how)
    if wide is None:
        return
    factor, parent = how["factor"], model[0].weight
    children = wide[0].weight.view(len(parent), factor, -1)
    assert ((children != 0).sum(1) <= 1).all()
    kept = children.sum(1)
    assert torch.equal(kept[kept != 0], parent[kept != 0])


@given(
    st.integers(1, 12),
    st.integers(4, 40),
    st.integers(1, 4),
    st.sampled_from(sorted(SPLITS)),
    st.integers(0, 99),
)
def test_splits_are_disjoint_complete_and_balanced(neurons, inputs, factor, name, seed):
    split = SPLITS[name]
    if split.problem(inputs, factor):
        assert (name, factor == 2) == ("2:4", False)
        return
    weight = torch.randn(neurons, inputs, generator=torch.Generator().manual_seed(seed))
    children = procedure.partition(weight, factor, split, np.random.default_rng(seed)).long()
    sizes = nn.functional.one_hot(children, factor).sum(1)
    assert (sizes.sum(1) == inputs).all()
    assert (sizes > 0).all()
    if name != "gram":
        assert (sizes.amax(1) - sizes.amin(1) <= 1).all()


@given(networks(), st.sampled_from(["random", "shared", "gram"]), st.integers(0, 99))
def test_a_factor_of_one_gives_the_same_outputs_bit_for_bit(model, split, seed):
    x = torch.randn(5, model[0].in_features)
    wide = fpe.expand(model, factor=1, split=split, seed=seed)
    assert torch.equal(wide(x), model(x))
    wide.train()
    model.train()
    assert torch.equal(wide(x), model(x))


@given(st.integers(4, 20), st.integers(1, 8), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_without_activation_and_pruning_only_the_copied_bias_shows(inputs, neurons, factor, outputs, seed):
    """Children add up to their parent, so that the output moves by W2 · (α − 1) · b1 and no more (2.3)."""
    torch.manual_seed(seed)
    first, second = nn.Linear(inputs, neurons).double(), nn.Linear(neurons, outputs).double()
    dense = [procedure.Weights.of(first), procedure.Weights.of(second)]
    children = procedure.partition(first.weight, factor, SPLITS["random"], np.random.default_rng(seed))
    wide = procedure.duplicate(dense[0], dense[1:], children, factor)
    x = torch.randn(7, inputs, dtype=torch.float64)
    output = (x @ wide[0].weight.T + wide[0].bias) @ wide[1].weight.T + wide[1].bias
    expected = second(first(x)) + (factor - 1) * (second.weight @ first.bias)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


@settings(max_examples=3)
@given(networks(norms=("none", "layer", "batch")), expansions().filter(lambda how: how["factor"] > 1))
def test_after_50_steps_of_each_of_ten_optimizers_every_masked_entry_is_zero(model, how):
    for make in OPTIMIZERS.values():
        wide = expanded(model, how)
        if wide is None:
            return
        wide.train()
        x = torch.randn(16, model[0].in_features)
        optimizer = make(wide.parameters())
        for _ in range(50):
            optimizer.zero_grad()
            (wide(x) - 1).square().mean().backward()
            optimizer.step()
        for layer in wide:
            if isinstance(layer, fpe.MaskedLinear):
                assert (layer.weight[layer.fpe_mask == 0] == 0).all()
        assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
