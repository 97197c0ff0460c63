"""Data sets: from a name, a file or a formula to arrays that are checked, split and counted."""

from fpe.data.dataset import Dataset, load
from fpe.data.dnf import DNF, dnf

__all__ = ["DNF", "Dataset", "dnf", "load"]
