"""The networks that the real-data experiments compare: counts, masks, initialization and rewiring."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import fpe
from fpe.data import load
from fpe.masked import MaskedLinear
from fpe.training.loop import accuracy, adam, train
from fpe_reproduction.experiments.classifiers import Gated, run_classifiers
from fpe_reproduction.experiments.kinds import Dynamic, Expanded, FewerInputs, FromScratch, Overlapping
from fpe_reproduction.experiments.measures import rounded, rounded_rows
from fpe_reproduction.experiments.networks import KINDS
from fpe_reproduction.experiments.splits import Parent, sample
from fpe_reproduction.experiments.timeline import (
    DroppingLinear,
    NetworksConfig,
    Source,
    rewire_at_random_,
    run_networks,
)
from models import same_state

DOUBLED = ("dense-x2", "steady-x2")
#: Dynamic masks have tests of their own.
MADE = {k: v for k, v in KINDS.items() if not v.continues and not isinstance(v, Dynamic)}


def parent_of(inputs=40, hidden=4, outputs=6, seed=3, layers=1, zero=None):
    dense, warm = (fpe.mlp(inputs, [hidden] * layers, outputs, seed=s) for s in (1, 2))
    X = torch.rand(30, inputs, generator=torch.Generator().manual_seed(6))
    if zero is not None:
        X[:, zero] = 0
    return Parent(dense, seed, X, torch.arange(30) % outputs, 1e-2, warm)


@pytest.mark.parametrize("kind", [kind for kind in MADE if kind not in DOUBLED])
def test_no_network_has_more_nonzeros_than_its_parent(kind, monkeypatch):
    """Expanded ones have exactly as many; a rival with fewer inputs lacks less than one input's."""
    monkeypatch.setattr("fpe_reproduction.experiments.splits.STEPS", 5)
    given = parent_of()
    before = copy.deepcopy(given.model.state_dict())
    network = MADE[kind].make(given)
    budget, count = (fpe.count_nonzero(model) for model in (given.model, network))
    if isinstance(MADE[kind], FewerInputs):
        assert budget - len(network[0].weight) < count <= budget
    else:
        assert count == budget
    assert all(torch.equal(before[name], value) for name, value in given.model.state_dict().items())


def test_the_doubled_network_has_twice_the_neurons():
    assert MADE["dense-x2"].make(parent_of())[0].out_features == 8


def test_the_rival_has_the_inputs_it_should():
    """At d = 384, k = 77, twice the neurons allow 153 inputs; pixels of MNIST's shape 386."""
    rival = FewerInputs("")
    assert rival.inputs_for(384, 4, 77) == 153
    assert rival.inputs_for(784, 16, 10) == 386
    assert rival.inputs_for(512, 8, 1000) == 0
    given, count = parent_of(), rival.inputs_for(40, 4, 6)
    scores = {"variance": given.X.var(dim=0), "norm": given.warm[0].weight.detach().norm(dim=0)}
    for by, score in scores.items():
        seen = FewerInputs("", by=by).make(given)[0].fpe_mask.any(dim=0)
        assert set(seen.nonzero().flatten().tolist()) == set(score.topk(count).indices.tolist())
    drawn = [FewerInputs("", by="random").make(parent_of(seed=s))[0].fpe_mask.any(dim=0) for s in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert int(drawn[0].sum()) == count


def test_overlapping_siblings_share_inputs_and_miss_others():
    """Disjoint siblings see each input once; overlapping ones see some twice and some not at all."""
    given = parent_of(inputs=41, outputs=1)
    seen = Overlapping("").make(given)[0].fpe_mask.view(4, 2, 41).sum(dim=1)
    disjoint = Expanded("").make(given)[0].fpe_mask.view(4, 2, 41).sum(dim=1)
    assert int(disjoint.max()) == 1
    assert int(seen.max()) == 2
    assert int((seen == 0).sum()) > int((disjoint == 0).sum())
    kept = Overlapping("").make(given)[0]
    rows = given.model[0].weight.detach().repeat_interleave(2, dim=0)
    assert torch.equal(kept.weight.detach(), rows * kept.fpe_mask)


def test_from_scratch_has_the_masks_of_an_expansion_and_weights_of_its_own():
    given = parent_of()
    scratch, wide = FromScratch("").make(given), fpe.expand(given.warm, 2, seed=given.seed)
    for one, other in zip((scratch[0], scratch[2]), (wide[0], wide[2]), strict=True):
        assert torch.equal(one.fpe_mask, other.fpe_mask)
        assert not torch.equal(one.weight, other.weight)
    inputs = scratch[0].fpe_mask.sum(dim=1, keepdim=True)
    assert (scratch[0].weight.abs() <= 1 / inputs.sqrt() + 1e-6).all()


def test_dropping_drops_in_training_only_and_trains_the_layer_itself():
    layer = nn.Linear(6, 3)
    dropping, x = DroppingLinear(layer, 0.5), torch.rand(2, 6)
    assert dropping.weight is layer.weight
    assert torch.equal(dropping.eval()(x), layer(x))
    torch.manual_seed(0)
    assert not torch.allclose(dropping.train()(x), layer(x))


def trained_wide(seed=0):
    network = fpe.expand(fpe.mlp(12, 4, 3, seed=seed), 2, seed=seed)
    optimizer = adam(network, 1e-2)
    X, y = torch.rand(30, 12), torch.arange(30) % 3
    train(network, X, y, epochs=1, optimizer=optimizer, generator=torch.Generator().manual_seed(0))
    return network, optimizer


def test_random_rewiring_drops_the_smallest_and_keeps_every_count():
    network, optimizer = trained_wide()
    before = [(m.weight.detach().clone(), m.fpe_mask.clone()) for m in network if isinstance(m, MaskedLinear)]
    rewire_at_random_(network, optimizer, 0.25, torch.Generator().manual_seed(1))
    after = [m for m in network if isinstance(m, MaskedLinear)]
    for (weight, mask), layer in zip(before, after, strict=True):
        moved = min(int(0.25 * mask.sum()), int((mask == 0).sum()))
        dropped, grown = (mask > layer.fpe_mask), (mask < layer.fpe_mask)
        assert int(layer.fpe_mask.sum()) == int(mask.sum())
        assert int(dropped.sum()) == int(grown.sum()) == moved
        if moved:
            assert weight[dropped].abs().max() <= weight[(mask > 0) & ~dropped].abs().min()
        assert not layer.weight[layer.fpe_mask == 0].any()
        assert not layer.weight[grown].any()
        for moment in ("exp_avg", "exp_avg_sq"):
            assert not optimizer.state[layer.weight][moment][dropped | grown].any()


def test_rounding_by_hand():
    """Levels of 2 bits are −1, 0, 1 times the row's largest; zeros stay zeros; a row of zeros does too."""
    rows = torch.tensor([[2.0, -0.9, 1.1, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert rounded_rows(rows, 2).tolist() == [[2.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    fine = rounded_rows(torch.tensor([[127.0, -3.4, 0.6]]), 8)
    assert fine.tolist() == [[127.0, -3.0, 1.0]]


def test_int8_is_what_integer_arithmetic_gives():
    """Products of the rounded inputs and weights, in integers, times both scales, plus the bias."""
    network = nn.Sequential(nn.Linear(20, 5))
    x = torch.randn(7, 20)
    weight, bias = network[0].weight.detach(), network[0].bias.detach()
    steps = [t.abs().amax(dim=1, keepdim=True) / 127 for t in (x, weight)]
    integers = [(t / s).round().long() for t, s in zip((x, weight), steps, strict=True)]
    expected = (integers[0] @ integers[1].T) * steps[0] * steps[1].T + bias
    torch.testing.assert_close(rounded(network, 8)(x).detach(), expected)
    assert torch.equal(network[0].weight.detach(), weight)


def test_rounding_keeps_the_masks_zeros():
    network, _ = trained_wide()
    low = rounded(network, 4)
    assert not low[0].layer.weight[network[0].fpe_mask == 0].any()
    X, y = torch.rand(30, 12), torch.arange(30) % 3
    assert 0 <= accuracy(low, X, y) <= 1


DIGITS = load("digits")
SOURCE = Source("digits", DIGITS.fingerprint)
CONFIG = NetworksConfig(3, 3, 1e-2)


def records(kinds, hidden=(4,), trials=(0, 1), layers=1):
    return run_networks(SOURCE, CONFIG, hidden, kinds, trials, layers)["networks"]


def test_every_kind_is_trained_and_measured(monkeypatch):
    monkeypatch.setattr("fpe_reproduction.experiments.splits.STEPS", 5)
    kinds = [k for k in KINDS if k not in ("random-x8",)]
    config = NetworksConfig(1, 1, 1e-2)
    made = run_networks(SOURCE, config, [4], kinds, [0])["networks"]
    assert sorted(n["kind"] for n in made) == sorted(kinds)
    dense = next(n for n in made if n["kind"] == "dense")
    for n in made:
        assert n["nonzero"] <= (2 * dense["nonzero"] if n["kind"] in DOUBLED else dense["nonzero"])
        assert all(0 <= n[m] <= 1 for m in ("accuracy", "train_accuracy", "accuracy_int8", "accuracy_int4"))


def test_a_kind_does_not_depend_on_the_kinds_beside_it():
    """So that experiments can share networks, and that a task can be run alone."""
    alone = {n["trial"]: n for n in records(["random"])}
    beside = records(
        ["dense", "random", "gram", "random-at-25", "fewer-norm", "rewired-20", "distilled-dense"]
    )
    for n in beside:
        if n["kind"] == "random":
            assert n["accuracy"] == pytest.approx(alone[n["trial"]]["accuracy"], abs=0.03)
            assert n["cosine"] == pytest.approx(alone[n["trial"]]["cosine"], abs=1e-2)


def test_random_is_the_recipe_of_three_calls():
    """Train, expand, train: the timeline gives what the ordinary loop gives, within rounding."""
    X, y = torch.from_numpy(DIGITS.X_train), torch.from_numpy(DIGITS.y_train)
    parent, generator = fpe.mlp(64, 4, 10, seed=0), torch.Generator().manual_seed(0)
    train(parent, X, y, epochs=3, optimizer=adam(parent, 1e-2), generator=generator)
    wide = fpe.expand(parent, 2, seed=0)
    train(wide, X, y, epochs=3, optimizer=adam(wide, 1e-2), generator=generator)
    expected = accuracy(wide, torch.from_numpy(DIGITS.X_test), torch.from_numpy(DIGITS.y_test))
    (record,) = records(["random"], trials=[0])
    assert record["accuracy"] == pytest.approx(expected, abs=0.01)


def test_deep_networks_expand_every_second_layer():
    dense, wide = (
        next(n for n in records(["dense", "random"], layers=4) if n["kind"] == k) for k in ("dense", "random")
    )
    assert wide["neurons"] == 2 * dense["neurons"] == 8
    assert wide["nonzero"] == dense["nonzero"]


def test_a_kind_that_exceeds_the_count_is_left_out(tmp_path):
    """40 classes of 6 features: twice the neurons cost more outputs than there are inputs to save."""
    rng = np.random.default_rng(0)
    file = tmp_path / "many.npz"
    np.savez(file, X=rng.random((400, 6)), y=np.arange(400) % 40)
    source = Source(str(file), load(file).fingerprint)
    made = run_networks(source, CONFIG, [3], ["dense", "fewer-variance"], [0])["networks"]
    assert [n["kind"] for n in made] == ["dense"]


def test_other_data_than_the_runs_is_refused():
    with pytest.raises(
        fpe.errors.DataError, match="digits has other data here than where the run was started"
    ):
        run_networks(Source("digits", "another"), CONFIG, [4], ["dense"], [0])


@pytest.mark.parametrize("x", ["", "-x3", "-x4"])
@pytest.mark.parametrize("by", ["activation", "gradient"])
def test_rankings_are_measured_on_the_training_data(by, x):
    """The networks are those that a user's own expansion with the batch, or after a backward pass, gives."""
    given, factor = parent_of(), int(x[2:] or 2)
    parent = copy.deepcopy(given.model)
    nn.functional.cross_entropy(parent(given.X), given.y).backward()
    how = {"split": "shared", "prune": fpe.InputPruning(by), "example_inputs": given.X, "seed": given.seed}
    assert same_state(KINDS[f"columns-{by}{x}"].make(given), fpe.expand(parent, factor, **how))
    assert all(p.grad is None for p in given.model.parameters())


def test_rankings_differ_where_inputs_do():
    """An input that is always zero is pruned by activation and by gradient, however large its weights are."""
    given = parent_of(zero=7)
    with torch.no_grad():
        given.model[0].weight[:, 7] = 10
    kinds = ("columns", "columns-activation", "columns-gradient")
    free = {kind: bool(KINDS[kind].make(given)[0].fpe_mask[:, 7].any()) for kind in kinds}
    assert free["columns"]
    assert not free["columns-activation"]
    assert not free["columns-gradient"]


def test_what_is_measured_on_is_spread_over_the_data():
    assert sample(torch.arange(7)).tolist() == list(range(7))
    picked = sample(torch.arange(10_003))
    assert picked[:3].tolist() == [0, 5, 10]
    assert len(picked) == 2000


def test_the_first_layer_alone_can_be_expanded():
    """Of five layers, and by whole columns; by default every second layer is."""
    deep = parent_of(layers=4)
    for kind, layers in (("random", ["0", "6"]), ("random-first", ["0"]), ("columns-first", ["0"])):
        wide = KINDS[kind].make(deep)
        assert [layer.group.name for layer in wide.fpe_plan.layers] == layers
        assert fpe.count_nonzero(wide) == fpe.count_nonzero(deep.model)
    assert wide.fpe_plan.prune == "InputPruning()"


def test_gated_networks_are_trained_and_measured():
    """As the recipe of three calls gives them; all have the dense count; a second run gives the same."""
    made = run_classifiers(SOURCE, CONFIG, [4], [0, 1])["networks"]
    assert made[:5] == run_classifiers(SOURCE, CONFIG, [4], [0])["networks"]
    assert [n["kind"] for n in made[:5]] == ["dense", "random", "shared", "columns", "columns-activation"]
    assert {n["nonzero"] for n in made} == {2 * 4 * (64 + 1) + 10 * (4 + 1)}
    assert {n["neurons"] for n in made if n["kind"] != "dense"} == {8}
    assert all(n["network"] == "gated" and 0 <= n["accuracy"] <= 1 for n in made)
    X, y = torch.from_numpy(DIGITS.X_train), torch.from_numpy(DIGITS.y_train)
    torch.manual_seed(0)
    network, generator = Gated(64, 4, 10), torch.Generator().manual_seed(0)
    train(network, X, y, epochs=3, optimizer=adam(network, 1e-2), generator=generator)
    how = {"layers": ["gate"], "prune": fpe.InputPruning("activation"), "example_inputs": X}
    wide = fpe.expand(network, 2, split="shared", seed=0, **how)
    train(wide, X, y, epochs=3, optimizer=adam(wide, 1e-2), generator=generator)
    assert made[4]["accuracy"] == accuracy(
        wide, *(torch.from_numpy(a) for a in (DIGITS.X_test, DIGITS.y_test))
    )
