"""Fixed Parameter Expansion: more neurons, the same number of non-zero parameters.

>>> import torch, fpe
>>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
>>> wide = fpe.expand(model, factor=2)
>>> wide[0].out_features
8
>>> fpe.count_nonzero(model) == fpe.count_nonzero(wide)
True

Names are loaded when they are first used, so that ``import fpe`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fpe._version import __version__
from fpe.errors import FPEError

if TYPE_CHECKING:
    from fpe import splits
    from fpe.budget import Magnitude, count_nonzero
    from fpe.checkpoint import load, save
    from fpe.children import Children
    from fpe.columns import Columns
    from fpe.expansion import expand
    from fpe.exporting import export
    from fpe.graph import Group
    from fpe.holding import hold_masks, project_
    from fpe.inplace import expand_
    from fpe.masked import MaskedConv1d, MaskedConv2d, MaskedConv3d, MaskedLayer, MaskedLinear
    from fpe.models import mlp
    from fpe.packed.pack import pack, unpack
    from fpe.packed.quantised import quantise
    from fpe.partition import Gram, Groups, Random, Shared, TwoFour
    from fpe.planning import plan
    from fpe.recommending.recommend import recommend
    from fpe.rewiring import Policy, Rewirer, Schedule
    from fpe.starts import redraw_
    from fpe.summaries import summary

_HOME = {
    "Children": "children",
    "Columns": "columns",
    "Gram": "partition",
    "Group": "graph",
    "Groups": "partition",
    "Magnitude": "budget",
    "MaskedConv1d": "masked",
    "MaskedConv2d": "masked",
    "MaskedConv3d": "masked",
    "MaskedLayer": "masked",
    "MaskedLinear": "masked",
    "Policy": "rewiring.policies",
    "Random": "partition",
    "Rewirer": "rewiring.rewirer",
    "Schedule": "rewiring.schedule",
    "Shared": "partition",
    "TwoFour": "partition",
    "count_nonzero": "budget",
    "expand": "expansion",
    "expand_": "inplace",
    "export": "exporting",
    "hold_masks": "holding",
    "load": "checkpoint",
    "mlp": "models",
    "pack": "packed.pack",
    "plan": "planning",
    "project_": "holding",
    "quantise": "packed.quantised",
    "recommend": "recommending.recommend",
    "redraw_": "starts",
    "save": "checkpoint",
    "summary": "summaries",
    "unpack": "packed.pack",
}

#: Submodules that are attributes, loaded when they are first used. They are not in `__all__`: a star import
#: would hide scikit-learn behind `fpe.sklearn`.
_MODULES = (
    "data",
    "ensemble",
    "errors",
    "interference",
    "rewiring",
    "sklearn",
    "splits",
    "theory",
    "trainers",
    "training",
)

__all__ = [
    "Children",
    "Columns",
    "FPEError",
    "Gram",
    "Group",
    "Groups",
    "Magnitude",
    "MaskedConv1d",
    "MaskedConv2d",
    "MaskedConv3d",
    "MaskedLayer",
    "MaskedLinear",
    "Policy",
    "Random",
    "Rewirer",
    "Schedule",
    "Shared",
    "TwoFour",
    "__version__",
    "count_nonzero",
    "expand",
    "expand_",
    "export",
    "hold_masks",
    "load",
    "mlp",
    "pack",
    "plan",
    "project_",
    "quantise",
    "recommend",
    "redraw_",
    "save",
    "splits",
    "summary",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"fpe.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'fpe' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fpe.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})
