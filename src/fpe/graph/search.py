"""Find the groups of a model: by export with a batch, symbolically without."""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from typing import Any

from torch import nn

from fpe._util.terminal import silenced
from fpe.graph.groups import NOT_CALLED, Found, Skipped
from fpe.graph.inputs import as_call, inputs_for
from fpe.graph.layers import orient_, what_it_is
from fpe.graph.stacked import CHILD, stacked_layers, stacks_in
from fpe.graph.symbolic import follow_symbolically


def find_groups(model: nn.Module, example_inputs: Any = None) -> Found:
    """Find the neurons of a model that can be expanded.

    Parameters
    ----------
    model : nn.Module
        Any module. It is not changed.
    example_inputs : Tensor, tuple or dict, optional
        One small batch: the model's input, its positional arguments, or its keyword arguments. With it fpe
        follows any model that ``torch.export`` can export, convolutions and gated pairs included, and
        parts of other models. Without it, it follows the linear layers of a module that ``torch.fx`` can
        trace, such as an ``nn.Sequential``; for a model of transformers it makes a batch.

    Returns
    -------
    Found
        Groups in the order of the forward pass; every other layer with the reason why it is not expanded.

    Raises
    ------
    ModelError
        If the forward pass cannot be followed, or does not run on `example_inputs`.
    """
    with stacked_layers(model):
        found = _named(model, _find_groups(model, example_inputs))
        orient_(model, found.groups)
        return found


def _named(model: nn.Module, found: Found) -> Found:
    """Name stacked weights that are not those of linear layers by the module that holds them."""
    holders = {f"{name}.{CHILD}".lstrip("."): (name, module) for name, module, _ in stacks_in(model)}
    skipped: dict[str, Skipped] = {}
    for skip in found.skipped:
        name, module = holders.get(skip.name.rpartition(".")[0], ("", None))
        if module is not None and skip.reason == NOT_CALLED:
            only = "only linear layers and convolutions are expanded"
            skip = Skipped(name, f"{what_it_is(module)}; {only}")
        skipped.setdefault(skip.name, skip)
    return replace(found, skipped=tuple(skipped.values()))


def _find_groups(model: nn.Module, example_inputs: Any) -> Found:
    if example_inputs is None:
        example_inputs = inputs_for(model)
    if example_inputs is None:
        return follow_symbolically(model)
    from fpe.graph.follow import follow_model  # torch.export takes a second to load

    output = io.StringIO()  # torch's remarks about exporting
    with warnings.catch_warnings(), redirect_stdout(output), redirect_stderr(output), silenced("torch"):
        warnings.simplefilter("ignore")
        return follow_model(model, as_call(example_inputs))
