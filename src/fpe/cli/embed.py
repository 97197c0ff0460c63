"""``fpe embed``: images and texts to embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fpe._util.files import to_json
from fpe.cli.shared import SHOWN


@click.command(context_settings=SHOWN, short_help="Turn images or texts into embeddings.")
@click.argument("source")
@click.option(
    "--encoder",
    metavar="NAME|FOLDER",
    help="CLIP, DINOv2 or any other AutoModel, or a sentence encoder.  [default: CLIP ViT-B/16 or MiniLM]",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder.  [default: embeddings/SOURCE]")
@click.option("--label", help="Column of labels.  [default: found by its name]")
@click.option("--column", help="Column of images or texts.  [default: images, or the longest texts]")
@click.option("--test", metavar="FILE", help="A table, the test part of another one.")
@click.option("--classes", type=int, help="Take only this many classes, chosen at random.")
@click.option("--seed", default=0, help="Of that choice.")
@click.option("--normalize/--no-normalize", default=True, help="Scale each to length 1.")
@click.option("--dtype", default="float16", metavar="[float16|float32]", help="Type of what is stored.")
@click.option("--half", is_flag=True, help="Let the encoder compute in half precision too.")
@click.option("--format", default="safetensors", metavar="[safetensors|parquet]", help="Of shards.")
@click.option("--shard-size", default=4096, help="Embeddings of a shard.")
@click.option("--batch-size", default=64, help="Items at a time.")
@click.option("--device", help="Such as cpu or cuda:1.  [default: a GPU if there is one]")
@click.option("--workers", type=int, help="Processes that read images.  [default: 1; beside a GPU 8]")
@click.option("--fresh", is_flag=True, help="Remove the shards of an earlier run.")
@click.option("--skip-broken", is_flag=True, help="Leave out and list images that cannot be read.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def embed(source: str, out: Path | None, as_json: bool, **settings: Any) -> None:
    """Embed SOURCE once, into a folder that fpe fit and fpe reproduce read.

    SOURCE is a folder with a folder of images for each class (also below train and test), a table with
    images or texts (.csv, .tsv, .parquet, .jsonl, also compressed), a folder with tables train and test, or
    a data set of the Hugging Face hub as OWNER/NAME. You can interrupt a run; the same command resumes it,
    and makes shards again whose files have changed.

    \b
    Example:
      fpe embed uoft-cs/cifar100 --out embeddings/cifar100
      fpe embed ./imagenet --classes 100 --out embeddings/imagenet-100
      fpe embed questions.csv --label intent
      fpe fit embeddings/cifar100
    """  # noqa: D301
    from fpe._util.terminal import loading_quietly, progress_bar
    from fpe.data.embed.images import listed
    from fpe.data.embed.run import embed as run
    from fpe.data.embed.shards import MANIFEST

    folder = out or Path("embeddings", Path(source).resolve().stem)
    with loading_quietly(), progress_bar(folder.name, 0, not as_json) as advance:
        manifest = run(source, folder, on_batch=lambda done, of: advance("", done, of), **settings)
    if as_json:
        click.echo(to_json(manifest))
        return
    for part, count in manifest["items"].items():
        click.echo(f"{part:<6} {count:>9,} embeddings in {manifest['shards'][part]} shards")
    if manifest["column"] is not None:
        click.echo(f"{manifest['kind']}s of column {manifest['column']!r}, labels of {manifest['label']!r}")
    click.echo(f"{len(manifest['classes'])} classes, encoder {manifest['encoder']}")
    for name, why in (pair for own in manifest["broken"].values() for pair in own.items()):
        click.echo(f"left out: {name}, which cannot be read ({why})")
    click.echo(listed(manifest["left_out"]), nl=False)
    for note in manifest["notes"]:
        click.echo(f"note: {note}")
    click.echo(f"embeddings  {folder / MANIFEST}\n  next: fpe fit {folder}")
