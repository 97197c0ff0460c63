"""The format of values and a bit for each place, for layers of any kind and any mask."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

import fpe
from experts import Experts, loop
from fpe.errors import ArgumentError, ModelError
from fpe.expansion.steps import Weights, mask
from fpe.graph.layers import oriented_weight
from fpe.graph.stacked import stacked_layers
from fpe.packing.bitmask import BitmaskLayer, StackedBitmaskLayer
from fpe.packing.layers import DenseLayer, Shape

#: Kind → a layer, and the shape of its inputs.
LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (3, 7)),
    "linear without bias": (lambda: nn.Linear(9, 16, bias=False), (3, 9)),
    "Conv1d": (lambda: nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 8)),
    "Conv2d": (lambda: nn.Conv2d(3, 4, (3, 2), stride=2, padding="valid", dilation=2), (2, 3, 9, 9)),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 2, padding=1, padding_mode="reflect"), (2, 2, 4, 4, 4)),
    "in groups": (lambda: nn.Conv2d(6, 9, 3, groups=3, padding=2, padding_mode="replicate"), (2, 6, 5, 5)),
    "depthwise": (lambda: nn.Conv1d(4, 8, 3, groups=4, bias=False), (2, 4, 6)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(3, 4, 3, bias=False), (2, 3, 6)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1), (2, 3, 5, 5)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 3, 2, padding=1), (2, 2, 4, 4, 4)),
}  # fmt: skip


def masked(name, density=0.4):
    """Return a layer whose weights are free at random, and inputs."""
    make, size = LAYERS[name]
    torch.manual_seed(0)
    layer = make()
    weight = oriented_weight(layer).detach()
    free = (torch.rand(weight.shape) < density).float()
    bias = None if layer.bias is None else layer.bias.detach().clone()
    return mask(layer, Weights(weight * free, bias, free)), torch.randn(size)


def bitmask(layer):
    return BitmaskLayer.of(Shape.of(layer), Weights.of(layer))


@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", LAYERS)
def test_it_computes_and_learns_what_the_masked_layer_does(name, density):
    layer, x = masked(name, density)
    packed = bitmask(layer)
    wanted, found = layer(x), packed(x)
    torch.testing.assert_close(found, wanted)
    assert torch.equal(packed.weight, layer.weight)
    assert len(packed.values) == int(layer.fpe_mask.sum())
    wanted.square().sum().backward()
    found.square().sum().backward()
    torch.testing.assert_close(packed.values.grad, layer.weight.grad[layer.fpe_mask != 0])
    if layer.bias is not None:
        torch.testing.assert_close(packed.bias.grad, layer.bias.grad)


@pytest.mark.parametrize("name", LAYERS)
def test_the_masked_layer_and_a_stored_one_come_back(name):
    layer, x = masked(name)
    packed = bitmask(layer)
    back = packed.shape.masked(packed.to_masked())
    assert type(back) is type(layer)
    assert all(
        torch.equal(a, b)
        for a, b in zip(back.state_dict().values(), layer.state_dict().values(), strict=True)
    )
    torch.testing.assert_close(back(x), layer(x))
    config = json.loads(json.dumps(packed.config()))
    again = BitmaskLayer.from_config(config, torch.empty(0))
    again.load_state_dict(packed.state_dict())
    for own in (again, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        torch.testing.assert_close(own(x), layer(x))


def test_it_is_typed_by_hand():
    free = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    packed = bitmask(fpe.MaskedLinear.from_arrays(free * torch.tensor([2.0, 3, 4]), torch.ones(2), free))
    assert (packed.values.tolist(), packed.places.tolist()) == ([2, 4], [[[0b101], [0]]])
    assert packed.nbytes == 4 * 2 + 2 + 4 * 2
    assert packed(torch.tensor([[1.0, 9, 10]])).tolist() == [[43, 1]]


def test_of_a_transposed_convolution_the_size_of_the_output_can_be_given():
    layer, x = masked("ConvTranspose2d")
    assert (
        bitmask(layer)(x, output_size=[11, 11]).shape
        == layer(x, output_size=[11, 11]).shape
        == (2, 4, 11, 11)
    )


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_other_types(kind):
    layer, x = masked("Conv2d")
    layer, x = layer.to(kind), x.to(kind)
    assert torch.equal(bitmask(layer)(x), layer(x))


def test_values_and_places_that_do_not_fit_are_refused():
    packed = bitmask(masked("linear")[0])
    state = {key: tensor.clone() for key, tensor in packed.state_dict().items()}
    state["places"][0, 0, 0] ^= 1
    with pytest.raises(RuntimeError, match="places has 13 places for 12 values"):
        packed.load_state_dict(state)


def test_it_can_be_asked_for_of_any_layer_and_of_some_nothing_else():
    free = fpe.expand(fpe.mlp(20, 8, 3, seed=0), 2, seed=1)
    packed = fpe.pack(free, format="bitmask", example_inputs=torch.randn(4, 20))
    assert {row.format for row in packed.fpe_packing.rows} == {"bitmask"}
    assert fpe.count_nonzero(packed) == fpe.count_nonzero(free)
    net = nn.Sequential(
        nn.ConvTranspose2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.Flatten(), nn.Linear(50, 2)
    )
    wide = fpe.expand(net, 2, layers=["0"], example_inputs=torch.randn(2, 3, 3, 3))
    with pytest.raises(
        ModelError, match="'0' is a transposed convolution, which is packed as 'bitmask' only"
    ):
        fpe.pack(wide, format={"0": "dense"})
    mixed = fpe.pack(wide, format={"*": "dense"})
    assert (type(mixed[0]), type(mixed[2])) == (BitmaskLayer, DenseLayer)
    with pytest.raises(ArgumentError, match=r"'bitmasks'.*Did you mean 'bitmask'"):
        fpe.pack(wide, format={"0": "bitmasks"})


def test_a_layer_without_zeros_becomes_an_ordinary_one_and_is_loaded_as_one(tmp_path):
    net = nn.Sequential(nn.Conv1d(4, 4, 3, groups=2), nn.ReLU(), nn.ConvTranspose1d(4, 3, 2))
    wide = fpe.with_masks(copy.deepcopy(net))
    turned = Shape.of(net[2]).masked(Weights.of(net[2]))
    wide = nn.Sequential(wide[0], nn.ReLU(), turned)
    packed, x = fpe.pack(wide), torch.randn(2, 4, 6)
    assert [type(module) for module in packed] == [nn.Conv1d, nn.ReLU, nn.ConvTranspose1d]
    fpe.save(packed, tmp_path / "m.safetensors")
    loaded = fpe.load(tmp_path / "m.safetensors", like=net)
    for own in (packed, loaded):
        assert torch.equal(own(x), net(x))


def experts():
    """Return masked experts whose forward pass is a loop over all, and their packed form."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), Experts(loop), nn.Linear(8, 3)).eval()
    x = torch.randn(12, 5)
    wide = fpe.expand(net, layers=["1.w1"], example_inputs=x)
    return wide, fpe.pack(wide), x


def test_only_the_experts_that_are_asked_for_are_made(monkeypatch):
    wide, packed, x = experts()
    layer, own = packed[1].stacked.w1, wide[1].w1
    assert isinstance(layer, StackedBitmaskLayer)
    with torch.no_grad():
        wanted = wide(x)
        monkeypatch.setattr(BitmaskLayer, "weight", property(lambda self: pytest.fail("all were made")))
        torch.testing.assert_close(packed(x), wanted)
        for place in (1, -1, torch.tensor(2)):
            assert torch.equal(packed[1].w1[place], own[place])
        with pytest.raises(IndexError):
            packed[1].w1[3]


def test_experts_are_those_of_the_places_that_were_loaded_last():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), Experts(loop), nn.Linear(8, 3)).eval()
    x = torch.randn(12, 5)
    wide = [fpe.expand(model, layers=["1.w1"], example_inputs=x, seed=seed) for seed in (0, 1)]
    for fewer, own in enumerate(wide):  # of an expert each, so that others begin elsewhere
        mask = own[1].stacked.w1.fpe_mask[fewer]
        mask.view(-1)[mask.view(-1).nonzero()[:3]] = 0
        fpe.project_(own)
    first, second = map(fpe.pack, wide)
    with torch.inference_mode():
        wanted = second(x)
        assert not torch.allclose(first(x), wanted)  # which has looked up where each expert begins
    state = second.state_dict()
    places = {name: len(tensor) for name, tensor in first.state_dict().items() if name.endswith("values")}
    assert places == {name: len(state[name]) for name in places}
    first.load_state_dict(state)
    with torch.inference_mode():
        torch.testing.assert_close(first(x), wanted)


def test_experts_without_zeros_are_packed_and_loaded(tmp_path):
    model = nn.Sequential(nn.Linear(5, 8), Experts(loop), nn.Linear(8, 3)).eval()
    x = torch.randn(12, 5)
    wide = fpe.expand(model, layers=["1.w1"], example_inputs=x)
    for layer in wide[1].stacked.values():
        layer.fpe_mask.fill_(1)
    packed = fpe.pack(wide, example_inputs=x)
    assert {row.format for row in packed.fpe_packing.rows if "stacked" in row.name} == {"bitmask"}
    fpe.save(packed, tmp_path / "m.safetensors")
    torch.testing.assert_close(fpe.load(tmp_path / "m.safetensors", like=model)(x), wide(x))


def test_other_uses_of_the_weight_see_all_experts():
    wide, packed, _ = experts()
    with torch.no_grad():
        made, own = packed[1].w1, wide[1].w1
        assert (made.shape, made.dtype, len(made)) == (own.shape, own.dtype, 3)
        for use in (
            lambda w: w + 1, lambda w: w.mT @ w, lambda w: w[1:], lambda w: w[torch.tensor([2, 0])],
            lambda w: w[torch.tensor([True, False, True])], lambda w: w[..., 0], lambda w: w[1, 2],
            lambda w: torch.stack(list(w)), lambda w: torch.stack(w.unbind()),
        ):  # fmt: skip
            assert torch.equal(use(made), use(own))
        assert type(made[1:]) is torch.Tensor


def test_packed_experts_learn_as_the_masked_ones_do():
    wide, packed, x = experts()
    for own in (wide, packed):
        optimizer = torch.optim.Adam(own.train().parameters(), lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            own(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(packed.eval()(x), wide.eval()(x), rtol=1e-4, atol=1e-5)
    back = fpe.unpack(packed)
    torch.testing.assert_close(back[1].stacked.w1.weight, wide[1].stacked.w1.weight, rtol=1e-4, atol=1e-5)


def test_a_packed_models_experts_stay_layers_where_the_graph_is_looked_at():
    _, packed, x = experts()
    with stacked_layers(packed):
        assert isinstance(packed[1].stacked.w1, StackedBitmaskLayer)
    assert isinstance(packed[1].stacked.w1, StackedBitmaskLayer)
    with torch.no_grad():
        assert packed(x).shape == (12, 3)


@pytest.mark.parametrize("gradients", [True, False])
def test_it_is_compiled(gradients):
    _, packed, x = experts()
    layer, image = masked("in groups")
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(torch.compile(packed)(x), packed(x))
        torch.testing.assert_close(torch.compile(bitmask(layer))(image), layer(image))


def test_it_is_exported_to_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net = nn.Sequential(nn.ConvTranspose2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1, groups=2), nn.Flatten())
    x = torch.randn(2, 3, 3, 3)
    wide = fpe.expand(net, 2, layers=["0"], example_inputs=x).eval()
    packed = fpe.pack(wide, example_inputs=x)
    assert {row.format for row in packed.fpe_packing.rows} == {"bitmask"}
    fpe.export(packed, tmp_path / "m.onnx", example_inputs=x)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), wide(x), rtol=1e-4, atol=1e-5)
