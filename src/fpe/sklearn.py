"""`FPEClassifier`: expand, train and predict, in scikit-learn's conventions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from numbers import Number
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor, nn

from fpe._util.terminal import progress_bar
from fpe.errors import ArgumentError, DataError
from fpe.expansion.planner import plan
from fpe.expansion.pruning import InputPruning, Pruning
from fpe.expansion.splits import Split
from fpe.masked import count_nonzero
from fpe.models import mlp
from fpe.rewiring.policies import RewiringPolicy
from fpe.training.loop import EarlyStopping, Record, as_tensor, finite, predict_logits
from fpe.training.recipe import Recipe
from fpe.training.trials import Trial, best_of, train_trials


@dataclass(eq=False, repr=False)
class FPEClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier that trains a small dense network, expands it, and trains it on.

    The number of non-zero parameters stays that of the dense network. Computes in float32 if X is float32,
    else in float64. Optional parameters that are None get the defaults of `fpe.training.Recipe.choose`.

    Parameters
    ----------
    hidden : int or sequence of int, default 16
        Neurons of the dense network's hidden layer, or of each of several.
    factor : int, optional
        Children of each neuron; 1 is the dense baseline, trained for as long in total.
    split, prune : str, Split or Pruning, optional
        As for `fpe.expand`.
    rewire : bool, str or RewiringPolicy, default False
        Dynamic masks after the expansion: a policy or its name, as for `fpe.Rewirer`, or True for
        ``"columns"`` with ``prune="columns"`` and ``"accumulated"`` otherwise.
    warmup_epochs, epochs : int, optional
        Passes over the data before (section 3.3) and after the expansion.
    lr : float, optional
        Adam's learning rate; the expansion resets Adam's moments.
    decay : bool, optional
        Whether it falls to 0 as half a cosine over all epochs; `partial_fit` ignores it.
    batch_size : int, optional
        Samples in a mini-batch.
    l2 : float, default 0
        Weight of the penalty ``l2 / 2 · Σ w²`` over all parameters.
    patience : int, optional
        Stop the warm-up, and the training after it, when the loss on validation data has not fallen for this
        many epochs.
    validation_fraction : float, default 0.1
        The share of the data that is validation data if `patience` is given.
    trials : int, default 1
        Networks trained together from different seeds; the one with the lowest (validation) loss is kept.
    random_state : int, RandomState or None, default 0
        Seed of weights, splits and order of the data.
    verbose : bool, default False
        Show a progress bar on a terminal.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels seen.
    model_, dense_model_ : torch.nn.Sequential
        The expanded network, whose outputs are logits (one for two classes), and the dense one before it.
    n_nonzero_, n_features_in_ : int
        Non-zero parameters of ``model_``; features seen.
    history_ : list of dict
        One record for each epoch: ``stage`` ("dense" or "expanded"), ``epoch`` from 1 over both, ``loss`` and,
        with early stopping, ``validation_loss``.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from fpe.sklearn import FPEClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = FPEClassifier(hidden=8, epochs=50, lr=1e-2).fit(X[:1500] / 16, y[:1500])
    >>> clf.score(X[1500:] / 16, y[1500:]) > 0.8
    True
    """

    hidden: int | Sequence[int] = 16
    _: KW_ONLY
    factor: int | None = None
    split: str | Split | None = None
    prune: str | Pruning | None = None
    rewire: bool | str | RewiringPolicy = False
    warmup_epochs: int | None = None
    epochs: int | None = None
    lr: float | None = None
    decay: bool | None = None
    batch_size: int | None = None
    l2: float = 0.0
    patience: int | None = None
    validation_fraction: float = 0.1
    trials: int = 1
    random_state: int | np.random.RandomState | None = 0
    verbose: bool = False

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> FPEClassifier:
        """Train a dense network, expand it, train it on.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Dense and finite.
        y : array-like of shape (n_samples,)
            Labels of any type, at least two different ones.
        sample_weight : array-like of shape (n_samples,), optional
            Weight of each sample in the loss.

        Returns
        -------
        FPEClassifier
            Itself. After Ctrl-C it keeps the last finished epoch and can predict.

        Raises
        ------
        ArgumentError, DataError, ValueError
            For bad parameters or data; the estimator is then unchanged.
        """
        with self._unchanged_on_error():
            X, y, weight, recipe = self._checked(X, y, sample_weight)
            classes, codes = np.unique(y, return_inverse=True)
            trials = self._new_trials(X, classes, recipe, self.trials)

            def part(rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor | None]:
                own = None if weight is None else weight[rows]
                return torch.from_numpy(X[rows]), torch.from_numpy(codes[rows]), own

            training, validation = self._validation_split(codes)
            inputs, labels, weights = part(training)
            stopping = None
            if self.patience is not None:
                X_val, y_val, weight_val = part(validation)
                stopping = EarlyStopping(X_val, y_val, self.patience, weight_val)
            with progress_bar("training", recipe.total_epochs * self.trials, self.verbose) as advance:

                def show(records: list[Record]) -> None:
                    for record in records:
                        advance(f"loss {record['loss']:.4f}")

                options: dict[str, Any] = {"sample_weight": weights, "early_stopping": stopping}
                try:
                    train_trials(trials, inputs, labels, on_epoch=show, **options)
                finally:
                    self._trial = best_of(trials)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> FPEClassifier:
        """Train for one epoch over this data, in mini-batches, expanding the network after the warm-up.

        The first ``warmup_epochs`` calls train the dense network; the next one expands it first. There is no
        early stopping, and ``epochs`` only says during how many calls masks change, with ``rewire``.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`, with the same return value and errors; each label is one of the classes.
        classes : array-like, optional
            All labels of this and all later calls; needed in the first call.
        """
        first = not hasattr(self, "classes_")
        if first and classes is None:
            raise ArgumentError("classes must be given in the first call of partial_fit: all labels to come.")
        with self._unchanged_on_error():
            known = np.unique(classes) if first else self.classes_
            X, y, weight, recipe = self._checked(X, y, sample_weight, first)
            if classes is not None and not np.array_equal(np.unique(classes), known):
                raise ArgumentError(f"classes is {classes!r}; the first call of partial_fit had {known}.")
            unknown = np.setdiff1d(y, known)
            if len(unknown):
                raise DataError(f"y has labels {unknown[:5]} that are not among the classes {known}.")
            if first:
                self._new_trials(X, known, recipe)
            # A copy, so that after an error the old one is unchanged; the learning rate is constant.
            self._trial = replace(self._trial, recipe=replace(recipe, decay=False))
            codes = torch.from_numpy(np.searchsorted(known, y))
            inputs, until = as_inputs(X, self.model_), self._trial.epoch + 1
            train_trials([self._trial], inputs, codes, until=until, sample_weight=weight)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Return logits, shape (n_samples, n_classes); for two classes that of the second, (n_samples,)."""
        logits: np.ndarray = self._logits(X).double().numpy()
        return logits[:, 0] if logits.shape[1] == 1 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class, shape (n_samples, n_classes)."""
        logits = self._logits(X).double()
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return logits.softmax(dim=1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of each sample, shape (n_samples,)."""
        scores = self.decision_function(X)
        codes = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        return np.asarray(self.classes_[codes])

    @property
    def model_(self) -> nn.Module:
        """The expanded network; the dense one before the expansion."""
        return self._trial.model

    @property
    def dense_model_(self) -> nn.Module:
        """The dense network, as it was at the expansion."""
        return self._trial.dense

    @property
    def history_(self) -> list[Record]:
        """One record for each epoch."""
        return self._trial.history

    @property
    def n_nonzero_(self) -> int:
        """Number of non-zero parameters."""
        check_is_fitted(self)
        return count_nonzero(self.model_)

    @contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        """Undo what a failing call has set; Ctrl-C is no failure."""
        before, source = self.__dict__.copy(), self.random_state
        drawn = source.get_state() if isinstance(source, np.random.RandomState) else None
        try:
            yield
        except Exception:
            self.__dict__.clear()
            self.__dict__.update(before)
            if drawn is not None:
                source.set_state(drawn)  # type: ignore[union-attr]
            raise

    def _checked(
        self, X: Any, y: Any, sample_weight: Any, reset: bool = True
    ) -> tuple[np.ndarray, np.ndarray, Tensor | None, Recipe]:
        refuse_sparse(X)
        X, y = validate_data(self, X, checked_labels(y), dtype=[np.float64, np.float32], reset=reset)
        check_classification_targets(y)
        recipe = Recipe.of(self.get_params(deep=False), "the parameters of FPEClassifier")
        if isinstance(self.prune, InputPruning) and self.prune.by != "norm":
            raise ArgumentError(
                f"prune is {self.prune!r}; FPEClassifier ranks columns by 'norm': give prune='columns'."
            )
        if recipe.factor > X.shape[1]:
            raise ArgumentError(
                f"factor is {recipe.factor}; give at most the number of features, n_features = {X.shape[1]}."
            )
        if sample_weight is None:
            return X, y, None, recipe
        weight = _check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True)
        return X, y, as_tensor(weight), recipe

    def _new_trials(self, X: np.ndarray, classes: np.ndarray, recipe: Recipe, count: int = 1) -> list[Trial]:
        if len(classes) < 2:
            raise DataError(f"y has one class only, {classes.tolist()[0]!r}; give samples of at least two.")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        hidden = [int(size) for size in np.atleast_1d(self.hidden)]
        outputs = 1 if len(classes) == 2 else len(classes)
        dtype = torch.float64 if X.dtype == np.float64 else torch.float32
        trials = [
            Trial.start(recipe, mlp(X.shape[1], hidden, outputs, seed=own, dtype=dtype), own)
            for own in range(seed, seed + count)
        ]
        if recipe.factor > 1:  # refuse before the warm-up what cannot be expanded
            plan(trials[0].dense, recipe.factor, split=recipe.split, prune=recipe.prune, seed=seed)
        self.classes_, self._trial = classes, trials[0]
        return trials

    def _validation_split(self, codes: np.ndarray) -> Sequence[np.ndarray]:
        """Return the numbers of the samples for training and for validation, stratified if possible."""
        every, counts = np.arange(len(codes)), np.bincount(codes)
        if self.patience is None:
            return every, every[:0]
        size = max(1, round(len(codes) * self.validation_fraction))
        possible = counts.min() > 1 and len(counts) <= min(size, len(codes) - size)
        parts: list[np.ndarray] = train_test_split(
            every, test_size=size, random_state=self._trial.seed, stratify=codes if possible else None
        )
        return parts

    def _logits(self, X: Any) -> Tensor:
        check_is_fitted(self)
        refuse_sparse(X)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        logits = predict_logits(self.model_, as_inputs(X, self.model_))
        if not finite(logits):
            raise DataError(
                f"the outputs are NaN or infinite for {int((~logits.isfinite().all(dim=1)).sum())} of {len(X)} "
                f"samples: X has values of up to {np.abs(X).max():.3g}. Scale it as in fit."
            )
        return logits


def as_inputs(X: np.ndarray, model: nn.Module) -> Tensor:
    """Return checked features in the type of a network; refuse numbers that are too large for it."""
    dtype = next(model.parameters()).dtype
    inputs = as_tensor(X).to(dtype)
    if not finite(inputs):
        raise DataError(f"X has values of up to {np.abs(X).max():.3g}, too large for the network's {dtype}.")
    return inputs


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


def refuse_sparse(X: Any) -> None:
    """Raise a DataError for a sparse matrix."""
    if scipy.sparse.issparse(X):
        raise DataError(
            "X is a sparse matrix, and the network's first layer is a dense product; give X.toarray(), or a "
            "dense projection such as TruncatedSVD makes."
        )
