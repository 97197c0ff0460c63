"""ONNX files without the zeros of masks: constants that a runtime makes of values and places when it loads.

onnxruntime and other runtimes compute, once, what depends on constants alone. The weight is then the constant
that it would have been, and a run takes no longer. A runtime that does not (onnxruntime without any
optimization) makes the weight again in each run.
"""

from __future__ import annotations

from typing import Any

import numpy as np

#: Largest share of a constant's bytes that values and places may take, and least bytes that they must save:
#: the operations take about 700.
WORTH, LEAST = 0.9, 1024
#: Largest step from one place to the next; between places further apart, zeros are stored too.
_STEP = 255


def steps_between(flat: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return steps, uint8, whose running sums are the places of all that is not zero, and of few zeros.

    Examples
    --------
    >>> import numpy as np
    >>> from fpe.io.onnx_zeros import steps_between
    >>> steps_between(np.array([0, 0, 5, 0, 0, 0, 7])).tolist()
    [2, 4]
    """
    places = np.flatnonzero(flat)
    gaps = np.diff(places, prepend=0) if len(places) else np.zeros(1, np.int64)
    between = np.maximum(gaps - 1, 0) // _STEP
    steps = np.full(len(gaps) + between.sum(), _STEP, np.uint8)
    steps[np.cumsum(between + 1) - 1] = gaps - _STEP * between
    return steps


def drop_zeros_(model: Any) -> None:
    """Store constants with many zeros as their non-zeros, in place; runtimes that fold constants do so once.

    `model` is an ``onnxscript.ir.Model``. Of each such constant, the non-zeros and the steps from each to
    the next (`steps_between`) are stored; CumSum makes places of the steps, and ScatterElements puts the
    values there.
    """
    from onnxscript import ir

    graph, types = model.graph, (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)
    kept = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if id(value) in kept or tensor.dtype not in types or tensor.nbytes <= LEAST:
            continue
        whole = tensor.numpy()
        most = (np.count_nonzero(whole) + whole.size // _STEP) * (whole.itemsize + 1)
        if most > min(WORTH * whole.nbytes, whole.nbytes - LEAST):
            continue
        flat, steps = whole.ravel(), steps_between(whole.ravel())
        values = flat[np.cumsum(steps, dtype=np.int64)]
        zero = ir.tensor(np.zeros(1, flat.dtype))
        integers = {"size": [flat.size], "shape": whole.shape, "axis": 0}
        parts = {"steps": steps, "values": values, **{k: np.array(v, np.int64) for k, v in integers.items()}}
        given = {part: _constant(graph, f"{name}.{part}", content) for part, content in parts.items()}
        cast = ir.node("Cast", [given["steps"]], {"to": ir.DataType.INT64.value})
        places = ir.node("CumSum", [cast.outputs[0], given["axis"]])
        zeros = ir.node("ConstantOfShape", [given["size"]], {"value": zero})
        scattered = ir.node("ScatterElements", [zeros.outputs[0], places.outputs[0], given["values"]])
        made = ir.node("Reshape", [scattered.outputs[0], given["shape"]])
        graph.insert_before(graph[0], [cast, places, zeros, scattered, made])
        made.outputs[0].dtype, made.outputs[0].shape = value.dtype, value.shape
        ir.convenience.replace_all_uses_with(value, made.outputs[0])
        del graph.initializers[name]


def _constant(graph: Any, name: str, content: np.ndarray[Any, Any]) -> Any:
    """Add a constant to a graph."""
    from onnxscript import ir

    tensor = ir.tensor(content, name=name)
    value = ir.Value(name=name, shape=ir.Shape(content.shape), const_value=tensor)
    value.dtype = tensor.dtype
    graph.register_initializer(value)
    return value
