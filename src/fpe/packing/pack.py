"""Pack an expanded model: the same function from (nearly) its non-zeros alone; and back."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured

from fpe._util.modules import check_module, closure_problems, hook_problems, unwrapped
from fpe.errors import ArgumentError, ModelError, did_you_mean, raise_problems
from fpe.expansion.index_maps import (
    ExpandedGroup,
    copy_maps_,
    groups_in,
    index_map_of,
    is_as_expanded,
    memo_with,
)
from fpe.expansion.steps import Weights
from fpe.graph.groups import layout_of, layout_sources
from fpe.graph.layers import groups_of, is_stacked, is_turned, neuron_tensors, oriented_weight, width_problem
from fpe.graph.symbolic import follow_symbolically
from fpe.masked import MaskedLayer, check_masks, count_free
from fpe.packing.bitmask import BitmaskLayer
from fpe.packing.blocks import BlockLayer
from fpe.packing.codes import CodedLayer
from fpe.packing.formats import FORMATS, Choice, Structure, as_bitmask, block_of, choose_format, inputs_used
from fpe.packing.layers import KINDS, DenseLayer, PackedLayer, Shape, bytes_of, inputs_of
from fpe.packing.sparse import SparseLayer
from fpe.packing.summary import Packing, PackingRow
from fpe.packing.verify import check_same

#: Types of weights that all formats can compute with.
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: Attributes of a module with the hooks of its calls.
MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def pack(
    model: nn.Module, *, format: str | Mapping[str, str] | None = None, example_inputs: Any = None
) -> nn.Module:
    """Return a model that computes the same from (nearly) the non-zeros alone; `model` is not changed.

    Layers of a shared split become a few dense blocks, at the dense parent's bytes and about its time;
    layers of a split for each neuron become the parent's weights and codes, at its bytes but slower; linear
    layers of a free mask become values and the numbers of their inputs, at 1.5 times its bytes and about its
    time on a CPU; stacked experts, transposed convolutions and those in groups become values and a bit for
    each place. Layers without zeros become ordinary ones, and others stay dense; the summary says so.
    Packed layers are ordinary modules whose parameters are dense: train them on with a new optimizer, and
    `fpe.unpack` them, or deploy them.

    Parameters
    ----------
    model : nn.Module
        What `fpe.expand` or `fpe.load` returned; before training or after it.
    format : str or mapping of str to str, optional
        A format for every masked layer, or for those of some names or patterns: ``"blocks"``, ``"codes"``,
        ``"sparse"`` (float32 on a CPU), ``"2:4"`` (on a GPU, for inference), ``"bitmask"`` or ``"dense"``
        (zeros included). By default the rule of `fpe.packing.formats.choose_format`.
    example_inputs : Tensor, tuple or dict, optional
        One batch, as for `fpe.expand`. If it is given, copies of both models are run on it, in evaluation
        mode with and without gradients and in training mode, and their outputs, and those of each packed
        layer, are compared.

    Returns
    -------
    nn.Module
        A copy of the same class. Its ``fpe_packing`` is the `Packing`, which prints the format of each layer
        and the reason. The neurons of a layer of blocks are ordered block by block, and all consumers are
        reordered too. Outputs differ from the masked model's by rounding only.

    Raises
    ------
    ArgumentError
        For an unknown format, a pattern that matches no masked layer, or a batch that `model` cannot be run
        on.
    ModelError
        If nothing is masked, if a mask still changes, a weight is not zero where its mask is (see
        `fpe.project_`) or has a type that cannot be packed, if hooks would be lost, if a layer lacks the
        structure of its format, or if the packed model computes something else on `example_inputs`. All
        layers are named.

    Notes
    -----
    Code that uses the weight of a packed layer instead of calling the layer, such as PyTorch's fast path of
    ``nn.TransformerEncoderLayer`` (evaluation mode, without gradients), gets the right result but makes the
    whole weight in each call; ``torch.backends.mha.set_fastpath_enabled(False)`` lets the layers be called.

    Examples
    --------
    >>> import torch, fpe
    >>> model = fpe.mlp(384, 16, 77, seed=1)
    >>> wide = fpe.expand(model, factor=2, split="shared", prune="columns")
    >>> packed = fpe.pack(wide)
    >>> x = torch.randn(5, 384)
    >>> torch.allclose(packed(x), wide(x), atol=1e-5)
    True
    >>> packed[0]
    BlockLayer(384 → 32, blocks, 21,064 bytes)
    """
    model = unwrapped(model)
    packed = _pack(model, format, checked=example_inputs is not None)
    if example_inputs is not None:
        check_same(model, packed, example_inputs, _stored_orders(packed))
    return packed


@torch.no_grad()
def _pack(model: nn.Module, format: str | Mapping[str, str] | None, checked: bool) -> nn.Module:
    masked, groups = _masked_layers(model), groups_in(model)
    if not checked:
        groups = _as_expanded(model, groups)
    choices = _choices(masked, _requested(format, masked))
    weights = {name: Weights.of(layer) for name, layer in masked.items()}
    orders = _orders(model, groups, choices)
    replaced: dict[str, nn.Module] = _reorder(model, groups, orders, weights)
    rows = []
    for name, layer in masked.items():
        made = _packed(layer, weights[name], choices[name], ordered=name not in orders)
        replaced[name] = copy_maps_(made.train(layer.training), layer)
        rows.append(_row(name, layer, made, choices[name]))
    packed = copy.deepcopy(model, memo_with(model, replaced))
    packed.fpe_packing = Packing(tuple(rows))  # type: ignore[assignment]
    return packed


@torch.no_grad()
def unpack(packed: nn.Module) -> nn.Module:
    """Return the masked model that computes the same as a packed one; `packed` is not changed.

    Parameters
    ----------
    packed : nn.Module
        What `fpe.pack` returned, trained on or not.

    Returns
    -------
    nn.Module
        A copy with masked layers, as `fpe.expand` makes them: neurons in their old order, weights masked
        where nothing is stored.

    Raises
    ------
    ModelError
        If nothing is packed, or in a form for inference only.
    """
    check_module(packed, "packed", "a model that fpe.pack returned")
    packed = unwrapped(packed)
    groups = groups_in(packed)
    expanded = {name for group in groups for name in (*group.producers, *group.consumers)}
    weights: dict[str, Weights] = {}
    for name, module in packed.named_modules():
        if isinstance(module, PackedLayer):
            weights[name] = module.to_masked()
        elif type(module) in KINDS.values() and name in expanded:
            weights[name] = Weights.of(module)
    if not any(isinstance(module, PackedLayer) for module in packed.modules()):
        raise ModelError("nothing in this model is packed; give what fpe.pack returned.")
    orders = {name: order.argsort() for name, order in _stored_orders(packed).items()}
    replaced: dict[str, nn.Module] = _reorder(packed, groups, orders, weights)
    for name, own in weights.items():
        module = packed.get_submodule(name)
        shape = module.shape if isinstance(module, PackedLayer) else Shape.of(module)
        bias = None if own.bias is None else own.bias.clone()
        made = shape.masked(Weights(own.weight.clone(), bias, own.mask.clone()))
        replaced[name] = copy_maps_(made.train(module.training), module)
    masked = copy.deepcopy(packed, memo_with(packed, replaced))
    for module in masked.modules():
        vars(module).pop("fpe_packing", None)
    return masked


def _masked_layers(model: nn.Module) -> dict[str, MaskedLayer]:
    """Return the masked layers by name; raise if any cannot be packed."""
    check_module(model, give="a model that fpe.expand returned")
    masked = {name: m for name, m in model.named_modules() if isinstance(m, MaskedLayer)}
    if not masked:
        raise ModelError(
            "no layer of this model is masked, so that there is nothing to pack; give what fpe.expand or "
            "fpe.load returned."
        )
    check_masks(model, "packing")
    owners: dict[int, list[str]] = {}  # of each parameter, all names
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(name, recurse=False):
            owners.setdefault(id(parameter), []).append(key)
    problems = hook_problems(model.named_parameters()) + closure_problems(model)
    problems += [problem for name, layer in masked.items() if (problem := _problem(name, layer, owners))]
    raise_problems(problems, ModelError, "the layers to pack")
    return masked


def _problem(name: str, layer: MaskedLayer, owners: Mapping[int, Sequence[str]]) -> str | None:
    """Return why a masked layer cannot be packed, or None."""
    shared = [key for parameter in layer.parameters() for key in owners[id(parameter)]]
    tied = [repr(key) for key in shared if key.rpartition(".")[0] != name]
    if type(layer) not in KINDS:
        return (
            f"layer {name!r} is of the class {type(layer).__name__}, whose forward pass would be lost; put a "
            "layer of fpe's own in its place."
        )
    if layer.weight.dtype not in TYPES:
        known = ", ".join(str(kind).removeprefix("torch.") for kind in TYPES)
        return f"layer {name!r} has {layer.weight.dtype} weights; convert it to one of {known}."
    if layer.weight.is_meta or type(layer.weight.data).__name__ == "DTensor":
        where = "on the meta device" if layer.weight.is_meta else "sharded"
        return f"layer {name!r} is {where}; pack a model whose weights are all here."
    if tied:
        return (
            f"layer {name!r} shares parameters with {', '.join(tied)}, from which packing would separate "
            "them; give it parameters of its own."
        )
    if any(getattr(layer, hooks) for hooks in MODULE_HOOKS):
        return (
            f"layer {name!r} has forward or backward hooks, which would be lost, since packing makes another "
            "layer; remove them, and register them on the packed layer."
        )
    return None


def _requested(format: str | Mapping[str, str] | None, masked: Mapping[str, MaskedLayer]) -> dict[str, str]:
    patterns = {} if format is None else {"*": format} if isinstance(format, str) else dict(format)
    problems = []
    requested: dict[str, str] = {}
    for pattern, value in patterns.items():
        names = [name for name in masked if fnmatchcase(name, pattern)]
        names = [name for name in names if name == pattern or _bitmask_only(masked[name]) is None]
        if value not in FORMATS:
            allowed, hint = ", ".join(map(repr, FORMATS)), did_you_mean(str(value), FORMATS)
            problems.append(f"unknown format {value!r}; allowed are {allowed}.{hint}")
        if not names:
            known = ", ".join(map(repr, masked))
            problems.append(f"no masked layer is called {pattern!r}; there are {known}.")
        requested |= dict.fromkeys(names, value)
    raise_problems(problems, ArgumentError, "format")
    if isinstance(format, str):  # of the layers that have zeros
        zeros = {name for name, layer in masked.items() if count_free(layer.fpe_mask) < layer.weight.numel()}
        return {name: format for name in requested if name in zeros}
    return requested


def _choices(masked: Mapping[str, MaskedLayer], requested: Mapping[str, str]) -> dict[str, Choice]:
    choices, problems = {}, []
    for name, layer in masked.items():
        if (what := _bitmask_only(layer)) is not None:
            if requested.get(name, "bitmask") == "bitmask":
                free, entries = count_free(layer.fpe_mask), layer.weight.numel()
                # Experts stay layers of their own, so that a file has the same names without zeros, too.
                whole = free == entries and not is_stacked(layer)
                choices[name] = (
                    Choice("dense", "it has no zeros") if whole else as_bitmask(free, entries, f"{what}: ")
                )
            else:
                problems.append(f"layer {name!r} is {what}, which is packed as 'bitmask' only.")
            continue
        own = index_map_of(layer)
        parts = 0 if own is None else own.parts_in(len(oriented_weight(layer)))
        known = (None, None) if own is None else (own.child.repeat(parts), own.blocks.repeat(parts))
        choice = choose_format(Structure.of(layer.fpe_mask, *known), layer.weight, requested.get(name))
        if isinstance(choice, str):
            problems.append(f"layer {name!r} cannot be packed as {requested[name]!r}: {choice}")
        else:
            choices[name] = choice
    raise_problems(problems, ModelError, "the formats")
    return choices


def _bitmask_only(layer: MaskedLayer) -> str | None:
    """Say what a layer is that has no packed form but a bitmask; None for others."""
    if is_stacked(layer):
        return "experts stacked in one parameter"
    if is_turned(layer):
        return "a transposed convolution"
    return "a convolution in groups" if groups_of(layer) > 1 else None


def _orders(model: nn.Module, groups: list[ExpandedGroup], choices: dict[str, Choice]) -> dict[str, Tensor]:
    """Return the new order of the neurons of each producer whose consumers can be reordered too."""
    orders: dict[str, Tensor] = {}
    for group in groups:
        if not choices.keys() >= {*group.producers, *group.consumers} or not _can_be_reordered(model, group):
            continue
        blocks = [choices[name].blocks for name in group.producers]
        if all(len(own) > 1 for own in blocks):
            order, *others = [torch.cat([block.rows for block in own]) for own in blocks]
            if all(torch.equal(order, other) for other in others):
                orders |= dict.fromkeys(group.producers, order)
    return orders


def _as_expanded(model: nn.Module, groups: list[ExpandedGroup]) -> list[ExpandedGroup]:
    """Return the groups whose neurons go where they went when they were expanded, as far as can be traced."""
    if not groups or is_as_expanded(model):
        return groups
    if any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()):
        return []
    try:
        found = follow_symbolically(model).groups
    except ModelError:
        return []
    now = {frozenset(own.producers): ({*own.between}, {*own.consumers}) for own in found}
    return [one for one in groups if now.get(frozenset(one.producers)) == ({*one.between}, {*one.consumers})]


def _can_be_reordered(model: nn.Module, group: ExpandedGroup) -> bool:
    """Tell whether all layers of a group are in the model, and nothing divides its neurons into parts."""
    between = [model.get_submodule(name) for name in group.between]
    if not group.complete or group.index_map.parts != 1:
        return False
    if any(isinstance(m, nn.GroupNorm) and m.num_groups > 1 for m in between):
        return False
    if any(width_problem(m, len(group.index_map.parent)) for m in between):  # over other values too
        return False
    return all(inputs_of(model.get_submodule(n)) == len(neuron) for n, neuron in group.consumers.items())


def _stored_orders(packed: nn.Module) -> dict[str, Tensor]:
    """Return the order of the neurons of each reordered layer."""
    return {
        name: module.rows.long()
        for name, module in packed.named_modules()
        if isinstance(module, BlockLayer) and module.restore is None and len(module.sizes) > 1
    }


def _reorder(
    model: nn.Module,
    groups: Sequence[ExpandedGroup],
    orders: Mapping[str, Tensor],
    weights: dict[str, Weights],
) -> dict[str, nn.Module]:
    """Reorder the consumers of reordered neurons in `weights`, and return copies of the modules between."""
    between: dict[str, nn.Module] = {}
    for group in groups:
        order = orders.get(group.producers[0])
        if order is None:
            continue
        neurons = len(group.index_map.parent)
        for name, neuron in group.consumers.items():
            old = weights[name]
            own = layout_sources(layout_of(neuron, neurons), order.cpu(), neurons).to(old.weight.device)
            weight, mask = (t.index_select(1, own) for t in (old.weight, old.mask))
            weights[name] = Weights(weight, old.bias, mask)
        for name in group.between:
            old_module = between.get(name) or model.get_submodule(name)
            module = copy_maps_(copy.deepcopy(old_module), old_module)
            for tensor, axis in neuron_tensors(module, neurons).values():
                tensor.data.copy_(tensor.data.index_select(axis, order.to(tensor.device)))
            between[name] = module
    return between


def _packed(layer: MaskedLayer, weights: Weights, choice: Choice, ordered: bool) -> nn.Module:
    """Make the packed layer; frozen parameters stay frozen."""
    shape = Shape.of(layer)
    own = Weights(weights.weight, None if weights.bias is None else weights.bias.clone(), weights.mask)
    made: nn.Module
    if choice.format == "2:4":  # stored by PyTorch and computed by a GPU, for inference
        made = shape.plain(own.weight, own.bias)
        made.weight = nn.Parameter(to_sparse_semi_structured(own.weight.contiguous()), requires_grad=False)
        return made.requires_grad_(False)
    if choice.format == "codes":
        made = CodedLayer.of(shape, own, choice.factor)
    elif choice.format == "sparse":
        made = SparseLayer.of(shape, own)
    elif choice.format == "bitmask":
        made = BitmaskLayer.of(shape, own)
    elif choice.format == "blocks":
        # Inputs may have been reordered since the choice.
        blocks = [block_of(inputs_used(own.mask), block.rows) for block in choice.blocks]
        made = BlockLayer.of(shape, own, blocks, ordered)
    elif count_free(own.mask) < own.mask.numel():
        made = DenseLayer.of(shape, own)
    else:
        made = shape.plain(own.weight.clone(), own.bias)
    for name, parameter in made.named_parameters():
        parameter.requires_grad_((layer.bias if name == "bias" else layer.weight).requires_grad)
    return made


def _row(name: str, layer: MaskedLayer, made: nn.Module, choice: Choice) -> PackingRow:
    bias = 0 if layer.bias is None else layer.bias.numel()
    nonzero = count_free(layer.fpe_mask) + bias
    masked = layer.weight.nbytes + layer.fpe_mask.nbytes + bias * layer.weight.element_size()
    neurons, inputs = oriented_weight(layer).shape[:2]
    sizes = (nonzero * layer.weight.element_size(), masked, bytes_of(made))
    return PackingRow(name, choice.format, neurons, inputs, nonzero, sizes, choice.why)
