"""The paper's classifier (section 2.1), and its deep form with LayerNorm (A.7)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from fpe._util.modules import seeded
from fpe.errors import ArgumentError
from fpe.masked import HasMasks

#: The attribute of a classifier with the names of its classes, a list of str in the order of the outputs.
CLASSES = "fpe_classes"
#: The attribute of a model with what its inputs and outputs are, and what made it: a dict, as JSON takes it.
#: Its keys are described in docs/how-to/predicting.md.
ABOUT = "fpe_about"
#: Activations of `mlp`, by name.
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class Standardize(nn.Module):
    """Subtract a mean from each feature and divide by a scale, both fixed: (…, inputs) to (…, inputs).

    It is not merged into the next layer's weights, which would make them unequal and harder to quantize.

    Parameters
    ----------
    mean, scale : Tensor
        Shape (inputs,). They become buffers; no scale is 0.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, input: Tensor) -> Tensor:
        """Standardize the features."""
        return (input - self.mean) / self.scale

    def extra_repr(self) -> str:
        """Name the number of features."""
        return str(len(self.mean))


class DirectMLP(nn.Sequential):
    """A classifier whose last child ``direct`` connects inputs to outputs, beside the other layers.

    A first layer ``scaler`` comes before both.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (…, inputs) to (…, outputs)."""
        *layers, (_, direct) = self.named_children()
        x = input
        for name, module in layers:
            x = module(x)
            input = x if name == "scaler" else input
        return cast(Tensor, x + direct(input))


def standardized(network: nn.Module, mean: Tensor, scale: Tensor) -> nn.Sequential:
    """Return the layers of an ``nn.Sequential`` after a `Standardize` called ``"scaler"``.

    The layers are the same and keep their names, so that plans and state dicts still fit.
    """
    layers = [("scaler", Standardize(mean, scale)), *network.named_children()]
    kind = DirectMLP if isinstance(network, DirectMLP) else nn.Sequential
    made = kind(OrderedDict(layers)).train(network.training)
    for name in ("fpe_plan", "fpe_packing", CLASSES, ABOUT):
        if hasattr(network, name):
            setattr(made, name, getattr(network, name))
    return made


@torch.no_grad()
def _zero_(layer: nn.Module) -> nn.Module:
    """Set the weights of a linear map to zero: what it learns then does not depend on a draw."""
    for parameter in layer.parameters():
        parameter.zero_()
    return layer


def mlp(
    inputs: int,
    hidden: int | Sequence[int],
    outputs: int,
    *,
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
    standardize: bool = False,
    direct: bool = False,
    activation: str = "relu",
) -> nn.Sequential:
    """Build Linear → ReLU → Linear; with several hidden layers, LayerNorm before each ReLU (A.7).

    Without a hidden layer it is softmax or linear regression. Its weights, and those of direct connections,
    begin at zero.

    Parameters
    ----------
    inputs, outputs : int
        Features and logits, at least 1.
    hidden : int or sequence of int
        Neurons of the hidden layer, or of each; 0 or an empty sequence for none.
    seed : int, optional
        Of the weights; torch's own random state is then not used.
    dtype : torch.dtype, default torch.float32
        Type of the weights.
    standardize : bool, default False
        Begin with a layer ``scaler`` (`Standardize`) of mean 0 and scale 1, to be set to those of the data.
        The names of the other layers do not depend on it.
    direct : bool, default False
        Add a last layer ``direct``, connections without biases from the inputs to the outputs, beside the
        hidden layers.
    activation : str, default "relu"
        ``"relu"``, ``"gelu"``, ``"silu"`` or ``"tanh"``.

    Returns
    -------
    nn.Sequential
        A model that maps (batch, inputs) to (batch, outputs).
    """
    widths = ([hidden] if hidden else []) if isinstance(hidden, int) else list(hidden)
    if min(inputs, outputs, *widths) < 1 or (direct and not widths):
        raise ArgumentError(
            f"mlp: sizes are {inputs} inputs, {hidden} hidden, {outputs} outputs; each must be at least 1, "
            "and direct=True needs a hidden layer."
        )
    if activation not in ACTIVATIONS:
        raise ArgumentError(f"mlp: activation is {activation!r}; give one of {', '.join(ACTIVATIONS)}.")
    with nullcontext() if seed is None else seeded(seed), _fits_in_memory(inputs, hidden, outputs):
        layers: list[nn.Module] = []
        for before, after in zip([inputs, *widths], widths, strict=False):
            layers.append(nn.Linear(before, after, dtype=dtype))
            if len(widths) > 1:
                layers.append(nn.LayerNorm(after, dtype=dtype))
            layers.append(ACTIVATIONS[activation]())
        layers.append(nn.Linear(widths[-1] if widths else inputs, outputs, dtype=dtype))
        network = nn.Sequential(*layers)
        if not widths:
            _zero_(network[0])
        if direct:
            children = OrderedDict(network.named_children())
            children["direct"] = _zero_(nn.Linear(inputs, outputs, bias=False, dtype=dtype))
            network = DirectMLP(children)
    if not standardize:
        return network
    return standardized(network, torch.zeros(inputs, dtype=dtype), torch.ones(inputs, dtype=dtype))


@contextmanager
def _fits_in_memory(*sizes: Any) -> Iterator[None]:
    """Say which sizes are too large, where torch says how many bytes it could not allocate."""
    try:
        yield
    except RuntimeError as error:
        if "alloc" not in str(error):
            raise
        inputs, hidden, outputs = sizes
        raise ArgumentError(
            f"mlp: sizes are {inputs} inputs, {hidden} hidden, {outputs} outputs; the weights do not fit "
            "into memory: give fewer."
        ) from error


def made_up_rows(model: nn.Module, count: int) -> Tensor | None:
    """Return random rows that a model of `mlp` takes, as its scaler expects them; None for other models."""
    sizes = mlp_sizes(model)
    if sizes is None:
        return None
    rows = torch.randn(count, sizes["inputs"], generator=torch.Generator().manual_seed(0))
    rows = rows.to(next(model.parameters()))
    scaler = model.get_submodule("scaler") if sizes.get("standardize") else None
    return rows * scaler.scale + scaler.mean if isinstance(scaler, Standardize) else rows


def mlp_sizes(model: nn.Module) -> dict[str, Any] | None:
    """Return the sizes with which `mlp` builds a model like this one; None if it builds no such model.

    The model may be dense, expanded or packed. The sizes are ``inputs``, ``hidden`` (one number, or a list),
    ``outputs`` and, if it is so, ``standardize``, ``direct`` and ``activation``, of the model as it is now.
    """
    if type(model) not in (nn.Sequential, DirectMLP):
        return None
    named = [(n, m) for n, m in model.named_children() if n != "direct"]
    linear = [m for _, m in named if type(m) is nn.Linear or isinstance(m, HasMasks)]
    sizes = [(getattr(m, "in_features", 0), getattr(m, "out_features", 0)) for m in linear]
    if not sizes or not all(before and after for before, after in sizes):
        return None
    hidden = [after for _, after in sizes[:-1]]
    found: dict[str, Any] = {
        "inputs": sizes[0][0],
        "hidden": hidden[0] if len(hidden) == 1 else hidden,
        "outputs": sizes[-1][1],
    }
    found |= {
        name: True
        for name, layer in (("standardize", "scaler"), ("direct", "direct"))
        if layer in model._modules
    }
    if found.get("direct") and not hidden:
        return None
    kinds = {kind: name for name, kind in ACTIVATIONS.items()}
    used = [kinds[type(module)] for _, module in named if type(module) in kinds]
    if used and used[0] != "relu":
        found["activation"] = used[0]
    with torch.device("meta"):
        same = mlp(**found)
    named_alike = list(model._modules) == list(same._modules)
    return (
        found
        if named_alike
        and all(_is_like(*pair) for pair in zip(model.children(), same.children(), strict=True))
        else None
    )


def _is_like(module: nn.Module, built: nn.Module) -> bool:
    if type(built) is not nn.Linear:
        return type(module) is type(built) and repr(module) == repr(built)
    sizes = ("in_features", "out_features")
    same = all(getattr(module, size, None) == getattr(built, size) for size in sizes)
    return same and (getattr(module, "bias", None) is None) == (built.bias is None)
