"""`FPEClassifier`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, validate_data
from torch import Tensor, nn

from fpe.errors import ArgumentError, DataError
from fpe.expansion.planner import plan
from fpe.models import CLASSES, mlp
from fpe.sklearn.inputs import as_dense, as_inputs, checked_labels, explained, has_several_labels
from fpe.sklearn.network import DEFAULT_HIDDEN, Network
from fpe.training.loop import accuracy_of, as_tensor
from fpe.training.losses import Objective
from fpe.training.trials import Trial, train_trials


class FPEClassifier(ClassifierMixin, Network):  # type: ignore[misc]
    """The best known network for a budget of weights; or one of given width, expanded or pruned.

    Without `hidden`, networks are tried on parts of the data: without a hidden layer, with one of several
    widths, and with direct connections from inputs to outputs beside it; all are pruned to the budget while
    they are trained. The best is trained on all data. With `hidden` and `budget` one network is pruned. With
    `hidden` alone a dense network is trained, expanded and trained on, at its own count of non-zeros (section
    3.3). Computes in float32 if X is float32, else in float64.

    `fpe.save` writes a fitted one to a file, and `fpe.load_classifier` reads it.

    Parameters
    ----------
    hidden : int or sequence of int, optional
        Neurons of the hidden layer, or of each of several; 0 for none. By default it is searched for, or 16
        if a parameter of the network or of the expansion is given.
    budget : int, optional
        The most non-zero parameters, biases included. By default, if `hidden` is searched for, those of a
        dense network of 16 hidden neurons.
    direct : bool, default False
        Whether inputs are connected with outputs beside the hidden layer.
    activation : str, default "relu"
        As for `fpe.mlp`. A search tries "silu" too.
    pruning_score : str or float, default "moment"
        Which weights are pruned first; as `score` of `fpe.GradualPruner`.
    label_smoothing : float, default 0.0
        Share of the target that is spread evenly over the classes.
    factor : int, optional
        Children of each neuron; 1 is the dense baseline, trained for as long in total.
    split, prune : str, Split or Pruning, optional
        As for `fpe.expand`.
    rewire : bool, str or RewiringPolicy, default False
        Dynamic masks after the expansion: a policy or its name, as for `fpe.Rewirer`, or True for
        ``"columns"`` with ``prune="columns"`` and ``"accumulated"`` otherwise.
    gradual : bool, default False
        Whether the trained network is expanded, its masks are opened, and it is pruned back to its count
        while it is trained on. It is first tried on held-out data, as is training on without an expansion;
        the better is done (``decision_``).
    warmup_epochs, epochs : int, optional
        Passes over the data before (section 3.3) and after the expansion. With a budget the epochs are by
        default those of 3000 steps, from 15 to 300.
    lr : float, optional
        Adam's learning rate; the expansion resets Adam's moments. A search tries several.
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
    scale : "auto" or None, default "auto"
        Subtract the mean of each feature, and divide all by one number, or, if their spreads differ by more
        than ten times (of 64 features or more: if the largest is more than ten times the median), each by
        its own. The model does it itself, in its layer ``scaler``. `partial_fit` does
        not scale.
    class_weight : dict, "balanced" or None
        Weights of the classes in the loss, as in scikit-learn.
    device : str or torch.device, default "cpu"
        Where networks are trained.
    n_jobs : int, optional
        Processes in which a search trains its candidates, −1 for one for each core; by default one, or as in
        ``joblib.parallel_config``. On a GPU there is one. Another number may change results by rounding.
    prefer_blocks : bool, default False
        Whether a search also trains a network that `fpe.pack` stores as dense blocks, and prefers it to a
        best one with hidden neurons where it is within a standard error of the paired difference over the
        folds. With 5,000 samples or more there is one fold, which tells no such error: nothing is preferred.
    random_state : int, RandomState or None, default 0
        Seed of weights, splits and order of the data.
    verbose : bool, default False
        Show a progress bar on a terminal.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels seen; with several labels per sample the numbers of the columns.
    model_, dense_model_ : torch.nn.Sequential
        The network, whose outputs are logits (one for two classes), and the one before it was expanded.
    n_nonzero_, n_features_in_ : int
        Non-zero parameters of ``model_``; features seen.
    history_ : list of dict
        One record for each epoch: ``stage`` ("dense" or "expanded"), ``epoch`` from 1 over both, ``loss``
        and, with early stopping, ``validation_loss``.
    search_ : list of Entry
        The candidates of the search and their accuracies on validation data, the best first.
    decision_ : Decision
        With ``gradual=True``: what was tried on held-out data, and whether the network was expanded;
        ``print(clf.decision_)`` says why. See `fpe.training.late`.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from fpe.sklearn import FPEClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = FPEClassifier(budget=600, epochs=8).fit(X[:1500], y[:1500])
    >>> clf.score(X[1500:], y[1500:]) > 0.8, clf.n_nonzero_
    (True, 600)
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> FPEClassifier:
        """Choose a network, if none is given, and train it.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
            Finite. A sparse one is made dense, which may take 4 GiB at most.
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            Labels of any type, at least two different ones; or 0 and 1 for each of several labels.
        sample_weight : array-like of shape (n_samples,), optional
            Weight of each sample in the loss.

        Returns
        -------
        FPEClassifier
            Itself. After Ctrl-C in the training it keeps the last finished epoch and can predict.

        Raises
        ------
        ArgumentError, DataError, ValueError
            For bad parameters or data; the estimator is then unchanged.
        """
        with self._unchanged_on_error():
            X, y = self._checked(X, y)
            weight = self._weight(sample_weight, X, y)
            if y.ndim == 2:
                codes, targets = None, torch.from_numpy(y.astype(X.dtype))
                self.classes_ = np.arange(y.shape[1])
                how = {"outputs": y.shape[1], "objective": Objective("labels"), "evaluate": _label_accuracy}
            else:
                self.classes_, codes = np.unique(y, return_inverse=True)
                if len(self.classes_) < 2:
                    raise DataError(
                        f"y has one class only, {self.classes_.tolist()[0]!r}; give samples of at least two."
                    )
                targets, outputs = (
                    torch.from_numpy(codes),
                    1 if len(self.classes_) == 2 else len(self.classes_),
                )
                how = {"outputs": outputs, "objective": Objective(), "evaluate": accuracy_of}
            self._fit(X, targets, codes, how, weight)
        return self

    def _checked(self, X: Any, y: Any, reset: bool = True) -> tuple[np.ndarray, np.ndarray]:
        y = y.toarray() if scipy.sparse.issparse(y) else y
        several = has_several_labels(y)
        y = y if several else checked_labels(y)
        own: dict[str, Any] = {"reset": reset, "accept_sparse": "csr", "multi_output": several}
        with explained(X):
            X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], **own)
        check_classification_targets(y)
        return as_dense(X), y

    def _weight(self, sample_weight: Any, X: np.ndarray, y: np.ndarray) -> Tensor | None:
        if sample_weight is None and self.class_weight is None:
            return None
        weight = _check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True)
        if self.class_weight is not None:
            weight = weight * compute_sample_weight(self.class_weight, y)
        return as_tensor(weight.astype(X.dtype))

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> FPEClassifier:
        """Train for one epoch over this data, in mini-batches, expanding the network after the warm-up.

        The first ``warmup_epochs`` calls train the dense network; the next one expands it first. There is no
        early stopping, no scaling and no search: `hidden` is 16 if it is not given. ``epochs`` only says
        during how many calls masks change, with ``rewire`` or a budget.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`, with the same return value and errors; each label is one of the classes.
        classes : array-like, optional
            All labels of this and all later calls; needed in the first call.
        """
        if self._loaded:
            raise ArgumentError(
                "this classifier was loaded from a file, which has no state of a training; call fit, or "
                "train its model_ in your own loop."
            )
        first = not hasattr(self, "classes_")
        if first and classes is None:
            raise ArgumentError("classes must be given in the first call of partial_fit: all labels to come.")
        with self._unchanged_on_error():
            known = np.unique(classes) if first else self.classes_
            X, y = self._checked(X, y, first)
            recipe, weight = self._recipe(X.shape[1]), self._weight(sample_weight, X, y)
            if classes is not None and not np.array_equal(np.unique(classes), known):
                raise ArgumentError(f"classes is {classes!r}; the first call of partial_fit had {known}.")
            unknown = np.setdiff1d(y, known)
            if len(unknown):
                raise DataError(f"y has labels {unknown[:5]} that are not among the classes {known}.")
            if len(known) < 2:
                raise DataError(f"there is one class only, {known.tolist()[0]!r}; give at least two.")
            if first:
                seed = int(check_random_state(self.random_state).randint(2**31 - 1))
                hidden = [
                    int(size)
                    for size in np.atleast_1d(DEFAULT_HIDDEN if self.hidden is None else self.hidden)
                ]
                outputs = 1 if len(known) == 2 else len(known)
                dtype = torch.float64 if X.dtype == np.float64 else torch.float32
                how: dict[str, Any] = {"direct": self.direct, "activation": self.activation}
                dense = mlp(X.shape[1], hidden, outputs, seed=seed, dtype=dtype, **how)
                if recipe.factor > 1:
                    plan(dense, recipe.factor, split=recipe.split, prune=recipe.prune, seed=seed)
                self.classes_, self._trial = known, Trial.start(recipe, dense, seed)
            # A copy, so that after an error the old one is unchanged; the learning rate is constant.
            recipe = replace(recipe, decay=False, late_lr=None, objective=self._trial.recipe.objective)
            if hasattr(self, "decision_"):  # `fit` has decided whether it expands
                chosen = self._trial.recipe
                recipe = replace(recipe, factor=chosen.factor, gradual=chosen.gradual)
            self._trial = replace(self._trial, recipe=recipe)
            codes = torch.from_numpy(np.searchsorted(known, y))
            # After `fit` as `fit` scales them.
            inputs, until = self._scaled(as_inputs(X, self.model_)), self._trial.epoch + 1
            train_trials([self._trial], inputs, codes, until=until, sample_weight=weight)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Return logits, shape (n_samples, n_outputs); for two classes that of the second, (n_samples,)."""
        logits: np.ndarray = self._outputs(X).double().numpy()
        return logits[:, 0] if logits.shape[1] == 1 and len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class, or of each label, shape (n_samples, n_classes)."""
        logits = self._outputs(X).double()
        if self._several:
            return logits.sigmoid().numpy()
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return logits.softmax(dim=1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of each sample, shape (n_samples,); or 0 and 1 for each label."""
        scores = self.decision_function(X)
        if self._several:
            return (scores > 0).astype(int)
        codes = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        return np.asarray(self.classes_[codes])

    def _deployed(self) -> nn.Module:
        model = super()._deployed()
        if not self._several:
            setattr(model, CLASSES, [str(name) for name in self.classes_])
        return model

    def _targets(self) -> dict[str, Any]:
        plain = self.classes_.dtype.kind in "iubf"
        classes = self.classes_.tolist() if plain else [str(name) for name in self.classes_]
        return {"predicts": "labels" if self._several else "classes", "classes": classes}

    @property
    def _several(self) -> bool:
        return self._trial.recipe.objective.kind == "labels"

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        tags.target_tags.multi_output = True
        return tags


def _label_accuracy(outputs: Tensor, y: Tensor) -> float:
    return float(((outputs > 0) == (y > 0.5)).double().mean())
