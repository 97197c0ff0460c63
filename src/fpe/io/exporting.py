"""Export a model for runtimes without fpe: ONNX, or an archive of torch.export; checked after writing."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from fpe._util.files import write_atomically
from fpe._util.modules import seeded
from fpe._util.terminal import silenced
from fpe.errors import ArgumentError, ModelError
from fpe.graph.copies import WritesUndone, analysis_copy, outside_kept
from fpe.graph.inputs import Call, as_call, copied_call, inputs_for, tensors_in
from fpe.io.batch_axes import Axes, BatchAxis
from fpe.packing.separate import with_separate_blocks
from fpe.packing.verify import cannot_run, difference, largest

SUFFIXES = (".onnx", ".pt2")
#: Largest difference that is allowed, relative to the largest entry of an output.
TOLERANCE = 1e-4
#: An output that is this much smaller than the largest may be what is left of sums that cancel out.
SLIGHT = 1e-3
#: The same for types of 16 bits.
COARSE = 1e-2
#: Bytes of what may be computed beforehand and stored in its place: codes and int8 stay as small as they are.
SMALL = 1024
#: Bytes that a file of ONNX can hold.
ONNX_LIMIT = 1 << 31


@dataclass(frozen=True)
class Export:
    """What `export` has written.

    Attributes
    ----------
    path : Path
        The file.
    bytes : int
        Its size.
    difference : float or None
        Largest difference between an output of the model and of the file, over two sizes of the batch;
        None if nothing is installed that could run the file.
    dynamic : dict of str to list of int
        For each input the axes that may have any length; all others have that of the example.
    """

    path: Path
    bytes: int
    difference: float | None
    dynamic: dict[str, list[int]]

    def __str__(self) -> str:
        known = self.difference is not None
        checked = f"outputs differ by at most {self.difference:.1e}" if known else "not checked"
        return f"{self.path}  {self.bytes:,} bytes, {checked}; {self.lengths}"

    @property
    def lengths(self) -> str:
        """A clause that says which axes may have any length."""
        free = [f"{' and '.join(map(str, axes))} of {name!r}" for name, axes in self.dynamic.items() if axes]
        return f"axes of any length: {', '.join(free)}" if free else "all axes have the example's lengths"


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any = None,
    batch_axis: BatchAxis = 0,
) -> Export:
    """Write a model as ONNX or as an archive of ``torch.export``, for any size of the batch.

    Parameters
    ----------
    model : nn.Module
        Dense, expanded or packed; it is exported in evaluation mode and left as it was.
    path : path-like
        Ends in ``.onnx`` (needs the extra ``onnx``) or ``.pt2`` (read it by ``torch.export.load``; of a
        quantised model, where torchao is installed).
    example_inputs : Tensor, tuple or dict, optional
        One batch: a tensor, several, or named ones. The batch axis of each tensor becomes dynamic; tensors
        of equal length there stay of equal length. So does the second axis of texts (integers) of a model of
        transformers, for which a batch is made up if none is given.
    batch_axis : int, None, or mapping of str to these, default 0
        Which axis of the inputs is the batch, such as 1 for recurrent layers that take time first; a mapping
        gives it for inputs by their name, and others have 0. None for inputs without a batch, whose sizes
        stay as they are.

    Returns
    -------
    Export
        Path, bytes, the axes that may have any length, and the largest difference: what was written has been
        run, by onnxruntime if that is installed or by torch, on these inputs and on a batch of another size.
        The file returns the model's tensors in their order, whatever object the model puts them in.

    Raises
    ------
    ArgumentError
        For another ending, a missing extra, a missing or empty batch, or one that the model cannot be run on
        (such as float32 for a model in float64), or an axis or input that there is not.
    ModelError
        If torch cannot export the model, or if what was written computes something else. No file is
        left then, and an old one stays.
    WriteError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile, torch, fpe
    >>> packed = fpe.pack(fpe.expand(fpe.mlp(64, 16, 10), split="shared"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = fpe.export(packed, f"{folder}/digits.pt2", torch.randn(5, 64))
    >>> written.difference < 1e-4
    True
    """
    path = Path(path)
    _check(model, path)
    model = getattr(model, "_orig_mod", model)
    call = _call(model, example_inputs)
    with _quiet(), seeded(), outside_kept(model), torch.no_grad():
        wrapped = _TensorsOnly(analysis_copy(model), call, batch_axis)
        _try(wrapped)
        traced = analysis_copy(model).eval()
        if path.suffix == ".onnx":
            traced = with_separate_blocks(traced)
        program = _exported(_TensorsOnly(traced, call, batch_axis))
        found = None

        def write(temporary: Path) -> None:
            nonlocal found
            _save(program, temporary, wrapped)
            found = _compare(temporary, wrapped)

        write_atomically(path, write)
    return Export(path, path.stat().st_size, found, wrapped.axes.named(wrapped.call))


def _try(wrapped: _TensorsOnly) -> None:
    """Refuse a batch that the model cannot be run on."""
    args, kwargs = copied_call(wrapped.call)
    try:
        with WritesUndone(wrapped.model):
            wrapped(*args, **kwargs)
    except Exception as error:  # of the model's own code
        raise cannot_run(wrapped.model, wrapped.call, error) from error


def _check(model: nn.Module, path: Path) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; give a torch.nn.Module.")
    if path.suffix not in SUFFIXES:
        raise ArgumentError(f"{path} ends in {path.suffix!r}; allowed are .onnx and .pt2 (torch.export).")
    if path.suffix == ".onnx":
        missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise ArgumentError(
                f"ONNX needs {' and '.join(missing)}: pip install 'fixed-parameter-expansion[onnx]'"
            )
        bytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        if bytes >= ONNX_LIMIT:
            raise ModelError(f"the model has {bytes:,} bytes, ONNX holds less than 2 GiB; export it as .pt2.")


def _call(model: nn.Module, example_inputs: Any) -> Call:
    """Return the batch as a call, without what belongs to generation."""
    made = inputs_for(model)
    if example_inputs is None:
        if made is None:
            raise ArgumentError("example_inputs is missing; give one batch that the model takes.")
        return as_call(made)
    args, kwargs = pytree.tree_map(_alone, as_call(example_inputs))
    if made is not None and "use_cache" in made:
        kwargs.setdefault("use_cache", False)
    if not any(tensor.dim() and len(tensor) for tensor in _tensors((args, kwargs))):
        raise ArgumentError("example_inputs holds no tensor with rows; give one batch that the model takes.")
    return args, kwargs


def _alone(leaf: Any) -> Any:
    """Copy a tensor: an archive holds its examples, and with a part of a tensor it would hold the whole."""
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def _tensors(call: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, Tensor)]


class _TensorsOnly(nn.Module):
    """A model as a function of tensors alone, which returns tensors alone.

    Named arguments without tensors, such as flags, stay as they are in the batch. The signature names
    every argument one by one, as ``torch.export`` wants it.
    """

    def __init__(self, model: nn.Module, call: Call, batch_axis: BatchAxis) -> None:
        super().__init__()
        args, kwargs = call
        self.model = model
        constants = {name: value for name, value in kwargs.items() if not _tensors(value)}

        def answer(*args: Any, **kwargs: Any) -> Any:
            return model(*args, **constants, **kwargs)

        def forward(*args: Any, **kwargs: Any) -> list[Tensor]:
            return tensors_in(answer(*args, **kwargs))

        self.call = (args, {name: value for name, value in kwargs.items() if name not in constants})
        self.names = [*_positional_names(model, len(args)), *self.call[1]]
        first, then = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter(name, first if i < len(args) else then) for i, name in enumerate(self.names)
        ]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        self.answer, self.forward = answer, forward
        self.axes = Axes.of(self.names, self.call, batch_axis, inputs_for(model) is not None)
        self.eval()


def _positional_names(model: nn.Module, count: int) -> list[str]:
    """Return what a model calls its first arguments, or numbers."""
    parameters = inspect.signature(model.forward).parameters.values()
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = [p.name for p in parameters if p.kind in plain]
    return [known[i] if i < len(known) else f"input_{i}" for i in range(count)]


def _names_of_sizes(wrapped: _TensorsOnly, call: Call) -> dict[int, str]:
    sizes = wrapped.axes.sizes(call)
    return {size: f"batch_{i}" if i else "batch" for i, size in enumerate(sizes)}


def _exported(wrapped: _TensorsOnly) -> ExportedProgram:
    """Export with a dynamic batch; a batch of one would be taken for a constant, and is doubled."""
    call, axes = wrapped.call, wrapped.axes
    if axes.sizes(call) == [1]:
        call = axes.resized(call, 1)
    dims = {size: Dim(name, min=1) for size, name in _names_of_sizes(wrapped, call).items()}
    args, kwargs = call
    shapes = axes.dynamic(call, dims, lambda _: Dim.AUTO)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # torch prints the graph as far as it got
            return torch.export.export(wrapped, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # a model may defy export in any way
        kind = type(wrapped.model).__name__
        if dims and "onstraint" in str(error):  # torch's hints are about its own logs and names
            raise ModelError(
                f"this {kind} does not take any length of the axes that are taken for the batch: "
                f"{axes.taken(call)}. Say where the batch is with batch_axis=… (--batch-axis), by input if "
                "need be; None for inputs without a batch."
            ) from error
        raise ModelError(
            f"torch cannot export this {kind}{' with a dynamic batch' if dims else ''}: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error


def _save(program: ExportedProgram, path: Path, wrapped: _TensorsOnly) -> None:
    if path.suffix == ".pt2":
        try:
            torch.export.save(program, path)
        except OSError:
            raise
        except Exception as error:  # a tensor of a kind that an archive cannot hold
            raise ModelError(
                f"torch cannot write this {type(wrapped.model).__name__} as an archive: "
                f"{type(error).__name__}: {_first_line(error)}"
            ) from error
        return
    import onnxscript.optimizer

    args, kwargs = wrapped.call
    each_is_tensor = all(isinstance(value, Tensor) for value in (*args, *kwargs.values()))
    inputs, outputs = wrapped.names if each_is_tensor else None, _output_names(wrapped)
    try:
        written = torch.onnx.export(
            program,
            dynamo=True,
            dynamic_shapes=wrapped.axes.dynamic(
                wrapped.call, _names_of_sizes(wrapped, wrapped.call), "length_{}".format
            ),
            input_names=inputs,
            output_names=outputs,
            optimize=False,
            verbose=False,
        )
        assert written is not None
        onnxscript.optimizer.optimize(written.model, input_size_limit=SMALL, output_size_limit=SMALL)
    except Exception as error:  # an operation may be missing in ONNX
        raise ModelError(
            f"torch cannot write this {type(wrapped.model).__name__} as ONNX: "
            f"{type(error).__name__}: {_first_line(error.__cause__ or error)}; .pt2 may do."
        ) from error
    for node in written.model.graph:
        node.metadata_props.clear()  # where in Python it was written: more bytes than a small model
    written.save(path, external_data=False)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def _output_names(wrapped: _TensorsOnly) -> list[str]:
    """Return the names of an output object's fields, if each is one tensor; else numbers."""
    args, kwargs = copied_call(wrapped.call)
    with WritesUndone(wrapped.model):
        made = wrapped.answer(*args, **kwargs)
    tensors = tensors_in(made)
    if isinstance(made, Mapping) and all(isinstance(value, Tensor) for value in made.values()):
        return [str(name) for name in made]
    return ["output"] if len(tensors) == 1 else [f"output_{i}" for i in range(len(tensors))]


def _compare(path: Path, wrapped: _TensorsOnly) -> float | None:
    """Run what was written on the batch and on another size of it; return the largest difference."""
    calls = [
        wrapped.call,
        *([wrapped.axes.resized(wrapped.call, 2)] if wrapped.axes.sizes(wrapped.call) else []),
    ]
    try:
        with WritesUndone(wrapped.model):
            answers = [wrapped(*args, **kwargs) for args, kwargs in map(copied_call, calls)]
    except Exception as error:  # of the model's own code
        raise ModelError(
            f"this {type(wrapped.model).__name__} fails on another size of the batch, repeated along "
            f"{wrapped.axes.taken(wrapped.call)}: {type(error).__name__}: {_first_line(error)}; say where "
            "the batch is with batch_axis=… (--batch-axis). No file was left."
        ) from error
    if path.suffix == ".onnx" and not _runs_onnx([*_tensors(wrapped.call), *answers[0]]):
        return None
    try:
        made = _run_onnx(path, calls) if path.suffix == ".onnx" else _run_archive(path, calls)
    except Exception as error:  # whatever a runtime makes of it
        raise ModelError(
            f"what was exported does not run: {type(error).__name__}: {_first_line(error)}; no file was left."
        ) from error
    pairs = [pair for both in zip(made, answers, strict=True) for pair in zip(*both, strict=True)]
    overall = max((largest(wanted) for _, wanted in pairs), default=0.0)
    for own, wanted in pairs:
        allowed = COARSE if wanted.dtype in (torch.float16, torch.bfloat16) else TOLERANCE
        found = difference(own, wanted)
        if not found <= allowed * max(SLIGHT * overall, largest(wanted)):
            raise ModelError(
                f"what was exported differs from the model by {found:.1e}, more than rounding; no file "
                "was left. A model that draws random numbers in evaluation mode cannot be exported."
            )
    return max((difference(own, wanted) for own, wanted in pairs), default=0.0)


def _runs_onnx(tensors: list[Tensor]) -> bool:
    """Tell whether onnxruntime is there, and numpy knows these types."""
    is_there = importlib.util.find_spec("onnxruntime") is not None
    return is_there and all(tensor.dtype != torch.bfloat16 for tensor in tensors)


def _run_onnx(path: Path, calls: list[Call]) -> list[list[Tensor]]:
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    made = []
    for call in calls:
        feed = {name: own.cpu().numpy() for name, own in zip(names, _tensors(call), strict=True)}
        made.append([torch.as_tensor(output) for output in session.run(None, feed)])
    return made


def _run_archive(path: Path, calls: list[Call]) -> list[list[Tensor]]:
    module = torch.export.load(path).module()
    return [module(*args, **kwargs) for args, kwargs in calls]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let exporters not report their steps: what they cannot do is raised."""
    exporters = silenced("torch.onnx", "torch.export", "onnxscript", "onnx_ir", above=logging.WARNING)
    with exporters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
