"""Train variants of small networks on real data, all in one timeline, and measure them.

The networks of one trial see the same mini-batches in the same order, whenever they are born. All are
trained for the same number of epochs in all, their parents' included.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpe._util.modules import seeded
from fpe.compare.runner import one_thread
from fpe.data import Dataset, load
from fpe.errors import DataError
from fpe.masked import count_nonzero
from fpe.metrics import mean_cosine_similarity, total_capacity
from fpe.models import mlp
from fpe.rewiring.rewirer import Rewirer
from fpe.training import ensemble
from fpe.training.ensemble.batch import WORTH_COMPILING
from fpe.training.loop import Cosine, adam, as_tensor, default_batch_size, train
from fpe_reproduction.experiments.quantized import quantised_accuracy
from fpe_reproduction.experiments.rewiring import rewire_at_random
from fpe_reproduction.experiments.variant import Start, Variant, some_of
from fpe_reproduction.experiments.variants import VARIANTS, Dense, DroppingLinear

#: The teacher's hidden neurons, and how much of what it says the students learn.
TEACHER, TEACHER_SHARE, TEMPERATURE = 256, 0.5, 2.0
#: The share of the epochs after the expansion in which masks move; they then stay (RigL's schedule).
REWIRING_ENDS = 0.75


@dataclass(frozen=True)
class Source:
    """Data as another process can load it again.

    Attributes
    ----------
    source : str
        A name or an absolute path, as for `fpe.data.load`.
    fingerprint : str
        Of what is to be found there.
    label : str or None
        Column of the labels of a table.
    """

    source: str
    fingerprint: str
    label: str | None = None


@dataclass(frozen=True)
class NetworksConfig:
    """How the networks are trained.

    Attributes
    ----------
    warmup_epochs, epochs : int
        Before and after the expansion; a dense network trains for both.
    lr : float
        Learning rate of Adam.
    seed : int
        Trial t draws everything from ``seed + t``.
    decay : bool
        Whether the learning rate falls to 0 as a cosine; not that of a variant with a rate of its own.
    validated : bool
        Whether a fifth of the training data, always the same, takes the place of the test data.
    """

    warmup_epochs: int = 25
    epochs: int = 25
    lr: float = 3e-3
    seed: int = 0
    decay: bool = False
    validated: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes, but for those that are off: results from before they came are the same."""
        return {k: v for k, v in asdict(self).items() if v is not False}


@dataclass
class _Trial:
    """What the networks of one trial have in common."""

    number: int
    seed: int
    generator: torch.Generator


@dataclass
class _Network:
    """A network, and what it was made from; `hidden` is the dense parent's width."""

    kind: str
    variant: Variant
    trial: _Trial
    hidden: int
    network: nn.Sequential
    optimizer: torch.optim.Adam
    learns: Tensor
    rewirer: Rewirer | None = None


@functools.lru_cache(maxsize=1)
def data_of(source: Source) -> Dataset:
    """Load the data, once in a process.

    Raises
    ------
    DataError
        If it is not what the run was started with.
    """
    dataset = load(source.source, label=source.label)
    if dataset.fingerprint != source.fingerprint:
        raise DataError(
            f"{source.source} holds other data here than where the run was started (fingerprint "
            f"{dataset.fingerprint}, not {source.fingerprint}); give all workers the same files."
        )
    return dataset


def run_networks(
    source: Source,
    config: NetworksConfig,
    hidden: Sequence[int],
    kinds: Sequence[str],
    trials: Sequence[int],
    layers: int = 1,
) -> dict[str, Any]:
    """Train networks of some widths and kinds, all at once, and measure them. On one thread.

    A kind whose networks could not read even one input at the parent's count is left out.

    Parameters
    ----------
    source : Source
        What to learn and to test on.
    config : NetworksConfig
        How.
    hidden : sequence of int
        Hidden neurons of the dense parents, in each layer.
    kinds : sequence of str
        Keys of `VARIANTS`.
    trials : sequence of int
        Numbers of the trials.
    layers : int, default 1
        Hidden layers; from two on with LayerNorm (A.7).

    Returns
    -------
    dict
        ``networks``: a record for each trial, width and kind, with its accuracy on test and training
        data, also after rounding to few bits, non-zeros and interference of its first layer.
    """
    with one_thread():
        run = _Run(data_of(source), config, hidden, kinds, trials, layers)
        return {"networks": run.measure(run.train())}


class _Run:
    """One call of `run_networks`."""

    def __init__(
        self,
        dataset: Dataset,
        config: NetworksConfig,
        hidden: Sequence[int],
        kinds: Sequence[str],
        trials: Sequence[int],
        layers: int,
    ) -> None:
        arrays = dataset.X_train, dataset.y_train, dataset.X_test, dataset.y_test
        self.X, self.y, self.X_test, self.y_test = (as_tensor(a) for a in arrays)
        if config.validated:
            order = torch.randperm(len(self.X), generator=torch.Generator().manual_seed(0))
            held, kept = order[: len(order) // 5], order[len(order) // 5 :]
            self.X_test, self.y_test = self.X[held], self.y[held]
            self.X, self.y = self.X[kept], self.y[kept]
        self.classes = len(dataset.classes)
        self.config, self.layers = config, layers
        shape = self.X.shape[1], self._outputs
        self.variants = {kind: VARIANTS[kind] for kind in kinds if VARIANTS[kind].possible(*shape)}
        self.total = config.warmup_epochs + config.epochs
        self.parents = []
        for number in trials:
            seed = config.seed + number
            trial = _Trial(number, seed, torch.Generator().manual_seed(seed))
            for width in hidden:
                network = mlp(self.X.shape[1], [width] * layers, self._outputs, seed=seed)
                self.parents.append(self._dense("parent", trial, width, network))

        steps = self.total * self._steps
        # Once for all calls: each may be short, as between two rewirings, but the program is the same.
        self.compiled = steps * len(self.parents) * len(kinds) >= WORTH_COMPILING

    @property
    def _outputs(self) -> int:
        return 1 if self.classes == 2 else self.classes

    def _dense(self, kind: str, trial: _Trial, hidden: int, network: nn.Sequential) -> _Network:
        return _Network(kind, Dense(), trial, hidden, network, adam(network, self.config.lr), self.y)

    def train(self) -> list[_Network]:
        """Train everything for as long as is asked; return all networks but parents that nobody asked for."""
        scouts = self._scouts()
        teacher = self._teach() if any(v.distilled for v in self.variants.values()) else None
        births: dict[int, list[str]] = {}
        for kind, variant in self.variants.items():
            births.setdefault(self._birth(variant), []).append(kind)
        stops = {0, self.total, *births}
        if any(v.rewired for v in self.variants.values()):
            stops |= set(range(self.config.warmup_epochs, self.total))
        alive: list[_Network] = []
        parents = self.parents
        for begin, end in zip(sorted(stops), [*sorted(stops)[1:], self.total], strict=True):
            if begin == self.total:
                break
            for kind in births.get(begin, []):
                alive += [self._born(kind, p, s, teacher) for p, s in zip(parents, scouts, strict=True)]
            if begin == max(births):  # whoever is asked for goes on as a network of its own
                parents = []
            for network in alive:
                self._rewire(network, begin)
            self._train(alive + parents, end - begin, begin)
        return alive

    def _birth(self, variant: Variant) -> int:
        """Return the epoch before which networks of this variant are made."""
        if variant.at is None:
            return self.config.warmup_epochs
        return min(round(variant.at * self.total), self.total - 1)

    def _born(
        self, kind: str, parent: _Network, scout: nn.Sequential | None, teacher: Tensor | None
    ) -> _Network:
        variant, trial = self.variants[kind], parent.trial
        some = some_of(self.X), some_of(self.y)
        start = Start(
            parent.network, trial.seed, self.X.var(dim=0), scout, *some, self.config.lr, self.X, self.y
        )
        if variant.goes_on:
            network, optimizer = copy.deepcopy((parent.network, parent.optimizer))
        else:
            network = variant.make(start)
            optimizer = adam(network, variant.lr or self.config.lr)
        learns = teacher if variant.distilled else self.y
        assert learns is not None
        steps = self._steps * (self.total - self._birth(variant))
        rewirer = variant.rewirer(network, optimizer, steps, trial.seed)
        return _Network(kind, variant, trial, parent.hidden, network, optimizer, learns, rewirer)

    def _scouts(self) -> list[nn.Sequential | None]:
        """Return copies of the parents after their warm-up, if a variant needs them."""
        if not any(variant.needs_scout for variant in self.variants.values()):
            return [None] * len(self.parents)
        scouts, orders = copy.deepcopy((self.parents, [p.trial.generator for p in self.parents]))
        del orders
        self._train(scouts, self.config.warmup_epochs)
        return [scout.network for scout in scouts]

    def _teach(self) -> Tensor:
        """Train the teacher; return what the students learn: labels and its softened answers, mixed."""
        trial = _Trial(-1, self.config.seed, torch.Generator().manual_seed(self.config.seed))
        network = mlp(self.X.shape[1], TEACHER, self._outputs, seed=trial.seed)
        teacher = self._dense("teacher", trial, TEACHER, network)
        self._train([teacher], self.total)
        (logits,) = ensemble.predict_logits([network], self.X)
        labels = F.one_hot(self.y, self.classes).to(logits.dtype)
        return TEACHER_SHARE * (logits / TEMPERATURE).softmax(dim=1) + (1 - TEACHER_SHARE) * labels

    def _rewire(self, network: _Network, epoch: int) -> None:
        share = network.variant.rewired
        since = (epoch - self.config.warmup_epochs) / max(1, self.config.epochs)
        if share and 0 < since < REWIRING_ENDS:
            generator = torch.Generator().manual_seed(1000 * network.trial.seed + epoch)
            now = share * (1 - since / REWIRING_ENDS)
            rewire_at_random(network.network, network.optimizer, now, generator)

    @property
    def _steps(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.X) // default_batch_size(len(self.X)))

    def _train(self, networks: Sequence[_Network], epochs: int, begin: int = 0) -> None:
        """Train for some epochs, before which lie `begin`."""
        for n in networks:
            if n.variant.drops:
                self._drop_and_train(n, n.trial.generator.clone_state(), epochs)
        together = [n for n in networks if not n.variant.drops]
        decay = Cosine(self.total, begin) if self.config.decay else None
        ensemble.train(
            [n.network for n in together],
            self.X,
            [n.learns for n in together],
            epochs=epochs,
            optimizers=[n.optimizer for n in together],
            generators=[n.trial.generator for n in together],
            rewirers=[n.rewirer for n in together],
            decay=[decay if n.variant.lr is None else None for n in together],
            compile=self.compiled,
        )

    def _drop_and_train(self, network: _Network, generator: torch.Generator, epochs: int) -> None:
        """Train with DropConnect in the ordinary loop, since an ensemble does not know it."""
        plain = network.network[0]
        assert isinstance(plain, nn.Linear)
        network.network[0] = DroppingLinear(plain, network.variant.drops)
        with seeded(network.trial.seed):
            how: dict[str, Any] = {"epochs": epochs, "optimizer": network.optimizer, "generator": generator}
            train(network.network, self.X, self.y, **how)
        network.network[0] = plain

    def measure(self, networks: Sequence[_Network]) -> list[dict[str, Any]]:
        """Return the record of each network."""
        models = [n.network for n in networks]
        test = ensemble.accuracies(models, self.X_test, self.y_test)
        learnt = ensemble.accuracies(models, self.X, self.y)
        return [
            {
                "hidden": n.hidden,
                "layers": self.layers,
                "kind": n.kind,
                "trial": n.trial.number,
                "seed": n.trial.seed,
                "nonzero": count_nonzero(n.network),
                "neurons": len(n.network[0].weight),  # type: ignore[arg-type]
                "accuracy": test_accuracy,
                "train_accuracy": train_accuracy,
                "accuracy_int8": quantised_accuracy(n.network, self.X_test, self.y_test),
                "accuracy_int4": quantised_accuracy(n.network, self.X_test, self.y_test, bits=4),
                "cosine": mean_cosine_similarity(n.network[0].weight),  # type: ignore[arg-type]
                "capacity": total_capacity(n.network[0].weight),  # type: ignore[arg-type]
            }
            for n, test_accuracy, train_accuracy in zip(networks, test, learnt, strict=True)
        ]
