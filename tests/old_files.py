"""Write files as earlier versions did: zeros and all, masks as booleans, with the names of their time."""

import json

from safetensors.torch import save_file

from fpe.io.checkpoint import shapes_of
from fpe.masked import MASK, mask_names
from fpe.models import mlp_sizes


def save_as(model, path, format):
    """Write a masked model as format 2 or 4, or a packed one as format 3 or 5."""
    masks = mask_names(model)
    tensors = {
        name: (tensor.bool() if name in masks else tensor).clone().contiguous()
        for name, tensor in model.state_dict().items()
    }
    kind, sizes = type(model).__name__, mlp_sizes(model)
    manifest = {"fpe": "0.1.0", "model": kind, "mlp": sizes, "format": format, **shapes_of(model), "tied": {}}
    text = json.dumps(manifest)
    for since, name, before in ((4, MASK, "weight_mask"), (5, "zero_positions", "holes")):
        if format < since:
            tensors = {key.replace(name, before): tensor for key, tensor in tensors.items()}
            text = text.replace(name, before)
    save_file(tensors, path, metadata={"format": "pt", "fpe": text})
