"""`FPERegressor`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import _check_sample_weight, validate_data
from torch import Tensor

from fpe.sklearn.inputs import as_dense, explained, mean_and_spread
from fpe.sklearn.network import Network
from fpe.training.loop import as_tensor
from fpe.training.losses import Objective


class FPERegressor(RegressorMixin, Network):  # type: ignore[misc]
    """The best known network for a budget of weights that predicts numbers; or one of given width.

    Parameters and attributes are those of `FPEClassifier`, but for `class_weight` and `label_smoothing`,
    which it does not use. It minimizes the squared error of targets that are scaled to mean 0 and deviation
    1, and compares networks by R².

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from fpe.sklearn import FPERegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> FPERegressor(budget=40, epochs=20).fit(X, y).n_nonzero_ <= 40
    True
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> FPERegressor:
        """Choose a network, if none is given, and train it.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
            Finite.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Finite numbers.
        sample_weight : array-like of shape (n_samples,), optional
            Weight of each sample in the loss.

        Returns
        -------
        FPERegressor
            Itself.

        Raises
        ------
        ArgumentError, DataError, ValueError
            For bad parameters or data; the estimator is then unchanged.
        """
        with self._unchanged_on_error():
            how: dict[str, Any] = {"accept_sparse": "csr", "multi_output": True, "y_numeric": True}
            with explained(X):
                X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], **how)
            X, y = as_dense(X), np.asarray(y, dtype=np.float64)
            self._single = y.ndim == 1
            y = y.reshape(len(y), -1)
            weight = None
            if sample_weight is not None:
                weight = as_tensor(
                    _check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True)
                )
            mean, spread = mean_and_spread(y, weight)
            self._target = mean, np.where(spread > 0, spread, 1)
            targets = torch.from_numpy(((y - self._target[0]) / self._target[1]).astype(X.dtype))
            how = {"outputs": y.shape[1], "objective": Objective("squared"), "evaluate": _r2}
            self._fit(X, targets, None, how, weight)
        return self

    def _targets(self) -> dict[str, Any]:
        mean, spread = (own.tolist() for own in self._target)
        return {"predicts": "numbers", "target": {"mean": mean, "spread": spread, "single": self._single}}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def predict(self, X: Any) -> np.ndarray:
        """Return the targets of each sample, of the shape that `fit` got."""
        mean, spread = self._target if hasattr(self, "_target") else (0, 1)
        y = self._outputs(X).double().numpy() * spread + mean
        return y[:, 0] if self._single else y


def _r2(outputs: Tensor, y: Tensor) -> float:
    return float(r2_score(y.cpu().numpy(), outputs.cpu().numpy()))
