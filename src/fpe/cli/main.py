"""The command ``fpe``. Each subcommand is a file of this folder."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any, cast

import click

from fpe import __version__
from fpe.cli.embed import embed
from fpe.cli.export import export
from fpe.cli.fit import fit
from fpe.cli.plan import plan
from fpe.cli.predict import predict
from fpe.errors import ArgumentError, FPEError


class _Failed(click.ClickException):
    exit_code = 1


class _BadArguments(click.ClickException):
    exit_code = 2


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
    """Make a trained neural network better without making it bigger (Fixed Parameter Expansion).

    \b
    Example:
      fpe fit digits
    """  # noqa: D301


for _command in (fit, predict, embed, plan, export):
    main.add_command(_command)
