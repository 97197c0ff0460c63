"""``fpe report``: the page of stored results."""

from __future__ import annotations

from pathlib import Path

import click

from fpe._util.files import to_json


@click.command(short_help="Make the page of stored results again.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The page.  [default: FOLDER/report.html]")
@click.option("--json", "as_json", is_flag=True, help="Print the page's path as JSON.")
def report(folder: Path, out: Path | None, as_json: bool) -> None:
    """Write one self-contained HTML page of the results in FOLDER.

    \b
    Example:
      fpe report fpe-out/reproduce
    """  # noqa: D301
    from fpe_reproduction.report.page import write_page

    page = write_page(folder, out)
    click.echo(to_json({"page": str(page)}) if as_json else f"page    {page}")
