"""``fpe fit --budget``: the best network for a budget of weights."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fpe.budget import Recommendation
    from fpe.data import Dataset

FIGURE = "accuracy.png"
NO_FIGURE = "no figure was drawn: pip install 'fixed-parameter-expansion[plots]'"


def fit_budget(
    dataset: Dataset,
    budget: int,
    out: Path | None,
    *,
    fresh: bool,
    force: bool,
    as_json: bool,
    seed: int,
    epochs: int | None,
    batch_size: int | None,
    jobs: int,
) -> None:
    """Search for the best network of a budget, train it, and report and save it."""
    from fpe._util.files import to_json, write_json
    from fpe._util.terminal import text_table
    from fpe.budget import recommend
    from fpe.compare.best import CARD, MODEL, check_replaceable, keep_best, with_origin
    from fpe.compare.report import budget_figure
    from fpe.compare.runner import remove_runs
    from fpe.compare.store import provenance
    from fpe.io.checkpoint import save
    from fpe.models import ABOUT, CLASSES

    identity = [dataset.fingerprint, epochs, batch_size, seed]
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:6]
    folder = out or Path("fpe-out", f"{dataset.name}-budget-{budget}-{digest}")
    judged_on = {"fingerprint": dataset.fingerprint, "budget": budget, "seed": seed}
    check_replaceable(folder, judged_on, force)
    if fresh:
        remove_runs(folder / "search")

    def show(found: Recommendation) -> None:
        if not as_json and found.classifiers[-1].budget != budget:  # the last one is reported below
            click.echo(found.sentence(), err=True)

    how: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "seed": seed, "n_jobs": jobs}
    try:
        found = recommend(
            dataset.X_train,
            dataset.y_train,
            budget,
            folder=folder / "search",
            on_budget=show,
            verbose=not as_json,
            **how,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped. What is finished is kept in {folder / 'search'}; run the same command again to resume."
        ) from None
    rows = [
        {
            "budget": searched.budget,
            "nonzero": own.n_nonzero_,
            "network": own.search_[0].candidate.name,
            "validation_accuracy": own.search_[0].score,
            "test_accuracy": own.score(dataset.X_test, dataset.y_test),
        }
        for searched, own in zip(found.classifiers, found.winners, strict=True)
    ]
    model, described = found.classifier._deployed(), dataset.about()
    setattr(model, CLASSES, [dataset.classes[number] for number in found.classifier.classes_])
    described["classes"] = [described["classes"][number] for number in found.classifier.classes_]
    measured = {
        "judged_on": judged_on,
        "validation_accuracy": found.best.score,
        "validation": "parts of the training rows, which were held out in the search",
        "test_accuracy": rows[-1]["test_accuracy"],
        "rivals": [
            {
                "name": f"{entry.candidate.name}{', dense' * entry.dense}",
                "nonzero": entry.nonzero,
                "validation_accuracy": entry.score,
                "test_accuracy": None,
            }
            for entry in found.rivals
        ],
    }
    about = getattr(model, ABOUT) | described | {"measured": measured}
    setattr(model, ABOUT, with_origin(about, model))
    kept, replaced = keep_best(folder, getattr(model, ABOUT), lambda file: save(model, file), force)
    result = {"data": dataset.name, **found.to_dict(), "rows": rows, "provenance": provenance()}
    result["best"] = {"file": MODEL, "kept": kept, "replaced": replaced}
    write_json(folder / "results.json", result)
    files = {"results": folder / "results.json", "model card": folder / CARD}
    try:
        budget_figure(found, rows, dataset.name, folder / FIGURE)
        files["figure"] = folder / FIGURE
    except ImportError:
        click.echo(NO_FIGURE, err=True)
    if as_json:
        click.echo(to_json(result))
        return
    head = ("budget", "non-zeros", "network", "validation %", "test %")
    cells = [
        (
            f"{row['budget']:,}",
            f"{row['nonzero']:,}",
            row["network"],
            f"{100 * row['validation_accuracy']:.1f}",
            f"{100 * row['test_accuracy']:.1f}",
        )
        for row in rows
    ]
    click.echo(f"{found}\n\non the test data\n" + "\n".join(text_table(head, cells, left=0)))
    click.echo(f"\nin Python   {found.python()}")
    for name, file in {**files, "best model": folder / MODEL}.items():
        click.echo(f"{name:<10}  {file}")
    if kept:
        click.echo("  it is of an earlier run in this folder, and better than the best model of this one")
    if replaced:
        click.echo("  it replaces a model that is better, or that cannot be compared, as --force asks")
    click.echo(next_steps(folder))


def next_steps(folder: Path) -> str:
    """Say what can be done with the best model."""
    from fpe.compare.best import MODEL

    file = str(folder / MODEL)
    return (
        f"  load it with fpe.load_classifier({file!r})\n"
        f"  next: fpe predict {shlex.quote(file)} NEW-ROWS --out predictions.csv"
    )
