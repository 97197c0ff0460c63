"""The bytes of the networks that a search returns: their files, and their C code compiled.

For each row a network is searched for and trained as `FPEClassifier(budget=…)` does, and saved. Reported are

- the file's bytes over those of a dense network of the same count, saved in float32 with the same scaler and
  the same names of classes (aim: at most 1.3), and over four bytes for each non-zero;
- the largest difference of its C code in float32, compiled as strict C99, to the model on test rows, relative
  to the largest output (aim: 1e-5);
- the bytes of the compiled code and its constants over those of weights, places and biases (aim: at most
  1.15, and 4 kB more);
- the share of test rows to which its C code in int8 gives the class that the model does (aim: 99.5 %);
- the time of the packed network for 1 and 64 rows over that of the dense network, in turns.

A finished row is stored in the folder ``--out`` and not made again; so are the candidates of an interrupted
search. Data sets are found as by ``fpe fit``.

Usage: python reproduction/benchmarks/winners.py [--rows banking77-1925 …] [--epochs 5] [--quick] [--record]

``--record`` writes the rows to docs/results/speed/winners.json, too.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner

import fpe
from fpe._util.files import read_json, write_json
from fpe._util.terminal import text_table
from fpe.cli.main import main as command
from fpe.compare.store import provenance
from fpe.data import load
from fpe.errors import ModelError
from fpe.io.c.network import outputs_of
from fpe.models import ABOUT, CLASSES
from fpe_reproduction.bench.cases import DENSE, PACKED
from fpe_reproduction.bench.measure import interleave, median_of

#: The data and the budgets, the counts of small dense networks.
ROWS = [
    *(("banking77", budget) for budget in (1925, 3773, 7469)),
    *(("cifar100", budget) for budget in (2552, 9908)),
    *(("fashion-mnist", budget) for budget in (3190, 12730)),
    *(("letter", budget) for budget in (379, 731, 1435)),
]
#: The row of ``--quick``, for which all data are in scikit-learn, and its epochs.
QUICK, QUICK_EPOCHS = ("digits", 600), 2
STRICT = ("gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-O2")
#: Sections of an object file that a microcontroller's flash holds.
FLASH = (".text", ".rodata", ".data")
#: The aims.
FILE, DIFFERENCE, CODE, CODE_MORE, AGREEMENT = 1.3, 1e-5, 1.15, 4096, 0.995
#: Rows that are timed together, how often, and the seconds that this may take.
BATCHES, ROUNDS, SECONDS = (1, 64), 25, 2.0
RECORD = Path(__file__).parents[2] / "docs" / "results" / "speed" / "winners.json"


def winner(data: Any, budget: int, epochs: int | None, folder: Path) -> Any:
    """Search for the best network and train it, with scikit-learn's kind of estimator."""
    X = data.X_train.astype(np.float32)
    found = fpe.recommend(X, data.y_train, budget, epochs=epochs, front=False, folder=folder, verbose=True)
    return found.classifier


def dense_like(model: torch.nn.Module) -> torch.nn.Module:
    """Return a dense network of at least the model's count, with its scaler and what its file says."""
    about = getattr(model, ABOUT)
    inputs, outputs, count = about["features"], len(about["classes"]), fpe.count_nonzero(model)
    hidden = -(-(count - outputs) // (inputs + 1 + outputs))
    network: torch.nn.Module = fpe.mlp(inputs, hidden, outputs)
    scaler = dict(model.named_children()).get("scaler")
    if scaler is not None:
        network = fpe.models.standardized(network, scaler.mean, scaler.scale)
    setattr(network, ABOUT, about)
    setattr(network, CLASSES, getattr(model, CLASSES))
    return network


def exported(file: Path, out: Path, *options: str) -> dict[str, Any]:
    """Run ``fpe export`` and return what it prints as JSON."""
    done = CliRunner().invoke(command, ["export", str(file), str(out), *options, "--json"])
    if done.exit_code:
        raise RuntimeError(f"fpe export {file.name} {out.name} {' '.join(options)}: {done.output.strip()}")
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def compiled(source: Path) -> tuple[Any, int]:
    """Compile a file strictly; return its function of scores, and the bytes that flash holds."""
    subprocess.run([*STRICT, "-c", source.name], cwd=source.parent, check=True)
    listed = subprocess.run(["size", "-A", f"{source.stem}.o"], cwd=source.parent, check=True,
                            capture_output=True, text=True).stdout  # fmt: skip
    sections = [line.split() for line in listed.splitlines() if line.startswith(FLASH)]
    shared = source.with_suffix(".so")
    link = [*STRICT, "-shared", "-fPIC", source.name, "-o", shared.name, "-lm"]
    subprocess.run(link, cwd=source.parent, check=True)
    scores = getattr(ctypes.CDLL(str(shared)), f"{source.stem}_scores")
    scores.argtypes, scores.restype = [ctypes.c_void_p, ctypes.c_void_p], None
    return scores, sum(int(size) for _, size, *_ in sections)


def answers(scores: Any, rows: np.ndarray, outputs: int) -> np.ndarray:
    """Return the outputs of C code for rows of float32: (rows, outputs)."""
    found = np.empty((len(rows), outputs), np.float32)
    for row, out in zip(rows, found, strict=True):
        scores(row.ctypes.data, out.ctypes.data)
    return found


@torch.inference_mode()
def latency(model: torch.nn.Module, dense: torch.nn.Module, X: np.ndarray, rounds: int) -> dict[str, Any]:
    """Return seconds of the packed model and its ratio to the dense one, by the number of rows."""
    try:
        packed = fpe.pack(model).eval()
    except ModelError:  # nothing is masked
        packed = model.eval()
    found = {}
    for batch in BATCHES:
        x = torch.from_numpy(X[:batch])
        calls = {DENSE: partial(dense.eval(), x), PACKED: partial(packed, x)}
        taken, _ = interleave(calls, rounds=rounds, seconds=SECONDS)
        ratio = median_of(taken[PACKED] / taken[DENSE])
        found[str(batch)] = {"seconds": median_of(taken[PACKED]), "ratio": ratio}
    return found


def measured(classifier: Any, X: np.ndarray, rounds: int) -> dict[str, Any]:
    """Save and export a classifier; return sizes, differences, agreement on test rows, and times."""
    X = np.ascontiguousarray(X, np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, dense = folder / "winner.safetensors", folder / "dense.safetensors"
        fpe.save(classifier, file)
        model = fpe.load(file).eval()
        rival = dense_like(model)
        fpe.save(rival, dense)
        wanted = outputs_of(model, X)
        count = fpe.count_nonzero(model)
        result = {"count": count, "file": file.stat().st_size, "dense_file": dense.stat().st_size}
        result["latency"] = latency(model, rival, X, rounds)
        for weights in ("float32", "int8"):
            source = folder / f"winner_{weights}.c"
            constants = exported(file, source, "--weights", weights)["constants"]
            scores, flash = compiled(source)
            found = answers(scores, X, wanted.shape[1])
            off = float(np.abs(found - wanted).max() / np.abs(wanted).max())
            agree = float((found.argmax(axis=1) == wanted.argmax(axis=1)).mean())
            own = {"constants": constants, "flash": flash, "difference": off, "agreement": agree}
            result[weights] = own
    return result


def missed(row: dict[str, Any]) -> list[str]:
    """Name the aims that a row misses."""
    plain, rounded = row["float32"], row["int8"]
    ratio = row["file"] / row["dense_file"]
    found = {
        f"file {ratio:.2f} × dense, aim {FILE}": ratio <= FILE,
        f"C differs by {plain['difference']:.1e}, aim {DIFFERENCE:.0e}": plain["difference"] <= DIFFERENCE,
        f"int8 agrees in {rounded['agreement']:.2%}, aim {AGREEMENT:.1%}": rounded["agreement"] >= AGREEMENT,
    }
    for name, own in (("float32", plain), ("int8", rounded)):
        most = CODE * own["constants"] + CODE_MORE
        found[f"{name} code of {own['flash']:,} bytes, aim {most:,.0f}"] = own["flash"] <= most
    return [text for text, reached in found.items() if not reached]


def made(data: str, budget: int, epochs: int | None, out: Path) -> dict[str, Any]:
    """Return a row: that which is stored, or a new one."""
    asked = {"data": data, "budget": budget, "epochs": epochs, "fpe": fpe.__version__, "timed": BATCHES}
    asked = json.loads(json.dumps(asked))
    place = out / f"{data}-{budget}.json"
    stored = read_json(place)
    if stored is not None and {key: stored.get(key) for key in asked} == asked:
        return stored
    parts = load(data)
    classifier = winner(parts, budget, epochs, out / f"{data}-{budget}")
    row = {**asked, "network": classifier.search_[0].candidate.name}
    row["accuracy"] = float((classifier.predict(parts.X_test.astype(np.float32)) == parts.y_test).mean())
    row |= measured(classifier, parts.X_test, ROUNDS) | {"provenance": provenance()}
    write_json(place, row)
    return row


def cells(row: dict[str, Any]) -> list[str]:
    plain, rounded = row["float32"], row["int8"]
    return [
        row["data"],
        f"{row['budget']:,}",
        row["network"],
        f"{100 * row['accuracy']:.1f}",
        f"{row['file']:,}",
        f"{row['file'] / row['dense_file']:.2f}",
        f"{row['file'] / (4 * row['count']):.2f}",
        f"{plain['difference']:.0e}",
        f"{100 * rounded['agreement']:.2f}",
        *(f"{own['flash'] / own['constants']:.2f} ({own['flash']:,})" for own in (plain, rounded)),
        *(f"{times['ratio']['median']:.2f}" for times in row["latency"].values()),
        "; ".join(missed(row)) or "none",
    ]


HEAD = ("data", "budget", "network", "accuracy %", "file", "× dense file", "× 4 bytes", "C differs",
        "int8 agrees %", "float32 flash", "int8 flash", "× 1 row", "× 64 rows", "aims missed")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Make all rows that are asked for and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = {f"{data}-{budget}": (data, budget) for data, budget in (*ROWS, QUICK)}
    every = [f"{data}-{budget}" for data, budget in ROWS]
    parser.add_argument("--rows", nargs="+", choices=names, default=every, metavar="DATA-BUDGET")
    parser.add_argument("--epochs", type=int, help="of the last round; by default those of the classifier")
    parser.add_argument("--out", type=Path, default=Path("build/winners"), help="where rows are stored")
    parser.add_argument("--record", action="store_true", help="write the rows to docs/results, too")
    parser.add_argument("--quick", action="store_true", help="one small row of few steps")
    given = parser.parse_args(arguments)
    rows, epochs = [names[name] for name in given.rows], given.epochs
    if given.quick:
        rows, epochs = [QUICK], QUICK_EPOCHS
    found = []
    for data, budget in rows:
        found.append(made(data, budget, epochs, given.out))
        print("\n".join(text_table(HEAD, [cells(found[-1])], left=3)), flush=True)
    if given.record:
        write_json(RECORD, {"rows": found, "provenance": provenance()})
    return found


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    main()
