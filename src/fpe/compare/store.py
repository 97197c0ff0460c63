"""What a stored result depends on, and what made it."""

from __future__ import annotations

import ast
import dataclasses
import datetime
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fpe import __version__

#: Libraries whose versions are recorded.
LIBRARIES = ("torch", "numpy", "scikit-learn", "safetensors")
PACKAGE = Path(__file__).resolve().parent.parent


def provenance() -> dict[str, Any]:
    """Return what made a result: versions, commit, kind of machine, time; not the host's or user's name."""
    return {
        "fpe": __version__,
        "commit": _commit(),
        **_versions(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "written": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _commit() -> str | None:
    """Return the commit of the checkout that fpe runs from, with ``+`` if its code was changed since."""

    def git(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(PACKAGE), *command], capture_output=True, text=True)

    try:
        if git("ls-files", "--error-unmatch", __file__).returncode:
            return None
        commit = git("rev-parse", "--short=12", "HEAD").stdout.strip()
        return commit + ("+" if git("status", "--porcelain", ".").stdout.strip() else "")
    except OSError:
        return None


def commits(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the commits that made stored runs, or results made of such, each once."""
    made: list[str] = []
    for run in runs:
        made += run.get("commits") or [run["provenance"].get("commit") or "no known commit"]
    return list(dict.fromkeys(made))


def depends(work: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return what the result of a task depends on: hashes of its arguments and code, and versions.

    Data count by their fingerprint, and paths not at all. The code is that of the modules of `work` and of
    functions among the arguments, and of all modules that these import.
    """
    functions: list[Any] = [work, *(value for value in arguments.values() if inspect.isfunction(value))]
    files = sorted({str(Path(inspect.getfile(function)).resolve()) for function in functions})
    hashed = hashlib.sha256(repr(_plain(arguments)).encode()).hexdigest()[:16]
    return {"arguments": hashed, "code": code_digest(*files), **_versions()}


def _plain(value: Any) -> Any:
    """Return an argument as plain data, the same in every process."""
    if isinstance(value, Path):
        return None
    if hasattr(value, "fingerprint"):
        return value.fingerprint
    if inspect.isfunction(value):
        return value.__qualname__
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return type(value).__name__, _plain(fields)
    if isinstance(value, Mapping):
        return sorted((str(key), _plain(each)) for key, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return value


@functools.cache
def code_digest(*files: str) -> str:
    """Return a hash of the code of modules and of the fpe modules they import; by default of all of fpe.

    Comments and docstrings do not count. C sources beside a module do, whole.
    """
    queue = [Path(file) for file in files] or sorted(PACKAGE.rglob("*.py"))
    seen: dict[Path, tuple[str, str]] = {}
    while queue:
        path = queue.pop()
        if path not in seen:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            queue += _imported(tree)
            seen[path] = path.name, _bare(tree)
            seen |= {c: (c.name, c.read_text(encoding="utf-8")) for c in path.parent.glob("*.c")}
    return hashlib.sha256(repr(sorted(seen.values())).encode()).hexdigest()[:16]


def _imported(tree: ast.AST) -> Iterator[Path]:
    """Yield the files of the fpe modules that a module imports, also within functions."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for first, *rest in (name.split(".") for name in names):
            if first == "fpe" or first.startswith("fpe_"):
                package = Path(str(importlib.import_module(first).__file__)).parent
                file = _module_file(package, rest)
                if file is not None:
                    yield file
                elif rest != ["__version__"]:  # a name of the package itself, which may be of any module
                    yield from sorted(package.rglob("*.py"))


def _module_file(package: Path, parts: list[str]) -> Path | None:
    for end in range(len(parts), 0, -1):
        path = package.joinpath(*parts[:end])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


def _bare(tree: ast.Module) -> str:
    """Return the code of a module without comments and docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
