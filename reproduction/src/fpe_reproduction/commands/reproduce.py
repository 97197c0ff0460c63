"""``fpe reproduce``: the paper's figures and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fpe._util.files import to_json
from fpe.cli.shared import ManyValues, check_jobs
from fpe.errors import ArgumentError


@click.command(cls=ManyValues, short_help="Make a figure or table of the paper again.")
@click.argument("name")
@click.option("--quick", is_flag=True, help="Fewer networks, trained for a shorter time: does it all work?")
@click.option(
    "--data",
    multiple=True,
    metavar="NAME|FILE|FOLDER",
    help="What to run on, as for fpe fit; may be given again.  [default: those of the experiment]",
)
@click.option("--label", help="Column of labels of a table.  [default: found]")
@click.option("--hidden", type=int, multiple=True, metavar="WIDTH…", help="Widths of the dense networks.")
@click.option("--trials", type=int, help="Networks of each kind and width.  [default: the experiment's own]")
@click.option(
    "--warmup-epochs", type=int, help="Epochs before the expansion.  [default: what suits the data]"
)
@click.option("--epochs", type=int, help="Epochs after it.  [default: what suits the data]")
@click.option("--lr", type=float, help="Adam's learning rate.  [default: what suits the data]")
@click.option("--seed", default=0, show_default=True, help="Seed of everything.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder.  [default: fpe-out/reproduce…]")
@click.option("--jobs", default=-1, help="Processes at a time.  [default: one for each core]")
@click.option("--engine", default="loky", show_default=True, help="What runs them: loky (here) or dask.")
@click.option("--address", help="The Dask scheduler's, such as tcp://10.0.0.1:8786.")
@click.option("--fresh", is_flag=True, help="Discard the networks of an earlier run.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def reproduce(
    name: str,
    quick: bool,
    data: tuple[str, ...],
    label: str | None,
    out: Path | None,
    jobs: int,
    engine: str,
    address: str | None,
    fresh: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Reproduce NAME, a figure or table of the paper, and compare it with the paper.

    NAME is an experiment or a group: paper, boolean, real, dynamic-masks or all; "list" lists the
    experiments. "paper" also judges the paper sentence by sentence. "rivals" compares methods at equal
    counts, on data with names of their own, and is no part of "all". You can interrupt a run; the same
    command resumes it. Experiments share trained networks. Experiments on real data accept any --data, such
    as the embeddings that fpe embed writes.

    \b
    Example:
      fpe reproduce list
      fpe reproduce case-study
      fpe reproduce paper
      fpe reproduce vision --data embeddings/cifar100
      fpe reproduce real --engine dask --address tcp://10.0.0.1:8786
    """  # noqa: D301
    check_jobs(jobs)
    if name == "list":
        from fpe_reproduction.report.text import catalogue_json, catalogue_text

        click.echo(to_json(catalogue_json()) if as_json else catalogue_text())
        return
    if name == "rivals":
        unfit = [name for name, value in {"label": label, "fresh": fresh, **settings}.items() if value]
        _rivals(quick, data, out, jobs, engine, address, as_json, unfit)
        return
    from fpe._util.terminal import progress_bar
    from fpe.data import Dataset
    from fpe_reproduction.cluster import parallel_backend
    from fpe_reproduction.experiments.reproduce import count_tasks
    from fpe_reproduction.experiments.reproduce import reproduce as run
    from fpe_reproduction.experiments.tasks import Request
    from fpe_reproduction.report.charts import draw
    from fpe_reproduction.report.page import write_page
    from fpe_reproduction.report.text import findings_text

    folder = out or Path("fpe-out", "reproduce-quick" if quick else "reproduce")
    request = Request(quick=quick, **{**settings, "hidden": settings["hidden"] or None})

    def told(dataset: Dataset) -> None:
        if not as_json:
            click.echo("\n".join(dataset.lines()) + "\n")

    total = count_tasks(name, request, data)
    with parallel_backend(engine, address, jobs), progress_bar(name, total, not as_json) as advance:
        results = run(name, folder, request, data, label, jobs, fresh, advance, told)
    for result in results.values():
        draw(result, folder / result["name"] / "figure.png")
    page = write_page(folder)
    if name == "paper":
        from fpe_reproduction.paper import SENTENCES, judge, networks, to_frame

        claims = to_frame(judge(SENTENCES, networks(results.values())))
        claims.to_csv(folder / "sentences.csv", index=False)
        if as_json:
            click.echo(to_json(claims.to_dict("records")))
            return
        shown = claims[["where", "the paper says", "verdict"]]
        click.echo(shown.to_string(index=False, header=False))
        click.echo(f"\nsentences  {folder / 'sentences.csv'}\npage       {page}")
        return
    if as_json:
        click.echo(to_json(results))
        return
    for result in results.values():
        click.echo(findings_text(result))
        click.echo(f"figure  {folder / result['name'] / 'figure.png'}\n")
    click.echo(f"page    {page}")


def _rivals(
    quick: bool,
    data: tuple[str, ...],
    out: Path | None,
    jobs: int,
    engine: str,
    address: str | None,
    as_json: bool,
    unfit: list[str],
) -> None:
    from fpe._util.terminal import progress_bar
    from fpe_reproduction.cluster import parallel_backend
    from fpe_reproduction.rivals.contest import DATA, run, tasks
    from fpe_reproduction.rivals.report import accuracies, best

    wrong = [name for name in data if name not in DATA]
    if unfit or wrong:
        given = f"--data {wrong[0]}" if wrong else f"--{unfit[0].replace('_', '-')}"
        raise ArgumentError(
            f"{given} cannot be used with rivals; give --data {', '.join(DATA)}, --quick, --out, --jobs."
        )
    folder = out or Path("fpe-out", "rivals-quick" if quick else "rivals")
    total = sum(1 for _ in tasks(quick, data))
    with parallel_backend(engine, address, jobs), progress_bar("rivals", total, not as_json) as advance:
        frame = run(folder, quick, data, jobs=jobs, on_task=advance)
    frame.to_csv(folder / "runs.csv", index=False)
    found = {"best": best(frame), "methods": accuracies(frame)}
    if as_json:
        click.echo(to_json({key: table.to_dict("records") for key, table in found.items()}))
        return
    for key, table in found.items():
        table.to_csv(folder / f"{key}.csv", index=False)
        click.echo(table.to_string(index=False, float_format="{:.4f}".format) + "\n")
    click.echo(f"tables  {folder}")
