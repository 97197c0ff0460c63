"""What all pages share: places, tables, what made a result, and putting text between the marks of a page."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fpe._util.files import read_json, write_json
from fpe.compare.runner import run_tasks
from fpe.compare.store import commits
from fpe_reproduction.report.text import markdown_table

RESULTS = Path(__file__).parents[2] / "docs" / "results"
OUT = Path("fpe-out")

#: How many networks are trained side by side, each with one thread (``make.py --jobs``).
JOBS = 2
#: Whether few networks are trained, for a short time (``make.py --quick``).
QUICK = False


def be_quick() -> None:
    """Let the pages of docs/evidence be written to fpe-out/quick, from few networks.

    To be called before the modules of the pages are imported.
    """
    global OUT, RESULTS, QUICK
    OUT, QUICK = OUT / "quick", True
    shutil.copytree(RESULTS.parent / "evidence", OUT / "docs" / "evidence", dirs_exist_ok=True)
    RESULTS = OUT / "docs" / "results"
    RESULTS.mkdir(exist_ok=True)


def stored(name: str) -> dict[str, Any]:
    """Read ``docs/results/NAME.json``."""
    record = read_json(RESULTS / f"{name}.json")
    if record is None:
        raise FileNotFoundError(f"docs/results/{name}.json is missing: make the page without --stored first")
    return record


def store(name: str, record: Mapping[str, Any]) -> None:
    """Write ``docs/results/NAME.json``."""
    write_json(RESULTS / f"{name}.json", dict(record))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table as a block."""
    return block("\n".join(markdown_table(list(columns), [list(row) for row in rows])))


def block(text: str) -> str:
    """Return text with lines of its own between its marks."""
    return f"\n{text.strip()}\n"


def made_by(record: Mapping[str, Any], *keys: str) -> str:
    """Name the versions and the machine that made a result."""
    made = record["provenance"]
    return ", ".join([*(f"{key} {made[key]}" for key in keys), made["machine"]])


def same_code(runs: Iterable[Mapping[str, Any]], name: str) -> None:
    """Refuse to mix runs of an experiment that were made by different code."""
    made: dict[str, str] = {}
    for run in runs:
        made.setdefault(run["depends"]["code"], str(run["provenance"]["commit"]))
    if len(made) > 1:
        raise ValueError(f"the runs of {name} were made by different code, at {', '.join(made.values())}")


def trained_at(runs: Sequence[Mapping[str, Any]]) -> str:
    """Say which commits stored runs were made with; a "+" means uncommitted changes."""
    made = commits(runs)
    note = " (+: with changes that were not committed)" if any(c.endswith("+") for c in made) else ""
    return f"Trained with fpe at {', '.join(made)}{note}."


def run_all(
    work: Any, tasks: Mapping[str, Mapping[str, Any]], name: str, jobs: int | None = None
) -> dict[str, Any]:
    """Run the tasks that fpe-out/NAME has no result of; return all results."""
    return run_tasks(
        work, tasks, OUT / name, name, jobs=jobs or JOBS, on_finished=lambda task, _: print(task, flush=True)
    )


def run_fpe(*arguments: str | Path) -> int:
    """Run an ``fpe`` command; return its exit code."""
    return subprocess.run([Path(sys.executable).with_name("fpe"), *arguments]).returncode


def reproduced(name: str) -> Path:
    """Run ``fpe reproduce NAME``, quickly if asked to; return the folder of its results."""
    folder = OUT / ("rivals" if name == "rivals" else "reproduce")
    if run_fpe("reproduce", name, "--out", folder, *(["--quick"] if QUICK else [])):
        raise SystemExit(f"fpe reproduce {name} failed; the same command again resumes it")
    return folder


def copy(source: Path, name: str) -> None:
    """Copy a file into docs/results."""
    (RESULTS / name).parent.mkdir(exist_ok=True)
    shutil.copyfile(source, RESULTS / name)


def inject(text: str, parts: Mapping[str, str]) -> str:
    """Replace the text between ``<!-- NAME -->`` and ``<!-- end NAME -->`` for each part."""
    for mark, part in parts.items():
        begin, end = f"<!-- {mark} -->", f"<!-- end {mark} -->"
        text, places = re.subn(f"(?s){begin}.*?{end}", lambda _, new=f"{begin}{part}{end}": new, text)
        if not places:
            raise ValueError(f"the page has no place for {mark}: {begin} … {end}")
    return text
