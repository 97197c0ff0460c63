"""The training loop of `fpe.training.loop`, for many networks at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fpe.rewiring.rewirer import Rewirer
from fpe.training.ensemble.batch import Batch
from fpe.training.ensemble.members import check_members
from fpe.training.ensemble.stack import batches
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

    Networks of one architecture and similar widths are trained as one program; how many at a time follows
    from the size of the cache, or of the GPU's memory. Networks, optimizers, generators and rewirers are left
    as the ordinary loop would leave them, after Ctrl-C as after the last finished epoch.

    Parameters
    ----------
    networks : sequence of nn.Module
        ``nn.Sequential`` of linear (also masked) layers, LayerNorms and activations without parameters, such
        as `fpe.mlp` makes and `fpe.expand` returns. Changed.
    X, y : Tensor or sequence of Tensor
        Inputs, (samples, features), and class numbers, (samples,), or probabilities of the classes,
        (samples, classes); the same for all networks, or one tensor for each.
    epochs : int
        Passes over the data.
    optimizers : sequence of torch.optim.Adam
        One for each network, over its parameters, as `fpe.training.adam` makes them. Changed.
    generators : sequence of torch.Generator
        Order the mini-batches of each network. Networks that share one see the same order. Changed.
    batch_size, sample_weight, early_stopping, decay
        As for `fpe.training.train`; all but `batch_size` for all networks, or one for each.
    rewirers : sequence of Rewirer or None, optional
        For each network its rewirer, or None. Those of one policy, schedule and step work together. Changed.
    on_epoch : callable, optional
        Gets the records of the networks of a batch after each of its epochs.
    compile : bool, optional
        Whether to compile; by default if the steps are many enough to make up for the seconds that it takes.
        Without a compiler there is a warning.

    Returns
    -------
    list of list of dict
        For each network one record for each finished epoch.

    Raises
    ------
    ArgumentError
        For arguments that do not fit each other, or if training diverges; the networks of that batch are then
        as after their last finite epoch.
    ModelError
        For a network that cannot be stacked; nothing is trained then.
    """
    given = {
        "X": X,
        "y": y,
        "optimizers": optimizers,
        "generators": generators,
        "sample_weight": sample_weight,
        "early_stopping": early_stopping,
        "rewirers": rewirers,
        "decay": decay,
    }
    members = check_members(networks, given)
    keys = [(member.key, batch_size or default_batch_size(len(member.X))) for member in members]
    readings = [member.reading for member in members]
    begins = [(generator, generator.get_state()) for generator in generators]
    for numbers in batches(networks, keys, readings, max((size for _, size in keys), default=1)):
        for generator, begin in [begins[i] for i in numbers]:  # an earlier batch may have used it, too
            generator.set_state(begin)
        _, size = keys[numbers[0]]
        Batch([members[i] for i in numbers], size, epochs, compile).run(epochs, on_epoch)
    return [member.history for member in members]
