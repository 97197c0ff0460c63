"""The command ``fpe``. Each subcommand is a file of this folder."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

import click

from fpe import __version__
from fpe.cli.embed import embed
from fpe.cli.export import export
from fpe.cli.fit import fit
from fpe.cli.plan import plan
from fpe.errors import ArgumentError, FPEError


class _Failed(click.ClickException):
    exit_code = 1


class _BadArguments(click.ClickException):
    exit_code = 2


class _Commands(click.Group):
    """Turns errors into messages, and exit codes: 1 where something failed, 2 for bad arguments.

    Other distributions add commands by the entry point group ``fpe.commands``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.added: dict[str, EntryPoint] = {e.name: e for e in entry_points(group="fpe.commands")}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands, *sorted(self.added)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.added:
            return cast(click.Command, self.added[cmd_name].load())
        return super().get_command(ctx, cmd_name)

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


for _command in (fit, embed, plan, export):
    main.add_command(_command)
