"""Products of blocks by compiled code: equal to PyTorch's, and left to PyTorch where they must be."""

import platform
import warnings

import pytest
import torch
from torch import nn

import fpe
from fpe.expansion.splits import SharedSplit
from fpe.packing import blocks as blocks_module
from fpe.packing import kernel
from fpe.packing.blocks import BlockLayer

needs_compiler = pytest.mark.skipif(not kernel.available(), reason="needs a C compiler")


def packed(inputs=60, hidden=16, groups=1, factor=2, bias=True, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(inputs, hidden, bias=bias), nn.ReLU(), nn.Linear(hidden, 3))
    wide = fpe.expand(model, factor=factor, split=SharedSplit(groups), prune="columns", seed=seed)
    return fpe.pack(wide)


@pytest.fixture
def calls(monkeypatch):
    """Collect blocks, inputs and neurons of the parts of each product by compiled code."""
    made, product, program = [], kernel.run_blocks, kernel.blocks_program
    given = []

    def describe(layers):
        given[:] = [
            (b, i, neurons) for layer in layers for own, neurons, _ in layer.groups for _, b, i in own
        ]
        return program(layers)

    def count(*arguments):
        made.append(list(given))
        return product(*arguments)

    monkeypatch.setattr(blocks_module, "blocks_program", describe)
    monkeypatch.setattr(blocks_module, "run_blocks", count)
    return made


def by_torch(layer, x):
    """Return the outputs by PyTorch's own products."""
    with torch.no_grad():
        return nn.functional.linear(x, layer.weight, layer.bias)


@needs_compiler
@pytest.mark.parametrize("samples", [0, 1, 2, 3, 5, 6, 7, 12, 13, 97, 200])
@pytest.mark.parametrize("neurons", [1, 2, 3, 4, 7, 8, 15, 16, 31, 33, 64, 100])
def test_it_computes_the_layer_for_all_sizes(samples, neurons, calls):
    torch.manual_seed(neurons)
    layer = BlockLayer.of(*random_blocks([(neurons, 9)] * 3, 20))
    x = torch.randn(samples, 20)
    with torch.no_grad():
        assert torch.allclose(layer(x), by_torch(layer, x), atol=1e-5)
    assert calls == [[(3, 9, neurons)]]


def random_blocks(sizes, inputs):
    """Return what makes a layer of blocks of so many neurons and random inputs."""
    from fpe.expansion.steps import Weights
    from fpe.packing.blocks import Block
    from fpe.packing.layers import Shape

    outputs, first, made = sum(own for own, _ in sizes), 0, []
    mask = torch.zeros(outputs, inputs)
    for neurons, own in sizes:
        block = Block(torch.arange(first, first + neurons), torch.randperm(inputs)[:own].sort().values)
        mask[block.rows.unsqueeze(1), block.columns] = 1
        made.append(block)
        first += neurons
    shape = Shape("MaskedLinear", outputs, inputs, {})
    return shape, Weights(torch.randn(outputs, inputs) * mask, torch.randn(outputs), mask), made, True


@needs_compiler
@pytest.mark.parametrize("inputs", [255, 256, 257, 600])
def test_long_blocks_are_summed_piece_by_piece(inputs):
    layer = BlockLayer.of(*random_blocks([(80, inputs), (80, inputs)], 700))
    for samples in (1, 3, 20):
        x = torch.randn(samples, 700)
        with torch.no_grad():
            assert torch.allclose(layer(x), by_torch(layer, x), atol=2e-4)


@needs_compiler
@pytest.mark.parametrize(
    ("sizes", "products"),
    [
        ([(8, 12), (8, 10), (8, 10)], [(3, 10, 8), (1, 2, 8)]),  # what one has beyond the others is added
        ([(8, 12), (5, 9), (2, 1)], [(1, 12, 8), (1, 9, 5), (1, 1, 2)]),  # neurons differ: one by one
    ],
    ids=["levels", "unequal"],
)
def test_unequal_blocks(sizes, products, calls):
    layer = BlockLayer.of(*random_blocks(sizes, 30))
    x = torch.randn(17, 30)
    with torch.no_grad():
        assert torch.allclose(layer(x), by_torch(layer, x), atol=1e-5)
    assert calls == [products]


@needs_compiler
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_in_the_order_of_the_masked_layer(bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 16, bias=bias), nn.ReLU(), nn.Linear(16, 3))
    wide = fpe.expand(model, factor=2, split="shared", prune="columns", seed=0)
    layer = fpe.pack(nn.Sequential(wide[0]))[0]  # whose consumers are not there to be reordered
    assert layer.restore is not None
    x = torch.randn(2, 5, 60)
    with torch.no_grad():
        assert torch.allclose(layer(x), wide[0](x), atol=1e-5)
        assert torch.allclose(layer(x[0, 0]), wide[0](x[0, 0]), atol=1e-5)
        turned = torch.randn(60, 7).t()
        assert torch.allclose(layer(turned), wide[0](turned), atol=1e-5)


@needs_compiler
def test_models_compute_the_same_with_and_without_gradients(calls):
    for groups, inputs in ((1, 385), (2, 60), (4, 61)):
        model, x = packed(inputs, groups=groups), torch.randn(9, inputs)
        wanted = model(x)
        assert not calls
        with torch.no_grad():
            assert torch.allclose(model(x), wanted, atol=1e-5)
        assert calls
        calls.clear()
        with torch.inference_mode():
            assert torch.allclose(model(x), wanted, atol=1e-5)
        calls.clear()


@needs_compiler
def test_what_is_no_plain_float32_on_a_cpu_is_left_to_torch(calls):
    model, x = packed(), torch.randn(5, 60)
    with torch.no_grad():
        wanted = by_torch(model[0], x)
        assert torch.allclose(model[0].double()(x.double()).float(), wanted, atol=1e-5)
        model = model.float()
        with torch.autocast("cpu", torch.bfloat16):
            assert model(x).dtype == torch.bfloat16
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, x)
            tangent = torch.autograd.forward_ad.unpack_dual(model[0](dual)).tangent
        assert torch.allclose(tangent, wanted - model[0].bias, atol=1e-5)
        each = torch.vmap(model[0])(x.unsqueeze(1))
        assert torch.allclose(each[:, 0], wanted, atol=1e-5)
        assert not calls
        traced = torch.jit.trace(model, x)  # which would store what compiled code computed as a constant
        calls.clear()  # it also runs the model to compare
        other = torch.randn(5, 60)
        assert torch.allclose(traced(other), model(other), atol=1e-5)
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            model(x)
        assert counter.get_total_flops() == 2 * 5 * (sum(n * i for n, i in model[0].sizes) + 32 * 3)
        with pytest.raises(RuntimeError):
            model(torch.randn(5, 59))
    assert len(calls) == 1


@needs_compiler
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="options of another processor")
@pytest.mark.parametrize("without", [["avx512f"], ["avx512f", "avx2", "fma", "avx"]], ids=["AVX2", "SSE"])
@torch.no_grad()
def test_processors_with_narrower_registers(without, monkeypatch, tmp_path, calls):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernel, "OPTIONS", (*kernel.OPTIONS, *(f"-mno-{name}" for name in without)))
    kernel.library.cache_clear()
    try:
        for neurons in (1, 7, 16, 31, 33, 100):
            layer = BlockLayer.of(*random_blocks([(neurons, 30), (neurons, 28), (neurons, 28)], 70))
            for samples in (1, 3, 8, 13, 97):
                x = torch.randn(samples, 70)
                assert torch.allclose(layer(x), by_torch(layer, x), atol=1e-5)
        assert len(calls) == 6 * 5
        wide = fpe.expand(nn.Sequential(nn.Linear(40, 9), nn.ReLU(), nn.Linear(9, 3)), 2, seed=0)
        sparse = fpe.pack(wide, format="sparse")
        for samples in (1, 5, 40, 100):
            x = torch.randn(samples, 40)
            assert torch.allclose(sparse(x), wide(x), atol=1e-5)
    finally:
        kernel.library.cache_clear()
    assert list(tmp_path.rglob("*.so"))


def test_without_a_compiler_torch_computes_it_and_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernel.shutil, "which", lambda name: None)
    kernel.library.cache_clear()
    model, x = packed(), torch.randn(5, 60)
    wanted = model(x)
    try:
        with torch.no_grad(), pytest.warns(UserWarning, match=r"blocks by several calls.*no C compiler"):
            assert torch.allclose(model(x), wanted, atol=1e-6)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")
            model(x)  # it is said once
    finally:
        kernel.library.cache_clear()


@pytest.mark.parametrize("value", [-1, 60])
def test_inputs_outside_the_layer_are_refused_before_c_reads_them(value):
    model = packed()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["0.columns"][3] = value
    with pytest.raises(RuntimeError, match="are not inputs of this layer"):
        model.load_state_dict(state)


@needs_compiler
def test_it_is_compiled_by_torch_as_one_graph(calls):
    model, x = packed(), torch.randn(4, 60)
    with torch.no_grad():
        graph = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert torch.allclose(graph(x), model(x), atol=1e-5)
    assert len(calls) == 1
