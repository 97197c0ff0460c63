"""Splits that use data, that are learned, or that are given."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import fpe
from fpe.data import dnf
from fpe.errors import ArgumentError, ModelError
from fpe.expansion.clusters import MOST_DRAWS, clustered, correlations, swapped
from fpe.training.ensemble import accuracies
from fpe.training.learned_split import best_assignment
from fpe.training.loop import adam, train
from fpe.training.losses import loss_of
from fpe_reproduction.experiments import formulas
from fpe_reproduction.experiments.boolean import BooleanConfig, run_row
from fpe_reproduction.experiments.catalogue import chosen
from fpe_reproduction.experiments.findings import Results, sorted_findings
from fpe_reproduction.experiments.splits import SPLITS, Parent, fixed_split, ordered, spectral

PAIRS = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, dim=1)


def mask_of_children(layer, factor):
    """Return each input's child, (neurons, inputs), by the weights that are not pruned; -1 where all are."""
    masks = layer.fpe_mask.view(-1, factor, layer.in_features)
    return torch.where(masks.any(dim=1), masks.argmax(dim=1), -1)


def within(affinity, child):
    together = child[:, None] == child[None, :]
    return (affinity * together).sum() - np.trace(affinity)


def test_swaps_find_the_best_bisection():
    """Of all 35 balanced bisections of eight inputs in four pairs, from any start."""
    affinity = np.kron(np.eye(4), np.ones((2, 2)))
    best = max(
        within(affinity, np.isin(np.arange(8), chosen).astype(int))
        for chosen in itertools.combinations(range(8), 4)
    )
    rng = np.random.default_rng(0)
    for _ in range(20):
        child = swapped(affinity, rng.permutation(np.arange(8) % 2), 2)
        assert np.bincount(child).tolist() == [4, 4]
        assert within(affinity, child) == best == 8


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_swaps_never_lose_and_keep_the_sizes(factor):
    rng = np.random.default_rng(1)
    affinity = correlations(torch.from_numpy(rng.normal(size=(50, 41))))
    start = rng.permutation(np.arange(41) % factor)
    child = swapped(affinity, start, factor)
    assert np.bincount(child).tolist() == np.bincount(start).tolist()
    assert within(affinity, child) > within(affinity, start)


def test_no_affinity_leaves_the_draw():
    start = np.array([1, 0, 0, 1])
    assert swapped(np.zeros((4, 4)), start, 2).tolist() == [1, 0, 0, 1]


def test_wide_layers_take_turns_with_the_partitions():
    child = clustered(np.zeros((64, 64)), MOST_DRAWS + 3, 2, np.random.default_rng(0))
    assert (child[:3] == child[MOST_DRAWS:]).all()
    assert len(np.unique(child, axis=0)) == MOST_DRAWS


def test_correlations_by_hand():
    """The second input is the first, the third its opposite, the fourth constant."""
    x = torch.tensor([[0.0, 1, 0, 7], [1.0, 3, -1, 7]])
    assert correlations(x).round(9).tolist() == [[1, 1, -1, 0], [1, 1, -1, 0], [-1, -1, 1, 0], [0, 0, 0, 0]]


def test_correlated_inputs_stay_together():
    """Pairs of equal inputs, in every neuron; another seed, another partition of the pairs."""
    model = fpe.mlp(8, 6, 2, seed=0)
    wide = fpe.expand(model, split=fpe.CorrelationSplit(), example_inputs=PAIRS)
    child = mask_of_children(wide[0], 2)
    one, other = child[:, ::2], child[:, 1::2]
    assert ((one == other) | (one < 0) | (other < 0)).all()
    assert len({tuple(row) for row in child.tolist()}) > 1
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)


def test_shared_co_activation_makes_blocks():
    split = fpe.CorrelationSplit(shared=True)
    wide = fpe.expand(fpe.mlp(8, 4, 1, seed=0), split=split, prune="columns", example_inputs=PAIRS)
    masks = wide[0].fpe_mask.view(4, 2, 8)
    assert (masks == masks[:1]).all()


def test_later_layers_are_measured_where_they_are():
    """Both layers are expanded; inputs of the second that are copies of one neuron stay together."""
    model = fpe.mlp(8, [6, 6], 2, seed=0)
    wide = fpe.expand(
        model,
        layers=["0", "3"],
        split=fpe.CorrelationSplit(),
        example_inputs=PAIRS,
        budget="network",
    )
    child = mask_of_children(wide[3], 2)
    assert ((child[:, ::2] == child[:, 1::2]) | (child[:, ::2] < 0) | (child[:, 1::2] < 0)).all()


def test_the_clauses_are_found_without_being_told():
    """Eight clauses of four literals: each child of each neuron has whole ones only."""
    data = dnf(8, samples=4000)
    split = fpe.CorrelationSplit().on(torch.from_numpy(data.X))
    child = split.assign(torch.zeros(8, 32), 2, np.random.default_rng(0)).view(8, 8, 4)
    assert (child == child[:, :, :1]).all()


def test_co_activation_needs_data():
    model = fpe.mlp(8, 4, 2, seed=0)
    with pytest.raises(
        ArgumentError, match=r"CorrelationSplit\(shared=False\) needs the inputs .* example_inputs"
    ):
        fpe.expand(model, split=fpe.CorrelationSplit())
    with pytest.raises(ArgumentError, match="needs data; give on\\(inputs\\) the layer's inputs first"):
        fpe.CorrelationSplit().assign(torch.zeros(2, 4), 2, np.random.default_rng(0))
    with pytest.raises(ModelError, match="output of Sequential on example_inputs is NaN or infinite through"):
        fpe.expand(model, split=fpe.CorrelationSplit(), example_inputs=PAIRS * torch.inf)
    one = PAIRS.clone()
    one[0] = torch.inf
    with pytest.raises(ModelError, match="layer '0' has inputs on example_inputs that are NaN or infinite"):
        fpe.expand(model, split=fpe.CorrelationSplit(), example_inputs=one)


def test_co_activation_of_a_convolution():
    """Channels 0 and 1 are equal, 2 and 3 are; with fewer channels than children it is refused."""
    cnn = nn.Sequential(nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 4, 2))
    batch = torch.randn(8, 2, 6, 6).repeat_interleave(2, dim=1)
    wide = fpe.expand(cnn, split=fpe.CorrelationSplit(), example_inputs=batch)
    child = wide[0].fpe_mask.amax(dim=(2, 3)).view(3, 2, 4).argmax(dim=1)
    assert (child[:, ::2] == child[:, 1::2]).all()
    with pytest.raises(ModelError, match="layer '0' splits taps, of which split CorrelationSplit"):
        fpe.expand(cnn, 8, split=fpe.CorrelationSplit(), example_inputs=batch)


def test_given_children_are_taken():
    children = np.array([[0, 0, 1, 1], [1, 0, 1, 0]])
    split = fpe.FixedSplit(children)
    assert not split.shared
    assert split.assign(torch.zeros(2, 4), 2, np.random.default_rng(0)).tolist() == children.tolist()
    same = fpe.FixedSplit(torch.tensor([0, 1, 1]))
    assert same.shared
    assert same.assign(torch.zeros(2, 3), 2, np.random.default_rng(0)).tolist() == [[0, 1, 1]] * 2


@pytest.mark.parametrize(
    ("children", "factor", "message"),
    [
        ([[0.5, 1.0]], 2, "children have shape (1, 2) and type float64; give integers from 0"),
        ([[-1, 0]], 2, "children have shape (1, 2) and type int64; give integers from 0"),
        ([0, 1], 2, "layer '0': FixedSplit has children for 2 inputs, but the layer has 3."),
        ([0, 1, 2], 2, "layer '0': FixedSplit names child 2, but factor 2 ends at child 1."),
        ([[0, 1, 1]], 2, "children for 1 neurons, but the layer has 2; give a row for each neuron"),
    ],
)
def test_children_that_do_not_fit_are_refused(children, factor, message):
    with pytest.raises((ArgumentError, ModelError)) as error:
        fpe.expand(fpe.mlp(3, 2, 1, seed=0), factor, split=fpe.FixedSplit(children))
    assert message in str(error.value)


def test_seats_are_given_by_what_is_wanted():
    """Child 0 is wanted by all; the two that lose least go to child 1."""
    assert best_assignment(np.array([[4.0, 3, 2, 1], [0, 0, 0, 0]])).tolist() == [0, 0, 1, 1]
    assert np.bincount(best_assignment(np.random.default_rng(0).random((3, 8)))).tolist() == [3, 3, 2]


def test_a_learned_split_is_balanced_and_depends_on_the_seed_alone():
    model = fpe.mlp(9, 4, 2, seed=0)
    X = torch.randn(60, 9, generator=torch.Generator().manual_seed(0))
    y = (X[:, 0] * X[:, 1] > 0).long()
    before = [p.clone() for p in model.parameters()]
    learned = [fpe.training.learn_split(model, X, y, 2, steps=30, seed=s).children for s in (0, 0, 1)]
    assert (learned[0] == learned[1]).all()
    assert (learned[0] != learned[2]).any()
    assert (np.apply_along_axis(np.bincount, 1, learned[0]) == [5, 4]).all()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_learned_split_keeps_more_clauses_whole_than_chance():
    """Four clauses of four literals: chance keeps one whole with 2 · C(12, 4) / C(16, 8)."""
    whole = []
    for seed in range(4):
        X, y = (torch.from_numpy(a) for a in dnf(4, samples=2000, seed=seed)[:2])
        model = fpe.mlp(16, 4, 1, seed=seed)
        order = torch.Generator().manual_seed(seed)
        train(model, X, y, epochs=40, optimizer=adam(model, 1e-2), batch_size=250, generator=order)
        child = fpe.training.learn_split(model, X, y, steps=600, seed=seed).children.reshape(4, 4, 4)
        whole.append((child == child[:, :, :1]).all(axis=2).mean())
    assert np.mean(whole) > 2 * 2 * 495 / 12870


@pytest.mark.parametrize("scale", [1e30, 1e38], ids=["gradients", "weights"])
def test_learning_that_diverges_is_told(scale):
    X = scale * torch.randn(10, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ArgumentError, match=r"learn_split: .* became NaN or infinite.*scale the inputs"):
        fpe.training.learn_split(fpe.mlp(8, 4, 2, seed=0), X, torch.arange(10) % 2, steps=5)


def test_a_bad_request_to_learn_is_refused():
    X, y = torch.zeros(4, 3), torch.zeros(5, dtype=torch.long)
    with pytest.raises(ArgumentError) as error:
        fpe.training.learn_split(fpe.mlp(2, 3, 1), X, y, 3, steps=0, lr=0.0)
    for text in (
        "X has shape (4, 3)",
        "X has 4 samples and y has 5",
        "factor is 3",
        "steps is 0",
        "lr is 0.0",
    ):
        assert text in str(error.value)
    with pytest.raises(ModelError, match="the model is a Sequential; give"):
        fpe.training.learn_split(fpe.mlp(3, [4, 4], 2), X, y[:4])


@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("factor", [2, 3])
def test_every_split_that_was_tried_gives_each_child_inputs(kind, factor, monkeypatch):
    monkeypatch.setattr("fpe_reproduction.experiments.splits.STEPS", 5)
    generator = torch.Generator().manual_seed(0)
    X, y = torch.rand(90, 12, generator=generator), torch.arange(90) % 3
    model = fpe.mlp(12, 4, 3, seed=0)
    children = fixed_split(kind, Parent(model, 0, X, y), factor).children
    assert children.shape == (4, 12)
    assert (np.apply_along_axis(np.bincount, 1, children, minlength=factor) > 0).all()
    if kind != "dictionary":
        assert (np.apply_along_axis(np.bincount, 1, children) == 12 // factor).all()
    assert (children == fixed_split(kind, Parent(model, 0, X, y), factor).children).all()


def test_in_order_of_a_score():
    assert ordered(np.array([[3.0, 1, 2, 0], [0, 0, 0, 0]]), 2).tolist() == [[1, 0, 1, 0], [0, 0, 1, 1]]


def test_the_leading_eigenvector_bisects():
    affinity = np.kron(np.array([[1.0, -1], [-1, 1]]), np.ones((3, 3)))
    child = spectral(affinity, 2)
    assert len(set(child[:3])) == len(set(child[3:])) == 1


def test_errors_are_gradients():
    """`hidden_gradients` and `errors` are what autograd says, for one logit and for several."""
    for outputs in (1, 3):
        model = fpe.mlp(5, 4, outputs, seed=0)
        X, y = torch.rand(7, 5), torch.arange(7) % max(2, outputs)
        hidden = model[0](X).relu().detach().requires_grad_()
        (loss_of(model[2](hidden), y) * len(X)).backward()
        assert np.allclose(Parent(model, 0, X, y).hidden_gradients, hidden.grad, atol=1e-6)


def test_a_row_with_more_splits():
    config = BooleanConfig(warmup_epochs=2, epochs=2, samples=200, test_samples=100)
    made = run_row(config, 4, (3,), 0, 2, others=("gram", "coactivation"))["networks"]
    assert [n["kind"] for n in made[::2]] == ["dense", "clause", "random", "gram", "coactivation"]
    assert len({n["nonzero"] for n in made}) == 1
    found = sorted_findings(formulas.clause_free(Results.of("", made, "neurons")))
    rows = found["tables"][0]["rows"]
    assert [row[0] for row in rows][3:] == ["gram-split", "correlated inputs together"]
    assert float(rows[1][4]) > 50


def test_a_split_is_better_if_its_interval_says_so():
    def network(hidden, kind, trial, accuracy):
        return {"data": "made-up", "hidden": hidden, "kind": kind, "trial": trial, "accuracy": accuracy}

    gains = {"random": 0.0, "learned": 0.02, "sign": -0.01, "ahead": 0.01, "dense": -0.1}
    made = [
        network(h, kind + x, t, 0.5 + 0.1 * t + gain + 0.001 * t * (kind != "random"))
        for h in (4, 8)
        for kind, gain in gains.items()
        for x in ("", "-x4")
        for t in (0, 1, 2)
    ]
    found = sorted_findings(chosen("splits")[0].findings(Results.of("made-up", made)))
    claims = {claim["paper"]: claim["agrees"] for claim in found["claims"]}
    assert claims["asked: learned split is better than random-split"]
    assert not claims["asked: sign of the weight is better than random-split"]
    assert claims["asked: learned split, α = 4 is better than random-split, α = 4"]
    assert found["tables"][0]["rows"][0][:2] == ["sign of the weight", "-0.90 [-1.15, -0.65]"]


def test_saving_keeps_the_accuracy_of_a_learned_split(tmp_path):
    """A split by data is in the plan as text; the masks are in the file."""
    model = fpe.mlp(8, 4, 2, seed=0)
    wide = fpe.expand(model, split=fpe.CorrelationSplit(), example_inputs=PAIRS)
    fpe.save(wide, tmp_path / "wide.safetensors")
    again = fpe.load(tmp_path / "wide.safetensors")
    y = torch.arange(200) % 2
    assert accuracies([again], PAIRS, y) == accuracies([wide], PAIRS, y)
    assert again.fpe_plan.split == "CorrelationSplit(shared=False)"
