"""``fpe export``: a saved model as ONNX or as an archive."""

from __future__ import annotations

from pathlib import Path

import click

from fpe._util.files import to_json


@click.command(short_help="Write a saved model as ONNX or as a torch.export archive.")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--like",
    metavar="MODULE:CALLABLE|FOLDER",
    help="The dense architecture and a batch, as for fpe plan.  [default: as the file says]",
)
@click.option("--pack/--no-pack", default=True, show_default=True, help="Leave the zeros out.")
@click.option("--int8", is_flag=True, help="Round the weights of linear layers to int8.")
@click.option(
    "--batch-axis",
    "axes",
    multiple=True,
    metavar="AXIS|NAME=AXIS",
    help="Where the batch is in all inputs, or in one of this name: a number, or none for inputs without a "
    "batch; several may be given.  [default: 0]",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def export(
    file: Path, out: Path, like: str | None, pack: bool, int8: bool, axes: tuple[str, ...], as_json: bool
) -> None:
    """Write the model in FILE, which fpe.save or fpe fit wrote, to OUT, which ends in .onnx or .pt2.

    It is packed first, and what was written is run and compared with it, on two sizes of the batch. What
    fpe.mlp and fpe fit made needs no --like; other models need one, and a batch of inputs with it, unless
    they are of transformers.

    \b
    Example:
      fpe export fpe-out/digits-random-x2/best.safetensors digits.onnx
      fpe export wide.safetensors model.pt2 --like mynetworks:make_model_and_batch
    """  # noqa: D301
    from fpe.cli.deployment import export_file

    written = export_file(file, out, like, pack, int8, _batch_axis(axes))
    if as_json:
        click.echo(to_json(written.to_dict()))
        return
    click.echo(str(written))


def _batch_axis(given: tuple[str, ...]) -> int | dict[str, int | None] | None:
    """Read the values of ``--batch-axis``."""
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
