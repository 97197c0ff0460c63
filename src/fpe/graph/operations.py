"""What each ATen operation does to the neurons in its input: the allow-list.

A rule takes a node, its source and where the neurons are in the source; it returns where they are in the
output, or raises `Refused`. An operation without a rule is refused. ``relu`` stands for ``aten.relu.default``
and ``aten.relu_.default``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import fx

from fpe.graph.aten import CONSTANT, ELEMENTWISE, RETYPING, SHAPED, SPATIAL, argument, name_of, shape_of
from fpe.graph.groups import Layout


@dataclass(frozen=True)
class Flow:
    """Where the neurons of the producer `root` are in a tensor: the axis, and the layout along it."""

    root: str
    axis: int
    layout: Layout = (1,)

    def at(self, axis: int) -> Flow:
        """Return the flow with its neurons along another axis."""
        return replace(self, axis=axis)


Flows = tuple[Flow, ...]


class Refused(Exception):
    """Carries the reason why neurons cannot be expanded."""


class Divided(Exception):
    """Says that an operation treats equal parts of the producer's outputs apart, as ``chunk`` does.

    Then a neuron is one output of each part, and the operation is to be followed again.
    """

    def __init__(self, root: str, parts: int, interleaved: bool = False) -> None:
        super().__init__(root, parts)
        self.root, self.parts, self.interleaved = root, parts, interleaved


def unknown(operation: str) -> Refused:
    """Refuse an operation that is not on the allow-list."""
    return Refused(f"its neurons are passed to {operation}, which is not known to treat each neuron alone")


#: Return several parts of their input along one axis.
_DIVIDING = ("chunk", "split", "split_with_sizes", "tensor_split")
#: Into how many equal parts the outputs of a producer may be divided; 2 are gate and up.
MOST_PARTS = 4


def propagate(node: fx.Node, flows: dict[fx.Node, Flows]) -> Flows:
    """Return the flows of a node's output, given those of its inputs; raise `Refused` if they are mixed."""
    name = name_of(node)
    sources = [n for n in node.all_input_nodes if flows.get(n)]
    if not sources or name in CONSTANT:  # ``h.new_zeros`` takes its type alone from the neurons
        return ()
    if name in ELEMENTWISE or (name in ("max", "min") and argument(node, "other") is not None):
        return _elementwise(node, flows)
    if name == "cat":
        return _cat(node, flows)
    if name == "stack":
        return _stack(node, flows)
    if name in RETYPING or (name in SHAPED and not flows.get(node.args[0])):  # type: ignore[arg-type]
        return flows.get(node.args[0], ())  # type: ignore[arg-type]
    if name in ("scatter_add", "index_add"):
        return _accumulated(node, flows)
    if name in ("matmul", "mm", "bmm", "_sparse_mm") and len(sources) == 1:
        return tuple(_product(node, sources[0], flow) for flow in flows[sources[0]])
    sources = sources[:1] if name in SHAPED else sources
    rule = _RULES.get(name)
    if rule is None or len(sources) > 1 or not node.args or node.args[0] is not sources[0]:
        raise unknown(repr(name))
    results = [rule(node, sources[0], flow) for flow in flows[sources[0]]]
    return tuple(result for result in results if result is not None)


def _elementwise(node: fx.Node, flows: dict[fx.Node, Flows]) -> Flows:
    """All inputs have the same neurons in the same places, or one value for all neurons."""
    name = name_of(node)
    if name == "where" and len(node.args) == 1:
        raise Refused("its neurons are picked out by 'where'")
    dims = len(shape_of(node))
    aligned = {
        tuple(flow.at(flow.axis + dims - len(shape_of(source))) for flow in flows[source])
        for source in node.all_input_nodes
        if flows.get(source)
    }
    if len(aligned) > 1:
        raise Refused(f"its neurons meet other neurons in {name!r}")
    (seen,) = aligned
    for other in node.all_input_nodes:
        place = seen[0].axis - dims + len(shape_of(other))
        if not flows.get(other) and entries_of(other, place) is None:
            label = other.meta.get("fpe_name")
            what = f"{label!r}, which has an entry for each of them," if label else "another tensor"
            raise Refused(f"its neurons meet {what} in {name!r}")
    return seen


def _cat(node: fx.Node, flows: dict[fx.Node, Flows]) -> Flows:
    parts: Sequence[fx.Node] = node.args[0]  # type: ignore[assignment]
    axis = _axis(node, node)
    result = []
    for root in dict.fromkeys(flow.root for part in parts for flow in flows.get(part, ())):
        own = [next((f for f in flows.get(part, ()) if f.root == root), None) for part in parts]
        if {f.axis for f in own if f is not None} == {axis}:
            layout: list[int] = []
            for part, flow in zip(parts, own, strict=True):
                for k in flow.layout if flow else (-shape_of(part)[axis],):
                    if layout and layout[-1] < 0 and k < 0:
                        layout[-1] += k
                    else:
                        layout.append(k)
            result.append(Flow(root, axis, tuple(layout)))
        elif len({*own}) == 1 and own[0] is not None:
            result.append(own[0])
        else:
            raise Refused("its neurons are concatenated with other values in 'cat'")
    return tuple(result)


def _is_uniform(node: fx.Node, axis: int, depth: int = 6) -> bool:
    """Tell whether a tensor has one value along an axis, since it is made of single values."""
    if axis < 0 or shape_of(node)[axis] == 1:
        return True
    name = name_of(node) if node.op == "call_function" else ""
    if name in CONSTANT or name not in ELEMENTWISE | RETYPING | {"expand", "expand_as"} or not depth:
        return name in CONSTANT
    sources = _shortest_first(node.all_input_nodes[: 1 if name == "expand_as" else None])
    dims = len(shape_of(node))
    return all(_is_uniform(n, axis - dims + len(shape_of(n)), depth - 1) for n in sources)


def _shortest_first(nodes: list[fx.Node]) -> list[fx.Node]:
    """Put what is no operation on entries first: it decides at once, where a residual sum leads far back."""
    return sorted(nodes, key=lambda n: n.op == "call_function" and name_of(n) in ELEMENTWISE)


def entries_of(node: fx.Node, axis: int, depth: int = 12) -> dict[fx.Node, int] | None:
    """Return what a tensor's entries along an axis come from, and their axis in it; None if that is unknown.

    Only parameters and buffers of a user's own modules have entries for the neurons (`Nodes` marks them); a
    tensor with one value along the axis comes from none.
    """
    if _is_uniform(node, axis):
        return {}
    if node.meta.get("fpe_scale"):
        return {node: axis}
    name = name_of(node) if node.op == "call_function" and depth else ""
    shape, moved = shape_of(node), Flow("", axis)
    if name in ELEMENTWISE | RETYPING | {"expand", "expand_as"}:
        sources = _shortest_first(node.all_input_nodes[: None if name in ELEMENTWISE else 1])
        places = {n: axis - len(shape) + len(shape_of(n)) for n in sources}
    elif _RULES.get(name) is _reshape:
        (source,) = (n for n in node.all_input_nodes[:1])
        before = shape_of(source)
        inner = math.prod(shape[axis + 1 :])
        own = [a for a, size in enumerate(before) if size == shape[axis]]
        own = [a for a in own if math.prod(before[a + 1 :]) == inner]
        if len(own) != 1:
            return None
        places = {source: own[0]}
    elif _RULES.get(name) is _permute:
        (source,) = (n for n in node.all_input_nodes[:1])
        back = [a for a in range(len(shape)) if _permute(node, source, moved.at(a)).axis == axis]
        places = {source: back[0]}
    else:
        return None
    found = {node: axis}
    for source, place in places.items():
        if (own_entries := entries_of(source, place, depth - 1)) is None:
            return None
        found |= own_entries
    return found


def _stack(node: fx.Node, flows: dict[fx.Node, Flows]) -> Flows:
    parts: Sequence[fx.Node] = node.args[0]  # type: ignore[assignment]
    own = {flows.get(part, ()) for part in parts}
    if len(own) > 1:
        raise Refused("its neurons are stacked with other values in 'stack'")
    axis = _axis(node, node)
    return tuple(flow.at(flow.axis + (axis <= flow.axis)) for flow in own.pop())


def _accumulated(node: fx.Node, flows: dict[fx.Node, Flows]) -> Flows:
    """Entries are added up along one axis, at places that are the same for all neurons."""
    name = name_of(node)
    base, index, added = (argument(node, key) for key in ("self", "index", "src"))
    added = argument(node, "source", added)
    own = {flows[n] for n in (base, added) if flows.get(n)}
    if len(own) != 1 or flows.get(index):
        raise Refused(f"its neurons meet other neurons in {name!r}")
    (seen,) = own
    for flow in seen:
        if flow.axis == _axis(node, node):
            raise unknown(repr(name))
        if not all(flows.get(n) or _is_uniform(n, flow.axis) for n in (base, added)):
            raise Refused(f"its neurons meet another tensor in {name!r}")
    return seen


def _product(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    """The sum is over another axis than the neurons', as in ``adjacency @ h``."""
    first, second = node.args[:2]
    last = len(shape_of(source)) - 1
    if last > 0 and second is source and flow.axis == last:
        return flow.at(len(shape_of(node)) - 1)
    if last > 0 and first is source and flow.axis == last - 1 and len(shape_of(second)) > 1:
        return flow.at(len(shape_of(node)) - 2)
    raise unknown(repr(name_of(node)))


def _axis(node: fx.Node, source: fx.Node) -> int:
    """Return the argument ``dim`` as an axis of the source, from 0."""
    return int(argument(node, "dim", 0)) % len(shape_of(source))


def _reshape(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    """Follow the neurons' axis where it is merged with neighbors; whatever splits it fixes their number."""
    before, after = shape_of(source), shape_of(node)
    outer, inner = math.prod(before[: flow.axis]), math.prod(before[flow.axis + 1 :])
    for axis, size in enumerate(after if before[flow.axis] > 1 else ()):  # a single neuron can be anywhere
        new_outer, new_inner = math.prod(after[:axis]), math.prod(after[axis + 1 :])
        if size > 1 and new_outer and new_inner and outer % new_outer == 0 and inner % new_inner == 0:
            merged = tuple(k * (inner // new_inner) for k in flow.layout)
            return Flow(flow.root, axis, merged * (outer // new_outer))
    raise Refused(f"its neurons are split by {name_of(node)!r}, as the heads of attention are")


def _spatial(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    if flow.axis != len(shape_of(source)) - 1 - SPATIAL[name_of(node)]:
        raise Refused(f"its neurons are mixed by {name_of(node)!r}, which works along their axis")
    return flow


def _reduce(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    dims = len(shape_of(source))
    over = argument(node, "dim")
    axes = {a % dims for a in ([over] if isinstance(over, int) else over or range(dims))}
    if flow.axis in axes:
        raise Refused(f"its neurons are added up or compared by {name_of(node)!r}")
    return flow if len(shape_of(node)) == dims else flow.at(flow.axis - sum(a < flow.axis for a in axes))


def _permute(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    dims = len(shape_of(source))
    if name_of(node) == "permute":
        return flow.at([d % dims for d in argument(node, "dims")].index(flow.axis))
    kind = "axis" if name_of(node) == "swapaxes" else "dim"
    if name_of(node) in ("numpy_T", "mT") and dims != 2:
        raise unknown(repr(name_of(node)))
    a, b = (argument(node, f"{kind}{n}", n) % dims for n in (0, 1))
    return flow.at({a: b, b: a}.get(flow.axis, flow.axis))


def _along(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    """The operation works along one axis, and may remove it."""
    name, axis = name_of(node), _axis(node, source)
    if axis == flow.axis and name not in _DIVIDING:  # whose parts are followed where they are picked
        raise Refused(f"its neurons are split up or picked out by {name!r}")
    return flow.at(flow.axis - (name in ("select", "unbind") and axis < flow.axis))


def _slice(node: fx.Node, source: fx.Node, flow: Flow) -> Flow | None:
    if _axis(node, source) != flow.axis:
        return flow
    start, end = argument(node, "start", 0), argument(node, "end")
    if name_of(node) == "narrow":
        end = start + argument(node, "length")
    if (step := argument(node, "step", 1)) != 1:
        if (start or 0) < step <= MOST_PARTS and (end is None or end >= shape_of(source)[flow.axis]):
            if flow.layout == (step,):
                return replace(flow, layout=(1,))
            if flow.layout == (1,) and shape_of(source)[flow.axis] % step == 0:
                raise Divided(flow.root, step, interleaved=True)
        raise Refused(f"its neurons are split up or picked out by {name_of(node)!r}")
    return _part(node, source, flow, *slice(start, end).indices(shape_of(source)[flow.axis])[:2])


def _getitem(node: fx.Node, source: fx.Node, flow: Flow) -> Flow | None:
    """Pick one of several results, which may be a part of what ``chunk`` or ``split`` has divided."""
    whole = source.args[0]
    if name_of(source) not in _DIVIDING or _axis(source, whole) != flow.axis:  # type: ignore[arg-type]
        return flow
    sizes = [int(part.shape[flow.axis]) for part in source.meta["val"]]
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    end = ends[node.args[1]]  # type: ignore[index]
    return _part(source, whole, flow, end - sizes[node.args[1]], end)  # type: ignore[arg-type, index]


def _glu(node: fx.Node, source: fx.Node, flow: Flow) -> Flow | None:
    axis = argument(node, "dim", -1) % len(shape_of(source))
    if axis != flow.axis:
        return flow
    half = shape_of(node)[axis]
    first, second = _part(node, source, flow, 0, half), _part(node, source, flow, half, 2 * half)
    if first != second:
        raise Refused("its neurons meet other values in 'glu'")
    return first


def _part(node: fx.Node, source: fx.Node, flow: Flow, start: int, end: int) -> Flow | None:
    """Follow the neurons into the places `start` to `end` along their axis; None if there are none.

    Where this cuts a cycle through the neurons into equal parts, `Divided` asks for fewer neurons.
    """
    others = sum(-k for k in flow.layout if k < 0)
    neurons = (shape_of(source)[flow.axis] - others) // sum(k for k in flow.layout if k > 0)
    layout: list[int] = []
    place = 0
    for k in flow.layout:
        width = k * neurons if k > 0 else -k
        first, last = (min(max(cut - place, 0), width) for cut in (start, end))
        place += width
        if k < 0 and last > first:
            layout.append(first - last)
        elif last - first == width:
            layout.append(k)
        elif last > first:
            cut = first or last
            parts = neurons // math.gcd(neurons, cut // k)
            if cut % k or parts > MOST_PARTS:
                raise Refused(f"its neurons are split up or picked out by {name_of(node)!r}")
            raise Divided(flow.root, parts)
    return replace(flow, layout=tuple(layout)) if any(k > 0 for k in layout) else None


def _index(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    indices = list(argument(node, "indices"))
    places = [i for i, index in enumerate(indices) if index is not None]
    if len(places) != 1 or places[0] == flow.axis:
        raise Refused(f"its neurons are picked out by {name_of(node)!r}")
    added = len(shape_of(indices[places[0]])) - 1
    return flow.at(flow.axis + (added if places[0] < flow.axis else 0))


def _elsewhere(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    """The operation works along other axes, each place of which it may move or mix."""
    dims = len(shape_of(source))
    over = argument(node, "dims", argument(node, "dim", ()))
    axes = {a % dims for a in ([over] if isinstance(over, int) else over)}
    if not axes or flow.axis in axes:
        raise unknown(repr(name_of(node)))
    return flow


def _repeat(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    axis = flow.axis + len(shape_of(node)) - len(shape_of(source))
    times = shape_of(node)[axis] // shape_of(source)[flow.axis]
    return Flow(flow.root, axis, flow.layout * times)


def _resize(node: fx.Node, source: fx.Node, flow: Flow) -> Flow:
    axis = flow.axis + len(shape_of(node)) - len(shape_of(source))
    if shape_of(node)[axis] != shape_of(source)[flow.axis]:
        raise Refused(f"its neurons are repeated or padded by {name_of(node)!r}")
    return flow.at(axis)


_NAMES: dict[Callable[[fx.Node, fx.Node, Flow], Flow | None], str] = {
    _reshape: "view reshape _unsafe_view flatten unflatten squeeze unsqueeze view_as reshape_as "
    "_reshape_alias",
    _spatial: " ".join(SPATIAL),
    _reduce: "mean sum amax amin max min var std logsumexp prod linalg_vector_norm norm",
    _elsewhere: "softmax _softmax log_softmax _log_softmax cumsum cumprod flip roll",
    _repeat: "repeat",
    _permute: "permute transpose t swapaxes swapdims numpy_T mT",
    _along: " ".join(["select index_select unbind", *_DIVIDING]),
    _slice: "slice narrow",
    _glu: "glu",
    _resize: "expand expand_as pad constant_pad_nd",
    _index: "index",
    _getitem: "getitem",
}
_RULES = {name: rule for rule, names in _NAMES.items() for name in names.split()}
