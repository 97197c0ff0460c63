"""The numbers by which weights leave and enter: the smallest leave, the largest enter.

Every function takes and returns tensors of one shape, whatever it is, entry by entry. Another way of
ranking is another entry of a table here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

#: By ``RewiringPolicy.drop``: from the weight and the gradient, or a sum of several; None where none is needed.
DROP: dict[str, Callable[[Any, Any], Tensor]] = {
    "magnitude": lambda weight, gradient: weight.abs(),
    "movement": lambda weight, gradient: weight.mul(gradient).abs_(),
}

#: By ``RewiringPolicy.grow``: from the gradient, or a sum of several, and uniform noise; None what is not needed.
GROW: dict[str, Callable[[Any, Any], Tensor]] = {
    "random": lambda gradient, noise: noise,
    **dict.fromkeys(("gradient", "accumulated", "momentum"), lambda gradient, noise: gradient.abs()),
}
