"""The networks of a case, in all the forms that are measured."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fpe.errors import BudgetError
from fpe.expansion.expand import expand
from fpe.io.checkpoint import save
from fpe.masked import MaskedLinear, count_free, count_nonzero
from fpe.packing.blocks import BlockLayer
from fpe.packing.fused import chain_of
from fpe.packing.pack import pack
from fpe.rewiring.model_masks import with_masks
from fpe_reproduction.bench import cases as names
from fpe_reproduction.bench.cases import CLASSES, FREE_FACTOR, MODELS, ZEROS, BenchConfig, dimensions
from fpe_reproduction.bench.rows import Row, compiled_row, csr_row, fused_row, module_row, onnx_row


@dataclass
class Subjects:
    """What a case measures."""

    probe: Tensor
    #: Timed forward; outputs for `probe` are checked.
    rows: list[Row] = field(default_factory=list)
    #: Trained, the dense parent first.
    networks: dict[str, Any] = field(default_factory=dict)
    #: How layers were packed, and what is missing.
    notes: dict[str, str] = field(default_factory=dict)

    def try_row(self, name: str, make: Callable[..., Row], *given: Any) -> None:
        """Add a row, or note why it cannot be made: no such package or compiler, a failing exporter."""
        try:
            self.rows.append(make(name, *given))
        except Exception as error:
            self.notes[name] = f"missing: {type(error).__name__}: {error}"


@torch.no_grad()
def subjects(case: dict[str, Any], config: BenchConfig) -> Subjects:
    """Make what a case measures forward and in training."""
    torch.manual_seed(config.seed)
    return _free(case) if case["kind"] == "free" else _blocks(case, config)


def _blocks(case: dict[str, Any], config: BenchConfig) -> Subjects:
    """Make a layer followed by a small head, or a whole model: dense, wide, and packed as blocks."""
    layer, cuda = case["kind"] == "layer", case["device"] == "cuda"
    shape = (*dimensions(case["name"]), CLASSES, nn.ReLU()) if layer else MODELS[case["name"]]
    inputs, neurons, outputs, between = shape
    parent: Any = nn.Sequential(nn.Linear(inputs, neurons), between, nn.Linear(neurons, outputs))
    place: Any = ("cuda", torch.float16) if cuda else ("cpu", torch.float32)
    made = Subjects(torch.randn(3, inputs).to(*place))

    def part(network: Any) -> Any:
        """Return the part that is timed forward."""
        return network[0] if layer else network

    wide, pruning = _expanded(parent, case["factor"], config.seed)
    wide, parent = wide.to(*place), parent.to(*place)
    packed: Any = pack(wide)
    formats = "; ".join(f"layer {r.name} as {r.format}: {r.why}" for r in packed.fpe_packing.rows)
    made.notes["shared split"] = f"prune={pruning!r}; {formats}"
    module, expected = part(packed), part(wide)(made.probe)
    if isinstance(module, BlockLayer) and module.restore is None:  # neurons in the order of the blocks
        expected = expected.index_select(1, torch.as_tensor(module.rows).long())
    useful = count_free(wide[0].fpe_mask) if layer else count_nonzero(wide)
    weights = parent[0].weight.numel() if layer else count_nonzero(parent)
    dense = module_row(names.DENSE, part(parent), weights)
    blocks = module_row(names.PACKED, module, useful, expected)
    made.rows = [dense, blocks, module_row(names.WIDE, part(with_zeros(wide)), useful)]
    made.networks = {names.DENSE: parent, names.MASKED: wide, names.PACKED: packed}
    made.networks[names.MOVING] = copy.deepcopy(packed)
    if not layer and not cuda:
        made.try_row(names.FUSED, fused_row, packed, useful, made.probe)
        fused = [row for row in made.rows if row.name == names.FUSED]
        if fused and isinstance(between, nn.ReLU):
            expected = parent(made.probe)
            made.rows.append(Row(names.FUSED_DENSE, chain_of(parent).eval(), dense.stored, weights, expected))
        if config.compile:
            made.try_row(names.COMPILED_DENSE, compiled_row, dense, names.DENSE, made.probe)
            for name, row in zip((names.COMPILED, names.COMPILED_FUSED), (blocks, *fused), strict=False):
                made.try_row(name, compiled_row, row, names.COMPILED_DENSE, made.probe)
        if config.onnx:
            made.try_row(names.ONNX_DENSE, onnx_row, dense, names.DENSE, made.probe)
            made.try_row(names.ONNX_PACKED, onnx_row, blocks, names.ONNX_DENSE, made.probe)
    return made


def _expanded(parent: nn.Module, factor: int, seed: int) -> tuple[Any, str]:
    """Expand with a shared split, and return the network and how it was pruned: so that blocks stay whole."""
    wider = partial(expand, parent, factor, split="shared", seed=seed)
    try:
        return wider(prune="columns"), "columns"
    except BudgetError:  # the inputs do not suffice
        return wider(prune="children"), "children"


def with_zeros(wide: nn.Module) -> Any:
    """Return a network with plain linear layers around the tensors of its masked ones."""
    layers: list[Any] = list(wide.children())
    for place, masked in enumerate(layers):
        if isinstance(masked, MaskedLinear):
            plain: Any = nn.Linear(masked.in_features, masked.out_features, device="meta")
            plain.weight, plain.bias = masked.weight, masked.bias
            layers[place] = plain
    return nn.Sequential(*layers)


def _free(case: dict[str, Any]) -> Subjects:
    """Make layers with masks without structure, and the dense layer of the same count."""
    inputs, neurons = dimensions(case["name"])
    parent = nn.Linear(inputs, neurons // FREE_FACTOR)
    made = Subjects(torch.randn(3, inputs))
    free = count_nonzero(parent) - neurons  # each neuron has a bias
    wide = free_layer(inputs, neurons, free)
    expected = wide(made.probe)
    made.rows = [
        module_row(names.DENSE, parent, parent.weight.numel()),
        module_row(names.SPARSE, pack(wide, format="sparse"), free, expected),
    ]
    plain = with_zeros(wide)
    made.rows += [module_row(names.WIDE, plain, free), csr_row(plain[0], free, expected)]
    even = free_layer(inputs, neurons, free // neurons * neurons, even=True)
    own = module_row(names.FAN_IN, pack(even, format="sparse"), free // neurons * neurons, even(made.probe))
    made.rows.append(own)
    made.notes["counts"] = f"{count_nonzero(wide):,} non-zeros, {count_nonzero(parent):,} of the dense layer"
    return made


def free_layer(inputs: int, neurons: int, free: int, *, even: bool = False) -> Any:
    """Return a layer in whose mask as many entries are free, at random; of each neuron equally many if even.

    With ``even``, `free` is a multiple of `neurons`.
    """
    wide: Any = with_masks(nn.Sequential(nn.Linear(inputs, neurons)))
    chances = torch.rand(wide[0].weight.shape)
    rows = chances if even else chances.flatten()
    kept = rows.topk(free // neurons if even else free).indices
    mask = torch.zeros_like(rows).scatter_(-1, kept, 1).view_as(chances)
    wide[0].fpe_mask.copy_(mask)
    wide[0].project()
    return wide


@torch.no_grad()
def file_sizes(case: dict[str, Any], config: BenchConfig) -> list[dict[str, Any]]:
    """Save a layer with free masks of several shares of zeros; return the bytes beside what is asked.

    Asked are the values in float32 and, for their places, a bit for each weight or two bytes for each
    non-zero, whichever is less.
    """
    torch.manual_seed(config.seed)
    inputs, neurons = dimensions(case["name"])
    found = []
    for zeros in ZEROS:
        free = round(inputs * neurons * (1 - zeros))
        wide = free_layer(inputs, neurons, free)
        count = count_nonzero(wide)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "layer.safetensors")
            save(wide, path)
            size = path.stat().st_size
        least = 4 * count + min(inputs * neurons // 8, 2 * free)
        found.append({"zeros": zeros, "nonzero": count, "bytes": size, "asked": least, "ratio": size / least})
    return found
