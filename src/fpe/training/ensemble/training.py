"""The training loop of `fpe.training.loop`, for many networks at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fpe.errors import ArgumentError, raise_problems
from fpe.rewiring.pruner import GradualPruner
from fpe.rewiring.rewirer import Rewirer
from fpe.training.ensemble.batch import Batch, Member
from fpe.training.ensemble.evaluation import per_network
from fpe.training.ensemble.stack import architecture, batches
from fpe.training.loop import Cosine, EarlyStopping, Record, default_batch_size
from fpe.training.losses import CLASSES, Objective


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
    rewirers: Sequence[Rewirer | GradualPruner | None] | None = None,
    decay: Cosine | Sequence[Cosine | None] | None = None,
    objective: Objective | Sequence[Objective] = CLASSES,
    on_epoch: Callable[[list[Record]], None] | None = None,
    compile: bool | None = None,
) -> list[list[Record]]:
    """Train many networks in place for some epochs, each as `fpe.training.train` would, within rounding.

    Networks of one architecture and similar widths are trained as one program; how many at a time follows
    from the size of the cache, or of the GPU's memory. Networks, optimizers, generators and rewirers change
    as in the ordinary loop; after Ctrl-C they are as after the last finished epoch. Return the records of the
    finished epochs of each network.

    Parameters
    ----------
    networks : sequence of nn.Module
        ``nn.Sequential`` of linear (also masked) layers, LayerNorms and activations without parameters, such
        as `fpe.mlp` makes and `fpe.expand` returns.
    X, y, batch_size, sample_weight, early_stopping, decay, objective
        As for `fpe.training.train`; all but `batch_size` for all networks, or one for each.
    epochs : int
        Passes over the data.
    optimizers : sequence of torch.optim.Adam
        One for each network, over its parameters, as `fpe.training.adam` makes them.
    generators : sequence of torch.Generator
        Order the mini-batches of each network. Networks that share one see the same order.
    rewirers : sequence of Rewirer, GradualPruner or None, optional
        What changes the masks of each network. Networks whose policy, schedule and step agree are rewired, or
        pruned, together.
    on_epoch : callable, optional
        Gets the records of the networks of a batch after each of its epochs.
    compile : bool, optional
        Whether to compile; by default if there are enough steps. Without a compiler there is a warning.

    Raises
    ------
    ArgumentError
        For arguments that do not fit each other, or if training diverges; the networks of that batch are then
        as after their last finite epoch.
    ModelError
        For a network that cannot be stacked; nothing is trained then.
    """
    members = _members(
        networks,
        X=X,
        y=y,
        optimizers=optimizers,
        generators=generators,
        sample_weight=sample_weight,
        early_stopping=early_stopping,
        rewirers=rewirers,
        decay=decay,
        objective=[objective] * len(networks) if isinstance(objective, Objective) else objective,
    )
    keys = [(member.key, batch_size or default_batch_size(len(member.X))) for member in members]
    orders = [member.order for member in members]
    initial = [(generator, generator.get_state()) for generator in generators]
    for numbers in batches(networks, keys, orders, max((size for _, size in keys), default=1)):
        for generator, state in [initial[i] for i in numbers]:  # an earlier batch may have used it, too
            generator.set_state(state)
        _, size = keys[numbers[0]]
        Batch([members[i] for i in numbers], size, epochs, compile).run(epochs, on_epoch)
    return [member.history for member in members]


def _members(networks: Sequence[nn.Module], **given: Any) -> list[Member]:
    """Return the checked members of an ensemble; `given` are the fields of `Member`, in their order."""
    problems, columns = [], []
    for name, values in given.items():
        try:
            columns.append(per_network(values, len(networks), name))
        except ArgumentError as error:
            problems.append(str(error))
    raise_problems(problems, ArgumentError, "the ensemble")
    members = [Member(i, n, *own) for i, (n, *own) in enumerate(zip(networks, *columns, strict=True))]
    problems = [f"network {member.number}: {p}" for member in members if (p := _problem(member)) is not None]
    raise_problems(problems, ArgumentError, "the ensemble")
    return members


def _problem(member: Member) -> str | None:
    network, optimizer, X, y = member.network, member.optimizer, member.X, member.y
    architecture(network)
    first, outputs = next(network.parameters()), list(network.parameters())[-1].shape[0]
    if member.objective.kind != "classes":
        if y.shape[1:] != (outputs,) or y.dtype != first.dtype:
            return (
                f"y has shape {tuple(y.shape)} and type {y.dtype}; targets must be (samples, {outputs}), of "
                f"type {first.dtype}."
            )
        y = y[:, 0]
    elif y.dim() == 2 and y.is_floating_point():  # probabilities of the classes
        if outputs < 2 or y.shape[1] != outputs or y.dtype != first.dtype:
            return (
                f"y has shape {tuple(y.shape)} and type {y.dtype}; probabilities must be "
                f"(samples, {outputs}), of type {first.dtype}, for two logits or more."
            )
        y = y[:, 0]
    if X.dim() != 2 or X.shape[1] != first.shape[1] or y.shape != X.shape[:1] or not len(X):
        return (
            f"X has shape {tuple(X.shape)} and y {tuple(y.shape)}; give (samples, {first.shape[1]}) and "
            "(samples,), at least one sample."
        )
    if X.dtype != first.dtype or X.device != first.device:
        return f"X is {X.dtype} on {X.device}, its weights {first.dtype} on {first.device}; they must agree."
    groups, advice = optimizer.param_groups, "give fpe.training.adam(network)."
    if type(optimizer) is not torch.optim.Adam or len(groups) != 1 or groups[0]["amsgrad"]:
        return f"its optimizer is {type(optimizer).__name__}; {advice}"
    if groups[0]["maximize"] or groups[0].get("decoupled_weight_decay"):
        return f"its optimizer maximizes or decays weights apart; {advice}"
    if [id(p) for p in groups[0]["params"]] != [id(p) for p in network.parameters()]:
        return f"its optimizer is not over its parameters; {advice}"
    rewirer = member.rewirer
    if rewirer is None:
        return None
    if not isinstance(rewirer, Rewirer | GradualPruner):
        return (
            f"its rewirer is a {type(rewirer).__name__}; give an fpe.Rewirer, an fpe.GradualPruner or None."
        )
    if isinstance(rewirer, GradualPruner) and rewirer.then is not None:
        return "its pruner rewires after pruning; train it with fpe.training.train, or leave `then` out."
    if rewirer.model is not network or [id(o) for o in rewirer.optimizers] != [id(optimizer)]:
        return "its rewirer is not for it and its optimizer; give fpe.Rewirer(network, optimizer, …)."
    return None
