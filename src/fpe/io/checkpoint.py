"""Save and load an expanded or packed model: safetensors, with a JSON manifest in the file's own metadata.

The file contains each tensor of the state dict, masked parameters and their masks as `fpe.io.compact` says,
and a manifest (format version, plan, shapes of the layers that differ from the dense model's, own types of
the weights that are stored in 16 bits). No code is stored and none is run.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Container
from pathlib import Path
from textwrap import shorten
from typing import Any, cast

import torch
from torch import Tensor, nn

from fpe import __version__
from fpe._util.files import finite, write_atomically
from fpe._util.modules import check_module, closure_problems, network_of, replace_modules_
from fpe.errors import ArgumentError, CheckpointError, ModelError, raise_problems
from fpe.expansion.index_maps import STRUCTURE
from fpe.expansion.plan import Plan
from fpe.graph.stacked import close_stacks_, stacked_layers
from fpe.io.compact import encode_mask, free_values, mask_buffers, masks_of, restore_
from fpe.io.shapes import attach_groups_, group_records, layer_shapes, rebuilt
from fpe.masked import MASK, check_masks, mask_names
from fpe.models import ABOUT, CLASSES, mlp, mlp_sizes
from fpe.packing.summary import Packing

#: Formats of files. Before 6, zeros are stored, and masks as booleans. Formats 2 and 4 are of masked models,
#: 3 and 5 of packed ones. Masks have another name in format 2, and ``zero_positions`` in format 3; the layers
#: know both names.
FORMAT = 6
FORMATS = (2, 3, 4, 5, FORMAT)
#: Types with 16 bits, in which weights can be stored.
STORAGE_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_KEY = "fpe"
#: What files of other endings are.
OTHERS = {".onnx": "an ONNX file", ".pt2": "an archive of torch.export", ".c": "C code"}
OTHERS |= dict.fromkeys((".pt", ".pth", ".bin"), "a file of torch.save")


def save(model: Any, path: str | os.PathLike[str], *, storage_dtype: str | torch.dtype | None = None) -> None:
    """Write an expanded or packed model's weights, masks and plan; if that fails, an old file stays.

    Of masked parameters only the free values are stored, and where they are: one bit for each entry of the
    mask, or less where few are free.

    Parameters
    ----------
    model : nn.Module, FPEClassifier or FPERegressor
        What `fpe.expand` or `fpe.pack` returned, trained or not, also inside ``torch.compile``,
        ``DistributedDataParallel`` or ``AveragedModel``, or sharded by ``fully_shard``. It is not changed.
        Every process that calls this writes its file, as with ``torch.save``. If the model is sharded, all
        processes must call it, and the first of those that give the same path writes. The file of a fitted
        estimator also has the names of its features, its classes or the scaling of its targets, and its
        parameters, for `fpe.load_classifier`.
    path : path-like
        The file, ``.safetensors`` by convention. Missing parent folders are made.
    storage_dtype : {"float16", "bfloat16"} or torch.dtype, optional
        Store the parameters of more than 16 bits in this type, rounded; half of the bytes of float32.
        `fpe.load` gives them their own type again. By default nothing is rounded. Buffers never are.

    Raises
    ------
    ArgumentError
        If the model has state that this format cannot store: no tensor, or one that is packed as 2:4 or
        quantized. The message names what to save instead. Also for another `storage_dtype`, or weights too
        large for float16.
    ModelError
        If a weight is not zero where its mask is (see `fpe.project_`), or is computed by torch's pruning or a
        parametrization.
    WriteError
        If the file cannot be written; an old file stays.

    Examples
    --------
    >>> import tempfile, fpe
    >>> from pathlib import Path
    >>> wide = fpe.expand(fpe.mlp(384, 64, 77, seed=0), factor=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fpe.save(wide, f"{folder}/wide.safetensors")
    ...     fpe.save(wide, f"{folder}/small.safetensors", storage_dtype="float16")
    ...     own, small = (Path(folder, f"{n}.safetensors").stat().st_size for n in ("wide", "small"))
    ...     again = fpe.load(f"{folder}/small.safetensors")
    >>> 4 * fpe.count_nonzero(wide) < own < 1.1 * 4 * fpe.count_nonzero(wide), small < 0.6 * own
    (True, True)
    >>> again[0].weight.dtype
    torch.float32
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    storage = _storage_type(storage_dtype)
    model = network_of(model)
    writes = _checked_everywhere(model, path)
    tensors, tied = _storable(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    rounded = {} if storage is None else _round_(tensors, parameters, storage)
    if not writes:
        return
    manifest = {"format": FORMAT, "fpe": __version__, "model": type(model).__name__, "mlp": mlp_sizes(model)}
    manifest |= {**shapes_of(model), "tied": tied, **({"rounded": rounded} if rounded else {})}
    if getattr(model, CLASSES, None):
        manifest["classes"] = [str(name) for name in getattr(model, CLASSES)]
    if getattr(model, ABOUT, None):
        manifest["about"] = finite(getattr(model, ABOUT))
    metadata = {"format": "pt", _KEY: json.dumps(manifest, separators=(",", ":"))}

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:  # its form of an error of the file system
            raise OSError(str(error)) from error

    write_atomically(path, write)


def load(path: str | os.PathLike[str], *, like: nn.Module | None = None) -> nn.Module:
    """Read an expanded or packed model back; the dense model gives the architecture and is not changed.

    Parameters
    ----------
    path : path-like
        What `fpe.save` wrote.
    like : nn.Module, optional
        A model of the dense architecture; its weights do not matter. The new model is on its device. What
        `fpe.mlp` built (so does ``fpe fit``) needs none.

    Returns
    -------
    nn.Module
        The expanded, or packed, model in the types of the file, with ``fpe_plan`` and ``fpe_packing``, and
        with ``fpe_classes``, the names of the classes, and ``fpe_about``, if the model that was saved had
        them. `fpe.load_classifier` makes an estimator of the file instead.

    Raises
    ------
    ArgumentError
        If `like` is not given and the file does not say how its model is built.
    CheckpointError
        If the file is missing, truncated, not one of fpe's, of a later format, or of another
        architecture.
    """
    if like is not None:
        check_module(like, "like")
    tensors, manifest = _read(Path(path))
    if like is None:
        if manifest.get("mlp") is None:
            raise ArgumentError(
                f"{path} does not say how its {manifest.get('model')} is built, as only models of fpe.mlp "
                "do; give like=… a model of the dense architecture."
            )
        like = mlp(**manifest["mlp"], seed=0)
    raise_problems(closure_problems(like), ModelError, "what a copy of like would lose")
    try:
        with stacked_layers(like):
            modules = _modules(like, manifest)
            model = copy.deepcopy(like, {id(like.get_submodule(name)): new for name, new in modules.items()})
        close_stacks_(model)
        for kind, names in manifest.get("rounded", {}).items():
            tensors |= {name: tensors[name].to(getattr(torch, kind)) for name in names}
        tied = manifest["tied"]
        tensors |= {alias: tensors[name] for alias, name in tied.items()}
        if manifest["format"] >= FORMAT:
            restore_(tensors, model, tied)
            tensors |= {alias: tensors[name] for alias, name in tied.items()}
        masks = mask_names(model)
        for name, own in (*model.named_parameters(), *model.named_buffers()):
            # Masks have the type of their weights, in older files booleans.
            stored = tensors.get(name.removesuffix(MASK) + "weight" if name in masks else name)
            if stored is not None:
                own.data = own.data.to(stored.dtype)
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} was saved from another architecture than this {type(like).__name__}: "
            f"{shorten(str(error), 500)}. Give like=… the dense model that was expanded."
        ) from error
    _note(model, manifest)
    for name, key in ((CLASSES, "classes"), (ABOUT, "about")):
        if manifest.get(key):
            setattr(model, name, manifest[key])
    return model


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a file says about its model's inputs, outputs and origin; empty if it says nothing.

    `CheckpointError` is raised as by `load`; no weights are read.
    """
    about = _read(Path(path), tensors=False)[1].get("about", {})
    return about if isinstance(about, dict) else {}


def described(model: nn.Module) -> dict[str, Any]:
    """Return what a model says about its inputs and outputs, for files of other formats.

    Of ``features`` (names, in their order), ``columns`` (how the columns of a table become them), ``classes``
    (names) and ``target`` (mean and spread by which the outputs of a regression are scaled) those that it
    has.
    """
    about = getattr(model, ABOUT, {})
    found = {"classes": getattr(model, CLASSES, None), "columns": about.get("columns")}
    found["target"] = about.get("target")
    if found["columns"]:
        from fpe.data.encoding import Encoding  # which loads pandas

        found["features"] = Encoding.from_list(found["columns"]).features
    return {name: value for name, value in found.items() if value}


def shapes_of(wide: nn.Module) -> dict[str, Any]:
    """Return the plans and the shapes of an expanded model, fit for JSON: what `reshape_` needs."""
    parts = {name: known for name, part in wide.named_modules() if (known := _known_of(part))}
    whole, modules = parts.pop("", {}), layer_shapes(wide)
    known = {STRUCTURE: vars(wide)[STRUCTURE]} if STRUCTURE in vars(wide) else {}
    return {"plan": None, **whole, "modules": modules, "parts": parts, "groups": group_records(wide), **known}


def _known_of(module: nn.Module) -> dict[str, Any]:
    """Return the plan and the packing of a module, as JSON values."""
    plan, packing = (vars(module).get(name) for name in ("fpe_plan", "fpe_packing"))
    known = {"plan": plan.to_dict()} if isinstance(plan, Plan) else {}
    return {**known, "packing": packing.to_dict()} if isinstance(packing, Packing) else known


def reshape_(like: nn.Module, shapes: dict[str, Any]) -> None:
    """Replace layers of a dense model, in place, by masked or packed ones, for a state dict to be loaded.

    `shapes` is what `shapes_of` returned, or its JSON; a `CheckpointError` says that it is of another
    architecture, and the model is then unchanged.
    """
    try:
        with stacked_layers(like):
            modules = _modules(like, shapes)
            replace_modules_(like, modules)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the checkpoint is of another architecture than this {type(like).__name__}: {error}. Give the "
            "dense model that was expanded."
        ) from error
    _note(like, shapes)


def _modules(like: nn.Module, shapes: dict[str, Any]) -> dict[str, nn.Module]:
    made = {name: rebuilt(like, name, entry) for name, entry in shapes["modules"].items()}
    return {name: module for name, module in made.items() if module is not None}


def _note(model: nn.Module, shapes: dict[str, Any]) -> None:
    """Attach index maps, plans and packings to a model, its parts and its layers."""
    attach_groups_(model, shapes)
    if STRUCTURE in shapes:
        setattr(model, STRUCTURE, shapes[STRUCTURE])
    for name, known in {"": shapes, **shapes.get("parts", {})}.items():
        part = model.get_submodule(name)
        if known.get("plan"):
            part.fpe_plan = Plan.from_dict(known["plan"])  # type: ignore[assignment]
        if known.get("packing"):
            part.fpe_packing = Packing.from_dict(known["packing"])  # type: ignore[assignment]


def _sharded() -> Any:
    """Return the type of sharded tensors, for isinstance."""
    if not torch.distributed.is_available():
        return ()
    from torch.distributed.tensor import DTensor

    return DTensor


def _whole(tensor: Tensor) -> Tensor:
    return cast(Any, tensor).full_tensor() if isinstance(tensor, _sharded()) else tensor


def _checked_everywhere(model: nn.Module, path: str | os.PathLike[str]) -> bool:
    """Check the masks on all processes of a sharded model; tell whether this one writes."""
    refused, writes = None, True
    try:
        check_masks(model, "saving")
    except ModelError as error:
        refused = error
    if any(isinstance(parameter, _sharded()) for parameter in model.parameters()):
        said: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(said, (os.path.abspath(path), refused))
        first = [given for given, _ in said].index(os.path.abspath(path))
        writes = first == torch.distributed.get_rank()
        refused = next((error for _, error in said if error is not None), None)
    if refused is not None:
        raise refused
    return writes


def _storage_type(given: str | torch.dtype | None) -> torch.dtype | None:
    if given is None or given in STORAGE_TYPES.values():
        return given  # type: ignore[return-value]
    if given not in STORAGE_TYPES:
        known = ", ".join(map(repr, STORAGE_TYPES))
        raise ArgumentError(f"storage_dtype is {given!r}; allowed are {known}, or None for the weights' own.")
    return STORAGE_TYPES[given]


def _round_(
    tensors: dict[str, Tensor], parameters: Container[str], storage: torch.dtype
) -> dict[str, list[str]]:
    """Round parameters of more than 16 bits, in place; return the names of those of each type."""
    rounded: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        if name not in parameters or not tensor.is_floating_point() or tensor.element_size() <= 2:
            continue
        made = tensor.to(storage)
        if not torch.equal(made.isfinite(), tensor.isfinite()):
            largest, most = float(tensor[tensor.isfinite()].abs().max()), torch.finfo(storage).max
            raise ArgumentError(
                f"{name!r} has weights up to {largest:.3g}, and {storage} holds at most {most:.3g}; give "
                "storage_dtype='bfloat16', or None for the weights' own type."
            )
        tensors[name] = made
        rounded.setdefault(str(tensor.dtype).removeprefix("torch."), []).append(name)
    return rounded


def _storable(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state's tensors, each stored once and compactly, and the names of another name's tensor."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[Any, str] = {}
    masks, buffers = masks_of(model), mask_buffers(model)
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or tensor.is_meta:
            what = "on the meta device" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise ArgumentError(f"the state {name!r} is {what}; only tensors with values can be saved.")
        tensor = tensor.detach()
        if isinstance(tensor, torch.sparse.SparseSemiStructuredTensor):
            raise ArgumentError(
                f"the state {name!r} is packed as 2:4, which is for the GPU that it was made on; save the "
                "masked model, and pack it again after fpe.load."
            )
        if type(tensor) not in (Tensor, nn.Parameter) and not isinstance(tensor, _sharded()):
            raise ArgumentError(
                f"the state {name!r} is a {type(tensor).__name__}, which this format cannot store; save the "
                "model before it is quantized, and quantize it again after fpe.load."
            )
        if name.endswith(MASK) and name in buffers and buffers[name] not in masks:
            continue  # the whole weight is free
        own = tensor.to_local() if isinstance(tensor, _sharded()) else tensor
        place = (own.device, own.data_ptr(), tensor.shape, own.stride())
        if own.numel() and place in first:
            tied[name] = first[place]
            continue
        first[place] = name
        whole = _whole(tensor)
        if name in masks:
            whole = free_values(whole, _whole(masks[name]))
        stored = encode_mask(whole) if name in buffers else whole.cpu().contiguous()
        shares_storage = stored.untyped_storage().nbytes() != stored.nbytes
        tensors[name] = stored.clone() if shares_storage else stored
    return tensors, tied


def _read(path: Path, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        inside = [f", such as {file}" for file in sorted(path.glob("*.safetensors"))[:1]]
        raise CheckpointError(f"{path} is a folder; give a file that fpe.save wrote{''.join(inside)}.")
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}; give the path of a file that fpe.save wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys() if tensors else ()
            found = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        what = OTHERS.get(path.suffix.lower())
        raise CheckpointError(
            f"{path} is {what}; give a .safetensors file of fpe fit or fpe.save."
            if what
            else f"{path} is not a whole safetensors file ({error}); it may be truncated. Save the model "
            "again, or take another copy."
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
    if version not in FORMATS:
        known = ", ".join(map(str, FORMATS))
        raise CheckpointError(
            f"{path} has format {version}, this fpe {__version__} reads formats {known}; "
            f"it was written by fpe {manifest.get('fpe')}: use that version."
        )
    return found, manifest
