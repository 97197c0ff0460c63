"""Take the models of the zoo through all steps, and make the page of what works (``make zoo``).

Each model runs in a process of its own. Finished ones are kept in
fpe-out/models, and the same command resumes.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import block, made_by, run_all, store, stored, table, trained_at
from zoo_list import ENTRIES
from zoo_models import Entry, use_timm
from zoo_probe import STEPS, probed, task

from fpe.compare.store import code_digest

PAGES, TESTS = Path(__file__).parent, Path(__file__).parents[2] / "tests"
#: The rows of the list of gaps: what stands in the way, in a few words.
GAPS = {
    1: "gate and up in one layer",
    2: "stacked experts, and experts chosen while the model runs",
    3: "subclasses of norms and of linear layers",
    4: "squeeze and excitation, products of channels",
    5: "a sum with a projection of time",
    6: "modules that are called several times",
    7: "transposed and grouped convolutions, norms of their own",
    8: "casts to another precision",
    9: "operations along other axes, adjacency matrices",
    10: "norms by hand, scales of single neurons, autocast",
    11: "models that cannot be exported whole",
}
#: Of EfficientNet-B0, so much must be found; of all others, everything.
ENOUGH = {"EfficientNet-B0": 0.9}


def run(page: str) -> None:
    """Probe all models, those first of which most is asked; then compile some."""
    use_timm()
    if find_spec("timm") is None:
        raise SystemExit("timm is missing: `make zoo` installs it in build/zoo, and makes this page.")
    entries = sorted(ENTRIES.values(), key=lambda entry: (not entry.full, entry.source != "by hand"))
    cells = run_all(probed, {entry.name: task(entry, code_of(entry)) for entry in entries}, page)
    named = {entry.name: task(entry, code_of(entry), True) for entry in entries if entry.full}
    compiled = run_all(probed, named, f"{page}-compiled")
    collect(page, cells, compiled)


def collect(page: str, cells: dict[str, Any], compiled: dict[str, Any]) -> None:
    rows = {}
    for name in (name for name in ENTRIES if name in cells):
        kept = ("neurons", "found", "missing", "others", "crash", *STEPS)
        rows[name] = {key: cells[name][key] for key in kept if key in cells[name]}
        record = compiled.get(name, {})
        rows[name]["compiled"] = record.get("compiled") or record.get("crash") or "not tried"
    first = next(iter(cells.values()))
    store(page, {"rows": rows, "commits": [r["provenance"]["commit"] for r in cells.values()],
                 "provenance": first["provenance"]})  # fmt: skip


def code_of(entry: Entry) -> str:
    """Return a digest of the files that build a model."""
    files = [PAGES / "zoo_models.py"]
    if entry.source == "by hand":
        files += [PAGES / "zoo_hand.py", PAGES / "zoo_images.py"]
        files += [TESTS / f"{name}.py" for name in ("zoo", "foreign", "foreign_gates")]
    return code_digest(*map(str, files))


def share(row: dict[str, Any]) -> float:
    return row["found"] / row["neurons"] if row.get("neurons") else 0.0


def complete(name: str, row: dict[str, Any]) -> bool:
    """Tell whether all hidden neurons are found, and are right, and nothing crashes."""
    done = all(row.get(step) == "yes" for step in ("right", "expanded", "count_exact", "trains"))
    return share(row) >= ENOUGH.get(name, 1) and done and row.get("saved_and_loaded") == "yes"


def verdict(row: dict[str, Any], step: str) -> str:
    """Shorten a cell: the error of a step that went wrong is in the data."""
    cell = row.get(step)
    if cell is None or (step == "right" and not row["found"]):
        return "-"
    if step == "right" and cell.startswith("no ("):  # the oracle cannot copy these neurons
        cell = cell.replace("no", "not judged", 1)
    return re.sub(r" \((\w+):.*\)$", r" (\1)", cell, flags=re.DOTALL)


def parts(page: str) -> dict[str, dict[str, str]]:
    record = stored(page)
    rows: dict[str, dict[str, Any]] = record["rows"]
    body = []
    for name, row in rows.items():
        gaps = ", ".join(map(str, ENTRIES[name].gaps))
        found = f"crash: {row['crash']}" if "crash" in row else f"{100 * share(row):.0f} %"
        steps = [verdict(row, step) for step in (*STEPS, "compiled")]
        body.append([name, ENTRIES[name].source, gaps, found, *steps])
    columns = ["model", "from", "gaps", "found", *(s.replace("_", " ") for s in (*STEPS, "compiled"))]
    ready = {name for name, row in rows.items() if complete(name, row)}
    by_gap = []
    for number, what in GAPS.items():
        own = [name for name in rows if number in ENTRIES[name].gaps]
        by_gap.append([str(number), what, str(len(own)), str(len(ready.intersection(own)))])
    lost = [[name, *why] for name, row in rows.items() for why in missing(row)]
    judged = [name for name, row in rows.items() if row.get("right") in ("yes", "no")]
    wrong = [name for name in judged if rows[name]["right"] == "no"]
    packed = [name for name in ready if rows[name]["packed"] == "yes"]
    tried = [name for name in rows if rows[name]["compiled"] != "not tried"]
    compiled = [name for name in tried if rows[name]["compiled"] == "yes"]
    made = {
        "made": f"{made_by(record, 'fpe', 'torch', 'python')}. {trained_at([record])}",
        "summary": block(
            f"{len(rows)} of the {len(ENTRIES)} models of the zoo were taken through the steps by this "
            f"version. {len(ready)} are complete: all hidden neurons are found, the oracle agrees, the "
            f"count is exact, and they are trained, saved and loaded. {len(packed)} of these are packed too. "
            f"The oracle judged {len(judged)} models; in {len(wrong)} of them something wrong was found. "
            f"{len(tried)} were compiled, {len(compiled)} of them to the same outputs."
        ),
        "gaps": table(["row", "what stood in the way", "models", "complete"], by_gap),
        "table": table(columns, body),
        "missing": table(["model", "neurons not found", "first layer", "reason"], lost),
    }
    return {page: made}


def missing(row: dict[str, Any]) -> list[list[str]]:
    """Return one line for the layers of a model that are not found: how much, the first, its reason."""
    share = f"{row.get('neurons', 0) - row.get('found', 0)} of {row.get('neurons', 0)}"
    return [[share, f"`{name}`", reason] for name, reason in list(row.get("missing", {}).items())[:1]]
