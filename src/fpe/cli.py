"""The command ``fpe``. Each subcommand loads what it needs when it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fpe._version import __version__
from fpe.errors import ArgumentError, FPEError


class _Failed(click.ClickException):
    exit_code = 1


class _BadArguments(click.ClickException):
    exit_code = 2


class _Commands(click.Group):
    """Turns errors into messages, and exit codes: 1 where something failed, 2 for bad arguments."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FPEError as error:
            kind = _BadArguments if isinstance(error, ArgumentError) else _Failed
            raise kind(str(error)) from error
        except KeyboardInterrupt as error:
            raise _Failed(str(error) or "stopped.") from error


class _ManyValues(click.Command):
    """Lets ``--hidden 4 8 16`` mean ``--hidden 4 --hidden 8 --hidden 16``."""

    many: tuple[str, ...] = ("--hidden",)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        option = None
        for arg in args:
            number = arg.lstrip("-")[:1].isdigit()
            if option is not None and number and spread[-1] != option:
                spread.append(option)
            if not number:
                option = arg if arg in self.many else None
            spread.append(arg)
        return super().parse_args(ctx, spread)


class _ManySizes(_ManyValues):
    many = ("--sizes", "--factor", "--batches")


def _expansion_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--seed", default=0, show_default=True, help="Seed of everything."),
        click.option(
            "--prune",
            default="magnitude",
            show_default=True,
            help="Which weights pay for the copies: magnitude, or columns (whole inputs; for split shared).",
        ),
        click.option(
            "--split",
            default="random",
            show_default=True,
            help="Who gets which input: random, shared, gram or 2:4.",
        ),
        click.option("--factor", default=2, show_default=True, help="Children of each neuron."),
    ):
        command = option(command)
    return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fpe")
def main() -> None:
    """Make a trained neural network better without making it bigger (Fixed Parameter Expansion).

    \b
    Example:
      fpe fit digits
    """  # noqa: D301


@main.command(cls=_ManyValues, short_help="Train dense and expanded networks on data, and compare.")
@click.argument("data")
@click.option(
    "--hidden",
    type=int,
    multiple=True,
    default=(4, 8, 16),
    show_default=True,
    metavar="WIDTH…",
    help="Hidden neurons of the dense network; several are tried.",
)
@_expansion_options
@click.option("--trials", default=5, show_default=True, help="Networks for each width.")
@click.option("--warmup-epochs", default=100, show_default=True, help="Epochs before the expansion.")
@click.option("--epochs", default=100, show_default=True, help="Epochs after it.")
@click.option("--lr", default=1e-3, show_default=True, help="Adam's learning rate.")
@click.option(
    "--batch-size", type=int, help="Samples in a mini-batch.  [default: a thirtieth of them, 64 to 500]"
)
@click.option("--l2", default=0.0, show_default=True, help="Weight of the squared norm in the loss.")
@click.option(
    "--patience", type=int, help="Stop when the loss on a held-out tenth has not fallen for so many epochs."
)
@click.option("--standardize", is_flag=True, help="Train on features of mean 0 and deviation 1.")
@click.option("--label", default="label", show_default=True, help="Column of labels of a table.")
@click.option(
    "--test-fraction", default=0.2, show_default=True, help="Share held out where there is no test part."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results.  [default: fpe-out/…]")
@click.option("--jobs", default=-1, help="Processes at a time.  [default: one for each core]")
@click.option("--fresh", is_flag=True, help="Throw away the trials of an earlier run.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON instead of a table.")
def fit(
    data: str,
    label: str,
    test_fraction: float,
    out: Path | None,
    jobs: int,
    fresh: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train dense networks and their expansions on DATA, and compare them at the same non-zero count.

    DATA is digits, fashion-mnist, banking77, a .npz, .parquet or .csv file, or a folder that fpe embed
    wrote. Run the same command again to go on
    after Ctrl-C, or with more trials or widths to add them.

    \b
    Example:
      fpe fit digits --hidden 4 8 16 --factor 2
      fpe fit embeddings.parquet --label intent --split shared --prune columns
    """  # noqa: D301
    _check_jobs(jobs)
    from fpe.data import load
    from fpe.experiments.config import FitConfig
    from fpe.experiments.fit import run_fit
    from fpe.progress import progress_bar
    from fpe.report.fit import fit_figure, fit_table

    dataset = load(data, label=label, test_fraction=test_fraction, seed=settings["seed"])
    config = FitConfig(**settings)
    folder = out or config.folder(dataset)
    with progress_bar(dataset.name, len(config.hidden) * config.trials, not as_json) as advance:
        result = run_fit(dataset, config, folder, jobs, fresh, advance)
    fit_figure(result, folder / "accuracy.png")
    if as_json:
        click.echo(json.dumps(result))
        return
    best = result["best"]
    click.echo(_heading(result))
    click.echo(fit_table(result))
    click.echo(f"\nresults     {folder / 'results.json'}")
    click.echo(f"figure      {folder / 'accuracy.png'}")
    click.echo(f"best model  {folder / 'best.safetensors'}")
    click.echo(
        f"  {best['expanded']['accuracy']:.1%}, chosen by test accuracy; load it with "
        f"fpe.load({str(folder / 'best.safetensors')!r})"
    )


def _heading(result: dict[str, Any]) -> str:
    data, config = result["data"], result["config"]
    return (
        f"{data['name']}: {data['training_samples']:,} samples to learn from, {data['test_samples']:,} to "
        f"test on, {data['features']:,} features, {len(data['classes'])} classes\n"
        f"expanded by {config['factor']} after {config['warmup_epochs']} epochs, then {config['epochs']} "
        f"more (split {config['split']}, prune {config['prune']}); dense is trained for as long\n"
    )


@main.command(short_help="Turn images or texts into embeddings with a frozen encoder.")
@click.argument("source")
@click.option(
    "--encoder",
    metavar="NAME|FOLDER",
    help="CLIP, DINOv2 or any other AutoModel, or a sentence encoder.  [default: CLIP ViT-B/16 or MiniLM]",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder.  [default: embeddings/SOURCE]")
@click.option("--label", help="Column of labels.  [default: found by its name]")
@click.option("--column", help="Column of images or texts.  [default: found by its type]")
@click.option("--classes", type=int, help="Take so many classes only, chosen at random.")
@click.option("--seed", default=0, show_default=True, help="Of that choice.")
@click.option("--normalize/--no-normalize", default=True, show_default=True, help="Scale each to length 1.")
@click.option("--dtype", default="float16", show_default=True, help="Stored as float16 or float32.")
@click.option("--half", is_flag=True, help="Let the encoder compute in half precision too.")
@click.option("--format", default="safetensors", show_default=True, help="Of shards: safetensors or parquet.")
@click.option("--shard-size", default=4096, show_default=True, help="Embeddings of a shard.")
@click.option("--batch-size", default=64, show_default=True, help="Items at a time.")
@click.option("--device", help="Such as cpu or cuda:1.  [default: a GPU if there is one]")
@click.option("--workers", type=int, help="Processes that read images.  [default: 1; beside a GPU 8]")
@click.option("--fresh", is_flag=True, help="Throw away the shards of an earlier run.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def embed(
    source: str,
    out: Path | None,
    device: str | None,
    workers: int | None,
    fresh: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Embed SOURCE once, into a folder that fpe fit and fpe reproduce read.

    SOURCE is a folder with a folder of images for each class (also below train and test), a .parquet or
    .csv file with images or texts, or a data set of the Hugging Face hub. Run the same command again to
    go on after Ctrl-C: a shard is whole or absent.

    \b
    Example:
      fpe embed uoft-cs/cifar100 --out embeddings/cifar100
      fpe embed ./imagenet --classes 100 --out embeddings/imagenet-100
      fpe embed questions.csv --label intent
      fpe fit embeddings/cifar100
    """  # noqa: D301
    from fpe.embed.run import EmbedConfig
    from fpe.embed.run import embed as run
    from fpe.embed.shards import MANIFEST
    from fpe.progress import progress_bar

    folder = out or Path("embeddings", Path(source).resolve().stem)
    config = EmbedConfig(**settings)
    with progress_bar(folder.name, 0, not as_json) as advance:
        manifest = run(source, folder, config, device, workers, fresh, lambda done, of: advance("", done, of))
    if as_json:
        click.echo(json.dumps(manifest))
        return
    for part, count in manifest["items"].items():
        click.echo(f"{part:<6} {count:>9,} embeddings in {manifest['shards'][part]} shards")
    click.echo(f"{len(manifest['classes'])} classes, encoder {manifest['encoder']}")
    click.echo(f"embeddings  {folder / MANIFEST}\n  next: fpe fit {folder}")


@main.command(short_help="Show what an expansion of a model would do.")
@click.argument("model", metavar="MODULE:CALLABLE|FOLDER")
@_expansion_options
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
    from fpe.named_models import named_model
    from fpe.planning import plan as make_plan

    network, example_inputs = named_model(model)
    result = make_plan(network, layers=_layers(layers, how["factor"]), example_inputs=example_inputs, **how)
    click.echo(json.dumps(result.to_dict()) if as_json else str(result))


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


@main.command(short_help="Write a saved model as ONNX or as a torch.export archive.")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--like",
    metavar="MODULE:CALLABLE|FOLDER",
    help="The dense architecture and a batch, as for fpe plan.  [default: as the file says]",
)
@click.option("--pack/--no-pack", default=True, show_default=True, help="Leave the zeros out.")
@click.option("--int8", is_flag=True, help="Round the weights of linear layers to int8.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def export(file: Path, out: Path, like: str | None, pack: bool, int8: bool, as_json: bool) -> None:
    """Write the model in FILE, which fpe.save or fpe fit wrote, to OUT, which ends in .onnx or .pt2.

    It is packed first, and what was written is run and compared with it, on two sizes of the batch. What
    fpe.mlp and fpe fit made needs no --like; other models need one, and a batch of inputs with it, unless
    they are of transformers.

    \b
    Example:
      fpe export fpe-out/digits-random-x2/best.safetensors digits.onnx
      fpe export wide.safetensors model.pt2 --like mynetworks:make_model_and_batch
    """  # noqa: D301
    from fpe.deployment import export_file

    written = export_file(file, out, like, pack, int8)
    if as_json:
        click.echo(json.dumps(written.to_dict()))
        return
    click.echo(str(written))


@main.command(cls=_ManyValues, short_help="Make a figure or table of the paper again.")
@click.argument("name")
@click.option("--quick", is_flag=True, help="Fewer networks, trained for a shorter time: does it all work?")
@click.option(
    "--data",
    multiple=True,
    metavar="NAME|FILE|FOLDER",
    help="What to run on, as for fpe fit; may be given again.  [default: fashion-mnist and banking77]",
)
@click.option("--label", default="label", show_default=True, help="Column of labels of a table.")
@click.option("--hidden", type=int, multiple=True, metavar="WIDTH…", help="Widths of the dense networks.")
@click.option("--trials", type=int, help="Networks of each kind and width.  [default: 5]")
@click.option(
    "--warmup-epochs", type=int, help="Epochs before the expansion.  [default: what suits the data]"
)
@click.option("--epochs", type=int, help="Epochs after it.  [default: what suits the data]")
@click.option("--lr", type=float, help="Adam's learning rate.  [default: what suits the data]")
@click.option("--seed", default=0, show_default=True, help="Seed of everything.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder.  [default: fpe-out/reproduce…]")
@click.option("--jobs", default=-1, help="Processes at a time.  [default: one for each core]")
@click.option("--engine", default="loky", show_default=True, help="What runs them: loky (here) or dask.")
@click.option("--address", help="The Dask scheduler's, such as tcp://10.0.0.1:8786.")
@click.option("--fresh", is_flag=True, help="Throw away the networks of an earlier run.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def reproduce(
    name: str,
    quick: bool,
    data: tuple[str, ...],
    label: str,
    out: Path | None,
    jobs: int,
    engine: str,
    address: str | None,
    fresh: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Make NAME, a figure or table of the paper, again, and say how it compares.

    NAME is an experiment, or boolean, real or all; "list" says what there is. Run the same command again
    to go on after Ctrl-C; networks that are trained already are not trained again, and experiments share
    them. Experiments on real data take any --data, such as the embeddings that fpe embed writes.

    \b
    Example:
      fpe reproduce list
      fpe reproduce case-study
      fpe reproduce vision --data embeddings/cifar100
      fpe reproduce real --engine dask --address tcp://10.0.0.1:8786
    """  # noqa: D301
    _check_jobs(jobs)
    if name == "list":
        from fpe.report.text import catalogue_json, catalogue_text

        click.echo(json.dumps(catalogue_json()) if as_json else catalogue_text())
        return
    from fpe.experiments.engine import Engine
    from fpe.experiments.experiment import Request
    from fpe.experiments.reproduce import count_tasks
    from fpe.experiments.reproduce import reproduce as run
    from fpe.progress import progress_bar
    from fpe.report.figures import draw
    from fpe.report.page import write_page
    from fpe.report.text import findings_text

    folder = out or Path("fpe-out", "reproduce-quick" if quick else "reproduce")
    request = Request(quick=quick, **{**settings, "hidden": settings["hidden"] or None})
    runs_on = Engine(engine, jobs, address)
    with progress_bar(name, count_tasks(name, request, data), not as_json) as advance:
        results = run(name, folder, request, data, label, runs_on, fresh, advance)
    for result in results.values():
        draw(result, folder / result["name"] / "figure.png")
    page = write_page(folder)
    if as_json:
        click.echo(json.dumps(results))
        return
    for result in results.values():
        click.echo(findings_text(result))
        click.echo(f"figure  {folder / result['name'] / 'figure.png'}\n")
    click.echo(f"page    {page}")


@main.command(cls=_ManySizes, short_help="Measure packed layers against the dense parent and rivals.")
@click.option(
    "--sizes",
    multiple=True,
    metavar="INPUTSxNEURONS…",
    help="Linear layers.  [default: four, up to 4096x11008]",
)
@click.option(
    "--factor", type=int, multiple=True, metavar="FACTOR…", help="Expansion factors.  [default: 2 4]"
)
@click.option(
    "--batches", type=int, multiple=True, metavar="SAMPLES…", help="Batch sizes.  [default: 1 8 64 512]"
)
@click.option("--models/--no-models", default=True, show_default=True, help="Measure whole models too.")
@click.option("--rounds", type=int, help="Samples of each time.  [default: 25]")
@click.option("--threads", type=int, help="Of PyTorch and onnxruntime.  [default: PyTorch's]")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), help="[default: the CPU, and a GPU if there is one]"
)
@click.option("--seed", default=0, show_default=True, help="Seed of everything.")
@click.option("--quick", is_flag=True, help="One small layer and model, in half a minute: does it all work?")
@click.option("--out", type=click.Path(path_type=Path), help="Folder.  [default: fpe-out/bench]")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def bench(
    sizes: tuple[str, ...],
    factor: tuple[int, ...],
    batches: tuple[int, ...],
    models: bool,
    device: str | None,
    quick: bool,
    out: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Measure time and memory of packed layers, by turns with the dense parent and named alternatives.

    The full run takes about a quarter of an hour on two cores, which nothing else should use meanwhile.
    Each time is a median with its 95 % interval, each ratio that of the samples of one round.

    \b
    Example:
      fpe bench --quick
      fpe bench --sizes 512x512 4096x11008 --factor 2 4 --batches 1 64
    """  # noqa: D301
    from dataclasses import replace

    from fpe.bench.case import steps_of
    from fpe.bench.config import BenchConfig
    from fpe.bench.run import devices, failed, run_bench
    from fpe.progress import progress_bar
    from fpe.report.bench import bench_figure, bench_text

    asked = {"sizes": sizes, "factors": factor, "batches": batches, **settings}
    given = {key: value for key, value in asked.items() if value not in (None, ())}
    if not models:
        given["models"] = ()
    config = replace(BenchConfig.quick() if quick else BenchConfig(), **given)
    folder = out or Path("fpe-out", "bench-quick" if quick else "bench")
    there = devices()
    if device is not None and device not in there:
        raise ArgumentError(
            f"--device {device}: PyTorch finds no such device here; there is {', '.join(there)}."
        )
    on = there if device is None else (device,)
    with progress_bar("bench", len(config.cases(on)) * steps_of(config), not as_json) as advance:
        result = run_bench(config, folder, on, advance)
    bench_figure(result, folder / "figure.png")
    if as_json:
        click.echo(json.dumps(result))
    else:
        click.echo(bench_text(result))
        click.echo(f"\nresults  {folder / 'results.json'}\nfigure   {folder / 'figure.png'}")
    failure = failed(result)
    if failure is not None:
        raise failure


@main.command(short_help="Make the page of stored results again.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The page.  [default: FOLDER/report.html]")
@click.option("--json", "as_json", is_flag=True, help="Print the page's path as JSON.")
def report(folder: Path, out: Path | None, as_json: bool) -> None:
    """Write one self-contained HTML page of the results that FOLDER holds.

    \b
    Example:
      fpe report fpe-out/reproduce
    """  # noqa: D301
    from fpe.report.page import write_page

    page = write_page(folder, out)
    click.echo(json.dumps({"page": str(page)}) if as_json else f"page    {page}")


def _check_jobs(jobs: int) -> None:
    if jobs != -1 and jobs < 1:
        raise ArgumentError(f"--jobs is {jobs}; give a number of processes, or -1 for one for each core.")
