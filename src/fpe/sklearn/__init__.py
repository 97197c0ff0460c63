"""Estimators in scikit-learn's conventions: the best network for a budget of weights."""

from fpe.sklearn.classifier import FPEClassifier
from fpe.sklearn.loading import load_classifier, load_regressor
from fpe.sklearn.regressor import FPERegressor

__all__ = ["FPEClassifier", "FPERegressor", "load_classifier", "load_regressor"]
