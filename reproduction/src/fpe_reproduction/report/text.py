"""What experiments are and what they show, as text for a terminal and as Markdown."""

from __future__ import annotations

from typing import Any

from fpe._util.terminal import text_table
from fpe_reproduction.experiments.findings import verdict

#: Stored results keep the words of the version that made them; pages and terminals show today's.
WORDS = {
    "optimizer anew": "new optimizer",
    "learnt": "learned",
    "% moving": "% rewired",
    "chosen way of moving masks": "chosen rewiring",
    "moving masks": "dynamic masks",
    "network that reads fewer inputs": "network with fewer inputs",
    "inputs leave better than by norm": "input pruning is better than by norm",
    "what their columns hold would not pay for": "their inputs have too few weights to prune for",
    "as many steps more": "extra steps",
    "whole children": "child pruning",
    ", starts,": ", outgoing weights,",
    "pruning takes some": "pruning removes some",
    "left alone:": "skipped:",
    "nor the dense model": "dense model fails too",
}


def plain(text: str) -> str:
    """Return a stored text in today's words."""
    for old, new in WORDS.items():
        text = text.replace(old, new)
    return text


def catalogue_json() -> list[dict[str, Any]]:
    """Return the name, place in the paper, question, duration and reported result of each experiment."""
    from fpe_reproduction.experiments.catalogue import EXPERIMENTS

    keys = ("name", "where", "question", "paper", "minutes")
    return [{key: getattr(experiment, key) for key in keys} for experiment in EXPERIMENTS]


def catalogue_text() -> str:
    """Lay the experiments out as text."""
    lines = [
        "The experiments of fpe reproduce, with minutes on two cores. They share networks. The groups are",
        "boolean, real, dynamic-masks and all.",
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
        lines += [plain(table["title"]) + ":", "", *markdown_table(table["columns"], table["rows"]), ""]
    return "\n".join(lines)


def markdown_table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Write a table in Markdown, line by line."""
    lines = ["| " + " | ".join(_cell(text) for text in row) + " |" for row in [head, *rows]]
    return [lines[0], "|" + " --- |" * len(head), *lines[1:]]


def _cell(text: str) -> str:
    return plain(text).replace("|", "\\|")
