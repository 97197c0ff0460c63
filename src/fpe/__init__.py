"""Fixed Parameter Expansion: more neurons, the same number of non-zero parameters.

>>> import torch, fpe
>>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
>>> wide = fpe.expand(model, factor=2)
>>> wide[0].out_features
8
>>> fpe.count_nonzero(model) == fpe.count_nonzero(wide)
True

Names are loaded when they are first used, so that ``import fpe`` takes milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from fpe.budget.recommend import recommend
    from fpe.errors import FPEError
    from fpe.expansion.expand import expand
    from fpe.expansion.init import reinitialize_
    from fpe.expansion.inplace import expand_
    from fpe.expansion.plan import LayerPlan, Plan
    from fpe.expansion.planner import plan
    from fpe.expansion.pruning import ChildPruning, InputPruning, MagnitudePruning
    from fpe.expansion.splits import (
        CorrelationSplit,
        FixedSplit,
        GramSplit,
        LabelSplit,
        RandomSplit,
        SharedSplit,
        TwoFourSplit,
    )
    from fpe.expansion.summary import summary
    from fpe.expansion.whole import widen
    from fpe.graph.groups import NeuronGroup
    from fpe.io.checkpoint import load, save
    from fpe.io.export import export
    from fpe.masked import (
        MaskedConv1d,
        MaskedConv2d,
        MaskedConv3d,
        MaskedLayer,
        MaskedLinear,
        count_nonzero,
        enforce_masks_,
        project_,
    )
    from fpe.models import mlp
    from fpe.packing.fused import fuse
    from fpe.packing.pack import pack, unpack
    from fpe.packing.quantized import quantize
    from fpe.rewiring.block_pruner import BlockPruner
    from fpe.rewiring.block_rewirer import BlockRewirer
    from fpe.rewiring.gradual import PruningSchedule
    from fpe.rewiring.model_masks import open_masks_, random_masks_, with_masks
    from fpe.rewiring.policies import RewiringPolicy
    from fpe.rewiring.pruner import GradualPruner
    from fpe.rewiring.rewirer import Rewirer
    from fpe.rewiring.schedule import RewiringSchedule
    from fpe.sklearn import FPEClassifier, FPERegressor, load_classifier

#: The public names of each module.
_MODULES = {
    "budget.recommend": "recommend",
    "errors": "FPEError",
    "expansion.expand": "expand",
    "expansion.init": "reinitialize_",
    "expansion.inplace": "expand_",
    "expansion.plan": "LayerPlan Plan",
    "expansion.planner": "plan",
    "expansion.pruning": "ChildPruning InputPruning MagnitudePruning",
    "expansion.splits": "CorrelationSplit FixedSplit GramSplit LabelSplit RandomSplit SharedSplit "
    "TwoFourSplit",
    "expansion.summary": "summary",
    "expansion.whole": "widen",
    "graph.groups": "NeuronGroup",
    "io.checkpoint": "load save",
    "io.export": "export",
    "masked": "MaskedConv1d MaskedConv2d MaskedConv3d MaskedLayer MaskedLinear count_nonzero "
    "enforce_masks_ project_",
    "models": "mlp",
    "packing.fused": "fuse",
    "packing.pack": "pack unpack",
    "packing.quantized": "quantize",
    "rewiring.block_pruner": "BlockPruner",
    "rewiring.block_rewirer": "BlockRewirer",
    "rewiring.gradual": "PruningSchedule",
    "rewiring.model_masks": "open_masks_ random_masks_ with_masks",
    "rewiring.pruner": "GradualPruner",
    "rewiring.policies": "RewiringPolicy",
    "rewiring.rewirer": "Rewirer",
    "rewiring.schedule": "RewiringSchedule",
    "sklearn": "FPEClassifier FPERegressor load_classifier",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}
#: Subpackages and modules that are attributes, too. They are not in `__all__`: a star import would hide
#: scikit-learn behind `fpe.sklearn`.
_PUBLIC_MODULES = ("data", "errors", "graph", "integrations", "metrics", "rewiring", "sklearn", "training")

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC_MODULES:
        return importlib.import_module(f"fpe.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'fpe' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fpe.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_PUBLIC_MODULES})
