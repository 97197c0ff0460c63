"""Find the groups of a model: symbolically without inputs, by export with them, in parts where that fails."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from torch import nn

from fpe._util.terminal import silenced
from fpe.errors import ModelError
from fpe.graph.groups import Found
from fpe.graph.inputs import as_call, inputs_for
from fpe.graph.symbolic import find_symbolically


def find_groups(model: nn.Module, example_inputs: Any = None) -> Found:
    """Find the neurons of a model that can be expanded.

    Parameters
    ----------
    model : nn.Module
        Any module. It is not changed.
    example_inputs : Tensor, tuple or dict, optional
        One small batch: the model's input, its positional arguments, or its keyword arguments. Without
        it, linear layers of an ``nn.Sequential`` or of a module that ``torch.fx`` can trace are followed;
        for a model of transformers a batch is made up. With it, any model that ``torch.export`` can
        follow is, convolutions and gated pairs included, and parts of others.

    Returns
    -------
    Found
        Groups in the order of the forward pass; every other layer with the reason why it is left alone.

    Raises
    ------
    ModelError
        If the forward pass cannot be followed, or does not run on `example_inputs`.
    """
    if example_inputs is None:
        example_inputs = inputs_for(model)
    if example_inputs is None:
        return find_symbolically(model)
    from fpe.graph.follow import exported, follow  # torch.export takes a second to load
    from fpe.graph.parts import follow_parts

    call = as_call(example_inputs)
    try:
        with _quiet():
            program = exported(model, call)
    except ModelError:
        raise
    except Exception as error:  # the user's own code may fail in any way
        with _quiet():
            return follow_parts(model, call, error)
    return follow(model, program)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's remarks about exporting to itself; what matters is said by the reasons."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere), silenced("torch"):
        warnings.simplefilter("ignore")
        yield
