"""One self-contained page of stored results, which needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from fpe._util.files import read_json, to_json, write_atomically
from fpe.compare.store import commits
from fpe.errors import ArgumentError, DataError
from fpe_reproduction.experiments.findings import verdict
from fpe_reproduction.report.charts import chart

#: Heads and rows.
Table = tuple[list[str], list[list[str]]]
_STYLE = """
:root { color-scheme: light; --ink: #1b1b1b; --soft: #5c5c5c; --line: #d9d9d9; --mark: #1f6f8b; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { font-size: 1rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1rem; padding: 0; list-style: none; }
:focus-visible { outline: 3px solid var(--mark); }
.skip { position: absolute; left: -99rem; }
.skip:focus { position: static; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td { font-variant-numeric: tabular-nums; }
figure { margin: 1.2rem 0; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
.chart { width: 100%; }
.figures { display: grid; gap: 1rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.figures > * { min-width: 0; }
.yes { color: #1d6b3a; font-weight: 600; }
.no { color: #a02c2c; font-weight: 600; }
.find { position: sticky; top: 0; z-index: 1; background: white; padding: .4rem 0; margin: 0; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 3px solid var(--mark); }
th[aria-sort=descending] button::after { content: " ▾"; }
th[aria-sort=ascending] button::after { content: " ▴"; }
code, pre { font-size: .85rem; overflow-x: auto; }
.soft { color: var(--soft); }
"""


def write_page(folder: Path, path: Path | None = None) -> Path:
    """Write the page of all results in a folder.

    Return the path of the page: `path`, by default ``report.html`` in the folder.

    Raises
    ------
    ArgumentError
        If the folder does not exist or has no results.
    DataError
        If a result is not one of an experiment.
    WriteError
        If the page cannot be written.
    """
    if not folder.is_dir():
        raise ArgumentError(f"{folder} is no folder; give the one that fpe reproduce wrote to.")
    found = [read_json(file) for file in sorted(folder.glob("*/results.json"))]
    results = _in_order([r for r in found if r is not None])
    if not results:
        raise ArgumentError(f"{folder} has no results of fpe reproduce; run it with --out {folder} first.")
    path = path or folder / "report.html"
    page = _page(results)
    write_atomically(path, lambda file: file.write_text(page, encoding="utf-8"))
    return path


def _in_order(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort by the catalogue."""
    from fpe_reproduction.experiments.catalogue import EXPERIMENTS

    names = [experiment.name for experiment in EXPERIMENTS]
    strange = [r.get("name") for r in results if r.get("name") not in names]
    if strange:
        raise DataError(f"there are results of {strange}, which are no experiments; known are {names}.")
    return sorted(results, key=lambda result: names.index(result["name"]))


def _page(results: list[dict[str, Any]]) -> str:
    charts: list[dict[str, Any]] = []
    sections = {result["name"]: _section(result, charts) for result in results}
    intro = (
        "Every number comes from the command beside it. Point at a mark of a figure to read its values; the "
        "tables have them all."
    )
    return html("Expand Neurons, Not Parameters: the paper beside ours", intro, sections, charts)


def html(
    title: str, intro: str, sections: Mapping[str, str], charts: list[dict[str, Any]], script: str = ""
) -> str:
    """Return a page that needs no network: sections by name, Vega-Lite charts, and a script of its own.

    Chart i is drawn into the element ``chart-i`` of a section.
    """
    links = "".join(f'<li><a href="#{name}">{escape(name)}</a></li>' for name in sections)
    specifications = to_json(charts).replace("</", "<\\/")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>fpe: {escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the results</a>
<header><h1>{escape(title)}</h1>
<div class="soft">{intro}</div>
<nav aria-label="Parts"><ul>{links}</ul></nav></header>
<main id="content">{"".join(sections.values())}</main>
<script>{_library()}</script>
<script>
const charts = {specifications};
Promise.all(charts.map((spec, i) => vegaEmbed("#chart-" + i, spec, {{actions: false, renderer: "svg"}})))
  .then(() => document.body.dataset.drawn = charts.length);
{script}</script>
</body>
</html>
"""


def _library() -> str:
    """Return the scripts that draw the charts; they define ``vegaEmbed``."""
    import vl_convert

    scripts: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    return scripts


def _section(result: dict[str, Any], charts: list[dict[str, Any]]) -> str:
    figures = ""
    for figure in result["figures"]:
        title = escape(figure["title"])
        figures += (
            f'<figure tabindex="0"><figcaption>{title}</figcaption>'
            f'<div class="chart" id="chart-{len(charts)}" role="img" aria-label="{title}"></div></figure>'
        )
        charts.append(chart(figure))
    claims = [
        [
            escape(c["paper"]),
            escape(c["ours"]),
            f'<span class="{"yes" if (v := verdict(c)) == "agrees" else "no"}">{v}</span>',
        ]
        for c in result["claims"]
    ]
    tables = "".join(f"<h3>{escape(t['title'])}</h3>{_plain_table(t)}" for t in result["tables"])
    settings, made = (to_json(result[key], indent=1) for key in ("settings", "provenance"))
    made_with = ", ".join(commits([result]))
    quick = (
        "<p><strong>Made with --quick: fewer networks, trained for a shorter time.</strong></p>"
        if result["quick"]
        else ""
    )
    return f"""<section id="{result["name"]}" aria-labelledby="h-{result["name"]}">
<h2 id="h-{result["name"]}">{escape(result["question"])}</h2>
<p class="soft">{escape(result["where"])}</p>{quick}
<p><strong>The paper:</strong> {escape(result["paper"])}</p>
{table(["the paper says", "we measured [95 %]", ""], claims, "claims")}
<div class="figures">{figures}</div>
{tables}
<p>Made by <code>{escape(result["command"])}</code>: {result["networks"]} networks,
{result["training_seconds"]} seconds of training on one core, with fpe at {escape(made_with)}.</p>
<details><summary>Settings and provenance</summary><pre>{escape(settings)}</pre>
<pre>{escape(made)}</pre></details>
</section>
"""


def _plain_table(own: dict[str, Any]) -> str:
    rows = [[escape(value) for value in row] for row in own["rows"]]
    return table([escape(c) for c in own["columns"]], rows, own["title"])


def table(heads: list[str], rows: list[list[str]], name: str) -> str:
    """Return a table of cells that are HTML."""
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    body = "".join("<tr>" + "".join(f"<td>{v}</td>" for v in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}"><table><thead><tr>{head}'
        f"</tr></thead><tbody>{body}</tbody></table></div>"
    )
