"""The parts of a C file while it is written, and numbers, names and texts as C."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import numpy as np

from fpe.io.c.network import Network

#: Activations that are not in math.h.
FUNCTIONS = {
    "relu": "v < 0.0f ? 0.0f : v",
    "gelu": "0.5f * v * (1.0f + erff(v * 0.70710678f))",
    "silu": "v / (1.0f + expf(-v))",
    "sigmoid": "1.0f / (1.0f + expf(-v))",
}


class Text:
    """The parts of a C file; `constants` counts the bytes of its arrays of numbers."""

    def __init__(self, network: Network, weights: str) -> None:
        self.network, self.weights = network, weights
        self.functions: dict[str, str] = {}
        self.arrays: list[str] = []
        self.body: list[str] = []
        self.headers: set[str] = set()
        self.constants = 0

    def array(self, name: str, values: np.ndarray, kind: str | None = None) -> str:
        """Add a constant array of numbers; return its name."""
        kind = kind or {"f": "float", "i": f"int{8 * values.itemsize}_t"}.get(
            values.dtype.kind, f"uint{8 * values.itemsize}_t"
        )
        if kind != "float":
            self.headers.add("stdint.h")
        self.constants += values.nbytes
        self.arrays.append(f"static const {kind} {name}[{values.size}] = {{\n{c_numbers(values)}\n}};")
        return name

    def floats(self, name: str, values: np.ndarray) -> str:
        """Add an array of float32."""
        return self.array(name, np.float32(values))

    def activation(self, kind: str) -> str:
        """Add the function of an activation; return its name."""
        if kind != "relu":
            self.headers.add("math.h")
        if kind in FUNCTIONS:
            text = f"static float {kind}(float v)\n{{\n    return {FUNCTIONS[kind]};\n}}\n"
            self.functions.setdefault(kind, text)
        return kind

    def line(self, text: str) -> None:
        """Add a statement to the function that computes the outputs."""
        self.body += textwrap.wrap(
            text,
            100,
            initial_indent="    ",
            subsequent_indent="        ",
            break_long_words=False,
            break_on_hyphens=False,
        )


def c_numbers(values: np.ndarray) -> str:
    """Return the entries of an array, in lines."""
    texts, columns = list(map(c_number, values.reshape(-1))), 6 if values.dtype.kind == "f" else 16
    lines = [", ".join(texts[i : i + columns]) for i in range(0, len(texts), columns)]
    return ",\n".join(f"    {line}" for line in lines)


def c_number(value: Any) -> str:
    """Return a number as C: the shortest decimal that is this float32."""
    return f"{np.float32(value)!s}f" if isinstance(value, np.floating | float) else str(value)


def c_string(text: str) -> str:
    """Return a string literal of the UTF-8 bytes of a text."""
    plain = {chr(code) for code in range(32, 127)} - set('"\\?')  # ?? begins a trigraph
    return '"' + "".join(c if c in plain else "".join(f"\\{b:03o}" for b in c.encode()) for c in text) + '"'


def c_comment(text: str) -> str:
    """Return a text in one line that cannot end or begin a comment."""
    return re.sub(r"[\x00-\x1f\x7f\u2028\u2029\\]|\?\?/|\*(?=/)|/(?=\*)", "_", text)


def identifier(stem: str) -> str:
    """Return a file's stem as the beginning of C identifiers."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", stem).strip("_")
    return name if name[:1].isalpha() else f"model_{name}".strip("_")
