"""What several subcommands have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from fpe.errors import ArgumentError


class ManyValues(click.Command):
    """Lets ``--hidden 4 8 16`` mean ``--hidden 4 --hidden 8 --hidden 16``."""

    many: tuple[str, ...] = ("--hidden",)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before each of its values."""
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


class ManySizes(ManyValues):
    """The same for the options of ``fpe bench``."""

    many = ("--sizes", "--factor", "--batches")


def expansion_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of an expansion."""
    for option in (
        click.option("--seed", default=0, show_default=True, help="Seed of everything."),
        click.option(
            "--prune",
            default="magnitude",
            show_default=True,
            help="Which weights pay for the copies: magnitude; balanced (readers keep at most half of all "
            "weights; for expanding before training); columns (whole inputs; for split shared).",
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


def check_jobs(jobs: int) -> None:
    """Refuse numbers of processes that mean nothing."""
    if jobs != -1 and jobs < 1:
        raise ArgumentError(f"--jobs is {jobs}; give a number of processes, or -1 for one for each core.")
