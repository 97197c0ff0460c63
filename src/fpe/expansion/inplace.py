"""Expand a model while it is being trained: in place, with the optimizers that train it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from fpe._util.modules import check_module, own_forward, replace_modules_, uncompiled
from fpe.errors import ArgumentError, raise_problems
from fpe.expansion import planner
from fpe.expansion.expand import Expansion, check_wide, planned
from fpe.expansion.index_maps import Origins, remember_structure_
from fpe.expansion.plan import Plan
from fpe.expansion.pruning import InputPruning, as_pruning
from fpe.graph.layers import native
from fpe.graph.stacked import stacked_layers
from fpe.masked import MaskedLayer

MOMENTS = ("fresh", "kept")
#: Module, name, old and new of a parameter that is replaced.
Pair = tuple[str, str, nn.Parameter, nn.Parameter]


def expand_(
    model: nn.Module,
    factor: int = 2,
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    moments: str = "fresh",
    plan: Plan | None = None,
    **how: Any,
) -> Plan:
    """Expand `model` in place, let its optimizers train the new parameters, and return the applied plan.

    For a training loop that keeps the model and the optimizer, as those of Lightning, of Hugging Face and of
    accelerate do. Everything is checked first; if it fails, all are as they were.

    Parameters
    ----------
    model : nn.Module
        Its layers concerned are replaced. Not one that is wrapped for several processes already: expand
        it first, on each of them with the same seed, and wrap it then.
    optimizer : Optimizer or sequence of Optimizer, optional
        All that train the model. Their parameter groups get the new parameters in the places of the old;
        rates and schedules continue. Without any, make the optimizer afterwards.
    moments : str, default "fresh"
        ``"fresh"``: the optimizer forgets its moments and step counts, as a new one would. ``"kept"``: each
        child has those of its parent, and masked weights have none; a step count stays.
    factor, plan, **how
        As for `fpe.expand`.

    Raises
    ------
    ArgumentError
        For an unknown `moments`, what is no optimizer, or state that cannot be kept (LBFGS, Adafactor).
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
    >>> plan = fpe.expand_(model, factor=2, optimizer=optimizer)
    >>> model[0].out_features, optimizer.param_groups[0]["params"][0].shape
    (8, torch.Size([8, 8]))
    """
    check_module(model)
    check_moments(moments)
    optimizers = _as_optimizers(optimizer)
    model = uncompiled(model)
    with own_forward(model), stacked_layers(model):
        todo = planned(model, plan, {"factor": factor, **how})
        expansion = Expansion(model, todo)
        done, replaced = expansion.run()
        before = {name: model.get_submodule(name) for name in replaced}
        pairs: list[Pair] = [
            (name, own, before[name].get_parameter(own), new)
            for name, _ in model.named_modules(remove_duplicate=False)
            if name in replaced
            for own, new in replaced[name].named_parameters(recurse=False)
        ]
        states = [
            {} if moments == "fresh" else _lifted(o, expansion.origins, pairs, replaced) for o in optimizers
        ]
        _warn_of_untrained(optimizers, pairs)
        replace_modules_(model, replaced)
        try:
            check_wide(model, todo, done, fresh=plan is None)
        except BaseException:
            replace_modules_(model, before)
            raise
    model.fpe_plan = done  # type: ignore[assignment]
    remember_structure_(model)
    own = {id(p) for p in model.parameters()} | {id(old) for _, _, old, _ in pairs}
    for each, state in zip(optimizers, states, strict=True):
        if own & {id(p) for p in _trained(each)}:  # else it is another model's
            _replace_parameters_(each, {id(old): new for _, _, old, new in pairs}, state, moments)
    return done


def plan_ahead(model: nn.Module, how: dict[str, Any]) -> Plan:
    """Return the plan of `expand_` with these arguments, without gradients; nothing is changed."""
    model = uncompiled(model)
    if as_pruning(how.get("prune", "magnitude")).needs_scores == "gradients":
        how = {**how, "prune": InputPruning()}  # there are gradients only when it expands
    with own_forward(model):
        return planner.plan(model, **how)


def check_moments(moments: str) -> None:
    """Raise ArgumentError unless `moments` is a known way of treating an optimizer's state."""
    if moments not in MOMENTS:
        raise ArgumentError(f"moments is {moments!r}; give {' or '.join(map(repr, MOMENTS))}.")


def _as_optimizers(optimizer: Any) -> list[Optimizer]:
    given = [] if optimizer is None else [optimizer] if isinstance(optimizer, Optimizer) else optimizer
    given = list(given) if isinstance(given, list | tuple) else [given]
    problems = []
    for each in given:
        kind = type(_inner(each)).__name__
        if not isinstance(each, Optimizer):
            problems.append(f"optimizer is a {kind}; give a torch.optim.Optimizer, or a list of them.")
        elif kind == "ZeroRedundancyOptimizer":
            problems.append(f"a {kind} has sharded the parameters already; make it after the expansion.")
    raise_problems(problems, ArgumentError, "the optimizers")
    return given


def _trained(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _inner(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)  # the one that accelerate has wrapped


def _warn_of_untrained(optimizers: list[Optimizer], pairs: list[Pair]) -> None:
    """Name the replaced parameters that no given optimizer trains: another one would go on with the old."""
    known = {id(p) for optimizer in optimizers for p in _trained(optimizer)}
    lost = [f"{m}.{p}" for m, p, old, _ in pairs if old.requires_grad and id(old) not in known]
    if optimizers and lost:
        more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        warnings.warn(
            f"no given optimizer trains {', '.join(map(repr, lost[:5]))}{more}, which the expansion "
            "replaces; give all optimizers of the model in a list, or add the new parameters to one "
            "(add_param_group).",
            stacklevel=3,
        )


def _lifted(
    optimizer: Optimizer, origins: Origins, pairs: list[Pair], replaced: dict[str, nn.Module]
) -> dict[int, dict[str, Any]]:
    """Return the state that each new parameter inherits, by the identity of the old one."""
    kind = type(_inner(optimizer)).__name__
    if hasattr(_inner(optimizer), "_numel_cache"):
        raise ArgumentError(
            f"moments='kept': {kind} keeps its history for all parameters in one vector, which cannot be "
            "passed on to the children; give moments='fresh'."
        )
    states: dict[int, dict[str, Any]] = {}
    for name, parameter, old, _ in pairs:
        state = states[id(old)] = {}
        for key, value in optimizer.state.get(old, {}).items():
            tensor = isinstance(value, Tensor)
            if value is None or isinstance(value, bool | int | float | str) or (tensor and value.dim() == 0):
                state[key] = value
                continue
            if not tensor or value.shape != old.shape:
                what = f"of shape {tuple(value.shape)}" if tensor else type(value).__name__
                raise ArgumentError(
                    f"moments='kept': {kind} keeps {key!r} ({what}) for {name}.{parameter} of shape "
                    f"{tuple(old.shape)}, which cannot be passed on to the children; give moments='fresh'."
                )
            state[key], module = origins.lift(name, parameter, value), replaced[name]
            state[key] = native(module, state[key]).contiguous()
            if parameter == "weight" and isinstance(module, MaskedLayer):
                state[key] = state[key] * module.fpe_mask.to(state[key])
    return states


def _replace_parameters_(
    optimizer: Optimizer, new_of: dict[int, nn.Parameter], states: dict[int, dict[str, Any]], moments: str
) -> None:
    for group in optimizer.param_groups:
        for position, old in enumerate(group["params"]):
            if (new := new_of.get(id(old))) is not None:
                group["params"][position] = new
                optimizer.state.pop(old, None)
                if states.get(id(old)):
                    optimizer.state[new] = cast(Any, states[id(old)])
    if moments == "fresh":
        optimizer.state.clear()
    inner = _inner(optimizer)
    if hasattr(inner, "_numel_cache"):  # LBFGS counts all parameters once, and keeps a list of them
        inner._numel_cache, inner._params = None, inner.param_groups[0]["params"]
