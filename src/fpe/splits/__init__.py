"""Splits beyond those of the paper: by what a layer's inputs do on data, or made elsewhere."""

from fpe.splits.coactivation import CoActivation
from fpe.splits.given import Given

__all__ = ["CoActivation", "Given"]
