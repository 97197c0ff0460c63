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
from fpe.io.export import export
from fpe.masked import count_free, count_nonzero
from fpe.packing.blocks import BlockLayer
from fpe.packing.layers import bytes_of
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
        threads = 1 if self.threads is None else self.threads
        checked = (("factor", self.factors, 2), ("batches", self.batches, 1), ("rounds", (self.rounds,), 3))
        problems = [
            f"--{name} is {min(values)}; give at least {least}."
            for name, values, least in (*checked, ("threads", (threads,), 1))
            if min(values, default=least) < least
        ]
        for size in self.sizes:
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size):
                problems.append(f"--sizes {size!r} is no size; write INPUTSxNEURONS, such as 4096x11008.")
                continue
            for factor in self.factors:
                # Whole inputs are pruned for the copied outgoing weights and biases; each child keeps one.
                least = (CLASSES + 1) * (factor - 1) + factor
                if int(size.partition("x")[0]) < least:
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

    @property
    def training_batches(self) -> tuple[int, ...]:
        """Samples in a training step."""
        return tuple(b for b in self.batches if b >= 64) or (max(self.batches),)

    def cases(self, devices: Sequence[str] = ("cpu",)) -> list[dict[str, Any]]:
        """Return the cases, each of which is measured in a process of its own."""
        what: list[dict[str, Any]] = []
        for size in self.sizes:
            inputs, neurons = map(int, size.split("x"))
            what.append({"kind": "layer", "name": size, "inputs": inputs, "neurons": neurons})
        what += [{"kind": "model", "name": name} for name in self.models]
        return [
            {**w, "factor": f, "device": device} for device in devices for w in what for f in self.factors
        ]


@dataclass
class Row:
    """One way to compute a layer or a model."""

    name: str
    call: Callable[[Tensor], Tensor]
    stored: int  # bytes of parameters and buffers, or of a file
    useful: int  # weights that are not masked
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


class Subjects:
    """What a case measures: a layer followed by a small head, or a whole model, in all its forms.

    ``rows`` are timed, ``networks`` trained (the dense parent first), outputs for ``probe`` checked;
    ``notes`` say how layers were packed and what is missing.
    """

    def __init__(self, case: dict[str, Any], config: BenchConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self.factor, self.layer = config, case["factor"], case["kind"] == "layer"
        cuda = case["device"] == "cuda"
        self.place: Any = ("cuda", torch.float16) if cuda else ("cpu", torch.float32)
        layer = (case.get("inputs", 0), case.get("neurons", 0), CLASSES, nn.ReLU())
        inputs, neurons, outputs, between = layer if self.layer else MODELS[case["name"]]
        self.parent: Any = nn.Sequential(nn.Linear(inputs, neurons), between, nn.Linear(neurons, outputs))
        self.probe = torch.randn(3, inputs).to(*self.place)
        self.notes: dict[str, str] = {}
        with torch.no_grad():
            self._make(cuda)

    def _make(self, cuda: bool) -> None:
        # The wide weights of these are freed before others are made.
        others = [self._packed(name, split)[0] for name, split in ((GROUPS, "shared-8"), (CODES, "random"))]
        if cuda and self.layer and self.factor == 2:
            self._try(others, TWO_FOUR, lambda: self._packed(TWO_FOUR, "2:4", {"0": "2:4"})[0])
        packed_row, wide, packed = self._packed(PACKED, "shared")
        parent, plain = self.parent.to(*self.place), with_zeros(wide)
        outputs, useful = self._part(wide)(self.probe), self._useful(wide)
        self.networks: dict[str, Any] = {DENSE: parent, PACKED: packed, MASKED: wide}
        weights = parent[0].weight.numel() if self.layer else count_nonzero(parent)
        self.rows = [module_row(DENSE, self._part(parent), weights), packed_row]
        self.rows.append(module_row(WIDE, self._part(plain), useful))
        if self.layer:
            with torch.enable_grad():
                pruned = self.networks[PRUNE] = copy.deepcopy(plain)
                prune.custom_from_mask(pruned[0], "weight", wide[0].fpe_mask)  # type: ignore[no-untyped-call]
            self.rows.append(module_row(PRUNE, pruned[0], useful, outputs))
            self.rows.append(csr_row(plain[0], useful, outputs))
        self.rows += others
        if self.config.onnx and not cuda:
            for name, like in ((ONNX_DENSE, self.rows[0]), (ONNX_PACKED, packed_row)):
                self._try(self.rows, name, partial(onnx_row, name, like, self.probe))

    def _part(self, network: Any) -> Any:
        """Return the part that is timed forward."""
        return network[0] if self.layer else network

    def _useful(self, wide: Any) -> int:
        return count_free(wide[0].fpe_mask) if self.layer else count_nonzero(wide)

    def _packed(self, name: str, split: str, format: Any = None) -> tuple[Row, Any, Any]:
        """Expand and pack; return the row, the wide and the packed network."""
        wider = partial(expand, self.parent, self.factor, split=split, seed=self.config.seed)
        pruning = "columns" if split.startswith("shared") else "magnitude"
        try:
            wide = wider(prune=pruning)
        except BudgetError:  # the inputs do not suffice
            pruning = "children"
            wide = wider(prune=pruning)
        wide = wide.to(*self.place)
        packed: Any = pack(wide, format=format)
        formats = "; ".join(f"layer {r.name} as {r.format}: {r.why}" for r in packed.fpe_packing.rows)
        note = "shared split of 8 groups" if split == "shared-8" else f"{split} split"
        self.notes[note] = f"prune={pruning!r}; {formats}"
        module, expected = self._part(packed), self._part(wide)(self.probe)
        if isinstance(module, BlockLayer) and module.restore is None:  # neurons in the order of the blocks
            expected = expected.index_select(1, torch.as_tensor(module.rows).long())
        return module_row(name, module, self._useful(wide), expected), wide, packed

    def _try(self, rows: list[Row], name: str, make: Callable[[], Row]) -> None:
        """Add a row, or note why it cannot be made: no such kernels or packages, a failing exporter."""
        try:
            rows.append(make())
        except Exception as error:
            self.notes[name] = f"missing: {type(error).__name__}: {error}"


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
