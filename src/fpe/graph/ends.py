"""Where the layers of a model stand in its forward pass: first, last, and behind which others."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from fpe.graph.copies import analyzed, not_run
from fpe.graph.inputs import Call, copied_call, tensors_in
from fpe.graph.layers import PER_NEURON, is_layer, oriented_weight


class Ends:
    """Which layers stand first and last in a forward pass, and which layers each one reads.

    `first` read nothing that a layer has computed; nothing that `last` compute is read by a layer. Norms that
    stand before the first or behind the last layers are among them. `sources` are the layers, and `norms` the
    norms, between which and a layer no other layer stands.
    """

    def __init__(self, model: nn.Module, call: Call) -> None:
        self.model = model
        self.sources: dict[str, list[str]] = {}
        self.norms: dict[str, list[str]] = {}
        self.first: set[str] = set()
        self._made: dict[Any, str] = {}
        with analyzed(model) as own, torch.enable_grad():
            names = {n: m for n, m in own.named_modules() if is_layer(m) or isinstance(m, nn.Embedding)}
            norms = {n: m for n, m in own.named_modules() if n not in names and _scales(m)}
            own.requires_grad_(False)
            for module in (*names.values(), *norms.values()):
                cast(Any, module).requires_grad_(True)
            self._layers = set(names)
            for name, module in (*names.items(), *norms.items()):
                module.register_forward_pre_hook(self._before(name), with_kwargs=True)
                module.register_forward_hook(self._after(name))
            args, kwargs = copied_call(call)
            try:
                outputs = tensors_in(own(*args, **kwargs))
            except Exception as error:
                raise not_run(type(model).__name__, error) from error
            self.reached = set(self.sources)
            found = [self._behind(output) for output in outputs]
            self.last = {name for layers, norms in found for name in (*layers, *norms)}

    def _before(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            layers, norms = self._behind(next(iter(tensors_in([args, kwargs]))))
            self.sources.setdefault(name, []).extend(layers)
            self.norms.setdefault(name, []).extend(norms)
            if not layers:
                self.first.add(name)

        return hook

    def _after(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor) and output.grad_fn is not None:
                self._made[output.grad_fn] = name

        return hook

    def _behind(self, tensor: Tensor) -> tuple[list[str], list[str]]:
        """Return the layers, and the norms, that a tensor comes from without another layer in between."""
        left, seen, layers, norms = [tensor.grad_fn], set(), [], []
        while left:
            node = left.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            name = self._made.get(node)
            if name in self._layers:
                layers.append(cast(str, name))
                continue
            if name is not None:
                norms.append(name)
            left += [before for before, _ in node.next_functions]
        return layers, norms

    def block(self, name: str) -> int:
        """Return how many adjacent inputs of a layer are one unit of the layers that it reads: 16 after a
        4 × 4 map was flattened.
        """
        inputs = getattr(self.model.get_submodule(name), "in_features", 1)
        sources = set(self.sources.get(name, ()))
        widths = {_outputs(self.model.get_submodule(source)) for source in sources}
        width = widths.pop() if len(widths) == 1 else inputs
        several = len(sources) > 1 and inputs == len(sources) * width  # side by side
        return 1 if several or inputs % width else inputs // width


def _scales(module: nn.Module) -> bool:
    """Tell whether a module is a norm or the like, with one entry for each unit; also of an unknown class."""
    own = list(module.parameters())
    return type(module) in PER_NEURON or (len(own) > 0 and all(p.dim() == 1 for p in own))


def _outputs(module: Any) -> int:
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    return len(oriented_weight(module))
