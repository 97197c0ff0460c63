"""What ``fpe fit --auto`` does before it trains: choose the settings for a budget."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fpe.errors import ArgumentError, raise_problems

if TYPE_CHECKING:
    from fpe.budget import Recommendation
    from fpe.budget.halving import Entry
    from fpe.compare.config import FitConfig
    from fpe.data import Dataset

#: What is chosen, so that it cannot be given.
CHOSEN = ("hidden", "factor", "split", "prune", "rewire", "warmup_epochs", "decay")
#: What the choosing has no place for.
OTHERS = ("l2", "patience")


def check_auto(context: click.Context, auto: bool, budget: int | None) -> None:
    """Refuse options that do not go with ``--auto``, or not without it.

    Raises
    ------
    ArgumentError
        With all of them.
    """
    problems = []
    if not auto and budget is not None:
        problems.append("--budget is for --auto, which chooses the network that it pays for; give both.")
    given = [
        name
        for name in (*CHOSEN, *OTHERS)
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    if auto and given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        problems.append(
            f"{options} cannot be given with --auto, which chooses the network and its training; leave out "
            "either."
        )
    raise_problems(problems, ArgumentError, "the options")


def choose(
    dataset: Dataset, config: FitConfig, budget: int | None, out: Path | None, fresh: bool, visible: bool
) -> tuple[Recommendation, FitConfig]:
    """Return what is recommended for the training part of the data, and the configuration that trains it.

    The winner of each budget is printed on standard error as soon as it is known, and stored, so that the
    same command goes on after Ctrl-C.
    """
    from fpe.budget import recommend

    X = dataset.X_train
    if config.standardize:
        scale = X.std(axis=0)
        scale[scale == 0] = 1
        X = (X - X.mean(axis=0)) / scale
    how: dict[str, Any] = {"epochs": config.epochs, "lr": config.lr}
    folder = (out or Path("fpe-out", f"{dataset.name}-auto-{dataset.fingerprint[:6]}")) / "choice"
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    finished = 0

    def tell(winner: Entry) -> None:
        nonlocal finished
        finished += 1
        if visible:
            accuracy = f"{winner.accuracy:.1%} on held-out training samples"
            click.echo(f"{winner.nonzero:,} non-zeros: {winner.name}, {accuracy}", err=True)

    try:
        found = recommend(
            X,
            dataset.y_train,
            budget,
            batch_size=config.batch_size,
            seed=config.seed,
            verbose=visible,
            folder=folder,
            on_budget=tell,
            **{name: value for name, value in how.items() if value is not None},
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped. The choice is made for {finished} budgets and kept in {folder}; run the same command "
            "again to go on from there."
        ) from None
    settings = asdict(found.settings)
    return found, replace(config, **{**settings, "hidden": (found.settings.hidden,)})
