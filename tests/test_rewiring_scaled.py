"""Masks that move beside a gradient scaler: by scaled gradients, and never by those of a skipped step."""

import pytest
import torch

import fpe

POLICIES = ["rigl", "accumulated", "momentum", "paper", "set"]


def run(policy, steps=12, scale=None, overflows=(), every=4):
    """Train a small network; return it, its rewirer, and the masks after each step."""
    wide = fpe.expand(fpe.mlp(12, 8, 4, seed=0), 2, seed=1)
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.5, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    schedule = fpe.RewiringSchedule(every=every, share=0.4, until=1.0)
    rewirer = fpe.Rewirer(wide, optimizer, policy, steps=steps, schedule=schedule)
    generator = torch.Generator().manual_seed(0)
    seen = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = wide(torch.randn(16, 12, generator=generator)).square().mean()
        scaler.scale(loss * (float("inf") if step in overflows else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        rewirer.step()
        seen.append([layer.fpe_mask.clone() for layer in (wide[0], wide[-1])])
    return wide, rewirer, seen


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_scale_changes_no_mask(policy):
    plain, scaled = run(policy)[2], run(policy, scale=1024.0)[2]
    assert all(same(a, b) for a, b in zip(plain, scaled, strict=True))
    assert not same(plain[0], plain[-1])


@pytest.mark.parametrize("policy", POLICIES[:3])
@pytest.mark.parametrize("overflow", [3, 4])
def test_gradients_that_overflow_move_no_mask(policy, overflow):
    """The rewiring due at step 4 comes at step 5 if an overflow is among the gradients that it looks at."""
    wide, rewirer, seen = run(policy, scale=1024.0, overflows=(overflow,))
    looked_at = overflow == 4 or policy != "rigl"
    assert same(seen[2], seen[3]) == looked_at
    assert same(seen[3], seen[4]) != looked_at
    assert rewirer.rewirings == 2
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(fpe.mlp(12, 8, 4))
    assert all(parameter.isfinite().all() for parameter in wide.parameters())


@pytest.mark.parametrize("policy", ["rigl", "set"])
def test_steps_that_are_all_skipped_put_the_rewiring_off(policy):
    wide, rewirer, seen = run(policy, scale=1024.0, overflows=range(1, 7))
    assert same(seen[0], seen[5])
    assert not same(seen[5], seen[6])
    assert rewirer.rewirings == 2
    assert fpe.project_(wide) == 0
