"""``fpe reproduce rivals``: methods at one count of non-zeros, each with as much tuning."""

from fpe_reproduction.rivals import dense, sparse
from fpe_reproduction.rivals.methods import METHODS

__all__ = ["METHODS", "dense", "sparse"]
