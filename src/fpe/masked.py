"""Layers whose masked weights stay exactly zero, whatever trains them; what counts as non-zero.

The mask acts on the gradient: the forward pass is the plain layer's, and masked entries, zero at the start,
receive a zero gradient. An optimizer that steps by the gradient alone then never moves them. Being part of
the forward pass, this survives copying, pickling, loading and compiling. A weight that is computed, or given
from elsewhere, is multiplied by the mask instead. Whatever writes to a weight directly can bypass the mask:
`project_` repairs that, `check_masks` refuses it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpe._util.modules import check_module
from fpe.errors import ModelError, raise_problems


class _MaskGradient(torch.autograd.Function):
    """Identity forward; the gradient times the mask backward, and the whole gradient for a probe."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, mask: Tensor, probe: Tensor | None) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.probed = inputs[2] is not None

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None]:
        (mask,) = ctx.saved_tensors
        return grad * mask, None, grad if ctx.probed else None


def _mask_gradient(weight: Tensor, mask: Tensor, probe: Tensor | None) -> Tensor:
    """Apply `_MaskGradient`, without the slow part that only transforms and compilers need."""
    plain = not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())
    own: Any = super(torch.autograd.Function, _MaskGradient) if plain else _MaskGradient
    return cast(Tensor, own.apply(weight, mask, probe))


#: The name of a masked layer's buffer with its mask: one that neither torch nor users take.
MASK = "fpe_mask"
#: The name of the buffer with the mask of the biases, if there is one.
BIAS_MASK = "fpe_bias_mask"
#: What the buffer was called in files of earlier versions.
_OLD_MASK = "weight_mask"
#: Entries of a mask that are summed at a time: few enough for the cache, and for an exact sum in float32.
_CHUNK = 1 << 18


class HasMasks(nn.Module):
    """A layer that masks some of the entries of its parameters."""

    def free(self, name: str) -> Tensor | None:
        """Return a mask over the parameter `name`, not 0 where an entry is free; None if all are."""
        return None

    @torch.no_grad()
    def project(self) -> None:
        """Set the masked entries to exactly zero, in place, NaN too."""
        for parameter, mask in self._masked():
            parameter.masked_fill_(placed_like(mask, parameter) == 0, 0)

    def _masked(self) -> list[tuple[Any, Any]]:
        pairs = [(p, self.free(name)) for name, p in self.named_parameters(recurse=False)]
        return [(parameter, mask) for parameter, mask in pairs if mask is not None]

    def _nonzero_masked(self) -> int:
        """Count the masked entries that are not zero; 0 where there are no values."""
        return sum(0 if p.is_meta or m.is_meta else past_mask(p, m) for p, m in self._masked())


class MaskedLayer(HasMasks):
    """The base of the masked layers, whose weight is zero, and stays zero, where the mask is."""

    weight: Any
    bias: Any
    fpe_mask: Tensor
    fpe_bias_mask: Tensor | None
    #: A leaf whose ``grad`` gathers the weight's whole gradient; set by a rewirer.
    _probe: Tensor | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer(MASK, torch.ones_like(self.weight, requires_grad=False))
        self.register_buffer(BIAS_MASK, None)

    def _free_weight(self) -> Tensor:
        """Return the weight, through which no gradient reaches a masked entry."""
        weight: Any = self.weight
        if not isinstance(weight, nn.Parameter):  # computed, or given from elsewhere: not zero at the mask
            weight = weight * self.fpe_mask
            if self._probe is None:
                return cast(Tensor, weight)
        return _mask_gradient(weight, self.fpe_mask, self._probe)

    def _free_bias(self) -> Any:
        """Return the bias, through which no gradient reaches a masked entry."""
        bias, mask = self.bias, self.fpe_bias_mask
        if mask is None or not isinstance(bias, nn.Parameter):
            return bias if mask is None else bias * mask
        return _mask_gradient(bias, mask, None)

    @torch.no_grad()
    def mask_bias_(self, mask: Tensor | None) -> None:
        """Set the mask of the biases, (outputs,), and masked biases to zero; None frees all of them.

        A mask that frees all, too, is kept only in the place of another: averages need equal buffers.
        """
        free = mask is None or self.bias is None
        if not free and self.fpe_bias_mask is None:
            free = bool((cast(Tensor, mask) != 0).all())
        self.fpe_bias_mask = None if free else cast(Tensor, mask).to(self.fpe_mask)
        self.project()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the probe out: a rewirer watches this layer, not its copies."""
        return {name: value for name, value in vars(self).items() if name != "_probe"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # A layer pickled by an earlier version has its mask under another name.
        if MASK not in self._buffers and _OLD_MASK in self._buffers:
            self._buffers[MASK] = self._buffers.pop(_OLD_MASK)
        self._buffers.setdefault(BIAS_MASK, None)

    def _set(self, weight: Tensor, bias: Tensor | None, mask: Tensor) -> None:
        self.weight = nn.Parameter(weight)
        if bias is not None:
            self.bias = nn.Parameter(bias)
        self.fpe_mask = mask

    def free(self, name: str) -> Tensor | None:
        """Return the mask of a parameter; torch's pruning gives the weight another name."""
        # Other names are those that torch's pruning and its older weight norm give the weight.
        masks = dict.fromkeys(("weight", "weight_orig", "weight_v"), self.fpe_mask)
        return {**masks, "bias": self.fpe_bias_mask}.get(name)

    def extra_repr(self) -> str:
        """Add the density to the layer's printed form."""
        if self.fpe_mask.is_meta:
            return super().extra_repr()
        return f"{super().extra_repr()}, density={float(self.fpe_mask.float().mean()):.3g}"

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        if prefix + MASK not in state_dict and prefix + _OLD_MASK in state_dict:
            state_dict[prefix + MASK] = state_dict.pop(prefix + _OLD_MASK)
        stored = state_dict.get(prefix + BIAS_MASK)
        if prefix + MASK in state_dict and (stored is None) != (self.fpe_bias_mask is None):
            self.fpe_bias_mask = None if stored is None else torch.ones_like(self.bias, requires_grad=False)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        count = self._nonzero_masked()
        if not count:
            return
        if local_metadata.get("assign_to_params_buffers"):
            # The weight is now the caller's own tensor, which must not change.
            for name, parameter in list(self.named_parameters(recurse=False)):
                if self.free(name) is not None:
                    setattr(self, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
        self.project()
        warnings.warn(
            f"the loaded state has {count:,} weights in {prefix.rstrip('.') or 'a layer'!r} that are not "
            "zero where the loaded mask is; they have been set to 0, so the outputs differ from those of "
            "the model that was saved. Call fpe.project_(model) before saving.",
            stacklevel=2,
        )


def mask_names(model: nn.Module) -> set[str]:
    """Return the names that the masks of a model's masked layers have in its state dict."""
    named = model.named_modules(remove_duplicate=False)
    return {f"{name}.{MASK}".lstrip(".") for name, module in named if isinstance(module, MaskedLayer)}


def past_mask(weight: Tensor, mask: Tensor) -> int:
    """Count the masked entries that are not zero; of a sharded weight, in this process's piece."""
    mask = placed_like(mask, weight)
    if hasattr(weight, "qdata"):  # rounded by torchao, whose tensors cannot be compared
        weight = cast(Any, weight).dequantize()
    pair: list[Any] = [weight.data, mask]
    weight, mask = (t.to_local() if type(t).__name__ == "DTensor" else t for t in pair)
    return int(((mask == 0) & (weight != 0)).sum())


def placed_like(mask: Tensor, weight: Tensor) -> Tensor:
    """Return a mask where its weight is: in pieces, if the weight is sharded over processes."""
    if type(weight.data).__name__ != "DTensor" or type(mask).__name__ == "DTensor":
        return mask
    from torch.distributed.tensor import DTensor, distribute_tensor

    sharded = cast(DTensor, weight.data)
    return distribute_tensor(mask, sharded.device_mesh, sharded.placements, src_data_rank=None)


class MaskedLinear(MaskedLayer, nn.Linear):
    """A linear layer whose weight is zero, and stays zero, where its mask is.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the input and of the output.
    bias, device, dtype
        As for ``nn.Linear``.

    Attributes
    ----------
    fpe_mask : Tensor
        A buffer of the weight's shape (out_features, in_features) and type: 1 where the weight is free,
        0 where it is masked. All ones in a new layer. Loading a state dict sets masked weights to zero.
    fpe_bias_mask : Tensor or None
        The same for the bias; None, which frees all, in a new layer.
    """

    @classmethod
    def from_arrays(cls, weight: Tensor, bias: Tensor | None, mask: Tensor) -> MaskedLinear:
        """Make a layer around these tensors, which it keeps; `weight` must be zero where `mask` is."""
        layer = cls(weight.shape[1], weight.shape[0], bias is not None, device="meta", dtype=weight.dtype)
        layer._set(weight, bias, mask)
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer: (…, in_features) to (…, out_features)."""
        return F.linear(input, self._free_weight(), self._free_bias())


class _MaskedConvolution(MaskedLayer):
    @classmethod
    def from_arrays(
        cls, like: nn.modules.conv._ConvNd, weight: Tensor, bias: Tensor | None, mask: Tensor
    ) -> Any:
        """Make a layer around these tensors, which it keeps, with stride, padding and dilation of `like`.

        `weight`, of shape (out_channels, in_channels / groups, *kernel), must be zero where `mask` is.
        """
        names = ("kernel_size", "stride", "padding", "dilation", "padding_mode", "groups")
        how = {name: getattr(like, name) for name in names} | {"bias": bias is not None, "device": "meta"}
        layer = cls(weight.shape[1] * like.groups, weight.shape[0], **how, dtype=weight.dtype)
        layer._set(weight, bias, mask)
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """Convolve: (batch, in_channels, *size) to (batch, out_channels, *size)."""
        return cast(Tensor, self._conv_forward(input, self._free_weight(), self._free_bias()))  # type: ignore[operator]


class MaskedConv1d(_MaskedConvolution, nn.Conv1d):
    """``nn.Conv1d`` whose weight stays zero where its mask is; as `MaskedLinear`."""


class MaskedConv2d(_MaskedConvolution, nn.Conv2d):
    """``nn.Conv2d`` whose weight stays zero where its mask is; as `MaskedLinear`."""


class MaskedConv3d(_MaskedConvolution, nn.Conv3d):
    """``nn.Conv3d`` whose weight stays zero where its mask is; as `MaskedLinear`."""


#: The masked layers, and the plain layer that each replaces.
MASKED: dict[type[MaskedLayer], type[nn.Module]] = {
    MaskedLinear: nn.Linear,
    MaskedConv1d: nn.Conv1d,
    MaskedConv2d: nn.Conv2d,
    MaskedConv3d: nn.Conv3d,
}


def count_nonzero(model: nn.Module) -> int:
    """Count the parameters that are free or not zero: weights, biases, norm parameters.

    Parameters
    ----------
    model : nn.Module
        Dense or expanded; not changed. A Parameter used twice counts once.

    Returns
    -------
    int
        Entries that are not masked, or are masked but not zero, of a sharded model in this process's piece.
    """
    check_module(model)
    return sum(count for _, _, count in counted_parameters(model))


def counted_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, int]]:
    """Yield each distinct Parameter with its name and the number of its entries that count."""
    for name, parameter in module.named_parameters():
        prefix, _, own = name.rpartition(".")
        if ".parametrizations." in f".{prefix}":  # of a weight that is computed of others
            prefix, _, own = f".{prefix}".rpartition(".parametrizations.")
            prefix = prefix.removeprefix(".")
        owner = module.get_submodule(prefix)
        mask = owner.free(own) if isinstance(owner, HasMasks) else None
        if mask is not None and mask.shape != parameter.shape:  # a part of a computed weight, such as norms
            mask = None
        free = parameter.numel() if mask is None else int(mask.count_nonzero()) + past_mask(parameter, mask)
        yield name, parameter, free


def count_free(mask: Tensor) -> int:
    """Count the ones of a mask of zeros and ones, several times as fast as ``Tensor.count_nonzero``."""
    return sum(int(part.sum(dtype=torch.float32)) for part in torch.split(mask.reshape(-1), _CHUNK))


def project_(model: nn.Module) -> int:
    """Set every masked weight to exactly zero, in place.

    Needed after something has written to weights directly: averages, merged LoRA weights, an initializer.

    Parameters
    ----------
    model : nn.Module
        Expanded or packed. Of a sharded one, each process sets and counts its own piece.

    Returns
    -------
    int
        How many entries were not zero, NaN included; 0 when called again.

    Raises
    ------
    ModelError
        If a mask holds more than zeros and ones; nothing is changed then.

    Examples
    --------
    >>> import torch, fpe
    >>> wide = fpe.expand(fpe.mlp(8, 4, 2, seed=0), factor=2, seed=1)
    >>> _ = torch.nn.init.xavier_uniform_(wide[0].weight)
    >>> fpe.project_(wide), fpe.project_(wide)
    (40, 0)
    """
    check_module(model, give="a model that fpe.expand returned")
    raise_problems(_mask_problems(model, computed=False), ModelError, "the masks")
    counts = {layer: layer._nonzero_masked() for layer in model.modules() if isinstance(layer, HasMasks)}
    for layer in (layer for layer, count in counts.items() if count):
        layer.project()
    return sum(counts.values())


def enforce_masks_(optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.utils.hooks.RemovableHandle:
    """Set masked weights back to zero after each step of `optimizer`.

    Needed only where a weight with a zero gradient changes: Muon, noise added to weights, averages.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Gets a hook after its step; otherwise unchanged.
    model : nn.Module
        The expanded model.

    Returns
    -------
    RemovableHandle
        Of the hook.
    """
    check_module(model, give="a model that fpe.expand returned")
    layers = [m for m in model.modules() if isinstance(m, HasMasks)]

    def project(*_: Any) -> None:
        for layer in layers:
            layer.project()

    return optimizer.register_step_post_hook(project)


def check_masks(model: nn.Module, what: str) -> None:
    """Raise ModelError if a masked weight is not zero; name all layers, to be repaired before `what`."""
    check_module(model)
    raise_problems(_mask_problems(model), ModelError, "the masks")
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, HasMasks)]
    counts = [f"{count:,} in {name!r}" for name, layer in layers if (count := layer._nonzero_masked())]
    if counts:
        raise ModelError(
            f"masked weights are not zero: {', '.join(counts)}. Something has written past the masks, such "
            "as an average of weights, merged LoRA weights, an initializer, or an optimizer without "
            f"fpe.enforce_masks_. Call fpe.project_(model), which sets them to zero, before {what}."
        )


def _mask_problems(model: nn.Module, computed: bool = True) -> list[str]:
    """Say which masks are not zeros and ones, and, if asked, which masked weights are no parameters."""
    problems = []
    for name, layer in model.named_modules():
        if not isinstance(layer, MaskedLayer):
            continue
        mask: Any = layer.fpe_mask
        if not mask.is_meta and (mask.requires_grad or not bool(((mask == 0) | (mask == 1)).all())):
            problems.append(
                f"the mask of layer {name!r} holds more than zeros and ones: it is trained, or masks "
                "have been averaged (give AveragedModel use_buffers=False). Set it to zeros and ones."
            )
        if computed and "weight" not in layer._parameters:
            problems.append(
                f"the weight of layer {name!r} is computed by torch's pruning or a parametrization; make "
                "that permanent first, with torch.nn.utils.prune.remove or "
                "torch.nn.utils.parametrize.remove_parametrizations."
            )
    return problems
