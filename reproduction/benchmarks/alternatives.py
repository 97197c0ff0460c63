"""fpe beside other programs that train or deploy sparse and small networks, at equal counts or accuracy.

Trained and run are networks of 90 % zeros in the sizes of SparseLab's own demos, with the same number of
non-zeros: SparseLab (SET), fpe's masked layers with fpe.Rewirer (SET), fpe's moving blocks, and a dense
network. The time of a rewiring is spread over 100 steps; memory is what a process of its own grows by.

C code is generated for handwritten digits: for the winner of ``FPEClassifier(budget=600)`` in float32 and
int8, and by emlearn for the smallest of scikit-learn's MLPs that is as accurate, by m2cgen for its logistic
regression, since m2cgen has no neural networks; onnxruntime runs the same MLP.

Programs that are not installed are named; ``make bench`` installs them.

Usage: python reproduction/benchmarks/alternatives.py [--rounds 25] [--quick] [--record]
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import fpe
from fpe._util.files import write_json
from fpe._util.terminal import text_table
from fpe.compare.store import provenance
from fpe.data import load
from fpe_reproduction.bench.cases import DENSE
from fpe_reproduction.bench.measure import EACH_STEP, interleave, median_of, spread_out, training_step
from fpe_reproduction.bench.subjects import free_layer

ZEROS, BATCH = 0.9, 128
#: Inputs, hidden neurons, outputs, and whether the second layer is sparse too.
SIZES = {"MLP 784-512-10": (784, 512, 10, False), "FFN 384-1536-384": (384, 1536, 384, True)}
DEMOS, SMALL = tuple(SIZES), "small"
SIZES[SMALL] = (64, 40, 4, False)  # loads all that a process needs before its memory is measured
SPARSELAB, MASKED, MOVING = "SparseLab, SET", "fpe, masked, SET", "fpe, moving blocks"
RECORD = Path(__file__).parents[2] / "docs" / "results" / "speed" / "alternatives.json"
#: scikit-learn's hidden layers that are tried, in order.
WIDTHS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
C = ("gcc", "-std=c99", "-O2")
#: Sections of an object file that a microcontroller's flash holds.
FLASH = (".text", ".rodata", ".data")
#: Calls a function of one row for all rows.
LOOP = """
#include "{source}"
void loop(const float *x, float *out, int rows)
{{
    for (int row = 0; row < rows; row++, x += {inputs}, out += {outputs}) {{ {call} }}
}}
"""


def count_of(name: str) -> int:
    """Return the non-zeros of a network of a demo: nine tenths of its sparse layers' weights are zeros."""
    inputs, hidden, outputs, second = SIZES[name]
    kept = round((1 - ZEROS) * inputs * hidden)
    return kept + hidden + outputs + (round((1 - ZEROS) * hidden * outputs) if second else hidden * outputs)


def masked(name: str) -> nn.Sequential:
    """Return the network with fpe's masks."""
    inputs, hidden, outputs, second = SIZES[name]
    last: nn.Module = nn.Linear(hidden, outputs)
    if second:
        last = free_layer(hidden, outputs, round((1 - ZEROS) * hidden * outputs))[0]
    return nn.Sequential(free_layer(inputs, hidden, round((1 - ZEROS) * inputs * hidden))[0], nn.ReLU(), last)


def dense(name: str) -> nn.Sequential:
    """Return the largest dense network of at most the same count."""
    inputs, _, outputs, _ = SIZES[name]
    return fpe.mlp(inputs, (count_of(name) - outputs) // (inputs + 1 + outputs), outputs)


def blocks(name: str) -> nn.Module:
    """Return the dense network, expanded by 2 and packed."""
    wider = partial(fpe.expand, dense(name), 2, split="shared", seed=0)
    try:
        return fpe.pack(wider(prune="columns"))
    except fpe.errors.BudgetError:  # the inputs do not suffice
        return fpe.pack(wider(prune="children"))


def sparselab_network(name: str) -> nn.Sequential:
    """Return SparseLab's network."""
    import sparselab  # type: ignore[import-not-found]

    inputs, hidden, outputs, second = SIZES[name]
    sparse = partial(sparselab.SparseLinear, sparsity=ZEROS)
    return nn.Sequential(
        sparse(inputs, hidden), nn.ReLU(), (sparse if second else nn.Linear)(hidden, outputs)
    )


NETWORKS: dict[str, Callable[[str], Any]] = {
    DENSE: dense, MASKED: masked, MOVING: blocks, SPARSELAB: sparselab_network
}  # fmt: skip


def step_of(way: str, network: Any, x: torch.Tensor, y: torch.Tensor, rewired: bool) -> Callable[[], Any]:
    """Return a training step, after each of which the masks change if asked."""
    step, optimizer = training_step(network, x, y, moving=rewired and way == MOVING)
    if not rewired or way in (DENSE, MOVING):
        return step
    if way == MASKED:
        moves: Any = fpe.Rewirer(network, optimizer, "set", steps=10**9, schedule=EACH_STEP)
    else:
        import sparselab

        moves = sparselab.SET(sparsity=ZEROS, drop_fraction=EACH_STEP.share, update_freq=1)
        network.apply(moves)

    def both() -> None:
        step()
        moves.step()

    return both


def batch(name: str, samples: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, _, outputs, _ = SIZES[name]
    torch.manual_seed(0)
    return torch.randn(samples, inputs), torch.randint(outputs, (samples,))


def grown(way: str, name: str) -> int:
    """Return by how many bytes the process grows at most in three steps; for a process of its own."""
    torch.set_num_threads(2)
    step_of(way, NETWORKS[way](SMALL), *batch(SMALL), rewired=True)()
    x, y = batch(name)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew; that of getrusage has the parent's
    before = peak()
    network = NETWORKS[way](name)
    step = step_of(way, network, x, y, rewired=True)
    for _ in range(3):
        step()
    return peak() - before


def peak() -> int:
    """Return the most bytes that this process had in memory at a time."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def memory(way: str, name: str, times: int) -> dict[str, Any]:
    found = []
    for _ in range(times):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found.append(pool.apply(grown, (way, name)))
    return median_of(found)


def trained(name: str, ways: list[str], rounds: int) -> list[dict[str, Any]]:
    """Measure steps and inference of a network, each over the dense network's."""
    x, y = batch(name)
    plain = {way: step_of(way, NETWORKS[way](name), x, y, rewired=False) for way in ways}
    moving = {f"{way}: rewired": step_of(way, NETWORKS[way](name), x, y, rewired=True) for way in ways}
    how: dict[str, Any] = {"rounds": rounds, "seconds": 60.0}
    steps, _ = interleave(plain | moving, **how)
    forward, counts = {}, {}
    with torch.inference_mode():
        networks = {way: NETWORKS[way](name) for way in ways}
        counts = {way: count(network) for way, network in networks.items()}
        networks[MASKED] = fpe.pack(networks[MASKED], format="sparse")
        for samples in (1, 64):
            own, _ = batch(name, samples)
            forward[samples] = interleave({w: partial(n, own) for w, n in networks.items()}, **how)[0]
    rows = []
    for way in ways:
        step = spread_out(steps[way], steps[f"{way}: rewired"])
        row = {"network": name, "way": way, "nonzero": counts[way]}
        row["step"] = {"seconds": median_of(step), "ratio": median_of(step / steps[DENSE])}
        for samples, taken in forward.items():
            row[f"forward {samples}"] = {
                "seconds": median_of(taken[way]),
                "ratio": median_of(taken[way] / taken[DENSE]),
            }
        rows.append({**row, "memory": memory(way, name, 3)})
    return rows


def count(network: nn.Module) -> int:
    """Return the non-zeros of a network, SparseLab's included."""
    if any(type(layer).__name__ == "SparseLinear" for layer in network.modules()):
        own = {id(layer._values): int(layer.nnz) for layer in network if hasattr(layer, "nnz")}
        return sum(own.get(id(p), p.numel()) for p in network.parameters())
    return fpe.count_nonzero(network)


def deployed(rounds: int, epochs: int | None) -> list[dict[str, Any]]:
    """Generate and compile C for digits; return accuracy, bytes in flash and seconds for each row."""
    data = load("digits")
    X = np.ascontiguousarray(data.X_test, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        made = list(_programs(data, X, Path(folder), epochs))
        taken, _ = interleave({row["way"]: row.pop("call") for row in made}, rounds=rounds, seconds=5.0)
        for row in made:
            row["seconds"] = median_of(taken[row["way"]] / len(X))
    return made


def _programs(data: Any, X: np.ndarray, folder: Path, epochs: int | None) -> Iterator[dict[str, Any]]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    own = fpe.FPEClassifier(budget=600, epochs=epochs, random_state=0).fit(data.X_train, data.y_train)
    accuracy = own.score(data.X_test, data.y_test)
    classes = len(own.classes_)
    for weights in ("float32", "int8"):
        source = folder / f"fpe_{weights}.c"
        fpe.export(own.model_, source, weights=weights)
        call = f"fpe_{weights}_scores(x, out);"
        yield _compiled(f"fpe, {weights}", source, call, X, classes, own.classes_, data.y_test)
    scaler = StandardScaler().fit(data.X_train)
    train, test = scaler.transform(data.X_train), scaler.transform(X).astype(np.float32)
    for width in WIDTHS:
        mlp = MLPClassifier((width,), max_iter=500, random_state=0).fit(train, data.y_train)
        if mlp.score(test, data.y_test) >= accuracy:
            break
    about = f"scikit-learn's MLP of {width} hidden neurons"
    if find("emlearn"):
        import emlearn  # type: ignore[import-not-found]

        # emlearn.convert would also compile a program of its own, in the current folder.
        generate = emlearn.net.c_generate_net_loadable
        code = generate([mlp.activation, mlp.out_activation_], mlp.coefs_, mlp.intercepts_, prefix="net")
        (folder / "emlearn_net.c").write_text(code)
        include = Path(emlearn.__file__).parent
        call = f"*out = (float)eml_net_predict(&net, x, {X.shape[1]});"
        yield _compiled(f"emlearn, {about}", folder / "emlearn_net.c", call, test, 1, mlp.classes_,
                        data.y_test, include)  # fmt: skip
    yield _onnx(f"onnxruntime, {about}", mlp, test, folder, data.y_test)
    if find("m2cgen"):
        import m2cgen  # type: ignore[import-not-found]

        linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        linear.fit(data.X_train, data.y_train)
        (folder / "m2cgen_score.c").write_text(m2cgen.export_to_c(linear[-1]))
        inputs = X.shape[1]
        call = f"double in[{inputs}], scores[{classes}]; for (int i = 0; i < {inputs}; i++) in[i] = x[i]; "
        call += f"score(in, scores); for (int i = 0; i < {classes}; i++) out[i] = (float)scores[i];"
        own_test = linear[0].transform(X).astype(np.float32)
        yield _compiled("m2cgen, logistic regression", folder / "m2cgen_score.c", call, own_test, classes,
                        linear.classes_, data.y_test)  # fmt: skip


def _compiled(
    way: str,
    source: Path,
    call: str,
    X: np.ndarray,
    outputs: int,
    classes: Any,
    y: Any,
    include: Path = Path(),
) -> dict[str, Any]:
    """Compile a program and a loop over rows; return its accuracy, its bytes, and what runs it."""
    code = LOOP.format(source=source.name, inputs=X.shape[1], outputs=outputs, call=call)
    main = source.with_name(f"loop_{source.name}")
    main.write_text(code)
    shared, object_file = main.with_suffix(".so"), main.with_suffix(".o")
    command = [*C, f"-I{include.absolute()}", main.name]
    subprocess.run([*command, "-c", "-o", object_file.name], cwd=source.parent, check=True)
    link = [*command, "-shared", "-fPIC", "-o", shared.name, "-lm"]
    subprocess.run(link, cwd=source.parent, check=True)
    size = ["size", "-A", object_file.name]
    listed = subprocess.run(size, cwd=source.parent, check=True, capture_output=True, text=True).stdout
    flash = sum(int(line.split()[1]) for line in listed.splitlines() if line.startswith(FLASH))
    loop = ctypes.CDLL(str(shared)).loop
    loop.argtypes, loop.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int], None
    out = np.empty((len(X), outputs), np.float32)

    def run() -> None:
        loop(X.ctypes.data, out.ctypes.data, len(X))

    run()
    found = out[:, 0].astype(int) if outputs == 1 else out.argmax(axis=1)
    return {"way": way, "accuracy": float((classes[found] == y).mean()), "bytes": flash, "call": run}


def _onnx(way: str, mlp: Any, X: np.ndarray, folder: Path, y: Any) -> dict[str, Any]:
    """Run scikit-learn's MLP row by row in onnxruntime."""
    import onnxruntime  # type: ignore[import-untyped]

    network = fpe.mlp(X.shape[1], mlp.hidden_layer_sizes[0], len(mlp.classes_))
    with torch.no_grad():
        for layer, weight, bias in zip((network[0], network[-1]), mlp.coefs_, mlp.intercepts_, strict=True):
            layer.weight.copy_(torch.from_numpy(weight.T))
            layer.bias.copy_(torch.from_numpy(bias))
    path = folder / "mlp.onnx"
    size = fpe.export(network, path, example_inputs=torch.from_numpy(X[:2])).bytes
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0].name
    out = session.run(None, {given: X})[0]

    def run() -> None:
        for row in range(len(X)):
            session.run(None, {given: X[row : row + 1]})

    accuracy = float((mlp.classes_[out.argmax(axis=1)] == y).mean())
    return {"way": way, "accuracy": accuracy, "bytes": size, "call": run}


def find(package: str) -> bool:
    """Tell whether a package is installed; if not, say so."""
    try:
        __import__(package)
    except ImportError:
        print(f"not measured: {package} is not installed; `make bench` installs it", flush=True)
        return False
    return True


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure everything, print it, and store it if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25, help="samples of each time")
    parser.add_argument("--quick", action="store_true", help="one network, few rounds and epochs")
    parser.add_argument("--record", action="store_true", help="write the result to docs/results, too")
    given = parser.parse_args(arguments)
    rounds, epochs = (3, 2) if given.quick else (given.rounds, None)
    ways = [way for way in NETWORKS if way != SPARSELAB or find("sparselab")]
    training = [row for name in DEMOS[: 1 if given.quick else None] for row in trained(name, ways, rounds)]
    deployment = deployed(rounds, epochs)
    timed = ("step", "forward 1", "forward 64")
    rows = [
        [r["network"], r["way"], f"{r['nonzero']:,}", *(f"{r[t]['ratio']['median']:.2f}" for t in timed),
         f"{r['memory']['median'] / 1e6:.1f} MB"]
        for r in training
    ]  # fmt: skip
    print("\n".join(text_table(["", "", "non-zeros", *(f"× {t}" for t in timed), "memory"], rows, left=2)))
    cells = [
        [r["way"], f"{r['accuracy']:.1%}", f"{r['bytes']:,}", f"{1e6 * r['seconds']['median']:.2f} µs"]
        for r in deployment
    ]
    print("\n".join(["", *text_table(["digits", "accuracy", "bytes", "one row"], cells)]))
    result = {"training": training, "deployment": deployment, "provenance": provenance()}
    if given.record:
        write_json(RECORD, result)
    return result


if __name__ == "__main__":
    main()
