"""Models that a user names on the command line: of their own code, or in a folder of transformers."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from fpe.errors import ArgumentError


def named_model(name: str) -> tuple[Any, Any]:
    """Make or load a model by its name.

    Parameters
    ----------
    name : str
        ``MODULE:CALLABLE``, called without arguments, or a folder with a model of transformers.

    Returns
    -------
    model : nn.Module
        Or whatever the callable returned.
    example_inputs : object or None
        A batch, if the callable returned one too.

    Raises
    ------
    ArgumentError
        If the name means nothing, or the model could not be made.
    """
    return _from_folder(Path(name)) if Path(name).is_dir() else _made(name)


def _from_folder(folder: Path) -> tuple[Any, None]:
    """Load a model of transformers from a folder of this machine."""
    if not (folder / "config.json").is_file():
        raise ArgumentError(f"the folder {folder} has no config.json, which a model of transformers has.")
    try:
        import transformers
    except ImportError as error:
        raise ArgumentError(
            "a model folder needs transformers: pip install 'fixed-parameter-expansion[transformers]'"
        ) from error
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        kind: Any = getattr(transformers, (config.architectures or ["AutoModel"])[0], transformers.AutoModel)
        if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
            return kind.from_pretrained(folder, local_files_only=True), None
        make: Any = kind.from_config if kind is transformers.AutoModel else kind
        return make(config), None
    except Exception as error:  # whatever a broken folder makes of transformers
        raise ArgumentError(f"{folder} could not be loaded: {type(error).__name__}: {error}") from error


def _made(name: str) -> tuple[Any, Any]:
    """Import and call ``module:callable``; return a model and, if it gave one, a batch."""
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ArgumentError(f"{name!r} does not name a model; write MODULE:CALLABLE, such as mynet:make.")
    sys.path.insert(0, "")
    try:
        made: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            made = getattr(made, part)
        made = made()
    except Exception as error:  # the user's own code may fail in any way
        raise ArgumentError(f"{name} could not be made: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove("")
    return made if isinstance(made, tuple) and len(made) == 2 else (made, None)
