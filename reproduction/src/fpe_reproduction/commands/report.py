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
    """Write one self-contained HTML page of the results in FOLDER, or of the evidence's data.

    \b
    Example:
      fpe report fpe-out/reproduce
      fpe report docs/evidence/data --out evidence.html
    """  # noqa: D301
    from fpe_reproduction.report.evidence import FILES, write_evidence
    from fpe_reproduction.report.page import write_page

    if all((folder / name).is_file() for name in FILES):
        page = write_evidence(folder, out or folder / "report.html")
    else:
        page = write_page(folder, out)
    click.echo(to_json({"page": str(page)}) if as_json else f"page    {page}")
