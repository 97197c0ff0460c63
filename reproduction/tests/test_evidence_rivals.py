"""Numbers and verdicts of the pages on rivals and interpretability, found a second time: by pandas."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fpe_reproduction.rivals import METHODS
from fpe_reproduction.rivals.contest import DATA
from test_evidence import EVIDENCE, agree, interval, tables

pytestmark = pytest.mark.skipif(not (EVIDENCE / "data").is_dir(), reason="the pages are not made yet")

TITLES = {own.title.removesuffix(" (fpe)"): name for name, own in METHODS.items()}
NAMES = {own.title: name for name, own in DATA.items()}
INTERPRETABLE = {"Boolean formula": "dnf", "CIFAR-100": "cifar100"}


def over_splits(values):
    """Return mean, bounds, standard error and degrees of freedom of a series by split and seed."""
    split = values.groupby(level="split")
    count, between = values.size, split.mean().var() * split.size().iloc[0]
    apart = between > split.var().mean()
    error, df = ((between / count) ** 0.5, split.ngroups - 1) if apart else (values.sem(), count - 1)
    half = stats.t.ppf(0.975, df) * error
    return values.mean(), values.mean() - half, values.mean() + half, error, df


def holm(p):
    """Return p-values corrected for their number."""
    ranked = p.sort_values()
    return (ranked * np.arange(len(p), 0, -1)).cummax().clip(upper=1).reindex(p.index)


def two_sided(mean, error, df):
    return 2 * stats.t.sf(abs(mean / error), df)


def seen(error, df):
    """Return the smallest difference that would have been seen four times in five."""
    return error * (stats.t.ppf(0.975, df) + stats.t.ppf(0.8, df))


def judged(cell, p, value, error, df, scale, words):
    """Say whether a cell has the verdict that a corrected p-value and the sign of a difference give."""
    if p < 0.05:
        assert cell.strip("*") == words[int(value > 0)], (cell, p)
    else:
        assert cell.startswith("not shown (")
        agree(cell, scale * seen(error, df))


@pytest.fixture(scope="module")
def runs():
    frame = pd.read_csv(EVIDENCE / "data" / "rivals-runs.csv")
    return frame.set_index(["data", "hidden", "method", "split", "seed"]).sort_index()


@pytest.mark.parametrize("page", ["rivals", "summary"])
def test_the_first_table_is_that_of_the_runs(page, runs):
    table = tables(page)["best"]
    data = table[""].where(table[""] != "").ffill().map(NAMES)
    cells = list(zip(data, table["h"].astype(int), strict=True))
    assert sorted(cells) == sorted((name, h) for name, own in DATA.items() for h in own.hidden)
    found = {"better": [], "which is better": []}
    validation = runs.validation.groupby(level=["data", "hidden", "method"]).mean()
    for cell, (_, row) in zip(cells, table.iterrows(), strict=True):
        own, known = runs.loc[cell], validation.loc[cell]
        mine = [name for name in known.index if METHODS[name].title.endswith("(fpe)")]
        rival, best = known.drop(mine).idxmax(), known[mine].drop("searched").idxmax()
        assert (TITLES[row["best rival"]], TITLES[row["best of fpe"]]) == (rival, best)
        agree(row["non-zeros"], own.budget.iloc[0])
        assert (own.nonzero <= own.budget).all()
        agree(row["dense %"], 100 * own.loc["dense"].accuracy.mean())
        agree(row["rival %"], 100 * own.loc[rival].accuracy.mean())
        agree(row["fpe %"], 100 * own.loc[best].accuracy.mean())
        agree(row["`FPEClassifier` %"], 100 * own.loc["searched"].accuracy.mean())
        for column, method, title in (
            ("better", best, "fpe minus rival, points"),
            ("which is better", "searched", "minus rival, points"),
        ):
            apart = over_splits(own.loc[method].accuracy - own.loc[rival].accuracy)
            agree(row[title], *(100 * value for value in apart[:3]))
            found[column].append(apart)
    for column, apart in found.items():
        p = holm(pd.Series([two_sided(value, error, df) for value, _, _, error, df in apart]))
        for cell, own_p, (value, _, _, error, df) in zip(table[column], p, apart, strict=True):
            judged(cell, own_p, value, error, df, 100, ("rival", "fpe"))


def test_counts_in_the_text_on_rivals_are_those_of_the_table():
    table, text = tables("rivals")["best"], (EVIDENCE / "rivals.md").read_text(encoding="utf-8")
    for prefix, column in (("", "better"), ("searched-", "which is better")):
        said = table[column].str.strip("*").str.replace(r" \(.*", "", regex=True).value_counts()
        for mark, word in (("fpe", "fpe"), ("rival", "rival"), ("open", "not shown")):
            assert f"<!-- {prefix}{mark} -->{said.get(word, 0)}<!--" in text


def test_measures_of_interpretability_are_those_of_the_networks():
    frame = pd.read_csv(EVIDENCE / "data" / "interpretability.csv")
    frame = frame.set_index(["data", "network", "seed"]).sort_index()
    table = tables("interpretability")["verdicts"]
    titles = {"class purity": "purity", "class selectivity": "selectivity",
              "effective classes of a neuron": "classes", "effective features per neuron": "superposition",
              "capacity per feature": "capacity",
              "overlap of codes, within − across clauses": "codes"}  # fmt: skip
    data = table[""].where(table[""] != "").ffill().map(INTERPRETABLE)
    found = []
    for name, (_, row) in zip(data, table.iterrows(), strict=True):
        own = frame.loc[name][titles[row["measure"]]]
        for column, network in (
            ("parent", "parent"),
            ("children", "children-2"),
            ("random masks", "random-2"),
        ):
            agree(row[column], own[network].mean())
        for other, network in (("the parent", "parent"), ("random masks", "random-2")):
            apart = own["children-2"] - own[network]
            agree(row[f"children − {other}"], *interval(apart))
            found.append((row[f"more interpretable than {other}?"], apart, row["better is"] == "more"))
    p = holm(pd.Series([two_sided(own.mean(), own.sem(), len(own) - 1) for _, own, _ in found]))
    for own_p, (cell, apart, more) in zip(p, found, strict=True):
        words = ("less", "more") if more else ("more", "less")
        if own_p < 0.05:
            assert cell.strip("*") == words[int(apart.mean() > 0)]
        else:
            least = seen(apart.sem(), len(apart) - 1)
            assert float(re.search(r"\((.*)\)", cell)[1]) == pytest.approx(least, rel=0.06)


def test_all_pages_of_the_summary_are_of_one_commit_and_it_is_short():
    made = [pd.read_json(Path(EVIDENCE, "data", f"{name}.json"), typ="series") for name in
            ("rivals", "paper", "interpretability")]  # fmt: skip
    (commit,) = {commit for own in made for commit in own.commits}
    text = (EVIDENCE / "summary.md").read_text(encoding="utf-8")
    assert f"<!-- commit -->{commit}<!-- end commit -->" in text
    assert len(text.encode()) <= 8192
    assert len(tables("summary")["claims"]) == 12
