"""A model as the linear layers, norms and activations that C code computes, with rounded weights."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fpe.errors import ModelError, raise_problems
from fpe.masked import MaskedLinear, check_masks
from fpe.models import DirectMLP, Standardize
from fpe.packing.layers import PackedLayer

#: Largest rounding error, relative to the largest output of the first layers, that merging a scaler may add.
MERGING = 2e-6
#: Largest numbers in float16, and the smallest that keeps all its bits.
LARGEST_16, NORMAL_16 = 65504.0, 2.0**-14
#: Types of weights.
WEIGHTS = ("float32", "float16", "int8")
#: The element-wise functions, by their names in C.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanhf": nn.Tanh, "sigmoid": nn.Sigmoid,
}  # fmt: skip


@dataclass
class Affine:
    """A linear layer. The weight that it applies is ``scale[:, None] * values``."""

    values: np.ndarray  # (outputs, inputs): float64 before rounding, then of the type that is stored
    bias: np.ndarray  # (outputs,), float64, as far as it is exact in float32 once it is rounded
    scale: np.ndarray | None = None  # (outputs,), or (1,) for all neurons

    @property
    def weight(self) -> np.ndarray:
        """The weight in float64, (outputs, inputs)."""
        scale = 1.0 if self.scale is None else self.scale.astype(np.float64)[:, None]
        return np.asarray(np.multiply(self.values, scale, dtype=np.float64))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Apply the layer to rows, (rows, inputs)."""
        return np.asarray(x @ self.weight.T + self.bias)


@dataclass
class Norm:
    """A LayerNorm over all neurons; `gain` and `shift` have shape (neurons,)."""

    gain: np.ndarray
    shift: np.ndarray
    eps: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Apply the norm to rows."""
        centred = x - x.mean(axis=1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=1, keepdims=True) + self.eps)
        return cast(np.ndarray, centred / spread * self.gain + self.shift)


@dataclass
class Activation:
    """An element-wise function of `ACTIVATIONS`."""

    kind: str

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Apply the function."""
        return _array(ACTIVATIONS[self.kind]()(torch.from_numpy(x)))


Step = Affine | Norm | Activation


@dataclass
class Network:
    """What C code computes: ``steps(z) + direct(z)`` for ``z = (x - center) * factor``."""

    inputs: int
    steps: list[Step]
    direct: Affine | None = None  # its bias is zero
    center: np.ndarray | None = None  # (inputs,)
    factor: np.ndarray | None = None  # (inputs,)
    outputs: int = field(init=False)

    def __post_init__(self) -> None:
        self.outputs = len([step for step in self.steps if isinstance(step, Affine)][-1].bias)

    @property
    def nonzero(self) -> int:
        """Number of the weights that are not zero."""
        layers = [layer for layer in (*self.steps, self.direct) if isinstance(layer, Affine)]
        return sum(int(np.count_nonzero(layer.values)) for layer in layers)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Compute the outputs of rows, (rows, inputs), in float64."""
        x = x if self.center is None else x - self.center
        z = x if self.factor is None else x * self.factor
        y = z
        for step in self.steps:
            y = step(y)
        return y if self.direct is None else y + self.direct(z)


def network_of(model: nn.Module, spread: np.ndarray | None = None, mean: np.ndarray | None = None) -> Network:
    """Return the steps of a model in float64: batch norms merged into linear layers, dead neurons left out.

    Outputs are multiplied by `spread`, and `mean` is added to them. A `ModelError` names all modules that C
    code cannot express.
    """
    check_masks(model, "exporting")
    modules = list(_flat(model))
    direct = modules.pop()[1] if type(model).forward is DirectMLP.forward and modules else None
    scaler = modules.pop(0)[1] if modules and type(modules[0][1]) is Standardize else None
    steps, problems = _steps(modules)
    own = None if direct is None else _affine(direct)
    if direct is not None and own is None:
        problems.append(f"'direct': {_description(direct)}")
    if problems:
        lines = [f"{problem} is not supported" for problem in problems]
        lines.append(
            "C code can have Linear, MaskedLinear and packed linear layers, ReLU, GELU, SiLU, Tanh, Sigmoid, "
            "Identity, Dropout, LayerNorm, and BatchNorm1d beside a linear layer, in an nn.Sequential or as "
            "fpe.mlp makes them. Export other models as .onnx or .pt2."
        )
        raise_problems(lines, ModelError, "the model")
    affine = [step for step in steps if isinstance(step, Affine)]
    ends_linear = bool(steps) and isinstance(steps[-1], Affine)
    if not affine or ((own is not None or spread is not None) and not ends_linear):
        raise ModelError(
            "the model needs a linear layer, as its last one where inputs are connected with outputs or "
            "targets are scaled; export this one as .onnx or .pt2."
        )
    if own is not None:
        affine[-1].bias, own = affine[-1].bias + own.bias, Affine(own.values, np.zeros_like(own.bias))
    if spread is not None and mean is not None:
        affine[-1] = _scaled(affine[-1], spread, mean)
        steps[-1] = affine[-1]
        own = own and _scaled(own, spread, np.zeros_like(spread))
    network = Network(_width(steps), _without_dead_neurons(steps), own)
    if own is not None and not own.values.any():
        network.direct = None
    first = network.steps[0]
    reads = network.direct is not None or not isinstance(first, Affine) or first.values.any()
    if scaler is not None and reads:
        center, scale = (_array(cast(Tensor, getattr(scaler, name))) for name in ("mean", "scale"))
        network.center, network.factor = center, 1 / scale
    _check_finite(network)
    return network


def _flat(model: nn.Module, name: str = "") -> Iterable[tuple[str, nn.Module]]:
    """Yield the modules of nested sequences in order, those that are called twice also twice."""
    forward = type(model).forward
    if forward is not nn.Sequential.forward and (name or forward is not DirectMLP.forward):
        yield name, model
        return
    for key, module in model._modules.items():
        yield from _flat(cast(nn.Module, module), f"{name}.{key}" if name else key)


def _width(steps: list[Step]) -> int:
    """Return the number of inputs."""
    return next(int(step.values.shape[1]) for step in steps if isinstance(step, Affine))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


def _affine(module: nn.Module) -> Affine | None:
    """Return a linear layer of a kind that is known, or None."""
    packed = isinstance(module, PackedLayer) and not module.shape.taps
    if not packed and type(module) not in (nn.Linear, MaskedLinear):
        return None
    weight, bias = cast(Tensor, module.weight), cast("Tensor | None", module.bias)
    if not packed and type(weight) is not nn.Parameter:  # quantized, or computed
        return None
    values = _array(weight)
    return Affine(values, np.zeros(len(values)) if bias is None else _array(bias))


def _steps(modules: list[tuple[str, nn.Module]]) -> tuple[list[Step], list[str]]:
    """Return the steps of modules, and what is not supported."""
    steps: list[Step] = []
    problems: list[str] = []
    #: A batch norm that waits for the linear layer after it: name, gain, shift.
    waiting: tuple[str, np.ndarray, np.ndarray] | None = None
    for name, module in modules:
        if isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd):
            continue
        step = _affine(module)
        if step is not None and waiting is not None:
            _, gain, shift = waiting
            step, waiting = Affine(step.values * gain, step.bias + step.values @ shift), None
        if waiting is not None:
            problems.append(f"{waiting[0]!r}: BatchNorm1d, with no linear layer beside it,")
            waiting = None
        own = step or _norm(module) or _activation(module)
        if own is not None:
            steps.append(own)
        elif (found := _batch_norm(module)) is None:
            problems.append(f"{name!r}: {_description(module)}")
        elif steps and isinstance(steps[-1], Affine):
            steps[-1] = _scaled(steps[-1], *found)
        else:
            waiting = (name, *found)
    if waiting is not None:
        problems.append(f"{waiting[0]!r}: BatchNorm1d, with no linear layer beside it,")
    return steps, problems


def _description(module: nn.Module) -> str:
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear) and type(weight) is not nn.Parameter:
        return f"{type(module).__name__}, whose weight is computed or quantized,"
    own = module if not list(module.children()) else type(module).__name__
    return str(own)


def _scaled(step: Affine, gain: np.ndarray, shift: np.ndarray) -> Affine:
    """Return a layer whose outputs are multiplied by `gain` and then moved by `shift`."""
    return Affine(step.values * gain[:, None], step.bias * gain + shift)


def _norm(module: nn.Module) -> Norm | None:
    if type(module) is not nn.LayerNorm or len(module.normalized_shape) != 1:
        return None
    (width,) = module.normalized_shape
    gain = np.ones(width) if module.weight is None else _array(module.weight)
    shift = np.zeros(width) if module.bias is None else _array(module.bias)
    return Norm(gain, shift, float(module.eps))


def _activation(module: nn.Module) -> Activation | None:
    names = [name for name, kind in ACTIVATIONS.items() if type(module) is kind]
    approximate = isinstance(module, nn.GELU) and module.approximate != "none"
    return None if approximate or not names else Activation(names[0])


def _batch_norm(module: nn.Module) -> tuple[np.ndarray, np.ndarray] | None:
    """Return gain and shift of a batch norm with running statistics."""
    if type(module) is not nn.BatchNorm1d or module.running_mean is None or module.running_var is None:
        return None
    gain = 1 / np.sqrt(_array(module.running_var) + module.eps)
    gain = gain if module.weight is None else gain * _array(module.weight)
    shift = np.zeros_like(gain) if module.bias is None else _array(module.bias)
    return gain, shift - gain * _array(module.running_mean)


def _without_dead_neurons(steps: list[Step]) -> list[Step]:
    """Leave out neurons without consumers, and make neurons without inputs part of their consumers' biases.

    One neuron of each layer stays, and so do all those that a LayerNorm compares.
    """
    steps, changed = list(steps), True
    while changed:
        changed = False
        places = [i for i, step in enumerate(steps) if isinstance(step, Affine)]
        for first, second in itertools.pairwise(places):
            between = steps[first + 1 : second]
            if any(isinstance(step, Norm) for step in between):
                continue
            before, after = cast(Affine, steps[first]), cast(Affine, steps[second])
            dead = np.logical_not(before.values.any(axis=1) & after.values.any(axis=0))
            if dead.all():
                dead[0] = False
            if not dead.any():
                continue
            constant = before.bias[None]
            for step in between:
                constant = step(constant)
            bias = after.bias + after.values[:, dead] @ constant[0, dead]
            steps[first] = Affine(before.values[~dead], before.bias[~dead])
            steps[second] = Affine(after.values[:, ~dead], bias)
            changed = True
    return steps


def rounded(network: Network, weights: str, rows: np.ndarray) -> Network:
    """Return a network whose numbers are those of the C code, and whose scaler is merged where it can be.

    The mean of the inputs becomes a part of biases, and their scale one of weights, if this adds no more than
    `MERGING` to the error of the first layers on `rows`. Weights in int8 keep a scale of their own for each
    input apart, since it would make the weights of a neuron unequal.
    """
    center, factor = network.center, network.factor
    first = network.steps[0]
    if center is None or factor is None or not isinstance(first, Affine):
        own = replace(network, steps=[_step(step, weights) for step in network.steps])
        own.direct = None if network.direct is None else _rounded(network.direct, weights)
    else:
        apart = weights == "int8" and bool((factor != factor[0]).any())
        kept = np.float32(factor).astype(np.float64) if apart else None
        readers = [first] if network.direct is None else [first, network.direct]
        made = [_rounded(Affine(r.values if apart else r.values * factor, r.bias), weights) for r in readers]
        merged = [_moved(layer, center if kept is None else center * kept) for layer in made]
        stored = np.float32(center).astype(np.float64)
        if merges := _merges(made, merged, center, kept, rows):
            made = merged
        else:  # what float32 cannot store of the mean is small enough for the biases
            made = [_moved(layer, (center - stored) * (1 if kept is None else kept)) for layer in made]
        made = [_rounded_bias(layer) for layer in made]
        own = replace(network, steps=[made[0], *(_step(step, weights) for step in network.steps[1:])])
        own.direct, own.center, own.factor = (*made[1:], None)[0], None if merges else stored, kept
        if own.direct is not None:
            last = cast(Affine, own.steps[-1])
            own.steps[-1] = _rounded_bias(replace(last, bias=last.bias + own.direct.bias))
            own.direct.bias = np.zeros_like(own.direct.bias)
    for name in ("center", "factor"):
        found = getattr(own, name)
        setattr(own, name, None if found is None else np.float32(found).astype(np.float64))
    _check_finite(own)
    return own


def _moved(layer: Affine, center: np.ndarray) -> Affine:
    """Return the layer that takes inputs from which `center` was not subtracted."""
    return replace(layer, bias=layer.bias - layer.weight @ center)


def _merges(
    apart: list[Affine], merged: list[Affine], center: np.ndarray, factor: np.ndarray | None, rows: np.ndarray
) -> bool:
    """Tell whether a mean in the biases costs no accuracy in float32."""
    x = np.float32(rows if factor is None else rows * factor)
    exact = rows - center if factor is None else (rows - center) * factor
    for one, other in zip(apart, merged, strict=True):
        wanted = exact @ one.weight.T + one.bias
        found = x @ np.float32(other.weight).T + np.float32(other.bias)
        if not np.abs(found - wanted).max(initial=0) <= MERGING * np.abs(wanted).max(initial=0):
            return False
    return True


def _step(step: Step, weights: str) -> Step:
    if isinstance(step, Norm):
        gain, shift = (np.float32(array).astype(np.float64) for array in (step.gain, step.shift))
        return Norm(gain, shift, float(np.float32(step.eps)))
    return _rounded(step, weights) if isinstance(step, Affine) else step


def _rounded_bias(layer: Affine) -> Affine:
    return replace(layer, bias=np.float32(layer.bias).astype(np.float64))


def _rounded(layer: Affine, weights: str) -> Affine:
    """Round the weights, and the biases to float32."""
    w, layer = layer.values, _rounded_bias(layer)
    if weights == "float32":
        return replace(layer, values=np.float32(w))
    if weights == "int8":
        scale = np.float32(np.abs(w).max(axis=1) / 127)
        scale = np.where(scale > 0, scale, np.float32(1))
        return replace(layer, values=np.rint(w / scale[:, None]).clip(-127, 127).astype(np.int8), scale=scale)
    sizes = np.abs(w[w != 0])
    if not sizes.size or (sizes.max() <= LARGEST_16 and sizes.min() >= NORMAL_16):
        return replace(layer, values=w.astype(np.float16))
    # A power of two is exact, and lets the largest weight use the whole range.
    power = np.float32(2.0 ** (np.floor(np.log2(sizes.max())) - 14))
    return replace(layer, values=(w / power).astype(np.float16), scale=np.full(1, power))


def _check_finite(network: Network) -> None:
    arrays: list[Any] = [network.center, network.factor]
    for step in (*network.steps, network.direct):
        arrays += list(vars(step).values()) if step is not None else []
    if not all(np.isfinite(array).all() for array in arrays if isinstance(array, np.ndarray)):
        raise ModelError(
            "weights or biases are NaN, infinite or too large for float32; train the model again."
        )


def in_double(model: nn.Module) -> nn.Module:
    """Return a copy on the CPU that computes in double precision, in evaluation mode."""
    return copy.deepcopy(model).cpu().double().eval()


def outputs_of(model: nn.Module, rows: np.ndarray) -> np.ndarray:
    """Return the model's outputs for rows in float32, in float64: (rows, outputs)."""
    with torch.no_grad():
        return _array(in_double(model)(torch.from_numpy(rows).double())).reshape(len(rows), -1)
