"""A network as one statement for each neuron, with constants, as for high-level synthesis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from fpe.io.c.network import Activation, Affine, Network, Norm, Step
from fpe.io.c.text import Text, c_number

Groups = list[tuple["Affine | Norm | None", list[str]]]


def unrolled(text: Text) -> None:
    """Write the network as one statement for each neuron, with constants."""
    network = text.network
    groups = _grouped(network.steps)
    needed = _needed(network, groups)
    input: Callable[[int], str] = "x[{}]".format
    if not needed[0]:
        text.line("(void)x;")
    elif network.center is not None or network.factor is not None:
        for i in needed[0]:
            center = "" if network.center is None else f" - {c_number(network.center[i])}"
            factor = "" if network.factor is None else f" * {c_number(network.factor[i])}"
            text.line(f"const float z_{i} = {_signed(f'(x[{i}]{center}){factor}')};")
        input = "z_{}".format
    given = input
    for place, ((step, kinds), after) in enumerate(zip(groups, needed[1:], strict=True), 1):
        value = input
        if isinstance(step, Affine):
            value = partial(_sum, step, input)
        elif step is not None and after:
            value = partial(_normed, step, _statistics(text, step, place, input), input)
        functions = [text.activation(kind) for kind in kinds] if after else []
        is_last = place == len(groups)
        for neuron in after:
            own = value(neuron)
            for function in functions:
                own = f"{function}({own})"
            if is_last and network.direct is not None and network.direct.values[neuron].any():
                own = _signed(f"{own} + {_sum(network.direct, given, neuron)}")
            text.line(f"{f'out[{neuron}]' if is_last else f'const float h{place}_{neuron}'} = {own};")
        input = f"h{place}_{{}}".format


def _grouped(steps: Sequence[Step]) -> list[tuple[Affine | Norm | None, list[str]]]:
    """Return each linear layer or norm with the activations after it; None where they come first."""
    groups: list[tuple[Affine | Norm | None, list[str]]] = []
    for step in steps:
        if not isinstance(step, Activation):
            groups.append((step, []))
        elif groups:
            groups[-1][1].append(step.kind)
        else:
            groups.append((None, [step.kind]))
    return groups


def _needed(network: Network, groups: list[tuple[Affine | Norm | None, list[str]]]) -> list[list[int]]:
    """Return the neurons before each group, and after the last, that the outputs depend on."""
    needed = [list(range(network.outputs))]
    for step, _ in reversed(groups):
        after = needed[0]
        if isinstance(step, Affine):
            after = np.flatnonzero(step.values[after].any(axis=0)).tolist()
        elif step is not None and after:
            after = list(range(len(step.gain)))
        needed.insert(0, after)
    if network.direct is not None:
        needed[0] = sorted({*needed[0], *np.flatnonzero(network.direct.values.any(axis=0)).tolist()})
    return needed


def _signed(text: str) -> str:
    """Write additions and subtractions of negative numbers without a second sign."""
    return text.replace("+ -", "- ").replace("- -", "+ ")


def _sum(layer: Affine, input: Callable[[int], str], neuron: int) -> str:
    """Return the expression of a linear neuron."""
    row, bias = layer.values[neuron], layer.bias[neuron]
    text = " + ".join(f"{c_number(float(row[j]))} * {input(j)}" for j in np.flatnonzero(row).tolist())
    if text and layer.scale is not None:
        text = f"{c_number(layer.scale[neuron % len(layer.scale)])} * ({text})"
    if bias or not text:
        text = f"{text} + {c_number(bias)}" if text else c_number(bias)
    return _signed(text)


def _statistics(text: Text, norm: Norm, place: int, input: Callable[[int], str]) -> tuple[str, str]:
    """Add the mean and one over the spread of a norm's inputs; return their names."""
    text.headers.add("math.h")
    names, count = [input(j) for j in range(len(norm.gain))], c_number(float(len(norm.gain)))
    mean, scale = f"mean{place}", f"scale{place}"
    text.line(f"const float {mean} = ({' + '.join(names)}) / {count};")
    squares = " + ".join(f"({name} - {mean}) * ({name} - {mean})" for name in names)
    text.line(f"const float {scale} = 1.0f / sqrtf(({squares}) / {count} + {c_number(norm.eps)});")
    return mean, scale


def _normed(norm: Norm, statistics: tuple[str, str], input: Callable[[int], str], neuron: int) -> str:
    """Return the expression of a neuron after a norm."""
    mean, scale = statistics
    gain, shift = c_number(norm.gain[neuron]), c_number(norm.shift[neuron])
    return _signed(f"({input(neuron)} - {mean}) * {scale} * {gain} + {shift}")
