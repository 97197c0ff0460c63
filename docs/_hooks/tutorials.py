"""Execute the tutorials: each page of docs/tutorials becomes a notebook, and shows what its cells printed.

An executed notebook is kept in build/tutorials until its page or the library changes.
"""

import base64
import hashlib
import re
import tempfile
from pathlib import Path

import jupytext
import nbformat
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "tutorials"
SECONDS = 1800  # a tutorial takes a minute on an idle core

log = get_plugin_logger("tutorials")
notebooks = {}


def is_tutorial(page):
    """Tell whether a page is executed."""
    return page.startswith("tutorials/") and page.endswith(".md") and page != "tutorials/index.md"


def on_files(files, config):
    """Execute all tutorials, and add their notebooks and figures to the site."""
    for page in [file.src_uri for file in files if is_tutorial(file.src_uri)]:
        notebooks[page] = executed(Path(config.docs_dir) / page)
        name = page.removesuffix(".md")
        files.append(File.generated(config, f"{name}.ipynb", content=nbformat.writes(notebooks[page])))
        for number, _, image in figures(notebooks[page]):
            files.append(File.generated(config, f"{name}-{number}.png", content=image))
    return files


def on_page_markdown(markdown, page, config, files):
    """Show each cell of a tutorial with its output, and link the notebook."""
    uri = page.file.src_uri
    if not is_tutorial(uri):
        return markdown
    stem = Path(uri).stem
    drawn = {number: alt for number, alt, _ in figures(notebooks[uri])}
    parts = []
    for number, cell in enumerate(notebooks[uri].cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        parts += [text for output in cell.outputs if (text := shown(output))]
        if number in drawn:
            parts.append(f"![{drawn[number]}]({stem}-{number}.png)")
    title, _, rest = "\n\n".join(parts).partition("\n")
    return f"{title}\n\n[Download this page as an executed notebook]({stem}.ipynb)\n\n{rest}"


def executed(page):
    """Return the executed notebook of a page."""
    source = page.read_text(encoding="utf-8")
    library = b"".join(file.read_bytes() for file in sorted(ROOT.glob("src/fpe/**/*.py")))
    digest = hashlib.sha256(source.encode() + library).hexdigest()
    kept = KEPT / f"{page.stem}-{digest[:16]}.ipynb"
    if kept.exists():
        return nbformat.read(kept, as_version=4)
    log.info("execute %s", page.name)
    notebook = jupytext.reads(source, fmt="md")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel})
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            extra_arguments=["--IPKernelApp.log_level=40"],  # it warns of TCP, on this machine alone
        )
        client.execute()
    KEPT.mkdir(parents=True, exist_ok=True)
    for old in KEPT.glob(f"{page.stem}-*.ipynb"):
        old.unlink()
    nbformat.write(notebook, kept)
    return notebook


def figures(notebook):
    """Yield the number of each cell that draws, its description (a comment "Figure: …"), and the PNG."""
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if image := output.get("data", {}).get("image/png"):
                described = re.search(r"^# Figure: (.+)$", cell.source, re.MULTILINE)
                if described is None:
                    raise ValueError(f"say what the figure shows, in a comment '# Figure: …':\n{cell.source}")
                yield number, described[1], base64.b64decode(image)


def shown(output):
    """Return the Markdown of a cell's output; nothing for figures and for warnings."""
    if output.output_type == "stream":
        return f'```text title="Output"\n{output.text.rstrip()}\n```' if output.name == "stdout" else ""
    data = output.get("data", {})
    if "image/png" in data:
        return ""
    if "text/html" in data:  # a table of pandas, in the style of the page
        html = re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.DOTALL)
        html = re.sub(r"<table[^>]*>", "<table>", re.sub(r' style="[^"]*"', "", html))
        return one_head(re.sub(r"\n\s*", "", html))
    return f'```text title="Output"\n{data["text/plain"]}\n```'


def one_head(html):
    """Put the name of a table's index, which pandas writes into a row of its own, above the index."""
    head = r"<tr><th></th>((?:<th>[^<]*</th>)+)</tr><tr>(<th>[^<]+</th>)(?:<th></th>)+</tr></thead>"
    return re.sub(head, r"<tr>\2\1</tr></thead>", html)
