"""What is measured: cases (a layer or model, a factor, a device) and the rows that each compares."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from fpe.errors import ArgumentError, BudgetError, raise_problems
from fpe.expansion.expand import expand
from fpe.io.exporting import export
from fpe.masked import count_free, count_nonzero
from fpe.packing.blocks import BlockLayer
from fpe.packing.pack import pack

DENSE = "dense parent"
PACKED = "packed, shared split (blocks)"
GROUPS = "packed, shared split of 8 groups (blocks)"
WIDE = "wide with zeros (nn.Linear)"
PRUNE = "torch.nn.utils.prune (mask in forward)"
CSR = "CSR (torch.sparse)"
MASKED = "masked (fpe.expand)"
CODES = "packed, random split (codes)"
TWO_FOUR = "packed, 2:4 (fp16 tensor cores)"
ONNX_DENSE = "onnxruntime: dense parent"
ONNX_PACKED = "onnxruntime: packed, shared split"

#: Outputs of the layer after the measured one, so that there is a loss.
CLASSES = 10
#: Inputs, hidden neurons, outputs and activation of the whole models.
MODELS: dict[str, tuple[int, int, int, nn.Module]] = {
    "MLP 384-256-77": (384, 256, 77, nn.ReLU()),
    "MLP 768-2048-1000": (768, 2048, 1000, nn.ReLU()),
    "GPT-2 MLP 768-3072-768": (768, 3072, 768, nn.GELU("tanh")),
}
#: Rounding errors allowed in sums of thousands of terms, relative to the largest output.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}


@dataclass(frozen=True)
class BenchConfig:
    """What ``fpe bench`` measures."""

    sizes: tuple[str, ...] = ("512x512", "1024x4096", "4096x4096", "4096x11008")  # INPUTSxNEURONS
    factors: tuple[int, ...] = (2, 4)
    batches: tuple[int, ...] = (1, 8, 64, 512)
    models: tuple[str, ...] = tuple(MODELS)
    rounds: int = 25  # samples of time of each row; of training steps half as many
    seconds: float = 3.0  # for each row and batch size; slower rows take part in fewer rounds
    threads: int | None = None  # of PyTorch and onnxruntime
    onnx: bool = True
    stream: int = 1 << 30  # bytes that are read to find the memory's bandwidth
    seed: int = 0  # of weights, splits, inputs, and the order of the rows in each round

    def __post_init__(self) -> None:
        threads = (1,) if self.threads is None else (self.threads,)
        least_values = {"factor": 2, "batches": 1, "rounds": 3, "threads": 1}
        given = {
            "factor": self.factors,
            "batches": self.batches,
            "rounds": (self.rounds,),
            "threads": threads,
        }
        problems = [
            f"--{name} is {min(given[name])}; give at least {least}."
            for name, least in least_values.items()
            if min(given[name], default=least) < least
        ]
        for size in self.sizes:
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size):
                problems.append(f"--sizes {size!r} is no size; write INPUTSxNEURONS, such as 4096x11008.")
                continue
            for factor in self.factors:
                # Whole inputs are pruned for the copied outgoing weights and biases; each child keeps one.
                least = (CLASSES + 1) * (factor - 1) + factor
                if parse_size(size)[0] < least:
                    problems.append(
                        f"--sizes {size} has too few inputs to expand by {factor} at the same count; give at "
                        f"least {least} inputs, or a smaller factor."
                    )
        raise_problems(problems, ArgumentError, "what is to be measured")

    @classmethod
    def quick(cls) -> BenchConfig:
        """Return a configuration that shows in half a minute whether everything works."""
        small = cls(sizes=("256x512",), factors=(2,), batches=(1, 64), models=("MLP 384-256-77",))
        return replace(small, rounds=5, seconds=0.2, stream=1 << 26)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> BenchConfig:
        """Make a configuration from its fields as JSON holds them."""
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**known)

    @property
    def training_batches(self) -> tuple[int, ...]:
        """Samples in a training step."""
        return tuple(b for b in self.batches if b >= 64) or (max(self.batches),)

    @property
    def steps(self) -> int:
        """How many steps of progress a case reports."""
        return 1 + len(self.batches) + len(self.training_batches)

    def cases(self, devices: Sequence[str] = ("cpu",)) -> list[dict[str, Any]]:
        """Return the cases, each of which is measured in a process of its own."""
        layers: list[dict[str, Any]] = []
        for size in self.sizes:
            inputs, neurons = parse_size(size)
            layers.append({"kind": "layer", "name": size, "inputs": inputs, "neurons": neurons})
        models = [{"kind": "model", "name": name} for name in self.models]
        return [
            {**what, "factor": factor, "device": device}
            for device in devices
            for what in (*layers, *models)
            for factor in self.factors
        ]


def parse_size(size: str) -> tuple[int, int]:
    """Return (inputs, neurons) of a size such as ``"4096x11008"``."""
    inputs, neurons = size.split("x")
    return int(inputs), int(neurons)


@dataclass
class Row:
    """One way to compute a layer or a model."""

    name: str
    call: Callable[[Tensor], Tensor]
    stored: int  # bytes of parameters and buffers, or of a file
    useful: int  # weights that no mask holds at zero
    expected: Tensor | None = None  # outputs for the case's probe; None for a reference

    def problem(self, probe: Tensor) -> str | None:
        """Say why this row must not be timed, if its outputs are wrong."""
        if self.expected is None:
            return None
        got = self.call(probe)
        if got.shape != self.expected.shape:
            return f"not timed: its outputs have shape {tuple(got.shape)}, not {tuple(self.expected.shape)}"
        largest = float(self.expected.abs().max())
        off = float((got - self.expected).abs().max())
        if not off <= TOLERANCE[probe.dtype] * max(largest, 1e-6):
            return f"not timed: its outputs are off by {off:.2g}, of at most {largest:.2g}"
        return None


@dataclass
class Subjects:
    """What a case measures: rows to time, networks to train (the dense parent first), inputs for checks."""

    rows: list[Row]
    networks: dict[str, nn.Module]
    probe: Tensor
    notes: dict[str, str]


class CaseBuilder:
    """Builds the rows and networks of one case: a layer followed by a small head, or a whole model."""

    def __init__(self, case: dict[str, Any], config: BenchConfig) -> None:
        self.config, self.factor, self.layer = config, case["factor"], case["kind"] == "layer"
        self.place = (
            (torch.device("cuda"), torch.float16) if case["device"] == "cuda" else ("cpu", torch.float32)
        )
        self.sizes = (
            (case["inputs"], case["neurons"], CLASSES, nn.ReLU()) if self.layer else MODELS[case["name"]]
        )
        self.parent = self.network()
        self.probe = torch.randn(3, self.sizes[0]).to(*self.place)
        self.notes: dict[str, str] = {}

    def network(self) -> nn.Module:
        """Return the dense network, with fresh weights."""
        inputs, neurons, outputs, activation = self.sizes
        layers = nn.Linear(inputs, neurons), copy.deepcopy(activation), nn.Linear(neurons, outputs)
        return nn.Sequential(*layers)

    def measured(self, network: Any) -> Any:
        """Return the part of a network that is timed forward."""
        return network[0] if self.layer else network

    def useful(self, wide: Any) -> int:
        """Return the number of weights that a product must multiply."""
        return count_free(wide[0].fpe_mask) if self.layer else count_nonzero(wide)

    def expanded(self, split: str) -> tuple[Any, str]:
        """Expand; for shared splits prune whole inputs, or whole children where inputs do not suffice."""
        pruning = "magnitude" if split == "random" else "columns"
        try:
            wide = expand(self.parent, self.factor, split=split, prune=pruning, seed=self.config.seed)
        except BudgetError:
            pruning = "children"
            wide = expand(self.parent, self.factor, split=split, prune=pruning, seed=self.config.seed)
        return wide.to(*self.place), pruning

    def packed(self, name: str, split: str) -> tuple[Row, Any, Any]:
        """Expand and pack; return the row, and the wide and the packed network."""
        wide, pruning = self.expanded(split)
        packed: Any = pack(wide)
        formats = "; ".join(f"layer {r.name} as {r.format}: {r.why}" for r in packed.fpe_packing.rows)
        note = "shared split of 8 groups" if split == "shared-8" else f"{split} split"
        self.notes[note] = f"prune={pruning!r}; {formats}"
        module, expected = self.measured(packed), self.measured(wide)(self.probe)
        if isinstance(module, BlockLayer) and module.restore is None:  # its neurons stand block by block
            expected = expected.index_select(1, torch.as_tensor(module.rows).long())
        return module_row(name, module, self.useful(wide), expected), wide, packed

    @torch.no_grad()
    def build(self) -> Subjects:
        """Make all rows and networks on the case's device."""
        codes = self.packed(CODES, "random")[0]  # its wide weights are freed before others are made
        groups = self.packed(GROUPS, "shared-8")[0]
        packed_row, wide, packed = self.packed(PACKED, "shared")
        parent = self.parent.to(*self.place)
        dense, plain = self.measured(parent), with_zeros(wide)
        weights = dense.weight.numel() if self.layer else count_nonzero(parent)
        outputs, useful = self.measured(wide)(self.probe), self.useful(wide)
        rows = [module_row(DENSE, dense, weights), packed_row]
        rows.append(module_row(WIDE, self.measured(plain), useful))
        networks: dict[str, Any] = {DENSE: parent, PACKED: packed, MASKED: wide}
        if self.layer:
            with torch.enable_grad():
                pruned = copy.deepcopy(plain)
                prune.custom_from_mask(pruned[0], "weight", wide[0].fpe_mask)  # type: ignore[no-untyped-call]
            networks[PRUNE] = pruned
            rows += [module_row(PRUNE, pruned[0], useful, outputs), csr_row(plain[0], useful, outputs)]
        rows += [groups, codes]
        if self.layer and self.factor == 2 and self.probe.is_cuda:
            rows += self.optional(TWO_FOUR, self.two_four_row)
        if self.config.onnx and not self.probe.is_cuda:
            for name, like in ((ONNX_DENSE, rows[0]), (ONNX_PACKED, packed_row)):
                rows += self.optional(name, partial(onnx_row, name, like, self.probe))
        return Subjects(rows, networks, self.probe, self.notes)

    def two_four_row(self) -> Row:
        """Return 2:4 sparsity by the GPU's own instructions; each child takes two of four inputs."""
        torch.manual_seed(self.config.seed)
        wide: Any = expand(self.network(), 2, split="2:4", seed=self.config.seed).to(*self.place)
        layer: Any = pack(wide, format={"0": "2:4"})
        return module_row(TWO_FOUR, layer[0], count_free(wide[0].fpe_mask), wide[0](self.probe))

    def optional(self, name: str, make: Callable[[], Row]) -> list[Row]:
        """Return a row, or note why it cannot be made: no such kernels or packages, a failing exporter."""
        try:
            return [make()]
        except Exception as error:
            self.notes[name] = f"missing: {type(error).__name__}: {error}"
            return []


def subjects_of(case: dict[str, Any], config: BenchConfig) -> Subjects:
    """Make everything that a case measures, on its device."""
    torch.manual_seed(config.seed)
    return CaseBuilder(case, config).build()


def with_zeros(wide: nn.Module) -> Any:
    """Return an expanded network with plain linear layers around the same tensors."""
    layers: list[Any] = list(wide.children())
    for place in (0, 2):
        masked = layers[place]
        layers[place] = nn.Linear(masked.in_features, masked.out_features, device="meta")
        layers[place].weight, layers[place].bias = masked.weight, masked.bias
    return nn.Sequential(*layers)


def module_row(name: str, module: nn.Module, useful: int, expected: Tensor | None = None) -> Row:
    """Return the row of a module."""
    return Row(name, module, bytes_of(module), useful, expected)


def csr_row(layer: nn.Linear, useful: int, expected: Tensor) -> Row:
    """Return a linear layer by PyTorch's sparse product: matrix by vector for one sample."""
    made = layer.weight.detach().to_sparse_csr()
    if layer.weight.device.type == "cpu":  # MKL takes 32-bit indices; others would be converted in each call
        indices = made.crow_indices().int(), made.col_indices().int()
        made = torch.sparse_csr_tensor(*indices, made.values(), made.shape)
    bias = layer.bias.detach()

    def call(x: Tensor) -> Tensor:
        if len(x) == 1:
            return (made @ x[0] + bias)[None]
        return (made @ x.t()).t() + bias

    stored = sum(t.nbytes for t in (made.crow_indices(), made.col_indices(), made.values(), bias))
    return Row(CSR, call, stored, useful, expected)


def onnx_row(name: str, like: Row, probe: Tensor) -> Row:
    """Export a row's module and load it in onnxruntime."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Spinning threads would take the processor from the row that is timed next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    module: Any = like.call
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "module.onnx")
        stored = export(module, path, example_inputs=torch.zeros(2, probe.shape[1])).bytes
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0].name

    def call(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {given: x.numpy()})[0])

    expected = module(probe) if like.expected is None else like.expected
    return Row(name, call, stored, like.useful, expected)


def bytes_of(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    total = 0
    for tensor in (*module.parameters(), *module.buffers()):
        parts = [tensor]
        if hasattr(tensor, "__tensor_flatten__"):  # stored as others, such as 2:4
            parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        total += sum(part.nbytes for part in parts)
    return total
