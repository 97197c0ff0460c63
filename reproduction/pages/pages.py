"""What the pages of reproduced experiments have in common: their data, pictures and lists of networks."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fpe._util.files import read_json, write_atomically, write_json
from fpe.compare.store import commits as made_with
from fpe_reproduction.report.text import findings_markdown, markdown_table

HERE = Path(__file__).parents[2] / "docs" / "results"
#: Experiments with a page of their own.
SPLITS = ("splits", "clause-free")


def run(group: str, out: Path) -> None:
    """Run a group of experiments; what is trained already is not trained again."""
    subprocess.run([Path(sys.executable).parent / "fpe", "reproduce", group, "--out", out], check=True)


def collect(names: Sequence[str], out: Path, folder: str) -> list[dict[str, Any]]:
    """Copy each experiment's picture and data into a folder beside the page; return the results."""
    results = [read_json(out / name / "results.json") for name in names]
    for result in results:
        (HERE / folder).mkdir(exist_ok=True)
        shutil.copyfile(out / result["name"] / "figure.png", HERE / folder / f"{result['name']}.png")
        write_json(
            HERE / folder / f"{result['name']}.json",
            {key: value for key, value in result.items() if key not in ("values", "figures")},
        )
    return results


def commits(runs: Sequence[dict[str, Any]]) -> str:
    """Say which commits stored runs were made with; a "+" stands for changes that were not committed."""
    made = made_with(runs)
    return f"Trained with fpe at {', '.join(made)}" + (
        " (+: with changes that were not committed)." if any(c.endswith("+") for c in made) else "."
    )


def sections(results: Sequence[dict[str, Any]], folder: str) -> list[str]:
    """Write each result as a section."""
    return [findings_markdown(result, f"{folder}/{result['name']}.png") for result in results]


def write_networks(results: Sequence[dict[str, Any]], path: Path, order: Callable[[Any], Any]) -> None:
    """Write every trained network as a line of a table."""
    rows = {json.dumps(row): row for result in results for row in result["values"]}.values()
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def write(file: Path) -> None:
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, columns)
            writer.writeheader()
            writer.writerows(sorted(rows, key=order))

    write_atomically(path, write)


def put_into_readme(mark: str, table: dict[str, Any]) -> None:
    """Put a table into overview.md, between the comments of this name."""
    lines = "\n".join(markdown_table(table["columns"], table["rows"]))
    put_between(mark, f"{lines}\n", HERE / "overview.md")


def put_between(mark: str, text: str, page: Path) -> None:
    """Replace what stands between the comments of this name in a page."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- end {mark} -->")
    if not end:
        raise ValueError(f"{page} has no place for the text: <!-- {mark} --> and <!-- end {mark} -->")
    write_atomically(
        page, lambda file: file.write_text(f"{before}{begin}{text}{end}{after}", encoding="utf-8")
    )
