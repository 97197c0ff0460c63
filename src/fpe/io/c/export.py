"""Export a model as C: its rows, the comparison of what a C compiler makes of it, and the two files."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from fpe._util.files import write_atomically
from fpe._util.modules import unwrapped
from fpe.errors import ArgumentError, ModelError
from fpe.graph.inputs import as_call
from fpe.io.c.network import WEIGHTS, Network, network_of, outputs_of, rounded
from fpe.io.c.source import TOLERANCE, Source, source_of

COMPILERS = ("cc", "gcc", "clang")
#: Weights in statements above which a compiler takes too long to optimize them, and the seconds that it gets.
OPTIMIZED, SECONDS = 10_000, 300
#: Rows that are made up, numbers in them at most, and rows of the self-test.
ROWS, NUMBERS, TEST_ROWS = 1000, 200_000, 4
#: Largest difference of the network before rounding to the model, relative to the largest output.
IN_DOUBLE = 1e-9
#: A program that computes the outputs of the rows it is given.
_DRIVER = """\
#include <stdio.h>
#include "{stem}.h"
int main(void)
{{
    static float x[{inputs}], out[{outputs}];
    int i = 0;
    while (scanf("%f", &x[i]) == 1)
        if (++i == {inputs}) {{
            {name}_scores(x, out);
            for (i = 0; i < {outputs}; i++)
                printf("%.9g\\n", (double)out[i]);
            i = 0;
        }}
    return 0;
}}
"""


def write_c(
    model: nn.Module,
    path: Path,
    *,
    example_inputs: Any = None,
    weights: str = "float32",
    unroll: bool = False,
    classes: Sequence[str] | None = None,
    target: tuple[np.ndarray, np.ndarray] | None = None,
    features: Sequence[str] | None = None,
    columns: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write a model as C, as `fpe.export` describes; return the fields of an `Export` that are about C.

    `classes` are the names of the classes, `target` the mean and the spread of what is predicted, `features`
    the names of the inputs, `columns` those of a table that become them (`fpe.data.encoding`).
    """
    if weights not in WEIGHTS:
        raise ArgumentError(f"weights is {weights!r}; give one of {', '.join(WEIGHTS)}.")
    if set(path.stem) & set('"\\\n'):
        raise ArgumentError(f"{path.name!r} cannot be included by C; leave quotes and backslashes out.")
    model = unwrapped(model)
    mean, spread = target or (None, None)
    network = network_of(model, spread, mean)
    count = 2 if network.outputs == 1 else network.outputs
    if classes is not None and len(classes) != count:
        raise ModelError(f"there are {len(classes)} names of classes and {count} classes; name each.")
    made_up = _made_up(network)
    rows = made_up if example_inputs is None else _rows(example_inputs, network.inputs)
    wanted = outputs_of(model, rows)
    if spread is not None and mean is not None:
        wanted = wanted * spread + mean
    largest = float(np.abs(wanted).max(initial=0))
    found = _difference(network(rows.astype(np.float64)), wanted)
    if not found <= IN_DOUBLE * largest:
        raise ModelError(
            f"this {type(model).__name__} differs by {found:.1e} from its layers called one after another; "
            "it may have hooks, or a forward pass of its own. Export it as .onnx or .pt2."
        )
    network = rounded(network, weights, np.concatenate([made_up, rows]))
    expected = network(rows.astype(np.float64))
    if features is not None and len(features) != network.inputs:
        raise ModelError(f"there are {len(features)} names of features and {network.inputs} inputs.")
    fills = {column["name"]: column.get("missing") for column in columns or ()}
    inputs = [(name, fills.get(name)) for name in features or ()]
    how: dict[str, Any] = {"weights": weights, "unroll": unroll, "classes": classes, "features": inputs}
    source = source_of(network, path.stem, rows[:TEST_ROWS], **how)
    level = "-O0" if unroll and network.nonzero > OPTIMIZED else "-O2"
    own = _compiled(source, path.stem, network, rows, level)
    if own is not None and not (found := _difference(own, expected)) <= TOLERANCE * largest:
        raise ModelError(
            f"the C code differs from the model by {found:.1e}, more than rounding, at outputs of up to "
            f"{largest:.1e}; no file was written. Scale the inputs, or export the model as .onnx."
        )
    answers = expected if own is None else own

    def write(text: str) -> Any:
        return lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n")

    write_atomically(path.with_suffix(".h"), write(source.header))
    write_atomically(path, write(source.source))
    changed = None if target is not None else float((_classes(answers) != _classes(wanted)).mean())
    return {
        "difference": None if own is None else _difference(own, wanted),
        "constants": source.constants,
        "changed": changed,
    }


def _made_up(network: Network) -> np.ndarray:
    """Return rows of inputs, normal, or as the scaler expects them."""
    count = min(ROWS, max(NUMBERS // network.inputs, TEST_ROWS))
    rows = np.random.default_rng(0).standard_normal((count, network.inputs))
    if network.center is not None and network.factor is not None:
        rows = rows / network.factor + network.center
    return rows.astype(np.float32)


def _rows(example_inputs: Any, inputs: int) -> np.ndarray:
    """Return a batch as finite rows in float32."""
    args, kwargs = as_call(example_inputs)
    given = [*args, *kwargs.values()]
    if len(given) != 1:
        raise ArgumentError(f"example_inputs has {len(given)} inputs; the code takes one: give its rows.")
    own = given[0].detach().cpu().float().numpy() if isinstance(given[0], Tensor) else np.asarray(given[0])
    if own.ndim < 1 or own.shape[-1] != inputs or not own.size or own.dtype.kind not in "fiub":
        raise ArgumentError(
            f"example_inputs has shape {own.shape} and type {own.dtype}; give rows of {inputs} numbers."
        )
    rows = own.reshape(-1, inputs).astype(np.float32)
    if not np.isfinite(rows).all():
        raise ArgumentError("example_inputs has NaN or infinite numbers; give finite ones.")
    return rows


def _difference(own: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(own - wanted).max(initial=0)) if own.shape == wanted.shape else float("inf")


def _classes(outputs: np.ndarray) -> np.ndarray:
    return outputs[:, 0] > 0 if outputs.shape[1] == 1 else outputs.argmax(axis=1)


def _compiled(source: Source, stem: str, network: Network, rows: np.ndarray, level: str) -> np.ndarray | None:
    """Compile the code and run it on rows; None if there is no compiler, or if it takes too long."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return None
    given = "\n".join(map(str, rows.reshape(-1).tolist()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        driver = _DRIVER.format(stem=stem, name=source.name, inputs=network.inputs, outputs=network.outputs)
        for file, text in (
            (f"{stem}.h", source.header),
            (f"{stem}.c", source.source),
            (f"{stem}-run.c", driver),
        ):
            (folder / file).write_text(text, encoding="utf-8")
        command = [compiler, "-std=c99", level, f"./{stem}.c", f"./{stem}-run.c", "-o", "run", "-lm"]
        for arguments in (command, [str(folder / "run")]):
            how: dict[str, Any] = {"input": given, "capture_output": True, "text": True, "timeout": SECONDS}
            try:
                done = subprocess.run(arguments, cwd=folder, **how)
            except subprocess.TimeoutExpired:
                return None
            if done.returncode:
                lines = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()
                cause = next((line for line in lines if "error" in line), lines[0])
                raise ModelError(
                    f"the C code could not be checked by {compiler}: {cause}. No file was written."
                )
    answers = np.array(done.stdout.split(), dtype=np.float64)
    return answers.reshape(-1, network.outputs)
