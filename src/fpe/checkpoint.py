"""Save and load an expanded model: safetensors, with a JSON manifest in the file's own metadata.

The file holds every tensor of the state dict, masks as booleans, and a manifest (format version,
plan, shapes of the layers that differ from the dense model's). No code is stored and none is run.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fpe._version import __version__
from fpe.adoption import adopt
from fpe.errors import ArgumentError, CheckpointError
from fpe.files import write_atomically
from fpe.graph.layers import PER_NEURON, is_linear, neuron_tensors
from fpe.masked import MASKED, MaskedLayer, MaskedLinear
from fpe.plans import Plan
from fpe.procedure import Weights, mask

FORMAT = 2
_KEY = "fpe"


def save(wide: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write an expanded model's weights, masks and plan; a failure leaves the old file.

    Parameters
    ----------
    wide : nn.Module
        What `fpe.expand` returned, trained or not, also inside ``torch.compile`` or
        ``DistributedDataParallel``, or sharded by ``fully_shard``. It is not changed. Where several
        processes run, the first one writes; all of them must call it if the model is sharded.
    path : path-like
        The file, ``.safetensors`` by custom. Missing parent folders are made.

    Raises
    ------
    ArgumentError
        If the model holds state that is no tensor, which this format cannot hold.
    WriteError
        If the file cannot be written; what stood there before still stands.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    wide = _unwrap(wide)
    tensors, tied = _storable(wide)
    many = torch.distributed.is_available() and torch.distributed.is_initialized()
    if many and torch.distributed.get_rank() != 0:
        return
    manifest = {"fpe": __version__, "model": type(wide).__name__, **shapes_of(wide), "tied": tied}
    metadata = {"format": "pt", _KEY: json.dumps(manifest)}

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:  # its form of an error of the file system
            raise OSError(str(error)) from error

    write_atomically(path, write)


def load(path: str | os.PathLike[str], like: nn.Module) -> nn.Module:
    """Read an expanded model back; the dense model gives the architecture and is not changed.

    Parameters
    ----------
    path : path-like
        What `fpe.save` wrote.
    like : nn.Module
        A model of the dense architecture; its weights do not matter. The new model is on its device.

    Returns
    -------
    nn.Module
        The expanded model, in the types of the file.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated, not one of fpe's, of a later format, or of another
        architecture.
    """
    tensors, manifest = _read(Path(path))
    try:
        modules, plan = _modules(like, manifest)
        wide = copy.deepcopy(like, {id(like.get_submodule(name)): new for name, new in modules.items()})
        for alias, name in manifest["tied"].items():
            tensors[alias] = tensors[name]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} was saved from another architecture than this {type(like).__name__}: {error}. "
            "Give like=… the dense model that was expanded."
        ) from error
    _check_shapes(wide, tensors, path, like)
    own = {**dict(wide.named_parameters()), **dict(wide.named_buffers())}
    for name, tensor in own.items():
        if name in tensors and not name.endswith("_mask"):
            tensor.data = tensor.data.to(tensors[name].dtype)
    wide.load_state_dict(tensors)
    if plan is not None:
        wide.fpe_plan = plan  # type: ignore[assignment]
    return wide


def shapes_of(wide: nn.Module) -> dict[str, Any]:
    """Return the plan and the shapes of an expanded model, fit for JSON: what `reshape_` needs."""
    plan = getattr(wide, "fpe_plan", None)
    stored = plan.to_dict() if isinstance(plan, Plan) else None
    return {"format": FORMAT, "plan": stored, "modules": _widths(wide)}


def reshape_(like: nn.Module, shapes: dict[str, Any]) -> None:
    """Give a dense model, in place, the shape of an expanded one, for a state dict to be loaded into it.

    Parameters
    ----------
    like : nn.Module
        Changed: its layers concerned are replaced by masked ones with weights that mean nothing yet.
    shapes : dict
        What `shapes_of` returned, or its JSON.

    Raises
    ------
    CheckpointError
        If the shapes are of another architecture; the model is then as it was.
    """
    try:
        modules, plan = _modules(like, shapes)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the checkpoint is of another architecture than this {type(like).__name__}: {error}. Give the "
            "dense model that was expanded."
        ) from error
    adopt(like, modules)
    if plan is not None:
        like.fpe_plan = plan  # type: ignore[assignment]


def _modules(like: nn.Module, shapes: dict[str, Any]) -> tuple[dict[str, nn.Module], Plan | None]:
    rebuilt = {name: _rebuilt(like, name, entry) for name, entry in shapes["modules"].items()}
    modules = {name: module for name, module in rebuilt.items() if module is not None}
    return modules, Plan.from_dict(shapes["plan"]) if shapes["plan"] else None


def _unwrap(model: nn.Module) -> nn.Module:
    """Look through torch.compile and DistributedDataParallel."""
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    return model


def _sharded() -> Any:
    """Return the type of a tensor that several processes hold in pieces."""
    if not torch.distributed.is_available():
        return ()
    from torch.distributed.tensor import DTensor

    return DTensor


def _storable(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state's tensors, each stored once, and which names mean which other's tensor."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or tensor.is_meta:
            what = "on the meta device" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise ArgumentError(f"the state {name!r} is {what}; only tensors with values can be saved.")
        tensor = tensor.detach()
        own = tensor.to_local() if isinstance(tensor, _sharded()) else tensor
        place = (own.device, own.data_ptr(), tensor.shape, own.stride())
        if own.numel() and place in first:
            tied[name] = first[place]
            continue
        first[place] = name
        whole = tensor.full_tensor() if isinstance(tensor, _sharded()) else tensor
        stored = whole.bool() if name.endswith("weight_mask") else whole
        stored = stored.cpu().contiguous()
        shares_storage = stored.untyped_storage().nbytes() != stored.nbytes
        tensors[name] = stored.clone() if shares_storage else stored
    return tensors, tied


def _widths(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Describe the modules whose shapes an expansion may have changed."""
    found: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        masked = next((kind for kind in MASKED if isinstance(module, kind)), None)
        per_neuron = next((kind for kind in type(module).__mro__ if kind in PER_NEURON), None)
        if isinstance(module, MaskedLayer) and masked is not None:
            shape = list(module.weight.shape)
            found[name] = {"kind": masked.__name__, "shape": shape, "bias": module.bias is not None}
        elif per_neuron is not None:
            widths = {attribute: getattr(module, attribute) for attribute in PER_NEURON[per_neuron]}
            found[name] = {"kind": per_neuron.__name__, "widths": widths}
    return found


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and manifest, or say what is wrong with the file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"there is no file {path}; give the path of a file that fpe.save wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}); it may be truncated. Save the model again, "
            "or take another copy."
        ) from error
    if _KEY not in metadata:
        raise CheckpointError(
            f"{path} is a safetensors file, but not one of fpe's: its metadata has no {_KEY!r} manifest. "
            "Give a file that fpe.save wrote."
        )
    try:
        manifest = json.loads(metadata[_KEY])
        version = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} has a broken manifest ({error}); save the model again.") from error
    if version != FORMAT:
        raise CheckpointError(
            f"{path} has format {version}, this fpe {__version__} reads format {FORMAT}; "
            f"it was written by fpe {manifest.get('fpe')}: use that version."
        )
    return tensors, manifest


def _rebuilt(like: nn.Module, name: str, entry: dict[str, Any]) -> nn.Module | None:
    """Make the module of the wide model that stands where the dense one has this name, if it is another."""
    module = like.get_submodule(name)
    kinds = {kind.__name__: (kind, plain) for kind, plain in MASKED.items()}
    if entry["kind"] in kinds:
        kind, plain = kinds[entry["kind"]]
        if not (is_linear(module) if kind is MaskedLinear else isinstance(module, plain)):
            was = "linear layer" if kind is MaskedLinear else plain.__name__
            raise TypeError(f"{name!r} is a {type(module).__name__} and was a {was}")
        weight = torch.empty(entry["shape"], device=module.weight.device)  # type: ignore[arg-type]
        bias = weight.new_empty(entry["shape"][0]) if entry["bias"] else None
        return mask(module, Weights(weight, bias, torch.ones_like(weight)))
    if type(module).__name__ != entry["kind"]:
        raise TypeError(f"{name!r} is a {type(module).__name__} and was a {entry['kind']}")
    widths = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["widths"].items()}
    if all(getattr(module, attribute) == width for attribute, width in widths.items()):
        return None
    wide = copy.deepcopy(module)
    for attribute, width in widths.items():
        before = getattr(module, attribute)
        setattr(wide, attribute, width)
        if before == width or attribute != PER_NEURON[type(module)][0]:
            continue
        old, new = (v[0] if isinstance(v, tuple) else v for v in (before, width))
        for tensor in neuron_tensors(wide, old).values():
            tensor.data = tensor.data.new_empty(new, *tensor.shape[1:])
    return wide


def _check_shapes(
    wide: nn.Module, tensors: dict[str, Tensor], path: str | os.PathLike[str], like: nn.Module
) -> None:
    """Refuse tensors that do not fit, before any is copied, and name all that do not."""
    own = wide.state_dict()
    problems = [f"{name} is missing in the file" for name in own if name not in tensors]
    problems += [f"{name} is not in the model" for name in tensors if name not in own]
    problems += [
        f"{name} has shape {tuple(tensor.shape)} in the file, {tuple(own[name].shape)} in the model"
        for name, tensor in tensors.items()
        if name in own and own[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"{path} was saved from another architecture than this {type(like).__name__}: "
            f"{'; '.join(problems[:5])}{more}. Give like=… the dense model that was expanded."
        )
