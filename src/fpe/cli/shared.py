"""Options that several subcommands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fpe.errors import ArgumentError

#: A value of an option that takes several; not the name of a file, such as ``20news.csv``.
NUMBER = re.compile(r"-?\d+(\.\d+)?(x\w*)?")
#: The policies by name; `fpe.rewiring.policies` has them too, but loads torch.
REWIRE = ("rigl", "columns", "paper", "set", "accumulated", "momentum", "auto")


#: Settings of a command whose help shows the defaults.
SHOWN = {"show_default": True}


class ManyValues(click.Command):
    """Let ``--hidden 4 8 16`` mean ``--hidden 4 --hidden 8 --hidden 16``."""

    many: tuple[str, ...] = ("--hidden",)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before each of its values, and end ``--rewire`` where no policy follows."""
        spread: list[str] = []
        option = None
        for arg in args:
            if not NUMBER.fullmatch(arg):
                name = arg.partition("=")[0]
                option = name if name in self.many else None
            elif option is not None and spread[-1] != option:
                spread.append(option)
            spread.append(arg)
        return super().parse_args(ctx, self._end_rewire(spread))

    def _end_rewire(self, args: list[str]) -> list[str]:
        """End ``--rewire`` before DATA, which it would take for a policy."""
        places = [i for i, arg in enumerate(args[:-1]) if arg == "--rewire" and args[i + 1] not in REWIRE]
        ended = ["--rewire=auto" if i in places else arg for i, arg in enumerate(args)]
        # A surplus argument means that DATA is elsewhere, and what follows is a misspelled policy.
        probe = click.Context(self, resilient_parsing=True)
        return args if not places or super().parse_args(probe, list(ended)) else ended


class ManySizes(ManyValues):
    """The same for the options of ``fpe bench``."""

    many = ("--sizes", "--free", "--factor", "--batches")


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _all(*options: Decorator) -> Decorator:
    def give(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return give


def expansion_options(rewired: bool = False) -> Decorator:
    """Give a command the options of an expansion; `rewired` where their defaults depend on ``--rewire``."""

    def option(name: str, default: Any, note: str, text: str, choices: str | None = None) -> Decorator:
        # Names of choices are checked by the library, which suggests the nearest.
        how: dict[str, Any] = {"default": default, "help": text}
        if rewired:
            how = {"type": type(default), "help": f"{text}  [default: {default}; {note}]"}
        return click.option(f"--{name}", metavar=choices, **how)

    return _all(
        option("factor", 2, "4 with --rewire, 3 where it moves columns", "Children of each neuron."),
        option(
            "split",
            "random",
            "shared with --prune columns, shared-8 where --rewire moves columns",
            "How inputs are assigned to children: random, shared, shared-N (N groups of neurons have splits "
            "of their own), gram or 2:4.",
            "[random|shared|shared-N|gram|2:4]",
        ),
        option(
            "prune",
            "magnitude",
            "balanced with --rewire, columns where it moves columns",
            "Which weights are pruned to keep the count: magnitude; balanced (consumers keep at most half "
            "of all weights; for expansion before training); columns (whole inputs; with --split shared); "
            "children (whole children; with --split shared for many outputs).",
            "[magnitude|balanced|columns|children]",
        ),
        click.option("--seed", default=0, help="Seed of everything."),
    )


def model_file(path: Path) -> Path:
    """Return the file of a model: the best one, if a folder of ``fpe fit`` is given."""
    best = path / "best.safetensors"
    return best if best.is_file() else path


def check_jobs(jobs: int) -> None:
    """Refuse a number of processes below 1 that is not −1."""
    if jobs != -1 and jobs < 1:
        raise ArgumentError(f"--jobs is {jobs}; give a number of processes, or -1 for one for each core.")


#: The options that describe a table; keyword arguments of `fpe.data.load`.
data_options = _all(
    click.option("--label", help="Column of labels of a table.  [default: found by its name, or its text]"),
    click.option("--test", metavar="FILE", help="A table, the test part."),
    click.option("--split-column", metavar="NAME", help="Column that says train or test."),
    click.option(
        "--drop", multiple=True, metavar="NAME", help="Name or pattern of columns to ignore; repeatable."
    ),
    click.option(
        "--features",
        multiple=True,
        metavar="NAME",
        help="Name or pattern of the only columns to use as features; repeatable.",
    ),
    click.option(
        "--test-fraction", type=float, help="Share held out if there is no test part.  [default: 0.2]"
    ),
)
