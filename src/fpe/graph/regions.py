"""Regions of a forward pass that an export keeps apart: under ``torch.autocast`` and ``torch.no_grad``."""

from __future__ import annotations

from typing import Any

from torch import fx

from fpe.graph.aten import name_of

_REGIONS = ("wrap_with_autocast", "wrap_with_set_grad_enabled")


def inline_(module: Any) -> None:
    """Put the operations of all regions in their places, in place; those without gradients are marked."""
    graph: fx.Graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or name_of(node) not in _REGIONS:
            continue
        place = next(
            i for i, own in enumerate(node.args) if isinstance(own, fx.Node) and own.op == "get_attr"
        )
        body = getattr(module, str(node.args[place].target))
        inline_(body)
        inputs = [own for own in body.graph.nodes if own.op == "placeholder"]
        made: dict[fx.Node, Any] = dict(zip(inputs, node.args[place + 1 :], strict=True))
        with graph.inserting_before(node):
            outputs: Any = graph.graph_copy(body.graph, made)
        if name_of(node) == "wrap_with_set_grad_enabled" and not node.args[0]:
            for own, new in made.items():
                if own.op == "call_function":
                    new.meta["fpe_no_grad"] = True
        for user in list(node.users):  # each picks one of the results
            user.replace_all_uses_with(outputs[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)
