"""``fpe fit``: train dense and expanded networks on data, and compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fpe.cli.shared import SHOWN, ManyValues, check_jobs, data_options, expansion_options
from fpe.errors import ArgumentError

#: Options that describe the data; see `data_options`.
OF_DATA = ("label", "test", "split_column", "drop", "features", "test_fraction")
#: Options that ``--budget`` excludes: it chooses, or has no use for them.
NOT_WITH_BUDGET = (
    "hidden", "factor", "split", "prune", "rewire", "warmup_epochs", "lr", "decay", "l2", "patience",
    "standardize", "trials", "validation_fraction",
)  # fmt: skip


@click.command(
    cls=ManyValues,
    context_settings=SHOWN,
    short_help="Find the best network for a budget; or expand and compare.",
)
@click.argument("data")
@click.option(
    "--hidden", type=int, multiple=True, default=(4, 8, 16), metavar="WIDTH…", help="Hidden neurons to try."
)
@expansion_options(rewired=True)
@click.option(
    "--rewire",
    is_flag=False,
    flag_value="auto",
    metavar="[POLICY]",
    help="Change masks while training, after the expansion: rigl, columns, paper, set, accumulated or "
    "momentum; without a name columns with --prune columns, else accumulated. Other defaults then change "
    "too.",
)
@click.option(
    "--budget",
    type=int,
    metavar="N",
    help="Find the best network of at most N non-zeros, with or without a hidden layer, pruned gradually.",
)
@click.option("--trials", default=5, help="Networks of each width.")
@click.option("--warmup-epochs", type=int, help="Epochs before expansion.  [default: 100; 0 with --rewire]")
@click.option("--epochs", type=int, help="Epochs after it.  [default: 100; 200 with --rewire and no warm-up]")
@click.option("--lr", type=float, help="Adam's learning rate.  [default: 0.001; 0.01 with --rewire]")
@click.option(
    "--decay/--no-decay",
    default=None,
    help="Lower the learning rate to 0, as half a cosine over all "
    "epochs.  [default: with --rewire and no warm-up]",
)
@click.option("--batch-size", type=int, help="Samples in a mini-batch.  [default: a thirtieth, 64 to 500]")
@click.option("--l2", default=0.0, help="Weight of the squared norm in the loss.")
@click.option(
    "--validation-fraction",
    default=0.1,
    help="Share of the training samples that is held out to choose the best model.",
)
@click.option("--patience", type=int, help="Stop when the loss on these has not fallen for this many epochs.")
@click.option(
    "--standardize/--no-standardize",
    default=None,
    help="Train on features of mean 0 and deviation 1.  [default: if deviations differ more than ten times]",
)
@data_options
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results.  [default: fpe-out/…]")
@click.option("--jobs", default=-1, help="Processes; -1 means one for each core.")
@click.option("--fresh", is_flag=True, help="Remove the trials of an earlier run; its best model stays.")
@click.option(
    "--force",
    is_flag=True,
    help="Replace the best model in the folder, though it is better or of other data.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON instead of a table.")
@click.pass_context
def fit(
    context: click.Context,
    /,
    data: str,
    out: Path | None,
    jobs: int,
    fresh: bool,
    force: bool,
    as_json: bool,
    rewire: str | None,
    budget: int | None,
    **settings: Any,
) -> None:
    """Find the best network for a budget of weights; or train dense networks and expansions, and compare.

    --budget N searches for the best network of at most N non-zeros. Without it, dense networks of several
    widths and their expansions are trained on DATA, and compared at the same non-zero count.

    DATA is digits, fashion-mnist, banking77, cifar100, letter, a .npz file, a table (.csv, .tsv, .parquet,
    .jsonl, …), a folder with tables train and test, or one that fpe embed wrote. You can interrupt a run; the
    same command resumes it, and adds trials or widths if more are given.

    The folder gets best.safetensors, for fpe predict and fpe export, and best.md, a card of it. A model that
    is there already stays if it is better on the rows that chose it, whatever its settings. If it was chosen
    by other rows (of other data, another seed or held-out share, or for another budget) it cannot be
    compared, and the command stops before it trains. --force replaces it in both cases.

    \b
    Example:
      fpe fit digits --hidden 4 8 16 --factor 2
      fpe fit embeddings.parquet --label intent --split shared --prune columns
      fpe fit digits --rewire
      fpe fit digits --budget 600
    """  # noqa: D301
    check_jobs(jobs)
    if budget is not None:
        _check_budget(context)
    from fpe._util.files import to_json
    from fpe._util.terminal import progress_bar
    from fpe.cli.budget import FIGURE, NO_FIGURE, fit_budget, next_steps
    from fpe.compare.best import CARD, MODEL
    from fpe.compare.config import FitConfig
    from fpe.compare.fit import run_fit
    from fpe.compare.report import fit_figure, fit_table
    from fpe.data import load
    from fpe.sklearn.inputs import has_unlike_spreads

    dataset = load(data, seed=settings["seed"], **{name: settings.pop(name) for name in OF_DATA})
    if not as_json:
        click.echo("\n".join(dataset.lines()) + "\n")
    if budget is not None:
        own = {name: settings[name] for name in ("seed", "epochs", "batch_size")}
        fit_budget(dataset, budget, out, fresh=fresh, force=force, as_json=as_json, jobs=jobs, **own)
        return
    if settings["standardize"] is None:
        settings["standardize"] = has_unlike_spreads(dataset.X_train)
        if settings["standardize"] and not as_json:
            click.echo(
                "features are standardized, as their deviations differ (--no-standardize: they are not)\n"
            )
    config = FitConfig(rewire=True if rewire == "auto" else rewire or False, **settings)
    folder = out or config.folder(dataset)
    with progress_bar(dataset.name, len(config.hidden) * config.trials, not as_json) as advance:
        how: dict[str, Any] = {"jobs": jobs, "fresh": fresh, "force": force}
        result = run_fit(dataset, config, folder, on_trial=advance, **how)
    files = {"results": folder / "results.json", "model card": folder / CARD}
    try:
        fit_figure(result, folder / FIGURE)
        files["figure"] = folder / FIGURE
    except ImportError:
        click.echo(NO_FIGURE, err=True)
    if as_json:
        click.echo(to_json(result))
        return
    samples = result["data"]["validation_samples"]
    click.echo(_training(result["config"]))
    click.echo(f"{samples:,} of the samples to learn from are held out to choose the best model\n")
    click.echo(fit_table(result) + "\n")
    for name, file in {**files, "best model": folder / MODEL}.items():
        click.echo(f"{name:<10}  {file}")
    click.echo(_best(result["best"], samples))
    click.echo(next_steps(folder))


def _check_budget(context: click.Context) -> None:
    """Refuse options that cannot be used with ``--budget``."""
    typed = click.core.ParameterSource.COMMANDLINE
    given = [name for name in NOT_WITH_BUDGET if context.get_parameter_source(name) is typed]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ArgumentError(
            f"{options} cannot be given with --budget, which chooses the network and its training; omit "
            "either."
        )


def _training(config: dict[str, Any]) -> str:
    """Describe how the networks were expanded and trained."""
    rate = f"learning rate {config['lr']:g}{', falling to 0' if config['decay'] else ''}"
    before, after = config["warmup_epochs"], config["epochs"]
    if config["factor"] == 1:
        return (
            f"factor 1: nothing is expanded; both are the dense network, trained for {before} + {after} "
            f"epochs, {rate}; the second one gets a fresh Adam after {before}"
        )
    policy = config["rewire"]
    rewired = f", rewired{'' if policy is True else f' by {policy}'}" if policy else ""
    return (
        f"expanded by {config['factor']} after {before} epochs, then {after} more (split {config['split']}, "
        f"prune {config['prune']}{rewired}), {rate}; dense is trained alike, for as long"
    )


def _best(best: dict[str, Any], samples: int) -> str:
    """Describe the stored best model."""
    own = best["expanded"]
    text = (
        f"  expanded to {own['neurons']} neurons, trial {best['trial']}: {own['validation_accuracy']:.1%} on "
        f"the {samples:,} held-out training samples that chose it; {own['accuracy']:.1%} on the test data"
    )
    if best["kept"]:
        text += "\n  it is of an earlier run in this folder, and better than the best model of this one"
    if best["replaced"]:
        text += "\n  it replaces a model that is better, or that cannot be compared, as --force asks"
    return text
