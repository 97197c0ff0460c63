"""Estimators from the files that `fpe.save` and ``fpe fit`` write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

from fpe.errors import CheckpointError
from fpe.io.checkpoint import load
from fpe.models import ABOUT, CLASSES, mlp_sizes
from fpe.sklearn.classifier import FPEClassifier
from fpe.sklearn.regressor import FPERegressor


def load_classifier(path: str | os.PathLike[str]) -> FPEClassifier:
    """Return the classifier in a file, fitted, to predict on new rows.

    It takes a DataFrame with the columns of the table that it was trained on, in any order; other columns are
    ignored. Missing numbers are replaced as in the training. Missing names are zeros in all of their column's
    features; so are names that the training rows did not have, with a warning. Or it takes an array: of these
    columns in the stored order, or of the features that are made of them. A model that was trained on arrays
    takes arrays.

    Parameters
    ----------
    path : path-like
        What ``fpe fit`` wrote, or `fpe.save` of an `FPEClassifier`, or of a network of `fpe.mlp`. Classes
        that the file does not name are numbered from 0.

    Returns
    -------
    FPEClassifier
        With ``predict``, ``predict_proba``, ``decision_function``, ``classes_``, ``model_``,
        ``n_features_in_`` and, if the file knows the columns, ``feature_names_in_``. Labels of the table that
        are whole numbers are integers in ``classes_``. Its parameters are those of the file; `fit` trains
        anew, and takes numbers only. `partial_fit` is refused: the file has no state of a training.

    Raises
    ------
    CheckpointError
        If the file is missing, broken, that of a regression, or of a model that `fpe.mlp` does not build.

    Examples
    --------
    >>> import tempfile, fpe
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True, as_frame=True)
    >>> clf = fpe.FPEClassifier(hidden=4, epochs=2).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fpe.save(clf, f"{folder}/iris.safetensors")
    ...     again = fpe.load_classifier(f"{folder}/iris.safetensors")
    >>> (again.predict_proba(X[X.columns[::-1]]) == clf.predict_proba(X)).all()
    np.True_
    """
    model, about = _read(path, ("classes", "labels"))
    made, several = FPEClassifier(), about["predicts"] == "labels"
    with _broken(path):
        count = about["outputs"] if several else max(2, about["outputs"])
        names = about.get("classes") or getattr(model, CLASSES, None) or range(count)
        if len(names) != count:
            raise ValueError(f"{len(names)} names of classes for {count}")
        made.classes_ = np.array(list(names))
        made._restore(model, about, about["predicts"])
    return made


def load_regressor(path: str | os.PathLike[str]) -> FPERegressor:
    """Return the regressor in a file, fitted, to predict on new rows; as `fpe.load_classifier` otherwise.

    Parameters
    ----------
    path : path-like
        What `fpe.save` wrote of an `FPERegressor`, or of a network of `fpe.mlp`, whose outputs are then the
        predictions.

    Returns
    -------
    FPERegressor

    Raises
    ------
    CheckpointError
        If the file is missing, broken, that of a classification, or of a model that `fpe.mlp` does not build.
    """
    model, about = _read(path, ("numbers",))
    made = FPERegressor()
    with _broken(path):
        target = about.get("target") or {"mean": [0.0], "spread": [1.0], "single": about["outputs"] == 1}
        made._target, made._single = (np.array(target["mean"]), np.array(target["spread"])), target["single"]
        made._restore(model, about, "squared")
    return made


@contextmanager
def _broken(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise what does not fit in a file's own words about its model as a `CheckpointError`."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"what {path} says about its model cannot be used ({type(error).__name__}: {error}); save it "
            "again, or take another copy."
        ) from error


def _read(path: str | os.PathLike[str], kinds: tuple[str, ...]) -> tuple[nn.Module, dict[str, Any]]:
    """Return a file's model and what it says about it, which older files may not."""
    try:
        model = load(path)
    except CheckpointError:
        raise
    except ValueError as error:  # it asks for the dense architecture
        raise CheckpointError(
            f"{path} has a model that fpe.mlp does not build, so that its inputs are not known; read it with "
            "fpe.load(…, like=…)."
        ) from error
    about, sizes = dict(getattr(model, ABOUT, {})), mlp_sizes(model)
    assert sizes is not None  # it was built by these sizes
    stored = about.setdefault("predicts", "numbers" if kinds == ("numbers",) else "classes")
    if stored not in kinds:
        other = "fpe.sklearn.load_regressor" if stored == "numbers" else "fpe.load_classifier"
        raise CheckpointError(f"{path} has a model that predicts {stored}; read it with {other}.")
    return model, {**about, "features": sizes["inputs"], "outputs": sizes["outputs"]}
