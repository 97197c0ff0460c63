"""What is measured: sizes, factors, batches, rounds; checked before anything runs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fpe.errors import ArgumentError, raise_problems

#: Outputs of the layer that reads the measured one, so that there is a loss.
CLASSES = 10
#: From this many samples on a training step is measured.
TRAINED_FROM = 64


@dataclass(frozen=True)
class BenchConfig:
    """What ``fpe bench`` measures.

    Attributes
    ----------
    sizes : tuple of str
        Linear layers as ``"INPUTSxNEURONS"``, the order of ``nn.Linear``.
    factors : tuple of int
        Expansion factors.
    batches : tuple of int
        Samples in a forward pass. Training steps are measured at those of 64 or more, else at the largest.
    models : tuple of str
        Whole models beside the layers, by their names in `fpe_reproduction.bench.models.MODELS`.
    rounds : int
        Samples of time of the dense parent and of the packed layer; of training steps half as many.
    seconds : float
        What a row may take of each batch size; slower rows take part in fewer rounds, at least in three.
    threads : int or None
        Threads of PyTorch and onnxruntime; None for PyTorch's default.
    onnx : bool
        Whether onnxruntime is measured, where it is installed.
    stream : int
        Bytes that are read to find the memory's bandwidth.
    seed : int
        Of weights, splits, inputs, and of the order of the rows in each round.
    """

    sizes: tuple[str, ...] = ("512x512", "1024x4096", "4096x4096", "4096x11008")
    factors: tuple[int, ...] = (2, 4)
    batches: tuple[int, ...] = (1, 8, 64, 512)
    models: tuple[str, ...] = ("MLP 384-256-77", "MLP 768-2048-1000", "GPT-2 MLP 768-3072-768")
    rounds: int = 25
    seconds: float = 3.0
    threads: int | None = None
    onnx: bool = True
    stream: int = 1 << 30
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [*self._bad_numbers(), *self._bad_sizes()]
        raise_problems(problems, ArgumentError, "what is to be measured")

    @classmethod
    def quick(cls) -> BenchConfig:
        """Return what shows in half a minute whether everything works; its times mean little."""
        return cls(
            sizes=("256x512",),
            factors=(2,),
            batches=(1, 64),
            models=("MLP 384-256-77",),
            rounds=5,
            seconds=0.2,
            stream=1 << 26,
        )

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> BenchConfig:
        """Make the configuration again from what `to_dict` returned, or from its JSON."""
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, fit for JSON."""
        record = dataclasses.asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in record.items()}

    @property
    def training_batches(self) -> tuple[int, ...]:
        """Samples in a training step."""
        return tuple(b for b in self.batches if b >= TRAINED_FROM) or (max(self.batches),)

    def cases(self, devices: Sequence[str] = ("cpu",)) -> list[dict[str, Any]]:
        """Return what is measured one after the other, each in a process of its own."""
        cases: list[dict[str, Any]] = []
        for device in devices:
            for size in self.sizes:
                inputs, neurons = parse_size(size)
                for factor in self.factors:
                    what = {"kind": "layer", "name": size, "inputs": inputs, "neurons": neurons}
                    cases.append({**what, "factor": factor, "device": device})
            for name in self.models:
                cases += [
                    {"kind": "model", "name": name, "factor": f, "device": device} for f in self.factors
                ]
        return cases

    def _bad_numbers(self) -> list[str]:
        problems = []
        for name, values, least in (
            ("factor", self.factors, 2),
            ("batches", self.batches, 1),
            ("rounds", (self.rounds,), 3),
            ("threads", () if self.threads is None else (self.threads,), 1),
        ):
            bad = [value for value in values if value < least]
            if bad:
                problems.append(f"--{name} is {bad[0]}; give at least {least}.")
        return problems

    def _bad_sizes(self) -> list[str]:
        problems = []
        for size in self.sizes:
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size):
                problems.append(
                    f"--sizes {size!r} is no size; write INPUTSxNEURONS, such as 4096x11008 for "
                    "nn.Linear(4096, 11008)."
                )
                continue
            for factor in self.factors:
                # Copies of outgoing weights and biases are paid for by whole inputs; each child keeps one.
                least = (CLASSES + 1) * (factor - 1) + factor
                inputs = parse_size(size)[0]
                if factor > 1 and inputs < least:
                    problems.append(
                        f"--sizes {size} with factor {factor}: {inputs} inputs cannot be shared out and pay "
                        f"for the copies; give at least {least} inputs, or a smaller factor."
                    )
        return problems


def parse_size(size: str) -> tuple[int, int]:
    """Return (inputs, neurons) of a size such as ``"4096x11008"``."""
    inputs, neurons = size.split("x")
    return int(inputs), int(neurons)
