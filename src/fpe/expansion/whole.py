"""Widen a whole model: all layers, and what couples them: residual sums, heads, channels, embeddings.

Each unit of width becomes `factor` equal copies, and each consumer reads every unit from one copy of it. So
the wide model computes what the model did, with `factor` times its weights at ``1 / factor`` of its places;
the other places are free and zero. Children of one neuron read different copies, so training drives them
apart.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fpe._util.modules import check_module, replace_modules_, seeded, uncompiled
from fpe.errors import ArgumentError, BudgetError, ModelError, raise_problems
from fpe.expansion.index_maps import IndexMap
from fpe.expansion.steps import Weights, mask
from fpe.expansion.steps import widen as widened_norm
from fpe.graph.copies import copied, deep_copy, first_line
from fpe.graph.ends import Ends
from fpe.graph.inputs import Call, as_call, converted, copied_call, inputs_for, tensors_in
from fpe.graph.kinds import layer_class
from fpe.graph.layers import PER_NEURON, is_depthwise, is_layer, is_transposed, is_turned, maskable
from fpe.masked import MaskedLayer

#: Widths in the configurations of transformers, by which a wider model is made.
_WIDTHS = frozenset([
    "hidden_size", "n_embd", "d_model", "dim", "embedding_size", "intermediate_size", "n_inner", "d_ff",
    "ffn_dim", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim", "num_attention_heads",
    "num_key_value_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
    "decoder_attention_heads", "hidden_sizes", "embed_dim", "word_embed_proj_dim",
])  # fmt: skip


def widen(
    model: nn.Module,
    factor: int = 2,
    *,
    wide: nn.Module | None = None,
    example_inputs: Any = None,
    fresh: bool = False,
    seed: int = 0,
) -> nn.Module:
    """Return a model of `factor` times the width in all layers, which computes what `model` does.

    Its linear layers and convolutions are masked layers whose weights are all free, as after `with_masks`,
    which says what is left out: train it with a `GradualPruner` down to the count of `model`, or to any
    other. Attention gets more heads of the same size. What the model takes and returns keeps its width.

    Parameters
    ----------
    model : nn.Module
        A model of transformers with a head, or any model whose forward pass has no widths of its own. It is
        not changed.
    factor : int, default 2
        How many times as wide, from 2.
    wide : nn.Module, optional
        A wider model of the same class, whose weights are replaced in a copy; for models that cannot be
        widened otherwise. With it `factor` is left out.
    example_inputs : Tensor, tuple or dict, optional
        One batch: the model's input, its positional arguments, or its named ones. Not needed for a model of
        transformers, or a sequence that begins with a linear layer.
    fresh : bool, default False
        Whether weights are drawn anew, as for an untrained model of that width, instead of copied.
    seed : int, default 0
        Of the copies that weights read, and of fresh weights.

    Raises
    ------
    ArgumentError
        For arguments that are not allowed.
    ModelError
        If something cannot be widened, or if the wide model does not compute what the model does.

    Notes
    -----
    A weight that is both an embedding and a head reads all copies of a unit; the norm before the head is
    divided by `factor` for it.

    Examples
    --------
    >>> import torch, fpe
    >>> model = fpe.mlp(8, [6, 5], 3, seed=0)
    >>> wide = fpe.widen(model, 2)
    >>> X = torch.randn(4, 8)
    >>> torch.allclose(model(X), wide(X), atol=1e-5), fpe.count_nonzero(model), fpe.count_nonzero(wide)
    (True, 129, 315)
    """
    if wide is None and (isinstance(factor, bool) or not isinstance(factor, int) or factor < 2):
        raise ArgumentError(f"factor is {factor!r}; give an integer of at least 2.")
    check_module(model)
    model = uncompiled(model)
    if any(isinstance(module, MaskedLayer) for module in model.modules()):
        raise ModelError("the model has masked layers; widen it before it is expanded or masked.")
    batch = inputs_for(model) if example_inputs is None else example_inputs
    batch = _batch_of(model) if batch is None else batch
    call = as_call(batch)
    config: Any = getattr(model, "config", None)
    configured = hasattr(config, "to_dict")  # a model of transformers
    flow = Ends(model, call)
    twin: nn.Module
    with seeded(seed):
        if wide is not None:
            twin = deep_copy(uncompiled(wide), {})
        else:
            twin = type(model)(_wider(config, factor)) if configured else _rebuilt(model, factor, flow)
    if sum(p.numel() for p in twin.parameters()) <= sum(p.numel() for p in model.parameters()):
        raise ModelError(f"{type(model).__name__} has no hidden width that could grow.")
    first = next(model.parameters())
    twin = twin.to(first.device, first.dtype).train(model.training)
    if not fresh:
        _Filling(model, twin, flow, 1 if configured else 0, seed).run()
        _check(model, twin, call)
    layers, _ = maskable(twin)
    replace_modules_(twin, {name: _masked(layer) for name, layer in layers.items()})
    return twin


@torch.no_grad()
def prune_to_(wide: nn.Module, count: int) -> nn.Module:
    """Mask the smallest weights of all masked layers until so many parameters are not zero; in place."""
    layers = [module for module in wide.modules() if isinstance(module, MaskedLayer)]
    sizes = [layer.weight.numel() for layer in layers]
    fixed = sum(p.numel() for p in wide.parameters()) - sum(sizes)
    if count < fixed:
        raise BudgetError(
            f"the model has {count:,} non-zero parameters, and the wide one {fixed:,} outside of what can be "
            "pruned: embeddings, heads that share their weight, biases and norms. Give a smaller factor."
        )
    scores = torch.cat([layer.weight.abs().flatten() for layer in layers])
    free = torch.zeros_like(scores)
    free[scores.topk(count - fixed).indices] = 1
    for layer, own in zip(layers, torch.split(free, sizes), strict=True):
        layer.fpe_mask.copy_(own.view_as(layer.fpe_mask))
        layer.project()
    return wide


def _masked(layer: nn.Module) -> nn.Module:
    weights = Weights.of(layer)
    weight = weights.weight.contiguous()
    return mask(layer, Weights(weight, weights.bias, torch.ones_like(weight)))


def _batch_of(model: nn.Module) -> Tensor:
    """Make a batch for a sequence that begins with a linear layer."""
    leaf = next((m for m in model.modules() if not list(m.children())), model)
    if not isinstance(model, nn.Sequential) or not isinstance(leaf, nn.Linear):
        raise ArgumentError("example_inputs is None; give one batch as the model takes it.")
    batch = torch.randn(4, leaf.in_features, generator=torch.Generator().manual_seed(0))
    return batch.to(leaf.weight)


def _wider(config: Any, factor: int) -> Any:
    """Return a configuration of transformers with all widths times the factor."""
    config = copy.deepcopy(config)
    for name in config.to_dict():
        value = getattr(config, name, None)
        if hasattr(value, "to_dict"):
            setattr(config, name, _wider(value, factor))
        elif name in _WIDTHS and isinstance(value, int):
            setattr(config, name, value * factor)
        elif name in _WIDTHS and isinstance(value, list):
            setattr(config, name, [own * factor for own in value])
    return config


def _rebuilt(model: nn.Module, factor: int, flow: Ends) -> nn.Module:
    """Return a copy with wider layers and norms, whose weights are drawn anew."""
    made: dict[str, nn.Module] = {}
    problems = []
    for name, module in model.named_modules():
        own = any(p is not None for p in module._parameters.values())
        into, out = (1 if name in ends else factor for ends in (flow.first, flow.last))
        known = is_layer(module) and not is_turned(module)
        if not (known or isinstance(module, nn.Embedding) or type(module) in PER_NEURON):
            if own:
                what = f"{name or 'the model'!r}, a {type(module).__name__}, has parameters of its own"
                problems.append(f"{what}, and fpe does not know which of their axes are widths.")
        elif name not in flow.reached:
            problems.append(f"{name!r} is not called with example_inputs.")
        elif is_layer(module):
            made[name] = _wider_layer(module, into, out)
        elif isinstance(module, nn.Embedding):
            made[name] = nn.Embedding(module.num_embeddings, module.embedding_dim * out, module.padding_idx)
        elif into == out == factor:
            width = getattr(module, PER_NEURON[type(module)][0])
            neurons = width[-1] if isinstance(width, tuple) else width
            made[name] = widened_norm(module, IndexMap(neurons, factor).parent, neurons)
    advice = "Build the wider model yourself, and give it as wide=…."
    raise_problems([f"{problem} {advice}" for problem in problems], ModelError, "what cannot be widened")
    if "" in made:
        return made[""]
    twin = deep_copy(model, {})
    replace_modules_(twin, made)
    return twin


def _wider_layer(layer: Any, into: int, out: int) -> nn.Module:
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features * into, layer.out_features * out, bias)
    kept = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    groups = layer.groups * (into if _one_kernel_each(layer) else 1)
    how = {name: getattr(layer, name) for name in kept}
    kind: Any = layer_class(layer)
    made: nn.Module = kind(
        layer.in_channels * into, layer.out_channels * out, groups=groups, bias=bias, **how
    )
    return made


def _one_kernel_each(layer: Any) -> bool:
    return is_depthwise(layer) and layer.out_channels == layer.in_channels


class _Filling:
    """Give a wide model the weights of a model."""

    def __init__(self, model: nn.Module, twin: nn.Module, flow: Ends, block: int, seed: int) -> None:
        self.model, self.twin, self.flow, self.block = model, twin, flow, block
        self.generator = torch.Generator().manual_seed(seed)
        self.head_size = _head_size(model)

    @torch.no_grad()
    def run(self) -> None:
        """Copy all parameters and buffers, in place."""
        embeddings = {id(m.weight) for m in self.model.modules() if isinstance(m, nn.Embedding)}
        tied: dict[str, int] = {}
        done: set[int] = set()
        names = dict(self.twin.named_modules(remove_duplicate=False))
        for name, module in self.model.named_modules(remove_duplicate=False):
            if name not in names:
                raise ModelError(f"wide has no module {name!r}; give a wider model of the same class.")
            for key, tensor in (*module._parameters.items(), *module._buffers.items()):
                wide = getattr(names[name], key, None)
                if tensor is None or not isinstance(wide, Tensor):
                    continue
                maps = self._maps(f"{name}.{key}", tensor, wide, self.block or self.flow.block(name))
                consumed = self._consumed(module, key)
                if consumed is not None and id(tensor) in embeddings:
                    tied[name] = maps[consumed][2]
                if id(wide) in done:
                    continue
                done.add(id(wide))
                self._copy(tensor, wide, maps, None if id(tensor) in embeddings else consumed)
                wide.requires_grad_(tensor.requires_grad)
        for name, factor in tied.items():
            self._divide(name, factor)

    def _maps(self, name: str, tensor: Tensor, wide: Tensor, block: int) -> list[tuple[Tensor, Tensor, int]]:
        """Return for each axis the parent and the number of each entry's copy, and the factor."""
        sizes = [*zip(tensor.shape, wide.shape, strict=False)]
        if tensor.dim() != wide.dim() or any(w % max(1, n) for n, w in sizes):
            raise ModelError(
                f"{name!r} is {tuple(tensor.shape)} in the model and {tuple(wide.shape)} in the wide one; "
                "each width must be a multiple."
            )
        return [
            _copies(n, w // max(1, n), block if axis == 1 and block > 1 else self._adjacent(n))
            for axis, (n, w) in enumerate(sizes)
        ]

    def _adjacent(self, width: int) -> int:
        """Return how many adjacent entries are copied together: those of a head."""
        return self.head_size if width % self.head_size == 0 else 1

    @staticmethod
    def _consumed(module: nn.Module, key: str) -> int | None:
        """Return the axis of a weight along which it reads its inputs."""
        if key != "weight" or not is_layer(module) or _one_kernel_each(module):
            return None
        return 0 if is_transposed(module) or is_turned(module) else 1

    def _copy(
        self, tensor: Tensor, wide: Tensor, maps: Sequence[tuple[Tensor, Tensor, int]], consumed: int | None
    ) -> None:
        value = tensor
        for axis, (parent, _, factor) in enumerate(maps):
            if factor > 1:
                value = value.index_select(axis, parent.to(value.device))
        wide.copy_(value)
        if consumed is None or maps[consumed][2] == 1:
            return
        factor, produced = maps[consumed][2], 1 - consumed
        places = torch.randint(factor, tensor.shape[:2], generator=self.generator)
        (in_parent, in_copy, _), (out_parent, out_copy, _) = maps[consumed], maps[produced]
        if consumed == 0:
            places = places.t()
        read = (places[out_parent][:, in_parent] + out_copy[:, None]) % factor == in_copy
        read = read.t() if consumed == 0 else read
        wide.mul_(read.to(wide).view(*read.shape, *[1] * (wide.dim() - 2)))

    def _divide(self, head: str, factor: int) -> None:
        """Divide the norm before a head that reads all copies."""
        norms = self.flow.norms.get(head, [])
        if len(norms) != 1:
            raise ModelError(
                f"{head!r} has the weight of an embedding, and no norm stands before it that could be "
                "scaled; untie it first."
            )
        for parameter in self.twin.get_submodule(norms[0]).parameters():
            parameter.div_(factor)


def _copies(width: int, factor: int, block: int) -> tuple[Tensor, Tensor, int]:
    """Return the parent and the number of each copy: blocks of adjacent units are copied together."""
    place = torch.arange(width * factor)
    group, rest = place // block, place % block
    return group // factor * block + rest, group % factor, factor


def _head_size(model: nn.Module) -> int:
    """Return the width of an attention head, 1 without attention."""
    config = getattr(model, "config", None)
    config = getattr(config, "text_config", None) or getattr(config, "vision_config", None) or config
    size = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    heads = getattr(config, "num_attention_heads", None)
    hidden = getattr(config, "hidden_size", None)
    if isinstance(heads, int) and isinstance(hidden, int):  # some models have several of each
        size = size or hidden // heads
    return size or 1


def _check(model: nn.Module, twin: nn.Module, call: Call) -> None:
    """Raise unless both compute the same, in double precision if that runs."""
    tolerance = 1e-6
    try:
        before, after = (_run(own, call, torch.float64) for own in (model, twin))
    except Exception:  # not every operation has double precision
        tolerance = 1e-3
        before = _run(model, call, None)
        try:
            after = _run(twin, call, None)
        except Exception as error:
            raise ModelError(
                f"the wide {type(model).__name__} cannot be run ({first_line(error)}): its forward pass "
                "depends on its width. Build the wider model yourself, and give it as wide=…."
            ) from error
    if before[0].shape != after[0].shape:
        raise ModelError(
            f"the outputs would be {tuple(after[0].shape)} instead of {tuple(before[0].shape)}; widen a "
            "model with a head, whose outputs keep their width."
        )
    for a, b in zip(before, after, strict=False):
        if a.shape != b.shape:  # a hidden state
            continue
        difference, size = float((a - b).abs().max()), float(a.abs().max())
        if not difference <= tolerance * max(1.0, size):
            raise ModelError(
                f"the wide {type(model).__name__} computes something else (outputs differ by "
                f"{difference:.2g}): the forward pass, or a weight outside of layers, depends on the width "
                "in a way that fpe does not know. Draw fresh weights with fresh=True."
            )


@torch.no_grad()
def _run(model: nn.Module, call: Call, dtype: torch.dtype | None) -> list[Tensor]:
    """Return the outputs of a copy in evaluation mode, in some precision, that are not integers or empty."""
    own = copied(model, dtype).eval()
    args, kwargs = converted(copied_call(call), dtype, None)
    with seeded(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [t for t in tensors_in(own(*args, **kwargs)) if t.is_floating_point() and t.numel()]
