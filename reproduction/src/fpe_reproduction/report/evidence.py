"""One self-contained page of the stored evidence: all methods, sentences and measures, to sort and search."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from fpe._util.files import read_json, write_atomically
from fpe_reproduction.report.page import Table, html, table
from fpe_reproduction.rivals.contest import DATA
from fpe_reproduction.rivals.methods import METHODS
from fpe_reproduction.rivals.report import OWN
from fpe_reproduction.statistics import Interval, mean

#: What the page is made of, in the folder of the evidence's data.
FILES = ("rivals-methods.csv", "paper-sentences.csv", "interpretability.csv")
_SIDES = {"a rival": "#5c5c5c", "fpe": "#d9680f"}
_FIND = (
    '<p class="find"><label>Show rows of tables with <input id="search" type="search" '
    'placeholder="letter 16"></label></p>'
)
_SCRIPT = """
const search = document.getElementById("search");
search.addEventListener("input", () => {
  const words = search.value.toLowerCase().split(/\\s+/);
  for (const row of document.querySelectorAll("tbody tr"))
    row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
});
for (const head of document.querySelectorAll("th")) {
  const button = document.createElement("button");
  button.textContent = head.textContent;
  head.replaceChildren(button);
  button.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0], place = head.cellIndex;
    const down = head.getAttribute("aria-sort") !== "descending";
    const number = row => parseFloat(row.cells[place].textContent.replace(/[,+]/g, "").replace("−", "-"));
    const text = row => row.cells[place].textContent;
    const order = (a, b) => isNaN(number(a)) || isNaN(number(b))
      ? text(a).localeCompare(text(b)) : number(a) - number(b);
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...[...body.rows].sort((a, b) => down ? order(b, a) : order(a, b)));
  });
}
"""


def write_evidence(folder: Path, path: Path) -> Path:
    """Write the page of the data that ``make evidence`` stored in a folder; return its path.

    Raises
    ------
    WriteError
        If the page cannot be written.
    """
    rivals, sentences, measures = (pd.read_csv(folder / name) for name in FILES)
    made = read_json(folder / "rivals.json") or {}
    charts: list[dict[str, Any]] = []
    parts = {
        "rivals": _rivals(rivals, charts),
        "sentences": _sentences(sentences),
        "interpretability": _interpretability(measures, charts),
    }
    intro = (
        f"Of commit {escape(', '.join(made.get('commits', ['?'])))}. Point at a mark to read its values; "
        "click on the head of a column to sort a table."
    )
    parts["rivals"] = _FIND + parts["rivals"]
    text = html("The evidence: all methods, sentences and measures", intro, parts, charts, _SCRIPT)
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))
    return path


def _section(name: str, title: str, about: str, figures: str, rows: Table) -> str:
    return (
        f'<section id="{name}" aria-labelledby="h-{name}"><h2 id="h-{name}">{title}</h2><p>{about}</p>'
        f'<div class="figures">{figures}</div>{table(*rows, name)}</section>'
    )


def _figure(title: str, made: Any, rows: int, charts: list[dict[str, Any]]) -> str:
    made = made.properties(width="container", height=24 * rows + 40).configure_view(stroke=None)
    charts.append(made.to_dict())
    own = f'id="chart-{len(charts) - 1}" role="img" aria-label="{title}"'
    return f'<figure tabindex="0"><figcaption>{title}</figcaption><div class="chart" {own}></div></figure>'


def _ranges(rows: list[dict[str, Any]], color: Any, title: str, order: Any, form: str = ".1f") -> Any:
    """Draw a mark with its interval for each row, one below the other."""
    import altair as alt

    shown = [alt.Tooltip("name:N"), *(alt.Tooltip(f"{n}:Q", format=form) for n in ("mean", "low", "high"))]
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        y=alt.Y("name:N", sort=order, title=None, axis=alt.Axis(labelLimit=220)), color=color
    )
    x: dict[str, Any] = {"scale": alt.Scale(zero=False), "title": title}
    return alt.layer(
        base.mark_rule().encode(x=alt.X("low:Q", **x), x2="high:Q"),
        base.mark_circle(size=60, opacity=1).encode(x=alt.X("mean:Q", **x), tooltip=shown),
    )


def _rivals(frame: pd.DataFrame, charts: list[dict[str, Any]]) -> str:
    import altair as alt

    scale = alt.Scale(domain=list(_SIDES), range=list(_SIDES.values()))
    color = alt.Color("side:N", scale=scale, legend=alt.Legend(orient="top", title=None))
    figures, rows = "", []
    for (data, hidden), own in frame.groupby(["data", "hidden"], sort=False):
        name, values = DATA[str(data)].title, []
        for row in own.to_dict("records"):
            searched = row["method"] == "searched"
            title = "FPEClassifier" if searched else METHODS[row["method"]].title.removesuffix(" (fpe)")
            reached = Interval(row["accuracy"], row["low"], row["high"])
            side = "fpe" if row["method"] in OWN else "a rival"
            ends = {"mean": 100 * reached.value, "low": 100 * reached.low, "high": 100 * reached.high}
            values.append({"name": title, "side": side, **ends})
            counts = f"{row['budget']:,}", f"{row['nonzero']:,}"
            rows.append([name, f"{hidden}", title, side, *counts, reached.text(100, 1, sign=False)])
        heading = f"{name}, {own['budget'].iloc[0]:,} non-zeros (h = {hidden})"
        made = _ranges(values, color, "accuracy, %", alt.EncodingSortField("mean", order="descending"))
        figures += _figure(heading, made, len(values), charts)
    head = ["data", "h", "method", "side", "non-zeros allowed", "used", "accuracy, % [95 %]"]
    about = "At an equal count of non-zeros: each method with its own tuning, over splits and seeds."
    return _section("rivals", "All methods against each other", about, figures, (head, rows))


def _sentences(frame: pd.DataFrame) -> str:
    names = ["family", "where", "the paper says", "we measured", "margin", "verdict"]
    rows = [[escape(str(value)) for value in row] for row in frame[names].fillna("").to_numpy()]
    about = "Each sentence of the paper that was measured, with its verdict, corrected for multiplicity."
    return _section("sentences", "All sentences of the paper", about, "", (names, rows))


def _interpretability(frame: pd.DataFrame, charts: list[dict[str, Any]]) -> str:
    import altair as alt

    keys, figures, rows = ("data", "network", "seed"), "", []
    names = list(dict.fromkeys(frame["network"]))
    for data, own in frame.groupby("data", sort=False):
        title = DATA[str(data)].title if data in DATA else "Boolean formula"
        for measure in (name for name in own if name not in keys and own[name].notna().all()):
            found = {name: mean(own.loc[own["network"] == name, measure]) for name in names}
            values = [
                {"name": name, "mean": each.value, "low": each.low, "high": each.high}
                for name, each in found.items()
            ]
            made = _ranges(values, alt.value("#1f6f8b"), measure, names, ".3f")
            figures += _figure(f"{title}: {measure}", made, len(values), charts)
            rows += [[title, measure, name, own.text(1, 3, sign=False)] for name, own in found.items()]
    head = ["data", "measure", "network", "mean over seeds [95 %]"]
    about = "Hidden layers of parents, of their children, and of controls."
    return _section("interpretability", "All measures of interpretability", about, figures, (head, rows))
