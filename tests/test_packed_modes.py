"""A packed model is the masked one in every mode, and to whatever reads its tensors instead of calling it."""

import copy
import functools
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import fpe
from fpe.errors import ArgumentError, ModelError
from fpe.packing.blocks import BlockLayer
from fpe.packing.layers import PackedLayer, Shape
from models import assert_unchanged, forget_maps_, same_state, snapshot
from zoo import ZOO, answer


def encoder_layer(**options):
    return nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, **options)


class Attentive(nn.Module):
    """Attention, which reads the weight of its last layer, and an MLP, each with a skip around it."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))

    def forward(self, x):
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.mlp(x)


MODELS = {name: build for name, build in ZOO.items() if name != "Mixtral"}
MODELS |= {
    "TransformerEncoder": lambda: (nn.TransformerEncoder(encoder_layer(), 2), torch.randn(3, 5, 16)),
    "norm first": lambda: (encoder_layer(norm_first=True, activation="gelu"), torch.randn(3, 5, 16)),
    "MultiheadAttention": lambda: (Attentive(), torch.randn(3, 5, 16)),
}
#: A split, a pruning, and the format of all layers.
WAYS = [
    ("shared", "children", None),
    ("random", "magnitude", None),
    ("random", "magnitude", "dense"),
]
#: Models of every kind of layer and of reading.
FEW = ["CNN-BatchNorm-Flatten", "LLaMA", "TransformerEncoder"]
CASES = [(name, *way) for name in MODELS for way in (WAYS if name in FEW else WAYS[:1])]


@functools.cache
def wide_of(name, split, prune):
    """Return an expanded model without dropout, and its batch, in float64: gradients may cancel out."""
    model, batch = MODELS[name]()
    wide = fpe.expand(model, 2, split=split, prune=prune, example_inputs=batch, seed=3).double()
    batch = pytree.tree_map(lambda own: own.double() if own.is_floating_point() else own, batch)
    for module in wide.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return wide, batch


def seeded_answer(model, batch):
    """Run a model; what it drops out, of attention for instance, is the same each time."""
    torch.manual_seed(0)
    return answer(model, batch)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def gradients_of(wide, packed, batch):
    """Return pairs of gradients, in the masked model's places: unpacked, a gradient is like its weight."""
    for model in (wide, packed):
        seeded_answer(model, batch).square().sum().backward()
    for parameter in packed.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    back = dict(fpe.unpack(packed).named_parameters())
    for name, own in wide.named_parameters():
        yield back[name].detach(), torch.zeros_like(own) if own.grad is None else own.grad


@pytest.mark.parametrize(("name", "split", "prune", "format"), CASES)
def test_outputs_and_gradients_are_those_of_the_masked_model_in_every_mode(name, split, prune, format):
    wide, batch = wide_of(name, split, prune)
    packed = fpe.pack(wide, format=format)
    for trains in (False, True):
        for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with context():
                own, wanted = (seeded_answer(copy.deepcopy(m).train(trains), batch) for m in (packed, wide))
                close(own, wanted)
        both = (copy.deepcopy(model).train(trains) for model in (wide, packed))
        for own, wanted in gradients_of(*both, batch):
            close(own, wanted)


def assert_stands_for_itself(layer):
    """A layer's weight and bias, applied by the function, must give what the layer gives; gradients too."""
    x = torch.randn(3, layer.shape.inputs, *[7] * len(layer.shape.taps), dtype=layer.weight.dtype)
    grads = []
    for apply in (layer, lambda x: layer.apply_weight(x, layer.weight, layer.bias)):
        y = apply(x)
        grads.append([y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))])
    free = [None, *(layer.free(name) for name, _ in layer.named_parameters())]
    for (own, wanted), mask in zip(zip(*grads, strict=True), free, strict=True):
        close(own, wanted if mask is None else wanted * mask)
    with torch.no_grad():
        close(layer(x), layer.apply_weight(x, layer.weight, layer.bias))


@pytest.mark.parametrize(("split", "prune", "format"), WAYS)
@pytest.mark.parametrize("name", FEW)
def test_the_weight_that_is_read_is_the_one_that_is_applied(name, split, prune, format):
    wide, _ = wide_of(name, split, prune)
    layers = [m for m in fpe.pack(wide, format=format).modules() if isinstance(m, PackedLayer)]
    assert layers
    for layer in layers:
        assert_stands_for_itself(layer)


@pytest.mark.parametrize("inputs", [41, 240])
@pytest.mark.parametrize("planned", [True, False])
def test_the_weight_of_blocks_has_the_order_of_the_outputs(inputs, planned):
    """Without a plan the outputs, and so the bias, are put back into the masked layer's order."""
    wide = fpe.expand(fpe.mlp(inputs, 8, 2, seed=2), 3, split="shared", prune="columns", seed=2)
    if not planned:
        forget_maps_(wide)
    layer = fpe.pack(wide)[0]
    assert (layer.restore is None) is planned
    assert_stands_for_itself(layer)
    assert torch.equal(layer.weight, wide[0].weight[layer.rows.long()] if planned else wide[0].weight)
    assert torch.equal(layer.bias, wide[0].bias[layer.rows.long()] if planned else wide[0].bias)


def test_the_weight_of_int8_is_the_rounded_one():
    pytest.importorskip("torchao")
    wide = fpe.expand(fpe.mlp(40, 8, 3), 2, split="shared", seed=1)
    forget_maps_(wide)
    layer = fpe.quantize(fpe.pack(wide))[0]
    assert layer.restore is not None
    x = torch.randn(4, 40)
    close(F.linear(x, layer.weight, layer.bias), layer(x))


def test_a_weight_that_is_made_cannot_be_replaced():
    packed = fpe.pack(fpe.expand(fpe.mlp(8, 4, 2), 2, split="shared"))
    with pytest.raises(AttributeError, match="unpack"):
        packed[0].weight = nn.Parameter(torch.zeros(8, 8))


@pytest.mark.parametrize("split", ["shared", "random"])
def test_padding_goes_the_fast_path_of_an_encoder(split):
    """Left-aligned padding makes nested tensors, which only the fast path understands."""
    wide, x = wide_of("TransformerEncoder", split, "magnitude")
    packed = fpe.pack(wide)
    padding = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 2 + [True] * 3])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")
        own, wanted = (m.eval()(x, src_key_padding_mask=padding) for m in (packed, wide))
    close(own, wanted)


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("name", ["TransformerEncoder", "CNN-BatchNorm-Flatten"])
@pytest.mark.parametrize(("split", "prune"), [("shared", "children"), ("random", "magnitude")])
def test_a_compiled_packed_model_is_the_masked_one(name, split, prune, trains):
    wide, batch = wide_of(name, split, prune)
    wide, packed = (copy.deepcopy(model).train(trains) for model in (wide, fpe.pack(wide)))
    torch._dynamo.reset()
    with torch.set_grad_enabled(trains):
        close(torch.compile(packed, backend="aot_eager")(batch), wide(batch))


@pytest.mark.parametrize("name", MODELS)
def test_every_packed_model_compiles_to_the_masked_ones_outputs(name):
    wide, batch = wide_of(name, "random", "magnitude")
    packed = fpe.pack(wide).eval()
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = seeded_answer(torch.compile(packed, backend="aot_eager"), batch)
        close(compiled, seeded_answer(wide.eval(), batch))


def test_a_file_that_has_the_bias_block_by_block_is_read():
    """Also where the outputs are put back into order; torch's own state dicts of the first version too."""
    wide = fpe.expand(fpe.mlp(12, 4, 2), 3, split="shared", prune="columns", seed=1)
    forget_maps_(wide)
    layer = fpe.pack(wide)[0]
    config, state = layer.config(), layer.state_dict()
    assert Shape.from_dict(config["shape"]) == layer.shape
    old = {**state, "bias": state["bias"][layer.rows.long()]}
    x = torch.randn(5, 12)
    for known, tensors, version in (
        (config, state, None),
        ({k: v for k, v in config.items() if k != "bias_order"}, old, None),
        (config, old, 1),
        (config, state, 2),
    ):
        made = BlockLayer.from_config(known, torch.empty(0))
        given = copy.copy(state)
        given.clear()
        given.update(tensors)
        given._metadata = {"": {"version": version} if version else {}}
        made.load_state_dict(given)
        close(made(x), wide[0](x))


@pytest.mark.parametrize("name", ["MLP", "CNN-BatchNorm-Flatten", "BERT", "Mixtral-style experts"])
def test_packing_verifies_itself_on_a_batch_and_changes_nothing(name):
    model, batch = MODELS[name]()
    wide = fpe.expand(model, 2, split="shared", example_inputs=batch, seed=3)
    before, state = snapshot(wide), torch.get_rng_state()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        packed = fpe.pack(wide, example_inputs=batch)
    unreached = [str(own.message) for own in warned if "do not reach 'experts.0.gate'" in str(own.message)]
    assert len(unreached) == (name == "Mixtral-style experts")  # no sample of the batch goes to the first
    assert len(warned) == len(unreached)
    assert torch.equal(torch.get_rng_state(), state)
    assert_unchanged(wide, before)
    assert same_state(packed, fpe.pack(wide))


class Branch(nn.Module):
    """A strong skip around a branch that adds very little."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x):
        return x + 1e-6 * self.b(F.relu(self.a(x)))


@pytest.fixture
def wrong_layer(monkeypatch):
    """Let the products of blocks have their outputs in another order."""
    right = BlockLayer.forward
    monkeypatch.setattr(BlockLayer, "forward", lambda self, x: right(self, x).roll(1, -1))


@pytest.mark.usefixtures("wrong_layer")
def test_a_wrong_layer_is_found_however_little_it_adds():
    x = torch.randn(4, 8)
    wide = fpe.expand(Branch(), 2, split="shared", example_inputs=x)
    with pytest.raises(ModelError, match="layer 'a' differs"):
        fpe.pack(wide, example_inputs=x)


def test_a_weight_that_only_the_fast_path_reads_wrongly_is_found(monkeypatch):
    wide, x = wide_of("TransformerEncoder", "shared", "children")
    monkeypatch.setattr(BlockLayer, "weight", property(lambda self: self.to_masked().weight))
    with pytest.raises(ModelError, match="evaluation mode without gradients"):
        fpe.pack(wide, example_inputs=x)


def test_a_batch_that_shows_nothing_is_refused_or_reported():
    wide = fpe.expand(fpe.mlp(8, 4, 2), 2, split="shared")
    with pytest.raises(ArgumentError, match="example_inputs"):
        fpe.pack(wide, example_inputs=torch.randn(3, 7))
    with torch.no_grad():
        wide[2].weight.zero_(), wide[2].bias.zero_()
    with pytest.raises(ModelError, match="all outputs"):
        fpe.pack(wide, example_inputs=torch.randn(3, 8))
    norm = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    wide = fpe.expand(norm, 2, split="shared", example_inputs=torch.randn(3, 8))
    with pytest.warns(UserWarning, match="training mode was not compared"):
        fpe.pack(wide, example_inputs=torch.randn(1, 8))


def test_a_weight_that_is_tied_after_expanding_is_refused():
    """Packed, it would be trained apart from the other."""
    wide = fpe.expand(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 16)), 2, split="shared")
    wide.append(nn.Linear(16, 16, bias=False))
    wide[3].weight = wide[2].weight
    with pytest.raises(ModelError, match=r"layer '2'.*with '3.weight'"):
        fpe.pack(wide)
