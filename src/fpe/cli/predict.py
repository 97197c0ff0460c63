"""``fpe predict``: what a saved model says about new rows."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fpe._util.files import to_json, write_atomically
from fpe.cli.shared import SHOWN, model_file
from fpe.errors import ArgumentError, DataError, FPEError

if TYPE_CHECKING:
    import numpy as np
    import pandas

    from fpe.data.rows import Rows
    from fpe.sklearn import FPEClassifier, FPERegressor

#: Endings of the file of predictions.
OUTPUTS = (".csv", ".tsv", ".parquet", ".npz")
#: Rows that are printed without --out.
PRINTED = 10


@click.command(context_settings=SHOWN, short_help="Predict on new rows with a saved model.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("table", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="File of all predictions: .csv, .tsv, .parquet or .npz."
)
@click.option("--label", help="Column of true labels.  [default: that of the training, if it is there]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def predict(model: Path, table: Path, out: Path | None, label: str | None, as_json: bool) -> None:
    """Predict on the rows of TABLE with the model in MODEL, which fpe fit or fpe.save wrote.

    MODEL is the file, such as best.safetensors, or the folder of fpe fit, of which the best model is taken.
    TABLE is a table (.csv, .tsv, .parquet, .jsonl, …) with the columns that the model was trained on, in any
    order, an array of embeddings (.npy, .npz), or a folder that fpe embed wrote. Each row gets its class and
    the probability of each class, or of a regression its number, in the order of TABLE. Missing numbers are
    replaced as in the training; names that it did not have are taken for missing, with a note. If TABLE has
    the labels too, they are not used, and the accuracy, or R², is printed.

    An existing OUT is overwritten, as by fpe export, when all predictions are there.

    \b
    Example:
      fpe predict fpe-out/iris-budget-200-1f0e3d/best.safetensors new.csv --out predictions.csv
      fpe predict best.safetensors embeddings.npy
    """  # noqa: D301
    model = model_file(model)
    _check_out(out, model, table)
    from fpe.data.rows import read_rows
    from fpe.io.checkpoint import read_about
    from fpe.sklearn import load_classifier, load_regressor

    about = read_about(model)
    load: Any = load_regressor if about.get("predicts") == "numbers" else load_classifier
    estimator = load(model)
    estimator._source = str(table)
    rows = read_rows(table, *_columns_of(about, label))
    y = _labels(rows, table, label, about.get("label"))
    notes = list(rows.notes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            frame, measured = _predicted(estimator, _inputs(estimator, rows, table, about), y, notes, label)
        except FPEError:
            raise
        except ValueError as error:  # scikit-learn's, about arrays
            raise DataError(f"{table}: {error}") from error
    notes += dict.fromkeys(str(warning.message) for warning in caught)  # of both calls
    if out is not None:
        write_atomically(out, lambda temporary: _write(frame, temporary, estimator))
    result = {
        "model": str(model),
        "rows": len(frame),
        "classes": _class_names(estimator),
        "out": None if out is None else str(out),
        **measured,
        "notes": notes,
    }
    if as_json:
        every = {"predictions": frame.to_dict("records")} if out is None else {}
        click.echo(to_json({**result, **every}))
        return
    for note in notes:
        click.echo(f"note: {note}", err=True)
    if out is None:
        click.echo("\n".join(_table(frame)))
        if len(frame) > PRINTED:
            click.echo(f"… and {len(frame) - PRINTED:,} more; --out FILE writes all")
    else:
        click.echo(f"{out}  {len(frame):,} predictions")
    for name, text in (("accuracy", "accuracy {:.1%}"), ("r2", "R² {:.3f}")):
        if measured.get(name) is not None:
            click.echo(f"{text.format(measured[name])} on the {measured['labeled']:,} rows with a label")


def _check_out(out: Path | None, model: Path, table: Path) -> None:
    """Refuse a file that cannot be written, or that is one of those that are read."""
    if out is None:
        return
    if out.suffix.lower() not in OUTPUTS:
        raise ArgumentError(f"--out {out} ends in {out.suffix!r}; allowed are {', '.join(OUTPUTS)}.")
    for given in (model, table):
        if out.exists() and given.exists() and os.path.samefile(out, given):
            raise ArgumentError(f"--out {out} is the same file as {given}; give another one.")


def _columns_of(about: dict[str, Any], label: str | None) -> tuple[list[str], list[str]]:
    """Return the names of the columns that a model knows, and of those that have text."""
    columns = about.get("columns") or []
    texts = [column["name"] for column in columns if column["kind"] == "names"]
    if any(isinstance(name, str) for name in about.get("classes") or ()):
        texts += [name for name in (label, about.get("label")) if name is not None]
    return [column["name"] for column in columns], texts


def _labels(rows: Rows, table: Path, label: str | None, trained: str | None) -> Any:
    """Return the true labels, or None."""
    if not hasattr(rows.X, "columns"):
        if label is not None:
            raise ArgumentError(f"--label is for tables; {table} has arrays, of which y has the labels.")
        return rows.y
    if label is not None:
        from fpe.data.columns import require_column

        return rows.X[require_column(rows.X.columns, label, table)].to_numpy()
    return rows.X[trained].to_numpy() if trained in rows.X.columns else None


def _inputs(estimator: Any, rows: Rows, table: Path, about: dict[str, Any]) -> Any:
    if hasattr(rows.X, "columns") and not about.get("columns"):
        raise DataError(
            f"{table} is a table, and the model does not know the names of its columns, as it was trained on "
            f"an array: give .npy or .npz with {estimator.n_features_in_} numbers in each row."
        )
    return rows.X


def _predicted(
    estimator: FPEClassifier | FPERegressor, X: Any, y: Any, notes: list[str], label: str | None
) -> tuple[pandas.DataFrame, dict[str, Any]]:
    """Return the predictions, a row each, and how well they agree with labels."""
    import pandas

    classes = _class_names(estimator)
    if classes is None:
        predictions = estimator.predict(X)
        return _columns("prediction", predictions), _r2(predictions, y, notes)
    from fpe.data.parts import label_names, quoted, some

    probabilities = estimator.predict_proba(X)
    shares = pandas.DataFrame(probabilities, columns=[f"probability_{name}" for name in classes])
    predictions = estimator.predict(X)
    if predictions.ndim == 2:  # several labels
        own = pandas.DataFrame(predictions, columns=[f"prediction_{name}" for name in classes])
        return pandas.concat([own, shares], axis=1), {}
    number = dict(zip(estimator.classes_.tolist(), classes, strict=True))
    frame = pandas.concat([pandas.Series(predictions, name="prediction"), shares], axis=1)
    if y is None:
        return frame, {}
    try:
        names = label_names(y.tolist(), "the column of labels")
    except DataError as error:
        notes.append(f"the accuracy is not known: {error}")
        return frame, {}
    pairs = [(number[own], name) for own, name in zip(predictions.tolist(), names, strict=True) if name]
    strange = sorted({name for _, name in pairs} - {*classes})
    if strange and all(name in strange for _, name in pairs):
        has = f"has none of the model's classes ({some(classes)}), but {quoted(strange, 3)}"
        if label is not None:
            raise ArgumentError(f"--label {label}: the column {has}; give the column of true labels.")
        notes.append(f"the accuracy is not known: the column of labels {has}")
        return frame, {}
    if strange:
        count = sum(name in strange for _, name in pairs)
        notes.append(
            f"{count:,} rows have labels that are no classes of the model ({quoted(strange, 3)}): wrong"
        )
    right = sum(own == name for own, name in pairs)
    return frame, {"accuracy": right / len(pairs) if pairs else None, "labeled": len(pairs)}


def _columns(name: str, values: np.ndarray) -> pandas.DataFrame:
    import pandas

    if values.ndim == 1:
        return pandas.DataFrame({name: values})
    return pandas.DataFrame(values, columns=[f"{name}_{i}" for i in range(values.shape[1])])


def _r2(predictions: np.ndarray, y: Any, notes: list[str]) -> dict[str, Any]:
    import numpy as np
    from sklearn.metrics import r2_score

    if y is None:
        return {}
    try:
        wanted = np.asarray(y, dtype=np.float64).reshape(predictions.shape)
    except (TypeError, ValueError) as error:
        notes.append(f"R² is not known: the labels are no numbers for each row ({error})")
        return {}
    known = np.isfinite(wanted.reshape(len(wanted), -1)).all(axis=1)
    count = int(known.sum())
    return {"r2": r2_score(wanted[known], predictions[known]) if count > 1 else None, "labeled": count}


def _class_names(estimator: Any) -> list[str] | None:
    """Return the classes as they are written in files: whole numbers without a point."""
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        return None
    return [str(int(c)) if isinstance(c, float) and c % 1 == 0 else str(c) for c in classes.tolist()]


def _write(frame: pandas.DataFrame, path: Path, estimator: Any) -> None:
    import numpy as np

    kind = path.suffix.lower()
    if kind == ".parquet":
        from fpe._util.extras import need

        need("pyarrow", "parquet")
        frame.to_parquet(path, index=False)
    elif kind == ".npz":
        predicted = [name for name in frame if str(name).startswith("prediction")]
        arrays = {"prediction": np.array(frame[predicted].to_numpy().tolist())}
        if len(predicted) == 1:
            arrays["prediction"] = arrays["prediction"][:, 0]
        if (classes := _class_names(estimator)) is not None:
            shares = frame[[f"probability_{name}" for name in classes]]
            arrays |= {"probability": shares.to_numpy(), "classes": np.array(classes)}
        np.savez(path, **arrays)  # type: ignore[arg-type]
    else:
        frame.to_csv(path, index=False, sep="\t" if kind == ".tsv" else ",", lineterminator="\n")


def _table(frame: pandas.DataFrame) -> list[str]:
    """Lay out the first rows: the predictions, and the probability of each."""
    from fpe._util.terminal import text_table

    shown = frame.head(PRINTED)
    predicted = [str(name) for name in frame if str(name).startswith("prediction")]
    shares = shown.drop(columns=predicted)
    head, most = ["row", *predicted], predicted == ["prediction"] and len(shares.columns) > 0
    head += ["probability"] if most else []
    cells = []
    for i in range(len(shown)):
        values = [shown[name].iloc[i] for name in predicted]
        row = [str(i), *(f"{v:.6g}" if isinstance(v, float) else str(v) for v in values)]
        cells.append([*row, f"{shares.iloc[i].max():.3f}"] if most else row)
    return text_table(head, cells, left=0)
