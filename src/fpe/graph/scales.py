"""Modules of a user's own between a layer and its consumers: parameters per neuron, and means over neurons.

FrozenBatchNorm multiplies each neuron by what it computes from buffers, Snake by a parameter; RMSNorm written
by hand and global response norm divide by a mean over the neurons too. With whole copies of all neurons such
a mean stays what it is, as in ``nn.LayerNorm``; a sum does not. Nothing else may use the mean.
"""

from __future__ import annotations

from torch import fx

from fpe.graph.aten import ELEMENTWISE, RETYPING, argument, name_of, shape_of
from fpe.graph.groups import Growing, layout_width
from fpe.graph.layers import (
    OVER_NEURONS,
    layer_problem,
    neuron_tensors,
    per_neuron_class,
    size_of,
    width_problem,
    written_by_hand,
)
from fpe.graph.nodes import Nodes
from fpe.graph.operations import Flow, Flows, Refused, entries_of

#: Statistics that whole copies of all neurons leave as they are; `var` and `std` only without a correction.
_MEANS = ("mean", "var", "std")


class Scales:
    """What a walk has seen of the modules of a user's own that neurons pass through.

    `groups` are those of the walk, by their root; `root_of` has the root of each producer.
    """

    def __init__(self, nodes: Nodes, groups: dict[str, Growing], root_of: dict[str, str]) -> None:
        self.nodes, self.groups, self.root_of = nodes, groups, root_of
        #: Nodes where a parameter or buffer meets the neurons, with a producer of these.
        self.met: dict[fx.Node, str] = {}
        #: Parameters, buffers and what is computed from them until it meets neurons, with their axis.
        self.trees: dict[fx.Node, int] = {}
        #: What is computed from a mean over neurons until it meets them again, with a producer of theirs.
        self.means: dict[fx.Node, str] = {}

    def averages(self, node: fx.Node, flows: dict[fx.Node, Flows]) -> bool:
        """Tell whether a node takes a mean over neurons, which only a norm may use, or computes with one."""
        own = [n for n in node.all_input_nodes if flows.get(n)]
        means = [n for n in node.all_input_nodes if n in self.means]
        name = self.nodes.module_of(node)
        if means:
            roots = {self.root_of[self.means[n]] for n in means}
            meets = {flow.root for n in own for flow in flows[n]}
            inside = all(self.nodes.module_of(n) == name for n in means)
            if not inside or name_of(node) not in ELEMENTWISE | RETYPING or len(roots | meets) > 1:
                raise Refused("the mean over its neurons is used elsewhere than in the norm that takes it")
            if not own:
                self.means[node] = self.means[means[0]]
            return not own
        if name_of(node) not in _MEANS or len(own) != 1 or len(flows[own[0]]) != 1:
            return False
        (flow,), dims, module = flows[own[0]], len(shape_of(own[0])), self.nodes.modules.get(name)
        over = argument(node, "dim")
        axes = {a % dims for a in ([over] if isinstance(over, int) else over or ())}
        if flow.axis not in axes or not argument(node, "keepdim", False) or module is None:
            return False
        exact = argument(node, "correction", 1) == 0 or argument(node, "unbiased", True) is False
        norm = isinstance(module, OVER_NEURONS) or written_by_hand(module)
        if not norm or not (exact or name_of(node) == "mean"):
            return False
        self._pass(name, flow)
        self.means[node] = flow.root
        return True

    def meet(self, node: fx.Node, flows: Flows) -> None:
        """Note the parameters of modules of a user's own that meet neurons in a node."""
        for other in node.all_input_nodes if name_of(node) in ELEMENTWISE and flows else ():
            place = flows[0].axis - len(shape_of(node)) + len(shape_of(other))
            for part, axis in (entries_of(other, place) or {}).items():
                if self.trees.setdefault(part, axis) != axis:
                    raise Refused("its neurons meet a tensor along several of its axes")
                self.met[node] = flows[0].root
                if part in self.nodes.owned:
                    for flow in flows:
                        self._pass(self.nodes.owned[part].rpartition(".")[0], flow)

    def _pass(self, name: str, flow: Flow) -> None:
        """Let neurons pass through a module of a user's own."""
        module = self.nodes.modules[name]
        problem = layer_problem(self.nodes.known, name)
        if flow.layout != (1,):
            problem = "is over other values too"
        if problem:
            kind = type(module).__name__
            raise Refused(f"its neurons pass through {name!r}, which cannot widen: {kind} {problem}")
        self.groups[flow.root].between[name] = (1,)

    def problem(self, growing: Growing) -> str | None:
        """Say why a module of a user's own cannot widen with these neurons, or return None."""
        owners = {self.nodes.owned[n].rpartition(".")[0] for n in self.trees if n in self.nodes.owned}
        for name in growing.between:
            by_hand = per_neuron_class(self.nodes.modules[name]) is None
            if (name in owners or by_hand) and (problem := self._problem(name, growing)):
                return f"its neurons pass through {name!r}, which cannot widen: {problem}"
        return None

    def _problem(self, name: str, growing: Growing) -> str | None:
        module, root = self.nodes.modules[name], growing.name
        neurons = size_of(self.nodes.modules[""], root)[0] // growing.producers[root]
        neurons = layout_width(growing.between[name], neurons)
        parts = [n for n in self.trees if self.nodes.owned.get(n, "").rpartition(".")[0] == name]
        found = {(self.nodes.owned[n].rpartition(".")[2], self.trees[n]) for n in parts}
        wide = {(own, axis) for own, (_, axis) in neuron_tensors(module, neurons).items()}
        if problem := width_problem(module, neurons):
            return problem
        for own, _ in found ^ wide:
            return f"its {own!r} has {neurons} entries along an axis that are not always those of its neurons"
        left, seen = list(parts), set(parts)
        while left:
            for user in left.pop().users:
                if user in self.trees and user not in seen:
                    seen.add(user)
                    left.append(user)
                elif user not in self.trees and self.root_of.get(self.met.get(user, "")) != root:
                    return "its parameters are used elsewhere too"
        return None
