"""What a split may look at: a trained parent with one hidden layer, and data."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Sight:
    """A parent and some of its training data, and what follows from them.

    Attributes
    ----------
    parent : nn.Sequential
        Linear, ReLU, linear. Not changed.
    X, y : Tensor
        Inputs, (samples, inputs), and class numbers.
    lr : float, default 1e-2
        The rate at which the parent is trained.
    """

    parent: nn.Sequential
    X: Tensor
    y: Tensor
    lr: float = 1e-2

    @functools.cached_property
    def weight(self) -> np.ndarray:
        """The first weight, (neurons, inputs)."""
        return _array(self.parent.get_submodule("0").get_parameter("weight"))

    @functools.cached_property
    def centred(self) -> np.ndarray:
        """Inputs less their means."""
        x = _array(self.X)
        return np.asarray(x - x.mean(axis=0))

    @functools.cached_property
    def standard(self) -> np.ndarray:
        """Inputs of mean 0 and standard deviation 1; constant ones are 0."""
        return np.asarray(self.centred / (self.centred.std(axis=0) + 1e-9))

    @functools.cached_property
    def covariance(self) -> np.ndarray:
        """Of the inputs."""
        return np.asarray(self.centred.T @ self.centred / len(self.X))

    @functools.cached_property
    def classes(self) -> list[np.ndarray]:
        """The samples of each class, as masks."""
        y = self.y.cpu().numpy()
        return [y == c for c in np.unique(y)]

    @functools.cached_property
    def preactivations(self) -> np.ndarray:
        """Of the hidden neurons, (samples, neurons)."""
        with torch.no_grad():
            return _array(self.parent[0](self.X))

    @functools.cached_property
    def errors(self) -> np.ndarray:
        """Gradient of each sample's loss by the logits, (samples, outputs)."""
        with torch.no_grad():
            logits = self.parent(self.X)
            if logits.shape[1] == 1:
                return _array(logits.sigmoid() - self.y[:, None])
            return _array(logits.softmax(dim=1) - F.one_hot(self.y, logits.shape[1]))

    @functools.cached_property
    def pulls(self) -> np.ndarray:
        """Gradient of each sample's loss by the hidden activations, (samples, neurons)."""
        return np.asarray(self.errors @ _array(self.parent.get_submodule("2").get_parameter("weight")))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
