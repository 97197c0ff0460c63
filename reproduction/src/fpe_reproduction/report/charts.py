"""The figures of an experiment as interactive charts, by Altair."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpe_reproduction.experiments.networks import label
from fpe_reproduction.report.kinds import colours


def chart(figure: dict[str, Any]) -> dict[str, Any]:
    """Make a Vega-Lite specification of a figure; as wide as what it stands in.

    Parameters
    ----------
    figure : dict
        One of the ``figures`` of a stored result.

    Returns
    -------
    dict
        The specification, its data inside.
    """
    made = {"lines": _lines, "points": _points, "matrix": _matrix}[figure["type"]](figure)
    made = made.properties(width="container", height=300).configure_view(stroke=None)
    specification: dict[str, Any] = made.to_dict()
    return specification


def _colour(alt: Any, kinds: list[str]) -> Any:
    scale = alt.Scale(domain=[label(k) for k in kinds], range=list(colours(kinds).values()))
    return alt.Color("network:N", scale=scale, legend=alt.Legend(orient="top", title=None, symbolOpacity=1))


def _lines(figure: dict[str, Any]) -> Any:
    import altair as alt

    rows = [
        {"network": label(line["kind"]), "x": x, "mean": m, "low": low, "high": high}
        for line in figure["lines"]
        for x, m, low, high in zip(line["x"], line["means"], line["low"], line["high"], strict=True)
    ]
    ticks = alt.Axis(values=figure["lines"][0]["x"], grid=False)
    log = figure.get("scale", "log") == "log"
    scale = alt.Scale(type="log", base=2) if log else alt.Scale()
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("x:Q", scale=scale, axis=ticks, title=figure["x"]),
        color=_colour(alt, [line["kind"] for line in figure["lines"]]),
    )
    shown = [
        alt.Tooltip("network:N"),
        alt.Tooltip("x:Q", title=figure["x"]),
        *(alt.Tooltip(f"{name}:Q", format="+.3f") for name in ("mean", "low", "high")),
    ]
    y = {"scale": alt.Scale(zero=False), "title": figure["y"]}
    band = base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", **y), y2="high:Q")
    line = base.mark_line().encode(y=alt.Y("mean:Q", **y))
    dots = base.mark_circle(size=90, opacity=1).encode(y=alt.Y("mean:Q", **y), tooltip=shown)
    layers = [band, line, dots]
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
        line = np.polyfit(x, y, 1)
        ends += [
            {"network": label(kind), "x": float(at), "y": float(np.polyval(line, at))}
            for at in (x.min(), x.max())
        ]
    encode = {
        "x": alt.X("x:Q", scale=alt.Scale(zero=False), title=figure["x"]),
        "y": alt.Y("y:Q", scale=alt.Scale(zero=False), title=figure["y"]),
        "color": _colour(alt, list(figure["points"])),
    }
    shown = [
        alt.Tooltip("network:N"),
        alt.Tooltip("x:Q", title=figure["x"], format=".3f"),
        alt.Tooltip("y:Q", title=figure["y"], format="+.2f"),
    ]
    dots = alt.Chart(alt.Data(values=rows)).mark_circle(size=45, opacity=0.6).encode(**encode, tooltip=shown)
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
    axis = alt.Axis(labelOverlap=True)
    x = {"sort": figure["columns"], "title": figure["x"], "axis": axis}
    y = {"sort": figure["rows"], "title": figure["y"], "axis": axis}
    cells = (
        alt.Chart(alt.Data(values=rows))
        .mark_rect()
        .encode(
            x=alt.X("column:N", **x),
            y=alt.Y("row:N", **y),
            color=alt.Color("value:Q", scale=scale, legend=alt.Legend(title=None)),
            tooltip=[
                alt.Tooltip("row:N", title=figure["y"]),
                alt.Tooltip("column:N", title=figure["x"]),
                alt.Tooltip("value:Q", format="+.3f"),
            ],
        )
    )
    every_row, every_column = figure["every"]
    across = [{"row": name} for name in figure["rows"][every_row::every_row]] if every_row else []
    down = (
        [{"column": name} for name in figure["columns"][every_column::every_column]] if every_column else []
    )
    lines = [
        alt.Chart(alt.Data(values=values)).mark_rule(strokeWidth=0.6).encode(**{channel: encoding})
        for values, channel, encoding in (
            (across, "y", alt.Y("row:N", bandPosition=0, **y)),
            (down, "x", alt.X("column:N", bandPosition=0, **x)),
        )
        if values
    ]
    return alt.layer(cells, *lines)
