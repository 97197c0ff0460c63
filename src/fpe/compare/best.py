"""The best model of a folder of ``fpe fit``: which one stays, what it says about itself, its card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fpe._util.files import write_atomically
from fpe._util.terminal import say
from fpe.compare.store import provenance
from fpe.errors import ArgumentError, CheckpointError
from fpe.io.checkpoint import read_about
from fpe.masked import counted_parameters

MODEL, CARD = "best.safetensors", "best.md"
#: Columns, classes and rivals that a card shows.
SHOWN = 8


def with_origin(about: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Add counts and versions to what a model says about itself."""
    # Without the time, so that the same run writes the same file.
    made_by = {key: value for key, value in provenance().items() if key != "written"}
    return {**about, **counts_of(model), "provenance": made_by}


def counts_of(model: nn.Module) -> dict[str, int]:
    """Return the count of non-zero parameters, and of all."""
    counts = [(count, parameter.numel()) for _, parameter, count in counted_parameters(model)]
    nonzero, parameters = (sum(numbers) for numbers in zip(*counts, strict=True))
    return {"nonzero": nonzero, "parameters": parameters}


def check_replaceable(folder: Path, judged_on: Mapping[str, Any], force: bool) -> None:
    """Refuse, before anything is trained, a folder whose model could not be compared with a new one.

    Two models can be compared if they were judged by the same rows: `judged_on` is equal.
    """
    file = folder / MODEL
    if force:
        return
    if not file.exists():
        own = [path for path in (folder / CARD, folder / "results.json") if path.exists()]
        if own:
            raise ArgumentError(
                f"{own[0]} would be overwritten, and has no {MODEL} beside it, as fpe fit writes. Give "
                "another --out, or --force."
            )
        return
    try:
        earlier = read_about(file).get("measured", {}).get("judged_on", {})
    except CheckpointError as error:
        raise ArgumentError(f"{error} Give another --out, or --force to replace it.") from error
    if earlier != judged_on:
        why = "; ".join(_differences(earlier, judged_on))
        raise ArgumentError(
            f"{file} cannot be compared with a new model: {why}. Give another --out, the same settings as "
            "before, or --force to replace it."
        )


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in words why two models cannot be compared."""
    if not earlier:
        return ["it does not say by which rows it was chosen"]
    found, before, asked = list[str](), earlier.get("budget"), now.get("budget")
    if before != asked:
        was = f"it was searched for {before:,} non-zeros" if before else "it is the best of given widths"
        found.append(was + (f", now {asked:,} are asked for" if asked else ", now widths are given"))
    elif earlier.get("validation_fraction") != now.get("validation_fraction"):
        shares = f"{earlier.get('validation_fraction')}, now {now.get('validation_fraction')}"
        found.append(f"other rows were held out to choose it (--validation-fraction {shares})")
    if earlier.get("seed") != now.get("seed"):
        found.append(f"other rows were held out (--seed {earlier.get('seed')}, now {now.get('seed')})")
    elif earlier.get("fingerprint") != now.get("fingerprint"):
        found.append("it is of other data: its rows or columns, or the options that choose them, changed")
    return found


def keep_best(
    folder: Path, about: Mapping[str, Any], write: Callable[[Path], object], force: bool
) -> tuple[bool, bool]:
    """Let `write` fill the folder's model, and write its card, unless a better one is there.

    Return whether the earlier one was kept, and whether it was replaced though it is better or cannot be
    compared. A tie is no reason to keep it: the same run writes the same files.
    """
    file, earlier = folder / MODEL, dict[str, Any]()
    exists = file.exists()
    if exists:
        try:
            earlier = read_about(file).get("measured", {})
        except CheckpointError:  # only `force` comes here
            earlier = {}
    measured = about["measured"]
    comparable = exists and earlier.get("judged_on") == measured["judged_on"]
    better = comparable and _merit(earlier) > _merit(measured)
    if better and not force:
        return True, False
    if comparable and not better:
        how = "is as good as" if _merit(earlier) == _merit(measured) else "is better than"
        say(f"the new best model {how} the stored one on the rows that chose them, and replaces it")
    write_atomically(folder / CARD, lambda temporary: temporary.write_text(card(about), encoding="utf-8"))
    write(file)
    return False, exists and (better or not comparable)


def _merit(measured: Mapping[str, Any]) -> tuple[float, float]:
    return measured["validation_accuracy"], -(measured.get("validation_loss") or 0.0)


def card(about: Mapping[str, Any]) -> str:
    """Return the model card, in Markdown, of what a model of ``fpe fit`` says about itself."""
    snippet = prediction(about, "import fpe", f'fpe.load_classifier("{MODEL}")')
    lines = [*tables(about), "", "Predict on new rows, in this folder:", "", "```python", *snippet, "```", ""]
    lines += ["```console", f"$ fpe predict {MODEL} new-rows.csv --out predictions.csv", "```", ""]
    return "\n".join(lines)


def density(about: Mapping[str, Any]) -> str:
    """Return the counts of a model in words."""
    nonzero, parameters = about["nonzero"], about["parameters"]
    return f"{nonzero:,} of {parameters:,}, density {nonzero / parameters:.1%}"


def versions(made_by: Mapping[str, Any]) -> str:
    """Return the provenance of a model in words."""
    return ", ".join(f"{name} {version}" for name, version in made_by.items() if version)


def tables(about: Mapping[str, Any]) -> list[str]:
    """Return the lines of a card that say what a model of ``fpe fit`` is, and what was measured."""
    data, measured, made_by = about["data"], about["measured"], about["provenance"]
    columns, classes = about["columns"] or [], about["classes"]
    inputs = f"{about['features']:,} features"
    if columns:
        inputs = f"{len(columns):,} columns, which become {inputs}: {_some(c['name'] for c in columns)}"
    label = "" if about["label"] is None else f"column {about['label']!r}, "
    test = f"{measured['test_accuracy']:.1%} on the {data['test_samples']:,} test rows"
    chosen = f"{measured['validation_accuracy']:.1%} on {measured['validation']} and chose it: optimistic"
    rows = {
        "trained on": f"{data['name']}, {data['training_samples']:,} rows; {inputs}",
        "predicts": f"{label}{len(classes)} classes: {_some(classes)}",
        "non-zero parameters": density(about),
        "accuracy": f"{test}; {chosen}",
        "always the most frequent class": f"{data['majority_accuracy']:.1%} on the test rows",
        "seed": str(about["settings"]["random_state"]),
        "versions": versions(made_by),
    }
    lines = [f"# {cell(data['name'])}: a model of fpe fit", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {cell(value)} |" for name, value in rows.items()]
    if measured["rivals"]:
        lines += ["", "Beside it, measured on the same rows:", ""]
        lines += ["| network | non-zeros | held-out rows | test rows |", "| --- | --- | --- | --- |"]
        for own in measured["rivals"][:SHOWN]:
            accuracies = (own["validation_accuracy"], own["test_accuracy"])
            cells = " | ".join("not measured" if each is None else f"{each:.1%}" for each in accuracies)
            lines.append(f"| {cell(own['name'])} | {own['nonzero']:,} | {cells} |")
    return lines


def prediction(about: Mapping[str, Any], importing: str, loading: str) -> list[str]:
    """Return Python that loads a classifier, with its import, and predicts one row."""
    columns = about["columns"] or []
    if columns and len(columns) <= SHOWN and all(column["kind"] != "list" for column in columns):
        row = {
            c["name"]: (c["missing"] or 0) if c["kind"] == "number" else c["categories"][0] for c in columns
        }
        library, rows = "pandas", f"pandas.DataFrame([{row!r}])"
    else:
        library, rows = "numpy", f"numpy.zeros((1, {about['features']}))"
    return [
        importing,
        f"import {library}",
        "",
        f"clf = {loading}",
        f"rows = {rows}",
        "print(clf.predict(rows), clf.predict_proba(rows))",
    ]


def _some(values: Any) -> str:
    every = list(map(str, values))
    return ", ".join(every[:SHOWN]) + (", …" if len(every) > SHOWN else "")


def cell(text: object) -> str:
    """Return a text as a cell of a table of Markdown."""
    return " ".join(str(text).replace("|", "\\|").split())
