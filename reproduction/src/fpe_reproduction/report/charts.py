"""The figures of an experiment as Vega-Lite charts: interactive in a page, or drawn into one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fpe._util.files import write_atomically
from fpe_reproduction.experiments.networks import label

_COLORS = {
    "dense": "#6b6b6b",
    "clause": "#1f6f8b",
    "random": "#d1495b",
    "formula": "#222222",
    "gram": "#1f6f8b",
    "restart": "#b0b0b0",
    "columns": "#e6972b",
    "shared": "#8a6fb0",
    "columns-activation": "#2a9d6f",
    "columns-gradient": "#355c9a",
    "random-first": "#c45ab3",
    "columns-first": "#a0522d",
}
#: For other kinds, in the order of a figure.
_OTHERS = ("#2a9d6f", "#8a6fb0", "#e6972b", "#1f6f8b", "#a0522d", "#c45ab3", "#5b7f2b", "#355c9a", "#111111")


def colors(kinds: Sequence[str]) -> dict[str, str]:
    """Give each kind of a figure a color: its own, or that of the same kind at α = 2, else an unused one."""
    given: dict[str, str] = {}
    for kind in kinds:
        color = _COLORS.get(kind) or _COLORS.get(kind.partition("-x")[0])
        if color is not None and color not in given.values():
            given[kind] = color
    unused = iter([color for color in _OTHERS if color not in given.values()])
    return {kind: given.get(kind) or next(unused) for kind in kinds}


def chart(figure: dict[str, Any]) -> dict[str, Any]:
    """Return the Vega-Lite specification of a stored figure, as wide as its container, with its data."""
    made = _made(figure).properties(width="container", height=300).configure_view(stroke=None)
    specification: dict[str, Any] = made.to_dict()
    return specification


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw all figures of a stored result into one picture, PNG or SVG by the ending of `path`.

    Raises
    ------
    WriteError
        If the file cannot be written.
    """
    import altair as alt
    import vl_convert

    charts = [_made(f).properties(width=420, height=280, title=f["title"]) for f in result["figures"]]
    title = alt.Title(f"{result['question']}  ({result['where']})", anchor="middle")
    whole = alt.concat(*charts, columns=2, title=title).resolve_scale(color="independent", y="independent")
    specification = whole.configure_view(stroke=None).to_json()
    if path.suffix == ".svg":
        picture = vl_convert.vegalite_to_svg(specification).encode()
    else:
        picture = vl_convert.vegalite_to_png(specification, scale=1.5)
    write_atomically(path, lambda file: file.write_bytes(picture))


def _made(figure: dict[str, Any]) -> Any:
    kinds: dict[str, Callable[[dict[str, Any]], Any]] = {
        "lines": _lines,
        "points": _points,
        "matrix": _matrix,
    }
    return kinds[figure["type"]](figure)


def _color(kinds: Sequence[str]) -> Any:
    import altair as alt

    scale = alt.Scale(domain=[label(k) for k in kinds], range=list(colors(kinds).values()))
    legend = alt.Legend(orient="top", title=None, symbolOpacity=1, columns=2, labelLimit=300)
    return alt.Color("network:N", scale=scale, legend=legend)


def _lines(figure: dict[str, Any]) -> Any:
    import altair as alt

    rows = [
        {"network": label(line["kind"]), "x": x, "mean": m, "low": low, "high": high}
        for line in figure["lines"]
        for x, m, low, high in zip(line["x"], line["means"], line["low"], line["high"], strict=True)
    ]
    scale = alt.Scale(type="log", base=2) if figure.get("scale", "log") == "log" else alt.Scale()
    axis = alt.Axis(values=figure["lines"][0]["x"], grid=False)
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("x:Q", scale=scale, axis=axis, title=figure["x"]),
        color=_color([line["kind"] for line in figure["lines"]]),
    )
    shown = [alt.Tooltip("network:N"), alt.Tooltip("x:Q", title=figure["x"])]
    shown += [alt.Tooltip(f"{name}:Q", format="+.3f") for name in ("mean", "low", "high")]
    y: dict[str, Any] = {"scale": alt.Scale(zero=False), "title": figure["y"]}
    layers = [
        base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", **y), y2="high:Q"),
        base.mark_line().encode(y=alt.Y("mean:Q", **y)),
        base.mark_circle(size=90, opacity=1).encode(y=alt.Y("mean:Q", **y), tooltip=shown),
    ]
    if figure["level"] is not None:
        level = alt.Chart(alt.Data(values=[{"level": figure["level"]}]))
        layers.insert(0, level.mark_rule(strokeDash=[4, 4]).encode(y="level:Q"))
    return alt.layer(*layers)


def _points(figure: dict[str, Any]) -> Any:
    import altair as alt

    rows, ends = [], []
    for kind, points in figure["points"].items():
        x, y = np.array(points).T
        rows += [{"network": label(kind), "x": a, "y": b} for a, b in points]
        fit = np.poly1d(np.polyfit(x, y, 1))
        ends += [{"network": label(kind), "x": float(at), "y": float(fit(at))} for at in (x.min(), x.max())]
    encode: dict[str, Any] = {
        "x": alt.X("x:Q", scale=alt.Scale(zero=False), title=figure["x"]),
        "y": alt.Y("y:Q", scale=alt.Scale(zero=False), title=figure["y"]),
        "color": _color(list(figure["points"])),
        "tooltip": [
            alt.Tooltip("network:N"),
            alt.Tooltip("x:Q", format=".3f"),
            alt.Tooltip("y:Q", format="+.2f"),
        ],
    }
    dots = alt.Chart(alt.Data(values=rows)).mark_circle(size=45, opacity=0.6).encode(**encode)
    return dots + alt.Chart(alt.Data(values=ends)).mark_line().encode(**encode)


def _matrix(figure: dict[str, Any]) -> Any:
    import altair as alt

    rows = [
        {"row": row, "column": column, "value": value}
        for row, values in zip(figure["rows"], figure["values"], strict=True)
        for column, value in zip(figure["columns"], values, strict=True)
    ]
    most = max(max(abs(r["value"]) for r in rows), 1e-12)
    scale = alt.Scale(scheme="redblue", reverse=True, domain=[-most, most])
    axes: dict[str, Any] = {
        name: {"sort": figure[f"{name}s"], "title": figure[side], "axis": alt.Axis(labelOverlap=True)}
        for name, side in (("column", "x"), ("row", "y"))
    }
    encode: dict[str, Any] = {"x": alt.X("column:N", **axes["column"]), "y": alt.Y("row:N", **axes["row"])}
    data = alt.Chart(alt.Data(values=rows)).encode(**encode)
    shown = [alt.Tooltip("row:N"), alt.Tooltip("column:N"), alt.Tooltip("value:Q", format="+.3f")]
    color = alt.Color("value:Q", scale=scale, legend=alt.Legend(title=None))
    layers = [data.mark_rect().encode(color=color, tooltip=shown)]
    if len(rows) <= 64:
        ink = alt.condition(f"abs(datum.value) > {0.6 * most}", alt.value("white"), alt.value("black"))
        layers.append(data.mark_text(fontSize=10).encode(text=alt.Text("value:Q", format="+.1f"), color=ink))
    for every, name, side, make in zip(figure["every"], ("row", "column"), "yx", (alt.Y, alt.X), strict=True):
        values = [{name: each} for each in figure[f"{name}s"][every::every]] if every else []
        if values:
            rule = alt.Chart(alt.Data(values=values)).mark_rule(strokeWidth=0.6)
            layers.append(rule.encode(**{side: make(f"{name}:N", bandPosition=0, **axes[name])}))
    return alt.layer(*layers)
