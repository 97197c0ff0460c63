"""The training loop of `fpe.training.loop`, for many networks at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fpe.rewiring.rewirer import Rewirer
from fpe.training.ensemble.batch import Batch
from fpe.training.ensemble.batches import batches
from fpe.training.ensemble.members import check_members
from fpe.training.loop import Cosine, EarlyStopping, Record, default_batch_size


def train(
    networks: Sequence[nn.Module],
    X: Tensor | Sequence[Tensor],
    y: Tensor | Sequence[Tensor],
    *,
    epochs: int,
    optimizers: Sequence[torch.optim.Adam],
    generators: Sequence[torch.Generator],
    batch_size: int | None = None,
    sample_weight: Tensor | Sequence[Tensor] | None = None,
    early_stopping: EarlyStopping | Sequence[EarlyStopping] | None = None,
    rewirers: Sequence[Rewirer | None] | None = None,
    decay: Cosine | Sequence[Cosine | None] | None = None,
    on_epoch: Callable[[list[Record]], None] | None = None,
    compile: bool | None = None,
) -> list[list[Record]]:
    """Train many networks in place for some epochs, each as `fpe.training.train` would, within rounding.

    Each network has its own weights, masks, optimizer, order of mini-batches and, where given, data.
    Networks, optimizers and generators are afterwards as the ordinary loop would have left them, so
    that training can go on in either, before and after an expansion. Networks that fit together, in
    architecture and in width, are trained as one program; how many at a time follows from the size of
    the cache or of the GPU's memory.

    After Ctrl-C the networks hold the state of their last finished epoch.

    Parameters
    ----------
    networks : sequence of nn.Module
        ``nn.Sequential`` of linear (also masked) layers, LayerNorms and activations without
        parameters, such as `fpe.mlp` makes and `fpe.expand` returns. Changed.
    X, y : Tensor or sequence of Tensor
        Inputs, (samples, features), and class numbers, (samples,), or the probabilities of the classes
        to learn, (samples, classes); the same for all networks, or one tensor for each.
    epochs : int
        Passes over the data.
    optimizers : sequence of torch.optim.Adam
        One for each network, over its parameters, as `fpe.training.adam` makes them. Changed.
    generators : sequence of torch.Generator
        Source of the order of each network's mini-batches. Networks may have one in common: they then
        see the same order, whether or not they are trained as one program. Changed.
    batch_size, sample_weight, early_stopping
        As for `fpe.training.train`; weights and early stopping for all, or one for each.
    rewirers : sequence of Rewirer or None, optional
        For each network what lets its masks move, or None. Those of one policy, schedule and step move
        together. Changed.
    decay : Cosine or sequence of Cosine or None, optional
        How the learning rates fall, as for `fpe.training.train`: all of them alike, or that of each network.
        Networks whose rates fall differently are trained apart.
    on_epoch : callable, optional
        Gets the records of the networks of a batch after each of its epochs.
    compile : bool, optional
        Whether to compile. By default where the steps are many enough to make up for the seconds that
        it takes. Without a compiler there is a warning, and it goes on without.

    Returns
    -------
    list of list of dict
        For each network one record for each finished epoch.

    Raises
    ------
    ArgumentError
        For arguments that do not fit each other, or if the loss of a network becomes NaN or infinite;
        the networks of its batch then hold their last finite state.
    ModelError
        For a network that cannot be stacked; nothing is trained then.
    """
    how = optimizers, generators, sample_weight, early_stopping, rewirers, decay
    members = check_members(networks, X, y, *how)
    keys = [(member.key, batch_size or default_batch_size(len(member.X))) for member in members]
    readings = [member.reading for member in members]
    begins = [(generator, generator.get_state()) for generator in generators]
    for numbers in batches(networks, keys, readings, max((size for _, size in keys), default=1)):
        for generator, begin in [begins[i] for i in numbers]:  # an earlier batch may have had it, too
            generator.set_state(begin)
        _, size = keys[numbers[0]]
        Batch([members[i] for i in numbers], size, epochs, compile).run(epochs, on_epoch)
    return [member.history for member in members]
