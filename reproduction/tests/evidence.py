"""What tests of docs/evidence share: tables and numbers of a page, and intervals by pandas and scipy."""

import io
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence"
PROGRAMS = Path(__file__).parents[1] / "pages"
NUMBER = re.compile(r"(?<![\w.])[-+−]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


@contextmanager
def page_programs():
    """Let the modules that make pages be imported; they are no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PROGRAMS)
        for name in {path.stem for path in PROGRAMS.glob("*.py")} & set(sys.modules):
            patch.delitem(sys.modules, name)  # the tests have a module of the same name
        yield patch
        for module in list(sys.modules.values()):
            if str(getattr(module, "__file__", "")).startswith(str(PROGRAMS)):
                del sys.modules[module.__name__]


def read(page, folder=EVIDENCE):
    """Return the text of a page."""
    return (folder / f"{page}.md").read_text(encoding="utf-8")


def marked(text):
    """Return what stands between the marks of a page."""
    return {
        mark: body.strip() for mark, body in re.findall(r"(?s)<!-- ([\w-]+) -->(.*?)<!-- end \1 -->", text)
    }


def tables(page, folder=EVIDENCE):
    """Return the tables of a page by the mark that they stand in, with cells as text."""
    return tables_of(read(page, folder))


def tables_of(text):
    """Return the tables of the text of a page."""
    found = {}
    for mark, body in marked(text).items():
        if body.startswith("|"):
            rows = body.replace(r"\|", "¦").splitlines()
            del rows[1]
            own = io.StringIO("\n".join(row.strip("|") for row in rows))
            found[mark] = pd.read_csv(own, sep="|", dtype=str, keep_default_na=False).map(str.strip)
            found[mark].columns = found[mark].columns.str.strip()
    return found


def altered(text, mark, every, words=()):
    """Yield the text of a page with a wrong digit in the rows of a table, or with another of some words."""
    begin = text.index("| ---", text.index(f"<!-- {mark} -->"))
    rows = text[begin : text.index(f"<!-- end {mark} -->")]
    wrong = [(own, f"{(int(own[0]) + 5) % 10}") for own in re.finditer(r"\d", rows)]
    if words:
        wrong += [
            (own, next(w for w in words if w != own[0]))
            for own in re.finditer("|".join(map(re.escape, words)), rows)
        ]
    for place, other in wrong[::every]:
        yield text[: begin + place.start()] + other + text[begin + place.end() :]


def agree(cell, *values):
    """Say whether a cell has these numbers, rounded as the cell is."""
    texts = [text.replace(",", "").replace("−", "-") for text in re.findall(NUMBER, cell)]
    assert len(texts) == len(values), (cell, values)
    for text, value in zip(texts, values, strict=True):
        digits = len(text.partition(".")[2])
        assert abs(float(text) - value) <= 0.5001 * 10**-digits, (cell, values)


def interval(values):
    """Return the mean of a series and the bounds of its interval by Student's t."""
    mean, half = values.mean(), stats.t.ppf(0.975, len(values) - 1) * values.sem()
    return mean, mean - half, mean + half


def left_out(estimate, seeds):
    """Return an estimate and its interval by the jackknife."""
    value = estimate(seeds)
    each = pd.Series([estimate([s for s in seeds if s != one]) for one in seeds])
    half = stats.t.ppf(0.975, len(seeds) - 1) * np.sqrt((len(seeds) - 1) ** 2 / len(seeds)) * each.std()
    return value, value - half, value + half


def prose(text):
    """Return the text of a page without tables, what stands between marks, code, and where links lead."""
    for what in (r"(?s)<!-- ([\w-]+) -->.*?<!-- end \1 -->", r"(?s)```.*?```", r"`[^`]*`"):
        text = re.sub(what, "", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def numbers(text):
    """Return the numbers of a text, but for whole ones of one digit without a percent sign."""
    found = re.findall(NUMBER.pattern + r"(?: %)?", text)
    return [own.strip(", ") for own in found if not re.fullmatch(r"\d,?", own)]


def holm(p):
    """Return p-values corrected for their number."""
    ranked = p.sort_values()
    return (ranked * np.arange(len(p), 0, -1)).cummax().clip(upper=1).reindex(p.index)


def two_sided(mean, error, df):
    return 2 * stats.t.sf(abs(mean / error), df)


def seen(error, df):
    """Return the smallest difference that would have been seen four times in five."""
    return error * (stats.t.ppf(0.975, df) + stats.t.ppf(0.8, df))
