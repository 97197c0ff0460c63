"""``fpe plan``: what an expansion would do."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from fpe._util.files import read_json, to_json
from fpe.cli.shared import SHOWN, expansion_options
from fpe.errors import ArgumentError


@click.command(context_settings=SHOWN, short_help="Show what an expansion of a model would do.")
@click.argument("model", metavar="MODULE:CALLABLE|FOLDER")
@expansion_options()
@click.option(
    "--layers",
    multiple=True,
    metavar="NAME[=FACTOR]",
    help="Layers to expand, by name or pattern, each with a factor of its own; repeatable.",
)
@click.option(
    "--budget",
    default="group",
    metavar="[group|network]",
    help="Whether each group of layers keeps its count of non-zeros, or the network only the total. Not a "
    "number, as in fpe fit: an expansion keeps the count of the model.",
)
@click.option(
    "--convolutions",
    default="channels",
    metavar="[channels|taps]",
    help="What a convolution splits among its children.",
)
@click.option("--target-fraction", default=1.0, help="Share of each layer's neurons to expand.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(model: str, layers: tuple[str, ...], as_json: bool, **how: Any) -> None:
    """Show which layers would be expanded, their consumers, the counts, and the layers left unchanged.

    MODULE:CALLABLE names a function or class, importable from here, that is called without arguments
    and returns a torch.nn.Module, or one and a batch of inputs to follow it on. FOLDER is a model on this
    machine: of transformers, with its config.json, or one that fpe's hub.save_pretrained wrote. Weights
    of transformers are neither loaded nor given memory, unless --target-fraction ranks neurons by them.

    In the table, "between" are modules from a layer to its consumers, which widen with it, such as norms.
    "copies" are the weights that are copied to children: as many are pruned.

    \b
    Example:
      fpe plan mynetworks:make_classifier --factor 3
      fpe plan ./bert-base --layers '*.intermediate.dense=4'
    """  # noqa: D301
    from fpe.expansion.planner import plan as make_plan

    if how["budget"].replace(",", "").isdigit():
        raise ArgumentError(
            f"--budget is {how['budget']}; fpe plan takes group or network, as an expansion keeps the count "
            "of the model. A number of weights is for fpe fit DATA --budget N."
        )
    network, example_inputs = named_model(model, weights=how["target_fraction"] < 1)
    result = make_plan(network, layers=_layers(layers, how["factor"]), example_inputs=example_inputs, **how)
    click.echo(to_json(result.to_dict()) if as_json else str(result))


def _layers(given: tuple[str, ...], factor: int) -> dict[str, int] | None:
    """Parse NAME and NAME=FACTOR."""
    layers = {}
    for entry in given:
        name, equals, own = entry.rpartition("=")
        if equals and not own.isdigit():
            raise ArgumentError(
                f"--layers {entry}: {own!r} is no factor; write NAME=FACTOR, such as '*.fc1=4'."
            )
        layers[name if equals else entry] = int(own) if equals else factor
    return layers or None


def named_model(name: str, weights: bool = True) -> tuple[Any, Any]:
    """Return a model and a batch or None, by ``MODULE:CALLABLE`` or by a folder, if need be with weights."""
    from fpe._util.terminal import loading_quietly

    with loading_quietly():
        return _named_model(name, weights)


def _named_model(name: str, weights: bool) -> tuple[Any, Any]:
    if Path(name).is_dir():
        return _from_folder(Path(name), weights), None
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        found = (
            "it is a file, and no folder with a model" if Path(name).exists() else "there is no such folder"
        )
        raise ArgumentError(
            f"{name!r} does not name a model: {found}. Give a folder with a config.json, or MODULE:CALLABLE, "
            "such as mynet:make."
        )
    sys.path.insert(0, "")
    try:
        made: Any = import_module(module_name)
        for part in attribute.split("."):
            made = getattr(made, part)
        made = made()
    except Exception as error:  # the user's own code may fail in any way
        raise ArgumentError(f"{name} could not be made: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove("")
    return made if isinstance(made, tuple) and len(made) == 2 else (made, None)


def _from_folder(folder: Path, weights: bool) -> Any:
    from fpe._util.modules import Weightless

    record = read_json(folder / "config.json")
    if record is None:
        raise ArgumentError(f"the folder {folder} has no config.json, which a model of transformers has.")
    if "fpe" in record and "model_type" not in record:
        from fpe._util.modules import network_of
        from fpe.integrations.hub import from_pretrained

        return network_of(from_pretrained(folder))
    try:
        import transformers
    except ImportError as error:
        raise ArgumentError(
            "a model folder needs transformers: pip install 'fixed-parameter-expansion[transformers]'"
        ) from error
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        kind: Any = getattr(transformers, (config.architectures or ["AutoModel"])[0], transformers.AutoModel)
        if weights and (any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))):
            return kind.from_pretrained(folder, local_files_only=True)
        make: Any = kind.from_config if kind is transformers.AutoModel else kind
        with nullcontext() if weights else Weightless():
            return make(config)
    except Exception as error:  # a broken folder makes transformers fail in any way
        raise ArgumentError(f"{folder} could not be loaded: {type(error).__name__}: {error}") from error
