"""Masks that move: counts are exact after each rewiring, and what is held is zero, moments and all."""

import copy
import warnings

import pytest
import torch
from torch import nn

import fpe
from fpe.errors import ArgumentError, CheckpointError, ModelError
from fpe.graph.inputs import as_call, tensors_in
from fpe.rewiring import POLICIES
from fpe.rewiring.drop_and_grow import LayerBatch, disjoint_candidates, drop_and_grow, exchange, smallest
from models import MODELS, same_bits, same_state
from zoo import ZOO

EVERY_2 = fpe.RewiringSchedule(every=2, share=0.5, until=1.0, decay="constant")


def masked(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, fpe.MaskedLayer)}


def expanded(name, policy="rigl"):
    model, x = MODELS[name]()
    how = (
        {"split": "shared", "prune": "columns"}
        if fpe.rewiring.policies.as_policy(policy).unit == "column"
        else {}
    )
    return fpe.expand(model, 2, seed=1, **how), x


def train(wide, x, rewirer, optimizer, steps, begin=0, check=None):
    for step in range(begin, begin + steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        wide(x + torch.randn_like(x)).square().mean().backward()
        optimizer.step()
        rewirer.step()
        if check is not None:
            check(step + 1)


def start(name="mlp", policy="rigl", schedule=EVERY_2, steps=12, seed=0, lr=1e-2):
    wide, x = expanded(name, policy)
    optimizer = torch.optim.Adam(wide.parameters(), lr)
    rewirer = fpe.Rewirer(wide, optimizer, policy, steps=steps, schedule=schedule, seed=seed)
    return wide, x, rewirer, optimizer


# --- choosing -----------------------------------------------------------------------------------------------


def test_the_smallest_are_chosen_and_of_equal_ones_the_earlier():
    scores = torch.tensor([[2.0, 1, 1, 0, 1], [5.0, 4, 3, 2, 1]])
    among = torch.tensor([[1, 1, 1, 0, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
    assert smallest(scores, among, [2, 0]).tolist() == [[False, True, True, False, False], [False] * 5]
    assert smallest(scores, among, [4, 1]).tolist() == [[True, True, True, False, True], [False] * 4 + [True]]
    assert smallest(scores.neg(), among, [1, 2]).tolist() == [
        [True] + [False] * 4,
        [True, True, False, False, False],
    ]
    ties = torch.zeros(1, 4)
    assert smallest(ties, ties == 0, [3]).tolist() == [[True, True, True, False]]


@pytest.mark.parametrize("drop", ["magnitude", "movement"])
@pytest.mark.parametrize("partition", ["free", "kept"])
@pytest.mark.parametrize("grow", ["gradient", "random"])
def test_how_weights_lie_in_memory_does_not_change_what_moves(grow, partition, drop):
    """With whole numbers for weights and gradients, so that most scores are equal, and with padding."""
    generator = torch.Generator().manual_seed(0)

    def layer(outputs, inputs, children):
        def drawn(low, high):
            return torch.randint(low, high, (3, outputs, inputs), generator=generator).double()

        real = torch.ones(3, outputs, inputs, dtype=torch.bool)
        real[0, -2:] = False
        mask = drawn(0, 2) * real
        noise = torch.rand(3, outputs, inputs, generator=generator)
        return LayerBatch(drawn(-2, 3) * mask, mask, drawn(-2, 3), noise, real, children)

    def turned(own):
        parts = (own.weight, own.mask, own.gradient, own.noise, own.real)
        views = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in parts]
        return LayerBatch(*views, own.children)

    layers = [layer(8, 5, torch.arange(8).view(4, 2)), layer(3, 8, None)]
    for scope in (layers, layers[:1], layers[1:]):
        new = drop_and_grow(fpe.RewiringPolicy(grow, drop, partition=partition), scope, 0.4)
        again = drop_and_grow(
            fpe.RewiringPolicy(grow, drop, partition=partition), [turned(own) for own in scope], 0.4
        )
        assert any((mask != own.mask).any() for mask, own in zip(new, scope, strict=True))
        for one, other in zip(new, again, strict=True):
            assert torch.equal(one, other)


def test_what_has_left_does_not_enter_and_fewer_leave_where_fewer_may_enter():
    free = torch.tensor([[True, True, True, False]])
    drop, grow = torch.tensor([[1.0, 2, 3, 0]]), torch.tensor([[9.0, 9, 9, 0]])
    dropped, grown = exchange(free, free, drop, grow, [3], lambda _: ~free)
    assert dropped.tolist() == [[True, False, False, False]]
    assert grown.tolist() == [[False, False, False, True]]


def test_siblings_that_want_one_place_do_not_both_get_it():
    """Rows 0 and 1 are children of one neuron, row 2 is the only child of another."""
    children = torch.tensor([[0, 1], [2, 3]])
    free = torch.tensor([[[1, 0, 0], [0, 0, 0], [0, 1, 0]]], dtype=torch.bool)
    scores = torch.tensor([[[9.0, 1, 2], [9, 3, 2], [1, 1, 1]]])
    assert disjoint_candidates(free, ~free, scores, children).int().tolist() == [
        [[0, 0, 1], [0, 1, 0], [1, 0, 1]]
    ]


def test_rigl_by_hand():
    """A third of three free weights moves: the smallest goes, the one of the largest gradient comes."""
    weight = torch.tensor([[[3.0, -1, 0], [0, 2, 0]]])
    mask = (weight != 0).float()
    gradient = torch.tensor([[[9.0, 9, 1], [-5, 9, 5]]])
    (new,) = drop_and_grow(POLICIES["rigl"], [LayerBatch(weight, mask, gradient)], 0.34)
    assert new.tolist() == [[[1, 0, 0], [1, 1, 0]]]
    (new,) = drop_and_grow(
        fpe.RewiringPolicy(drop="movement"),
        [LayerBatch(weight, mask, gradient / weight.abs().clamp_min(1) ** 3)],
        0.34,
    )
    assert new.tolist() == [[[0, 1, 0], [1, 1, 0]]]


def test_a_scope_of_two_layers_lets_the_count_move_between_them():
    first, second = torch.tensor([[[1.0, 2, 0, 0]]]), torch.tensor([[[3.0, 4, 0, 0]]])
    gradients = torch.tensor([[[0.0, 0, 1, 2]]]), torch.tensor([[[0.0, 0, 3, 4]]])
    layers = [LayerBatch(w, (w != 0).float(), g) for w, g in zip((first, second), gradients, strict=True)]
    assert [m.tolist() for m in drop_and_grow(fpe.RewiringPolicy(scope="group"), layers, 0.5)] == [
        [[[0, 0, 0, 0]]],
        [[[1, 1, 1, 1]]],
    ]
    for layer in layers:
        (new,) = drop_and_grow(fpe.RewiringPolicy(), [layer], 0.5)
        assert new.tolist() == [[[0, 1, 0, 1]]]


def test_columns_by_hand():
    """Two neurons of two blocks over four inputs: the weakest column leaves, and none empties its block."""
    weight = torch.tensor([[[1.0, 5, 0, 0], [0, 0, 2, 0], [1, 5, 0, 0], [0, 0, 2, 0]]])
    mask = (weight != 0).float()
    gradient = torch.zeros_like(weight)
    gradient[0, 1, 3], gradient[0, 2, 3] = 2, 1
    children = torch.tensor([[0, 1], [2, 3]])
    layer = LayerBatch(weight, mask, gradient, children=children)
    (new,) = drop_and_grow(fpe.RewiringPolicy("accumulated", unit="column"), [layer], 1.0)
    assert new.tolist() == [[[0, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 1, 1]]]


def test_columns_of_two_groups_by_hand():
    """Each parent is a group and each row a block: the weakest of its two inputs goes, and one comes."""
    weight = torch.tensor([[[9.0, 8, 0, 0], [0, 0, 7, 1], [6, 0, 5, 0], [0, 4, 0, 3]]])
    mask = (weight != 0).float()
    gradient = torch.tensor([[[0.0, 0, 1, 2], [2, 1, 0, 0], [0, 9, 0, 8], [2, 0, 1, 0]]])
    children, blocks = torch.tensor([[0, 1], [2, 3]]), torch.arange(4).view(4, 1)
    layer = LayerBatch(weight, mask, gradient, children=children, blocks=blocks)
    (new,) = drop_and_grow(fpe.RewiringPolicy("accumulated", unit="column"), [layer], 0.5)
    assert new.tolist() == [[[1, 0, 0, 1], [1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]]]
    apart = fpe.RewiringPolicy("accumulated", partition="kept", unit="column")
    (new,) = drop_and_grow(
        apart, [layer], 0.5
    )  # input 3 goes to row 0, input 1 to row 1, 3 to row 2, 2 to row 3
    assert new.tolist() == [[[1, 0, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0]]]


# --- models -------------------------------------------------------------------------------------------------

EVERY_POLICY = {
    **POLICIES,
    **{f"{grow} {drop} {scope} {partition}": fpe.RewiringPolicy(grow, drop, scope, partition)
       for grow, drop, scope, partition in [
           ("gradient", "movement", "group", "kept"), ("random", "movement", "network", "kept"),
           ("accumulated", "magnitude", "network", "free"), ("momentum", "magnitude", "group", "kept"),
           ("random", "magnitude", "layer", "kept")]},
    "columns apart": fpe.RewiringPolicy("accumulated", "movement", partition="kept", unit="column"),
}  # fmt: skip


@pytest.mark.parametrize("policy", EVERY_POLICY)
@pytest.mark.parametrize("name", MODELS)
def test_counts_are_exact_and_what_is_held_is_zero(name, policy):
    """After each rewiring: the count of each scope, zeros, no moments, siblings apart where asked for."""
    policy = EVERY_POLICY[policy]
    try:
        wide, x, rewirer, optimizer = start(name, policy)
    except fpe.FPEError:  # too small for columns, or not in whole columns
        if policy.unit == "column":
            return
        raise
    layers, siblings = masked(wide), [site.children for site in rewirer.sites]
    disjoint = [c is not None and _disjoint(s.layer, c) for c, s in zip(siblings, rewirer.sites, strict=True)]
    counts = [sum(float(rewirer.sites[i].layer.fpe_mask.sum()) for i in scope) for scope in rewirer.scopes]
    total, before = fpe.count_nonzero(wide), copy.deepcopy(wide)

    def check(step):
        assert fpe.count_nonzero(wide) == total
        now = [sum(float(rewirer.sites[i].layer.fpe_mask.sum()) for i in scope) for scope in rewirer.scopes]
        assert now == counts
        for layer in layers.values():
            held = layer.fpe_mask == 0
            assert not layer.weight[held].any()
            for moment in ("exp_avg", "exp_avg_sq"):
                assert not optimizer.state[layer.weight][moment][held].any()
        if policy.partition == "kept" and policy.unit == "weight":
            for site, children, were in zip(rewirer.sites, siblings, disjoint, strict=True):
                assert not were or _disjoint(site.layer, children)

    train(wide, x, rewirer, optimizer, 12, check=check)
    assert rewirer.rewirings == 5
    moved = any(not torch.equal(m.fpe_mask, masked(before)[n].fpe_mask) for n, m in layers.items())
    assert moved == (sum(rewirer.grown.values()) > 0)
    if policy.unit == "weight":
        assert moved
    elif "0" in layers:
        assert set(fpe.pack(wide).fpe_packing.rows[0].format.split()) <= {"blocks", "dense"}


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_columns_of_groups_stay_whole_and_packable_after_each_move(groups):
    """The count is exact, all rows of a block read the same, and packed and masked answer the same."""
    model = fpe.mlp(40, 8, 3, seed=1)
    wide = fpe.reinitialize_(
        fpe.expand(model, 3, split=fpe.SharedSplit(groups), prune="columns", seed=2), seed=2
    )
    optimizer = torch.optim.Adam(wide.parameters(), lr=1e-2)
    rewirer = fpe.Rewirer(wide, optimizer, "columns", steps=20, schedule=EVERY_2)
    x = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    before = wide[0].fpe_mask.clone()

    def check(step):
        assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
        blocks = wide[0].fpe_mask.view(groups, 8 // groups, 3, 40)
        assert torch.equal(blocks, blocks[:, :1].expand_as(blocks))
        packed = fpe.pack(wide)
        assert packed.fpe_packing.rows[0].why == f"{3 * groups} blocks, all of it free"
        assert [neurons for neurons, _ in packed[0].sizes] == [8 // groups] * (3 * groups)
        if groups > 1:  # 40 - 8 inputs are left to the three blocks of a group
            assert {inputs for _, inputs in packed[0].sizes} == {10, 11}
        torch.testing.assert_close(packed(x), wide(x), rtol=1e-5, atol=1e-5)

    train(wide, x, rewirer, optimizer, 20, check=check)
    assert rewirer.rewirings > 3
    assert not torch.equal(before, wide[0].fpe_mask)


def test_children_that_stay_disjoint_are_packed_as_codes_after_each_move():
    """Whatever moves: no input has two owners, holes included, and about half of the parent's places stay."""
    model = fpe.mlp(60, 8, 30, seed=1)
    wide = fpe.reinitialize_(fpe.expand(model, 4, prune="balanced", seed=2), seed=2)
    optimizer = torch.optim.Adam(wide.parameters(), lr=1e-2)
    policy = fpe.RewiringPolicy("accumulated", partition="kept")
    rewirer = fpe.Rewirer(wide, optimizer, policy, steps=12, schedule=EVERY_2)
    x = torch.randn(30, 60, generator=torch.Generator().manual_seed(0))
    before = wide[0].fpe_mask.clone()

    def check(step):
        packed = fpe.pack(wide)
        row = packed.fpe_packing.rows[0]
        assert (row.format, row.why) == ("codes", "each input of 4 children once, with its owner")
        assert row.bytes[2] == 4 * 8 * 60 + 3 * 8 * 8 + 4 * 32  # values, three bits for each, biases
        assert packed[0].values.shape == (8, 60)
        torch.testing.assert_close(packed(x), wide(x), rtol=1e-5, atol=1e-5)
        assert fpe.count_nonzero(packed) == fpe.count_nonzero(model)

    train(wide, x, rewirer, optimizer, 12, check=check)
    assert rewirer.grown["0"] > 0
    assert not torch.equal(before, wide[0].fpe_mask)


def test_groups_of_convolutions_move_whole_channels():
    model = nn.Sequential(nn.Conv2d(12, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    x = torch.randn(2, 12, 5, 5, generator=torch.Generator().manual_seed(0))
    wide = fpe.expand(model, 2, split=fpe.SharedSplit(groups=2), prune="columns", example_inputs=x, seed=1)
    optimizer = torch.optim.Adam(wide.parameters(), lr=1e-2)
    rewirer = fpe.Rewirer(wide, optimizer, "columns", steps=12, schedule=EVERY_2)
    train(wide, x, rewirer, optimizer, 12)
    assert rewirer.grown["0"] > 0
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    packed = fpe.pack(wide)
    assert [neurons for neurons, _ in packed[0].sizes] == [2] * 4
    torch.testing.assert_close(packed(x), wide(x), rtol=1e-5, atol=1e-5)


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(16, 6), nn.Linear(16, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def test_groups_of_gated_pairs_move_the_same_inputs_in_both():
    model, x = Gated(), torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    wide = fpe.expand(model, 2, split=fpe.SharedSplit(groups=3), prune="columns", example_inputs=x, seed=1)
    optimizer = torch.optim.Adam(wide.parameters(), lr=1e-2)
    rewirer = fpe.Rewirer(wide, optimizer, "columns", steps=12, schedule=EVERY_2)
    train(wide, x, rewirer, optimizer, 12)
    assert rewirer.grown["gate"] == rewirer.grown["up"] > 0
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    packed = fpe.pack(wide)
    for name in ("gate", "up"):
        assert [neurons for neurons, _ in packed.get_submodule(name).sizes] == [2] * 6
    assert torch.equal(packed.gate.columns, packed.up.columns)
    torch.testing.assert_close(packed(x), wide(x), rtol=1e-5, atol=1e-5)


def _disjoint(layer, children):
    mask = torch.cat([layer.fpe_mask, torch.zeros_like(layer.fpe_mask[:1])])
    return bool((mask[children].sum(dim=1) <= 1).all())


@pytest.mark.parametrize("policy", ["rigl", "paper"])
@pytest.mark.parametrize("name", ZOO)
def test_every_kind_of_model_is_rewired(name, policy):
    model, batch = ZOO[name]()
    try:
        wide = fpe.expand(model, 2, example_inputs=batch)
    except fpe.FPEError:
        pytest.skip("cannot be expanded")
    optimizer = torch.optim.AdamW(wide.parameters(), 1e-3)
    rewirer = fpe.Rewirer(wide, optimizer, policy, steps=4, schedule=EVERY_2)
    for _ in range(4):
        optimizer.zero_grad()
        args, kwargs = as_call(batch)
        answers = [a for a in tensors_in(wide(*args, **kwargs)) if a.requires_grad]
        sum(a.square().mean() for a in answers).backward()
        optimizer.step()
        rewirer.step()
    assert rewirer.rewirings == 1
    assert sum(rewirer.grown.values()) > 0
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    for layer in masked(wide).values():
        assert not layer.weight[layer.fpe_mask == 0].any()


def test_new_weights_and_their_moments_start_at_zero():
    wide, x, rewirer, optimizer = start()
    train(wide, x, rewirer, optimizer, 1)
    before = wide[0].fpe_mask.clone()
    train(wide, x, rewirer, optimizer, 1, 1)
    new = (wide[0].fpe_mask != 0) & (before == 0)
    assert new.any()
    assert not wide[0].weight[new].any()
    assert not optimizer.state[wide[0].weight]["exp_avg_sq"][new].any()
    train(wide, x, rewirer, optimizer, 1, 2)
    assert wide[0].weight[new].any()


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9), lambda p: torch.optim.AdamW(p, 1e-2, amsgrad=True),
    lambda p: torch.optim.RMSprop(p, 1e-2), lambda p: torch.optim.Adam(p, 1e-2, fused=True),
])  # fmt: skip
def test_any_optimizer_forgets_what_has_moved(make):
    wide, x = expanded("mlp")
    optimizer = make(wide.parameters())
    rewirer = fpe.Rewirer(wide, optimizer, "set", steps=12, schedule=EVERY_2)

    def check(step):
        for layer in masked(wide).values():
            held = layer.fpe_mask == 0
            assert not layer.weight[held].any()
            states = [
                v for v in optimizer.state[layer.weight].values() if getattr(v, "shape", ()) == held.shape
            ]
            assert states
            assert not any(v[held].any() for v in states)

    train(wide, x, rewirer, optimizer, 12, check=check)


def test_the_gradient_is_looked_at_in_the_step_of_the_rewiring_only():
    wide, x, rewirer, optimizer = start(schedule=fpe.RewiringSchedule(every=4, until=0.7))
    watched = []

    def check(step):
        watched.append(wide[0]._probe is not None)

    train(wide, x, rewirer, optimizer, 12, check=check)
    assert watched == [False, False, True, False, False, False, True, False, False, False, False, False]
    assert rewirer.rewirings == 2


@pytest.mark.parametrize(("policy", "weights"), [("gradient", [0, 0, 1]), ("accumulated", [1, 1, 1]),
                                                 ("momentum", [0.81, 0.9, 1])])  # fmt: skip
def test_what_is_gathered_is_the_sum_of_whole_gradients(policy, weights, monkeypatch):
    """Of several backward passes in a step too; the plain layer's gradient is the reference."""
    model, x = MODELS["mlp"]()
    wide = fpe.expand(model, 2, seed=1)
    optimizer = torch.optim.SGD(wide.parameters(), 0.1)
    seen = []
    monkeypatch.setattr(
        "fpe.rewiring.rewirer.drop_and_grow", lambda p, t, share: seen.extend(t) or [s.mask for s in t]
    )
    rewirer = fpe.Rewirer(
        wide, optimizer, fpe.RewiringPolicy(policy), steps=9, schedule=fpe.RewiringSchedule(every=3)
    )
    expected = torch.zeros_like(wide[0].weight)
    for weight in weights:
        optimizer.zero_grad()
        plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        plain.load_state_dict({k: v for k, v in wide.state_dict().items() if "mask" not in k})
        for part in (x[:2], x[2:]):
            wide(part).square().mean().backward()
            plain(part).square().mean().backward()
        expected += weight * plain[0].weight.grad
        optimizer.step()
        rewirer.step()
    torch.testing.assert_close(seen[0].gradient[0], expected)


def test_a_compiled_model_moves_the_same_weights():
    results = []
    for compiled in (False, True):
        wide, x, _, optimizer = start()
        model = torch.compile(wide, backend="aot_eager") if compiled else wide
        rewirer = fpe.Rewirer(model, optimizer, "rigl", steps=12, schedule=EVERY_2)
        train(model, x, rewirer, optimizer, 12)
        results.append(wide)
    assert all(torch.equal(m.fpe_mask, masked(results[1])[n].fpe_mask) for n, m in masked(results[0]).items())


@pytest.mark.parametrize("policy", ["set", "columns"])
def test_the_seed_decides(policy):
    policy = fpe.RewiringPolicy("random", unit="column" if policy == "columns" else "weight")
    runs = []
    for seed in (0, 0, 1):
        wide, x, rewirer, optimizer = start("mlp", policy, seed=seed)
        train(wide, x, rewirer, optimizer, 4)
        runs.append(wide)
    assert same_state(runs[0], runs[1])
    assert not same_state(runs[0], runs[2])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("at", [3, 4, 5])
def test_a_run_that_is_resumed_is_the_run_that_was_not_stopped(policy, at):
    """Bit for bit: masks, weights, moments and the rewirer's own state."""
    wide, x, rewirer, optimizer = start("mlp", policy, fpe.RewiringSchedule(every=4, until=0.75), 16)
    train(wide, x, rewirer, optimizer, at)
    saved = copy.deepcopy((wide.state_dict(), optimizer.state_dict(), rewirer.state_dict()))
    train(wide, x, rewirer, optimizer, 16 - at, at)
    again, x, resumed, other = start("mlp", policy, fpe.RewiringSchedule(every=4, until=0.75), 16, seed=5)
    for thing, state in zip((again, other, resumed), saved, strict=True):
        thing.load_state_dict(state)
    train(again, x, resumed, other, 16 - at, at)
    assert same_state(wide, again)
    for a, b in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert all(same_bits(a[k], b[k]) for k in a)
    assert rewirer.grown == resumed.grown
    assert rewirer.rewirings == resumed.rewirings == 2


def test_a_rewiring_without_finite_gradients_comes_one_step_later():
    wide, x, rewirer, optimizer = start()
    train(wide, x, rewirer, optimizer, 1)
    optimizer.zero_grad()
    (wide(x).square().mean() * torch.inf).backward()
    rewirer.step()  # a gradient scaler would have skipped the optimizer's
    assert rewirer.rewirings == 0
    train(wide, x, rewirer, optimizer, 1, 2)
    assert rewirer.rewirings == 1


def test_gradients_that_stay_infinite_are_warned_of_once():
    """Else the masks would stay as they are without a word."""
    wide, x, rewirer, optimizer = start()
    train(wide, x, rewirer, optimizer, 1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(50):
            optimizer.zero_grad()
            (wide(x).square().mean() * torch.inf).backward()
            rewirer.step()
    (warning,) = told
    assert "no mask has changed: training has diverged" in str(warning.message)
    assert warning.filename == __file__


def test_project_enforces_masks_that_something_else_has_set():
    wide, x, rewirer, optimizer = start()
    train(wide, x, rewirer, optimizer, 3)
    wide[0].fpe_mask[0] = 0
    rewirer.project()
    train(wide, x, rewirer, optimizer, 1, 3)
    assert (wide[0].weight[wide[0].fpe_mask == 0] == 0).all()


def test_a_copy_of_a_model_that_is_watched_is_not():
    wide, x, rewirer, optimizer = start()
    train(wide, x, rewirer, optimizer, 1)
    assert wide[0]._probe is not None
    assert copy.deepcopy(wide)[0]._probe is None
    assert fpe.unpack(fpe.pack(wide))[0]._probe is None


# --- what is refused ----------------------------------------------------------------------------------------


def refused(error, words, *arguments, **options):
    with pytest.raises(error) as caught:
        fpe.Rewirer(*arguments, **{"steps": 10, **options})
    assert [word for word in words if word not in str(caught.value)] == []


def test_what_cannot_be_done_is_refused_with_the_reason():
    dense, _ = MODELS["mlp"]()
    wide = fpe.expand(dense, 2)
    optimizer = torch.optim.Adam(wide.parameters())
    refused(ModelError, ["masked", "fpe.expand"], dense, optimizer)
    foreign = torch.optim.Adam(dense.parameters())
    refused(ArgumentError, ["does not train the weights of '0', '2'", "all optimizers"], wide, foreign)
    refused(ArgumentError, ["optimizer is a str", "torch.optim.Optimizer"], wide, ["adam"])
    words = ["layer '0'", "split='shared' and prune='columns'", "unit='weight'"]
    refused(ModelError, words, wide, optimizer, "columns")
    words = ["3 problems with the rewirer", "steps is 0", "seed is -1", "'rigel'", "Did you mean 'rigl'?"]
    refused(ArgumentError, [*words, "fpe.RewiringPolicy"], wide, optimizer, "rigel", steps=0, seed=-1)
    packed = fpe.pack(fpe.expand(dense, 2, split="shared"), format="blocks")
    names = ", ".join(repr(n) for n, m in packed.named_modules() if hasattr(m, "nbytes"))
    refused(ModelError, [f"layers {names} are packed", "fpe.unpack"], packed, optimizer)


def test_values_are_checked_all_at_once():
    with pytest.raises(ArgumentError) as caught:
        fpe.RewiringSchedule(every=0, share=1.5, until=0, decay="step")
    for word in ("4 problems", "every is 0", "share is 1.5", "until is 0", "decay is 'step'", "'linear'"):
        assert word in str(caught.value)
    with pytest.raises(ArgumentError) as caught:
        fpe.RewiringPolicy(grow="gradiant", scope="network", unit="column")
    for word in ("2 problems", "Did you mean 'gradient'?", "scope is 'network'", "unit='weight'"):
        assert word in str(caught.value)


def test_the_share_falls_as_a_cosine():
    schedule = fpe.RewiringSchedule(every=10, share=0.4, until=0.5)
    assert [schedule.share_at(step, 100) for step in (0, 25, 50)] == pytest.approx([0.4, 0.2, 0])
    assert [s for s in range(100) if schedule.rewires(s, 100)] == [10, 20, 30, 40]
    assert fpe.RewiringSchedule(decay="linear", until=1.0).share_at(50, 100) == pytest.approx(0.15)
    assert fpe.RewiringSchedule(decay="constant").share_at(50, 100) == 0.3


def test_a_rewirer_says_so_when_its_layers_are_packed_away():
    wide, x, rewirer, optimizer = start()
    train(wide, x, rewirer, optimizer, 1)
    wide[0] = fpe.pack(fpe.expand(MODELS["mlp"]()[0], 2, split="shared"))[0]
    with pytest.raises(ModelError, match=r"layer '0' is no longer .* packed .* fpe.unpack"):
        rewirer.step()


@pytest.mark.parametrize("policy", ["rigl", "set"])
def test_a_rewirer_says_so_when_another_model_is_trained(policy):
    """As after `packed = fpe.pack(wide)`, with the old rewirer in the new loop."""
    _, _, rewirer, _ = start(policy=policy)
    rewirer.step()
    with pytest.raises(
        ModelError, match=r"no gradient has reached this rewirer's layers .* packed or copied"
    ):
        rewirer.step()


def test_a_state_of_another_rewirer_is_refused():
    _, _, rewirer, _ = start()
    _, _, other, _ = start("three_hidden", "set", fpe.RewiringSchedule(), 99)
    with pytest.raises(CheckpointError, match="4 problems with the rewirer's state") as caught:
        rewirer.load_state_dict(other.state_dict())
    assert "  - steps is 99 in the state, and 12 here." in str(caught.value)
    assert rewirer.taken == 0


def test_a_rewirer_prints_what_it_has_done():
    wide, x, rewirer, optimizer = start()
    train(wide, x, rewirer, optimizer, 4)
    assert "step 4 of 12, 2 rewirings" in repr(rewirer)
    lines = rewirer.summary().splitlines()
    assert lines[1].split() == ["layer", "free", "of", "grown", "so", "far"]
    assert lines[-1] == "the count of each layer is constant"


def test_groups_are_an_expanded_layer_and_all_that_read_it():
    wide, _ = expanded("three_hidden")
    optimizer = torch.optim.Adam(wide.parameters())
    scopes = fpe.Rewirer(wide, optimizer, "paper", steps=9).scopes
    assert scopes == [[0, 1], [2, 3]]
