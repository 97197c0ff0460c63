"""``fpe fit``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fpe.cli.auto import check_auto, choose
from fpe.cli.shared import ManyValues, check_jobs, data_options, expansion_options


@click.command(cls=ManyValues, short_help="Train dense and expanded networks on data, and compare.")
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
@expansion_options(rewired=True)
@click.option(
    "--rewire",
    is_flag=False,
    flag_value="auto",
    metavar="[POLICY]",
    help="Let masks move after the expansion: rigl, columns, paper, set, accumulated or momentum; without a "
    "name columns with --prune columns, else accumulated. What else is left open is then what suits.",
)
@click.option(
    "--auto", is_flag=True, help="Choose width, factor, split, pruning and rewiring for a budget, then train."
)
@click.option(
    "--budget",
    type=int,
    metavar="N",
    help="Of --auto: the most non-zero parameters.  [default: those of 16 dense neurons]",
)
@click.option("--trials", default=5, show_default=True, help="Networks for each width.")
@click.option(
    "--warmup-epochs", type=int, help="Epochs before the expansion.  [default: 100; 0 with --rewire]"
)
@click.option("--epochs", type=int, help="Epochs after it.  [default: 100; 200 with --rewire and no warm-up]")
@click.option("--lr", type=float, help="Adam's learning rate.  [default: 0.001; 0.01 with --rewire]")
@click.option(
    "--decay/--no-decay",
    default=None,
    help="Let the learning rate fall to 0, as half a cosine over all epochs.  "
    "[default: with --rewire and no warm-up]",
)
@click.option(
    "--batch-size", type=int, help="Samples in a mini-batch.  [default: a thirtieth of them, 64 to 500]"
)
@click.option("--l2", default=0.0, show_default=True, help="Weight of the squared norm in the loss.")
@click.option(
    "--validation-fraction",
    default=0.1,
    show_default=True,
    help="Share of the training samples that is held out to choose the best model.",
)
@click.option("--patience", type=int, help="Stop when the loss on these has not fallen for so many epochs.")
@click.option("--standardize", is_flag=True, help="Train on features of mean 0 and deviation 1.")
@data_options
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results.  [default: fpe-out/…]")
@click.option("--jobs", default=-1, help="Processes at a time.  [default: one for each core]")
@click.option("--fresh", is_flag=True, help="Throw away the trials of an earlier run.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON instead of a table.")
@click.pass_context
def fit(
    context: click.Context,
    /,
    data: str,
    label: str | None,
    test: str | None,
    split_column: str | None,
    drop: tuple[str, ...],
    features: tuple[str, ...],
    test_fraction: float | None,
    out: Path | None,
    jobs: int,
    fresh: bool,
    as_json: bool,
    rewire: str | None,
    auto: bool,
    budget: int | None,
    **settings: Any,
) -> None:
    """Train dense networks and their expansions on DATA, and compare them at the same non-zero count.

    DATA is digits, fashion-mnist, banking77, a .npz file, a table (.csv, .tsv, .parquet, .jsonl, …), a folder
    with tables train and test, or one that fpe embed wrote. Run the same command again to go on
    after Ctrl-C, or with more trials or widths to add them.

    \b
    Example:
      fpe fit digits --hidden 4 8 16 --factor 2
      fpe fit embeddings.parquet --label intent --split shared --prune columns
      fpe fit digits --rewire
      fpe fit digits --auto --budget 600
    """  # noqa: D301
    check_jobs(jobs)
    check_auto(context, auto, budget)
    from fpe._util.files import to_json, write_json
    from fpe._util.terminal import progress_bar
    from fpe.compare.config import FitConfig
    from fpe.compare.fit import run_fit
    from fpe.compare.report import fit_figure, fit_table
    from fpe.data import load

    dataset = load(
        data,
        label=label,
        test=test,
        split_column=split_column,
        drop=drop,
        features=features,
        test_fraction=test_fraction,
        seed=settings["seed"],
    )
    config = FitConfig(rewire=True if rewire == "auto" else rewire or False, **settings)
    found = None
    if not as_json:
        click.echo("\n".join(dataset.lines()) + "\n")
    if auto:
        found, config = choose(dataset, config, budget, out, fresh, not as_json)
        if not as_json:
            click.echo(f"{found}\n\nin Python   {found.python()}\ncommand     {found.command(data)}\n")
    folder = out or config.folder(dataset)
    with progress_bar(dataset.name, len(config.hidden) * config.trials, not as_json) as advance:
        result = run_fit(dataset, config, folder, jobs=jobs, fresh=fresh, on_trial=advance)
    fit_figure(result, folder / "accuracy.png")
    if found is not None:
        write_json(folder / "recommendation.json", found.to_dict())
    if as_json:
        click.echo(to_json(result))
        return
    click.echo(_heading(result))
    click.echo(fit_table(result))
    click.echo(f"\nresults     {folder / 'results.json'}")
    if found is not None:
        click.echo(f"choice      {folder / 'recommendation.json'}")
    click.echo(f"figure      {folder / 'accuracy.png'}")
    click.echo(f"best model  {folder / 'best.safetensors'}")
    click.echo(_best(result["best"], result["data"]["validation_samples"]))
    click.echo(f"  load it with fpe.load({str(folder / 'best.safetensors')!r})")


def _best(best: dict[str, Any], samples: int) -> str:
    """Say which model is stored as the best, and why."""
    own = best["expanded"]
    text = (
        f"  {own['neurons']} neurons, trial {best['trial']}: {own['validation_accuracy']:.1%} on the "
        f"{samples:,} held-out training samples, which chose it; {own['accuracy']:.1%} on the test data"
    )
    if best["kept"]:
        text += "\n  it is of an earlier run in this folder, and better than the best model of this one"
    if best["replaced"]:
        text += "\n  it replaces a model that was chosen on other data, or otherwise, and cannot be compared"
    return text


def _moving(rewire: bool | str) -> str:
    return f", rewired{'' if rewire is True else f' by {rewire}'}" if rewire else ""


def _heading(result: dict[str, Any]) -> str:
    held_out = result["data"]["validation_samples"]
    return (
        f"{_training(result['config'])}\n"
        f"{held_out:,} of the samples to learn from are held out to choose the best model\n"
    )


def _training(config: dict[str, Any]) -> str:
    """Say how networks are expanded and trained."""
    rate = f"learning rate {config['lr']:g}{', falling to 0' if config['decay'] else ''}"
    before, after = config["warmup_epochs"], config["epochs"]
    if config["factor"] == 1:
        return (
            f"factor 1: nothing is expanded; both are the dense network, trained for {before} + {after} "
            f"epochs, {rate}; for the second one Adam starts afresh after {before}"
        )
    return (
        f"expanded by {config['factor']} after {before} epochs, then {after} more (split {config['split']}, "
        f"prune {config['prune']}{_moving(config['rewire'])}), {rate}; dense is trained alike, for as long"
    )
