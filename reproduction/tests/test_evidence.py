"""Numbers of docs/evidence, found a second time: by pandas, from the stored data."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from evidence import agree, interval, left_out, read
from whole_by_pandas import CURVE, KINDS, NETWORKS, OF_TEXTS, best, curve_of, log_size


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
