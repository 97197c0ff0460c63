"""Export a model for runtimes without fpe: ONNX, an archive of torch.export, C; verified."""

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

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from fpe._util.files import to_json, write_atomically
from fpe._util.modules import MODEL_OR_ESTIMATOR, check_module, seeded, uncompiled
from fpe._util.terminal import silenced
from fpe.errors import ArgumentError, ModelError
from fpe.graph.copies import WritesUndone, analysis_copy, outside_kept
from fpe.graph.inputs import Call, as_call, copied_call, inputs_for, tensors_in
from fpe.io.batch_axes import Axes, BatchAxis, tensors_of
from fpe.io.checkpoint import described
from fpe.io.onnx_zeros import drop_zeros_
from fpe.models import made_up_rows
from fpe.packing.layers import bytes_of
from fpe.packing.separate import for_onnx
from fpe.packing.verify import cannot_run, difference, error_text, largest

SUFFIXES = (".onnx", ".pt2", ".c")
#: Largest difference that is allowed, relative to the largest entry of an output; and of types of 16 bits.
TOLERANCE, TOLERANCE_16_BITS = 1e-4, 1e-2
#: An output that is this much smaller than the largest may be the remainder of sums that cancel out.
NEGLIGIBLE = 1e-3
#: Most bytes of a constant that may be computed beforehand: codes and int8 stay as small as they are.
MOST_FOLDED = 1024
#: An ONNX file must have fewer bytes.
ONNX_LIMIT = 1 << 31


@dataclass(frozen=True)
class Export:
    """The file that `export` has written.

    `difference` is the largest between an output of the model and of the file, over two sizes of the batch,
    or None if nothing is installed that could run the file. `dynamic` has the axes of each input that may
    have any length; all others have that of the example.

    Of C, `bytes` is the length of the source. `constants` are the bytes of its arrays (weights, their places,
    biases, scales), 0 if it is unrolled, and `changed` is the share of the example rows whose class, that of
    the largest output, is another one than the model's (None for an `FPERegressor`).
    """

    path: Path
    bytes: int
    difference: float | None
    dynamic: dict[str, list[int]]
    constants: int | None = None
    changed: float | None = None

    def __str__(self) -> str:
        known = self.difference is not None
        checked = f"outputs differ by at most {self.difference:.1e}" if known else "not checked"
        return f"{self.path}  {self.bytes:,} bytes, {checked}; {self.lengths}"

    @property
    def lengths(self) -> str:
        """A clause that says which axes may have any length, or how large the constants of C are."""
        if self.constants is not None:
            return f"{self.constants:,} bytes of constants" if self.constants else "unrolled"
        free = [(" and ".join(map(str, axes)), name) for name, axes in self.dynamic.items() if axes]
        named = [f"{'axes' if ' ' in axes else 'axis'} {axes} of {name!r}" for axes, name in free]
        return f"{', '.join(named)} may have any length" if named else "all axes have the example's lengths"


def export(
    model: Any,
    path: str | os.PathLike[str],
    *,
    example_inputs: Any = None,
    batch_axis: BatchAxis = 0,
    weights: str = "float32",
    unroll: bool = False,
) -> Export:
    """Write a model as ONNX or as an archive of ``torch.export``, for any size of the batch, or as C.

    Parameters
    ----------
    model : nn.Module, FPEClassifier or FPERegressor
        Dense, expanded or packed; it is exported in evaluation mode and stays as it was. Of an estimator its
        ``model_`` is written, with the names of its features and classes; that of a regression gives outputs
        in the units of its targets.
    path : path-like
        Ends in ``.onnx`` (needs the extra ``onnx``), ``.pt2`` (for ``torch.export.load``; a quantized model
        needs torchao there), or ``.c``, beside which a ``.h`` of the same stem is written. In ONNX, weights
        with many zeros are stored as their non-zeros; onnxruntime, as any runtime that folds constants, makes
        them dense when it loads the file. ONNX has what the model says about its inputs and outputs as JSON
        in its metadata, ``fpe_features``, ``fpe_columns`` and ``fpe_classes``; C has the names of classes as
        an array and those of features as comments.
    example_inputs : Tensor, tuple or dict, optional
        One batch: a tensor, several, or named ones. The batch axis of each tensor becomes dynamic; tensors
        of equal length there stay of equal length. So does the second axis of texts (integers) of a model of
        transformers, for which a batch is made up if none is given, as for an estimator. For C rows of
        numbers, by default random ones; the first four become its self-test.
    batch_axis : int, None, or mapping of str to these, default 0
        Which axis of the inputs is the batch, such as 1 for recurrent layers that take time first; a mapping
        gives it by the name of the input, and others have 0. None for inputs without a batch, whose sizes
        stay as they are. C takes one row.
    weights : str, default "float32"
        Type of the weights in C: ``"float32"``, ``"float16"``, or ``"int8"`` with one scale for each neuron.
        Activations are float32 in all three. Other formats keep the model's types.
    unroll : bool, default False
        Write C without arrays and loops: one statement with constants for each neuron, as for high-level
        synthesis.

    Returns
    -------
    Export
        Path, bytes, the axes that may have any length, and the largest difference: the file has been run, by
        onnxruntime if that is installed or by torch, on these inputs and on a batch of another size. It
        returns the model's tensors in their order, whatever object the model puts them in. C has been
        compiled, if cc, gcc or clang is found, and run on the example rows.

    Raises
    ------
    ArgumentError
        For another ending, a missing extra, a missing or empty batch, a batch that the model cannot be run on
        (such as float32 for a model in float64), or an unknown axis or input.
    ModelError
        If torch cannot export the model, if C code cannot express it (all modules are named), or if the file
        computes something else. No file is written then, and an old one stays.
    WriteError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile, torch, fpe
    >>> packed = fpe.pack(fpe.expand(fpe.mlp(64, 16, 10), split="shared"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = fpe.export(packed, f"{folder}/digits.pt2", example_inputs=torch.randn(5, 64))
    >>> written.difference < 1e-4
    True
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = fpe.export(packed, f"{folder}/digits.c", weights="int8")
    >>> written.constants < 2000  # of 1,210 weights and biases, with places and scales
    True
    """
    path = Path(path)
    if hasattr(model, "_deployed"):  # an estimator
        model = model._deployed()
        if example_inputs is None and path.suffix != ".c":
            example_inputs = made_up_rows(model, 2)
    if path.suffix == ".c":
        return _export_c(model, path, example_inputs, batch_axis, weights, unroll)
    if weights != "float32" or unroll:
        raise ArgumentError(
            f"weights and unroll are for .c, and {path} is none. Round to int8 with fpe.quantize, and "
            "convert the model for other types."
        )
    _check(model, path)
    model = uncompiled(model)
    about = described(model)
    target = about.pop("target", None)
    call = _call(model, example_inputs)
    if target is not None:
        model = _InUnits(model, target)
    with _quiet(), seeded(), outside_kept(model), torch.no_grad():
        wrapped = _TensorsOnly(analysis_copy(model), call, batch_axis)
        try:
            wrapped.outputs(wrapped.call)
        except Exception as error:  # of the model's own code
            raise cannot_run(wrapped.model, wrapped.call, error) from error
        traced = analysis_copy(model).eval()
        if path.suffix == ".onnx":
            traced = for_onnx(traced)
        program = _exported(_TensorsOnly(traced, call, batch_axis))
        found = None

        def write(temporary: Path) -> None:
            nonlocal found
            kind = type(model).__name__
            if path.suffix == ".onnx":  # an operation may be missing there
                with _model_error(f"torch cannot write this {kind} as ONNX", "; .pt2 may do.", writes=True):
                    _save_onnx(program, temporary, wrapped, about)
            else:  # a tensor may be of a kind that an archive cannot contain
                with _model_error(f"torch cannot write this {kind} as an archive", writes=True):
                    torch.export.save(program, temporary)
            found = _compare(temporary, wrapped)

        write_atomically(path, write)
    return Export(path, path.stat().st_size, found, wrapped.axes.named(wrapped.call))


def _export_c(
    model: Any, path: Path, example_inputs: Any, batch_axis: BatchAxis, weights: str, unroll: bool
) -> Export:
    from fpe.io.c.export import write_c

    if batch_axis != 0:
        raise ArgumentError(f"batch_axis is {batch_axis!r}; C takes one row at a time: leave it out.")
    _check(model, path)
    own = described(model)
    target = own.get("target")
    how: dict[str, Any] = {
        "classes": own.get("classes"),
        "target": None if target is None else (np.array(target["mean"]), np.array(target["spread"])),
        "features": own.get("features"),
        "columns": own.get("columns"),
    }
    written = write_c(model, path, example_inputs=example_inputs, weights=weights, unroll=unroll, **how)
    return Export(path, path.stat().st_size, dynamic={}, **written)


def _check(model: Any, path: Path) -> None:
    check_module(model, give=MODEL_OR_ESTIMATOR)
    if path.suffix not in SUFFIXES:
        raise ArgumentError(f"{path} ends in {path.suffix!r}; allowed are .onnx, .pt2 (torch.export) and .c.")
    if path.suffix == ".onnx":
        missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            needs = " and ".join(missing)
            raise ArgumentError(f"ONNX needs {needs}: pip install 'fixed-parameter-expansion[onnx]'")
        bytes = bytes_of(model)
        if bytes >= ONNX_LIMIT:
            raise ModelError(
                f"the model has {bytes:,} bytes, an ONNX file less than 2 GiB; export it as .pt2."
            )


def _call(model: nn.Module, example_inputs: Any) -> Call:
    """Return the batch as a call, without a cache for generation."""
    made = inputs_for(model)
    if example_inputs is None:
        if made is None:
            raise ArgumentError("example_inputs is missing; give one batch that the model takes.")
        return as_call(made)
    # Copied: an archive contains its examples, and with a part of a tensor it would contain the whole.
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), as_call(example_inputs))
    if made is not None and "use_cache" in made:
        kwargs.setdefault("use_cache", False)
    if not any(tensor.dim() and len(tensor) for tensor in tensors_of((args, kwargs))):
        raise ArgumentError("example_inputs has no tensor with rows; give one batch that the model takes.")
    return args, kwargs


class _InUnits(nn.Module):
    """A network of a regression whose outputs have the units of its targets."""

    def __init__(self, model: nn.Module, target: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        like = next(model.parameters())
        for name in ("mean", "spread"):
            self.register_buffer(name, torch.tensor(target[name], dtype=torch.float64).to(like))
        self.train(model.training)

    def forward(self, input: Tensor) -> Tensor:
        """Map (…, inputs) to (…, outputs)."""
        outputs: Tensor = self.model(input) * self.spread + self.mean
        return outputs


class _TensorsOnly(nn.Module):
    """A model as a function of tensors alone, which returns tensors alone.

    Named arguments without tensors, such as flags, are constants. The signature names each argument, as
    ``torch.export`` requires.
    """

    def __init__(self, model: nn.Module, call: Call, batch_axis: BatchAxis) -> None:
        super().__init__()
        args, kwargs = call
        self.model = model
        constants = {name: value for name, value in kwargs.items() if not tensors_of(value)}

        def answer(*args: Any, **kwargs: Any) -> Any:
            return model(*args, **constants, **kwargs)

        def forward(*args: Any, **kwargs: Any) -> list[Tensor]:
            return tensors_in(answer(*args, **kwargs))

        self.call = (args, {name: value for name, value in kwargs.items() if name not in constants})
        parameters = inspect.signature(model.forward).parameters.values()
        known = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        unknown = [f"input_{i}" for i in range(len(known), len(args))]
        self.names = [*known[: len(args)], *unknown, *self.call[1]]
        kinds: list[Any] = [inspect.Parameter.POSITIONAL_ONLY] * len(args)
        kinds += [inspect.Parameter.KEYWORD_ONLY] * len(self.call[1])
        signature = inspect.Signature(list(map(inspect.Parameter, self.names, kinds)))
        forward.__signature__ = signature  # type: ignore[attr-defined]
        self.answer, self.forward = answer, forward
        self.axes = Axes.of(self.names, self.call, batch_axis, inputs_for(model) is not None)
        self.eval()

    def outputs(self, call: Call) -> Any:
        """Return the model's own outputs for a copy of a call; the model is unchanged."""
        args, kwargs = copied_call(call)
        with WritesUndone(self.model):
            return self.answer(*args, **kwargs)


@contextlib.contextmanager
def _model_error(text: str, hint: str = "", writes: bool = False) -> Iterator[None]:
    """Raise any error, but that of a file that is written, as a `ModelError`: `text`, cause, hint."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if writes and isinstance(error, OSError):
            raise
        cause = error.__cause__ if isinstance(error, torch.onnx.errors.OnnxExporterError) else None
        raise ModelError(f"{text}: {error_text(cause or error)}{hint}") from error


def _exported(wrapped: _TensorsOnly) -> ExportedProgram:
    """Export with a dynamic batch; a batch of one would be taken for a constant, and is doubled."""
    call, axes, kind = wrapped.call, wrapped.axes, type(wrapped.model).__name__
    if list(axes.sizes(call)) == [1]:
        call = axes.resized(call, 1)
    dims = {size: Dim(name, min=1) for size, name in axes.sizes(call).items()}
    shapes = axes.dynamic(call, dims, lambda _: Dim.AUTO)
    with _model_error(f"torch cannot export this {kind}{' with a dynamic batch' if dims else ''}"):
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # torch prints the graph as far as it got
                return torch.export.export(wrapped, *call, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            if not dims or "onstraint" not in str(error):
                raise
            raise ModelError(  # torch's hints are about its own logs and names
                f"this {kind} does not take any length of the axes that are taken for the batch: "
                f"{axes.taken(call)}. Say where the batch is with batch_axis=… (--batch-axis), by input if "
                "need be; None for inputs without a batch."
            ) from error


def _save_onnx(program: ExportedProgram, path: Path, wrapped: _TensorsOnly, about: dict[str, Any]) -> None:
    import onnxscript.optimizer

    each_is_tensor = all(isinstance(v, Tensor) for v in (*wrapped.call[0], *wrapped.call[1].values()))
    shapes = wrapped.axes.dynamic(wrapped.call, wrapped.axes.sizes(wrapped.call), "length_{}".format)
    options: dict[str, Any] = {"dynamo": True, "optimize": False, "verbose": False}
    options |= {"input_names": wrapped.names} if each_is_tensor else {}
    names = _output_names(wrapped.outputs(wrapped.call))
    written = torch.onnx.export(program, dynamic_shapes=shapes, output_names=names, **options)
    assert written is not None
    optimize = onnxscript.optimizer.optimize
    optimize(written.model, input_size_limit=MOST_FOLDED, output_size_limit=MOST_FOLDED)
    for node in written.model.graph:
        node.metadata_props.clear()  # where in Python it was written: more bytes than a small model
    drop_zeros_(written.model)
    written.model.metadata_props.update({f"fpe_{name}": to_json(value) for name, value in about.items()})
    written.save(path, external_data=False)


def _output_names(made: Any) -> list[str]:
    if isinstance(made, Mapping) and all(isinstance(value, Tensor) for value in made.values()):
        return [str(name) for name in made]
    count = len(tensors_in(made))
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def _compare(path: Path, wrapped: _TensorsOnly) -> float | None:
    """Run what was written on the batch and on another size of it; return the largest difference."""
    calls, axes = [wrapped.call], wrapped.axes
    if axes.sizes(wrapped.call):
        calls.append(axes.resized(wrapped.call, 2))
    with _model_error(
        f"this {type(wrapped.model).__name__} fails on another size of the batch, repeated along "
        f"{axes.taken(wrapped.call)}",
        "; say where the batch is with batch_axis=… (--batch-axis). No file was written.",
    ):
        answers = [tensors_in(wrapped.outputs(call)) for call in calls]
    if path.suffix == ".onnx":
        bfloat16 = any(t.dtype == torch.bfloat16 for t in (*tensors_of(wrapped.call), *answers[0]))
        if bfloat16 or importlib.util.find_spec("onnxruntime") is None:  # numpy has no bfloat16
            return None
    with _model_error("what was exported does not run", "; no file was written."):
        if path.suffix == ".onnx":
            made = _run_onnx(path, calls)
        else:
            module = torch.export.load(path).module()
            made = [module(*args, **kwargs) for args, kwargs in calls]
    pairs = [pair for both in zip(made, answers, strict=True) for pair in zip(*both, strict=True)]
    overall = max((largest(wanted) for _, wanted in pairs), default=0.0)
    differences = [difference(*pair) for pair in pairs]
    for found, (_, wanted) in zip(differences, pairs, strict=True):
        allowed = TOLERANCE_16_BITS if wanted.dtype in (torch.float16, torch.bfloat16) else TOLERANCE
        if not found <= allowed * max(NEGLIGIBLE * overall, largest(wanted)):
            raise ModelError(
                f"what was exported differs from the model by {found:.1e}, more than rounding; no file "
                "was written. A model that draws random numbers in evaluation mode cannot be exported."
            )
    return max(differences, default=0.0)


def _run_onnx(path: Path, calls: list[Call]) -> list[list[Tensor]]:
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    feeds = [dict(zip(names, [own.cpu().numpy() for own in tensors_of(call)], strict=True)) for call in calls]
    return [[torch.as_tensor(output) for output in session.run(None, feed)] for feed in feeds]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the reports of exporters: what they cannot do is raised."""
    exporters = silenced("torch.onnx", "torch.export", "onnxscript", "onnx_ir", above=logging.WARNING)
    with exporters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
