"""Fifty small networks at once: fpe.training.ensemble against a plain PyTorch loop and JAX's vmap + scan.

Usage: python reproduction/benchmarks/ensemble.py [--rounds 9] [--record]        (``make bench`` installs JAX)

``--record`` writes what is printed to docs/results/ensemble.md, which says how it is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from common import by_turns, made, options, record, seconds, spread
from torch import Tensor
from torch.nn import functional as F

import fpe
from fpe.data import dnf
from fpe.training import ensemble
from fpe.training.loop import adam

NETWORKS, SAMPLES, BATCH = 50, 4000, 500
STEPS = SAMPLES // BATCH
OURS = "fpe.training.ensemble"


def expanded(inputs: int, children: int, seed: int) -> torch.nn.Module:
    return fpe.expand(fpe.mlp(inputs, children // 2, 1, seed=seed), 2, seed=seed)


def of_loop(X: Tensor, y: Tensor, children: int) -> Callable[[], float]:
    """Return a function that trains one network and returns steps per second."""
    network = expanded(X.shape[1], children, 0)
    optimizer, target = torch.optim.Adam(network.parameters(), lr=3e-3), y.float()

    def train() -> None:
        for _ in range(15):
            for rows in torch.randperm(SAMPLES).split(BATCH):
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(network(X[rows])[:, 0], target[rows]).backward()
                optimizer.step()

    return lambda: 15 * STEPS / seconds(train)


def of_ensemble(X: Tensor, y: Tensor, children: int) -> Callable[[], float]:
    """Return a function that trains all networks as one and returns model-steps per second."""
    networks = [expanded(X.shape[1], children, seed) for seed in range(NETWORKS)]
    own = {
        "optimizers": [adam(network, 3e-3) for network in networks],
        "generators": [torch.Generator().manual_seed(seed) for seed in range(NETWORKS)],
    }
    train = partial(ensemble.train, networks, X, y, epochs=40, batch_size=BATCH, compile=True, **own)
    return lambda: NETWORKS * 40 * STEPS / seconds(train)


def of_jax(X: Tensor, y: Tensor, children: int) -> Callable[[], float]:
    """Return the same by JAX: masked gradients, vmap over networks, scan over steps."""
    import jax
    import jax.numpy as jnp
    from jax.example_libraries import optimizers

    inputs, labels = jnp.asarray(X.numpy()), jnp.asarray(y.numpy(), jnp.float32)
    networks = [expanded(X.shape[1], children, seed) for seed in range(NETWORKS)]
    first, last = ([n[i] for n in networks] for i in (0, 2))

    def stacked(tensors: list[Tensor]) -> jax.Array:
        return jnp.asarray(torch.stack(tensors).detach().numpy())

    parameters = {
        "w1": stacked([layer.weight.T for layer in first]),
        "b1": stacked([layer.bias for layer in first]),
        "w2": stacked([layer.weight[0] for layer in last]),
        "b2": stacked([layer.bias[0] for layer in last]),
    }
    masks = {k: jnp.ones_like(v) for k, v in parameters.items()}
    masks["w1"] = stacked([layer.fpe_mask.T for layer in first])
    masks["w2"] = stacked([layer.fpe_mask[0] for layer in last])
    start, update, current = optimizers.adam(3e-3)

    def loss(p: dict, x: jax.Array, target: jax.Array) -> jax.Array:
        z = jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]
        return jnp.mean(jax.nn.softplus(z) - z * target)

    def train(parameters: dict, mask: dict, order: jax.Array) -> tuple:
        def step(state: tuple, batch: tuple) -> tuple:
            number, rows = batch
            value, g = jax.value_and_grad(loss)(current(state), inputs[rows], labels[rows])
            return update(number, jax.tree.map(jnp.multiply, g, mask), state), value

        return jax.lax.scan(step, start(parameters), (jnp.arange(len(order)), order))

    program = jax.jit(jax.vmap(train))
    rng = np.random.default_rng(0)
    order = [[rng.permutation(SAMPLES) for _ in range(20)] for _ in range(NETWORKS)]
    order = jnp.asarray(np.array(order, dtype=np.int32).reshape(NETWORKS, 20 * STEPS, BATCH))
    run = partial(program, parameters, masks, order)
    return lambda: NETWORKS * 20 * STEPS / seconds(lambda: jax.block_until_ready(run()))


def matrix_rate() -> float:
    """Return floating-point operations per second of a large matrix product."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    return 4 * 2 * 2048**3 / seconds(lambda: [a @ b for _ in range(4)])


def compare(clauses: int, children: int, rounds: int) -> str:
    """Measure one size; return the table."""
    data = dnf(clauses, samples=SAMPLES)
    X, y = torch.from_numpy(data.X), torch.from_numpy(data.y)
    makers = {"PyTorch, one after another": of_loop, OURS: of_ensemble}
    try:
        import jax

        makers[f"JAX {jax.__version__}, vmap + scan"] = of_jax
    except ImportError:
        print("JAX is not installed and is skipped: pip install jax")
    runs = {name: make(X, y, children) for name, make in makers.items()} | {"limit": matrix_rate}
    by_turns(runs, 1)  # compiles
    rates = by_turns(runs, rounds)
    limit = np.median(rates.pop("limit"))
    flops = 4 * BATCH * X.shape[1] * children + 4 * BATCH * children
    lines = [
        f"d = {X.shape[1]}, h' = {children}, batch {BATCH}, {NETWORKS} networks, {rounds} rounds: "
        f"model-steps per second, median (range). A model-step has {flops:,} floating-point operations in "
        "products.",
        "",
        "| | model-steps / s | fpe.training.ensemble is, times | share of the matrix-product rate |",
        "| --- | --- | --- | --- |",
    ]
    for name, values in rates.items():
        times, share = rates[OURS] / values, np.median(values) * flops / limit
        lines.append(f"| {name} | {spread(values, ',.0f')} | {spread(times, '.1f')} | {share:.0%} |")
    lines.append(f"| matrix product, {limit / 1e9:.0f} GFLOP/s | {limit / flops:,.0f} | | 100% |")
    return "\n".join(lines)


def main() -> None:
    given = options(__doc__, rounds=9)
    text = "\n\n".join([*(compare(*size, given.rounds) for size in ((8, 16), (32, 64))), made()])
    print(text)
    if given.record:
        record("ensemble", text)


if __name__ == "__main__":
    main()
