"""Numbers of docs/evidence, found a second time: by pandas, from the stored data."""

import importlib
import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import fpe
from evidence import EVIDENCE, agree, interval, left_out, numbers, page_programs, prose, read, tables
from fpe.packing.formats import LEAST_SPARSE
from fpe_reproduction.text import PARTS


def log_size(curve, value):
    """Return the logarithm of the size at which a series of losses or errors, by size, has a value."""
    x, y = np.log(curve.index.to_numpy(float)), np.minimum.accumulate(curve.to_numpy())
    if y[-1] <= value <= y[0]:
        return np.interp(-value, -y, x)
    end = 0 if value > y[0] else -1
    return x[end] + (value - y[end]) * (x[-1] - x[0]) / (y[-1] - y[0])


def stored_runs():
    """Return all stored runs, one in a row."""
    rows = [
        {"experiment": file.stem, "task": task, **record}
        for file in sorted((EVIDENCE / "runs").glob("whole-*.json"))
        for task, record in json.loads(file.read_text(encoding="utf-8")).items()
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def runs():
    return stored_runs()


@pytest.fixture(scope="module")
def page():
    found = tables("transformers-and-cnns")
    assert found
    assert all(len(table) for table in found.values())  # else the loops below would check nothing
    return found


def best(runs, experiments):
    """Return the runs of each way of training at the rate of its least validation loss, seeds 0 and 1."""
    own = runs[runs.experiment.isin(experiments)].copy()
    own[["way", "rate", "seed"]] = own.task.str.extract(r"^(.*)-([\d.e-]+?)-(\d)$")
    own["seed"] = own.seed.astype(int)
    tuned = own[own.seed < 2].groupby(["way", "rate"]).validation.agg(["mean", "size"])
    chosen = tuned[tuned["size"] == 2]["mean"].reset_index().sort_values("mean").groupby("way").rate.first()
    return own[own.rate == own.way.map(chosen)].set_index(["way", "seed"]).sort_index()


NETWORKS = {
    "dense": "dense-1",
    **{f"dense, {size} ×": f"dense-{size}" for size in ("1.5", "2", "3", "4.5", "6")},
    "dense, 4 blocks": "blocks4-1", "dense, 8 blocks": "blocks8-1", "**wider, 50 % zeros**": "zeros-0.5",
    "**wider, 75 % zeros**": "zeros-0.75", "**wider, 87.5 % zeros**": "zeros-0.875",
    "**wider, 50 % random zeros**": "fixed-0.5", "**wider, 75 % random zeros**": "fixed-0.75",
    "**wider, 87.5 % random zeros**": "fixed-0.875",
    **{f"**wider, {100 * z:g} % zeros, random first**": f"thinned-{z}" for z in (0.5, 0.75, 0.875)},
}  # fmt: skip
OF_TEXTS = ["whole-text", "whole-wider", "whole-fixed", "whole-thinned"]
KINDS = {"pruned": "zeros", "random masks": "fixed", "random, then pruned": "thinned"}
CURVE = ("dense-1", "dense-1.5", "dense-2", "dense-3")
LARGER = ("dense-4.5", "dense-6")


def curve_of(own, suffix, measure="test"):
    """Return a measure of dense networks, by their count and by seed."""
    known = own.index.get_level_values("way")
    names = [name for name in (*CURVE, *LARGER) if name in CURVE or f"{name}{suffix}" in known]
    found = pd.DataFrame({f"{name}": own.loc[f"{name}{suffix}"][measure] for name in names})
    return found.set_axis([own.loc[f"{name}{suffix}"].nonzero.iloc[0] for name in names], axis=1)


@pytest.mark.parametrize("mark", ["text-1", "text-4", "pairs"])
def test_losses_of_texts_are_those_of_the_runs(mark, page, runs):
    if mark not in page:
        pytest.skip("not on the page yet")
    own = best(runs, OF_TEXTS)
    suffix = "-pairs-1" if mark == "pairs" else f"-characters-{mark[-1]}"
    dense, curve = own.loc[f"dense-1{suffix}"], curve_of(own, suffix)
    for _, row in page[mark].iterrows():
        mine = own.loc[f"{NETWORKS[row['network']]}{suffix}"]
        assert list(mine.index) == [0, 1, 2, 3, 4]
        agree(row["non-zeros"], mine.nonzero.iloc[0])
        agree(row["loss"], *interval(mine.test))
        agree(row["FLOPs ×"], mine.flops.iloc[0] / dense.flops.iloc[0])
        agree(row["memory ×"], mine.bytes.iloc[0] / dense.bytes.iloc[0])
        if row["network"] != "dense":
            agree(row["minus dense"], *interval(mine.test - dense.test))
        if row["equals dense of ×"]:
            found = left_out(lambda s, m=mine: log_size(curve.loc[s].mean(), m.test[s].mean()), range(5))
            agree(row["equals dense of ×"], *(np.exp(found) / curve.columns[0]))
        if row["minus dense of the average count"]:
            count = np.log(mine.average.iloc[0])
            found = left_out(
                lambda s, m=mine, at=count: (
                    m.test[s].mean()
                    - np.interp(at, np.log(curve.columns.to_numpy(float)), curve.loc[s].mean())
                ),
                range(5),
            )
            agree(row["minus dense of the average count"], *found)


def test_compute_is_that_of_the_runs(page, runs):
    if "compute" not in page:
        pytest.skip("not on the page yet")
    own = best(runs, OF_TEXTS)
    small = own.loc["dense-1-characters-1"].iloc[0]
    assert page["compute"]["FLOPs ×"].astype(float).is_monotonic_increasing
    for _, row in page["compute"].iterrows():
        mine = own.loc[f"{NETWORKS[row['network']]}-characters-{row['steps'][0]}"]
        agree(row["non-zeros"], mine.nonzero.iloc[0])
        agree(row["FLOPs ×"], mine.flops.iloc[0] / small.flops)
        agree(row["memory ×"], mine.bytes.iloc[0] / small.bytes)
        agree(row["loss"], *interval(mine.test))


def test_the_law_is_that_of_the_runs(page, runs):
    own = best(runs, OF_TEXTS)
    shares = {"50% zeros": "0.5", "75% zeros": "0.75", "87.5% zeros": "0.875"}

    def power(seeds, kind, suffix):
        curve = curve_of(own, suffix).loc[seeds].mean()
        free = [own.loc[f"zeros-{share}-characters-1"].zeros.iloc[0] for share in shares.values()]
        values = [own.loc[f"{kind}-{share}{suffix}"].test[seeds].mean() for share in shares.values()]
        y = np.array([log_size(curve, value) for value in values]) - np.log(curve.index[0])
        return np.linalg.lstsq(-np.log1p(-np.array(free))[:, None], y, rcond=None)[0][0]

    for _, row in page["law"].iterrows():
        if row["masks, steps"] == "large networks":
            continue
        title, length = row["masks, steps"].removesuffix(" ×").rsplit(", ", 1)
        kind, suffix, first = KINDS[title], f"-characters-{length}", "-characters-1"
        found = left_out(lambda s, k=kind, end=suffix: power(s, k, end), range(5))
        agree(row["k"], *found)
        for column in shares:
            agree(row[column], (1 - float(column.split("%")[0]) / 100) ** -found[0])
        if suffix != first:
            change = left_out(
                lambda s, k=kind, end=suffix: power(s, k, end) - power(s, k, "-characters-1"), range(5)
            )
            agree(row["k minus that of 1 ×"], *change)


def test_bytes_are_those_of_the_files(page, runs):
    files = runs[runs.experiment == "whole-bytes"].set_index("task").bytes
    own = best(runs, OF_TEXTS)
    curve = curve_of(own, "-characters-1")
    dense = files[[f"{name}-network" for name in CURVE]]
    for _, row in page["bytes"].iterrows():
        name = NETWORKS[row["network"]]
        free = files[f"{name}-network"]
        agree(row["bytes"], free)
        agree(row["× dense"], free / dense.iloc[0])
        if name != "dense-1":
            agree(row["equally many inputs ×"], files[f"{name}-neuron"] / dense.iloc[0])
            equal = np.exp(log_size(curve.mean(), own.loc[f"{name}-characters-1"].test.mean()))
            of_equal = np.interp(equal, curve.columns.to_numpy(float)[: len(CURVE)], dense)
            agree(row["× the dense network with this loss"], free / of_equal)


def test_masks_that_can_be_packed_are_those_of_the_runs(page, runs):
    if "masks" not in page:
        pytest.skip("not on the page yet")
    own = best(runs, ["whole-fixed", "whole-masks"])
    ways = ("fixed-0.75-characters-1", "any", "group-4", "group-8")
    first = own.loc[ways[0]].test[:3]
    for (_, row), way in zip(page["masks"].iterrows(), ways, strict=True):
        mine = own.loc[way].test[:3]
        assert list(mine.index) == [0, 1, 2]
        agree(row["rate"], float(own.loc[way].rate.iloc[0]))
        agree(row["non-zeros"], own.loc[way].nonzero.iloc[0])
        agree(row["loss"], *interval(mine))
        if way != ways[0]:
            agree(row["minus the first"], *interval(mine - first))


RECIPES = (
    "moment", "one rate", "magnitude", "fisher", "relative", "each matrix", "fan-in", "least 4", "linear",
    "early", "late", "head", "straight", "distilled", "static", "rigl",
)  # fmt: skip


def test_recipes_are_those_of_the_runs(page, runs):
    if "recipes" not in page:
        pytest.skip("not on the page yet")
    own = best(runs, ["whole-recipes"])
    for (_, row), name in zip(page["recipes"].iterrows(), RECIPES, strict=True):
        mine = own.loc[name]
        assert list(mine.index) == [0, 1, 2]
        agree(row["rate"], float(mine.rate.iloc[0]))
        agree(row["loss"], *interval(mine.test))
        if name != "moment":
            agree(row["minus the default"], *interval(mine.test - own.loc["moment"].test))


def test_deep_mlps_are_those_of_the_runs(page, runs):
    own = runs[runs.experiment.isin(["whole-mlp", "whole-mlp-fixed"])].set_index("task")
    better = 0
    for _, row in page["mlp"].iterrows():
        cell = own[own.index.str.startswith(f"l{row['layers']}-h{row['h']}-")]
        cell = cell.set_index(cell.index.str.split("-", n=2).str[2])
        percent = pd.DataFrame({name: [100 * v for v in a] for name, a in cell.accuracies.items()})
        dense = percent[[name for name in percent if name.startswith("dense")]]
        dense = dense.set_axis([cell.nonzero[name] for name in dense], axis=1).sort_index(axis=1)
        agree(row["non-zeros"], dense.columns[0])
        agree(row["dense %"], *interval(dense.iloc[:, 0]))
        for factor in (2, 3, 4):
            if f"wider-{factor}" in percent:
                agree(row[f"wider by {factor} %"], *interval(percent[f"wider-{factor}"]))
        agree(row["random zeros, wider by 3 %"], *interval(percent["fixed-3"]))
        agree(row["dense, residual %"], *interval(percent["residual"]))
        agree(row["best shallow %"], *interval(percent["shallow"]))
        three = percent["wider-3"]
        found = left_out(lambda s, d=dense, w=three: log_size(-d.loc[s].mean(), -w[s].mean()), range(5))
        agree(row["wider by 3 equals dense of ×"], *(np.exp(found) / dense.columns[0]))
        better += interval(three - dense.iloc[:, 0])[1] > 0
    text = read("transformers-and-cnns")
    assert f"<!-- mlp-better -->{better} of {len(page['mlp'])}<!-- end mlp-better -->" in text


def test_trained_networks_are_those_of_the_runs(page, runs):
    own = best(runs, ["whole-trained"])
    on, wider = own.loc["on-1"], own.loc["wider-2-1"]
    assert wider.validation[:2].mean() < own.loc["wider-2-0.5"].validation[:2].mean()
    for (_, row), mine in zip(page["trained"].iterrows(), (on, wider), strict=True):
        agree(row["rate"], float(mine.rate.iloc[0]))
        agree(row["loss before"], *interval(mine["test of the parent"]))
        agree(row["after"], *interval(mine.test))
    agree(page["trained"]["minus trained on"][1], *interval(wider.test - on.test))
    deep = runs[runs.experiment == "whole-mlp-trained"].set_index("task")
    for _, row in page["mlp-trained"].iterrows():
        cell = f"l{row['layers']}-h{row['h']}"
        on = 100 * pd.Series(deep.accuracies[f"{cell}-on"])
        agree(row["non-zeros"], deep.nonzero[f"{cell}-on"])
        agree(row["before %"], *interval(100 * pd.Series(deep.before[f"{cell}-on"])))
        agree(row["trained on %"], *interval(on))
        for factor in ("2", "3"):
            wider = 100 * pd.Series(deep.accuracies[f"{cell}-wider-{factor}"])
            agree(row[f"wider by {factor} %"], *interval(wider))
            agree(row[f"gain by {factor}"], *interval(wider - on))


def test_images_are_those_of_the_runs(page, runs):
    own = best(runs, ["whole-images"])
    for _, row in page["images"].iterrows():
        model = row[""].lower()
        mine, dense = own.loc[f"{model}-{NETWORKS[row['network']]}"], own.loc[f"{model}-dense-1"]
        assert list(mine.index) == [0, 1, 2, 3, 4]
        agree(row["non-zeros"], mine.nonzero.iloc[0])
        agree(row["accuracy %"], *interval(100 * mine.accuracy))
        agree(row["loss"], *interval(mine.test))
        if row["network"] != "dense":
            agree(row["minus dense"], *interval(mine.test - dense.test))
        if row["equals dense of ×"]:
            losses = pd.DataFrame({name: own.loc[f"{model}-{name}"].test for name in CURVE})
            curve = losses.set_axis([own.loc[f"{model}-{name}"].nonzero.iloc[0] for name in CURVE], axis=1)
            found = left_out(lambda s, c=curve, m=mine: log_size(c.loc[s].mean(), m.test[s].mean()), range(5))
            agree(row["equals dense of ×"], *(np.exp(found) / curve.columns[0]))


def test_power_is_that_of_the_seeds(page, runs):
    own = best(runs, OF_TEXTS)
    dense = own.loc["dense-1-characters-1"].test
    for _, row in page["power"].iterrows():
        found = own.loc[f"{NETWORKS[row['minus dense']]}-characters-1"].test - dense
        agree(row["difference"], *interval(found))
        least = found.sem() * (stats.t.ppf(0.975, 4) + stats.t.ppf(0.8, 4))
        agree(row["shown four times in five"], least)
        agree(row["seeds for this difference"], max(2, np.ceil(5 * (least / found.mean()) ** 2)))


def of_whole_networks():
    """Return the numbers that may stand in the text on whole networks: settings, and figures of papers."""
    with page_programs():
        names = ("whole", "whole_text", "whole_mlp", "whole_images", "whole_bytes", "whole_thinned")
        whole, text, mlp, images, files, thinned = map(importlib.import_module, names)
    schedule = fpe.PruningSchedule()
    parameters = text.sizes(text.WIDTH)[0]
    percents = [100 * schedule.begin, 100 * schedule.end, 100 * (1 - sum(PARTS.values())), 95]
    percents += [100 * share for share in PARTS.values()]
    settings = {
        *whole.RATES,
        *whole.RANDOM_RATES,
        *whole.SHRINKS,
        whole.PARENT,
        *mlp.RATES,
        *mlp.WIDTHS,
        mlp.EPOCHS,
        files.STEPS,
    }
    settings |= {text.WIDTH, text.CONTEXT, text.BATCH, text.STEPS, parameters, LEAST_SPARSE, *SIZES}
    tables = text.VOCABULARY["pairs"] + text.CONTEXT
    settings |= {text.VOCABULARY["pairs"], text.sizes(text.WIDTH, "pairs")[0]}
    settings |= {tables * text.width_of(own, "pairs") for own in ("dense-1", "zeros-0.75")}
    percents += [75, 100 * thinned.BEGIN, 100 * thinned.END]
    settings |= {images.BATCH, 14, 28}
    settings |= {4 * text.STEPS, BEHIND, HOURS}
    characters = text.STEPS * text.BATCH * text.CONTEXT
    papers = {2021, 2024, 85, 2025, 100}  # Golubeva; Frantar et al., of 85 million; Jin et al.; CIFAR-100
    settings |= {round(n * characters / 1e6, 1) for n in (1, 4)}
    return settings | papers, {f"{value:g} %" for value in percents}


#: Multiples of the small dense network's count.
SIZES = (1, 1.5, 2, 3, 4.5, 6)
#: By how much two kinds of wider networks are worse than the third after 6,000 steps.
BEHIND = 0.02
#: An estimate in the text: hours of one core for sixteen times the steps.
HOURS = 19


def test_each_number_of_the_text_has_a_source():
    known, percents = of_whole_networks()
    for own in numbers(prose(read("transformers-and-cnns"))):
        value = float(own.rstrip(" %").replace(",", ""))
        assert own in percents or ("%" not in own and value in known), own


def test_a_number_without_a_source_is_found():
    assert numbers("Wider by 2 is 1.7 % better at 12 to 4,096 neurons, or 3e-3, of GPT-2.") == [
        "1.7 %",
        "12",
        "4,096",
        "3e-3",
    ]


def test_what_is_said_of_random_masks_is_so(page, runs):
    own = best(runs, OF_TEXTS)
    loss = {
        kind: [own.loc[f"{kind}-{share}-characters-1"].test for share in ("0.5", "0.75", "0.875")]
        for kind in ("fixed", "zeros", "thinned")
    }
    assert all(interval(a - b)[2] < 0 for a, b in zip(loss["fixed"], loss["zeros"], strict=True))
    half, *more = (interval(a - b) for a, b in zip(loss["thinned"], loss["fixed"], strict=True))
    assert half[1] < 0 < half[2]
    assert all(high < 0 for _, _, high in more)
    all_runs = runs.set_index("task").test
    longer = all_runs[all_runs.index.str.endswith("-0.75-characters-4-0.008-0")]  # one of text has no zeros
    assert sorted(longer.index.str.split("-").str[0]) == ["fixed", "thinned", "zeros"]
    behind = longer.drop("thinned-0.75-characters-4-0.008-0") - longer["thinned-0.75-characters-4-0.008-0"]
    assert behind.min() > BEHIND
    first, second = (a.mean() - b.mean() for a, b in zip(loss["fixed"], loss["fixed"][1:], strict=False))
    assert first > 4 * second > 0


def test_the_hours_of_longer_runs_follow_from_those_of_shorter_ones(runs):
    own = runs[runs.task.str.contains("^(?:dense|thinned).*characters-4-")]
    seconds = own.seconds.groupby(own.task.str.rsplit("-", n=2).str[0]).median()
    assert len(seconds) == 7
    assert round(4 * 7 * seconds.sum() / 3600) == HOURS  # four times as long; seven runs of each


def test_what_is_said_of_deep_mlps_is_so(page):
    """Conclusions of the text that no number stands for."""
    first = page["mlp"].map(lambda cell: float(cell.split()[0].replace(",", "")) if cell else np.nan)
    wider = first[[f"wider by {factor} %" for factor in (2, 3, 4)]].max(axis=1)
    residual, many = first["dense, residual %"], first["h"] >= 16
    assert (residual > wider)[many].all()
    assert (first["best shallow %"] > wider).all()
    worse = first["wider by 3 %"] < first["wider by 2 %"]
    assert first[worse][["layers", "h"]].to_numpy().tolist() == [[9, 64]]
    fixed = first["random zeros, wider by 3 %"]
    assert first[fixed >= first["wider by 3 %"]][["layers", "h"]].to_numpy().tolist() == [[9, 64]]
    assert (fixed > first["dense %"]).mean() > 0.8


def test_what_is_said_of_images_is_so(page):
    gains = page["images"][page["images"]["minus dense"] != ""]
    highs = gains["minus dense"].str.extract(r", ([-+][\d.]+)\]")[0].astype(float)
    wider = gains["network"].str.contains("wider")
    assert (highs[wider & (gains[""] == "CNN")] < 0).all()
    assert (highs[wider & (gains[""] == "ViT")] > 0).all()
