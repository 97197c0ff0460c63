"""``fpe export``: a saved model as ONNX, as an archive of torch.export, or as C."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fpe._util.files import to_json
from fpe.cli.plan import named_model
from fpe.cli.shared import SHOWN, model_file
from fpe.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fpe.io.export import Export

#: Types of weights; what writes C has them too, but loads torch.
WEIGHTS = ("float32", "float16", "int8")
#: Random rows where no batch is given: all show what rounding changes, two are for the export.
ROWS = 1000


@click.command(context_settings=SHOWN, short_help="Write a saved model as ONNX, a torch.export archive or C.")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--like",
    metavar="MODULE:CALLABLE|FOLDER",
    help="The dense architecture and a batch, as for fpe plan.  [default: as the file says]",
)
@click.option("--pack/--no-pack", default=True, help="Leave the zeros out.")
@click.option(
    "--weights",
    type=click.Choice(WEIGHTS),
    help="Type of the weights of linear layers; .onnx and .pt2 take int8 only.  [default: that of the model; "
    "in .c float32]",
)
@click.option("--int8", is_flag=True, help="The same as --weights int8.")
@click.option(
    "--unroll", is_flag=True, help="Write .c as one statement for each neuron, without arrays and loops."
)
@click.option(
    "--batch-axis",
    "axes",
    multiple=True,
    metavar="AXIS|NAME=AXIS",
    help="Axis of the batch in all inputs, or in one of this name: a number, or none for inputs without a "
    "batch; repeatable.  [default: 0]",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def export(
    file: Path,
    out: Path,
    like: str | None,
    pack: bool,
    weights: str | None,
    int8: bool,
    unroll: bool,
    axes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write the model in FILE, which fpe.save or fpe fit wrote, to OUT, which ends in .onnx, .pt2 or .c.

    FILE can also be the folder of fpe fit, of which the best model is taken.

    It is packed first, and what was written is run and compared with it, on two sizes of the batch. What
    fpe.mlp and fpe fit made needs no --like; other models need one, and a batch of inputs with it, unless
    they are of transformers. C is for networks of linear layers; it is compiled and compared, if there is a
    compiler, and comes with a header of the same name.

    \b
    Example:
      fpe export fpe-out/digits-random-x2/best.safetensors digits.onnx
      fpe export fpe-out/digits-random-x2/best.safetensors digits.c --weights int8
      fpe export wide.safetensors model.pt2 --like mynetworks:make_model_and_batch
    """  # noqa: D301
    weights = _weights(out, weights, int8, unroll, pack)
    int8 = weights == "int8"
    from torch import Tensor

    from fpe.io.checkpoint import load
    from fpe.io.export import export as write
    from fpe.masked import MaskedLayer, counted_parameters
    from fpe.packing import pack as packing
    from fpe.packing.layers import PackedLayer
    from fpe.packing.quantized import quantize

    file, batch_axis = model_file(file), _batch_axis(axes)
    dense, given = named_model(like) if like is not None else (None, None)
    model = load(file, like=dense).eval()
    if out.suffix == ".c":
        how: dict[str, Any] = {"batch_axis": batch_axis, "weights": weights, "unroll": unroll}
        _report_c(model, write(model, out, example_inputs=given, **how), weights, given is None, as_json)
        return
    rows = _made_up_rows(model, file) if given is None else given
    batch = rows[:2] if given is None and isinstance(rows, Tensor) else rows
    kinds = {
        kind for module in model.modules() for kind in (MaskedLayer, PackedLayer) if isinstance(module, kind)
    }
    own = model
    if pack and MaskedLayer in kinds:
        own = packing.pack(model, example_inputs=batch)
    elif not pack and PackedLayer in kinds:
        own = packing.unpack(model)
    counts = [(count, count * parameter.element_size()) for _, parameter, count in counted_parameters(own)]
    nonzero, nonzero_bytes = map(sum, zip(*counts, strict=True))
    rounded = quantize(own) if int8 else own
    written = write(rounded, out, example_inputs=batch, batch_axis=batch_axis)
    rounding = _rounding(model, rounded, rows, given is None) if int8 else None
    if as_json:
        counted = {"nonzero": nonzero, "nonzero_bytes": nonzero_bytes, "rounding": rounding}
        click.echo(to_json({**vars(written), "path": str(written.path), **counted}))
        return
    checked = "unknown: install onnxruntime" if written.difference is None else f"{written.difference:.1e}"
    click.echo(f"{written.path}  {written.bytes:,} bytes")
    click.echo(f"  non-zeros of the model: {nonzero:,}, of {nonzero_bytes:,} bytes")
    click.echo(f"  {written.lengths}")
    click.echo(f"  largest difference of outputs{' to the model in int8' if int8 else ''}: {checked}")
    if rounding is not None:
        kind = "random rows (--like may give rows of data)" if rounding["made_up"] else "given rows"
        click.echo(
            f"  largest difference of outputs to the model before int8: {rounding['difference']:.1e} "
            f"(outputs up to {rounding['largest']:.1e})\n"
            f"  predicted classes that int8 changes: {rounding['changed']:.1%} of {rounding['rows']:,} {kind}"
        )


def _weights(out: Path, weights: str | None, int8: bool, unroll: bool, pack: bool) -> str | None:
    """Check the options about weights, and return the type that they ask for."""
    if int8 and weights not in (None, "int8"):
        raise ArgumentError(f"--int8 and --weights {weights} are given; leave out either.")
    weights = "int8" if int8 else weights
    if out.suffix == ".c":
        if not pack:
            raise ArgumentError("--no-pack is for .onnx and .pt2; C always leaves the zeros out.")
        return weights or "float32"
    if unroll or weights not in (None, "int8"):
        given = "--unroll" if unroll else f"--weights {weights}"
        raise ArgumentError(f"{given} is for .c, and {out} is none; leave it out.")
    if weights == "int8" and not pack:
        raise ArgumentError("--int8 is for packed models; leave out --no-pack.")
    return weights


def _report_c(model: nn.Module, written: Export, weights: str | None, made_up: bool, as_json: bool) -> None:
    """Print what was written as C."""
    from fpe.masked import count_nonzero

    nonzero = count_nonzero(model)
    if as_json:
        click.echo(to_json({**vars(written), "path": str(written.path), "nonzero": nonzero}))
        return
    header = written.path.with_suffix(".h").name
    known = written.difference is not None
    checked = (
        f"{written.difference:.1e}"
        if known
        else "unknown: no C compiler was found (cc, gcc, clang), or it was too slow"
    )
    kind = "random rows (--like may give rows of data)" if made_up else "given rows"
    click.echo(f"{written.path} and {header}  {written.bytes:,} bytes")
    click.echo(f"  non-zeros of the model: {nonzero:,}; in {weights}: {written.lengths}")
    click.echo(f"  largest difference of outputs: {checked}")
    if written.changed is not None:
        click.echo(f"  predicted classes that change: {written.changed:.1%} of {kind}")


def _batch_axis(given: tuple[str, ...]) -> int | dict[str, int | None] | None:
    """Parse the values of ``--batch-axis``."""
    by_name: dict[str, int | None] = {}
    for value in given:
        name, is_named, axis = value.rpartition("=")
        try:
            by_name[name if is_named else ""] = None if axis == "none" else int(axis)
        except ValueError:
            raise click.BadParameter(
                f"{value!r} is no axis; give a number, none, or NAME=NUMBER.", param_hint="--batch-axis"
            ) from None
    if "" not in by_name:
        return by_name or 0
    if len(by_name) > 1:
        raise click.BadParameter(
            "give one axis for all inputs, or NAME=AXIS for each; not both.", param_hint="--batch-axis"
        )
    return by_name[""]


def _made_up_rows(model: nn.Module, file: Path) -> Any:
    """Make up inputs for a model whose input is known: `ROWS` rows for one of `fpe.mlp`."""
    from fpe.graph.inputs import inputs_for
    from fpe.models import made_up_rows

    rows = made_up_rows(model, ROWS)
    made = inputs_for(model) if rows is None else rows
    if made is None:
        raise ArgumentError(
            f"nothing says what the model in {file} takes; let --like name a callable that returns a model "
            "and a batch."
        )
    return made


def _rounding(model: nn.Module, rounded: nn.Module, rows: Any, made_up: bool) -> dict[str, Any]:
    """Compare outputs, and the predicted classes of rows, before and after rounding to int8."""
    import torch

    from fpe.graph.inputs import as_call, tensors_in
    from fpe.packing.verify import difference, largest

    def output(network: nn.Module) -> Tensor:
        args, kwargs = as_call(rows)
        tensors: list[Tensor] = tensors_in(network(*args, **kwargs))
        return next((tensor for tensor in tensors if tensor.is_floating_point()), tensors[0])

    def classes(logits: Tensor) -> Tensor:
        single = logits.dim() < 2 or logits.shape[-1] == 1
        return logits.flatten() > 0 if single else logits.argmax(-1).flatten()

    with torch.no_grad():
        wanted, own = output(model), output(rounded)
    changed = classes(wanted) != classes(own)
    return {
        "difference": difference(own, wanted),
        "largest": largest(wanted),
        "changed": float(changed.double().mean()) if changed.numel() else 0.0,
        "rows": changed.numel(),
        "made_up": made_up,
    }
