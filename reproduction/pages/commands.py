"""The page of ``fpe fit``."""

from __future__ import annotations

from pathlib import Path

from common import OUT, RESULTS, block, copy, run_fpe, store, stored, table

from fpe._util.files import read_json
from fpe.compare.report import fit_table
from fpe.data.named import find_folder

BANKING = "banking77-minilm.npz --hidden 4 8 16 --trials 5 --warmup-epochs 200 --epochs 200 --lr 1e-3"
FASHION = "fashion-mnist --hidden 4 8 16 --trials 5 --warmup-epochs 25 --epochs 25 --lr 1e-3"
#: Heading of each comparison, and the arguments of ``fpe fit``.
RUNS = {
    "digits": ("Handwritten digits, random split", "digits"),
    "banking77-random": ("Banking77, random split", f"{BANKING} --factor 2 --split random"),
    "banking77-columns-2": (
        "Banking77, shared split, input pruning, α = 2",
        f"{BANKING} --factor 2 --split shared --prune columns",
    ),
    "banking77-columns-3": (
        "Banking77, shared split, input pruning, α = 3",
        f"{BANKING} --factor 3 --split shared --prune columns",
    ),
    "banking77-batch-500": (
        "Banking77, random split, mini-batches of 500",
        f"{BANKING} --factor 2 --split random --batch-size 500",
    ),
    "fashion-mnist": ("Fashion-MNIST, random split", FASHION),
}


def run(page: str) -> None:
    """Run what the page shows, and store its data and figures."""
    for name in RUNS:
        fit(name)


def fit(name: str) -> None:
    """Run one comparison; if its data are missing here, its stored result is kept."""
    data, *options = RUNS[name][1].split()
    folder = find_folder(Path(data).stem) if data.endswith(".npz") else Path()
    if folder is None or run_fpe("fit", folder / data, *options, "--out", OUT / "results" / name):
        print(f"not run again: {name}", flush=True)
        return
    result = read_json(OUT / "results" / name / "results.json") or {}
    for trial in result["trials"]:
        trial.pop("history", None)
    store(f"fit/{name}", result)
    copy(OUT / "results" / name / "accuracy.png", f"fit/{name}.png")


def parts(page: str) -> dict[str, dict[str, str]]:
    names = [name for name in RUNS if (RESULTS / "fit" / f"{name}.json").exists()]
    rows = []
    for name in names:
        title = RUNS[name][0].partition(" (")[0]
        for row in stored(f"fit/{name}")["rows"]:
            kinds = row["dense"], row["expanded"]
            cells = [f"{100 * kind['accuracy']:.1f} ± {100 * kind['accuracy_sd']:.1f}" for kind in kinds]
            neurons = " → ".join(str(kind["neurons"]) for kind in kinds)
            rows.append([title, neurons, f"{row['dense']['nonzero']:,}", *cells])
            title = ""
    one_shot = table(["", "neurons", "non-zeros", "dense", "expanded"], rows)
    return {"fit": {"runs": block("\n".join(map(section, names)))}, "overview": {"one-shot": one_shot}}


def section(name: str) -> str:
    """Return the part of the page about one comparison by ``fpe fit``."""
    heading, arguments = RUNS[name]
    result = stored(f"fit/{name}")
    keys = ("fpe", "commit", "python", "torch", "numpy")
    by = [trial["provenance"] for trial in result["trials"]]
    made = "; ".join(sorted({", ".join(f"{key} {each[key]}" for key in keys) for each in by}))
    seconds = sum(trial["seconds"] for trial in result["trials"])
    return (
        f"## {heading}\n\n```console\n$ fpe fit {arguments}\n```\n\n```text\n{fit_table(result)}\n```\n\n"
        f"![Accuracy against width](fit/{name}.png)\n\n"
        f"{made}; {by[0]['machine']}; {seconds:.0f} core-seconds of training; {by[0]['written'][:10]}. "
        f"Data: [`fit/{name}.json`](fit/{name}.json).\n"
    )
