"""Splits beyond those of the paper: learnt, by what a layer's inputs do on data, or made elsewhere."""

from fpe.splits.coactivation import CoActivation
from fpe.splits.given import Given
from fpe.splits.learned import learn

__all__ = ["CoActivation", "Given", "learn"]
