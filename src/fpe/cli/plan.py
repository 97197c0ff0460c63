"""``fpe plan``: what an expansion would do."""

from __future__ import annotations

from typing import Any

import click

from fpe._util.files import to_json
from fpe.cli.shared import expansion_options
from fpe.errors import ArgumentError


@click.command(short_help="Show what an expansion of a model would do.")
@click.argument("model", metavar="MODULE:CALLABLE|FOLDER")
@expansion_options()
@click.option(
    "--layers",
    multiple=True,
    metavar="NAME[=FACTOR]",
    help="Name or pattern of layers to expand, with a factor of their own; may be given again.",
)
@click.option(
    "--budget", default="group", show_default=True, help="Who pays for a group's copies: group or network."
)
@click.option(
    "--convolutions",
    default="channels",
    show_default=True,
    help="What a convolution's children share out: channels or taps.",
)
@click.option(
    "--target-fraction", default=1.0, show_default=True, help="Share of each layer's neurons to expand."
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(model: str, layers: tuple[str, ...], as_json: bool, **how: Any) -> None:
    """Show which layers would be expanded, who reads them, what it costs, and what is left alone.

    MODULE:CALLABLE names a function or class, importable from here, that is called without arguments
    and returns a torch.nn.Module, or one and a batch of inputs to follow it on. FOLDER is a model of
    transformers on this machine, with its config.json; without weights, it gets random ones.

    \b
    Example:
      fpe plan mynetworks:make_classifier --factor 3
      fpe plan ./bert-base --layers '*.intermediate.dense=4'
    """  # noqa: D301
    from fpe.cli.named_models import named_model
    from fpe.expansion.planner import plan as make_plan

    network, example_inputs = named_model(model)
    result = make_plan(network, layers=_layers(layers, how["factor"]), example_inputs=example_inputs, **how)
    click.echo(to_json(result.to_dict()) if as_json else str(result))


def _layers(given: tuple[str, ...], factor: int) -> dict[str, int] | None:
    """Read NAME and NAME=FACTOR; None if nothing is given."""
    layers = {}
    for entry in given:
        name, equals, own = entry.rpartition("=")
        if equals and not own.isdigit():
            raise ArgumentError(
                f"--layers {entry}: {own!r} is no factor; write NAME=FACTOR, such as '*.fc1=4'."
            )
        layers[name if equals else entry] = int(own) if equals else factor
    return layers or None
