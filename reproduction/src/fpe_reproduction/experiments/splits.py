"""Splits that were compared with a random one; each looks at a trained dense network and its data.

All give each child the same number of inputs, except `by_dictionary`. The splits that are worth using are in
`fpe.expansion`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpe.expansion.clusters import clustered, correlations, swapped
from fpe.expansion.splits import FixedSplit, LabelSplit
from fpe.training.learned_split import best_assignment, learn_split
from fpe.training.loop import adam, train

#: Samples on which a parent is measured.
MEASURED = 2000
#: Steps, and samples in each, that train a learned split.
STEPS, BATCH = 1000, 250
#: Width of the kernel that replaces the second derivative of ReLU, in standard deviations.
KERNEL = 0.25


def sample(data: Tensor, size: int = MEASURED) -> Tensor:
    """Return about `size` samples, evenly spaced because data may be sorted by class."""
    return data[:: max(1, len(data) // size)][:size]


@dataclass(frozen=True)
class Parent:
    """A dense network, as far as it is trained, and what its expansions may look at."""

    model: nn.Sequential  # linear layers with ReLU. Not changed
    seed: int  # the trial's
    X: Tensor  # all training data
    y: Tensor
    lr: float = 1e-2  # the learning rate of the parent
    # The parent after its warm-up, for networks that begin earlier but need it.
    warm: nn.Sequential | None = None
    measured: int = MEASURED  # number of training samples that the properties below are measured on

    @cached_property
    def some_X(self) -> Tensor:
        """The inputs of the measured samples."""
        return sample(self.X, self.measured)

    @cached_property
    def some_y(self) -> Tensor:
        """Their classes."""
        return sample(self.y, self.measured)

    @cached_property
    def weight(self) -> np.ndarray:
        """The first weight, (neurons, inputs)."""
        return _array(self.model.get_submodule("0").get_parameter("weight"))

    @cached_property
    def centered(self) -> np.ndarray:
        """Inputs minus their means."""
        x = _array(self.some_X)
        return np.asarray(x - x.mean(axis=0))

    @cached_property
    def standard(self) -> np.ndarray:
        """Inputs of mean 0 and standard deviation 1; constant inputs are 0."""
        return np.asarray(self.centered / (self.centered.std(axis=0) + 1e-9))

    @cached_property
    def covariance(self) -> np.ndarray:
        """Covariance of the inputs."""
        return np.asarray(self.centered.T @ self.centered / len(self.some_X))

    @cached_property
    def classes(self) -> list[np.ndarray]:
        """The samples of each class, as masks."""
        y = self.some_y.cpu().numpy()
        return [y == c for c in np.unique(y)]

    @cached_property
    def preactivations(self) -> np.ndarray:
        """Pre-activations of the hidden neurons, (samples, neurons)."""
        with torch.no_grad():
            return _array(self.model[0](self.some_X))

    @cached_property
    def errors(self) -> np.ndarray:
        """Gradient of each sample's loss by the logits, (samples, outputs)."""
        with torch.no_grad():
            logits = self.model(self.some_X)
            if logits.shape[1] == 1:
                return _array(logits.sigmoid() - self.some_y[:, None])
            return _array(logits.softmax(dim=1) - F.one_hot(self.some_y, logits.shape[1]))

    @cached_property
    def hidden_gradients(self) -> np.ndarray:
        """Gradient of each sample's loss by the hidden activations, (samples, neurons)."""
        return np.asarray(self.errors @ _array(self.model.get_submodule("2").get_parameter("weight")))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


#: Gets a parent, the factor and a generator; returns the child of each input, (neurons, inputs).
Assign = Callable[[Parent, int, np.random.Generator], np.ndarray]
#: Label and function of each split by name, in the order of tables.
SPLITS: dict[str, tuple[str, Assign]] = {}


def fixed_split(name: str, parent: Parent, factor: int) -> FixedSplit:
    """Return a split of `SPLITS` for `fpe.expand`."""
    return FixedSplit(SPLITS[name][1](parent, factor, np.random.default_rng(parent.seed)))


def _split(name: str, label: str) -> Callable[[Assign], Assign]:
    def register(assign: Assign) -> Assign:
        SPLITS[name] = label, assign
        return assign

    return register


@_split("coactivation", "correlated inputs together")
def coactivation(parent: Parent, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Group correlated inputs, as `fpe.CorrelationSplit` does."""
    return clustered(correlations(parent.some_X), len(parent.weight), factor, rng)


@_split("coactivation-apart", "correlated inputs apart")
def coactivation_apart(parent: Parent, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Spread correlated inputs over the children."""
    return clustered(-correlations(parent.some_X), len(parent.weight), factor, rng)


@_split("dictionary", "features of a dictionary")
def by_dictionary(parent: Parent, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Group inputs by the feature of a sparse dictionary that weighs most on them.

    The dictionary has about twice the root of the number of inputs; `LabelSplit` distributes the groups.
    """
    from sklearn.decomposition import MiniBatchDictionaryLearning
    from sklearn.exceptions import ConvergenceWarning

    inputs = parent.weight.shape[1]
    features = min(inputs, max(2 * factor, round(2 * inputs**0.5)))
    seed = int(rng.integers(2**31))
    learner = MiniBatchDictionaryLearning(features, alpha=1.0, max_iter=20, batch_size=128, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        atoms = learner.fit(parent.standard).components_
    labels = np.abs(atoms).argmax(axis=0)
    if len(np.unique(labels)) < factor:
        labels = np.arange(inputs)
    return LabelSplit(labels).assign(parent.model[0].weight, factor, rng).numpy()  # type: ignore[arg-type]


@_split("gram-data", "Gram matrix × covariance")
def gram_on_data(parent: Parent, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Group inputs that the same neurons use and that vary together: Gram matrix times covariance."""
    affinity = (parent.weight.T @ parent.weight) * parent.covariance
    return clustered(affinity, len(parent.weight), factor, rng)


@_split("decorrelated", "children decorrelated")
def decorrelated(parent: Parent, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Minimize the covariance of the children's pre-activations."""
    return _for_each_neuron([np.outer(w, w) * parent.covariance for w in parent.weight], factor, rng)


@_split("correlated", "children correlated")
def correlated(parent: Parent, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Maximize the covariance of the children's pre-activations: the function changes least."""
    return _for_each_neuron([-np.outer(w, w) * parent.covariance for w in parent.weight], factor, rng)


@_split("by-class", "contributions by class")
def by_class(parent: Parent, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Group inputs that contribute to the same classes: ``w_j E[x_j | class]``, centered."""
    means = np.stack([parent.centered[rows].mean(axis=0) for rows in parent.classes])
    return _for_each_neuron([(means * w).T @ (means * w) for w in parent.weight], factor, rng)


@_split("sign", "sign of the weight")
def by_sign(parent: Parent, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Separate negative from positive weights, at the median."""
    return ordered(parent.weight, factor)


@_split("magnitude", "magnitude of the weight")
def by_magnitude(parent: Parent, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Separate small from large weights."""
    return ordered(np.abs(parent.weight), factor)


@_split("conflict", "conflict of gradients")
def by_conflict(parent: Parent, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Group inputs whose gradients agree over the classes: cosines of the gradients by class."""
    active = parent.hidden_gradients * (parent.preactivations > 0)
    x = _array(parent.some_X)
    gradients = np.stack([active[rows].T @ x[rows] / len(x) for rows in parent.classes])  # classes first
    length = np.linalg.norm(gradients, axis=0)
    gradients /= np.where(length > 0, length, 1)
    return _for_each_neuron([g.T @ g for g in gradients.transpose(1, 0, 2)], factor, rng)


@_split("steepest", "steepest splitting")
def steepest(parent: Parent, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Return the split that lowers the loss most, to second order (Liu, Wu and Wang, 2019).

    Splitting neuron i by the signs s moves two copies of it by ``± s ∘ w / 2``. The loss changes by
    ``(s ∘ w)ᵀ S (s ∘ w) / 4`` with the splitting matrix ``S = E[δ_i relu''(a_i) x xᵀ]``, in which a narrow
    Gaussian stands for ``relu''``.
    """
    x = _array(parent.some_X)
    width = KERNEL * parent.preactivations.std(axis=0) + 1e-9
    bend = parent.hidden_gradients * np.exp(-((parent.preactivations / width) ** 2) / 2) / width
    return np.stack(
        [
            spectral(-np.outer(w, w) * ((x * bend[:, [i]]).T @ x / len(x)), factor)
            for i, w in enumerate(parent.weight)
        ]
    )


@_split("interactions", "interactions in the errors")
def interactions(parent: Parent, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Group inputs whose products still explain the errors r: ``Σ_c E[r_c x_j x_k]²`` over the outputs."""
    errors = parent.errors - parent.errors.mean(axis=0)
    x = parent.standard
    moments = (x.T @ (x * r[:, None]) / len(x) for r in errors.T)
    affinity = sum((m**2 for m in moments), np.zeros((x.shape[1], x.shape[1])))
    np.fill_diagonal(affinity, 0)
    return clustered(affinity, len(parent.weight), factor, rng)


@_split("learned", "learned split")
def learned(parent: Parent, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Learn the split by Gumbel-softmax, as `fpe.training.learn_split` does."""
    how = {"steps": STEPS, "batch_size": BATCH, "seed": int(rng.integers(2**31))}
    return np.asarray(learn_split(parent.model, parent.X, parent.y, factor, lr=parent.lr, **how).children)


@_split("scout", "scouted by dense children")
def scout(parent: Parent, factor: int, rng: np.random.Generator) -> np.ndarray:
    """Train dense children for some steps; each input then belongs to the child that weighs it most.

    The children begin as a random split, with their other inputs at zero but trainable.
    """
    first, last = parent.model[0], parent.model[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    neurons, inputs = first.weight.shape
    even = np.arange(inputs) % factor
    child = torch.from_numpy(np.stack([rng.permutation(even) for _ in range(neurons)]))
    mask = F.one_hot(child, factor).movedim(-1, 1).flatten(0, 1)
    rows = torch.arange(neurons).repeat_interleave(factor)
    network = nn.Sequential(
        nn.Linear(inputs, neurons * factor), nn.ReLU(), nn.Linear(neurons * factor, last.out_features)
    )
    state = [first.weight[rows] * mask, first.bias[rows], last.weight[:, rows], last.bias]
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), state, strict=True):
            parameter.copy_(value)
    train_steps_(network, parent, int(rng.integers(2**31)))
    weights = np.abs(_array(network.get_submodule("0").get_parameter("weight")))
    return np.stack([best_assignment(w) for w in weights.reshape(neurons, factor, inputs)])


def train_steps_(network: nn.Module, parent: Parent, seed: int) -> nn.Module:
    """Train a network for about as many steps as learning a split takes, in whole epochs."""
    epochs = max(1, round(STEPS * BATCH / len(parent.X)))
    train(
        network,
        parent.X,
        parent.y,
        epochs=epochs,
        batch_size=BATCH,
        optimizer=adam(network, parent.lr),
        generator=torch.Generator().manual_seed(seed),
    )
    return network


def ordered(score: np.ndarray, factor: int) -> np.ndarray:
    """Give the smallest scores of each row to child 0, the next to child 1, …, equally many to each."""
    child = np.empty(score.shape, dtype=int)
    ranks = np.broadcast_to(np.arange(score.shape[1]) * factor // score.shape[1], score.shape)
    np.put_along_axis(child, score.argsort(axis=1, kind="stable"), ranks, axis=1)
    return child


def spectral(affinity: np.ndarray, factor: int) -> np.ndarray:
    """Cluster by the leading eigenvector, cut at its quantiles, then by swaps."""
    return swapped(affinity, ordered(np.linalg.eigh(affinity)[1][None, :, -1], factor)[0], factor)


def _for_each_neuron(affinities: Sequence[np.ndarray], factor: int, rng: np.random.Generator) -> np.ndarray:
    return np.stack([clustered(affinity, 1, factor, rng)[0] for affinity in affinities])
