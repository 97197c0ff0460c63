"""Run ``fpe bench`` if it has not run; write docs/results/speed.md, its data and its figures.

Usage: python reproduction/pages/speed.py        (a quarter of an hour on two cores that nothing else uses)

A run that was stopped goes on. Delete fpe-out/bench to measure anew.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from fpe._util.files import read_json, write_atomically, write_json
from fpe_reproduction.bench.cases import BenchConfig
from fpe_reproduction.bench.report import asked_markdown, bench_markdown, case_name, verdicts

HERE = Path(__file__).parents[2] / "docs" / "results"
OUT = Path("fpe-out", "bench")

INTRODUCTION = """# Packed layers: time and memory

`fpe.pack` stores and computes (nearly) only the non-zeros of an expanded network. Is it then as fast and
as small as the dense network that it came from? This page compares it with its parent, with what a user
would do without it, and with the machine's own limits. Everything here is made by `python
reproduction/pages/speed.py`, which runs

```console
$ {command}
```

**{held} of {asked} limits hold**; ✗ marks what does not. Each cell is the worst of all batch sizes, and
where it was.

{table}

![Time relative to the dense parent over batch size](speed/figure.png)

## What is not reached, and why

- *One sample.* The weights of a layer of this size come from memory or a large cache, and the machine
  reads them no faster for blocks than for the dense parent: 1.0 is the least that can be expected of most
  sizes. What is above it is the calls: a block layer makes three small ones (select the inputs, add the
  bias, put the outputs in their order), the dense layer none, and after each layer that streams tens of
  megabytes through the cache they start cold. On small layers calls are all that is measured.
- *512 samples, α = 4.* There are four times as many outputs to write, to add a bias to, and in training to
  send through the ReLU and back: products alone take as long as the parent's. Half of what is above 1 is
  the selection of the inputs, half the pass that adds the bias.
- *Twice as fast as wide with zeros* at α = 2 would need blocks to be faster than the parent: the wide layer
  multiplies just twice as much.
- *CSR and a mask in the forward pass* are compared at one sample with ratios of 10 and 30 in mind, which
  were measured on another machine. Here CSR has 32-bit indices, as MKL takes them, and the mask is
  applied at the memory's speed.
- *Whole models whose readers are as large as the layer* (MLP 768-2048-1000, GPT-2's) pay in whole
  children (`prune="children"`): the layer is blocks, narrower ones, its reader is dense, and the bytes are
  the dense network's. They have 1.3 (α = 2) to 1.6 (α = 4) times the dense network's neurons; bias and
  activation are applied to all of them.
- *Eight groups* have eight times as many blocks. They cost up to a quarter more than α blocks in layers of
  4096 inputs, more in small ones.
- *Codes* are spread into the weight piece by piece where there are more than three samples: then they
  cost, in layers of 4096 inputs, 1.2 to 2.05 times what the wide layer costs; in small layers several times.
  In the whole models below they take 1.23 to 2.81 times the dense network's bytes.

## How it was measured

- Sizes are inputs × neurons, as in `nn.Linear(inputs, neurons)`; α is the expansion factor. All rows of
  one layer and factor are measured in one process. In each round every row takes its turn, in an order
  that is drawn anew, so that whatever slows the machine slows all alike. A turn is as many calls as fill
  5 ms, at least one, after a rest of 3 ms in which waiting threads of another library fall asleep;
  onnxruntime's do not spin either.
- Times are medians with a 95 % interval of the median (by order statistics; of fewer than six samples
  their range). × is the ratio to the dense parent's time of the same round: its median and interval over
  n rounds. Rows that are slow take part in fewer rounds, at least in three. All calls are warmed up,
  compilers have compiled.
- A row is timed only if its outputs are those of the wide layer that it stands for.
- Memory stays with the process, for all rows: glibc would hand the pages of a large output back after
  each call and fault them in again, which takes longer than some products. It is set by {environment}.
  Serving processes with jemalloc or tcmalloc have it so anyway.
- *Stored* counts parameters and buffers; of onnxruntime, the file. *Of bandwidth*: stored bytes over
  time, as a share of what the machine reads of a large tensor; above 100 %, weights came from a cache.
  *Of matrix rate*: two operations for each non-zero weight and sample over time, as a share of a product
  of large matrices.
- *Training* is forward, cross-entropy, backward, Adam and gradients to None, on the layer, ReLU and a
  layer of ten outputs. *Peak* is the most bytes of tensors that live at once in the second step:
  parameters, buffers, moments, batch, and every block of PyTorch's allocator, counted by its own events.
  Buffers of the matrix libraries are not in it.
- CSR has 32-bit indices, and one sample is multiplied as a vector. `torch.nn.utils.prune` is
  `custom_from_mask`, which multiplies by the mask in each forward pass.
"""

MISSED = """## What does not hold

A limit that is marked ✗ above was missed on this machine, in the case and at the batch size that stand
there. The tables below say by how much at each batch size.
"""


def main() -> None:
    """Measure what is missing, and write everything."""
    result = read_json(OUT / "results.json")
    if result is None:
        subprocess.run([Path(sys.executable).parent / "fpe", "bench", "--out", OUT], check=True)
        result = read_json(OUT / "results.json")
    (HERE / "speed").mkdir(exist_ok=True)
    shutil.copyfile(OUT / "figure.png", HERE / "speed" / "figure.png")
    write_json(HERE / "speed" / "results.json", result)
    text = "\n".join([*introduction(result), *accuracy(), *tables(result), made_with(result)])
    write_atomically(HERE / "speed.md", lambda file: file.write_text(text, encoding="utf-8"))


def introduction(result: dict[str, Any]) -> list[str]:
    """Write what was asked, and how it was measured."""
    known = [row["holds"] for row in verdicts(result)["rows"] if row["holds"] is not None]
    lines = [
        INTRODUCTION.format(
            command=command(result["config"]),
            held=sum(known),
            asked=len(known),
            table="\n".join(asked_markdown(result)),
            environment=", ".join(f"`{key}={value}`" for key, value in result["environment"].items()),
        )
    ]
    return lines if all(known) else [*lines, MISSED]


def command(config: dict[str, Any]) -> str:
    """Return the command that measures with this many rounds."""
    rounds = config["rounds"]
    return "fpe bench" if rounds == BenchConfig.rounds else f"fpe bench --rounds {rounds}"


def accuracy() -> list[str]:
    """Show what blocks cost in accuracy; the experiment is one of ``reproduction/pages/vision.py``."""
    question = read_json(HERE / "vision" / "blocks.json")["question"]
    anchor = "".join(c for c in question.lower() if c.isalnum() or c == " ").replace(" ", "-")
    return [
        "## What blocks cost in accuracy",
        "",
        "Points above one partition for each neuron, at the same count, made by `fpe reproduce blocks`; the",
        f"numbers are [with the other results on real data](vision.md#{anchor}).",
        "",
        "![Points above per-neuron random over width, for three factors](vision/blocks.png)",
        "",
    ]


def tables(result: dict[str, Any]) -> list[str]:
    """Write all cases: layers first, then models."""
    lines = []
    for kind, title in (("layer", "## Layers"), ("model", "## Whole models")):
        lines += [title, ""]
        for case in result["cases"]:
            if case["kind"] == kind:
                lines += [f"### {case_name(case)}", "", *bench_markdown(case)]
    return lines


def made_with(result: dict[str, Any]) -> str:
    """Say what made the page."""
    made = result["provenance"]
    parts = [f"fpe {made['fpe']}", f"Python {made['python']}", f"torch {made['torch']}"]
    parts += [f"onnxruntime {made['onnxruntime']}"] if made["onnxruntime"] else []
    parts += [made["machine"], made["instructions"], *([made["gpu"]] if "gpu" in made else [])]
    runs = sorted({case["measured"] for case in result["cases"] if "measured" in case})
    several = f" Its cases were measured in {len(runs)} runs, each case in one." if len(runs) > 1 else ""
    return f"""## Made with

{", ".join(parts)}; read on commit `{made["commit"]}`.{several}
All numbers are in [`speed/results.json`](speed/results.json).
"""


if __name__ == "__main__":
    main()
