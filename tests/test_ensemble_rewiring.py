"""Networks that are trained together move the same weights as each would alone."""

import copy

import pytest
import torch

import fpe
from fpe.errors import ArgumentError
from fpe.rewiring import POLICIES
from fpe.training import ensemble
from fpe.training.loop import EarlyStopping, adam, train
from test_ensemble import THREE, X, assert_same
from test_rewiring import EVERY_POLICY, masked

SCHEDULE = fpe.RewiringSchedule(every=7, share=0.4, until=0.75)  # five steps are an epoch


def networks(policy, widths, split="shared"):
    how = {"split": split, "prune": "columns"} if policy.unit == "column" else {}
    dense = [fpe.mlp(12, h, 3, seed=s, dtype=torch.float64) for s, h in enumerate(widths)]
    return [fpe.expand(network, 2, seed=s, **how) for s, network in enumerate(dense)]


def run(
    together,
    policy,
    widths=(6, 7, 8),
    epochs=(4, 4),
    steps=40,
    compile=False,
    split="shared",
    **options,
):
    """Train in two calls; return all that training changes."""
    nets = networks(policy, widths, split)
    optimizers = [adam(n, 3e-2) for n in nets]
    rewirers = [
        fpe.Rewirer(n, o, policy, steps=steps, schedule=SCHEDULE, seed=s)
        for s, (n, o) in enumerate(zip(nets, optimizers, strict=True))
    ]
    generators = [torch.Generator().manual_seed(i // 2) for i in range(len(nets))]
    histories = [[] for _ in nets]
    for count in epochs:
        how = {"epochs": count, "batch_size": 100, **options}
        if together:
            how |= {"optimizers": optimizers, "generators": generators, "rewirers": rewirers}
            found = ensemble.train(nets, X, THREE, compile=compile, **how)
        else:
            each = zip(nets, optimizers, generators, rewirers, strict=True)
            found = [train(n, X, THREE, optimizer=o, generator=g, rewirer=r, **how) for n, o, g, r in each]
        for history, records in zip(histories, found, strict=True):
            history += records
    return (nets, optimizers, generators, histories), rewirers


def assert_same_rewirers(one, other):
    for a, b in zip(one, other, strict=True):
        assert (a.taken, a.rewirings, a.grown) == (b.taken, b.rewirings, b.grown)
        assert torch.equal(a.generator.get_state(), b.generator.get_state())
        torch.testing.assert_close(a.gathered(), b.gathered())


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_together_is_as_alone(policy):
    """Masks, weights, moments, what is gathered, and the rewirers' generators, in two calls."""
    alone, own = run(False, EVERY_POLICY[policy])
    both, others = run(True, EVERY_POLICY[policy])
    assert_same(alone, both)
    assert_same_rewirers(own, others)
    assert own[0].rewirings == 4
    assert all(sum(r.grown.values()) > 0 for r in own)


@pytest.mark.parametrize("widths", [(6, 6, 6), (4, 6, 8, 4)])
def test_blocks_of_groups_move_together_as_alone(widths):
    """Also where networks differ in width, and so in which rows are a block."""
    alone, own = run(False, POLICIES["columns"], widths, split=fpe.SharedSplit(groups=2))
    both, others = run(True, POLICIES["columns"], widths, split=fpe.SharedSplit(groups=2))
    assert_same(alone, both)
    assert_same_rewirers(own, others)
    assert all(sum(r.grown.values()) > 0 for r in own)


@pytest.mark.parametrize("policy", ["rigl", "accumulated"])
def test_compiled_is_as_alone(policy):
    """With masks that are opened for some steps, and with gradients that the program sums."""
    alone, own = run(False, POLICIES[policy])
    both, others = run(True, POLICIES[policy], compile=True)
    assert_same(alone, both)
    assert_same_rewirers(own, others)


def test_deep_networks_move_group_by_group():
    alone, own = run(False, POLICIES["paper"], ([6, 5], [7, 5], [8, 7]))
    both, others = run(True, POLICIES["paper"], ([6, 5], [7, 5], [8, 7]))
    assert_same(alone, both)
    assert_same_rewirers(own, others)


def test_early_stopping_goes_back_to_the_masks_of_the_best_epoch():
    stop = EarlyStopping(X[:50] + 0.3, THREE[:50], 1)
    alone, _ = run(False, POLICIES["rigl"], early_stopping=stop, epochs=(9, 3), steps=60)
    both, _ = run(True, POLICIES["rigl"], early_stopping=stop, epochs=(9, 3), steps=60)
    assert_same(alone, both)
    for network in alone[0]:
        for layer in masked(network).values():
            assert not layer.weight[layer.fpe_mask == 0].any()


def test_counts_stay_exact():
    (nets, optimizers, *_), _ = run(True, POLICIES["accumulated"], compile=False)
    for width, network, optimizer in zip((6, 7, 8), nets, optimizers, strict=True):
        assert fpe.count_nonzero(network) == fpe.count_nonzero(fpe.mlp(12, width, 3))
        for layer in masked(network).values():
            held = layer.fpe_mask == 0
            assert not layer.weight[held].any()
            assert not optimizer.state[layer.weight]["exp_avg"][held].any()


def test_some_networks_may_move_and_others_not():
    nets = networks(POLICIES["rigl"], (6, 6))
    optimizers = [adam(n, 1e-2) for n in nets]
    still = copy.deepcopy(nets[0])
    rewirers = [None, fpe.Rewirer(nets[1], optimizers[1], steps=20, schedule=SCHEDULE)]
    generators = [torch.Generator()] * 2
    how = {"epochs": 4, "optimizers": optimizers, "generators": generators, "batch_size": 100}
    ensemble.train(nets, X, THREE, rewirers=rewirers, **how)
    assert torch.equal(nets[0][0].fpe_mask, still[0].fpe_mask)
    assert rewirers[1].rewirings == 2


def test_ctrl_c_leaves_the_masks_of_the_last_finished_epoch(monkeypatch):
    from fpe.training.ensemble.rewiring import StackRewiring

    reference, _ = run(True, POLICIES["accumulated"], epochs=(2,))
    real, calls = StackRewiring.after, []

    def stop(self):
        real(self)
        calls.append(1)
        if len(calls) == 14:  # a rewiring, in the third epoch
            raise KeyboardInterrupt

    monkeypatch.setattr(StackRewiring, "after", stop)
    kept = []
    monkeypatch.setattr(
        "test_ensemble_rewiring.networks", lambda *a, f=networks: kept.append(f(*a)) or kept[-1]
    )
    with pytest.raises(KeyboardInterrupt):
        run(True, POLICIES["accumulated"], epochs=(5,))
    for a, b in zip(reference[0], kept[0], strict=True):
        for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            assert torch.equal(x, y), name


def test_a_rewirer_of_another_network_is_refused():
    nets = networks(POLICIES["rigl"], (6, 6))
    optimizers = [adam(n) for n in nets]
    rewirer = fpe.Rewirer(nets[0], optimizers[0], steps=9)
    how = {"epochs": 1, "optimizers": optimizers, "generators": [torch.Generator()] * 2}
    with pytest.raises(ArgumentError, match="network 1: its rewirer is not for it and its optimizer"):
        ensemble.train(nets, X, THREE, rewirers=[None, rewirer], **how)
    with pytest.raises(ArgumentError, match="rewirers has 1 for 2 networks; give one for each"):
        ensemble.train(nets, X, THREE, rewirers=[rewirer], **how)
