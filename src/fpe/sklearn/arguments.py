"""Errors about the parameters of an estimator name its class, and the nearest parameter."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from fpe.errors import did_you_mean


def named_in_errors(init: Callable[..., None]) -> Callable[..., None]:
    """Let a constructor of a base class say which class has no such parameter.

    scikit-learn reads the signature of the function inside.
    """
    known = list(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **given: Any) -> None:
        name = type(self).__name__
        for unknown in (key for key in given if key not in known):
            raise TypeError(f"{name} has no parameter {unknown!r}.{did_you_mean(unknown, known)}")
        if len(args) > 1:
            raise TypeError(f"{name} takes only {known[0]} by position; give others by name: budget=…")
        init(self, *args, **given)

    return checked
