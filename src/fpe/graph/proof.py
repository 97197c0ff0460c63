"""The permutation check: neurons that can be expanded can be put in any order.

Put the rows of the producer, and all that stands over them, in another order, and the columns of
the consumers likewise: the output of the network must not move. An operation that mixes neurons,
a reader that was missed, or a norm that was forgotten moves it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from fpe.errors import ModelError
from fpe.graph.groups import Group, linear, neuron_tensors


def prove(model: nn.Module, group: Group, example_inputs: Any) -> None:
    """Check by a permutation of its neurons that a group is one, and raise if it is not.

    Parameters
    ----------
    model : nn.Module
        Run in evaluation mode without gradients, with other tensors in place of some of its own; it is
        left as it was.
    group : Group
        The neurons.
    example_inputs : Tensor, tuple or dict
        One batch: the model's input, its positional arguments, or its keyword arguments.

    Raises
    ------
    ModelError
        If the output moves, so that expanding the group would make a wrong network.
    """
    args, kwargs = _arguments(example_inputs)
    before, after = [], []
    with _evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        for sign in (1, -1):
            tensors = _unlike(model, group) | _signed_producer(model, group, sign)
            before += _tensors(functional_call(model, tensors, args, kwargs))
            permuted = tensors | _permuted(model, group, tensors)
            after += _tensors(functional_call(model, permuted, args, kwargs))
    if not any(tensor.numel() for tensor in before):
        raise ModelError(
            f"the neurons of {group.producer!r} cannot be proved to be a group: {type(model).__name__} "
            "returns no floating-point tensor that could move. Give a model that returns its logits."
        )
    for old, new in zip(before, after, strict=True):
        moved = float((old - new).abs().max()) if old.numel() else 0.0
        scale = max(1.0, float(old.abs().max())) if old.numel() else 1.0
        eps = torch.finfo(old.dtype).eps
        if not moved <= 1e3 * eps * scale:
            raise ModelError(
                f"the neurons of {group.producer!r} cannot be expanded: when they are put in another order, "
                f"with the inputs of {', '.join(map(repr, group.consumers))} to match, the output moves by "
                f"{moved:.3g}. Something between them mixes neurons, or another module reads them."
            )


def _unlike(model: nn.Module, group: Group) -> dict[str, Tensor]:
    """Return the other tensors with one entry for each neuron, their entries made unlike.

    The entries of an untrained norm are all alike, so that a permutation would not show that it was
    forgotten.
    """
    neurons = linear(model, group.producer).out_features
    own = tuple(f"{name}." for name in (group.producer, *group.between))
    noise = torch.rand(neurons, generator=torch.Generator().manual_seed(0))
    return {
        name: tensor + 0.1 * noise.to(tensor)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if tensor.shape == (neurons,) and tensor.is_floating_point() and not name.startswith(own)
    }


def _signed_producer(model: nn.Module, group: Group, sign: int) -> dict[str, Tensor]:
    """Return the producer's tensors times a sign: each neuron is to be seen on both sides of zero.

    A forgotten PReLU shows only where what it gets is negative.
    """
    producer = model.get_submodule(group.producer)
    return {f"{group.producer}.{k}": sign * v for k, v in producer.named_parameters(recurse=False)}


def _permuted(model: nn.Module, group: Group, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the group in an order that leaves none of its neurons in place."""
    neurons = linear(model, group.producer).out_features
    shuffled = torch.randperm(neurons, generator=torch.Generator().manual_seed(0))
    order = torch.empty_like(shuffled)
    order[shuffled] = shuffled.roll(1)
    permuted: dict[str, Tensor] = {}
    for name in (group.producer, *group.between):
        module = model.get_submodule(name)
        changed = neuron_tensors(module, neurons)
        if name == group.producer:
            changed |= {k: v for k, v in module.named_parameters(recurse=False) if k == "weight"}
        for key, value in changed.items():
            permuted[f"{name}.{key}"] = tensors.get(f"{name}.{key}", value)[order.to(value.device)]
    for name in group.consumers:
        weight = linear(model, name).weight
        permuted[f"{name}.weight"] = weight[:, order.to(weight.device)]
    return permuted


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, so that no dropout is drawn and no running mean moves."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple):
        return example_inputs, {}
    return (example_inputs,), {}


def _tensors(output: Any) -> list[Tensor]:
    return [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
