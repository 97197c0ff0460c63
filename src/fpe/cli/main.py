"""The command ``fpe``. Each subcommand is a file of this folder."""

from __future__ import annotations

import os
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO, cast

import click

import fpe
from fpe import __version__
from fpe.cli.embed import embed
from fpe.cli.export import export
from fpe.cli.fit import fit
from fpe.cli.plan import plan
from fpe.cli.predict import predict
from fpe.errors import ArgumentError, FPEError

#: Python's own way to show a warning.
_show = warnings.showwarning


class _Failed(click.ClickException):
    exit_code = 1


class _BadArguments(click.ClickException):
    exit_code = 2


class _Notes:
    """Shows warnings of fpe as notes, once and without a line of code; others as they are."""

    def __init__(self) -> None:
        self.given = set[str]()

    def __call__(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category is not UserWarning or Path(fpe.__file__).parent not in Path(filename).parents:
            _show(message, category, filename, lineno, file, line)
        elif str(message) not in self.given:
            self.given.add(str(message))
            click.echo(f"note: {message}", err=True)


class _Commands(click.Group):
    """Turn errors into messages and exit codes: 1 for a failure, 2 for bad arguments.

    Other distributions add commands by the entry point group ``fpe.commands``.
    """

    @cached_property
    def added(self) -> dict[str, Any]:
        from importlib.metadata import entry_points  # slow, and needed for help and for added commands only

        return {entry.name: entry for entry in entry_points(group="fpe.commands")}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands, *sorted(self.added)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.commands or cmd_name not in self.added:
            return super().get_command(ctx, cmd_name)
        return cast(click.Command, self.added[cmd_name].load())

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _Notes()
                return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except FPEError as error:
            kind = _BadArguments if isinstance(error, ArgumentError) else _Failed
            raise kind(str(error)) from error
        except KeyboardInterrupt as error:
            raise _Failed(str(error) or "stopped.") from error
        except Exception as error:
            if os.environ.get("FPE_TRACEBACK"):
                raise
            raise _Failed(
                f"{type(error).__name__}: {error}\nfpe did not expect this. Set FPE_TRACEBACK=1 to see where "
                "it was raised."
            ) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fpe")
def main() -> None:
    """Find the most accurate network for a budget of weights; make a trained one better at its own count.

    Fixed Parameter Expansion: more neurons, the same number of non-zero parameters. fpe fit DATA --budget N
    searches; without --budget it trains dense networks of given widths, and expands them. fpe COMMAND --help
    shows all options.

    \b
    Example:
      fpe fit digits --budget 600
      fpe fit digits --hidden 4 8 16
    """  # noqa: D301


for _command in (fit, predict, embed, plan, export):
    main.add_command(_command)
