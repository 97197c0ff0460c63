"""Expand a model while it is being trained: in place, with the optimizer that trains it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from fpe._util.modules import own_forward, replace_modules_, uncompiled
from fpe.errors import ArgumentError, raise_problems
from fpe.expansion.expand import answer_shapes, check_wide, wide_modules
from fpe.expansion.lineage import Lineage
from fpe.expansion.plan import Plan
from fpe.expansion.planner import plan
from fpe.expansion.pruning import InputPruning, as_pruning
from fpe.expansion.splits import as_split
from fpe.masked import MaskedLayer

MOMENTS = ("fresh", "kept")


def expand_(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    moments: str = "fresh",
    **how: Any,
) -> Plan:
    """Expand `model` in place, and let its optimizers train the new parameters; all are changed.

    For a training loop that holds on to the model and the optimizer, as those of Lightning, of Hugging
    Face and of accelerate do. Everything is checked first; if it fails, all are as they were.

    Parameters
    ----------
    model : nn.Module
        Its layers concerned are replaced. Not one that is wrapped for several processes already: expand
        it first, on each of them with the same seed, and wrap it then.
    optimizer : Optimizer or sequence of Optimizer, optional
        All that train the model. Their parameter groups get the new parameters in the places of the old;
        rates and schedules go on. Without any, make the optimizer afterwards.
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
        For an unknown `moments`, what is no optimizer, or an optimizer whose state does not go entry by
        entry, as that of LBFGS and Adafactor, so that it cannot be kept.
    ModelError, BudgetError
        As for `fpe.expand`; hooks on parameters that are not replaced stay.

    Warns
    -----
    UserWarning
        If none of the given optimizers trains a parameter that is replaced, which names it.

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
    optimizers = _as_optimizers(optimizer)
    model = uncompiled(model)
    with own_forward(model):
        return _expand(model, optimizers, moments, how)


def foresee(model: nn.Module, how: dict[str, Any]) -> Plan:
    """Return the plan of `expand_` with these arguments; nothing is changed.

    Raises
    ------
    ArgumentError, ModelError, BudgetError
        As `expand_` would.
    """
    model = uncompiled(model)
    prune = as_pruning(how.get("prune", "magnitude"))
    if prune.needs_scores == "gradients":  # there are gradients only when it expands
        how = {**how, "prune": InputPruning()}
    with own_forward(model):
        return plan(model, **how)


def _expand(model: nn.Module, optimizers: list[Optimizer], moments: str, how: dict[str, Any]) -> Plan:
    todo = plan(model, **how)
    example_inputs = how.get("example_inputs")
    split, prune = as_split(how.get("split", "random")), as_pruning(how.get("prune", "magnitude"))
    todo, replaced = wide_modules(model, todo, split, prune, example_inputs)
    shapes = answer_shapes(model, example_inputs)
    lineage = Lineage.of(model, todo)
    pairs = _pairs(model, replaced)
    states = [{} if moments == "fresh" else _lifted(o, lineage, pairs, replaced) for o in optimizers]
    _warn_of_untrained(optimizers, pairs)
    with _replaced(model, replaced):
        check_wide(model, todo, shapes, example_inputs)
    model.fpe_plan = todo  # type: ignore[assignment]
    own = {id(p) for p in model.parameters()} | {id(old) for _, _, old, _ in pairs}
    for optimizer, state in zip(optimizers, states, strict=True):
        if own & {id(p) for p in _trained(optimizer)}:  # else it is another model's
            _hand_over(optimizer, {id(old): new for _, _, old, new in pairs}, state, moments)
    return todo


def _as_optimizers(optimizer: Any) -> list[Optimizer]:
    """Return a list of the given optimizers."""
    given = [] if optimizer is None else [optimizer] if isinstance(optimizer, Optimizer) else optimizer
    given = list(given) if isinstance(given, list | tuple) else [given]
    problems = []
    for each in given:
        kind = type(getattr(each, "optimizer", each)).__name__
        if not isinstance(each, Optimizer):
            problems.append(f"optimizer is a {kind}; give a torch.optim.Optimizer, or a list of them.")
        elif kind == "ZeroRedundancyOptimizer":
            problems.append(f"a {kind} has shared out the parameters already; make it after the expansion.")
    raise_problems(problems, ArgumentError, "the optimizers")
    return given


def _trained(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _warn_of_untrained(
    optimizers: list[Optimizer], pairs: list[tuple[str, str, nn.Parameter, nn.Parameter]]
) -> None:
    """Name the parameters whose optimizer is not known: it would go on with those that are no more."""
    known = {id(p) for optimizer in optimizers for p in _trained(optimizer)}
    lost = [f"{m}.{p}" for m, p, old, _ in pairs if old.requires_grad and id(old) not in known]
    if optimizers and lost:
        more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        warnings.warn(
            f"no given optimizer trains {', '.join(map(repr, lost[:5]))}{more}, which the expansion "
            "replaces; give all optimizers of the model in a list, or add the new parameters to one "
            "(add_param_group).",
            stacklevel=4,
        )


def check_moments(moments: str) -> None:
    """Raise ArgumentError unless `moments` is a known way of treating an optimizer's state."""
    if moments not in MOMENTS:
        raise ArgumentError(f"moments is {moments!r}; give {' or '.join(map(repr, MOMENTS))}.")


@contextmanager
def _replaced(model: nn.Module, modules: dict[str, nn.Module]) -> Iterator[None]:
    """Put modules in place; if what follows fails, put the old ones back."""
    before = {name: model.get_submodule(name) for name in modules}
    replace_modules_(model, modules)
    try:
        yield
    except BaseException:
        replace_modules_(model, before)
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
    if hasattr(_inner(optimizer), "_numel_cache"):
        raise ArgumentError(
            f"moments='kept': {type(_inner(optimizer)).__name__} keeps its history for all parameters in one "
            "vector, which cannot be passed on to the children; give moments='fresh'."
        )
    for name, parameter, old, _ in pairs:
        state: dict[str, Any] = {}
        for key, value in optimizer.state.get(old, {}).items():
            if value is None or isinstance(value, bool | int | float | str):
                state[key] = value
            elif not isinstance(value, Tensor) or value.shape not in (old.shape, ()):
                what = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ArgumentError(
                    f"moments='kept': {type(_inner(optimizer)).__name__} keeps {key!r} ({what}) for "
                    f"{name}.{parameter} of shape {tuple(old.shape)}, which cannot be passed on to the "
                    "children; give moments='fresh'."
                )
            elif value.dim() == 0:
                state[key] = value
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
    inner = _inner(optimizer)
    if hasattr(inner, "_numel_cache"):  # LBFGS counts all parameters once, and keeps a list of them
        inner._numel_cache, inner._params = None, inner.param_groups[0]["params"]


def _inner(optimizer: Any) -> Any:
    """Return the optimizer in what accelerate puts around it."""
    return getattr(optimizer, "optimizer", optimizer)
