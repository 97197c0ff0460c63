"""What experiments on real data train: tasks by families, kinds and widths, with the settings of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fpe_reproduction.experiments.cnn import run_cnns
from fpe_reproduction.experiments.experiment import Request, Task
from fpe_reproduction.experiments.gated import run_gated
from fpe_reproduction.experiments.networks import NetworksConfig, Source, run_networks

#: The data that the experiments run on unless told otherwise.
BOTH = ("fashion-mnist", "banking77")
#: What suits the data; other data gets the paper's 25 + 25 epochs (notes on the choice: docs/results).
SETTINGS = {
    "fashion-mnist": NetworksConfig(10, 10, 1e-3),
    "banking77": NetworksConfig(50, 50, 1e-2),
}
#: Trials that are trained as one.
TOGETHER = 5
TRIALS = 5
#: From so many neurons on, each trial is a task of its own; beyond, only dense and random-split are trained.
MANY = 256
WIDTHS = (4, 8, 16, 32)
QUICK_WIDTHS = (4, 8)
QUICK_TRIALS = 2


def config_of(
    name: str, request: Request, settings: Mapping[str, NetworksConfig] = SETTINGS
) -> NetworksConfig:
    """Return how networks are trained on this data."""
    config = replace(settings.get(name, NetworksConfig()), seed=request.seed)
    if request.quick:
        config = replace(config, warmup_epochs=5, epochs=5)
    given = {k: getattr(request, k) for k in ("warmup_epochs", "epochs", "lr")}
    return replace(config, **{k: v for k, v in given.items() if v is not None})


class Plan:
    """Collects the tasks of one experiment.

    Parameters
    ----------
    request : Request
        What was asked for.
    widths, trials
        Where neither was asked for, nor a quick run.
    config : callable
        From a data set's name and the request to how networks are trained on it.
    suffix : str
        Of the names of the folders, where results of another configuration must not lie among the others.
    """

    def __init__(
        self,
        request: Request,
        widths: Sequence[int] = WIDTHS,
        trials: int = TRIALS,
        config: Callable[[str, Request], NetworksConfig] = config_of,
        suffix: str = "",
    ) -> None:
        self.request, self.config, self.suffix = request, config, suffix
        self.tasks: list[Task] = []
        self.widths = request.hidden or (QUICK_WIDTHS if request.quick else widths)
        self.trials = request.trials or (QUICK_TRIALS if request.quick else trials)

    def add(
        self,
        family: str,
        kinds: Sequence[str],
        widths: Sequence[int] | None = None,
        layers: int = 1,
        together: bool = False,
    ) -> None:
        """Ask for networks of these kinds; of all widths in one task if `together`."""
        widths = tuple(widths or self.widths)
        for name, source in (self.request.data or {}).items():
            for some in [widths] if together else [(width,) for width in widths]:
                arguments = {"kinds": tuple(kinds), "layers": layers}
                self._add(
                    name, source, f"{family}{layers if layers > 1 else ''}", run_networks, some, arguments
                )

    def add_cnns(self, features: Sequence[int], widths: Sequence[int]) -> None:
        """Ask for convolutional networks."""
        for name, source in (self.request.data or {}).items():
            for count in features:
                for width in widths:
                    self._add(name, source, f"cnn{count}", run_cnns, (width,), {"features": count})

    def add_gated(self, widths: Sequence[int]) -> None:
        """Ask for gated networks."""
        for name, source in (self.request.data or {}).items():
            for width in widths:
                self._add(name, source, "gated", run_gated, (width,), {})

    def _add(
        self,
        name: str,
        source: Source,
        family: str,
        work: Callable[..., dict[str, Any]],
        widths: Sequence[int],
        arguments: dict[str, Any],
    ) -> None:
        config = self.config(name, self.request)
        identity = {"quick": self.request.quick, "data": name, "fingerprint": source.fingerprint}
        together = 1 if max(widths) >= MANY else TOGETHER
        for first in range(0, self.trials, together):
            numbers = range(first, min(first + together, self.trials))
            shared = {"source": source, "config": config, "hidden": tuple(widths), "trials": numbers}
            self.tasks.append(
                Task(
                    f"{family}-h{'.'.join(map(str, widths))}-t{numbers[0]}-{numbers[-1]}",
                    work,
                    {**shared, **arguments},
                    sum(widths) * len(arguments.get("kinds", "four")) * len(numbers),
                    {**identity, **config.to_dict()},
                    name + self.suffix,
                )
            )
