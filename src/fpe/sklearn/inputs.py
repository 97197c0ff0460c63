"""Check, scale and convert features and labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Number
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.preprocessing import StandardScaler
from sklearn.utils.multiclass import type_of_target
from torch import Tensor, nn

from fpe.errors import DataError
from fpe.training.loop import as_tensor, finite

#: Features whose spreads differ by more than this are scaled one by one, others alike. Of this many features
#: or more, which are pixels or embeddings as a rule, some may hardly vary.
ALIKE, MANY = 10.0, 64
#: The most bytes that a sparse matrix may take as a dense one.
MOST_BYTES = 2**32


def mean_and_spread(X: np.ndarray, weight: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the (weighted) mean and standard deviation of each column, computed in float64.

    The deviation of a column that is constant, but for rounding, is 0.
    """
    share = None if weight is None or not weight.sum() > 0 else weight.numpy()
    found = StandardScaler().fit(X, sample_weight=share)
    mean, spread = np.asarray(found.mean_), np.sqrt(found.var_)
    return mean, np.where(spread > 10 * np.finfo(X.dtype).eps * np.abs(mean), spread, 0.0)


def scaler_of(X: np.ndarray, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the mean and the divisor of each feature: one for all, unless their spreads are unlike."""
    mean, spread = mean_and_spread(X, weight)
    common = np.sqrt((spread**2).mean()) if spread.any() else 1.0
    scale = np.full_like(spread, common) if _alike(spread) else np.where(spread > 0, spread, 1.0)
    return torch.from_numpy(mean.astype(X.dtype)), torch.from_numpy(scale.astype(X.dtype))


def has_unlike_spreads(X: np.ndarray) -> bool:
    """Tell whether features are so unlike that they are scaled one by one."""
    return not _alike(mean_and_spread(X, None)[1])


def _alike(spread: np.ndarray) -> bool:
    """Tell whether the largest spread is like the smallest one, or of many features the median one."""
    varying = spread[spread > 0]
    if not len(varying):
        return True
    least = np.median(varying) if len(spread) >= MANY else varying.min()
    return bool(varying.max() <= ALIKE * least)


@contextmanager
def explained(X: Any) -> Iterator[None]:
    """Add to an error about a table with text or missing values how such a table becomes numbers."""
    try:
        yield
    except ValueError as error:
        if not hasattr(X, "select_dtypes"):
            raise
        unfit = [*X.columns[X.isna().any()], *X.select_dtypes(exclude=["number", "bool"])]
        if not unfit:
            raise
        raise DataError(
            f"{error} Columns with text or missing values: {', '.join(map(repr, dict.fromkeys(unfit)))}. "
            "fpe.data.load(FILE, label=…) and fpe fit encode them; or put encoders and imputers of "
            "scikit-learn before the estimator, in a Pipeline."
        ) from error


def as_dense(X: Any) -> np.ndarray:
    """Return features as an array, row by row in memory; refuse a sparse matrix that would take too much.

    A product of the same numbers in another order of memory may differ in the last bit.
    """
    if not scipy.sparse.issparse(X):
        return np.ascontiguousarray(X)
    size = X.shape[0] * X.shape[1] * X.dtype.itemsize
    if size > MOST_BYTES:
        raise DataError(
            f"X is a sparse matrix of shape {X.shape}, which would take {size / 2**30:.1f} GiB as a dense "
            "one; give a dense projection such as TruncatedSVD makes, or fewer features."
        )
    return np.ascontiguousarray(X.toarray())


def as_inputs(X: np.ndarray, model: nn.Module, source: str = "X") -> Tensor:
    """Return checked features in the type of a network; refuse numbers that are too large for it."""
    dtype = next(model.parameters()).dtype
    inputs = as_tensor(X).to(dtype)
    if not finite(inputs):
        most = f"{np.abs(X).max():.3g}"
        raise DataError(f"{source} has values of up to {most}, too large for the network's {dtype}.")
    return inputs


def has_several_labels(y: Any) -> bool:
    """Tell whether labels are 0 and 1 for each of several."""
    try:
        return bool(type_of_target(y) == "multilabel-indicator")
    except (ValueError, TypeError):  # what `checked_labels` refuses
        return False


def checked_labels(y: Any) -> Any:
    """Return labels for scikit-learn's own checks; refuse missing labels, lists and mixed types.

    Numbers in an object array become an array of numbers.
    """
    dtype = getattr(y, "dtype", None)
    labels = np.array(y, dtype=object)
    if labels.ndim != 1 or (isinstance(dtype, np.dtype) and dtype.kind in "iubU"):
        return y  # scikit-learn takes a column, with a warning, and refuses wider arrays
    import pandas

    missing = pandas.isna(labels)
    if missing.any():
        raise DataError(
            f"y has NaN or missing labels in {missing.sum()} of {len(labels)} samples, the first at position "
            f"{missing.argmax()}; remove these samples, or give their class a name."
        )
    kinds = {next((kind for kind in (Number, str) if isinstance(own, kind)), type(own)) for own in labels}
    if len(kinds) > 1 or kinds & {list, tuple, set, dict, np.ndarray}:
        names = ", ".join(sorted(kind.__name__.lower() for kind in kinds))
        raise DataError(
            f"y has labels of the types {names}; give labels of one type, one number or text for each sample."
        )
    is_float = isinstance(dtype, np.dtype) and dtype.kind == "f"
    return np.array(labels.tolist()) if kinds == {Number} and not is_float else y


def plain(value: Any) -> Any:
    """Return a parameter as JSON takes it; one that JSON does not have as a mapping with its text."""
    value = value.item() if isinstance(value, np.generic) else value
    value = list(value) if isinstance(value, tuple) else value
    try:
        return value if json.loads(json.dumps(value)) == value else {"repr": repr(value)}
    except TypeError:
        return {"repr": repr(value)}
