"""Expand a model while it is being trained: in place, with the optimizer that trains it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from fpe.adoption import adopt
from fpe.columns import Columns
from fpe.errors import ArgumentError
from fpe.expansion import answer_shapes, check_wide, wide_modules
from fpe.lineage import Lineage
from fpe.masked import MaskedLayer
from fpe.partition import as_split
from fpe.planning import plan
from fpe.plans import Plan
from fpe.prunes import as_prune
from fpe.wrappers import own_forward, uncompiled

MOMENTS = ("fresh", "kept")


def expand_(model: nn.Module, optimizer: Optimizer | None = None, moments: str = "fresh", **how: Any) -> Plan:
    """Expand `model` in place, and let its optimizer train the new parameters; both are changed.

    For a training loop that holds on to the model and the optimizer, as those of Lightning, of Hugging
    Face and of accelerate do. Everything is checked first; if it fails, both are as they were.

    Parameters
    ----------
    model : nn.Module
        Its layers concerned are replaced. Not one that is wrapped for several processes already: expand
        it first, on each of them with the same seed, and wrap it then.
    optimizer : Optimizer, optional
        Its parameter groups get the new parameters in the places of the old; rates and schedules go on.
    moments : str, default "fresh"
        ``"fresh"``: the optimizer forgets its moments and step counts, as a new one would. ``"kept"``: each
        child has those of its parent, and held weights have none; what is no entry by entry, such as a step
        count, stays.
    **how
        All other arguments of `fpe.expand`: factor, split, prune, layers, example_inputs, seed and so on.

    Returns
    -------
    Plan
        What was done.

    Raises
    ------
    ArgumentError
        For an unknown `moments`, or an optimizer whose state does not go entry by entry, so that it
        cannot be kept.
    ModelError, BudgetError
        As for `fpe.expand`.

    Examples
    --------
    >>> import torch, fpe
    >>> model = fpe.mlp(8, 4, 2)
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> plan = fpe.expand_(model, optimizer, factor=2)
    >>> model[0].out_features, optimizer.param_groups[0]["params"][0].shape
    (8, torch.Size([8, 8]))
    """
    check_moments(moments)
    model = uncompiled(model)
    with own_forward(model):
        return _expand(model, optimizer, moments, how)


def foresee(model: nn.Module, how: dict[str, Any]) -> Plan:
    """Return the plan of `expand_` with these arguments; nothing is changed.

    Raises
    ------
    ArgumentError, ModelError, BudgetError
        As `expand_` would.
    """
    model = uncompiled(model)
    prune = as_prune(how.get("prune", "magnitude"))
    if isinstance(prune, Columns) and prune.by == "gradient":  # there are gradients only when it expands
        how = {**how, "prune": Columns()}
    with own_forward(model):
        return plan(model, **how)


def _expand(model: nn.Module, optimizer: Optimizer | None, moments: str, how: dict[str, Any]) -> Plan:
    todo = plan(model, **how)
    example_inputs = how.get("example_inputs")
    split, prune = as_split(how.get("split", "random")), as_prune(how.get("prune", "magnitude"))
    todo, replaced = wide_modules(model, todo, split, prune, example_inputs)
    shapes = answer_shapes(model, example_inputs)
    lineage = Lineage.of(model, todo)
    pairs = _pairs(model, replaced)
    states = _lifted(optimizer, lineage, pairs, replaced) if optimizer and moments == "kept" else {}
    with _replaced(model, replaced):
        check_wide(model, todo, shapes, example_inputs)
    model.fpe_plan = todo  # type: ignore[assignment]
    if optimizer is not None:
        _hand_over(optimizer, {id(old): new for _, _, old, new in pairs}, states, moments)
    return todo


def check_moments(moments: str) -> None:
    """Raise ArgumentError unless `moments` is a known way of treating an optimizer's state."""
    if moments not in MOMENTS:
        raise ArgumentError(f"moments is {moments!r}; give {' or '.join(map(repr, MOMENTS))}.")


@contextmanager
def _replaced(model: nn.Module, modules: dict[str, nn.Module]) -> Iterator[None]:
    """Put modules in place; if what follows fails, put the old ones back."""
    before = {name: model.get_submodule(name) for name in modules}
    adopt(model, modules)
    try:
        yield
    except BaseException:
        adopt(model, before)
        raise


def _pairs(
    model: nn.Module, replaced: dict[str, nn.Module]
) -> list[tuple[str, str, nn.Parameter, nn.Parameter]]:
    """Return module, name, old and new of each parameter that is replaced."""
    pairs = []
    for name, module in replaced.items():
        old = dict(model.get_submodule(name).named_parameters(recurse=False))
        for parameter, new in module.named_parameters(recurse=False):
            pairs.append((name, parameter, old[parameter], new))
    return pairs


def _lifted(
    optimizer: Optimizer,
    lineage: Lineage,
    pairs: list[tuple[str, str, nn.Parameter, nn.Parameter]],
    replaced: dict[str, nn.Module],
) -> dict[int, dict[str, Any]]:
    """Return the state that each new parameter inherits, by the identity of the old one."""
    states: dict[int, dict[str, Any]] = {}
    for name, parameter, old, _ in pairs:
        state: dict[str, Any] = {}
        for key, value in optimizer.state.get(old, {}).items():
            if not isinstance(value, Tensor) or value.dim() == 0:
                state[key] = value
            elif value.shape != old.shape:
                raise ArgumentError(
                    f"moments='kept': {type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} "
                    f"for {name}.{parameter} of shape {tuple(old.shape)}, which cannot be passed on to the "
                    "children; give moments='fresh'."
                )
            else:
                state[key] = lineage.lift(name, parameter, value)
                module = replaced[name]
                if parameter == "weight" and isinstance(module, MaskedLayer):
                    state[key] = state[key] * module.fpe_mask.to(state[key])
        states[id(old)] = state
    return states


def _hand_over(
    optimizer: Optimizer, new_of: dict[int, nn.Parameter], states: dict[int, dict[str, Any]], moments: str
) -> None:
    """Let an optimizer train the new parameters in the places of the old."""
    for group in optimizer.param_groups:
        for position, old in enumerate(group["params"]):
            new = new_of.get(id(old))
            if new is None:
                continue
            group["params"][position] = new
            optimizer.state.pop(old, None)
            if states.get(id(old)):
                optimizer.state[new] = cast(Any, states[id(old)])
    if moments == "fresh":
        optimizer.state.clear()
