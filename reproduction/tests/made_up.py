"""Made-up networks, and the pages that the programs of ``make evidence`` make of them."""

import functools
import importlib
import json
import shutil
import zlib

import numpy as np

from evidence import EVIDENCE, page_programs
from fpe_reproduction.experiments.boolean import KINDS
from fpe_reproduction.experiments.catalogue import PAPER
from fpe_reproduction.experiments.classifiers import CNN_KINDS
from fpe_reproduction.experiments.tasks import Request
from fpe_reproduction.experiments.timeline import Source
from fpe_reproduction.paper import coverage
from fpe_reproduction.paper.sentences import DEPTH
from fpe_reproduction.rivals import contest
from fpe_reproduction.theory import simulate

MADE = {
    "commits": ["abc1234"],
    "provenance": {"torch": "2.0", "machine": "no machine", "commit": "abc1234"},
    "depends": {"code": "0"},
    "seconds": 90.0,
}
#: Networks that are simulated; real pages have 20,000.
SIMULATED = 300
#: By how much more accurate networks of 4 neurons are than dense ones; other kinds differ by chance.
EFFECTS = {"dense": 0.0, "random": 0.06, "gram": 0.0601, "dropconnect-50": 0.03, "random-at-90": -0.04}


def make(folder):
    """Make all pages into a folder; return docs/evidence of it."""
    evidence = folder / "docs" / "evidence"
    shutil.copytree(EVIDENCE / "runs", evidence / "runs")
    shutil.copyfile(EVIDENCE / "transformers-and-cnns.md", evidence / "transformers-and-cnns.md")
    drawn = functools.cache(lambda model, quick: simulate(model, SIMULATED))
    with page_programs() as patch:
        common = importlib.import_module("common")
        patch.setattr(common, "RESULTS", folder / "docs" / "results")
        patch.setattr(
            common, "reproduced", lambda name: {"paper": paper, "rivals": rivals}[name](folder / name)
        )
        patch.setattr(
            common, "run_all", lambda work, tasks, name: {t: looked_into(**own) for t, own in tasks.items()}
        )
        patch.setattr(coverage, "_simulated", drawn)
        patch.setattr("sys.argv", ["make.py", "evidence"])
        for page in ("paper_pages", "rivals_page", "interpretability"):
            patch.setattr(importlib.import_module(page), "draw", lambda *_: None)
        importlib.import_module("make").main()
    return evidence


def write(path, record):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record), encoding="utf-8")


def draws(*names):
    """Return a generator of random numbers that belongs to names."""
    return np.random.default_rng(zlib.crc32(repr(names).encode()))


def effect(kind):
    """Return what a kind adds to the accuracy of 4 neurons."""
    return EFFECTS.get(kind, draws(kind).uniform(-0.01, 0.08))


def paper(folder):
    """Write what ``fpe reproduce paper`` would."""
    for each in PAPER:
        tasks = each.tasks(Request(data={name: Source(name, "") for name in each.data}))
        values = [{"data": task.group, **row} for task in tasks if task.group for row in on_data(task)]
        values += [row for task in tasks if not task.group for row in on_formulas(task)]
        write(folder / each.name / "results.json", {**MADE, "values": values, "figures": []})
        for task in tasks:
            write(folder / task.group / "trials" / f"{task.name}.json", MADE)
    return folder


def on_formulas(task):
    """Yield networks that learn formulas, as `run_row` returns them."""
    own, rng = task.arguments, draws(task.name)
    clauses = own["clauses"]
    for trial in range(own["first_trial"], own["first_trial"] + own["trials"]):
        for neurons in own["neurons"]:
            for kind in KINDS:
                place, noise = KINDS.index(kind), rng.normal(size=6)
                few, bad = 4 / neurons, (neurons, kind) == (24, "clause")
                gain = (0.0, 0.3, 0.21)[place] * few * (1.0 if clauses > 6 else 0.5)
                yield {
                    "clauses": clauses,
                    "neurons": neurons,
                    "kind": kind,
                    "trial": trial,
                    "nonzero": 5 * clauses * neurons,
                    "accuracy": 0.6 + gain + 0.02 * noise[0],
                    "block_share": (0.3, 0.6, 0.58)[place] + 0.05 * noise[1],
                    "cosine": (0.2, 0.1, 0.12)[place] + 0.2 * bad + 0.02 * noise[2],
                    "capacity": (3.0, 5.0, 4.5)[place] + noise[3],
                    "clause_capacity": (2.0, 3.0, 2.7)[place] + gain * noise[0] + 0.3 * noise[4],
                    "cosine_masked": (0.2, 0.14, 0.19)[place] + 0.02 * rng.normal(),
                    "clause_capacity_masked": (2.0, 2.8, 2.2)[place] + 0.2 * rng.normal(),
                    "covered_clauses": clauses - int(kind == "random" and noise[5] > 1.5),
                    "collisions": int(rng.integers(0, 3)),
                }


def on_data(task):
    """Yield classifiers, as `run_networks` and `run_classifiers` return them."""
    own, rng = task.arguments, draws(task.group, task.name)
    about = {"features": own["features"]} if "features" in own else {"layers": own["layers"]}
    deep = DEPTH.get(about.get("layers", 1) + 1, {})
    for trial in own["trials"]:
        for hidden in own["hidden"]:
            start = 0.9 - 0.8 / hidden**0.5 + 0.01 * rng.normal()
            for kind in own.get("kinds") or ("dense", *CNN_KINDS):
                added = effect(kind) * 4 / hidden
                if kind == "random" and hidden in deep:
                    added = start * deep[hidden]
                yield {
                    "hidden": hidden,
                    **about,
                    "kind": kind,
                    "trial": trial,
                    "nonzero": 600 * hidden,
                    "neurons": 2 * hidden,
                    "accuracy": 0.012
                    if (hidden, trial, deep != {}) == (4, 3, True)
                    else start + added + 0.004 * rng.normal(),
                    "cosine": 0.2 - effect(kind) + 0.01 * rng.normal(),
                }


def rivals(folder):
    """Write what ``fpe reproduce rivals`` would."""
    records = []
    for name, own in contest.tasks():
        rng = draws(name)
        level = (
            0.6
            + effect(own["method"])
            + 0.003 * rng.normal()
            + draws(own["data"], own["hidden"]).uniform(0, 0.2)
        )
        found = {
            "budget": 100 * own["hidden"],
            "nonzero": 100 * own["hidden"] - 1,
            "test_share": 0.25,
            "lr": 0.01,
            "option": {},
            "validation": None if own["method"] == "searched" else level + 0.005 * rng.normal(),
            "accuracies": (level + 0.01 * rng.normal(size=own["seeds"])).tolist(),
        }
        records.append({**own, **found})
        write(folder / f"{name}.json", {**found, **MADE})
    contest.frame(records).to_csv(folder / "runs.csv", index=False)
    return folder


def looked_into(data, network, seed):
    """Return what `interpretability.measure` would."""
    rng, own = draws(data, network, seed), draws(data, network)
    keys = (
        "accuracy",
        "neurons",
        "explained",
        "purity",
        "selectivity",
        "classes",
        "superposition",
        "capacity",
    )
    keys += ("codes",) if data == "dnf" else ()
    return {**{key: own.uniform(0.4, 0.6) + 0.1 * rng.normal() for key in keys}, **MADE}
