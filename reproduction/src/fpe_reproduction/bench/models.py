"""The networks of a case: one layer with a small reader, or a whole model; dense, expanded, packed."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fpe.errors import BudgetError
from fpe.expansion.expand import expand
from fpe.masked import count_free, count_nonzero
from fpe.packing.blocks import BlockLayer
from fpe.packing.pack import pack
from fpe_reproduction.bench import onnx
from fpe_reproduction.bench import rows as names
from fpe_reproduction.bench.config import CLASSES, BenchConfig
from fpe_reproduction.bench.rows import Row, Subjects, csr_row, mask_in_forward, module_row, plain_with_zeros

#: Inputs, hidden neurons, outputs, and what stands between, of the whole models.
MODELS: dict[str, tuple[int, int, int, nn.Module]] = {
    "MLP 384-256-77": (384, 256, 77, nn.ReLU()),
    "MLP 768-2048-1000": (768, 2048, 1000, nn.ReLU()),
    "GPT-2 MLP 768-3072-768": (768, 3072, 768, nn.GELU("tanh")),
}
#: Splits beside the shared one, and what their rows are called.
OTHERS = {"random": names.CODES, "shared-8": names.GROUPS}


def subjects_of(case: dict[str, Any], config: BenchConfig) -> Subjects:
    """Make all that a case measures, on its device."""
    torch.manual_seed(config.seed)
    if case["kind"] == "layer":
        parent = _network(case["inputs"], case["neurons"], CLASSES, nn.ReLU())
    else:
        parent = _network(*MODELS[case["name"]])
    probe = torch.randn(3, next(parent.parameters()).shape[1])
    with torch.no_grad():  # first, so that its wide tensors are gone before the others are made
        random_rows, of_random = _rows_of("random", parent, probe, case, config)
        grouped_rows, of_groups = _rows_of("shared-8", parent, probe, case, config)
    shared, way = _expanded_shared(parent, "shared", case["factor"], config.seed)
    packed = pack(shared)
    networks = {names.DENSE: parent, names.PACKED: packed, names.MASKED: shared}
    of_shared = f"prune={way!r}; {_packing(packed)}"
    notes = {"shared split": of_shared, "shared split of 8 groups": of_groups, "random split": of_random}
    made = Subjects([], networks, probe, notes)
    if case["device"] == "cuda":
        _to_half(made)
    with torch.no_grad():
        add = _add_layer_rows if case["kind"] == "layer" else _add_model_rows
        add(made, [*grouped_rows, *random_rows], case, config)
    return made


def _rows_of(
    split: str, parent: nn.Module, probe: Tensor, case: dict[str, Any], config: BenchConfig
) -> tuple[list[Row], str]:
    """Return the rows of another split, and how its layers were packed."""
    factor, seed = case["factor"], config.seed
    wide: Any
    if split == "random":
        wide, prune = expand(parent, factor=factor, split=split, prune="magnitude", seed=seed), "magnitude"
    else:
        wide, prune = _expanded_shared(parent, split, factor, seed)
    if case["device"] == "cuda":
        wide, probe = wide.cuda().half(), probe.cuda().half()
    packed: Any = pack(wide)
    name, note = OTHERS[split], f"prune={prune!r}; {_packing(packed)}"
    if case["kind"] == "model":
        return [module_row(name, packed, count_nonzero(parent), wide(probe))], note
    layer = wide[0]
    useful, expected = count_free(layer.fpe_mask), plain_with_zeros(layer)(probe)
    slow = name != names.GROUPS
    rows = [module_row(name, packed[0], useful, _in_order_of(packed[0], expected), slow)]
    if name == names.CODES and layer.weight.numel() <= names.BITMASK_ENTRIES:
        bits: Any = pack(wide, format={"0": "bitmask"})
        rows.append(module_row(names.BITMASK, bits[0], useful, expected))
    return rows, note


def _network(inputs: int, neurons: int, outputs: int, between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, neurons), copy.deepcopy(between), nn.Linear(neurons, outputs))


def _expanded_shared(parent: nn.Module, split: str, factor: int, seed: int) -> tuple[Any, str]:
    """Expand by a shared split, paid for by whole columns, or by whole children where columns cannot."""
    try:
        return expand(parent, factor=factor, split=split, prune="columns", seed=seed), "columns"
    except BudgetError:
        return expand(parent, factor=factor, split=split, prune="children", seed=seed), "children"


def _packing(packed: Any) -> str:
    """Say how each layer was packed."""
    return "; ".join(f"layer {row.name} as {row.format}: {row.why}" for row in packed.fpe_packing.rows)


def _to_half(made: Subjects) -> None:
    """Move everything to the GPU, in half precision."""
    made.networks = {name: network.cuda().half() for name, network in made.networks.items()}
    made.probe = made.probe.cuda().half()


def _add_layer_rows(made: Subjects, others: list[Row], case: dict[str, Any], config: BenchConfig) -> None:
    networks: Any = made.networks
    parent, packed, shared = (networks[n][0] for n in (names.DENSE, names.PACKED, names.MASKED))
    wide, pruned = plain_with_zeros(shared), mask_in_forward(shared)
    expected = wide(made.probe)
    in_packed = _in_order_of(packed, expected)
    useful = count_free(shared.fpe_mask)
    made.rows += [
        module_row(names.DENSE, parent, parent.weight.numel(), slow=False),
        module_row(names.PACKED, packed, useful, in_packed, slow=False),
        module_row(names.WIDE, wide, useful),
        module_row(names.PRUNE, pruned, useful, expected),
        csr_row(wide, useful, expected),
        *others,
    ]
    _, between, reader = networks[names.MASKED].children()
    with torch.enable_grad():
        networks[names.PRUNE] = nn.Sequential(pruned, between, copy.deepcopy(plain_with_zeros(reader)))
    if case["device"] == "cuda":
        _add_two_four(made, case, config)
    else:
        pairs = ((names.ONNX_DENSE, parent, parent(made.probe)), (names.ONNX_PACKED, packed, in_packed))
        _add_onnx(made, pairs, config)


def _in_order_of(packed: nn.Module, outputs: Tensor) -> Tensor:
    """Put a wide layer's outputs into the order of the packed one, whose neurons may stand block by block."""
    if isinstance(packed, BlockLayer) and packed.restore is None:
        return outputs.index_select(1, packed.rows.long())
    return outputs


def _add_two_four(made: Subjects, case: dict[str, Any], config: BenchConfig) -> None:
    """Add 2:4 by the GPU's own instructions; only two children can have it."""
    if case["factor"] != 2:
        made.notes[names.TWO_FOUR] = (
            "of each four inputs two go to each of two children; not for other factors"
        )
        return
    torch.manual_seed(config.seed)
    parent = _network(case["inputs"], case["neurons"], CLASSES, nn.ReLU())
    try:
        wide: Any = expand(parent, factor=2, split="2:4", seed=config.seed).cuda().half()
        layer = pack(wide, format={"0": "2:4"})[0]  # type: ignore[index]
        expected = plain_with_zeros(wide[0])(made.probe)
        made.rows.append(module_row(names.TWO_FOUR, layer, count_free(wide[0].fpe_mask), expected))
    except Exception as error:  # kernels that a GPU or a build of PyTorch has not
        made.notes[names.TWO_FOUR] = f"missing: {error}"


def _add_model_rows(made: Subjects, others: list[Row], case: dict[str, Any], config: BenchConfig) -> None:
    parent, packed, shared = (made.networks[n] for n in (names.DENSE, names.PACKED, names.MASKED))
    first, between, last = shared.children()
    wide = nn.Sequential(plain_with_zeros(first), between, plain_with_zeros(last))  # type: ignore[arg-type]
    expected, useful = wide(made.probe), count_nonzero(parent)
    made.rows += [
        module_row(names.DENSE, parent, useful, slow=False),
        module_row(names.PACKED, packed, useful, expected, slow=False),
        module_row(names.WIDE, wide, useful),
        *others,
    ]
    if case["device"] == "cpu":
        pairs = ((names.ONNX_DENSE, parent, parent(made.probe)), (names.ONNX_PACKED, packed, expected))
        _add_onnx(made, pairs, config)


def _add_onnx(made: Subjects, pairs: tuple[tuple[str, nn.Module, Tensor], ...], config: BenchConfig) -> None:
    """Add modules as onnxruntime runs them, or say why not."""
    if not config.onnx or not onnx.is_installed():
        why = (
            "is not installed: pip install onnx onnxscript onnxruntime"
            if config.onnx
            else "was not asked for"
        )
        made.notes["onnxruntime"] = why
        return
    by_name = {row.name: row for row in made.rows}
    for name, module, expected in pairs:
        like: Row = by_name[names.DENSE if name == names.ONNX_DENSE else names.PACKED]
        inputs, threads = made.probe.shape[1], torch.get_num_threads()
        try:
            made.rows.append(onnx.onnx_row(name, module, inputs, like.useful, expected, threads))
        except Exception as error:  # exporters fail in many ways
            made.notes[name] = f"missing: {type(error).__name__}: {error}"
