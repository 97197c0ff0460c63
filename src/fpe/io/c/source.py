"""Write a network as C99 for microcontrollers: constants and loops, or one statement for each neuron."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

import numpy as np

from fpe import __version__
from fpe.io.c.network import Activation, Affine, Network, Norm, Step
from fpe.io.c.text import Text, c_comment, c_number, c_numbers, c_string, identifier
from fpe.io.c.unrolled import unrolled

#: Largest difference of the code to its network in double precision, relative to the largest output.
TOLERANCE = 1e-4
#: Type of a stored weight, its bytes, and how a loop reads the next one.
_STORED = {
    "float32": ("float", 4, "*w++"),
    "float16": ("uint16_t", 2, "half(*w++)"),
    "int8": ("int8_t", 1, "*w++"),
}
_HALF = """\
static float half(uint16_t h)
{
    union { uint32_t bits; float number; } v;
    v.bits = (uint32_t)(h & 0x7fffu) << 13;
    v.number *= 5.192296858534828e33f; /* 2^112: the difference of the exponents' offsets */
    v.bits |= (uint32_t)(h & 0x8000u) << 16;
    return v.number;
}
"""
_NORM = """\
static void layer_norm(const float *x, float *y, int n, const float *gain, const float *shift, float eps)
{
    float mean = 0.0f, variance = 0.0f;
    for (int i = 0; i < n; i++)
        mean += x[i];
    mean /= (float)n;
    for (int i = 0; i < n; i++)
        variance += (x[i] - mean) * (x[i] - mean);
    variance = 1.0f / sqrtf(variance / (float)n + eps);
    for (int i = 0; i < n; i++)
        y[i] = (x[i] - mean) * variance * gain[i] + shift[i];
}
"""
#: The function of a format of weights: its other parameters, and the loop over the inputs of neuron i.
_LOOPS = {
    "dense": (
        "int inputs",
        "        for (int j = 0; j < inputs; j++)\n            sum += $next * x[j];\n",
    ),
    "bits": (
        "int inputs, const uint8_t *bits",
        "        for (int j = 0; j < inputs; j++)\n"
        "            if ((bits[j >> 3] >> (j & 7)) & 1)\n                sum += $next * x[j];\n"
        "        bits += (inputs + 7) / 8;\n",
    ),
    "places": (
        "const $count *counts, const $place *places",
        "        for (int k = counts[i]; k > 0; k--)\n            sum += $next * x[*places++];\n",
    ),
}


def _loops(text: Text) -> None:
    """Write the network as arrays and as calls of functions with loops."""
    network, steps = text.network, text.network.steps
    last = max(i for i, step in enumerate(steps) if isinstance(step, Affine))
    sizes = {"a": 0, "b": 0}
    source, width = "x", network.inputs
    if network.center is not None or network.factor is not None:
        source = "z"
        center = "" if network.center is None else f" - {text.floats('center', network.center)}[i]"
        factor = "" if network.factor is None else f" * {text.floats('factor', network.factor)}[i]"
        value = f"(x[i]{center}){factor}" if center and factor else f"x[i]{center}{factor}"
        text.line(f"float z[{width}];")
        text.line(f"for (int i = 0; i < {width}; i++)")
        text.line(f"    z[i] = {value};")
    given = source
    for i, step in enumerate(steps, 1):
        if i > last:
            target = "out"
        elif isinstance(step, Affine) or source == given:
            target = "b" if source == "a" else "a"
        else:
            target = source
        width = len(step.bias) if isinstance(step, Affine) else width
        if target != "out":
            sizes[target] = max(sizes[target], width)
        _call(text, step, source, target, width, str(i))
        source = target
    if network.direct is not None:
        _call(text, network.direct, given, "out", width, "_direct", bias="out")
    declared = [f"    float {name}[{size}];" for name, size in sizes.items() if size]
    text.body = [*declared, *text.body]
    if given == "x" and not any(re.search(r"\bx\b", line) for line in text.body):
        text.line("(void)x;")


def _call(text: Text, step: Step, source: str, target: str, width: int, number: str, bias: str = "") -> None:
    """Add a step's arrays, its function, and the statement that applies it to a buffer."""
    if isinstance(step, Activation):
        text.line(f"for (int i = 0; i < {width}; i++)")
        text.line(f"    {target}[i] = {text.activation(step.kind)}({source}[i]);")
    elif isinstance(step, Norm):
        text.headers.add("math.h")
        text.functions["layer_norm"] = _NORM
        gain, shift = text.floats(f"gain{number}", step.gain), text.floats(f"shift{number}", step.shift)
        text.line(f"layer_norm({source}, {target}, {width}, {gain}, {shift}, {c_number(step.eps)});")
    elif not step.values.any():
        value = f"{text.floats(f'bias{number}', step.bias)}[i]" if step.bias.any() else "0.0f"
        text.line(f"for (int i = 0; i < {width}; i++)")
        text.line(f"    {target}[i] = {value};")
    else:
        if not bias:
            bias = text.floats(f"bias{number}", step.bias) if step.bias.any() else "0"
        function, given = _stored(text, step, number)
        text.line(f"{function}({source}, {target}, {width}, {bias}, {', '.join(given)});")


def _stored(text: Text, layer: Affine, number: str) -> tuple[str, list[str]]:
    """Add a layer's weights in the format of the fewest bytes; return its function and the last arguments."""
    values = layer.values
    outputs, inputs = values.shape
    kind, bytes, following = _STORED[text.weights]
    free = values != 0
    counts, places = _smallest(free.sum(axis=1)), _smallest(free.nonzero()[1], inputs - 1)
    bits = np.packbits(free, axis=1, bitorder="little")
    nonzero = int(free.sum())
    sizes = {
        "dense": values.size * bytes,
        "places": counts.nbytes + places.nbytes + nonzero * bytes,
        "bits": bits.nbytes + nonzero * bytes,
    }
    format = min(sizes, key=sizes.__getitem__)
    own = values.reshape(-1) if format == "dense" else values[free]
    if text.weights == "float16":
        text.functions.setdefault("half", _HALF)
    given = [text.array(f"weights{number}", own.view(np.uint16) if kind == "uint16_t" else own)]
    scaled = ""
    if layer.scale is not None:
        each = len(layer.scale) == outputs and text.weights == "int8"
        scaled = "scale[i]" if each else "scale"
        given.append(text.floats(f"scale{number}", layer.scale) if each else c_number(layer.scale[0]))
    given += [str(inputs)] if format != "places" else []
    if format == "bits":
        given.append(text.array(f"bits{number}", bits.reshape(-1)))
    elif format == "places":
        given += [text.array(f"counts{number}", counts), text.array(f"places{number}", places)]
    function = format if format != "places" else f"places_{8 * counts.itemsize}_{8 * places.itemsize}"
    function += "_scaled" if scaled and text.weights == "float16" else ""
    parameters, loop = _LOOPS[format]
    factor = {"scale[i]": ", const float *scale", "scale": ", float scale", "": ""}[scaled]
    text.functions[function] = Template(
        f"static void {function}(const float *x, float *y, int outputs, const float *bias,\n"
        f"    const {kind} *w{factor}, {parameters})\n{{\n"
        "    for (int i = 0; i < outputs; i++) {\n        float sum = 0.0f;\n"
        f"{loop}        y[i] = sum{' * ' + scaled if scaled else ''} + (bias ? bias[i] : 0.0f);\n    }}\n}}\n"
    ).substitute(next=following, count=f"uint{8 * counts.itemsize}_t", place=f"uint{8 * places.itemsize}_t")
    return function, given


def _smallest(values: np.ndarray, most: int | None = None) -> np.ndarray:
    """Return counts or places in the smallest type."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0)) if most is None else most))


#: The parts of the two files.
_HEADER = Template("""\
/* Written by fpe $version. $summary */
#ifndef ${upper}_H
#define ${upper}_H

#ifdef __cplusplus
extern "C" {
#endif

#define ${upper}_INPUTS $inputs
#define ${upper}_OUTPUTS $outputs

/* Compute the $what of one row: ${upper}_INPUTS numbers at x to ${upper}_OUTPUTS numbers at out. */$features
void ${name}_scores(const float *x, float *out);
$classes
#ifdef __cplusplus
}
#endif

#endif
""")
_HEADER_CLASSES = Template("""
#define ${upper}_CLASSES $count

extern const char *const ${name}_class_names[${upper}_CLASSES];

/* Return the number of the class of one row, from 0. */
int ${name}_classify(const float *x);
""")
_CLASSES = Template("""
const char *const ${name}_class_names[$count] = {
$names
};

int ${name}_classify(const float *x)
{
    float out[$outputs];
$search
}
""")
_TEST = Template("""
#ifdef ${upper}_TEST
#include <stdio.h>

static const float test_inputs[$rows][$inputs] = {
$given
};
/* $expected */
static const float test_outputs[$rows][$outputs] = {
$wanted
};

int main(void)
{
    const float tolerance = $tolerance;
    float out[$outputs], largest = 0.0f;
    int fails = 0;
    for (int i = 0; i < $rows; i++) {
        ${name}_scores(test_inputs[i], out);
        for (int j = 0; j < $outputs; j++) {
            float difference = out[j] - test_outputs[i][j];
            if (difference < 0.0f)
                difference = -difference;
            if (difference > largest)
                largest = difference;
            if (!(difference <= tolerance))
                fails = 1;
        }
    }
    printf("largest difference %g, tolerance %g\\n", (double)largest, (double)tolerance);
    return fails;
}
#endif
""")


@dataclass(frozen=True)
class Source:
    """The two files, and the bytes of the numbers in them: weights, their places, biases, scales."""

    name: str
    header: str
    source: str
    constants: int


def source_of(
    network: Network,
    stem: str,
    rows: np.ndarray,
    *,
    weights: str,
    unroll: bool,
    classes: Sequence[str] | None,
    features: Sequence[tuple[str, float | None]] = (),
) -> Source:
    """Return C code for a rounded network; `rows`, (rows, inputs), are for its self-test.

    `features` are the names of the inputs and what replaces missing values, for a comment.
    """
    name = identifier(stem)
    text = Text(network, weights)
    (unrolled if unroll else _loops)(text)
    expected = network(rows.astype(np.float64))
    largest = float(np.abs(expected).max(initial=0)) or 1.0
    common: dict[str, Any] = {
        "name": name,
        "upper": name.upper(),
        "version": __version__,
        "inputs": network.inputs,
        "outputs": network.outputs,
        "rows": len(rows),
        "given": _table(rows),
        "wanted": _table(expected),
        "expected": f"Of the network with its weights in {weights}, computed in double precision.",
        "tolerance": c_number(TOLERANCE * largest),
        "what": "outputs" if classes is None else "scores of the classes",
        "summary": f"{network.nonzero} non-zero weights in {weights}"
        + (", in the code." if unroll else f"; {text.constants} bytes of constants."),
    }
    header_classes = source_classes = ""
    if classes is not None:
        common["count"] = len(classes)
        common["names"] = ",\n".join(f"    {c_string(own)}" for own in classes)
        common["search"] = _SEARCH_ONE if network.outputs == 1 else _SEARCH
        common["search"] = Template(common["search"]).substitute(common)
        header_classes = _HEADER_CLASSES.substitute(common)
        source_classes = _CLASSES.substitute(common)
    lines = [
        f"   x[{i}]  {c_comment(own)}{'' if fill is None else f' (missing: {fill:.9g})'}"
        for i, (own, fill) in enumerate(features)
    ]
    inputs = "\n".join(["\n/* The inputs are", *lines, "*/"]) if lines else ""
    header = _HEADER.substitute(common, classes=header_classes, features=inputs)
    includes = [f'#include "{stem}.h"', *(f"#include <{own}>" for own in sorted(text.headers))]
    parts = ["\n".join(includes), *text.arrays, *text.functions.values()]
    body = "\n".join(text.body)
    parts.append(f"void {name}_scores(const float *x, float *out)\n{{\n{body}\n}}")
    source = "\n\n".join(part.rstrip("\n") for part in parts) + "\n"
    return Source(name, header, source + source_classes + _TEST.substitute(common), text.constants)


_SEARCH = """\
    int best = 0;
    ${name}_scores(x, out);
    for (int i = 1; i < $outputs; i++)
        if (out[i] > out[best])
            best = i;
    return best;"""
_SEARCH_ONE = """\
    ${name}_scores(x, out);
    return out[0] > 0.0f;"""


def _table(rows: np.ndarray) -> str:
    return ",\n".join(f"    {{\n{c_numbers(np.float32(row))}\n    }}" for row in rows)
