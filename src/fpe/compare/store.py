"""What made a stored result, and what it depends on."""

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fpe import __version__

#: Libraries whose versions are recorded.
_LIBRARIES = ("torch", "numpy", "scikit-learn", "safetensors")
_PACKAGE = Path(__file__).resolve().parent.parent


def provenance() -> dict[str, Any]:
    """Say what made a result: versions, commit, kind of machine, time. No name of host or user."""
    return {
        "fpe": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _LIBRARIES},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "written": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """Return the commit of the checkout that this package runs from, with ``+`` if its code was changed."""
    here = Path(__file__).resolve().parent.parent
    ask = ["git", "-C", str(here)]
    try:
        tracked = subprocess.run([*ask, "ls-files", "--error-unmatch", __file__], capture_output=True)
        if tracked.returncode:
            return None
        commit = subprocess.run([*ask, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*ask, "status", "--porcelain", "."], capture_output=True, text=True)
    except OSError:
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def depends(work: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return what the result of a task depends on: arguments, code, and versions of libraries.

    Parameters
    ----------
    work : callable
        A function of a module.
    arguments : mapping
        What it gets. Data stand for themselves by their fingerprint; paths play no part.

    Returns
    -------
    dict
        Hashes of the arguments and of the code that the modules of `work`, and of functions among the
        arguments, import; versions.
    """
    functions: list[Any] = [work, *(value for value in arguments.values() if inspect.isfunction(value))]
    files = sorted({str(Path(inspect.getfile(function)).resolve()) for function in functions})
    return {
        "arguments": hashlib.sha256(repr(_plain(arguments)).encode()).hexdigest()[:16],
        "code": code_digest(*files),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def _plain(value: Any) -> Any:
    """Return what an argument says, the same in every process."""
    if isinstance(value, Path):
        return None  # where something lies is not what it is
    if hasattr(value, "fingerprint"):
        return value.fingerprint
    if inspect.isfunction(value):
        return value.__qualname__
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return type(value).__name__, _plain(own)
    if isinstance(value, Mapping):
        return sorted((str(key), _plain(each)) for key, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return value


@functools.cache
def code_digest(*files: str) -> str:
    """Return what stands for code, comments and docstrings aside.

    Parameters
    ----------
    *files : str
        Paths of modules; the modules of fpe that they import, at whatever depth, count too. Without any, all
        modules of fpe do.
    """
    left = [Path(file) for file in files] or sorted(_PACKAGE.rglob("*.py"))
    seen: dict[Path, tuple[str, str]] = {}
    while left:
        path = left.pop()
        if path not in seen:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            left += _imported(tree)
            seen[path] = path.name, _bare(tree)
    return hashlib.sha256(repr(sorted(seen.values())).encode()).hexdigest()[:16]


def _imported(tree: ast.AST) -> Iterable[Path]:
    """Yield the files of the modules of fpe that a module names in imports, those within functions too."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for first, *rest in (name.split(".") for name in names):
            if first != "fpe" and not first.startswith("fpe_"):
                continue
            package = _folder(first)
            file = _module_file(package, rest)
            if file is not None:
                yield file
            elif rest != ["__version__"]:  # a name of the package itself: any module may be meant
                yield from sorted(package.rglob("*.py"))


def _folder(package: str) -> Path:
    return Path(str(importlib.import_module(package).__file__)).parent


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


def commits(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the commits that stored runs, or results made of such, were made with, each once."""
    made: list[str] = []
    for run in runs:
        made += run.get("commits") or [run["provenance"].get("commit") or "no known commit"]
    return list(dict.fromkeys(made))
