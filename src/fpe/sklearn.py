"""`FPEClassifier`: expand, train and predict, in scikit-learn's conventions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from fpe._util.terminal import progress_bar
from fpe.errors import ArgumentError, DataError
from fpe.expansion.planner import plan
from fpe.expansion.pruning import Pruning
from fpe.expansion.splits import Split
from fpe.masked import count_nonzero
from fpe.models import mlp
from fpe.rewiring.policies import RewiringPolicy
from fpe.rewiring.rewirer import Rewirer
from fpe.training.classifier_checks import (
    as_inputs,
    checked_labels,
    checked_recipe,
    checked_weight,
    finite_logits,
    refuse_sparse,
)
from fpe.training.loop import Cosine, EarlyStopping, Record, adam, predict_logits, train
from fpe.training.recipe import Recipe


class FPEClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier that trains a small dense network, expands it, and trains it on.

    The number of non-zero parameters is the dense network's from first to last. Computes in the type
    of X: float32 stays float32, anything else is float64.

    Parameters
    ----------
    hidden : int or sequence of int, default 16
        Neurons of the dense network's hidden layer, or of each of several.
    factor : int, optional
        Children of each neuron; 1 is the dense baseline, trained for as long in total. By default 2; where
        masks move 4, and where whole columns do 3.
    split : str or Split, optional
        Who gets which input, as for `fpe.expand`. By default ``"random"``, or ``"shared"`` where whole
        columns pay, and ``"shared-8"`` where they move.
    prune : str or Prune, optional
        Which weights pay for the copies, as for `fpe.expand`. By default ``"magnitude"``; where masks move
        ``"balanced"``, and where whole columns do ``"columns"``.
    rewire : bool, str or Policy, default False
        Whether masks move after the expansion: the name of a policy, as for `fpe.Rewirer`, an `fpe.RewiringPolicy`,
        or True for ``"columns"`` with ``prune="columns"`` and ``"accumulated"`` otherwise. All that is
        left open is then what was chosen in this project's experiments (docs/results/rewiring.md).
    warmup_epochs : int, optional
        Passes over the data before the expansion (section 3.3). By default 25, or 0 where masks move: the
        weights of the expanded network are then drawn anew (`fpe.reinitialize_`).
    epochs : int, optional
        Passes after it. By default 25, or 50 where masks move and there is no warm-up.
    lr : float, optional
        Adam's learning rate; Adam starts afresh after the expansion. By default 1e-3, or 1e-2 where masks
        move.
    decay : bool, optional
        Whether it falls to 0, as half a cosine over all epochs. By default it does where masks move and there
        is no warm-up. Not in `partial_fit`, which knows of no last epoch.
    batch_size : int, optional
        Samples in a mini-batch. By default a thirtieth of the data, but at least 64, so that small data too
        is trained on in steps enough, and at most 500, the paper's (A.3.1).
    l2 : float, default 0
        Weight of the penalty ``l2 / 2 · Σ w²`` over all parameters.
    patience : int, optional
        Stop the warm-up, and the training after it, when the loss on held-out data has not fallen for
        so many epochs. By default there is no early stopping.
    validation_fraction : float, default 0.1
        The share of the data held out for it.
    trials : int, default 1
        Networks that are trained at once, from different seeds; the one of the lowest loss is kept, on
        the held-out data if there is early stopping. Small networks vary much between seeds.
    random_state : int, RandomState or None, default 0
        Seed of weights, partitions and order of the data.
    verbose : bool, default False
        Show a progress bar on a terminal.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels seen.
    model_ : torch.nn.Sequential
        The expanded network; its outputs are logits, one for two classes.
    dense_model_ : torch.nn.Sequential
        The dense network as it was at the expansion.
    n_nonzero_ : int
        Non-zero parameters of ``model_``.
    history_ : list of dict
        One record for each epoch: ``stage`` ("dense" or "expanded"), ``epoch`` from 1 over both, ``loss``
        and, with early stopping, ``validation_loss``. Kept after Ctrl-C.
    n_features_in_ : int
        Features seen.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from fpe.sklearn import FPEClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> clf = FPEClassifier(hidden=8, epochs=50, lr=1e-2).fit(X[:1500] / 16, y[:1500])
    >>> clf.score(X[1500:] / 16, y[1500:]) > 0.8
    True
    """

    def __init__(
        self,
        hidden: int | Sequence[int] = 16,
        *,
        factor: int | None = None,
        split: str | Split | None = None,
        prune: str | Pruning | None = None,
        rewire: bool | str | RewiringPolicy = False,
        warmup_epochs: int | None = None,
        epochs: int | None = None,
        lr: float | None = None,
        decay: bool | None = None,
        batch_size: int | None = None,
        l2: float = 0.0,
        patience: int | None = None,
        validation_fraction: float = 0.1,
        trials: int = 1,
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
    ) -> None:
        self.hidden = hidden
        self.factor = factor
        self.split = split
        self.prune = prune
        self.rewire = rewire
        self.warmup_epochs = warmup_epochs
        self.epochs = epochs
        self.lr = lr
        self.decay = decay
        self.batch_size = batch_size
        self.l2 = l2
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.trials = trials
        self.random_state = random_state
        self.verbose = verbose

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
            Itself. After Ctrl-C, which is passed on, it holds the last finished epoch and can predict.

        Raises
        ------
        ArgumentError, DataError, ValueError
            For parameters or data that cannot be used; what was fitted before is then as it was.
        """
        with self._unchanged_on_error():
            X, y = self._checked(X, y)
            recipe = checked_recipe(self, X.shape[1])
            classes, codes = np.unique(y, return_inverse=True)
            if len(classes) < 2:
                raise DataError(
                    f"y has one class only, {classes.tolist()[0]!r}; give samples of at least two."
                )
            weight = checked_weight(sample_weight, X)
            self._start(X, classes, recipe)

            kept, held = self._hold_out(codes)
            data = torch.from_numpy(X[kept]), torch.from_numpy(codes[kept])
            options: dict[str, Any] = {"weight": None if weight is None else weight[kept]}
            if self.patience is not None:
                held_out = torch.from_numpy(X[held]), torch.from_numpy(codes[held])
                weight_out = None if weight is None else weight[held]
                options["early_stopping"] = EarlyStopping(*held_out, self.patience, weight_out)
            total = (recipe.warmup_epochs + recipe.epochs) * self.trials
            with progress_bar("training", total, self.verbose) as advance:
                if self.trials > 1:
                    self._train_trials(recipe, *data, advance=advance, **options)
                    return self
                options["advance"] = advance
                self._train_stage(*data, epochs=recipe.warmup_epochs, decay=recipe.cosine(0), **options)
                self._expand(recipe, len(data[0]))
                decay = recipe.cosine(recipe.warmup_epochs)
                self._train_stage(*data, epochs=recipe.epochs, decay=decay, **options)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> FPEClassifier:
        """Train for one epoch over this data, in mini-batches; the expansion comes by itself.

        The first ``warmup_epochs`` calls train the dense network, the next one expands it first.
        ``epochs`` and early stopping play no part, but for ``rewire``: masks move in ``epochs`` calls.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Dense and finite.
        y : array-like of shape (n_samples,)
            Labels, each one of the classes.
        classes : array-like, optional
            All labels that will ever come; needed in the first call.
        sample_weight : array-like of shape (n_samples,), optional
            Weight of each sample in the loss.

        Returns
        -------
        FPEClassifier
            Itself.

        Raises
        ------
        ArgumentError, DataError, ValueError
            As for `fit`, and for labels that are not among the classes.
        """
        first = not hasattr(self, "classes_")
        if first and classes is None:
            raise ArgumentError("classes must be given in the first call of partial_fit: all labels to come.")
        with self._unchanged_on_error():
            X, y = self._checked(X, y, reset=first)
            known = np.unique(classes) if first else self.classes_
            if classes is not None and not np.array_equal(np.unique(classes), known):
                raise ArgumentError(f"classes is {classes!r}; the first call of partial_fit had {known}.")
            strange = np.setdiff1d(y, known)
            if len(strange):
                raise DataError(f"y has labels {strange[:5]} that are not among the classes {known}.")
            if len(known) < 2:
                raise DataError(f"classes has one class only, {known.tolist()[0]!r}; give at least two.")
            recipe = checked_recipe(self, X.shape[1])
            weight = checked_weight(sample_weight, X)
            if first:
                self._start(X, known, recipe)
            if len(self.history_) >= recipe.warmup_epochs and self.dense_model_ is self.model_:
                self._expand(recipe, len(X))
            data = as_inputs(X, self.model_), torch.from_numpy(np.searchsorted(known, y))
            self._train_stage(*data, weight, epochs=1)
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
    def n_nonzero_(self) -> int:
        """Non-zero parameters of the network."""
        check_is_fitted(self)
        return count_nonzero(self.model_)

    @contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        """Take back what a call has set that fails; Ctrl-C is no failure."""
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

    def _checked(self, X: Any, y: Any, reset: bool = True) -> tuple[np.ndarray, np.ndarray]:
        refuse_sparse(X)
        y = checked_labels(y)
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], reset=reset)
        check_classification_targets(y)
        return X, y

    def _start(self, X: np.ndarray, classes: np.ndarray, recipe: Recipe) -> None:
        """Make the dense network and all that training needs."""
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.dense_model_: nn.Module = self._network(X, classes, self._seed)
        if recipe.factor > 1:  # what cannot be expanded is to be told before the warm-up
            plan(self.dense_model_, recipe.factor, recipe.split, recipe.prune, seed=self._seed)
        self.model_: nn.Module = self.dense_model_
        self.classes_ = classes
        self.history_: list[Record] = []
        self._optimizer = adam(self.model_, recipe.lr, self.l2)
        self._generator = torch.Generator().manual_seed(self._seed)
        self._rewirer: Rewirer | None = None

    def _network(self, X: np.ndarray, classes: np.ndarray, seed: int) -> nn.Sequential:
        """Make the untrained dense network."""
        outputs = 1 if len(classes) == 2 else len(classes)
        hidden = (
            int(self.hidden) if isinstance(self.hidden, int | np.integer) else [int(h) for h in self.hidden]
        )
        dtype = torch.float64 if X.dtype == np.float64 else torch.float32
        return mlp(X.shape[1], hidden, outputs, seed=seed, dtype=dtype)

    def _expand(self, recipe: Recipe, samples: int) -> None:
        if recipe.factor == 1:
            return
        self.model_ = recipe.expand(self.dense_model_, self._seed)
        self._optimizer = adam(self.model_, recipe.lr, self.l2)
        self._rewirer = recipe.rewirer(self.model_, self._optimizer, samples, self.batch_size, self._seed)

    def _train_stage(
        self,
        X: Tensor,
        y: Tensor,
        weight: Tensor | None,
        epochs: int,
        early_stopping: EarlyStopping | None = None,
        decay: Cosine | None = None,
        advance: Callable[[str], None] | None = None,
    ) -> None:
        """Train the network as it stands, and keep the record of each epoch."""
        stage = "dense" if self.model_ is self.dense_model_ else "expanded"

        def finished(record: Record) -> None:
            self.history_.append({"stage": stage, **record, "epoch": len(self.history_) + 1})
            if advance is not None:
                advance(f"{stage}, loss {record['loss']:.4f}")

        train(
            self.model_,
            X,
            y,
            epochs=epochs,
            optimizer=self._optimizer,
            generator=self._generator,
            batch_size=self.batch_size,
            sample_weight=weight,
            early_stopping=early_stopping,
            rewirer=self._rewirer,
            decay=decay,
            on_epoch=finished,
        )

    def _train_trials(self, recipe: Recipe, X: Tensor, *data: Any, **options: Any) -> None:
        """Train networks from several seeds at once, and keep the best."""
        from fpe.training.trials import best_of, start_trial, train_trials

        seeds = [self._seed + trial for trial in range(self.trials)]
        trials = [
            start_trial(self._network(X.numpy(), self.classes_, seed), seed, recipe, self.l2)
            for seed in seeds
        ]
        best = trials[0]  # what is kept after Ctrl-C
        try:
            train_trials(trials, recipe, X, *data, l2=self.l2, batch_size=self.batch_size, **options)
            best = best_of(trials)
        finally:
            self.dense_model_, self.model_, self._seed = best.dense, best.model, best.seed
            self.history_, self._rewirer = best.history, best.rewirer
            self._optimizer, self._generator = best.optimizer, best.generator

    def _hold_out(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Choose the samples to train on and those to watch."""
        every = np.arange(len(codes))
        if self.patience is None:
            return every, every[:0]
        fewest = np.bincount(codes).min()
        held = max(1, round(len(codes) * self.validation_fraction))
        classes = codes.max() + 1
        stratify = codes if fewest > 1 and held >= classes and len(codes) - held >= classes else None
        return train_test_split(every, test_size=held, random_state=self._seed, stratify=stratify)  # type: ignore[no-any-return]

    def _logits(self, X: Any) -> Tensor:
        check_is_fitted(self)
        refuse_sparse(X)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return finite_logits(predict_logits(self.model_, as_inputs(X, self.model_)), X)
