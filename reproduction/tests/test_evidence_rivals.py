"""Numbers of the pages on rivals and interpretability and of the summary, found a second time: by pandas."""

import inspect
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from evidence import (
    agree,
    altered,
    holm,
    interval,
    left_out,
    marked,
    numbers,
    prose,
    read,
    seen,
    tables,
    two_sided,
)
from fpe_reproduction.rivals import METHODS
from fpe_reproduction.rivals.contest import DATA, RATES
from whole_by_pandas import KINDS, OF_TEXTS, best, curve_of, log_size, stored_runs

TITLES = {own.title.removesuffix(" (fpe)"): name for name, own in METHODS.items()}
NAMES = {own.title: name for name, own in DATA.items()}
INTERPRETABLE = {"Boolean formula": "dnf", "CIFAR-100": "cifar100"}


def over_splits(settings, shares):
    """Return mean, bounds, standard error and degrees of freedom of each series by split and seed."""
    split = [values.groupby(level="split") for values in settings]
    between = pd.Series([own.mean().var() * own.size().iloc[0] for own in split])
    within = pd.Series([own.var().mean() for own in split])
    ratio = (between / within)[within > 0].mean()
    expected = within * max(1, ratio if ratio > 0 else 1)
    seeds = sum(split[0].size() - 1)
    df = 1 / (1 / (len(split) * (split[0].ngroups - 1)) + 1 / seeds)
    few = split[0].ngroups - 1
    found = []
    for values, wide, usual, least, share in zip(settings, between, expected, within, shares, strict=True):
        own = few if wide > usual * stats.f.isf(0.2, few, df) else df
        beyond = (max(wide, usual) - least) * (1 + (few + 1) * share)
        error = ((least + beyond) / values.size) ** 0.5
        half = stats.t.ppf(0.975, own) * error
        found.append((values.mean(), values.mean() - half, values.mean() + half, error, own))
    return found


def by_split(runs):
    """Return mean and bounds of the accuracy of each method of each setting."""
    keys = ["data", "hidden", "method"]
    split = runs.accuracy.groupby(level=[*keys, "split"])
    within, means = split.var().groupby(keys).mean(), split.mean().groupby(keys)
    splits, seeds = means.size(), split.size().groupby(keys).first()
    beyond = (means.var() * seeds - within).clip(lower=0)
    whole = within + beyond * (1 + splits * runs.test_share.groupby(keys).first())
    half = stats.t.ppf(0.975, splits - 1) * (whole / splits / seeds) ** 0.5
    return pd.DataFrame({"accuracy": means.mean(), "low": means.mean() - half, "high": means.mean() + half})


def judged(cell, p, value, error, df, scale, words):
    """Say whether a cell has the verdict that a corrected p-value and the sign of a difference give."""
    if p < 0.05:
        assert cell.strip("*") == words[int(value > 0)], (cell, p)
    else:
        assert cell.startswith("not shown (")
        agree(cell, scale * seen(error, df))


def runs_of(evidence):
    """Return the runs of rivals by data, width, method, split and seed."""
    frame = pd.read_csv(evidence / "data" / "rivals-runs.csv")
    return frame.set_index(["data", "hidden", "method", "split", "seed"]).sort_index()


@pytest.fixture(scope="module")
def runs(evidence):
    return runs_of(evidence)


@pytest.mark.parametrize("page", ["rivals", "summary"])
def test_the_first_table_is_that_of_the_runs(page, evidence, runs):
    table = tables(page, evidence)["best"]
    data = table[""].where(table[""] != "").ffill().map(NAMES)
    cells = list(zip(data, table["h"].astype(int), strict=True))
    assert sorted(cells) == sorted((name, h) for name, own in DATA.items() for h in own.hidden)
    found = {"fpe minus rival, points": [], "minus rival, points": []}
    shares = [runs.loc[cell].test_share.iloc[0] for cell in cells]
    for cell, (_, row) in zip(cells, table.iterrows(), strict=True):
        own = runs.loc[cell]
        known = own.validation.groupby(level=["split", "method"]).first().unstack("method")
        mine = [name for name in known if METHODS[name].title.endswith("(fpe)")]
        rivals, best = known.drop(columns=mine).idxmax(axis=1), known[mine].idxmax(axis=1)
        taken = {}
        for column, chosen in (("best rival, %", rivals), ("best of fpe, %", best)):
            titles, _, percent = row[column].partition("<br>")
            assert {TITLES[title] for title in titles.split(" / ")} == set(chosen)
            assert TITLES[titles.split(" / ")[0]] in chosen.mode().tolist()
            each = [own.loc[method].accuracy.loc[[split]] for split, method in chosen.items()]
            taken[column] = pd.concat(each)
            agree(percent, 100 * taken[column].mean())
        agree(row["non-zeros"], own.budget.iloc[0])
        assert (own.nonzero <= own.budget).all()
        agree(row["dense %"], 100 * own.loc["dense"].accuracy.mean())
        agree(row["`FPEClassifier` %"], 100 * own.loc["searched"].accuracy.mean())
        sides = taken["best of fpe, %"], own.loc["searched"].accuracy
        for column, side in zip(found, sides, strict=True):
            difference = side - taken["best rival, %"]
            found[column].append((row[column].partition("]<br>")[0], difference))
    for column, rows in found.items():
        apart = over_splits([own for _, own in rows], shares)
        for (cell, _), own in zip(rows, apart, strict=True):
            agree(cell, *(100 * value for value in own[:3]))
        p = holm(pd.Series([two_sided(value, error, df) for value, _, _, error, df in apart]))
        for cell, own_p, (value, _, _, error, df) in zip(verdicts(table[column]), p, apart, strict=True):
            judged(cell, own_p, value, error, df, 100, ("rival", "fpe"))


def verdicts(cells):
    """Return what stands behind the intervals of a column."""
    return cells.str.partition("]<br>")[2]


def counted(cells):
    """Count the verdicts of a column: better, worse, not shown."""
    said = verdicts(cells).str.strip("*").str.replace(r" \(.*", "", regex=True).value_counts()
    return [f"{said.get(word, 0)}" for word in ("fpe", "rival", "not shown")]


def test_counts_in_the_text_on_rivals_are_those_of_the_table_and_the_runs(evidence, runs):
    table, said = tables("rivals", evidence)["best"], marked(read("rivals", evidence))
    for prefix, column in (("", "fpe minus rival, points"), ("searched-", "minus rival, points")):
        assert [said[f"{prefix}{mark}"] for mark in ("fpe", "rival", "open")] == counted(table[column])
    assert said["rows"] == f"{len(table)}"
    assert said["rates"] == f"{len(RATES)}"
    rates = runs[runs.index.get_level_values("method") != "searched"].lr.droplevel("seed")
    rates = rates[~rates.index.duplicated()]
    assert said["cases"] == f"{len(rates)}"
    assert said["ends"] == f"{((rates <= 2e-4) | (rates >= 0.1)).sum()}"
    for mark, level in (("methods", "method"), ("splits", "split"), ("seeds", "seed")):
        assert said[mark] == f"{runs.index.get_level_values(level).nunique()}"


def test_the_stored_table_of_all_methods_is_that_of_the_runs(evidence, runs):
    table = pd.read_csv(evidence / "data" / "rivals-methods.csv").set_index(["data", "hidden", "method"])
    assert len(table) == len(runs.groupby(level=["data", "hidden", "method"]).size())
    found = by_split(runs)
    for cell, row in table.iterrows():
        own = runs.loc[cell]
        assert row[["accuracy", "low", "high"]].tolist() == pytest.approx(found.loc[cell].tolist(), abs=1e-5)
        assert (row["nonzero"], row["budget"]) == (own.nonzero.max(), own.budget.iloc[0])


def test_measures_of_interpretability_are_those_of_the_networks(evidence):
    frame = pd.read_csv(evidence / "data" / "interpretability.csv")
    frame = frame.set_index(["data", "network", "seed"]).sort_index()
    table = tables("interpretability", evidence)["verdicts"]
    titles = {"class purity": "purity", "class selectivity": "selectivity",
              "effective classes of a neuron": "classes", "effective features per neuron": "superposition",
              "capacity per feature": "capacity",
              "overlap of codes, within − across clauses": "codes"}  # fmt: skip
    data = table[""].where(table[""] != "").ffill().map(INTERPRETABLE)
    found = []
    for name, (_, row) in zip(data, table.iterrows(), strict=True):
        own = frame.loc[name][titles[row["measure"]]]
        assert row["better is"] == ("less" if row["measure"].startswith("effective") else "more")
        for column, network in (
            ("parent", "parent"),
            ("children", "children-2"),
            ("random masks", "random-2"),
        ):
            agree(row[column], own[network].mean())
        for other, network in (("the parent", "parent"), ("random masks", "random-2")):
            apart = own["children-2"] - own[network]
            difference, _, cell = row[f"children − {other}: more interpretable?"].partition("<br>")
            agree(difference, *interval(apart))
            found.append((cell, apart, row["better is"] == "more"))
    p = holm(pd.Series([two_sided(own.mean(), own.sem(), len(own) - 1) for _, own, _ in found]))
    for own_p, (cell, apart, more) in zip(p, found, strict=True):
        words = ("less", "more") if more else ("more", "less")
        if own_p < 0.05:
            assert cell.strip("*") == words[int(apart.mean() > 0)]
        else:
            assert cell.startswith("not shown (")
            agree(cell, seen(apart.sem(), len(apart) - 1))
    said = marked(read("interpretability", evidence))
    assert said["measures"] == f"{len(table)}"
    assert said["seeds"] == f"{frame.index.get_level_values('seed').nunique()}"
    for other, network in (("the parent", "parent"), ("random masks", "random-2")):
        cells = table[f"children − {other}: more interpretable?"].str.partition("<br>")[2].str.strip("*")
        for word in ("more", "less"):
            assert said[f"{word}-{network}"] == f"{(cells == word).sum()}"


def against(runs, method, other, data=tuple(DATA)):
    """Return the least and largest difference, in how many settings either sign is shown, of how many."""
    cells = [cell for cell in runs.index.droplevel(["method", "split", "seed"]).unique() if cell[0] in data]
    settings = [runs.loc[cell].accuracy for cell in cells]
    shares = [runs.loc[cell].test_share.iloc[0] for cell in cells]
    apart = over_splits([own.loc[method] - own.loc[other] for own in settings], shares)
    p = holm(pd.Series([two_sided(value, error, df) for value, _, _, error, df in apart]))
    means = pd.Series([100 * own[0] for own in apart])
    return means.min(), means.max(), (means[p < 0.05] > 0).sum(), (means[p < 0.05] < 0).sum(), len(apart)


def test_the_claims_of_the_summary_are_those_of_the_other_pages(evidence, runs):
    claims = tables("summary", evidence)["claims"]
    assert len(claims) == 12
    answers, tabular = (
        claims.set_index("question")["answer"],
        [name for name, own in DATA.items() if own.table],
    )
    for question, *compared in (
        ("`FPEClassifier(budget=N)` − a dense network of N", "searched", "dense"),
        ("On embeddings: pruned gradually − softmax", "gradual", "linear", ("banking77", "cifar100")),
        ("Expanded once, as in the paper − dense", "one-shot", "dense"),
        ("Expanded once − dense with fewer inputs", "one-shot", "fewer-inputs"),
        ("Pruned gradually by fpe's score − by magnitude", "gradual", "by-magnitude"),
        ("Rewired as by fpe − RigL", "moved", "rigl"),
        ("On tables: `FPEClassifier` − trees of four bytes a weight", "searched", "trees", tabular),
    ):
        assert re.sub(r"[-+.\d]+", "#", answers[question]) == "# to #; above in #, below in # of #"
        agree(answers[question], *against(runs, *compared))
    best_of = tables("summary", evidence)["best"]
    for question, column in (
        ("`FPEClassifier(budget=N)` against the best rival", "minus rival, points"),
        ("The best of fpe against the best rival", "fpe minus rival, points"),
    ):
        assert answers[question] == "better in {}, worse in {}, not shown in {}".format(
            *counted(best_of[column])
        )
    names = ("agrees", "in sign only", "contradicted", "not shown")
    said = (
        pd.read_csv(evidence / "data" / "paper-sentences.csv")["verdict"]
        .value_counts()
        .reindex(names, fill_value=0)
    )
    counts = ", ".join(f"{count} {name}" for name, count in said.items())
    assert answers["Sentences of the paper"] == f"{said.sum()}: {counts}"
    own = marked(read("interpretability", evidence))
    assert answers["Are children more interpretable?"] == (
        f"than the parent: more in {own['more-parent']}, less in {own['less-parent']}; than random masks: "
        f"more in {own['more-random-2']}, less in {own['less-random-2']}, of {own['measures']} measures"
    )
    texts = best(stored_runs(), OF_TEXTS)
    cells = answers["A GPT-2 of 75 % zeros equals a dense one of"].removesuffix(" steps)").split(" steps), ")
    assert len(cells) >= 2
    for cell in cells:
        size, masks, steps = re.fullmatch(r"(.*) × \((.*), ([\d,]+)", cell).groups()
        length, rest = divmod(int(steps.replace(",", "")), 1500)
        suffix = f"-characters-{length}"
        assert rest == 0
        curve, loss = curve_of(texts, suffix), texts.loc[f"{KINDS[masks]}-0.75{suffix}"].test
        found = left_out(lambda s, own=loss, of=curve: log_size(of.loc[s].mean(), own[s].mean()), range(5))
        agree(size, *(np.exp(found) / curve.columns[0]))


def test_all_pages_of_the_summary_are_of_one_commit_and_it_is_short(evidence):
    names = ("rivals", "paper", "interpretability")
    made = [json.loads((evidence / "data" / f"{name}.json").read_text(encoding="utf-8")) for name in names]
    (commit,) = {commit for own in made for commit in own["commits"]}
    text = read("summary", evidence)
    assert marked(text)["commit"] == commit
    assert marked(text)["hours"] == f"{sum(own['hours'] for own in made) / 2:.1f}"
    assert len(text.encode()) <= 8192


@pytest.mark.parametrize("page", ["rivals", "interpretability"])
def test_what_made_the_networks_is_what_is_stored(page, evidence):
    data = json.loads((evidence / "data" / f"{page}.json").read_text(encoding="utf-8"))
    count = {
        "rivals": f"{len(runs_of(evidence)):,} networks, {data['hours']:.0f} hours of one core;",
        "interpretability": f"{data['hours']:.1f} hours of one core.",
    }
    versions = f"torch {data['provenance']['torch']}, {data['provenance']['machine']}."
    commits = ", ".join(data["commits"])
    assert marked(read(page, evidence))["made"] == f"{count[page]} {versions} Trained with fpe at {commits}."


#: Numbers of the text that are no results: neurons, data and years.
SAID = {
    "summary": set(),
    "rivals": {"0.2", "0.0002", "0.1", "2003", "2017"},
    "interpretability": {"32", "100", "2025"},
}


@pytest.mark.parametrize("page", SAID)
def test_each_number_of_the_text_has_a_source(page, evidence):
    assert set(numbers(prose(read(page, evidence)))) <= SAID[page]


@pytest.mark.parametrize(
    ("page", "mark", "words", "check"),
    [
        ("rivals", "best", ("not shown (1.0)", "**fpe**"), test_the_first_table_is_that_of_the_runs),
        ("summary", "claims", (), test_the_claims_of_the_summary_are_those_of_the_other_pages),
        (
            "interpretability",
            "verdicts",
            ("**more**", "**less**"),
            test_measures_of_interpretability_are_those_of_the_networks,
        ),
    ],
)
def test_what_is_altered_on_a_page_is_found(page, mark, words, check, made_up_pages, tmp_path):
    shutil.copytree(made_up_pages, tmp_path, dirs_exist_ok=True)
    known = {"page": page, "evidence": tmp_path, "runs": runs_of(made_up_pages)}
    known = {name: known[name] for name in inspect.signature(check).parameters}
    for wrong in altered(read(page, made_up_pages), mark, 25, words):
        (tmp_path / f"{page}.md").write_text(wrong, encoding="utf-8")
        with pytest.raises((AssertionError, KeyError, TypeError)):  # the latter for names of rows
            check(**known)


@pytest.mark.parametrize(
    ("name", "column", "check"),
    [
        (
            "rivals-runs",
            "accuracy",
            lambda folder: test_the_stored_table_of_all_methods_is_that_of_the_runs(folder, runs_of(folder)),
        ),
        ("interpretability", "purity", test_measures_of_interpretability_are_those_of_the_networks),
    ],
)
def test_a_stored_value_that_is_altered_is_found(name, column, check, made_up_pages, tmp_path):
    shutil.copytree(made_up_pages, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "data" / f"{name}.csv"
    frame = pd.read_csv(path)
    frame.loc[0, column] += 0.2
    frame.to_csv(path, index=False)
    with pytest.raises(AssertionError):
        check(tmp_path)
