"""The command ``fpe``. Each subcommand is a file of `fpe.commands`."""

from __future__ import annotations

from typing import Any

import click

from fpe._version import __version__
from fpe.commands.bench import bench
from fpe.commands.embed import embed
from fpe.commands.export import export
from fpe.commands.fit import fit
from fpe.commands.plan import plan
from fpe.commands.report import report
from fpe.commands.reproduce import reproduce
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


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fpe")
def main() -> None:
    """Make a trained neural network better without making it bigger (Fixed Parameter Expansion).

    \b
    Example:
      fpe fit digits
    """  # noqa: D301


for _command in (fit, embed, plan, export, reproduce, bench, report):
    main.add_command(_command)
