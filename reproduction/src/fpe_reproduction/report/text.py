"""What experiments are and what they show, as text for a terminal and as Markdown."""

from __future__ import annotations

from typing import Any

from fpe.expansion.plan import text_table
from fpe_reproduction.experiments.findings import verdict


def catalogue_json() -> list[dict[str, Any]]:
    """Return each experiment's name, place in the paper, question, duration and what the paper reports."""
    from fpe_reproduction.experiments.catalogue import EXPERIMENTS

    keys = ("name", "where", "question", "paper", "minutes")
    return [{key: getattr(experiment, key) for key in keys} for experiment in EXPERIMENTS]


def catalogue_text() -> str:
    """Lay the experiments out as text."""
    lines = [
        "What fpe reproduce can make, with minutes on two cores. They share networks; the names boolean,",
        "real, moving and all stand for several.",
        "",
    ]
    for each in catalogue_json():
        lines += [
            f"{each['name']:<14} {each['minutes']:>4g} min  {each['question']}",
            f"{'':<24}{each['where']}: {each['paper']}",
        ]
    return "\n".join(lines)


def findings_text(result: dict[str, Any]) -> str:
    """Lay the claims and tables of a result out as text."""
    lines = [f"{result['name']}: {result['question']}", f"paper: {result['paper']}", ""]
    for claim in result["claims"]:
        lines += [f"  {verdict(claim):<12}  {claim['paper']}", f"{'':<16}{claim['ours']}"]
    for table in result["tables"]:
        lines += ["", table["title"], *text_table(table["columns"], table["rows"])]
    return "\n".join(lines)


def findings_markdown(result: dict[str, Any], picture: str) -> str:
    """Write a result as a section of a Markdown page, with the picture of that name."""
    where = result["where"][0].upper() + result["where"][1:]
    lines = [f"## {result['question']}", "", f"{where}. Command: `{result['command']}`.", ""]
    lines += [f"**The paper:** {result['paper']}", ""]
    verdicts = [
        [c["paper"], c["ours"], v if (v := verdict(c)) == "agrees" else f"**{v}**"] for c in result["claims"]
    ]
    lines += markdown_table(["the paper says", "we measured [95 %]", ""], verdicts)
    lines += ["", f"![{result['question']}]({picture})", ""]
    for table in result["tables"]:
        lines += [table["title"] + ":", "", *markdown_table(table["columns"], table["rows"]), ""]
    return "\n".join(lines)


def markdown_table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Write a table in Markdown, line by line."""
    lines = ["| " + " | ".join(_cell(text) for text in row) + " |" for row in [head, *rows]]
    return [lines[0], "|" + " --- |" * len(head), *lines[1:]]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
