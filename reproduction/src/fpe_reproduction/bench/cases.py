"""What is measured: cases (a layer or model, a factor, a device), and the names of their rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fpe.errors import ArgumentError, raise_problems

DENSE = "dense parent"
PACKED = "blocks"
FUSED = "blocks, fused"
FUSED_DENSE = "dense parent, by the fused code"
WIDE = "wide with zeros"
COMPILED_DENSE = "compiled: dense parent"
COMPILED = "compiled: blocks"
COMPILED_FUSED = "compiled: blocks, fused"
ONNX_DENSE = "onnxruntime: dense parent"
ONNX_PACKED = "onnxruntime: blocks"
SPARSE = "free mask (sparse)"
FAN_IN = "constant fan-in (sparse)"
CSR = "free mask (torch.sparse CSR)"
MASKED = "masked, wide"
MOVING = "moving blocks"

#: Outputs of the layer after a layer of blocks, so that there is a loss.
CLASSES = 10
#: Inputs, hidden neurons, outputs and activation of the whole models.
MODELS: dict[str, tuple[int, int, int, nn.Module]] = {
    "MLP 384-256-77": (384, 256, 77, nn.ReLU()),
    "MLP 768-2048-1000": (768, 2048, 1000, nn.ReLU()),
    "GPT-2 MLP 768-3072-768": (768, 3072, 768, nn.GELU("tanh")),
}
#: Neurons of a layer with a free mask over those of the dense layer of its count: three quarters are zeros.
FREE_FACTOR = 4
#: Shares of zeros of the free masks whose files are weighed.
ZEROS = (0.5, 0.6, 0.75, 0.9)


@dataclass(frozen=True)
class BenchConfig:
    """What ``fpe bench`` measures."""

    sizes: tuple[str, ...] = ("4096x4096", "4096x11008")  # INPUTSxNEURONS of the dense parents of blocks
    free: tuple[str, ...] = ("1024x4096", "4096x4096")  # of layers with free masks
    files: tuple[str, ...] = ("512x512", "1024x4096", "4096x4096")  # of layers that are only saved
    factors: tuple[int, ...] = (2, 4)  # of blocks
    batches: tuple[int, ...] = (1, 8, 64, 512)
    models: tuple[str, ...] = tuple(MODELS)
    rounds: int = 25  # samples of time of each row; of training steps half as many
    seconds: float = 3.0  # for each row and batch size; slower rows take part in fewer rounds
    threads: int | None = None  # of PyTorch and onnxruntime
    compile: bool = True  # whole models, too
    onnx: bool = True
    stream: int = 1 << 30  # bytes that are read to find the memory's bandwidth
    seed: int = 0  # of weights, splits, masks, inputs, and the order of the rows in each round

    def __post_init__(self) -> None:
        threads = 1 if self.threads is None else self.threads
        checked = (("factor", self.factors, 2), ("batches", self.batches, 1), ("rounds", (self.rounds,), 3))
        problems = [
            f"--{name} is {min(values)}; give at least {least}."
            for name, values, least in (*checked, ("threads", (threads,), 1))
            if min(values, default=least) < least
        ]
        for option, sizes, factors in (("sizes", self.sizes, self.factors), ("free", self.free, ())):
            for size in sizes:
                if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size):
                    problems.append(f"--{option} {size!r} is no size; write INPUTSxNEURONS, as 4096x11008.")
                    continue
                problems += _too_small(option, size, factors)
        raise_problems(problems, ArgumentError, "what is to be measured")

    @classmethod
    def quick(cls) -> BenchConfig:
        """Return a configuration that shows in a minute whether everything works."""
        small = cls(sizes=("256x512",), free=("256x512",), files=("128x256",), models=("MLP 384-256-77",))
        return replace(small, factors=(2,), batches=(1, 64), rounds=5, seconds=0.2, stream=1 << 26)

    @property
    def training_batches(self) -> tuple[int, ...]:
        """Samples in a training step."""
        return tuple(b for b in self.batches if b >= 64) or (max(self.batches),)

    def cases(self, devices: Sequence[str] = ("cpu",)) -> list[dict[str, Any]]:
        """Return the cases, each of which is measured in a process of its own."""
        layers = [("layer", size) for size in self.sizes] + [("model", name) for name in self.models]
        found = [(kind, name, factor) for kind, name in layers for factor in self.factors]
        asked: list[dict[str, Any]] = [
            {"kind": kind, "name": name, "factor": factor, "device": device}
            for device in devices
            for kind, name, factor in found
        ]
        if "cpu" in devices:  # sparse products are the CPU's
            others = [("free", size) for size in self.free] + [("files", size) for size in self.files]
            asked += [
                {"kind": kind, "name": size, "factor": FREE_FACTOR, "device": "cpu"} for kind, size in others
            ]
        return asked


def _too_small(option: str, size: str, factors: Sequence[int]) -> list[str]:
    """Name what a size is too small for."""
    inputs, neurons = dimensions(size)
    if option == "free":
        least = 2 * FREE_FACTOR
        if inputs >= least and neurons >= least:
            return []
        return [f"--free {size} is too small for three quarters of zeros; give at least {least}x{least}."]
    problems = []
    for factor in factors:
        # Whole inputs are pruned for the copied outgoing weights and biases; each child keeps one.
        least = (CLASSES + 1) * (factor - 1) + factor
        if inputs < least:
            problems.append(
                f"--sizes {size} has too few inputs to expand by {factor} at the same count; give at "
                f"least {least} inputs, or a smaller factor."
            )
    return problems


def dimensions(size: str) -> tuple[int, int]:
    """Return inputs and neurons of a size such as ``"4096x11008"``."""
    inputs, neurons = size.split("x")
    return int(inputs), int(neurons)


def case_name(case: dict[str, Any]) -> str:
    """Return the short name of a case."""
    name, kind = case["name"], case["kind"]
    if kind != "model":
        name = name.replace("x", " × ")
    if kind in ("free", "files"):
        return f"free mask, {name}" if kind == "free" else f"files, {name}"
    return f"{name}, α = {case['factor']}" + ("" if case["device"] == "cpu" else f", {case['device']}")
