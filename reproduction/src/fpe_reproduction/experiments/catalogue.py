"""All experiments of ``fpe reproduce``: those of the paper first, then further questions."""

from __future__ import annotations

from fpe.errors import ArgumentError, did_you_mean
from fpe_reproduction.experiments import dynamic, formulas, rivals, vision
from fpe_reproduction.experiments.experiment import EXPERIMENTS as _BY_NAME
from fpe_reproduction.experiments.experiment import Experiment

BOOLEAN, REAL, DYNAMIC_MASKS = (
    [each for name in names for each in _BY_NAME.values() if each.findings.__module__ == name]
    for names in ([formulas.__name__], [vision.__name__, rivals.__name__], [dynamic.__name__])
)
EXPERIMENTS = [*BOOLEAN, *REAL, *DYNAMIC_MASKS]
#: Those whose networks the sentences of the paper are judged by; see `fpe_reproduction.paper`.
PAPER = [each for each in EXPERIMENTS if each.where != "further question"]
#: Names of groups of experiments.
GROUPS = {
    "boolean": BOOLEAN,
    "real": REAL,
    "dynamic-masks": DYNAMIC_MASKS,
    "paper": PAPER,
    "all": EXPERIMENTS,
}


def chosen(name: str) -> list[Experiment]:
    """Return the experiments of a name: its own, or those of a group; `ArgumentError` if there are none."""
    names = {**GROUPS, **{experiment.name: [experiment] for experiment in EXPERIMENTS}}
    if name not in names:
        hint = did_you_mean(name, list(names))
        raise ArgumentError(f"there is no experiment {name!r}; allowed are list, {', '.join(names)}.{hint}")
    return list(names[name])
