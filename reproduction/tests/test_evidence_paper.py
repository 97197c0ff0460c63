"""Numbers and verdicts of the pages that judge the paper, found a second time: by pandas and scipy."""

import functools
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import made_up
from evidence import EVIDENCE, agree, altered, holm, marked, numbers, prose, read, seen, tables_of
from paper_by_pandas import TITLES, formulas, networks, on_data, one_layer, simulated

PAGES = {
    "case study": "case-study", "neurons and clauses": "neurons-and-clauses", "interference": "interference",
    "interference and accuracy": "interference-and-accuracy",
    "theory": "theory", "real data": "real-data", "detail": "cifar-100", "depth": "depth",
    "dynamic masks and 2:4": "dynamic-and-two-four", "later edition": "later-edition",
}  # fmt: skip
CLASSES = {"fashion-mnist": 10, "banking77": 77, "cifar100": 100}
SECTIONS = {
    "case-study": {"3.1"}, "neurons-and-clauses": {"3.2, figure 3"}, "interference": {"3.2, A.6, figure 4"},
    "interference-and-accuracy": {"3.2, figure 4", "ours"},
    "theory": {"2.5, A.5"}, "real-data": {"3.3, figure 5"}, "cifar-100": {"3.4, figure 6"},
    "depth": {"A.7, table A3"}, "dynamic-and-two-four": {"A.7", "A.7, table A5"},
    "later-edition": {"the later edition"},
}  # fmt: skip
HEAD = ["the paper says", "where", "we measured [95 %]", "margin", "verdict", "could have been seen"]
VERDICTS = ["agrees", "in sign only", "contradicted", "not shown"]
#: Numbers of the text that are no results: how sentences are judged, and what is measured.
SAID = {
    "cifar-100": {"100", "512", "25", "0.01"}, "depth": {"100"}, "dynamic-and-two-four": {"100", "+4.5 %"},
    "real-data": {"77", "32", "100", "10", "25"}, "theory": {"20,000", "128"},
    "paper": {"0.025", "2510.04500"},
}  # fmt: skip
ESTIMATE = re.compile(r"(.+): ([-+][\d.]+) \[([-+][\d.]+), ([-+][\d.]+)\](.*)")


def p_values(estimate, low, high):
    """Return the p-values of "it lies outside of the margin" and of "it lies inside"."""
    value, below, above, df = estimate

    def tail(distance, half):
        t = distance / half * stats.t.ppf(0.975, df) if half else math.copysign(math.inf, distance or -1)
        return float(stats.t.sf(t, df))

    down, up = value - below, above - value
    outside = max(tail(value - low, down), tail(high - value, up))
    return outside, min(tail(low - value, up), tail(value - high, down))


@functools.cache
def judged(folder):
    """Return all sentences of stored data with p-values, corrected for the number of a page, and verdicts."""
    frame = networks(folder / "data" / "paper-networks.csv")
    drawn, rows = 20_000 if folder == EVIDENCE else made_up.SIMULATED, []
    for said in (*formulas(frame), *simulated(drawn), *on_data(frame)):
        p = pd.DataFrame([p_values(own, *said.margin) for own in said.estimates.values()], said.estimates)
        p = p.sort_values(0, kind="stable")[: len(p) - said.exceptions]
        kept = [said.estimates[name] for name in p.index]
        errors = [(high - low) / 2 / stats.t.ppf(0.975, df) for _, low, high, df in kept]
        p_all = min(1, (1 + said.exceptions) * p[0].max()), min(1, len(p) * p[1].min())
        least = max(seen(e, own[3]) for e, own in zip(errors, kept, strict=True))
        rows.append({**said._asdict(), "kept": p[0], "p": p_all[0], "p_false": p_all[1], "least": least})
    found = pd.DataFrame(rows).set_index("text")
    for key in ("p", "p_false"):
        found[key] = found.groupby("page")[key].transform(holm)
    found["verdict"] = [verdict(row) for _, row in found.iterrows()]
    return found


def verdict(row):
    if row["p"] < 0.025:
        ends = [(low, high) for _, low, high, _ in row["estimates"].values()]
        low, high = ends[0][:2]
        in_size = row["size"] is None or np.isnan(row["size"])
        in_size = in_size or (low <= row["size"] <= high and high - low <= abs(row["size"]))
        return "agrees" if in_size else "in sign only"
    return "contradicted" if row["p_false"] < 0.025 else "not shown"


@pytest.fixture(scope="module")
def found(evidence):
    return judged(evidence)


def compare(page, text, found):
    """Say whether the text of a page has the sentences, numbers and verdicts that were found."""
    table, own = tables_of(text)["sentences"], found[found["page"] == page]
    assert list(table) == HEAD
    assert sorted(table["the paper says"]) == sorted(own.index)
    for _, row in table.iterrows():
        known = own.loc[row["the paper says"]]
        scale, unit = known["form"]
        compare_estimates(row["we measured [95 %]"], known, scale, unit)
        compare_margin(
            row["margin"].removesuffix(", but one" * known["exceptions"]), known["margin"], scale, unit
        )
        assert row["verdict"].strip("*") == known["verdict"], row["the paper says"]
        assert row["where"] in SECTIONS[page]
        if known["verdict"] == "not shown":
            agree(row["could have been seen"], scale * known["least"])
        else:
            assert row["could have been seen"] == ""
    said, own = marked(text), own["verdict"].value_counts()
    for mark, name in zip(("agree", "sign", "contradicted", "open"), VERDICTS, strict=True):
        assert said[mark] == f"{own.get(name, 0)}"
    assert said["all"] == f"{len(table)}"


def compare_margin(cell, margin, scale, unit):
    low, high = (f"{scale * bound:g}" for bound in margin)
    words = (
        f"above {low}" if high == "inf" else f"below {high}" if low == "-inf" else f"between {low} and {high}"
    )
    assert cell == f"{words}{unit}"


def compare_estimates(cell, known, scale, unit):
    """Say whether a cell has the estimates of a sentence; of many, the weakest that counts."""
    estimates = known["estimates"]
    many = re.fullmatch(r"(\d+) estimates, the weakest( but one)? at (.*)", cell)
    texts = [many[3]] if many else cell.split("; ")
    parsed = [re.fullmatch(ESTIMATE, text) for text in texts]
    assert all(parsed), cell
    assert [each[5] for each in parsed] == [""] * (len(parsed) - 1) + [unit]
    if many:
        assert int(many[1]) == len(estimates) > 4
        assert (many[2] is not None) == bool(known["exceptions"])
        assert parsed[0][1] in known["kept"]
        assert known["kept"][parsed[0][1]] == pytest.approx(known["kept"].max(), rel=1e-6, abs=0)
    else:
        assert [each[1] for each in parsed] == list(estimates)
    for each in parsed:
        agree(" ".join(each.groups()[1:4]), *(scale * value for value in estimates[each[1]][:3]))


@pytest.mark.parametrize("page", PAGES.values())
def test_a_page_has_the_numbers_and_verdicts_of_the_stored_networks(page, evidence, found):
    compare(page, read(page, evidence), found)


def test_the_counts_of_all_pages_are_those_of_the_verdicts(evidence, found):
    compare_counts(read("paper", evidence), found)


def compare_counts(text, found):
    table = tables_of(text)["counts"].set_index("sentences about")
    assert list(table.index) == [f"[{family}]({page}.md)" for family, page in PAGES.items()] + ["all"]
    for page, (_, row) in zip([*PAGES.values(), None], table.iterrows(), strict=True):
        own = found["verdict"][(found["page"] == page) | (page is None)]
        expected = [len(own), *(int((own == name).sum()) for name in VERDICTS)]
        assert row.astype(int).tolist() == expected


def test_the_table_of_all_sentences_is_that_of_the_pages(evidence, found):
    table = pd.read_csv(evidence / "data" / "paper-sentences.csv").set_index("the paper says")
    assert sorted(table.index) == sorted(found.index)
    assert table["family"].map(PAGES).equals(found["page"].reindex(table.index))
    assert table["verdict"].equals(found["verdict"].reindex(table.index))
    for column, own in (("p", "p"), ("p_false", "p_false"), ("detectable", "least")):
        assert table[column].to_numpy() == pytest.approx(found[own].reindex(table.index), rel=1e-3, abs=1e-9)
    for page in PAGES.values():
        cells = tables_of(read(page, evidence))["sentences"].set_index("the paper says")["we measured [95 %]"]
        assert cells.equals(table["we measured"].reindex(cells.index).rename(cells.name))


def test_dense_networks_that_learned_nothing_are_counted(evidence, found):
    table = pd.read_csv(evidence / "data" / "paper-sentences.csv").set_index("the paper says")["collapsed"]
    frame = networks(evidence / "data" / "paper-networks.csv")
    usual = {data: one_layer(frame, data) for data in TITLES}
    usual = {data: own[own["hidden"].isin((4, 8, 16, 32))] for data, own in usual.items()}
    for sentence, own in found.iterrows():
        if own["page"] in (
            "case-study",
            "neurons-and-clauses",
            "interference",
            "interference-and-accuracy",
            "theory",
        ):
            assert np.isnan(table[sentence])
            continue
        everywhere = any(name.startswith("Fashion-MNIST") for name in own["estimates"])
        among = own["among"] or (usual if everywhere else {"cifar100": usual["cifar100"]})
        dense = {data: rows["accuracy"][rows["kind"] == "dense"] for data, rows in among.items()}
        assert table[sentence] == sum((own < 2 / CLASSES[data]).sum() for data, own in dense.items())
    deep = found.index[found["page"] == "depth"]
    assert marked(read("depth", evidence))["collapsed"] == f"{table[deep].sum():.0f}"


def compare_prose(page, text):
    """Say whether each number of the text of a page has a source."""
    assert set(numbers(prose(text))) <= {"95 %"} | SAID.get(page, set())


@pytest.mark.parametrize("page", [*PAGES.values(), "paper"])
def test_each_number_of_the_text_has_a_source(page, evidence):
    text = read(page, evidence)
    compare_prose(page, text)
    data = json.loads((evidence / "data" / "paper.json").read_text(encoding="utf-8"))
    stored = pd.read_csv(evidence / "data" / "paper-networks.csv", low_memory=False)
    versions = f"torch {data['provenance']['torch']}, {data['provenance']['machine']}"
    made = (
        f"{len(stored):,} networks, {data['hours']:.1f} hours of one core; {versions}. Trained with fpe at "
    )
    assert marked(text)["made"].rstrip(".") == made + ", ".join(data["commits"])


def test_made_up_sentences_have_all_verdicts(made_up_pages):
    """Else the tests above would not see a wrong one."""
    assert set(judged(made_up_pages)["verdict"]) == set(VERDICTS)


@pytest.mark.parametrize("page", PAGES.values())
def test_what_is_altered_on_a_page_is_found(page, made_up_pages):
    text, end = read(page, made_up_pages), "<!-- end sentences"
    row = "| it gains 12 % | 3.1 | difference: +1.0 [+0.5, +1.5] points | above 0 points | agrees |  |"
    added = text.replace(end, f"{row}\n{end}"), text.replace("<!-- all -->", "<!-- all -->1")
    for wrong in (*added, *altered(text, "sentences", 5, VERDICTS)):
        with pytest.raises(AssertionError):
            compare(page, wrong, judged(made_up_pages))
    with pytest.raises(AssertionError):
        compare_prose(page, text.replace("## Caveats", "It is 12 % better.\n\n## Caveats"))


def test_a_stored_value_that_is_altered_is_found(made_up_pages, tmp_path):
    frame = pd.read_csv(made_up_pages / "data" / "paper-networks.csv", low_memory=False)
    one = (
        (frame["kind"] == "random")
        & (frame["clauses"] == 8)
        & (frame["neurons"] == 8)
        & (frame["trial"] == 3)
    )
    frame.loc[one, "accuracy"] += 0.2
    (tmp_path / "data").mkdir()
    frame.to_csv(tmp_path / "data" / "paper-networks.csv", index=False)
    found = judged(tmp_path)
    for page in ("case-study", "neurons-and-clauses"):
        with pytest.raises(AssertionError):
            compare(page, read(page, made_up_pages), found)
    compare("depth", read("depth", made_up_pages), found)
