"""The pages that judge the paper: one for each family of sentences, and a count of all verdicts."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pandas as pd
from common import RESULTS, block, reproduced, table, trained_at

from fpe._util.files import read_json, write_atomically, write_json
from fpe.compare.store import commits
from fpe_reproduction.experiments.findings import verdict
from fpe_reproduction.paper import SENTENCES, by_data, judge, to_frame
from fpe_reproduction.report.charts import draw

STORED = RESULTS.parent / "evidence" / "data"
#: The page of each family, and the experiments and titles of its figures.
PAGES: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "case study": ("case-study", (("case-study", "Gram matrix"),)),
    "neurons and clauses": (
        "neurons-and-clauses",
        (("neurons", "Relative improvement"), ("clauses", "Relative improvement")),
    ),
    "interference": ("interference", (("capacity", "Fold change"), ("orthogonality", "Mean cosine"))),
    "interference and accuracy": ("interference-and-accuracy", (("regression", "Improvement against"),)),
    "theory": ("theory", (("theory", "Coverage"),)),
    "real data": ("real-data", (("vision", "above dense"), ("narrow", "above dense"))),
    "detail": ("cifar-100", (("equivalent", "parameters to match"), ("timing", "when to split"))),
    "depth": ("depth", (("depth", "above dense"),)),
    "dynamic masks and 2:4": ("dynamic-and-two-four", (("dynamic", ""), ("two-four", ""))),
    "later edition": ("later-edition", (("overlap", ""), ("dropconnect", ""))),
}
VERDICTS = ("agrees", "in sign only", "contradicted", "not shown")


def run(page: str) -> None:
    """Train what the sentences need; store all networks, the verdicts, and a figure for each page."""
    folder = reproduced("paper")
    from fpe_reproduction.experiments.catalogue import PAPER

    results = {each.name: read_json(folder / each.name / "results.json") or {} for each in PAPER}
    rows = {str(row): row for result in results.values() for row in result["values"]}
    frame = pd.DataFrame(list(rows.values()), dtype=object).fillna({"data": ""})
    keys = [
        key for key in ("data", "layers", "clauses", "hidden", "neurons", "kind", "trial") if key in frame
    ]
    frame = frame.sort_values(keys, na_position="first")
    STORED.mkdir(parents=True, exist_ok=True)
    write_atomically(
        STORED / "paper-networks.csv", lambda file: frame.to_csv(file, index=False, float_format="%.6g")
    )
    made = {"commits": commits(results.values()), "provenance": results["case-study"]["provenance"]}
    trials = folder.glob("**/trials/*.json")  # those of other code have been made again
    seconds = sum((read_json(path) or {})["seconds"] for path in trials)
    write_json(STORED / "paper.json", {**made, "networks": len(frame), "hours": seconds / 3600})
    for family, (name, figures) in PAGES.items():
        chosen = [
            figure
            for experiment, words in figures
            for figure in results[experiment]["figures"]
            if words in figure["title"]
        ]
        about = {"question": family, "where": "made by fpe reproduce paper", "figures": chosen}
        draw(about, RESULTS.parent / "evidence" / f"{name}.png")
    to_frame(claims()).to_csv(STORED / "paper-sentences.csv", index=False)


@functools.cache
def claims() -> tuple[dict[str, Any], ...]:
    """Judge all sentences by the stored networks."""
    frame = pd.read_csv(STORED / "paper-networks.csv", keep_default_na=False, na_values=[""])
    frame["data"] = frame["data"].fillna("")
    return tuple(judge(SENTENCES, by_data(frame)))


def family_table(own: list[dict[str, Any]]) -> str:
    """Lay out the sentences of a family, with what would have been seen where nothing was shown."""
    rows = []
    for claim in own:
        said = verdict(claim)
        scale = claim["scale"]
        seen = f"{scale * claim['detectable']:.3g}" if said == "not shown" else ""
        row = [claim["paper"], claim["where"], claim["ours"], claim["margin"]]
        rows.append([*row, said if said == "agrees" else f"**{said}**", seen])
    head = ["the paper says", "where", "we measured [95 %]", "margin", "verdict", "could have been seen"]
    return table(head, rows)


def parts(page: str) -> Mapping[str, Mapping[str, str]]:
    """Return the texts between the marks of all pages."""
    made = read_json(STORED / "paper.json") or {}
    text = block(
        f"{made['networks']:,} networks, {made['hours']:.1f} hours of one core; torch "
        f"{made['provenance']['torch']}, {made['provenance']['machine']}. {trained_at([made])}"
    )
    pages, counts = {}, []
    for family, (name, _) in PAGES.items():
        own = [claim for claim in claims() if claim["family"] == family]
        said = [verdict(claim) for claim in own]
        numbers = [f"{said.count(each)}" for each in VERDICTS]
        counts.append([f"[{family}]({name}.md)", f"{len(own)}", *numbers])
        counted = dict(zip(("agree", "sign", "contradicted", "open"), numbers, strict=True))
        pages[f"../evidence/{name}"] = {
            "sentences": family_table(own),
            "all": f"{len(own)}",
            **counted,
            "made": text,
        }
        if family == "depth":
            collapsed = sum(claim["collapsed"] or 0 for claim in own)
            pages[f"../evidence/{name}"]["collapsed"] = f"{collapsed}"
    totals = [str(sum(int(row[i]) for row in counts)) for i in range(1, 6)]
    counts.append(["all", *totals])
    pages["../evidence/paper"] = {
        "counts": table(["sentences about", "measured", *VERDICTS], counts),
        "made": text,
    }
    return pages
