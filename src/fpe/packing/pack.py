"""Pack an expanded model: the same function from (nearly) its non-zeros alone; and back."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn

from fpe._util.modules import unwrapped
from fpe.errors import ArgumentError, ModelError, did_you_mean, raise_problems
from fpe.expansion.lineage import blocks_of, family_of
from fpe.expansion.plan import Plan, plans_in
from fpe.expansion.steps import Weights
from fpe.masked import MASKED, MaskedLayer, check_masks, count_free
from fpe.packing.blocks import BlockLayer
from fpe.packing.choice import FORMATS, Choice, Structure, block_of, choose_format, reads
from fpe.packing.compressed import BitmaskLayer, CodedLayer
from fpe.packing.dense import DenseLayer
from fpe.packing.layers import PackedLayer, Shape
from fpe.packing.order import (
    can_be_reordered,
    ordered_layers,
    planned_layer,
    reorder_between,
    reordered_columns,
)
from fpe.packing.summary import Packing, PackingRow
from fpe.packing.twofour import semi_structured
from fpe.packing.verify import check_same

#: Types of weights that all formats can compute with.
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def pack(
    wide: nn.Module, format: str | Mapping[str, str] | None = None, example_inputs: Any = None
) -> nn.Module:
    """Return a model that computes the same from (nearly) the non-zeros alone; `wide` is not changed.

    Layers of a shared split become a few dense blocks, at the dense parent's bytes and about its time;
    layers of a split for each neuron become the parent's weights and codes, at its bytes but slower.
    What has no zeros becomes an ordinary layer, and what has no structure stays dense; the summary says
    so. Packed layers are ordinary modules whose parameters are dense: train them on with a new optimizer,
    and `fpe.unpack` them, or deploy them.

    Parameters
    ----------
    wide : nn.Module
        What `fpe.expand` or `fpe.load` returned; before training or after it.
    format : str or mapping of str to str, optional
        A format for every masked layer, or for those of some names or patterns: ``"blocks"``,
        ``"codes"``, ``"bitmask"`` (the smallest for any mask, and slow), ``"2:4"`` (on a GPU, for
        inference) or ``"dense"`` (zeros and all). By default the rule of `fpe.packing.choice.choose_format`.
    example_inputs : Tensor, tuple or dict, optional
        One batch, as for `fpe.expand`. If it is given, copies of both models are run on it, in evaluation
        mode with and without gradients and in training mode, and their outputs, and those of each packed
        layer, are compared.

    Returns
    -------
    nn.Module
        A copy of the same class. ``fpe_packing`` holds the `Packing`, which prints what was chosen for
        each layer and why. The neurons of a layer of blocks stand block by block; all that reads them
        is reordered too. Outputs differ from the wide model's by rounding only.

    Raises
    ------
    ArgumentError
        For an unknown format, a pattern that no masked layer has, or a batch that `wide` cannot be run on.
    ModelError
        If nothing is masked, if a mask still moves, a weight is not zero where its mask is (see
        `fpe.project_`) or has a type that cannot be packed, if a layer has not the structure that was
        demanded, or if the packed model computes something else on `example_inputs`. All layers concerned
        are named.

    Notes
    -----
    What reads the weight of a packed layer, such as PyTorch's fast path of ``nn.TransformerEncoderLayer``
    (evaluation mode, without gradients), gets the right result but makes the whole weight in each call;
    ``torch.backends.mha.set_fastpath_enabled(False)`` lets the layers be called.

    Examples
    --------
    >>> import torch, fpe
    >>> model = fpe.mlp(384, 16, 77)
    >>> wide = fpe.expand(model, factor=2, split="shared", prune="columns")
    >>> packed = fpe.pack(wide)
    >>> x = torch.randn(5, 384)
    >>> torch.allclose(packed(x), wide(x), atol=1e-5)
    True
    >>> packed[0]
    BlockLinear(384 → 32, blocks, 20,668 bytes)
    """
    wide = unwrapped(wide)
    packed = _pack(wide, format)
    if example_inputs is not None:
        check_same(wide, packed, example_inputs, stored_orders(packed))
    return packed


@torch.no_grad()
def _pack(wide: nn.Module, format: str | Mapping[str, str] | None) -> nn.Module:
    masked = _masked_layers(wide)
    demanded = _demanded(format, masked)
    plans = plans_in(wide)
    choices = _choices(masked, plans, demanded)
    weights = {name: Weights.of(layer) for name, layer in masked.items()}
    orders = _orders(wide, plans, choices)
    replaced: dict[str, nn.Module] = _reorder(wide, plans, orders, weights)
    rows = []
    for name, layer in masked.items():
        made = _packed(layer, weights[name], choices[name], ordered=name not in orders)
        made.train(layer.training)
        replaced[name] = made
        rows.append(_row(name, layer, made, choices[name]))
    memo: dict[int, Any] = {id(wide.get_submodule(name)): new for name, new in replaced.items()}
    packed = copy.deepcopy(wide, memo)
    packed.fpe_packing = Packing(tuple(rows))  # type: ignore[assignment]
    return packed


@torch.no_grad()
def unpack(packed: nn.Module) -> nn.Module:
    """Return the masked model that a packed one stands for; `packed` is not changed.

    Parameters
    ----------
    packed : nn.Module
        What `fpe.pack` returned, trained on or not.

    Returns
    -------
    nn.Module
        A copy with masked layers, as `fpe.expand` would have it: neurons in their old order, weights held
        at zero where nothing is stored.

    Raises
    ------
    ModelError
        If nothing is packed, or in a form for inference only.
    """
    packed = unwrapped(packed)
    plans = plans_in(packed)
    weights: dict[str, Weights] = {}
    shapes: dict[str, Shape] = {}
    for name, module in packed.named_modules():
        if isinstance(module, PackedLayer):
            weight, mask, bias = module.wide()
            weights[name], shapes[name] = Weights(weight, bias, mask), module.shape
        elif type(module) in MASKED.values() and _is_planned(plans, name):
            weights[name] = Weights.of(module)
            shapes[name] = Shape.of_plain(module)
    if not any(isinstance(m, PackedLayer) for m in packed.modules()):
        raise ModelError("nothing in this model is packed; give what fpe.pack returned.")
    orders = {name: order.argsort() for name, order in stored_orders(packed).items()}
    replaced: dict[str, nn.Module] = _reorder(packed, plans, orders, weights)
    for name, own in weights.items():
        bias = None if own.bias is None else own.bias.clone()
        made = shapes[name].masked(own.weight.clone(), bias, own.mask.clone())
        replaced[name] = made.train(packed.get_submodule(name).training)
    memo: dict[int, Any] = {id(packed.get_submodule(name)): new for name, new in replaced.items()}
    wide = copy.deepcopy(packed, memo)
    for module in wide.modules():
        vars(module).pop("fpe_packing", None)
    return wide


def _masked_layers(wide: nn.Module) -> dict[str, MaskedLayer]:
    """Return the masked layers by name, or say why they cannot be packed."""
    if not isinstance(wide, nn.Module):
        raise ArgumentError(f"wide is a {type(wide).__name__}; give a model that fpe.expand returned.")
    masked = {name: m for name, m in wide.named_modules() if isinstance(m, MaskedLayer)}
    if not masked:
        raise ModelError(
            "no layer of this model is masked, so that there is nothing to pack; give what fpe.expand or "
            "fpe.load returned."
        )
    check_masks(wide, "packing")
    problems = []
    owners: dict[int, list[str]] = {}  # of each parameter, and of all modules that have it
    for name, module in wide.named_modules():
        for key, parameter in module.named_parameters(name, recurse=False):
            owners.setdefault(id(parameter), []).append(key)
    for name, layer in masked.items():
        shared = [key for parameter in layer.parameters() for key in owners[id(parameter)]]
        tied = [repr(key) for key in shared if key.rpartition(".")[0] != name]
        if layer.weight.dtype not in TYPES:
            known = ", ".join(str(t).removeprefix("torch.") for t in TYPES)
            problems.append(f"layer {name!r} has {layer.weight.dtype} weights; convert it to one of {known}.")
        elif layer.weight.is_meta or type(layer.weight.data).__name__ == "DTensor":
            where = "on the meta device" if layer.weight.is_meta else "sharded"
            problems.append(f"layer {name!r} is {where}; pack a model whose weights are all here.")
        elif tied:
            problems.append(
                f"layer {name!r} shares parameters with {', '.join(tied)}, which packing would part; give it "
                "parameters of its own."
            )
        elif type(layer) not in MASKED:
            problems.append(
                f"layer {name!r} is of the class {type(layer).__name__}, whose forward packing would lose; "
                "put a layer of fpe's own in its place."
            )
    raise_problems(problems, ModelError, "the layers to pack")
    return masked


def _demanded(format: str | Mapping[str, str] | None, masked: Mapping[str, MaskedLayer]) -> dict[str, str]:
    """Return the format that is demanded for each layer that one is demanded for."""
    patterns = {} if format is None else {"*": format} if isinstance(format, str) else dict(format)
    problems = []
    demanded: dict[str, str] = {}
    for pattern, value in patterns.items():
        names = [name for name in masked if fnmatchcase(name, pattern)]
        if value not in FORMATS:
            allowed = ", ".join(map(repr, FORMATS))
            problems.append(
                f"unknown format {value!r}; allowed are {allowed}.{did_you_mean(str(value), FORMATS)}"
            )
        if not names:
            problems.append(
                f"no masked layer is called {pattern!r}; there are {', '.join(map(repr, masked))}."
            )
        demanded |= dict.fromkeys(names, value)
    raise_problems(problems, ArgumentError, "format")
    if isinstance(format, str):  # means those that have zeros
        return {
            n: f for n, f in demanded.items() if count_free(masked[n].fpe_mask) < masked[n].weight.numel()
        }
    return demanded


def _choices(
    masked: Mapping[str, MaskedLayer], plans: Sequence[Plan], demanded: Mapping[str, str]
) -> dict[str, Choice]:
    choices, problems = {}, []
    for name, layer in masked.items():
        seen = Structure.of(layer.fpe_mask, *_known(plans, name, len(layer.weight)))
        choice = choose_format(seen, layer.weight, demanded.get(name))
        if isinstance(choice, str):
            problems.append(f"layer {name!r} cannot be packed as {demanded[name]!r}: {choice}")
        else:
            choices[name] = choice
    raise_problems(problems, ModelError, "the formats")
    return choices


def _known(plans: Sequence[Plan], name: str, rows: int) -> tuple[Tensor | None, Tensor | None]:
    """Return what the plans tell of the neurons of a layer: which child each is, and of which block."""
    planned = planned_layer(plans, name, rows)
    return (None, None) if planned is None else (family_of(planned).role, blocks_of(planned))


def _orders(wide: nn.Module, plans: Sequence[Plan], choices: Mapping[str, Choice]) -> dict[str, Tensor]:
    """Return the new order of the neurons of each producer whose readers can follow it."""
    orders: dict[str, Tensor] = {}
    known = ordered_layers(plans)
    for plan, layer in [(each, layer) for each in plans for layer in each.layers if layer in known]:
        own = [choices.get(name) for name in layer.group.producers]
        if not all(choice is not None and len(choice.blocks) > 1 for choice in own):
            continue
        order, *others = [torch.cat([b.rows for b in cast(Choice, choice).blocks]) for choice in own]
        together = all(torch.equal(order, other) for other in others)
        readers = all(name in choices for name in layer.group.consumers)
        if together and readers and can_be_reordered(wide, plan, layer):
            orders |= dict.fromkeys(layer.group.producers, order)
    return orders


def stored_orders(packed: nn.Module) -> dict[str, Tensor]:
    """Return for each packed layer whose neurons stand in another order than the masked one's which it is."""
    return {
        name: module.rows.long()
        for name, module in packed.named_modules()
        if isinstance(module, BlockLayer) and module.restore is None and len(module.sizes) > 1
    }


def _reorder(
    model: nn.Module, plans: Sequence[Plan], orders: Mapping[str, Tensor], weights: dict[str, Weights]
) -> dict[str, nn.Module]:
    """Let the readers of reordered neurons follow: change their `weights`, return the modules between."""
    between: dict[str, nn.Module] = {}
    for plan, layer in [(each, layer) for each in plans for layer in each.layers]:
        order = orders.get(layer.group.name)
        if order is None:
            continue
        columns = reordered_columns(model, plan, layer, order.cpu())
        for name, own in columns.items():
            old = weights[name]
            own = own.to(old.weight.device)
            weight, mask = (t.index_select(1, own) for t in (old.weight, old.mask))
            weights[name] = Weights(weight, old.bias, mask)
        for name in layer.group.between:
            module = copy.deepcopy(between.get(name) or model.get_submodule(name))
            for key, tensor in reorder_between(module, layer.neurons_after, order).items():
                getattr(module, key).data.copy_(tensor)
            between[name] = module
    return between


def _packed(layer: MaskedLayer, weights: Weights, choice: Choice, ordered: bool) -> nn.Module:
    """Make the layer; parameters of a layer that is not trained stay so."""
    bias = None if weights.bias is None else weights.bias.clone()
    shape, tensors = Shape.of(layer), (weights.weight, weights.mask, bias)
    made: nn.Module
    if choice.format == "2:4":
        return semi_structured(weights.weight, bias)
    if choice.format == "codes":
        made = CodedLayer.of(shape, *tensors, choice.factor)
    elif choice.format == "bitmask":
        made = BitmaskLayer.of(shape, *tensors)
    elif choice.format == "blocks":
        # Looked up again: what the neurons read may have been reordered since.
        blocks = [block_of(reads(weights.mask), block.rows) for block in choice.blocks]
        made = BlockLayer.of(shape, *tensors, blocks, ordered)
    elif count_free(weights.mask) < weights.mask.numel():
        made = DenseLayer.of(shape, *tensors)
    else:
        made = shape.plain(weights.weight.clone(), bias)
    for name, parameter in made.named_parameters():
        parameter.requires_grad_((layer.bias if name == "bias" else layer.weight).requires_grad)
    return made


def _row(name: str, layer: MaskedLayer, made: nn.Module, choice: Choice) -> PackingRow:
    bias = 0 if layer.bias is None else layer.bias.numel()
    nonzero = count_free(layer.fpe_mask) + bias
    masked = layer.weight.nbytes + layer.fpe_mask.nbytes + bias * layer.weight.element_size()
    return PackingRow(
        name=name,
        format=choice.format,
        neurons=layer.weight.shape[0],
        inputs=layer.weight.shape[1],
        nonzero=nonzero,
        bytes=(nonzero * layer.weight.element_size(), masked, bytes_of(made)),
        why=choice.why,
    )


def bytes_of(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _is_planned(plans: Sequence[Plan], name: str) -> bool:
    layers = [layer for plan in plans for layer in plan.layers]
    return any(name in (*layer.group.producers, *layer.group.consumers) for layer in layers)
