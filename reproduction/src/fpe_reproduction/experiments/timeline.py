"""Train many small networks on real data side by side, and measure them.

The networks of one trial see the same mini-batches in the same order, whenever they are made from their
parent. All are trained for the same number of epochs, including those of their parents.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpe._util.modules import seeded
from fpe.compare.runner import one_thread
from fpe.data import Dataset, load
from fpe.errors import DataError
from fpe.masked import MaskedLinear
from fpe.models import mlp
from fpe.training import ensemble
from fpe.training.ensemble.batch import WORTH_COMPILING
from fpe.training.loop import Cosine, adam, as_tensor, default_batch_size, train
from fpe_reproduction.experiments.kinds import Kind
from fpe_reproduction.experiments.measures import Network, measured, records, train_together
from fpe_reproduction.experiments.networks import KINDS
from fpe_reproduction.experiments.splits import Parent

#: The teacher's hidden neurons, and the share and the temperature of its answers in what students learn.
TEACHER, TEACHER_SHARE, TEMPERATURE = 256, 0.5, 2.0
#: The share of the epochs after the expansion in which masks are rewired at random (RigL's schedule).
REWIRING_ENDS = 0.75


@dataclass(frozen=True)
class Source:
    """Data as another process can load it again."""

    source: str  # A name or an absolute path, as for `fpe.data.load`
    fingerprint: str  # of the data that is expected there
    label: str | None = None  # column of the labels of a table


@dataclass(frozen=True)
class NetworksConfig:
    """How the networks are trained."""

    warmup_epochs: int = 25  # before and after the expansion; a dense network trains for both
    epochs: int = 25
    lr: float = 3e-3  # learning rate of Adam
    seed: int = 0  # trial t draws everything from ``seed + t``
    # Whether the learning rate falls to 0 as a cosine, except that of a network with a rate of its own.
    decay: bool = False
    validated: bool = False  # whether a fixed fifth of the training data replaces the test data

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes without those that are off."""
        return {k: v for k, v in asdict(self).items() if v is not False}


@functools.lru_cache(maxsize=1)
def data_of(source: Source) -> Dataset:
    """Load the data, once in a process.

    Raises
    ------
    DataError
        If it is not the data that the run was started with.
    """
    dataset = load(source.source, label=source.label)
    if dataset.fingerprint != source.fingerprint:
        raise DataError(
            f"{source.source} has other data here than where the run was started (fingerprint "
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
    """Train networks of some widths and kinds, all at once and on one thread; return a record of each.

    `hidden` are the widths of the dense parents, `kinds` names of `KINDS`, `trials` numbers of trials.
    Networks of two or more hidden layers have LayerNorm (A.7). A kind that does not fit into the parent's
    count is left out.
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
            held_out, kept = order[: len(order) // 5], order[len(order) // 5 :]
            self.X_test, self.y_test = self.X[held_out], self.y[held_out]
            self.X, self.y = self.X[kept], self.y[kept]
        self.config, self.layers, self.classes = config, layers, len(dataset.classes)
        self.outputs = 1 if self.classes == 2 else self.classes
        shape = self.X.shape[1], self.outputs
        self.kinds = {name: KINDS[name] for name in kinds if KINDS[name].possible(*shape)}
        self.total = config.warmup_epochs + config.epochs
        self.parents = []
        for number in trials:
            seed = config.seed + number
            generator = torch.Generator().manual_seed(seed)
            self.parents += [
                self._dense(number, seed, generator, width, [width] * layers) for width in hidden
            ]
        self.steps = -(-len(self.X) // default_batch_size(len(self.X)))
        # Decided once, since each call of the ensemble may be short, as between two rewirings.
        self.compiled = self.total * self.steps * len(self.parents) * len(kinds) >= WORTH_COMPILING

    def _dense(
        self, trial: int, seed: int, generator: torch.Generator, hidden: int, widths: int | list[int]
    ) -> Network:
        model = mlp(self.X.shape[1], widths, self.outputs, seed=seed)
        return Network("dense", trial, seed, generator, hidden, model, adam(model, self.config.lr), self.y)

    def train(self) -> list[Network]:
        """Train all networks and return them, without the parents that were not asked for."""
        warm = self._warm_parents()
        teacher = self._teach() if any(kind.distilled for kind in self.kinds.values()) else None
        made_at: dict[int, list[str]] = {}
        for name, kind in self.kinds.items():
            made_at.setdefault(self._epoch(kind), []).append(name)
        stops = {0, self.total, *made_at}
        if any(kind.rewired for kind in self.kinds.values()):
            stops |= set(range(self.config.warmup_epochs, self.total))
        networks: list[Network] = []
        parents = self.parents
        for begin, end in zip(sorted(stops)[:-1], sorted(stops)[1:], strict=True):
            for name in made_at.get(begin, []):
                networks += [self._make(name, p, w, teacher) for p, w in zip(parents, warm, strict=True)]
            if begin == max(made_at):
                parents = []
            for network in networks:
                self._rewire(network, begin)
            self._train(networks + parents, end - begin, begin)
        return networks

    def _epoch(self, kind: Kind) -> int:
        """Return the epoch before which networks of this kind are made."""
        if kind.at is None:
            return self.config.warmup_epochs
        return min(round(kind.at * self.total), self.total - 1)

    def _make(
        self, name: str, parent: Network, warm: nn.Sequential | None, teacher: Tensor | None
    ) -> Network:
        kind = self.kinds[name]
        if kind.continues:
            model, optimizer = copy.deepcopy((parent.model, parent.optimizer))
        else:
            model = kind.make(Parent(parent.model, parent.seed, self.X, self.y, self.config.lr, warm))
            optimizer = adam(model, kind.lr or self.config.lr)
        targets = teacher if kind.distilled else self.y
        assert targets is not None
        steps = self.steps * (self.total - self._epoch(kind))
        rewirer = kind.rewirer(model, optimizer, steps, parent.seed)
        return replace(parent, kind=name, model=model, optimizer=optimizer, y=targets, rewirer=rewirer)

    def _warm_parents(self) -> list[nn.Sequential | None]:
        """Return copies of the parents after their warm-up, if a kind needs them."""
        if not any(kind.needs_warm for kind in self.kinds.values()):
            return [None] * len(self.parents)
        warm = copy.deepcopy(self.parents)
        self._train(warm, self.config.warmup_epochs)
        return [network.model for network in warm]

    def _teach(self) -> Tensor:
        """Train the teacher; return what students learn: the labels mixed with its softened answers."""
        seed = self.config.seed
        teacher = self._dense(-1, seed, torch.Generator().manual_seed(seed), TEACHER, TEACHER)
        self._train([teacher], self.total)
        (logits,) = ensemble.predict_logits([teacher.model], self.X)
        labels = F.one_hot(self.y, self.classes).to(logits.dtype)
        return TEACHER_SHARE * (logits / TEMPERATURE).softmax(dim=1) + (1 - TEACHER_SHARE) * labels

    def _rewire(self, network: Network, epoch: int) -> None:
        share = KINDS[network.kind].rewired
        since = (epoch - self.config.warmup_epochs) / max(1, self.config.epochs)
        if share and 0 < since < REWIRING_ENDS:
            generator = torch.Generator().manual_seed(1000 * network.seed + epoch)
            now = share * (1 - since / REWIRING_ENDS)
            rewire_at_random_(network.model, network.optimizer, now, generator)

    def _train(self, networks: Sequence[Network], epochs: int, begin: int = 0) -> None:
        """Train for some epochs, after `begin` others."""
        for n in networks:
            if KINDS[n.kind].dropped:
                self._train_with_dropconnect(n, n.generator.clone_state(), epochs)
        together = [n for n in networks if not KINDS[n.kind].dropped]
        decay = Cosine(self.total, begin) if self.config.decay else None
        decays = [decay if KINDS[n.kind].lr is None else None for n in together]
        train_together(together, self.X, epochs, decay=decays, compile=self.compiled)

    def _train_with_dropconnect(self, network: Network, generator: torch.Generator, epochs: int) -> None:
        """Use the ordinary loop, since an ensemble has no DropConnect."""
        plain = network.model[0]
        assert isinstance(plain, nn.Linear)
        network.model[0] = DroppingLinear(plain, KINDS[network.kind].dropped)
        with seeded(network.seed):
            how: dict[str, Any] = {"optimizer": network.optimizer, "generator": generator}
            train(network.model, self.X, self.y, epochs=epochs, **how)
        network.model[0] = plain

    def measure(self, networks: Sequence[Network]) -> list[dict[str, Any]]:
        """Return the record of each network."""
        found = zip(networks, records(networks, (self.X, self.y), (self.X_test, self.y_test)), strict=True)
        return [
            {
                "hidden": n.width,
                "layers": self.layers,
                **record,
                **measured(n.model, self.X_test, self.y_test),
            }
            for n, record in found
        ]


class DroppingLinear(nn.Linear):
    """A linear layer with the parameters of another; each step of training drops a share of its weights."""

    def __init__(self, layer: nn.Linear, rate: float) -> None:
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias, self.rate = layer.weight, layer.bias, rate

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs) to (batch, outputs)."""
        return F.linear(x, F.dropout(self.weight, self.rate, self.training), self.bias)


@torch.no_grad()
def rewire_at_random_(
    network: nn.Module, optimizer: torch.optim.Adam, share: float, generator: torch.Generator
) -> nn.Module:
    """Mask the smallest share of the free weights of each masked layer, and free as many others at random.

    The paper (A.7) frees first and prunes later, which for a while exceeds the count. Freed weights start
    at 0, and so do their moments in the optimizer; before its first step nothing happens.
    """
    for layer in network.modules():
        if not isinstance(layer, MaskedLinear) or layer.weight not in optimizer.state:
            continue
        weight, mask = layer.weight.view(-1), layer.fpe_mask.view(-1)
        free, masked = mask.nonzero().flatten(), (mask == 0).nonzero().flatten()
        count = min(int(share * len(free)), len(masked))
        dropped = free[weight[free].abs().argsort(stable=True)[:count]]
        grown = masked[torch.randperm(len(masked), generator=generator)[:count]]
        mask[dropped], mask[grown] = 0, 1
        weight[dropped] = 0
        for name in ("exp_avg", "exp_avg_sq"):
            moment = optimizer.state[layer.weight][name].view(-1)
            moment[dropped] = 0
            moment[grown] = 0
    return network
