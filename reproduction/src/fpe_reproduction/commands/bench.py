"""``fpe bench``: packed layers against rivals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fpe._util.files import to_json
from fpe.cli.shared import ManySizes
from fpe.errors import ArgumentError


@click.command(cls=ManySizes, short_help="Measure packed layers against the dense parent.")
@click.option(
    "--sizes", multiple=True, metavar="INPUTSxNEURONS…", help="Layers.  [default: 4096x4096 4096x11008]"
)
@click.option(
    "--free", multiple=True, metavar="INPUTSxNEURONS…", help="Free masks.  [default: 1024x4096 4096x4096]"
)
@click.option("--factor", "factors", type=int, multiple=True, metavar="FACTOR…", help="[default: 2 4]")
@click.option("--batches", type=int, multiple=True, metavar="SAMPLES…", help="[default: 1 8 64 512]")
@click.option("--models/--no-models", default=True, show_default=True, help="Measure whole models too.")
@click.option("--compile/--no-compile", default=True, show_default=True, help="Compile whole models too.")
@click.option("--rounds", type=int, help="Samples of each time.  [default: 25]")
@click.option("--threads", type=int, help="Threads of PyTorch and onnxruntime.  [default: PyTorch's]")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), help="[default: the CPU, and a GPU if there is one]"
)
@click.option("--seed", default=0, show_default=True, help="Seed of everything.")
@click.option("--quick", is_flag=True, help="Small layers and a small model, in a minute: does it all work?")
@click.option("--out", type=click.Path(path_type=Path), help="Folder.  [default: fpe-out/bench]")
@click.option("--fresh", is_flag=True, help="Discard the cases of an earlier run.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def bench(
    models: bool,
    device: str | None,
    quick: bool,
    out: Path | None,
    fresh: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Measure time and memory of packed layers, in turns with the dense parent of the same count.

    Measured are blocks in large layers and whole models (also compiled, and in onnxruntime), training steps
    with blocks whose inputs change, layers with free masks of 75 % zeros, and the files of free masks. The
    full run takes about half an hour on two cores; nothing else should use them meanwhile. Each time is a
    median with its 95 % interval, each ratio is taken within a round. You can interrupt a run; the same
    command resumes it. Cases that were measured with the same settings, code and versions are not measured
    again.

    \b
    Example:
      fpe bench --quick
      fpe bench --sizes 4096x11008 --free 1024x4096 --factor 2 4 --batches 1 64
    """  # noqa: D301
    from dataclasses import replace

    import torch

    from fpe._util.terminal import progress_bar
    from fpe_reproduction.bench.cases import BenchConfig
    from fpe_reproduction.bench.report import bench_text
    from fpe_reproduction.bench.run import failed, run_bench

    given = {key: value for key, value in settings.items() if value not in (None, ())}
    if not given.pop("compile"):
        given["compile"] = False
    if not models:
        given["models"] = ()
    config = replace(BenchConfig.quick() if quick else BenchConfig(), **given)
    folder = out or Path("fpe-out", "bench-quick" if quick else "bench")
    there = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    if device not in (None, *there):
        raise ArgumentError(
            f"--device {device}: PyTorch finds no such device; available: {', '.join(there)}."
        )
    devices = there if device is None else (device,)
    with progress_bar("bench", len(config.cases(devices)), not as_json) as advance:
        result = run_bench(config, folder, devices=devices, advance=advance, fresh=fresh)
    if as_json:
        click.echo(to_json(result))
    else:
        click.echo(bench_text(result))
        click.echo(f"\nresults  {folder / 'results.json'}")
    failure = failed(result)
    if failure is not None:
        raise failure
