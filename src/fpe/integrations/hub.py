"""Models in folders and repositories of the Hugging Face Hub, by its conventions.

A folder has ``model.safetensors``, which `fpe.save` writes, ``config.json`` and a card, ``README.md``.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HFValidationError
from torch import nn

from fpe import __version__
from fpe._util.files import read_json, write_atomically, write_json
from fpe._util.modules import network_of, unwrapped
from fpe.compare.best import cell, counts_of, density, prediction, tables, versions
from fpe.errors import ArgumentError, CheckpointError
from fpe.expansion.plan import Plan
from fpe.io.checkpoint import load, save
from fpe.models import ABOUT, mlp_sizes
from fpe.sklearn.loading import load_classifier, load_regressor

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
#: The key of config.json that is fpe's; others are the arguments of a class with `HubMixin`.
KEY = "fpe"
#: Arguments of ``from_pretrained`` that say how files are downloaded.
DOWNLOAD = ("revision", "cache_dir", "force_download", "local_files_only", "token")
LIBRARY = "fixed-parameter-expansion"
#: How estimators are loaded, by what config.json calls them.
LOADERS = {"FPEClassifier": load_classifier, "FPERegressor": load_regressor}


def save_pretrained(
    model: Any,
    save_directory: str | os.PathLike[str],
    *,
    scores: Mapping[str, float] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Save a model, ``config.json`` and a model card in a folder, for `from_pretrained`.

    The card has the counts and the density; for models of ``fpe fit`` also the data, the accuracies, those
    of dense networks beside it, and the versions. It replaces a card that is there.

    Parameters
    ----------
    model : nn.Module, FPEClassifier or FPERegressor
        What `fpe.save` takes, such as ``fpe.load_classifier("best.safetensors")``. Models of transformers
        have another function, `fpe.integrations.huggingface.save_pretrained`.
    save_directory : path-like
        The folder; it is made if it is missing.
    scores : mapping of str to float, optional
        What you measured, for the card, also of a dense network beside it.
    metadata : mapping, optional
        More fields of the card's front matter, such as ``{"license": "mit"}``; those of huggingface_hub's
        ``ModelCardData``.

    Raises
    ------
    ArgumentError
        For a model of transformers, and as by `fpe.save`.
    ModelError, WriteError
        As by `fpe.save`; the old files stay.
    """
    if "PreTrainedModel" in {kind.__name__ for kind in type(model).__mro__}:
        raise ArgumentError(
            f"{type(model).__name__} has a config.json of its own; use save_pretrained and restore_shape of "
            "fpe.integrations.huggingface."
        )
    network, folder = network_of(model), Path(save_directory)
    given: Any = getattr(network, "_hub_mixin_config", None) or {}
    given = given if isinstance(given, dict) else dataclasses.asdict(given)
    own = {"version": __version__, "class": _kind(model), "mlp": mlp_sizes(network), **counts_of(network)}
    text = str(_card(model, scores or {}, metadata or {}))
    save(model, folder / WEIGHTS)
    write_json(folder / CONFIG, {**given, KEY: own})
    write_atomically(folder / CARD, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def from_pretrained(source: str | os.PathLike[str], *, like: nn.Module | None = None, **download: Any) -> Any:
    """Load what `save_pretrained` saved, from a folder or from the Hub.

    Parameters
    ----------
    source : path-like or str
        A folder, or a repository such as ``"user/name"``.
    like : nn.Module, optional
        A model of the dense architecture, as for `fpe.load`. Estimators and what `fpe.mlp` built need none.
        Classes with `HubMixin` have a ``from_pretrained`` of their own, which needs none either.
    **download
        Arguments of ``huggingface_hub.hf_hub_download``, such as ``revision``, ``token``, ``cache_dir``.

    Returns
    -------
    nn.Module, FPEClassifier or FPERegressor
        What was saved; a module in evaluation mode.

    Raises
    ------
    ArgumentError
        If `like` is needed.
    CheckpointError
        If there is no such folder or repository, or if it has no model of fpe.

    Examples
    --------
    >>> import tempfile, fpe
    >>> from fpe.integrations.hub import from_pretrained, save_pretrained
    >>> wide = fpe.expand(fpe.mlp(8, 4, 2, seed=0), factor=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_pretrained(wide, folder, scores={"accuracy": 0.9, "accuracy, dense": 0.8})
    ...     again = from_pretrained(folder)
    >>> again[0].out_features, fpe.count_nonzero(again) == fpe.count_nonzero(wide)
    (8, True)
    """
    config = _file(source, CONFIG, download)
    known = (read_json(config) or {}).get(KEY)
    if not isinstance(known, dict):
        raise CheckpointError(
            f"{source} has a {CONFIG} that is not fpe's; give a folder that save_pretrained wrote."
        )
    kind, weights = known.get("class"), _file(source, WEIGHTS, download)
    if kind in LOADERS:
        return LOADERS[kind](weights)
    if like is None and known.get("mlp") is None:
        raise ArgumentError(
            f"{source} has a {kind}, and does not say how it is built; give like=… a model of the dense "
            "architecture, or call from_pretrained of its class, if that has HubMixin."
        )
    return load(weights, like=like).eval()


def push_to_hub(
    model: Any,
    repo_id: str,
    *,
    scores: Mapping[str, float] | None = None,
    metadata: Mapping[str, Any] | None = None,
    **settings: Any,
) -> str:
    """Upload what `save_pretrained` writes to a repository of the Hub, which is made if it is missing.

    Parameters
    ----------
    model, scores, metadata
        As for `save_pretrained`.
    repo_id : str
        Such as ``"user/name"``.
    **settings
        Those of huggingface_hub's ``ModelHubMixin.push_to_hub``: ``private``, ``token``, ``branch``,
        ``commit_message``, ``create_pr``.

    Returns
    -------
    str
        The address of the commit.
    """
    card = {"scores": scores, "metadata": metadata}
    return str(_Pushed(model).push_to_hub(repo_id, model_card_kwargs=card, **settings))


class HubMixin(ModelHubMixin):
    """Give a class of modules ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.

    They are those of huggingface_hub's ``ModelHubMixin``. ``config.json`` has the arguments of ``__init__``
    that JSON can hold, so that ``from_pretrained`` builds the dense model, and loads the expanded or packed
    one with its shape. A model that is not expanded can be saved too.
    ``scores`` and ``metadata`` of `fpe.integrations.hub.save_pretrained` are given as ``model_card_kwargs``,
    a dict.

    Examples
    --------
    >>> import tempfile, torch, fpe
    >>> from fpe.integrations.hub import HubMixin
    >>> class Net(torch.nn.Module, HubMixin):
    ...     def __init__(self, inputs: int, hidden: int = 4):
    ...         super().__init__()
    ...         self.layers = fpe.mlp(inputs, hidden, 2, seed=0)
    ...
    ...     def forward(self, x):
    ...         return self.layers(x)
    >>> wide = fpe.expand(Net(8), factor=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     wide.save_pretrained(folder)
    ...     again = Net.from_pretrained(folder)
    >>> x = torch.randn(3, 8)
    >>> torch.equal(again(x), wide(x))
    True
    """

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        model_card_kwargs: dict[str, Any] | None = None,
        **settings: Any,
    ) -> str | None:
        """Save the model as the function `save_pretrained` does."""
        save_pretrained(self, save_directory, **(model_card_kwargs or {}))
        if not push_to_hub:
            return None
        name = repo_id or Path(save_directory).name
        return str(self.push_to_hub(name, model_card_kwargs=model_card_kwargs, **settings))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **settings: Any) -> Any:
        """Build the dense model, with other arguments than those of the file if any are given, and load."""
        _file(pretrained_model_name_or_path, CONFIG, {k: settings[k] for k in DOWNLOAD if k in settings})
        return super().from_pretrained(str(pretrained_model_name_or_path), **settings)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **given: Any) -> Any:
        weights = _file(model_id, WEIGHTS, {name: given.pop(name) for name in DOWNLOAD})
        given.pop(KEY, None)  # a class that takes any keyword gets all of config.json
        dense: Any = cls(**given)
        return load(weights, like=dense).eval()


class _Pushed(ModelHubMixin):
    """What `save_pretrained` takes, for huggingface_hub's ``push_to_hub``."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def save_pretrained(self, save_directory: Any, *, model_card_kwargs: Any, **settings: Any) -> None:  # type: ignore[override]
        save_pretrained(self.model, save_directory, **model_card_kwargs)


def _file(source: str | os.PathLike[str], name: str, download: Mapping[str, Any]) -> Path:
    """Return a file of a folder or of a repository."""
    if Path(source).is_dir():
        if not Path(source, name).is_file():
            raise CheckpointError(f"{source} has no {name}; give a folder that save_pretrained wrote.")
        return Path(source, name)
    try:
        return Path(hf_hub_download(str(source), name, **download))
    except (HFValidationError, OSError) as error:
        raise CheckpointError(
            f"{source} is no folder, and {name} of a repository of that name cannot be read "
            f"({type(error).__name__}: {error}). Give a folder that save_pretrained wrote, or 'user/name'."
        ) from error


def _kind(model: Any) -> str:
    """Return the name of a module's class, or of the estimator that a model is, or inherits."""
    kinds = [kind.__name__ for kind in type(model).__mro__]
    return next((kind for kind in kinds if kind in LOADERS), type(unwrapped(model)).__name__)


def _card(model: Any, scores: Mapping[str, float], metadata: Mapping[str, Any]) -> ModelCard:
    """Return the card: what the model says about itself, what was measured, and how it is loaded."""
    network, kind = network_of(model), _kind(model)
    about: dict[str, Any] = {**getattr(network, ABOUT, {}), **counts_of(network)}
    task = "tabular-regression" if kind == "FPERegressor" else "tabular-classification"
    data: dict[str, Any] = {"library_name": LIBRARY, "tags": ["fpe", "sparse"]}
    data |= {"pipeline_tag": task} if kind in LOADERS else {}
    if "measured" in about:
        lines, name = tables(about), about["data"]["name"]
        accuracy = {"metric_type": "accuracy", "metric_value": about["measured"]["test_accuracy"]}
        rows = {"dataset_type": name, "dataset_name": name, "dataset_split": "test"}
        data |= {"model_name": name, "eval_results": [EvalResult(task_type=task, **rows, **accuracy)]}
    else:
        made_by = versions(about.get("provenance", {"fpe": __version__}))
        lines = [f"# {kind}", "", "| | |", "| --- | --- |"]
        lines += [f"| non-zero parameters | {density(about)} |", f"| versions | {made_by} |"]
    if scores:
        lines += [
            "",
            "| score | |",
            "| --- | --- |",
            *(f"| {cell(k)} | {v:.4g} |" for k, v in scores.items()),
        ]
    if isinstance(plan := getattr(network, "fpe_plan", None), Plan):
        lines += ["", "How it was expanded:", "", "```text", str(plan), "```"]
    lines += ["", "Load it; the dot is this folder, or write the name of this repository:", "", "```python"]
    lines += [*_loading(network, kind, about), "```", ""]
    return ModelCard(f"---\n{ModelCardData(**data | dict(metadata)).to_yaml()}\n---\n\n" + "\n".join(lines))


def _loading(network: nn.Module, kind: str, about: Mapping[str, Any]) -> list[str]:
    """Return Python that loads the model."""
    importing = "from fpe.integrations.hub import from_pretrained"
    if kind == "FPEClassifier" and "features" in about:
        return prediction(about, importing, 'from_pretrained(".")')
    if isinstance(network, HubMixin):
        return [f'model = {kind}.from_pretrained(".")']
    like = "" if kind in LOADERS or mlp_sizes(network) is not None else ", like=dense"
    comment = "  # a model of the dense architecture" if like else ""
    return [importing, "", f'model = from_pretrained("."{like}){comment}']
