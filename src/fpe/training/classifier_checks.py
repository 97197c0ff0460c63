"""What `fpe.sklearn.FPEClassifier` accepts: its parameters, and its data."""

from __future__ import annotations

from numbers import Number
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.utils.validation import _check_sample_weight
from torch import Tensor, nn

from fpe.errors import ArgumentError, DataError, raise_problems
from fpe.expansion.planner import check_arguments
from fpe.expansion.pruning import InputPruning
from fpe.training.loop import finite, recipe_problems
from fpe.training.recipe import Recipe

#: Passes over the data before and after the expansion, where they are left open.
EPOCHS = (25, 25)


def checked_recipe(classifier: Any, features: int) -> Recipe:
    """Return what a classifier is to do, all that was left open filled in.

    Parameters
    ----------
    classifier : FPEClassifier
        Has the parameters as attributes.
    features : int
        Of the data.

    Returns
    -------
    Recipe
        How it expands and trains.

    Raises
    ------
    ArgumentError
        For parameters that are not allowed, all at once.
    """
    problems = recipe_problems(classifier)
    if not 0 < classifier.validation_fraction < 1:
        problems.append(
            f"validation_fraction is {classifier.validation_fraction!r}; give a share between 0 and 1."
        )
    trials, prune = classifier.trials, classifier.prune
    if not isinstance(trials, int | np.integer) or isinstance(trials, bool) or trials < 1:
        problems.append(f"trials is {trials!r}; give an integer of at least 1.")
    if isinstance(prune, InputPruning) and prune.by != "norm":
        problems.append(
            f"prune is {prune!r}; FPEClassifier ranks columns by 'norm': give prune='columns', or "
            "call fpe.expand in a loop of your own."
        )
        raise_problems(problems, ArgumentError, "the parameters of FPEClassifier")
    asked = classifier
    try:
        asked = Recipe.of(classifier, EPOCHS)
    except ArgumentError as error:
        if not str(error).startswith("unknown prune"):
            problems.append(str(error))
    factor = 2 if asked.factor is None else asked.factor
    try:
        check_arguments(nn.Identity(), factor, asked.split or "random", asked.prune or "magnitude", 0)
        if factor > features:
            problems.append(
                f"factor {factor} is larger than the number of features, n_features = {features}; "
                f"give a factor from 1 to {features}."
            )
    except ArgumentError as error:
        problems.append(str(error))
    raise_problems(problems, ArgumentError, "the parameters of FPEClassifier")
    assert isinstance(asked, Recipe)
    return asked


def checked_weight(sample_weight: Any, X: np.ndarray) -> Tensor | None:
    """Return the weights of the samples in the type of `X`, (samples,); None for none."""
    if sample_weight is None:
        return None
    return as_tensor(_check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True))


def as_tensor(array: np.ndarray) -> Tensor:
    """Return an array as a tensor: a copy where PyTorch cannot share it, read-only or of negative strides."""
    shared = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if shared else array.copy())


def as_inputs(X: np.ndarray, model: nn.Module) -> Tensor:
    """Return checked features in the type of a network.

    Raises
    ------
    DataError
        For numbers that are too large for it.
    """
    dtype = next(model.parameters()).dtype
    inputs = as_tensor(X).to(dtype)
    if not finite(inputs):
        raise DataError(f"X has values of up to {np.abs(X).max():.3g}, too large for the network's {dtype}.")
    return inputs


def finite_logits(logits: Tensor, X: np.ndarray) -> Tensor:
    """Return the logits of `X`, (samples, outputs); raise a DataError if some are NaN or infinite."""
    finite_rows = logits.isfinite().all(dim=1)
    if not finite_rows.all():
        raise DataError(
            f"the outputs are NaN or infinite for {int((~finite_rows).sum())} of {len(X)} samples: X has "
            f"values of up to {np.abs(X).max():.3g}. Scale it as the data that the network was fitted to."
        )
    return logits


def checked_labels(y: Any) -> Any:
    """Return labels for scikit-learn's own checks, those in an object array in a type of their own.

    Raises
    ------
    DataError
        For labels that are missing, lists, or of types that cannot be compared.
    """
    dtype = getattr(y, "dtype", None)
    if y is None or (isinstance(dtype, np.dtype) and dtype.kind in "iubU"):
        return y
    labels = np.array(y, dtype=object)
    if labels.ndim != 1:  # scikit-learn takes a column, with a warning, and refuses what is wider
        return y
    lists = [label for label in labels if isinstance(label, list | tuple | set | dict | np.ndarray)]
    if lists:
        raise DataError(f"y holds lists such as {lists[0]!r}; give one label for each sample.")
    import pandas

    missing = pandas.isna(labels)
    if missing.any():
        raise DataError(
            f"y has NaN or missing labels in {int(missing.sum())} of {len(labels)} samples, the first at "
            f"position {int(missing.argmax())}; leave these samples out, or give their class a name."
        )
    kinds = {_kind(label) for label in labels}
    if len(kinds) > 1:
        raise DataError(f"y mixes labels of the types {', '.join(sorted(kinds))}; give labels of one type.")
    own = dtype is None or (isinstance(dtype, np.dtype) and dtype.kind != "O")
    return y if own or kinds != {"number"} else np.array(labels.tolist())


def _kind(label: Any) -> str:
    """Return the name of a label's type, the same for those that can be compared."""
    for name, kind in (("str", str), ("number", Number)):
        if isinstance(label, kind):
            return name
    return type(label).__name__


def refuse_sparse(X: Any) -> None:
    """Raise a DataError for a sparse matrix."""
    if scipy.sparse.issparse(X):
        raise DataError(
            "X is a sparse matrix. The network's first layer is a dense product, which would make it dense "
            "in each mini-batch; give X.toarray(), or a dense projection such as TruncatedSVD makes."
        )
