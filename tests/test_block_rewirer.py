"""`BlockRewirer`: inputs of packed blocks are exchanged as a `Rewirer` exchanges columns of masks."""

import copy

import pytest
import torch
from torch import nn

import fpe
from fpe.errors import ArgumentError, CheckpointError, ModelError
from fpe.expansion.splits import SharedSplit
from fpe.packing.blocks import BlockLayer
from fpe.rewiring.block_rewirer import BLOCKS, exchange_inputs_, find_blocks, slots_of, squared_norms

SCHEDULE = fpe.RewiringSchedule(every=4, share=0.3, until=1.0)


def wide(groups=2, hidden=16, inputs=60, factor=2, seed=0):
    model = fpe.mlp(inputs, hidden, 3, seed=seed)
    return fpe.expand(model, factor=factor, split=SharedSplit(groups), prune="columns", seed=seed)


def trained(model, rewirer_of, steps=9, lr=1e-2, seed=1):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    rewirer = rewirer_of(model, optimizer)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(32, model[0].in_features, generator=generator)
        y = torch.randint(3, (32,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        rewirer.step()
    return rewirer, optimizer


@pytest.mark.parametrize("drop", ["movement", "magnitude"])
def test_it_rewires_as_a_rewirer_of_masks_does(drop):
    policy = fpe.RewiringPolicy(drop=drop, unit="column")
    masked = wide()
    packed = fpe.pack(masked)
    trained(masked, lambda m, o: fpe.Rewirer(m, o, policy, steps=100, schedule=SCHEDULE))
    rewirer, _ = trained(packed, lambda m, o: fpe.BlockRewirer(m, o, policy, steps=100, schedule=SCHEDULE))
    back = fpe.unpack(packed)
    assert rewirer.rewirings == 2
    assert torch.equal(back[0].fpe_mask, masked[0].fpe_mask)
    assert not torch.equal(back[0].fpe_mask, wide()[0].fpe_mask)
    assert torch.allclose(back[0].weight, masked[0].weight, atol=1e-5)
    x = torch.randn(5, 60)
    assert torch.allclose(packed(x), masked(x), atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_count_and_the_memory_stay(groups):
    packed = fpe.pack(wide(groups))
    before = fpe.count_nonzero(packed)
    shapes = {name: p.shape for name, p in packed.named_parameters()}
    rewirer, _ = trained(packed, lambda m, o: fpe.BlockRewirer(m, o, steps=100, schedule=SCHEDULE), steps=13)
    assert rewirer.grown["0"] > 0
    assert fpe.count_nonzero(packed) == before
    assert {name: p.shape for name, p in packed.named_parameters()} == shapes
    for block in packed[0].blocks():
        assert len(block.columns.unique()) == len(block.columns)
    back = fpe.unpack(packed)
    assert fpe.count_nonzero(back) == before
    own = fpe.Rewirer(back, torch.optim.Adam(back.parameters()), BLOCKS, steps=9)  # still whole columns
    assert own.taken == 0


def test_the_gradient_of_all_inputs_is_that_of_the_wide_layer():
    masked = wide()
    packed = fpe.pack(masked)
    layer, x = packed[0], torch.randn(20, 60)
    seen = []
    y = layer(x)
    y.register_hook(seen.append)
    packed[2](torch.relu(y)).square().sum().backward()
    found = squared_norms(layer, x, seen[0])
    weight = fpe.unpack(packed)[0].weight.detach().requires_grad_()
    dense = fpe.unpack(packed)
    hidden = nn.functional.linear(x, weight, dense[0].bias)
    dense[2](torch.relu(hidden)).square().sum().backward()
    for norms, block in zip(found, layer.blocks(), strict=True):
        wanted = weight.grad[block.rows].square().sum(0)
        assert torch.allclose(norms, wanted, rtol=1e-3, atol=1e-4)


def test_the_smallest_inputs_are_exchanged_for_the_largest_gradients():
    packed = fpe.pack(wide(groups=1, hidden=4, inputs=12))
    layer = packed[0]
    optimizer = torch.optim.Adam(packed.parameters())
    packed(torch.randn(4, 12)).sum().backward()
    optimizer.step()
    before = [block.columns.tolist() for block in layer.blocks()]
    drop, grow = torch.ones(2, 12), torch.zeros(2, 12)
    drop[0, before[0][1]] = 0.5
    absent = [next(i for i in range(12) if i not in own) for own in before]
    grow[0, absent[0]] = 1
    share = 1.01 / min(map(len, before))  # one of each block, rounded down
    assert exchange_inputs_(layer, drop, grow, share, [optimizer]) == 2
    after = [block.columns.tolist() for block in layer.blocks()]
    assert after[0] == [absent[0] if c == before[0][1] else c for c in before[0]]
    assert before[1][0] in after[1]  # the best of each block stays
    (changed,) = [i for i, c in enumerate(after[0]) if c == absent[0]]
    slot = next(s for s in slots_of(layer) if s.block == 0)
    for tensor in (slot.parameter, *(v for v in optimizer.state[slot.parameter].values() if v.dim() == 3)):
        rows = tensor[slot.part].detach().abs().sum(1)
        assert rows[changed] == 0
        assert (rows != 0).sum() == len(rows) - 1


def test_it_is_resumed_from_its_state(tmp_path):
    def run(packed, optimizer, rewirer, first, last):
        for step in range(first, last):
            x = torch.randn(32, 60, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            packed(x).square().mean().backward()
            optimizer.step()
            rewirer.step()

    def start():
        packed = fpe.pack(wide())
        optimizer = torch.optim.Adam(packed.parameters(), lr=1e-2)
        policy = fpe.RewiringPolicy(grow="random", unit="column")
        return packed, optimizer, fpe.BlockRewirer(packed, optimizer, policy, steps=100, schedule=SCHEDULE)

    whole = start()
    run(*whole, 0, 20)
    first = start()
    run(*first, 0, 11)
    states = [copy.deepcopy(own.state_dict()) for own in first]
    second = start()
    for own, state in zip(second, states, strict=True):
        own.load_state_dict(state)
    run(*second, 11, 20)
    assert torch.equal(second[0][0].columns, whole[0][0].columns)
    assert all(torch.equal(a, b) for a, b in zip(second[0].parameters(), whole[0].parameters(), strict=True))
    with pytest.raises(CheckpointError, match="steps is 100 in the state, and 50"):
        fpe.BlockRewirer(second[0], second[1], steps=50).load_state_dict(states[2])


def test_a_skipped_step_is_made_up_for():
    packed = fpe.pack(wide())
    optimizer = torch.optim.SGD(packed.parameters(), lr=1e-3)
    rewirer = fpe.BlockRewirer(packed, optimizer, steps=100, schedule=SCHEDULE)
    for step in range(1, 6):
        optimizer.zero_grad()
        loss = packed(torch.randn(8, 60)).square().mean()
        (loss * float("inf") if step == 4 else loss).backward()
        if step != 4:
            optimizer.step()
        rewirer.step()
    assert (rewirer.late, rewirer.rewirings) == (False, 1)


def test_what_it_refuses():
    packed = fpe.pack(wide())
    optimizer = torch.optim.Adam(packed.parameters())
    with pytest.raises(ArgumentError, match=r"(?s)steps is 0.*policy is 'rigl'"):
        fpe.BlockRewirer(packed, optimizer, "rigl", steps=0)
    with pytest.raises(ArgumentError, match="does not train the blocks of '0'"):
        fpe.BlockRewirer(packed, torch.optim.Adam(packed[2].parameters()), steps=9)
    with pytest.raises(ModelError, match="no linear layer of packed blocks"):
        fpe.BlockRewirer(fpe.mlp(4, 3, 2), optimizer, steps=9)
    with pytest.raises(ModelError, match="BlockPruner for packed blocks"):
        fpe.Rewirer(packed, optimizer, steps=9)
    rewirer = fpe.BlockRewirer(packed, optimizer, steps=100, schedule=fpe.RewiringSchedule(every=1))
    with pytest.raises(ModelError, match="no gradient has reached the blocks"):
        rewirer.step()


def test_blocks_that_are_padded_keep_their_padding():
    wide_model = wide(groups=1, hidden=40, inputs=401)
    packed = fpe.pack(wide_model)
    layer = packed[0]
    padding = [own.padding.sum().item() for own in slots_of(layer)]
    assert sum(padding) > 0
    before = fpe.count_nonzero(packed)
    trained(packed, lambda m, o: fpe.BlockRewirer(m, o, steps=100, schedule=SCHEDULE))
    assert [own.padding.sum().item() for own in slots_of(layer)] == padding
    assert fpe.count_nonzero(packed) == fpe.count_nonzero(fpe.unpack(packed)) == before


def test_it_finds_the_layers_that_were_expanded():
    packed = fpe.pack(wide())
    assert list(find_blocks(packed)) == ["0"]
    assert isinstance(packed[0], BlockLayer)
