"""The pages of experiments that ``fpe reproduce`` runs: Boolean data, real data, splits, dynamic masks."""

from __future__ import annotations

import json
import re
from functools import partial
from itertools import pairwise
from typing import Any

import pandas as pd
import settings
from common import OUT, RESULTS, block, copy, made_by, run_fpe, store, stored, table

from fpe._util.files import read_json, write_atomically
from fpe.compare.store import commits
from fpe_reproduction.experiments.catalogue import EXPERIMENTS, GROUPS
from fpe_reproduction.experiments.findings import verdict
from fpe_reproduction.report.text import findings_markdown

#: The group of ``fpe reproduce`` on each page; these experiments have a page of their own:
PAGES = {"boolean": "boolean", "vision": "real", "rewiring": "dynamic-masks"}
SPLITS = ["splits", "clause-free"]
#: Experiments on Boolean data that share no networks, so that their training seconds add up.
SEPARATE = ("case-study", "neurons", "clauses", "heatmap")
#: What sorts the table of all trained networks.
ORDER = ("data", "layers", "clauses", "hidden", "neurons", "kind", "trial")


def experiments(page: str) -> list[str]:
    """Return the names of a page's experiments in order."""
    if page == "splits":
        return SPLITS
    return [each.name for each in GROUPS[PAGES[page]] if each.name not in (*SPLITS, "narrow")]


def run(page: str) -> None:
    """Run the experiments; copy their data and figures, and list all trained networks."""
    if page in settings.RUNS:
        settings.run(page)
    for name in SPLITS if page == "splits" else [PAGES[page]]:
        if run_fpe("reproduce", name, "--out", OUT / "reproduce"):
            raise SystemExit(f"fpe reproduce {name} failed")
    networks: dict[str, dict[str, Any]] = {}
    for name in experiments(page):
        result = read_json(OUT / "reproduce" / name / "results.json") or {}
        copy(OUT / "reproduce" / name / "figure.png", f"{page}/{name}.png")
        networks |= {json.dumps(row): row for row in result.pop("values", [])}
        result.pop("figures", None)
        store(f"{page}/{name}", result)
    if page != "splits":
        # Objects, so that integers stay such beside missing values.
        frame = pd.DataFrame(networks.values(), dtype=object)
        frame = frame.sort_values([key for key in ORDER if key in frame], na_position="first")
        write = partial(frame.to_csv, index=False, lineterminator="\r\n")
        write_atomically(RESULTS / page / "networks.csv", write)


def parts(page: str) -> dict[str, dict[str, str]]:
    """Return the marked parts of the page, and those of overview.md that show its tables."""
    results = {name: stored(f"{page}/{name}") | wording(name) for name in experiments(page)}
    made, *_ = results.values()
    at = f"trained with fpe at {', '.join(commits(results.values()))}"
    if "commits" not in made:  # older results have the commit of the tables only
        at = f"tables made at commit `{made['provenance']['commit']}`"
    text = f"{made_by(made, 'fpe', 'python', 'torch', 'numpy')}; {at}."
    if page != "vision":
        separate = SEPARATE if page == "boolean" else results
        text += (
            f" Training took {sum(results[n]['training_seconds'] for n in separate):,} seconds of one core."
        )
    sections = [findings_markdown(result, f"{page}/{name}.png") for name, result in results.items()]
    own = {"sections": block("\n".join(sections)), "made": block(text)}
    claims = [verdict(claim) == "agrees" for result in results.values() for claim in result["claims"]]
    if page in ("boolean", "vision"):
        own["counted"] = f"**{sum(claims)} of {len(claims)} statements**"
        own["settings"] = settings.text(page)
    if page == "boolean":
        study = results["case-study"]["tables"][0]
        return {page: own, "overview": {"case-study": table(study["columns"], study["rows"])}}
    if page == "vision":
        tables = results["fewer-inputs"]["tables"]
        (rival,) = [t for t in tables if t["title"].startswith("banking77, test") and "α" not in str(t)]
        own["rival"] = rivals(tables)
        return {page: own, "overview": {"rival": table(rival["columns"][:6], [r[:6] for r in rival["rows"]])}}
    if page == "rewiring":
        own["gaps"] = gaps(results["rewiring"]["tables"])
        return {page: own, "overview": {"dynamic": own["gaps"]}}
    return {page: own}


def wording(name: str) -> dict[str, str]:
    """Return the texts of an experiment as they are declared today; stored results have numbers for them."""
    (own,) = [each for each in EXPERIMENTS if each.name == name]
    texts = {"where": own.where, "question": own.question, "paper": own.paper}
    return {"command": f"fpe reproduce {name}", **texts}


def rivals(tables: list[dict[str, Any]]) -> str:
    """Return the differences to the rival that chooses inputs by variance, α = 2, of each data set."""
    rows = []
    for each in tables:
        if "differences" in each["title"] and "α" not in str(each["columns"]):
            places = [i for i, name in enumerate(each["columns"]) if name.endswith("by variance")]
            data = each["title"].partition(",")[0]
            rows += [[data, row[0], *(row[i] for i in places)] for row in each["rows"]]
    return table(["data", "neurons", "random-split", "shared, columns"], rows)


def gaps(tables: list[dict[str, Any]]) -> str:
    """Return what dynamic masks reach on each data set: accuracies, and the gap that they close."""
    kinds = ("dense %", "random-split %", "rewired %", "dense, twice the count %")
    rows = []
    for closed, accuracy in pairwise(tables):
        if not re.search("gap to twice the parameters", closed["title"]):
            continue
        data = {"banking77-cosine": "Banking77", "fashion-mnist-cosine": "Fashion-MNIST"}
        name = data[closed["title"].partition(",")[0]]
        (*own, mean) = next(row[1:] for row in closed["rows"] if row[0] == "rewired")
        for row, gap in zip(accuracy["rows"], own, strict=True):
            cells = dict(zip(accuracy["columns"], row, strict=True))
            count = cells["non-zeros"].partition(" ")[0]
            rows.append([name, cells["neurons"], count, *(cells[kind] for kind in kinds), gap])
            name = ""
        rows.append(["", "mean", "", "", "", "", "", f"**{mean}**"])
    heads = ["", "neurons", "non-zeros", "dense %", "expanded once %", "dynamic masks %"]
    return table([*heads, "dense, twice the non-zeros %", "gap closed %"], rows)
