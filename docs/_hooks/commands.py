"""The page of the command line: every command with its help, its usage and its options, from click itself."""

import inspect
import re

import click

from fpe.cli.main import main

PAGE, MARK = "reference/command-line.md", "<!-- commands -->"


def on_page_markdown(markdown, page, config, files):
    """Put the commands where the page has its mark."""
    if page.file.src_uri != PAGE:
        return markdown
    before, mark, after = markdown.partition(MARK)
    if not mark:
        raise ValueError(f"{PAGE} has no {MARK}")
    return before + "\n\n".join(described(main, click.Context(main, info_name="fpe"))) + after


def described(command, context, level=2):
    """Yield the parts of a command, then those of its subcommands."""
    yield f"{'#' * level} `{context.command_path}`"
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("\b\n"):  # click keeps its lines as they are
            title, *lines = paragraph[2:].splitlines()
            examples = "\n".join(f"$ {line.strip()}" for line in lines)
            yield f"{title}\n\n```console\n{examples}\n```" if lines else title
        else:
            yield re.sub(r"([*_<|])", r"\\\1", paragraph)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f'```text title="Usage"\n{usage}\n```'
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    rows = [f"| `{name}` | {cell(text)} |" for name, text in filter(None, records) if text]
    if rows:
        yield "\n".join(["| option | meaning |", "| --- | --- |", *rows])
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            known = command.get_command(context, name)
            yield from described(known, click.Context(known, parent=context, info_name=name), level + 1)


def cell(text):
    """Return a help text as a cell of a table."""
    return re.sub(r"([*_<|])", r"\\\1", text.replace("  [default:", " [default:"))
