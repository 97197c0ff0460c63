"""Blocks on a GPU: products without copies, and a Triton kernel, which its interpreter runs without one."""

import importlib.util

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fpe
from fpe.errors import ArgumentError, ModelError
from fpe.expansion.splits import SharedSplit
from fpe.packing.blocks import BlockLayer
from test_block_kernel import random_blocks

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
there = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not there, reason="Triton is not installed, whose interpreter needs no GPU")
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")
TYPES = [torch.float32, torch.float16]
if GPU:  # the interpreter multiplies the bits of bfloat16 as integers
    TYPES.append(torch.bfloat16)
CLOSE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
ACTIVATIONS = [nn.ReLU(), nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Tanh(), None]
#: Neurons and inputs of each block.
SIZES = {
    "equal": [(33, 40)] * 3,
    "larger than a tile": [(70, 65)] * 2,
    "levels": [(8, 12), (8, 10), (8, 10)],
    "uneven": [(8, 12), (5, 9), (2, 1)],
    "one": [(20, 30)],
}


def packed(groups=1, factor=2, inputs=60, activation=None, prune="columns"):
    model = nn.Sequential(nn.Linear(inputs, 16), activation or nn.ReLU(), nn.Linear(16, 3))
    wide = fpe.expand(model, factor=factor, split=SharedSplit(groups), prune=prune, seed=0)
    return fpe.pack(wide).to(DEVICE)


def fused(model, inputs=60):
    return fpe.fuse(model, example_inputs=torch.randn(5, inputs, device=DEVICE))


def reference(layer, x):
    return nn.functional.linear(x, layer.weight, layer.bias)


class Twice(nn.Module):
    """Uses its first layer a second time."""

    def __init__(self, layers):
        super().__init__()
        self.layers, self.first = layers, layers[0]

    def forward(self, x):
        return self.layers(x) + self.first(x).sum(1, keepdim=True)


class Operations(TorchDispatchMode):
    """Names and tensors of the operations that are called."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [t for t in (*args, *(kwargs or {}).values()) if isinstance(t, torch.Tensor)]
        self.seen.append((str(func), tensors))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("samples", [0, 1, 5])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@torch.no_grad()
def test_products_into_the_outputs_are_equal_and_without_copies(sizes, samples, bias):
    layer, x = BlockLayer.of(*random_blocks(sizes, 70)).to(DEVICE), torch.randn(samples, 70, device=DEVICE)
    layer.bias = layer.bias if bias else None
    with Operations() as operations:
        y = layer._multiply_in_place(x)
    assert y.is_contiguous()
    assert torch.allclose(y, reference(layer, x), atol=1e-5)
    names = [name for name, _ in operations.seen]
    assert not [name for name in names if any(word in name for word in ("copy", "clone", "cat"))]
    products = [tensors for name, tensors in operations.seen if "bmm" in name]
    assert len(products) == len(layer.batches)
    for tensor in (t for tensors in products for t in tensors if t.shape[1] > 1):
        assert tensor.stride(2) == 1  # cuBLAS copies a matrix that it cannot take by one stride
        assert tensor.stride(1) >= tensor.shape[2]


@needs_gpu
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_blocks_on_a_gpu(sizes, kind):
    layer = BlockLayer.of(*random_blocks(sizes, 70)).to(DEVICE, kind)
    x = torch.randn(2, 9, 70, device=DEVICE, dtype=kind)
    wanted = reference(layer, x)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert (layer(x) - wanted).abs().max() <= 2 * CLOSE[kind] * wanted.abs().max()


@needs_triton
@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@torch.no_grad()
def test_the_kernel_computes_the_layer_and_its_activation(sizes, activation, kind):
    from fpe.packing.fused import FusedBlocks

    layer = BlockLayer.of(*random_blocks(sizes, 70)).to(DEVICE)
    x = torch.randn(2, 35, 70, device=DEVICE)
    wanted = reference(layer, x)
    wanted = wanted if activation is None else activation(wanted)
    own = FusedBlocks.around(layer.to(kind), activation)
    for given, expected in ((x, wanted), (x[0, :1], wanted[0, :1]), (x[1, 3], wanted[1, 3])):
        got = own(given.to(kind))
        assert got.shape == expected.shape
        assert got.dtype == kind
        assert (got - expected).abs().max() <= CLOSE[kind] * wanted.abs().max()
    assert own(x[:, :0].to(kind)).shape == (2, 0, wanted.shape[-1])


@pytest.fixture
def calls(monkeypatch):
    """Collect the activation of each call of the kernel."""
    from fpe.packing import triton_kernel

    made, kernel = [], triton_kernel.block_products_

    def count(*arguments, **options):
        made.append(options["activation"])
        kernel(*arguments, **options)

    monkeypatch.setattr(triton_kernel, "block_products_", count)
    return made


@needs_triton
@pytest.mark.parametrize(
    ("activation", "names"),
    [(nn.ReLU(), ["relu", ""]), (nn.GELU("tanh"), ["gelu_tanh", ""]), (nn.Tanh(), ["", ""])],
    ids=str,
)
def test_a_model_of_blocks_is_fused_with_its_activations(activation, names, calls):
    model = packed(activation=activation)
    x = torch.randn(7, 60, device=DEVICE)
    own = fused(model)
    assert [type(layer) for layer in model] == [BlockLayer, type(activation), type(model[2])]  # as it was
    calls.clear()
    assert torch.allclose(own(x), model(x), atol=1e-5)
    assert calls == names[: sum(type(layer) is BlockLayer for layer in model)]
    assert fpe.count_nonzero(own) == fpe.count_nonzero(model)


@needs_triton
def test_an_activation_with_a_hook_is_not_merged(calls):
    seen = []
    model = packed()
    model[1].register_forward_hook(lambda *_: seen.append(1))
    own = fused(model)
    calls.clear()
    seen.clear()
    own(torch.randn(2, 60, device=DEVICE))
    assert seen == [1]  # an activation with a hook stays
    assert calls[0] == ""


@needs_triton
def test_a_layer_that_is_used_twice_keeps_its_activation_apart():
    model, x = Twice(packed()), torch.randn(4, 60, device=DEVICE)
    own = fused(model)
    assert type(own.layers[1]) is nn.ReLU
    assert torch.allclose(own(x), model(x), atol=1e-5)


@needs_triton
def test_what_records_or_follows_the_calls_is_left_to_torch(calls):
    model, x = packed(groups=2, activation=nn.GELU()), torch.randn(6, 60, device=DEVICE)
    own, wanted = fused(model), model(x)
    calls.clear()
    own(x)
    assert calls  # nothing needs a gradient
    calls.clear()
    asked = x.clone().requires_grad_()
    own(asked).sum().backward()
    given = x.clone().requires_grad_()
    model(given).sum().backward()
    assert torch.allclose(asked.grad, given.grad, atol=1e-5)
    with torch.no_grad():
        with torch.autocast(DEVICE, torch.bfloat16):
            assert own(x).dtype == torch.bfloat16
        assert torch.allclose(torch.vmap(own)(x.unsqueeze(1))[:, 0], wanted, atol=1e-5)
        assert torch.allclose(torch.jit.trace(own, x, check_trace=False)(x), wanted, atol=1e-5)
        graph = torch.compile(own, backend="aot_eager", fullgraph=True)
        assert torch.allclose(graph(x), wanted, atol=1e-5)
        exported = torch.export.export(own, (x,)).module()
        assert torch.allclose(exported(x), wanted, atol=1e-5)
        assert own.double()(x.double()).dtype == torch.float64
    assert not calls


@needs_triton
def test_a_fused_model_is_not_saved_and_not_unpacked(tmp_path):
    own = fused(packed())
    for refused in (lambda: fpe.save(own, tmp_path / "m.safetensors"), lambda: fpe.unpack(own)):
        with pytest.raises(ModelError, match="inference only"):
            refused()


@needs_triton
def test_a_kernel_that_computes_something_else_is_refused(monkeypatch):
    from fpe.packing import triton_kernel

    monkeypatch.setattr(triton_kernel, "block_products_", lambda y, *_, **__: y.fill_(1))
    with pytest.raises(ModelError, match="outputs on example_inputs differ"):
        fused(packed())


@needs_triton
def test_what_cannot_be_fused_is_said():
    dense = fpe.pack(fpe.expand(fpe.mlp(20, 8, 3), 2, split="random"))
    with pytest.raises(ModelError, match="no linear layer of this model is packed as blocks"):
        fpe.fuse(dense, example_inputs=torch.randn(2, 20))
    with pytest.raises(ArgumentError, match="cannot be run on example_inputs"):
        fused(packed(), inputs=59)


def test_without_triton_it_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("fpe.packing.fused.interpreted", lambda: True)  # as if the model were on a GPU
    with pytest.raises(ArgumentError, match="needs Triton"):
        fused(packed())
