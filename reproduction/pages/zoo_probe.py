"""Take one model of the zoo through all steps; a cell says yes only if the step was done and checked.

What is found is compared with the hidden layers that zoo_list.py names, and judged by the oracle
of the tests, which knows nothing of fpe.
"""

from __future__ import annotations

import copy
import functools
import multiprocessing
import os
import re
import resource
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from zoo_models import Entry, use_timm

import fpe
from fpe.graph import NeuronGroup, find_groups

#: Seconds that a model may compute, and may take: the machine can be busy.
COMPUTE, WAIT = 300, 3600
STEPS = ("right", "expanded", "count_exact", "trains", "saved_and_loaded", "packed")
Cells = dict[str, Any]


class Probe:
    """One model; each step says whether its result is right."""

    def __init__(self, entry: Entry) -> None:
        from zoo import answer

        self.entry, self.answer = entry, answer
        self.model, self.batch = entry.build()
        self.model.eval()
        self.dense = sum(p.numel() for p in self.model.parameters())
        self.wide: nn.Module = self.model

    def found(self) -> Cells:
        """Compare what fpe finds with what is named by hand: how many neurons, which layers, why not."""
        expected = hidden_layers(self.model, self.entry.hidden)
        if not expected:
            raise ValueError(f"no layer is called {self.entry.hidden}")
        found = find_groups(self.model, self.batch)
        self.groups: tuple[NeuronGroup, ...] = found.groups
        names = {name.replace(".stacked.", ".") for group in found.groups for name in group.producers}
        reasons = {skip.name.replace(".stacked.", "."): skip.reason for skip in found.skipped}
        missing = {name: reasons.get(name, "no reason is given") for name in expected if name not in names}
        neurons = sum(expected[name] for name in names if name in expected)
        return {
            "neurons": sum(expected.values()),
            "found": neurons,
            "missing": missing,
            "others": sorted(names - expected.keys()),
        }

    def right(self) -> bool:
        """Judge all that is found by the oracle: whole copies of all neurons compute what the model does.

        It is in double precision; but grouped products of experts have none, and some models cast to single
        precision themselves. Groups that share a consumer's inputs with others are copied one by one.
        """
        if not any(".stacked." in group.name for group in self.groups):
            with suppress(RuntimeError):
                return self.same_if_copied(self.groups, single=False)
        try:
            return self.same_if_copied(self.groups, single=True)
        except RuntimeError:
            each = [(group,) for group in self.groups if not self.refused(group)]
            return all(self.same_if_copied(group, single=True) for group in each)

    def refused(self, group: NeuronGroup) -> bool:
        """Tell whether fpe refuses to expand a group that it found, as where its width is written down."""
        try:
            fpe.expand(self.model, 2, layers=[group.name], example_inputs=self.batch)
        except fpe.FPEError:
            return True
        return False

    def same_if_copied(self, groups: tuple[NeuronGroup, ...], single: bool) -> bool:
        from oracle import copied, double, without_chance

        model, batch = without_chance(copy.deepcopy(self.model)), self.batch
        if not single:
            model, batch = double(model, batch)
        wide = copied(model, [vars(group) for group in groups], 2)
        if sum(p.numel() for p in wide.parameters()) <= self.dense:
            raise ValueError("the oracle copied nothing")
        same = True
        for training in (False, True):
            pair = []
            for each in (model, wide):
                torch.manual_seed(0)
                with torch.no_grad():
                    pair.append(self.answer(copy.deepcopy(each).train(training), batch))
            same &= torch.allclose(pair[0], pair[1], rtol=1e-3 if single else 1e-4, atol=1e-5)
        return same

    def expanded(self) -> bool:
        self.wide = fpe.expand(self.model, 2, example_inputs=self.batch).eval()
        return self.output(self.wide).shape == self.output(self.model).shape

    def count_exact(self) -> bool:
        """Count all entries that no mask holds at zero, here and by fpe."""
        return self.dense == fpe.count_nonzero(self.wide) == unmasked(self.wide)

    def trains(self) -> bool:
        """Ten steps of Adam, without dropout, lower the loss and leave masked weights zero."""
        from oracle import without_chance

        model, losses = without_chance(self.wide.train()), []
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
        for _ in range(11):
            optimizer.zero_grad()
            loss = self.answer(model, self.batch).square().mean()
            losses.append(loss.item())
            loss.backward()
            if len(losses) <= 10:
                optimizer.step()
        model.eval()
        held = all((m.weight[m.fpe_mask == 0] == 0).all() for m in masked(model))
        return losses[-1] < losses[0] and held and fpe.count_nonzero(model) == self.dense

    def saved_and_loaded(self) -> bool:
        """The trained model is read again with the same outputs, bit for bit."""
        with tempfile.TemporaryDirectory() as folder:
            fpe.save(self.wide, Path(folder, "wide.safetensors"))
            again = fpe.load(Path(folder, "wide.safetensors"), like=self.model).eval()
        return torch.equal(self.output(again), self.output(self.wide))

    def packed(self) -> bool:
        """The trained model computes the same from its non-zeros."""
        return close(self.output(fpe.pack(self.wide).eval()), self.output(self.wide), 1e-5)

    def compiled(self) -> bool:
        wide = fpe.expand(self.model, 2, example_inputs=self.batch).eval()
        return close(self.output(torch.compile(copy.deepcopy(wide))), self.output(wide), 1e-4)

    @torch.no_grad()
    def output(self, model: Any) -> Tensor:
        torch.manual_seed(0)
        return self.answer(model, self.batch)


def hidden_layers(model: nn.Module, pattern: str) -> dict[str, int]:
    """Return the number of outputs of each layer whose name a pattern matches, experts counted each."""
    named = {
        name: getattr(module, "weight", None)
        for name, module in model.named_modules()
        if not isinstance(module, nn.Embedding)
    }
    outputs = {}
    for name, weight in named.items():
        if isinstance(weight, Tensor) and weight.dim() >= 2 and re.fullmatch(pattern, name):
            module: Any = model.get_submodule(name)
            plain = getattr(module, "out_features", getattr(module, "out_channels", None))
            outputs[name] = plain or (weight.shape[1] if type(module).__name__ == "Conv1D" else len(weight))
    for name, weight in model.named_parameters():
        if weight.dim() == 3 and re.fullmatch(pattern, name):
            outputs[name] = len(weight) * max(weight.shape[1:])
    return outputs


def masked(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, fpe.MaskedLayer)]


def unmasked(model: nn.Module) -> int:
    """Count the entries of parameters that no mask holds at zero."""
    held = sum(int((m.fpe_mask == 0).sum()) for m in masked(model) if m.fpe_mask is not None)
    return sum(p.numel() for p in model.parameters()) - held


def close(a: Tensor, b: Tensor, rtol: float) -> bool:
    return torch.allclose(a, b, rtol=rtol, atol=1e-5)


def cells_of(entry: Entry) -> Cells:
    """Take a model through the steps; name what goes wrong."""
    cells: Cells = {}
    try:
        probe = Probe(entry)
        cells |= probe.found()
    except Exception as error:  # also of other libraries
        return cells | {"crash": said(error)}
    for step in STEPS:
        cells[step] = attempt(getattr(probe, step))
        if step == "expanded" and cells[step] != "yes":
            break
    return cells


def compiled_cell(entry: Entry) -> Cells:
    return {"compiled": attempt(lambda: Probe(entry).compiled())}


def attempt(step: Callable[[], bool]) -> str:
    try:
        return "yes" if step() else "no"
    except Exception as error:
        return f"{'refused' if isinstance(error, fpe.FPEError) else 'no'} ({said(error)})"


def said(error: Exception) -> str:
    lines = [line.strip(" -") for line in str(error).strip().splitlines() if not line.endswith(":")] or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


@functools.cache
def prepare() -> None:
    """Import once what all processes need."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    use_timm()  # before transformers, which imports torchvision where the path leads to one
    import transformers  # noqa: F401

    import foreign_gates  # noqa: F401
    from oracle import copied  # noqa: F401

    torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    fpe.pack(fpe.expand(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), 2))


def probed(code: str, compiled: bool, **fields: Any) -> Cells:
    """Probe a model in a process of its own, so that a crash, or too much time, is one row.

    `code` is a digest of the files of the zoo: results of others are made again.
    """
    prepare()
    ours, theirs = (context := multiprocessing.get_context("fork")).Pipe(duplex=False)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (COMPUTE, COMPUTE))
        theirs.send((compiled_cell if compiled else cells_of)(Entry(**fields)))

    process = context.Process(target=work)
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(WAIT) else {"crash": f"stopped after {WAIT} s"}
    except EOFError:
        process.join()
        return {"crash": f"its process ended with code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def task(entry: Entry, code: str, compiled: bool = False) -> dict[str, Any]:
    """Return the arguments of `probed` for a model."""
    return {**asdict(entry), "code": code, "compiled": compiled}
