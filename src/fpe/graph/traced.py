"""Follow neurons through stacked experts whose forward pass cannot be exported: it loops over those hit.

The operations of one run are recorded instead. What the run does not reach is not known from it; so numbers
of experts among the arguments are replaced until each expert has been reached, and all runs must agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map

from fpe.graph.copies import analyzed
from fpe.graph.groups import Found, Skipped
from fpe.graph.inputs import Call, copied_call, tensors_in
from fpe.graph.stacked import CHILD, StackedLinear
from fpe.graph.walk import followed

#: How often other values are drawn for a router.
_DRAWS = 8


def holds_experts(module: nn.Module) -> bool:
    """Tell whether a module itself holds the weights of stacked experts."""
    return any(isinstance(layer, StackedLinear) for layer in getattr(module, CHILD, nn.ModuleDict()).values())


def follow_traced(module: nn.Module, call: Call) -> Found:
    """Find the groups of a module that holds stacked experts in the operations of some runs."""
    layers = {f"{CHILD}.{name}": layer for name, layer in cast(Any, module)._modules[CHILD].items()}
    left = {name: set(range(len(layer.weight))) for name, layer in layers.items()}
    founds: list[Found] = []
    for variant in _variants(call, max(map(len, left.values()))):
        found, used = followed(module, traced(module, variant))
        founds.append(found)
        for name, experts in used.items():
            left[name] -= experts
        if not any(left[name] for name in used):
            break
    first, skipped, groups = founds[0], list(founds[0].skipped), []
    for group in first.groups:
        missed = sorted(set().union(*(left.get(n, ()) for n in (*group.producers, *group.consumers))))
        if missed:
            numbers = ", ".join(map(str, missed[:8])) + (", …" if len(missed) > 8 else "")
            why = f"its experts {numbers} are not reached by example_inputs; give a larger batch"
        elif any(group not in other.groups for other in founds):
            why = "its experts do not all compute the same"
        else:
            groups.append(group)
            continue
        skipped += [Skipped(name, why) for name in group.producers]
    return replace(first, groups=tuple(groups), skipped=tuple(skipped))


def traced(module: nn.Module, call: Call) -> Any:
    """Record the operations of one run; return them like an exported program."""
    args, kwargs = copied_call(call)
    with analyzed(module) as own, torch.no_grad():

        def run(*tensors: Tensor) -> list[Tensor]:
            left = iter(tensors)
            given = tree_map(lambda leaf: next(left) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
            return tensors_in(own(*given[0], **given[1]))

        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = make_fx(run, pre_dispatch=True, _error_on_data_dependent_ops=False)(*tensors)
        names = {id(tensor): name for name, tensor in (*own.named_parameters(), *own.named_buffers())}
    specs = []
    for node in made.graph.nodes:
        if node.op == "get_attr":
            value = getattr(made, str(node.target))
            node.meta["val"] = value
            if id(value) in names:
                argument = SimpleNamespace(name=node.name)
                specs.append(SimpleNamespace(arg=argument, kind=InputKind.PARAMETER, target=names[id(value)]))
    return SimpleNamespace(graph=made.graph, graph_signature=SimpleNamespace(input_specs=specs))


def _variants(call: Call, experts: int) -> Iterator[Call]:
    """Yield a call, then others with other numbers of experts, then some with values for a router."""
    yield call

    def chosen(leaf: Any) -> bool:
        whole = isinstance(leaf, Tensor) and leaf.dtype in (torch.int32, torch.int64) and leaf.numel() > 0
        return whole and bool((leaf >= 0).all()) and bool((leaf < experts).all())

    sizes = [leaf.numel() for leaf in tree_leaves(call) if chosen(leaf)]
    for start in range(0, experts if sizes else 0, max(1, min(sizes, default=1))):

        def other(leaf: Any, start: int = start) -> Any:
            if not chosen(leaf):
                return leaf
            return ((torch.arange(leaf.numel()) + start) % experts).view(leaf.shape).to(leaf)

        yield cast(Call, tree_map(other, call))
    generator = torch.Generator().manual_seed(0)

    def drawn(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        return torch.randn(leaf.shape, generator=generator).to(leaf) * leaf.detach().square().mean().sqrt()

    for _ in range(_DRAWS):
        yield cast(Call, tree_map(drawn, call))
