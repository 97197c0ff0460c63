"""What `fpe.sklearn.FPEClassifier` accepts: its parameters, and its data."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.utils.validation import _check_sample_weight
from torch import Tensor, nn

from fpe.columns import Columns
from fpe.errors import ArgumentError, DataError, raise_problems
from fpe.planning import check_arguments
from fpe.recipes import Recipe
from fpe.training import recipe_problems

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
    if isinstance(prune, Columns) and prune.by != "norm":
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
    return torch.from_numpy(_check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True))


def refuse_sparse(X: Any) -> None:
    """Raise a DataError for a sparse matrix."""
    if scipy.sparse.issparse(X):
        raise DataError(
            "X is a sparse matrix. The network's first layer is a dense product, which would make it dense "
            "in each mini-batch; give X.toarray(), or a dense projection such as TruncatedSVD makes."
        )
