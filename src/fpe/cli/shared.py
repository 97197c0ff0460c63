"""What several subcommands have in common."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from fpe.errors import ArgumentError

#: A value of an option that takes several; not the name of a file, such as ``20news.csv``.
NUMBER = re.compile(r"-?\d+(\.\d+)?(x\w*)?")
#: The policies by name, as `fpe.rewiring.policies` has them, which loads torch.
REWIRE = ("rigl", "columns", "paper", "set", "accumulated", "momentum", "auto")


class ManyValues(click.Command):
    """Lets ``--hidden 4 8 16`` mean ``--hidden 4 --hidden 8 --hidden 16``."""

    many: tuple[str, ...] = ("--hidden",)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before each of its values, and end ``--rewire`` where no policy follows."""
        spread: list[str] = []
        option = None
        for arg in args:
            if NUMBER.fullmatch(arg):
                if option is not None and spread[-1] != option:
                    spread.append(option)
            else:
                name = arg.partition("=")[0]
                option = name if name in self.many else None
            spread.append(arg)
        return super().parse_args(ctx, self._ended(spread))

    def _ended(self, args: list[str]) -> list[str]:
        """End ``--rewire`` where DATA follows it, which it would take for a policy."""
        places = [i for i, arg in enumerate(args[:-1]) if arg == "--rewire" and args[i + 1] not in REWIRE]
        ended = ["--rewire=auto" if i in places else arg for i, arg in enumerate(args)]
        # What is left over tells that DATA stands elsewhere, and that the policy is misspelt.
        probe = click.Context(self, resilient_parsing=True)
        return args if not places or super().parse_args(probe, list(ended)) else ended


class ManySizes(ManyValues):
    """The same for the options of ``fpe bench``."""

    many = ("--sizes", "--factor", "--batches")


def expansion_options(rewired: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of an expansion; `rewired` where their defaults depend on ``--rewire``."""
    values: dict[str, Any] = {"factor": 2, "split": "random", "prune": "magnitude"}
    notes = {
        "factor": "4 with --rewire, 3 where columns move",
        "split": "shared where columns pay, shared-8 where they move",
        "prune": "balanced with --rewire, columns where they move",
    }

    def option(name: str, text: str, type: Any = str) -> Callable[..., Any]:
        if not rewired:
            return click.option(f"--{name}", default=values[name], show_default=True, help=text)
        note = f"  [default: {values[name]}; {notes[name]}]"
        return click.option(f"--{name}", type=type, help=text + note)

    def give(command: Callable[..., Any]) -> Callable[..., Any]:
        command = click.option("--seed", default=0, show_default=True, help="Seed of everything.")(command)
        command = option(
            "prune",
            "Which weights pay for the copies: magnitude; balanced (readers keep at most half of all "
            "weights; for expanding before training); columns (whole inputs; for split shared); children "
            "(whole children; for split shared where there are many outputs).",
        )(command)
        command = option(
            "split",
            "Who gets which input: random, shared, shared-N (N groups of neurons have blocks of their "
            "own), gram or 2:4.",
        )(command)
        command = option("factor", "Children of each neuron.", int)(command)
        return command

    return give


def check_jobs(jobs: int) -> None:
    """Refuse numbers of processes that mean nothing."""
    if jobs != -1 and jobs < 1:
        raise ArgumentError(f"--jobs is {jobs}; give a number of processes, or -1 for one for each core.")


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say what of a table is what; `fpe.data.load` takes them."""
    options = (
        click.option(
            "--label", help="Column of labels of a table.  [default: found by its name, or its text]"
        ),
        click.option("--test", metavar="FILE", help="A table, the test part."),
        click.option("--split-column", metavar="NAME", help="Column that says train or test."),
        click.option(
            "--drop",
            multiple=True,
            metavar="NAME",
            help="Name or pattern of columns that are no features; may be given again.",
        ),
        click.option(
            "--features",
            multiple=True,
            metavar="NAME",
            help="The only columns, or patterns, that are features.",
        ),
        click.option(
            "--test-fraction", type=float, help="Share held out where there is no test part.  [default: 0.2]"
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command
