"""Fifty small networks at once: fpe.training.ensemble against a plain PyTorch loop and JAX's vmap + scan.

Usage: python reproduction/benchmarks/ensemble.py [--rounds N] [--record]        (``make bench`` does it, and installs JAX)

``--record`` writes what is printed to docs/results/ensemble.md.

All three train the same networks on the same data: masked first layer, ReLU, one logit, Adam, mini-batches
of 500 of 4,000 samples in random order. In each round each takes its turn; figures are medians over the
rounds of model-steps per second, with the least and the greatest. Compiling is not counted; drawing the order
of the mini-batches is, but for JAX, which gets it ready-made. The machine's matrix-product rate is measured
in the same rounds, by products of 2048 × 2048 in PyTorch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import fpe
from fpe._util.files import write_atomically
from fpe.compare.store import provenance
from fpe.data import dnf
from fpe.training import ensemble
from fpe.training.loop import adam

NETWORKS, SAMPLES, BATCH = 50, 4000, 500
STEPS = SAMPLES // BATCH


def expanded(inputs: int, children: int, seed: int) -> torch.nn.Module:
    return fpe.expand(fpe.mlp(inputs, children // 2, 1, seed=seed), 2, seed=seed)


def of_sequential_loop(X: torch.Tensor, y: torch.Tensor, children: int) -> Callable[[], float]:
    network = expanded(X.shape[1], children, 0)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    target = y.float()

    def run(epochs: int = 15) -> float:
        start = time.perf_counter()
        for _ in range(epochs):
            for rows in torch.randperm(SAMPLES).split(BATCH):
                optimizer.zero_grad()
                loss = F.binary_cross_entropy_with_logits(network(X[rows])[:, 0], target[rows])
                loss.backward()
                optimizer.step()
        return epochs * STEPS / (time.perf_counter() - start)

    return run


def of_ensemble(X: torch.Tensor, y: torch.Tensor, children: int) -> Callable[[], float]:
    networks = [expanded(X.shape[1], children, seed) for seed in range(NETWORKS)]
    optimizers = [adam(network, 3e-3) for network in networks]
    generators = [torch.Generator().manual_seed(seed) for seed in range(NETWORKS)]

    def run(epochs: int = 40) -> float:
        start = time.perf_counter()
        ensemble.train(
            networks,
            X,
            y,
            epochs=epochs,
            optimizers=optimizers,
            generators=generators,
            batch_size=BATCH,
            compile=True,
        )
        return NETWORKS * epochs * STEPS / (time.perf_counter() - start)

    return run


def of_jax(X: torch.Tensor, y: torch.Tensor, children: int) -> Callable[[], float]:
    import jax
    import jax.numpy as jnp

    inputs, labels = jnp.asarray(X.numpy()), jnp.asarray(y.numpy(), jnp.float32)
    networks = [expanded(X.shape[1], children, seed) for seed in range(NETWORKS)]
    first, last = ([n[i] for n in networks] for i in (0, 2))

    def stacked(tensors: list[torch.Tensor]) -> jax.Array:
        return jnp.asarray(np.stack([t.detach().numpy() for t in tensors]))

    parameters = {
        "w1": stacked([layer.weight.T for layer in first]),
        "b1": stacked([layer.bias for layer in first]),
        "w2": stacked([layer.weight[0] for layer in last]),
        "b2": stacked([layer.bias[0] for layer in last]),
    }
    masks = {k: jnp.ones_like(v) for k, v in parameters.items()}
    masks["w1"] = stacked([layer.fpe_mask.T for layer in first])
    masks["w2"] = stacked([layer.fpe_mask[0] for layer in last])

    def loss(p: dict, x: jax.Array, target: jax.Array) -> jax.Array:
        z = jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]
        return jnp.mean(jnp.maximum(z, 0) - z * target + jnp.log1p(jnp.exp(-jnp.abs(z))))

    def train(p: dict, m: dict, v: dict, mask: dict, order: jax.Array) -> tuple:
        def step(state: tuple, rows: jax.Array) -> tuple:
            p, m, v, t = state
            t = t + 1
            value, g = jax.value_and_grad(loss)(p, inputs[rows], labels[rows])
            g = jax.tree.map(jnp.multiply, g, mask)
            m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
            v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
            rate, scale = 3e-3 / (1 - 0.9**t), 1 - 0.999**t
            p = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v / scale) + 1e-8), p, m, v)
            return (p, m, v, t), value

        return jax.lax.scan(step, (p, m, v, jnp.float32(0)), order)

    zeros = jax.tree.map(jnp.zeros_like, parameters)
    program = jax.jit(jax.vmap(train))
    rng = np.random.default_rng(0)

    epochs = 20
    order = [[rng.permutation(SAMPLES).reshape(STEPS, BATCH) for _ in range(epochs)] for _ in range(NETWORKS)]
    order = jnp.asarray(np.array(order, dtype=np.int32).reshape(NETWORKS, epochs * STEPS, BATCH))

    def run() -> float:
        start = time.perf_counter()
        jax.block_until_ready(program(parameters, zeros, zeros, masks, order))
        return NETWORKS * epochs * STEPS / (time.perf_counter() - start)

    return run


def matrix_rate() -> float:
    """Return floating-point operations per second of a large matrix product."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    start = time.perf_counter()
    for _ in range(4):
        a @ b
    return 4 * 2 * 2048**3 / (time.perf_counter() - start)


def compare(clauses: int, children: int, rounds: int) -> str:
    """Measure one size; return the table."""
    data = dnf(clauses, samples=SAMPLES)
    X, y = torch.from_numpy(data.X), torch.from_numpy(data.y)
    made = {"PyTorch, one after another": of_sequential_loop, "fpe.training.ensemble": of_ensemble}
    try:
        import jax

        made[f"JAX {jax.__version__}, vmap + scan"] = of_jax
    except ImportError:
        print("JAX is not installed, so it is left out: pip install jax")
    runs = {name: make(X, y, children) for name, make in made.items()}
    for run in runs.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in runs}
    ratios: dict[str, list[float]] = {name: [] for name in runs}
    limits = []
    for _ in range(rounds):
        limits.append(matrix_rate())
        for name, run in runs.items():
            rates[name].append(run())
        for name in runs:
            ratios[name].append(rates["fpe.training.ensemble"][-1] / rates[name][-1])
    flops = 4 * BATCH * X.shape[1] * children + 4 * BATCH * children
    limit = statistics.median(limits)
    lines = [
        f"d = {X.shape[1]}, h' = {children}, batch {BATCH}, {NETWORKS} networks, {rounds} rounds: "
        "model-steps per second, median (least – greatest)",
        "",
        "| | model-steps / s | fpe.training.ensemble is, times | share of the matrix-product rate |",
        "| --- | --- | --- | --- |",
    ]
    for name, values in rates.items():
        times = ratios[name]
        lines.append(
            f"| {name} | {statistics.median(values):,.0f} ({min(values):,.0f} – {max(values):,.0f}) "
            f"| {statistics.median(times):.1f} ({min(times):.1f} – {max(times):.1f}) "
            f"| {statistics.median(values) * flops / limit:.0%} |"
        )
    lines.append(f"| matrix product, {limit / 1e9:.0f} GFLOP/s | {limit / flops:,.0f} | | 100% |")
    return "\n".join([*lines, "", f"A model-step has {flops:,} floating-point operations in products."])


def main() -> None:
    """Measure both sizes; print them and, where asked, record them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    parts = [compare(8, 16, arguments.rounds), compare(32, 64, arguments.rounds)]
    made = provenance()
    machine = (
        f"{made['machine']}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    )
    parts.append(f"torch {made['torch']}, numpy {made['numpy']}, {machine}, commit `{made['commit']}`.")
    print("\n\n".join(parts))
    if arguments.record:
        about = __doc__.partition("\n\n")[2].rpartition("to docs/results/ensemble.md.")[2].strip()
        text = "# Training many small networks\n\n" + about.replace("``", "`") + "\n"
        text += (
            "Command: `python reproduction/benchmarks/ensemble.py --record`.\n\n" + "\n\n".join(parts) + "\n"
        )
        page = Path(__file__).parents[2] / "docs" / "results" / "ensemble.md"
        write_atomically(page, lambda file: file.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
