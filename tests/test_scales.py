"""Modules of a user's own between layers: parameters per neuron, and norms over neurons written by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fpe
from fpe.errors import ModelError
from fpe.graph import NeuronGroup, find_groups, verify
from models import assert_unchanged, same_values, snapshot
from oracle import copied

VECTOR, SEQUENCE, IMAGE = (4, 20), (3, 4, 20), (2, 20, 6, 6)


class Own(nn.Module):
    """A module with a parameter, or buffer, of each of some shapes; `follow` is the forward pass."""

    def __init__(self, follow, **shapes):
        super().__init__()
        self.follow = follow
        for name, shape in shapes.items():
            values = torch.rand(shape) + 0.5
            if name.startswith("running"):
                self.register_buffer(name, values)
            else:
                setattr(self, name, nn.Parameter(values))

    def forward(self, x):
        return self.follow(self, x)


def frozen_batch_norm(t, x):
    """Compute what torchvision's FrozenBatchNorm2d does."""
    weight, bias, mean, var = (
        b.reshape(1, -1, 1, 1) for b in (t.running_weight, t.running_bias, t.running_mean, t.running_var)
    )
    scale = weight * (var + 1e-5).rsqrt()
    return x * scale + (bias - mean * scale)


def global_response_norm(t, x):
    size = torch.linalg.vector_norm(x, ord=2, dim=(1, 2), keepdim=True)
    return t.weight * (x * (size / (size.mean(dim=-1, keepdim=True) + 1e-6))) + t.bias + x


def layer_norm_of_channels(t, x):
    mean = x.mean(1, keepdim=True)
    square = (x - mean).pow(2).mean(1, keepdim=True)
    return t.weight[:, None, None] * ((x - mean) / torch.sqrt(square + 1e-6)) + t.bias[:, None, None]


def rms_norm(t, x):
    wide = x.to(torch.float64)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (1.0 + t.weight) * wide.to(x.dtype)


BUFFERS = dict.fromkeys(("running_weight", "running_bias", "running_mean", "running_var"), (6,))


class Model(nn.Module):
    """A layer of 6 neurons, what `follow` does with them, and layers that may consume them."""

    def __init__(self, follow, **modules):
        super().__init__()
        self.a, self.a2, self.head = nn.Linear(20, 6), nn.Linear(20, 6), nn.Linear(6, 2)
        self.conv, self.conv2 = nn.Conv2d(20, 6, 3), nn.Conv2d(6, 2, 1)
        self.half_head, self.one = nn.Linear(3, 2), nn.Linear(1, 2)
        self.follow = follow
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.follow(self, x)


def through(t, x):
    return t.head(t.own(F.gelu(t.a(x))))


def image(t, x):
    return t.conv2(F.relu(t.own(t.conv(x))))


def channels_last(t, x):
    return t.head(t.own(F.gelu(t.conv(x).permute(0, 2, 3, 1))))


#: Name → model, and the shape of its input.
FOUND = {
    "frozen batch norm": (lambda: Model(image, own=Own(frozen_batch_norm, **BUFFERS)), IMAGE),
    "global response norm": (
        lambda: Model(channels_last, own=Own(global_response_norm, weight=(1, 1, 1, 6), bias=(1, 1, 1, 6))),
        IMAGE,
    ),
    "layer norm of channels": (
        lambda: Model(image, own=Own(layer_norm_of_channels, weight=(6,), bias=(6,))),
        IMAGE,
    ),
    "RMSNorm": (lambda: Model(through, own=Own(rms_norm, weight=(6,))), SEQUENCE),
    "RMSNorm without a parameter": (
        lambda: Model(through, own=Own(lambda t, x: x * (x.square().mean(-1, True) + 1e-6).rsqrt())),
        VECTOR,
    ),
    "a standard deviation of all": (
        lambda: Model(through, own=Own(lambda t, x: x / (x.std(-1, correction=0, keepdim=True) + 0.1))),
        VECTOR,
    ),
    "Snake": (
        lambda: Model(
            image, own=Own(lambda t, x: x + (t.alpha * x).sin().square() / t.alpha, alpha=(6, 1, 1))
        ),
        IMAGE,
    ),
    "a scale for each member of an ensemble": (
        lambda: Model(through, own=Own(lambda t, x: x * t.scale, scale=(4, 6))),
        SEQUENCE,
    ),
    "a scale behind an exponential": (
        lambda: Model(through, own=Own(lambda t, x: x * t.scale.exp().unsqueeze(0), scale=(6,))),
        VECTOR,
    ),
    "a scale in the other order": (
        lambda: Model(through, own=Own(lambda t, x: x * t.scale.T * t.other.mT, scale=(6, 1), other=(1, 1))),
        VECTOR,
    ),
    "a threshold for each neuron": (
        lambda: Model(through, own=Own(lambda t, x: torch.where(x > t.level, x, t.level), level=(6,))),
        VECTOR,
    ),
    "called twice": (
        lambda: Model(
            lambda t, x: t.head(t.own(t.a(x)) + t.own(t.a(-x))), own=Own(lambda t, x: x * t.scale, scale=(6,))
        ),
        VECTOR,
    ),
    "behind gate and up": (
        lambda: Model(lambda t, x: t.head(t.own(F.silu(t.a(x)) * t.a2(x))), own=Own(rms_norm, weight=(6,))),
        SEQUENCE,
    ),
    "a mean over tokens too": (
        lambda: Model(through, own=Own(lambda t, x: (x - x.mean((1, 2), True)) * t.weight, weight=(6,))),
        SEQUENCE,
    ),
    "a norm that computes its own": (
        lambda: Model(
            through, own=type("Sub", (nn.LayerNorm,), {"forward": lambda t, x: x * t.weight + t.bias})(6)
        ),
        VECTOR,
    ),
}


def scaled(t, x):
    return x * t.scale


#: Name → model, the shape of its input, and a part of the reason why its first layer stays dense.
TRAPS = {
    "a sum of squares": (
        lambda: Model(
            through,
            own=Own(
                lambda t, x: x / x.square().sum(-1, True),
            ),
        ),
        VECTOR,
        "added up or compared by 'sum'",
    ),
    "a Euclidean norm": (
        lambda: Model(through, own=Own(lambda t, x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True))),
        VECTOR,
        "'linalg_vector_norm'",
    ),
    "a standard deviation of a sample": (
        lambda: Model(through, own=Own(lambda t, x: x / x.std(-1, keepdim=True))),
        VECTOR,
        "'std'",
    ),
    "a width in the scale": (
        lambda: Model(through, own=Own(lambda t, x: x * x.shape[-1] ** -0.5 * t.scale, scale=(6,))),
        VECTOR,
        "something depends on their number",
    ),
    "a width written down": (
        lambda: Model(through, own=Own(lambda t, x: x * t.scale.view(6), scale=(6,))),
        VECTOR,
        "written down",
    ),
    "a mean that is an output": (
        lambda: Model(lambda t, x: (lambda h: (t.head(h * h.mean(-1, True)), 0))(t.a(x)), own=Own(scaled)),
        VECTOR,
        "added up or compared by 'mean'",
    ),
    "a mean that leaves the norm": (
        lambda: Model(
            lambda t, x: (lambda h, m: (t.head(h), m))(*t.own(t.a(x))),
            own=Own(lambda t, x: (x / x.mean(-1, True), x.mean(-1, True))),
        ),
        VECTOR,
        "outputs of the network",
    ),
    "a mean that a layer consumes": (
        lambda: Model(
            lambda t, x: (lambda h, m: t.head(h) + t.one(m))(*t.own(t.a(x))),
            own=Own(lambda t, x: (x / x.mean(-1, True), x.mean(-1, True))),
        ),
        VECTOR,
        "the mean over its neurons is used elsewhere",
    ),
    "a mean of other neurons": (
        lambda: Model(
            lambda t, x: t.head(t.own((t.a(x), t.a2(x)))),
            own=Own(lambda t, x: x[0] / (x[1].square().mean(-1, True) + 1)),
        ),
        VECTOR,
        "the mean over its neurons is used elsewhere",
    ),
    "a mean that is squeezed": (
        lambda: Model(through, own=Own(lambda t, x: x[:6] * x.mean(-1))),
        (6, 20),
        "added up or compared by 'mean'",
    ),
    "a softmax beside the scale": (
        lambda: Model(through, own=Own(lambda t, x: (x * t.scale).softmax(-1), scale=(6,))),
        VECTOR,
        "'softmax'",
    ),
    "scales in another order": (
        lambda: Model(through, own=Own(lambda t, x: x * t.scale.flip(0), scale=(6,))),
        VECTOR,
        "meet another tensor in 'mul'",
    ),
    "scales by a softmax": (
        lambda: Model(through, own=Own(lambda t, x: x * t.scale.softmax(0), scale=(6,))),
        VECTOR,
        "meet another tensor in 'mul'",
    ),
    "some of the scales": (
        lambda: Model(through, own=Own(lambda t, x: x * t.scale[:6], scale=(8,))),
        VECTOR,
        "meet another tensor in 'mul'",
    ),
    "scales that are summed too": (
        lambda: Model(through, own=Own(lambda t, x: x * t.scale + t.scale.sum(), scale=(6,))),
        VECTOR,
        "its parameters are used elsewhere too",
    ),
    "scales for others too": (
        lambda: Model(
            lambda t, x: t.head(t.own(t.a(x))) + t.own(x[:, :1] + 1).sum(), own=Own(scaled, scale=(6,))
        ),
        VECTOR,
        "its parameters are used elsewhere too",
    ),
    "scales of two layers": (
        lambda: Model(
            lambda t, x: t.head(t.own(t.a(x))) + t.b(t.own(t.a2(x))),
            own=Own(scaled, scale=(6,)),
            b=nn.Linear(6, 2),
        ),
        VECTOR,
        "its parameters are used elsewhere too",
    ),
    "a table of the same length": (
        lambda: Model(
            lambda t, x: t.head(t.own(t.a(x))),
            own=Own(lambda t, x: x * t.scale + t.table[2], scale=(6,), table=(6, 1)),
        ),
        VECTOR,
        "its 'table' has 6 entries",
    ),
    "a square of scales": (
        lambda: Model(through, own=Own(lambda t, x: x * t.scale, scale=(6, 6))),
        (2, 6, 20),
        "several axes of length 6",
    ),
    "scales for places of the same number": (
        lambda: Model(through, own=Own(lambda t, x: x * t.scale + t.places, scale=(6,), places=(6, 1))),
        (2, 6, 20),
        "'places' has 6 entries",
    ),
    "scales across parts": (
        lambda: Model(lambda t, x: t.half_head(F.glu(t.own(t.a(x)), -1)), own=Own(scaled, scale=(6,))),
        VECTOR,
        "divided into 2 parts behind 'own'",
    ),
    "scales of a half": (
        lambda: Model(lambda t, x: t.half_head(t.own(t.a(x).chunk(2, -1)[1])), own=Own(scaled, scale=(3,))),
        VECTOR,
        None,
    ),
    "scales of what is flattened": (
        lambda: Model(
            lambda t, x: t.big(t.own(t.conv(x).flatten(1))),
            own=Own(scaled, scale=(96,)),
            big=nn.Linear(96, 2),
        ),
        IMAGE,
        "is over other values too",
    ),
    "a mean within groups": (
        lambda: Model(
            through, own=Own(lambda t, x: (x.view(-1, 2, 3) / x.view(-1, 2, 3).mean(-1, True)).flatten(1))
        ),
        VECTOR,
        "are split by 'view'",
    ),
    "a parameter of the model itself": (
        lambda: Model(
            lambda t, x: t.head(t.a(x) * t.scale),
            scale=nn.Parameter(torch.rand(6) + 0.5),
        ),
        VECTOR,
        "'scale', which has an entry for each of them",
    ),
    "a layer's bias": (
        lambda: Model(lambda t, x: t.head(F.gelu(t.a(x)) * t.a2.bias) + t.head(t.a2(x))),
        VECTOR,
        "'a2.bias', which has an entry for each of them",
    ),
    "a weight without its norm": (
        lambda: Model(lambda t, x: t.head(t.norm(t.a(x)) * t.norm.weight), norm=nn.LayerNorm(6)),
        VECTOR,
        "not always as a module",
    ),
    "a hook": (lambda: _hooked(Model(through, own=Own(scaled, scale=(6,)))), VECTOR, "has hooks"),
    "a constant": (
        lambda: Model(through, own=Own(lambda t, x: x * torch.arange(6.0, dtype=x.dtype), scale=(6,))),
        VECTOR,
        "meet another tensor in 'mul'",
    ),
    "another function in training mode": (
        lambda: Model(
            through,
            own=Own(lambda t, x: x * t.scale if not t.training else (x * t.scale).cumsum(-1), scale=(6,)),
        ),
        VECTOR,
        "in training mode",
    ),
}


def _hooked(model):
    model.own.register_forward_hook(lambda module, args, output: output)
    return model


def built(make, shape):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().double()
    return model, torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def first_layer(shape):
    return "conv" if len(shape) == 4 else "a"


@pytest.mark.parametrize("name", FOUND)
def test_they_are_found_verified_and_right_by_the_oracle(name):
    make, shape = FOUND[name]
    model, x = built(make, shape)
    (group,) = find_groups(model, x).groups
    assert group.producers[0] == first_layer(shape)
    assert group.between == ("own",)
    verify(model, group, x)
    for factor in (2, 3):
        wide = copied(model, [vars(group)], factor)
        for training in (False, True):
            dense = copy.deepcopy(model).train(training)(x)
            assert dense.abs().max() > 1e-3
            torch.testing.assert_close(wide.train(training)(x), dense)


@pytest.mark.parametrize("name", FOUND)
def test_they_are_expanded_trained_saved_loaded_and_packed(name, tmp_path):
    make, shape = FOUND[name]
    model, x = built(make, shape)
    before, layer = snapshot(model), first_layer(shape)
    wide = fpe.expand(model, 2, layers=[layer], example_inputs=x).train()
    assert_unchanged(model, before)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    assert len(wide.get_submodule(layer).weight) == 12
    optimizer = torch.optim.Adam(wide.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        wide(x).square().mean().backward()
        optimizer.step()
    assert fpe.project_(wide) == 0
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    expected = wide.eval()(x)
    again = fpe.expand(wide, 2, layers=[layer], example_inputs=x)
    assert fpe.count_nonzero(again) == fpe.count_nonzero(model)
    for own in (wide, fpe.pack(wide, example_inputs=x)):
        torch.testing.assert_close(own(x), expected)
        fpe.save(own, tmp_path / "model.safetensors")
        loaded = fpe.load(tmp_path / "model.safetensors", like=model).eval()
        torch.testing.assert_close(loaded(x), expected)
        assert own is not wide or same_values(loaded, wide)


@pytest.mark.parametrize("name", TRAPS)
def test_what_only_looks_alike_is_refused_or_right(name):
    make, shape, reason = TRAPS[name]
    model, x = built(make, shape)
    before, layer = snapshot(model), first_layer(shape)
    if reason is None:
        group = fpe.plan(model, layers=[layer], example_inputs=x).layers[0].group
        wide = copied(model, [vars(group)], 2)
        for training in (False, True):
            torch.testing.assert_close(wide.train(training)(x), copy.deepcopy(model).train(training)(x))
        return
    with pytest.raises(ModelError) as error:
        fpe.plan(model, layers=[layer], example_inputs=x)
    assert reason in str(error.value)
    assert_unchanged(model, before)


def test_a_group_by_hand_may_have_them_between():
    make, shape = FOUND["a scale in the other order"]
    model, x = built(make, shape)
    group = NeuronGroup("a", "head", "own")
    assert fpe.plan(model, layers=[group], example_inputs=x).layers[0].group == group
    with pytest.raises(ModelError, match="the output moves by"):
        fpe.plan(model, layers=[NeuronGroup("a", "head")], example_inputs=x)
    square = Model(through, own=Own(scaled, scale=(6, 6))).double()
    with pytest.raises(ModelError, match="several axes of length 6"):
        fpe.plan(square, layers=[group], example_inputs=torch.randn(2, 6, 20).double())


def test_their_moments_are_those_of_the_parents_along_their_own_axis():
    make, shape = FOUND["a scale in the other order"]
    model, x = built(make, shape)
    optimizer = torch.optim.Adam(model.parameters())
    model(x).square().mean().backward()
    optimizer.step()
    old = {key: optimizer.state[getattr(model.own, key)]["exp_avg"].clone() for key in ("scale", "other")}
    fpe.expand_(model, optimizer=optimizer, moments="kept", layers=["a"], example_inputs=x)
    assert torch.equal(optimizer.state[model.own.scale]["exp_avg"], old["scale"].repeat_interleave(2, 0))
    assert torch.equal(optimizer.state[model.own.other]["exp_avg"], old["other"])


@pytest.mark.parametrize("name", ["RMSNorm", "a scale behind an exponential"])
def test_some_neurons_are_expanded_unless_a_norm_takes_a_mean_over_them(name):
    make, shape = FOUND[name]
    model, x = built(make, shape)
    if name == "RMSNorm":
        with pytest.raises(ModelError, match="is over its neurons"):
            fpe.plan(model, target_fraction=0.5, layers=["a"], example_inputs=x)
        return
    wide = fpe.expand(model, 2, target_fraction=0.5, layers=["a"], example_inputs=x)
    assert wide.own.scale.shape == (9,)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)


def test_another_module_in_their_place_cannot_be_loaded(tmp_path):
    model, x = built(*FOUND["a scale behind an exponential"])
    fpe.save(fpe.expand(model, 2, layers=["a"], example_inputs=x), tmp_path / "model.safetensors")
    other = built(*FOUND["RMSNorm"])[0]
    with pytest.raises(fpe.errors.CheckpointError, match="had scale"):
        fpe.load(tmp_path / "model.safetensors", like=other)
