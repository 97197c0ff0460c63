"""``fpe fit --budget``: the best network for a budget of weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fpe.budget import Recommendation
    from fpe.data import Dataset


def fit_budget(
    dataset: Dataset,
    budget: int,
    out: Path | None,
    *,
    fresh: bool,
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
    from fpe.compare.store import provenance
    from fpe.io.checkpoint import save
    from fpe.models import CLASSES

    folder = out or Path("fpe-out", f"{dataset.name}-budget-{dataset.fingerprint[:6]}")
    if fresh:
        shutil.rmtree(folder / "search", ignore_errors=True)

    def show(found: Recommendation) -> None:
        if not as_json and found.best.candidate.budget < budget:  # the last one is reported below
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
            "nonzero": own.n_nonzero_,
            "network": own.search_[0].candidate.name,
            "validation_accuracy": own.search_[0].score,
            "test_accuracy": own.score(dataset.X_test, dataset.y_test),
        }
        for own in found.classifiers
    ]
    model = found.classifier.model_
    setattr(model, CLASSES, [dataset.classes[number] for number in found.classifier.classes_])
    save(model, folder / "best.safetensors")
    result = {"data": dataset.name, **found.to_dict(), "rows": rows, "provenance": provenance()}
    write_json(folder / "results.json", result)
    if as_json:
        click.echo(to_json(result))
        return
    head = ("non-zeros", "network", "validation %", "test %")
    cells = [
        (
            f"{row['nonzero']:,}",
            row["network"],
            f"{100 * row['validation_accuracy']:.1f}",
            f"{100 * row['test_accuracy']:.1f}",
        )
        for row in rows
    ]
    click.echo(f"{found}\n\non the test data\n" + "\n".join(text_table(head, cells, left=0)))
    click.echo(f"\nin Python   {found.python()}")
    click.echo(f"results     {folder / 'results.json'}\nbest model  {folder / 'best.safetensors'}")
    click.echo(f"  load it with fpe.load({str(folder / 'best.safetensors')!r})")
