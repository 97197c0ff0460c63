"""Data sets: from a name or a file to arrays that are checked, split and counted."""

from fpe.data.dataset import Dataset, load

__all__ = ["Dataset", "load"]
