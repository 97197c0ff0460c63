"""Several packed layers in one call of C: equal to PyTorch's, and left to PyTorch where they must be."""

import copy

import pytest
import torch
from torch import nn

import fpe
from fpe.errors import ArgumentError, ModelError
from fpe.expansion.splits import SharedSplit
from fpe.packing import fused as fused_module
from fpe.packing import kernel
from fpe.packing.blocks import BlockLayer
from fpe.packing.fused import FusedChain, InFusedBlocks
from test_fused import Twice

pytestmark = [
    pytest.mark.skipif(not kernel.available(), reason="needs a C compiler"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="fuses for the GPU"),
]


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def calls(monkeypatch):
    """Collect the samples of each product by compiled code."""
    made, product = [], kernel.run_blocks

    def count(x, *arguments):
        made.append(len(x))
        return product(x, *arguments)

    monkeypatch.setattr(kernel, "run_blocks", count)
    return made


def packed(*layers, factor=2, groups=1, **how):
    torch.manual_seed(0)
    return fpe.pack(
        fpe.expand(nn.Sequential(*layers), factor, split=SharedSplit(groups), prune="columns", **how)
    )


def small(**how):
    return packed(nn.Linear(60, 16), nn.ReLU(), nn.Linear(16, 3), **how)


def fused(model, inputs=60):
    return fpe.fuse(model, example_inputs=torch.randn(5, inputs))


MODELS = {
    "two layers": lambda: small(),
    "groups": lambda: small(groups=4),
    "uneven blocks": lambda: packed(nn.Linear(61, 17), nn.ReLU(), nn.Linear(17, 9), factor=3),
    "three layers": lambda: packed(
        nn.Linear(60, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 2)
    ),
    "a ReLU after others": lambda: packed(
        nn.Linear(60, 16), nn.Identity(), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3)
    ),
    "no activation between": lambda: packed(nn.Linear(60, 16, bias=False), nn.Identity(), nn.Linear(16, 3)),
    "a ReLU at the end": lambda: packed(nn.Linear(60, 16), nn.ReLU(), nn.Linear(16, 33), nn.ReLU()),
}


@pytest.mark.parametrize("shared", [False, True], ids=["", "samples shared out"])
@pytest.mark.parametrize("samples", [0, 1, 2, 7, 12, 13, 97, 200])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_one_call_computes_the_model(name, samples, shared, calls, monkeypatch):
    if shared:
        monkeypatch.setattr(kernel, "WORTH_THREADS", 0)
        monkeypatch.setattr(kernel, "LEAST", 1)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    model = MODELS[name]().eval()
    inputs = 61 if name == "uneven blocks" else 60
    own, x = fused(model, inputs), torch.randn(samples, inputs)
    assert type(own[0]) is FusedChain
    assert all(type(module) is InFusedBlocks for module in own[1:])
    calls.clear()
    assert torch.allclose(own(x), model(x), atol=1e-5)
    assert calls[:1] == [samples]
    calls.clear()
    own(x)
    assert len(calls) == 1


@torch.no_grad()
def test_samples_may_have_any_shape_and_strides():
    model, own = small(), fused(small())
    for x in (torch.randn(2, 5, 60), torch.randn(60), torch.randn(60, 7).t(), torch.randn(4, 120)[:, ::2]):
        assert torch.allclose(own(x), model(x), atol=1e-5)
    with pytest.raises(RuntimeError):
        own(torch.randn(5, 59))


@torch.no_grad()
def test_layers_whose_outputs_are_put_in_order_pass_them_on_in_the_order_of_the_blocks():
    torch.manual_seed(0)
    wide = fpe.expand(
        nn.Sequential(nn.Linear(60, 16), nn.ReLU(), nn.Linear(16, 3)), 2, split="shared", seed=0
    )
    first, last = (fpe.pack(nn.Sequential(copy.deepcopy(wide[0])))[0] for _ in range(2))
    assert first.restore is not None
    between = nn.Linear(32, 60)
    model = nn.Sequential(first, nn.ReLU(), between, nn.ReLU(), last).eval()
    own, x = fused(model), torch.randn(9, 60)
    assert torch.allclose(own(x), model(x), atol=1e-5)
    assert torch.allclose(own.double()(x.double()), model.double()(x.double()))


@torch.no_grad()
def test_what_is_no_number_stays_so():
    own, x = fused(small()), torch.randn(20, 60)
    x[3] = torch.nan
    assert own(x)[3].isnan().all()
    assert not own(x)[:3].isnan().any()


@torch.no_grad()
def test_parts_between_other_modules_are_fused():
    model = packed(
        nn.Linear(60, 16),
        nn.ReLU(),
        nn.Linear(16, 40),
        nn.Tanh(),
        nn.Linear(40, 30),
        nn.ReLU(),
        nn.Linear(30, 3),
    )
    own, x = fused(model), torch.randn(6, 60)
    kinds = [FusedChain, InFusedBlocks, InFusedBlocks, nn.Tanh, FusedChain, InFusedBlocks, InFusedBlocks]
    assert [type(module) for module in own] == kinds
    assert torch.allclose(own(x), model(x), atol=1e-5)


@torch.no_grad()
def test_modules_with_hooks_and_those_used_twice_stay():
    seen, x = [], torch.randn(4, 60)
    model = packed(nn.Linear(60, 16), nn.ReLU(), nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 3))
    model[3].register_forward_hook(lambda *_: seen.append(1))
    own = fused(model)
    assert [type(module) for module in own][:4] == [FusedChain, InFusedBlocks, InFusedBlocks, nn.ReLU]
    seen.clear()
    assert torch.allclose(own(x), model(x), atol=1e-5)
    assert len(seen) == 2

    model = Twice(small())
    own = fused(model)  # the layer alone, at both places
    assert own.layers[0] is own.first
    assert [type(module) for module in own.layers] == [FusedChain, nn.ReLU, nn.Linear]
    assert torch.allclose(own(x), model(x), atol=1e-5)


def test_what_records_or_follows_the_calls_is_left_to_torch(calls):
    model, x = small(groups=2), torch.randn(6, 60)
    own, wanted = fused(model), model(x).detach()
    calls.clear()
    asked, given = x.clone().requires_grad_(), x.clone().requires_grad_()
    own(asked).sum().backward()
    model(given).sum().backward()
    assert torch.allclose(asked.grad, given.grad, atol=1e-5)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert own(x).dtype == torch.bfloat16
        assert torch.allclose(torch.vmap(own)(x.unsqueeze(1))[:, 0], wanted, atol=1e-5)
        assert torch.allclose(torch.jit.trace(own, x, check_trace=False)(x), wanted, atol=1e-5)
        exported = torch.export.export(own, (x,)).module()
        assert torch.allclose(exported(x), wanted, atol=1e-5)
        assert torch.allclose(own.double()(x.double()), wanted.double(), atol=1e-5)
    assert not calls


@torch.no_grad()
def test_it_is_compiled_by_torch_as_one_graph(calls):
    model, x = small(), torch.randn(4, 60)
    own = fused(model)
    graph = torch.compile(own, backend="aot_eager", fullgraph=True)
    calls.clear()
    assert torch.allclose(graph(x), model(x), atol=1e-5)
    assert calls.count(4) >= 1
    torch.library.opcheck(
        kernel.blocks_operator,
        (x, own[0].values, own[0].columns, own[0].program, own[0]._groups, 3, own[0]._widest),
    )


@torch.no_grad()
def test_layers_of_other_modules_are_calls_of_their_own(calls):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(60, 16), nn.Linear(16, 3)

        def forward(self, x):
            return self.down(nn.functional.gelu(self.up(x)))

    torch.manual_seed(0)
    model, x = fpe.pack(fpe.expand(Gated(), 2, split="shared", prune="columns")).eval(), torch.randn(9, 60)
    own = fused(model)
    assert [type(own.up), type(own.down)] == [FusedChain, nn.Linear]
    calls.clear()
    assert torch.allclose(own(x), model(x), atol=1e-5)
    assert calls == [9]


@torch.no_grad()
def test_the_packed_model_is_as_it_was_and_the_copy_stands_alone(tmp_path):
    model, x = small(), torch.randn(6, 60)
    before = copy.deepcopy(model.state_dict())
    own = fused(model)
    assert [type(module) for module in model] == [BlockLayer, nn.ReLU, nn.Linear]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in own.parameters())
    assert fpe.count_nonzero(own) == fpe.count_nonzero(model)
    values = own[0].values
    inside = range(values.data_ptr(), values.data_ptr() + values.nbytes)
    assert own[0][0].weight_0.data_ptr() in inside  # weights are not in memory twice
    wanted = model(x)
    other = fused(copy.deepcopy(model).apply(_halve))
    assert not torch.allclose(other(x), wanted, atol=1e-3)
    with pytest.raises(ModelError, match="load it into the packed model"):  # C would trust its indices
        other.load_state_dict(own.state_dict())
    assert not torch.allclose(other(x), wanted, atol=1e-3)
    assert torch.allclose(copy.deepcopy(own)(x), wanted, atol=1e-5)
    _halve(model[0])
    assert torch.allclose(own(x), wanted, atol=1e-5)
    for refused in (lambda: fpe.save(own, tmp_path / "m.safetensors"), lambda: fpe.unpack(own)):
        with pytest.raises(ModelError, match="inference only"):
            refused()


def _halve(module):
    for parameter in module.parameters(recurse=False):
        parameter.data.mul_(0.5)


def test_what_cannot_be_fused_is_said(monkeypatch):
    hooked = small()
    hooked[0].register_forward_hook(lambda *_: None)
    for model in (nn.Sequential(nn.Linear(60, 4), nn.ReLU(), nn.Linear(4, 2)), small().double(), hooked):
        with pytest.raises(
            ModelError, match="nothing to fuse: no linear layer of this model is packed as blocks"
        ):
            fpe.fuse(model, example_inputs=torch.randn(5, 60))
    with pytest.raises(ModelError, match="GELU cannot be fused"):
        fused_module.chain_of([nn.Linear(3, 3), nn.GELU()])
    with pytest.raises(ArgumentError, match="cannot be run on example_inputs"):
        fused(small(), inputs=59)
    monkeypatch.setattr(fused_module, "available", lambda: False)
    with pytest.raises(ArgumentError, match="needs a C compiler"):
        fused(small())
