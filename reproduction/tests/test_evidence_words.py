"""What the page on whole networks says in words, and what other pages say of it, follows from its data."""

import importlib

import numpy as np

import fpe
from evidence import EVIDENCE, interval, numbers, page_programs, prose, read
from fpe.packing.formats import LEAST_SPARSE
from fpe_reproduction.text import PARTS
from whole_by_pandas import OF_TEXTS, best


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


def test_wide_networks_with_random_masks_first_equal_dense_ones_of_their_width(page):
    rows = page["text-1"][page["text-1"].network.str.contains("random first")]
    found = rows["equals dense of ×"].str.extract(r"\[([\d.]+), ([\d.]+)\]").astype(float)
    assert len(rows) == 3
    assert ((found[0] <= rows["memory ×"].astype(float)) & (rows["memory ×"].astype(float) <= found[1])).all()


def test_readme_and_is_it_for_me_give_the_sizes_of_the_page(page):
    ends = {"50 %": "**wider, 50 % zeros, random first**", "75 %": "**wider, 75 % zeros, random first**",
            "87.5 %": "**wider, 87.5 % zeros, random first**"}  # fmt: skip

    def size(length, share):
        rows = page[f"text-{length}"].set_index("network")
        return f"{float(rows['equals dense of ×'][ends[share]].split()[0]):.1f}"

    readme, advice = (
        " ".join((EVIDENCE.parent.parent / name).read_text(encoding="utf-8").split())
        for name in ("README.md", "docs/is-it-for-me.md")
    )
    assert f"of [{size(1, '75 %')} times its count]" in readme
    assert f"after 1,500 steps, and of {size(4, '75 %')} times after 6,000" in readme
    assert f"[{size(1, '50 %')} to {size(1, '87.5 %')} times its count after 1,500 steps]" in advice
    assert f"and of {size(4, '50 %')} to {size(4, '87.5 %')} times after 6,000" in advice
    gains = (
        page["mlp"]
        .set_index(["layers", "h"])["wider by 3 equals dense of ×"]
        .str.split()
        .str[0]
        .astype(float)
    )
    least, most = (f"{end(gains.drop(('9', '64'))):.1f}" for end in (min, max))
    assert (
        f"{len(gains) - 1} of {len(gains)} deep MLPs were as good as dense ones of {least} to {most} times"
        in readme
    )
    cnn = page["images"].query("network == '**wider, 75 % zeros**'").iloc[0]["equals dense of ×"].split()[0]
    pairs = page["pairs"].set_index("network")["equals dense of ×"]
    pairs = {f"{float(own.split()[0]):.1f}" for own in pairs if own}
    assert f"a CNN of {float(cnn):.1f}, a GPT-2 of byte pairs of" in readme
    assert readme.split("byte pairs of ")[1][:3] in pairs


def test_what_is_said_of_recipes_is_so(page):
    rows = page["recipes"].set_index("recipe")["minus the default"]
    found = rows[rows != ""].str.extract(r"\[([-+\d.]+), ([-+\d.]+)\]").astype(float)
    better, worse = found.index[found[1] < 0], found.index[found[0] > 0]
    assert list(better) == [
        "half of the loss from a wide dense teacher",
        "random masks from the start, fixed",
    ]
    assert [own.split(" (")[0] for own in worse] == ["masked weights learn on"]


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
