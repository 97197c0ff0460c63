"""`BlockPruner`: inputs of packed blocks are pruned as those of masks would be, and memory falls."""

import copy

import pytest
import torch
from torch import nn

import fpe
from fpe.errors import ArgumentError, BudgetError, CheckpointError, ModelError
from fpe.expansion.splits import SharedSplit
from fpe.packing.layers import bytes_of
from fpe.rewiring.block_pruner import keep_inputs_
from fpe.rewiring.gradual import score_of
from fpe.rewiring.sites import set_mask_

STEPS = 20
SCHEDULE = fpe.PruningSchedule(begin=0.1, end=0.8, every=4)


def wide(groups=2, hidden=16, inputs=60, factor=2, seed=0):
    model = fpe.mlp(inputs, hidden, 3, seed=seed)
    return fpe.expand(model, factor=factor, split=SharedSplit(groups), prune="columns", seed=seed)


def train(model, optimizer, after, first=0, last=STEPS):
    """Train on one batch for each step; the loss, and so the graph, of a step is alive in the next one."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(32, model[0].in_features, generator=generator)
        y = torch.randint(3, (32,), generator=generator)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after(step + 1)


def pruned(packed, budget, score="moment", kind=torch.optim.Adam, **how):
    optimizer = kind(packed.parameters(), lr=1e-2)
    pruner = fpe.BlockPruner(packed, optimizer, budget=budget, steps=STEPS, score=score, schedule=SCHEDULE)
    train(packed, optimizer, lambda step: pruner.step(), **how)
    return pruner, optimizer


@pytest.mark.parametrize("score", ["moment", "magnitude"])
def test_masks_are_those_of_a_masked_twin_pruned_by_the_same_scores(score):
    """The twin keeps the best inputs of each block; how many is worked out by hand: blocks of 8 neurons."""
    masked = wide()
    packed = fpe.pack(masked)
    blocks = [block.rows for block in packed[0].blocks()]
    assert [len(rows) for rows in blocks] == [8] * 4
    others, budget = fpe.count_nonzero(masked) - 32 * 28, 500
    optimizer = torch.optim.Adam(masked.parameters(), lr=1e-2)
    seen = []

    def prune_twin(step):
        if not SCHEDULE.prunes(step, STEPS):
            return
        goal = budget + int((fpe.count_nonzero(wide()) - budget) * SCHEDULE.surplus_at(step, STEPS))
        layer, count = masked[0], (goal - others) // 32
        moment = optimizer.state[layer.weight]["exp_avg_sq"]
        scores = score_of(layer.weight, moment, 0.25 if score == "moment" else 0.0)
        mask = torch.zeros_like(layer.fpe_mask)
        for rows in blocks:
            norms = (scores * layer.fpe_mask)[rows].square().sum(0)
            mask[rows.unsqueeze(1), norms.topk(count).indices] = 1
        assert (mask <= layer.fpe_mask).all()
        set_mask_(layer, mask, [optimizer])
        seen.append(count)

    train(masked, optimizer, prune_twin)
    pruner, own = pruned(packed, budget, score)
    back = fpe.unpack(packed)
    assert pruner.finished
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == 4
    assert torch.equal(back[0].fpe_mask, masked[0].fpe_mask)
    assert torch.allclose(back[0].weight, masked[0].weight, atol=1e-5)
    (batch,) = [packed[0].weight_0]
    moment = own.state[batch]["exp_avg"]
    wanted = optimizer.state[masked[0].weight]["exp_avg"]
    for number, block in enumerate(packed[0].blocks()):
        assert torch.allclose(moment[number].t(), block.part_of(wanted), atol=1e-5)
    x = torch.randn(5, 60)
    assert torch.allclose(packed(x), masked(x), atol=1e-4)


def test_memory_falls_with_the_count_and_parameters_stay_the_same_objects():
    packed = fpe.pack(wide(hidden=64))
    parameters, before = list(packed.parameters()), bytes_of(packed[0])
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    pruner = fpe.BlockPruner(packed, optimizer, budget=2000, steps=STEPS, schedule=SCHEDULE)
    counts = []

    def after(step):
        pruner.step()
        counts.append(fpe.count_nonzero(packed))
        assert pruner.count_at(step) - 128 < counts[-1] <= pruner.count_at(step)
        stored = sum(p.numel() for p in packed.parameters())
        kept = sum(v.numel() for s in optimizer.state.values() for v in s.values() if v.dim())
        assert (stored, kept) == (counts[-1], 2 * counts[-1])  # not a zero is stored

    train(packed, optimizer, after)
    assert all(a is b for a, b in zip(packed.parameters(), parameters, strict=True))
    assert counts == sorted(counts, reverse=True)
    assert 2000 - 128 < counts[-1] <= 2000 < pruner.start == 4099
    assert bytes_of(packed[0]) < 0.5 * before
    assert fpe.count_nonzero(fpe.unpack(packed)) == counts[-1]
    row = packed.fpe_packing.rows[0]
    assert (row.nonzero, row.bytes[2]) == (fpe.count_nonzero(packed[0]), bytes_of(packed[0]))
    assert f"pruned to {packed[0].sizes[0][1]} inputs" in row.why


@pytest.mark.parametrize(("inputs", "batches"), [(61, 2), (385, 1)], ids=["unequal", "padded"])
def test_blocks_that_become_equal_are_one_product(inputs, batches):
    """Of 61 inputs one block has 31 and one 30; of 385, 193 and 192 that are filled up."""
    packed = fpe.pack(wide(groups=1, inputs=inputs))
    assert len(packed[0].batches) == batches
    assert (packed[0].zero_positions_0 is None) == (batches == 2)
    _, optimizer = pruned(packed, 16 * inputs // 2)
    assert len(packed[0].batches) == 1
    assert packed[0].zero_positions_0 is None
    assert len({own for _, own in packed[0].sizes}) == 1
    names = [name for name, _ in packed.named_parameters()]
    assert names == ["0.bias", "0.weight_0", "2.weight", "2.bias"]
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in packed.parameters()}
    assert set(optimizer.state) == set(packed.parameters())
    masked = fpe.unpack(packed)
    x = torch.randn(5, inputs)
    assert torch.allclose(packed(x), masked(x), atol=1e-5)
    with torch.no_grad():  # by compiled code
        assert torch.allclose(packed(x), masked(x), atol=1e-5)


def test_all_layers_keep_the_same_share():
    sizes = [(80, 16), (16, 60), (60, 12), (12, 3)]
    layers = [layer for size in sizes for layer in (nn.Linear(*size), nn.ReLU())]
    packed = fpe.pack(fpe.expand(nn.Sequential(*layers), factor=2, split="shared", prune="columns"))
    first = {name: layer.sizes[0][1] for name, layer in packed.named_children() if hasattr(layer, "sizes")}
    assert len(first) == 2
    pruner, _ = pruned(packed, 2700)
    assert 2700 - 56 < fpe.count_nonzero(packed) <= 2700
    shares = [packed.get_submodule(name).sizes[0][1] / own for name, own in first.items()]
    assert abs(shares[0] - shares[1]) <= 1 / min(first.values())
    assert pruner.most == first


def test_inputs_are_kept_by_hand():
    """Two blocks of two neurons; of each, inputs of these numbers stay, with their weights and moments."""
    packed = fpe.pack(wide(groups=1, hidden=2, inputs=12))
    layer, optimizer = packed[0], torch.optim.Adam(packed.parameters())
    packed(torch.randn(4, 12)).square().sum().backward()
    optimizer.step()
    parameter, before = layer.weight_0, layer.weight_0.detach().clone()
    gradient, moment = parameter.grad.clone(), optimizer.state[parameter]["exp_avg_sq"].clone()
    inputs = [block.columns.tolist() for block in layer.blocks()]
    kept = torch.zeros(2, 12, dtype=torch.bool)
    kept[0, inputs[0][1]] = kept[1, inputs[1][2]] = True
    keep_inputs_(layer, kept, [optimizer])
    assert layer.weight_0 is parameter
    assert layer.sizes == [(2, 1), (2, 1)]
    assert layer.columns.tolist() == [inputs[0][1], inputs[1][2]]
    for now, then in (
        (parameter, before),
        (parameter.grad, gradient),
        (optimizer.state[parameter]["exp_avg_sq"], moment),
    ):
        assert torch.equal(now, torch.stack([then[0, 1:2], then[1, 2:3]]))
    assert optimizer.state[parameter]["step"] == 1


def test_it_is_resumed_from_a_file(tmp_path):
    def start(packed):
        optimizer = torch.optim.Adam(packed.parameters(), lr=1e-2)
        return optimizer, fpe.BlockPruner(packed, optimizer, budget=500, steps=STEPS, schedule=SCHEDULE)

    whole, first = fpe.pack(wide()), fpe.pack(wide())
    optimizer, pruner = start(whole)
    train(whole, optimizer, lambda step: pruner.step())
    optimizer, pruner = start(first)
    train(first, optimizer, lambda step: pruner.step(), last=9)
    fpe.save(first, tmp_path / "m.safetensors")
    states = copy.deepcopy((optimizer.state_dict(), pruner.state_dict()))
    second = fpe.load(tmp_path / "m.safetensors")
    assert second[0].sizes == first[0].sizes != whole[0].sizes
    optimizer, pruner = start(second)
    optimizer.load_state_dict(states[0])
    pruner.load_state_dict(states[1])
    train(second, optimizer, lambda step: pruner.step(), first=9)
    assert second[0].sizes == whole[0].sizes
    assert torch.equal(second[0].columns, whole[0].columns)
    assert all(torch.equal(a, b) for a, b in zip(second.parameters(), whole.parameters(), strict=True))
    with pytest.raises(CheckpointError, match="budget is 500 in the state, and 400"):
        fpe.BlockPruner(second, optimizer, budget=400, steps=STEPS).load_state_dict(states[1])


def test_after_pruning_inputs_can_be_exchanged():
    packed = fpe.pack(wide())
    _, optimizer = pruned(packed, 500)
    sizes = packed[0].sizes
    rewirer = fpe.BlockRewirer(packed, optimizer, steps=40)
    train(packed, optimizer, lambda step: rewirer.step())
    assert rewirer.grown["0"] > 0
    assert packed[0].sizes == sizes
    assert fpe.count_nonzero(packed) <= 500


def test_optimizers_without_second_moments_need_magnitudes():
    pruner, _ = pruned(fpe.pack(wide()), 500, "magnitude", torch.optim.SGD)
    assert fpe.count_nonzero(pruner.model) <= 500
    with pytest.raises(ModelError, match="no running mean of squared gradients"):
        pruned(fpe.pack(wide()), 500, "moment", torch.optim.SGD)


def test_an_optimizer_whose_state_cannot_become_smaller_is_refused_and_nothing_changes():
    packed = fpe.pack(wide())
    before = packed[0].sizes
    with pytest.raises(ModelError, match="Adafactor keeps 'row_var'"):
        pruned(packed, 500, "magnitude", torch.optim.Adafactor)
    assert packed[0].sizes == before


def test_weights_that_diverge_are_named():
    packed = fpe.pack(wide())
    optimizer = torch.optim.Adam(packed.parameters())
    pruner = fpe.BlockPruner(
        packed, optimizer, budget=500, steps=1, score="magnitude", schedule=fpe.PruningSchedule(0, 1, 1)
    )
    with torch.no_grad():
        packed[0].weight_0[0, 0, 0] = torch.nan
    with pytest.raises(ModelError, match="diverged"):
        pruner.step()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"budget": 0}, ArgumentError, "budget is 0"),
        ({"budget": True}, ArgumentError, "budget is True"),
        ({"steps": 0}, ArgumentError, "steps is 0"),
        ({"score": "best"}, ArgumentError, "score is 'best'"),
        ({"schedule": 3}, ArgumentError, "schedule is 3"),
        ({"budget": 10_000}, BudgetError, "the model has 1,091"),
        ({"budget": 162}, BudgetError, "163 parameters cannot be removed"),
    ],
)
def test_what_cannot_be_is_refused(given, error, message):
    packed = fpe.pack(wide(inputs=64))
    optimizer = torch.optim.Adam(packed.parameters())
    with pytest.raises(error, match=message):
        fpe.BlockPruner(packed, optimizer, **{"budget": 500, "steps": STEPS, **given})


def test_it_needs_blocks_and_their_optimizer():
    packed = fpe.pack(wide())
    other = torch.optim.Adam(fpe.mlp(3, 2, 1).parameters())
    with pytest.raises(ArgumentError, match="does not train the blocks of '0'"):
        fpe.BlockPruner(packed, other, budget=500, steps=STEPS)
    with pytest.raises(ModelError, match="no linear layer of packed blocks"):
        fpe.BlockPruner(wide(), other, budget=500, steps=STEPS)
