"""Adapters beside layers, in the forms that peft gives them, and sums of layers side by side."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fpe
from fpe.errors import ModelError
from fpe.graph import find_groups, verify
from models import assert_unchanged, same_values, snapshot
from oracle import check_copies, copied


class LoRA(nn.Module):
    """A linear layer and a product of low rank beside it, as peft.tuners.lora.Linear."""

    def __init__(self, base, rank=3, bias=False):
        super().__init__()
        self.base_layer, self.scaling = base, {"default": 2.0}
        self.lora_dropout = nn.ModuleDict({"default": nn.Dropout(0.1)})
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=bias)})

    def forward(self, x):
        result = self.base_layer(x)
        for name, lora_a in self.lora_A.items():
            lora_b, dropout = self.lora_B[name], self.lora_dropout[name]
            result = result + lora_b(lora_a(dropout(x.to(lora_a.weight.dtype)))) * self.scaling[name]
        return result

    def merge(self):
        with torch.no_grad():
            for name, scaling in self.scaling.items():
                delta = self.lora_B[name].weight @ self.lora_A[name].weight
                self.base_layer.weight += scaling * delta
        return self.base_layer


class DoRA(LoRA):
    """The same, with a magnitude for each output, from the weights themselves."""

    def __init__(self, base):
        super().__init__(base)
        self.magnitude = nn.Parameter(base.weight.detach().norm(dim=1) * 1.1)

    def forward(self, x):
        a, b = self.lora_A["default"], self.lora_B["default"]
        scaling = self.scaling["default"]
        weight_norm = (self.base_layer.weight + scaling * b.weight @ a.weight).norm(dim=1).detach()
        scale = (self.magnitude / weight_norm).view(1, -1)
        plain = F.linear(x, self.base_layer.weight)
        return self.base_layer(x) + (scale - 1) * plain + scale * b(a(x)) * scaling


class IA3(nn.Module):
    """A linear layer whose outputs, or inputs, are multiplied by a vector."""

    def __init__(self, base, feedforward=False):
        super().__init__()
        self.base_layer, self.feedforward = base, feedforward
        shape = (1, base.in_features) if feedforward else (base.out_features, 1)
        self.ia3_l = nn.ParameterDict({"default": torch.rand(shape) + 0.5})

    def forward(self, x):
        scale = self.ia3_l["default"].flatten()
        return self.base_layer(x * scale) if self.feedforward else self.base_layer(x) * scale


class Net(nn.Module):
    def __init__(self, adapted, consumer=lambda layer: layer, widths=(16, 12, 10)):
        super().__init__()
        inputs, hidden, outputs = widths
        self.fc1, self.fc2 = adapted(nn.Linear(inputs, hidden)), consumer(nn.Linear(hidden, outputs))

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


def ia3_in(layer):
    return IA3(layer, feedforward=True)


#: Name → the model, the producers, the consumers and the modules between of its one expandable group.
ADAPTED = {
    "LoRA on the first": (lambda: Net(LoRA), ["fc1.base_layer", "fc1.lora_B.default"], ["fc2"], []),
    "LoRA on the second": (
        lambda: Net(lambda layer: layer, LoRA),
        ["fc1"],
        ["fc2.base_layer", "fc2.lora_A.default"],
        [],
    ),
    "LoRA on both": (
        lambda: Net(LoRA, LoRA),
        ["fc1.base_layer", "fc1.lora_B.default"],
        ["fc2.base_layer", "fc2.lora_A.default"],
        [],
    ),
    "LoRA with a bias": (
        lambda: Net(lambda layer: LoRA(layer, bias=True)),
        ["fc1.base_layer", "fc1.lora_B.default"],
        ["fc2"],
        [],
    ),
    "IA3 on the first": (lambda: Net(IA3), ["fc1.base_layer"], ["fc2"], ["fc1.ia3_l"]),
    "IA3 on the second": (
        lambda: Net(lambda layer: layer, ia3_in),
        ["fc1"],
        ["fc2.base_layer"],
        ["fc2.ia3_l"],
    ),
}
X = torch.randn(5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def built(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().double().eval()


def adapters_of(group):
    return [n for n in (*group.producers, *group.consumers) if "lora" in n]


@pytest.mark.parametrize("name", ADAPTED)
def test_the_base_is_expanded_under_an_adapter_and_right_by_the_oracle(name):
    make, producers, consumers, between = ADAPTED[name]
    model = built(make)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    groups = {group.name: group for group in find_groups(model, X).groups}
    group = groups[producers[0]]
    assert [[*group.producers], [*group.consumers], [*group.between]] == [producers, consumers, between]
    verify(model, group, X)
    for factor in (2, 3):
        wide = copied(model, [vars(group)], factor)
        for training in (False, True):
            torch.testing.assert_close(wide.train(training)(X), copy.deepcopy(model).train(training)(X))


@pytest.mark.parametrize("name", ADAPTED)
def test_it_is_expanded_trained_saved_loaded_and_packed(name, tmp_path):
    make, producers, _consumers, _between = ADAPTED[name]
    model = built(make)
    before = snapshot(model)
    wide = fpe.expand(model, 2, example_inputs=X).train()
    assert_unchanged(model, before)
    assert [n for layer in wide.fpe_plan.layers for n in layer.group.producers] == producers
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    optimizer = torch.optim.Adam(wide.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        wide(X).square().mean().backward()
        optimizer.step()
    assert fpe.project_(wide) == 0
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    expected = wide.eval()(X)
    for own in (wide, fpe.pack(wide, example_inputs=X)):
        torch.testing.assert_close(own(X), expected)
        fpe.save(own, tmp_path / "model.safetensors")
        loaded = fpe.load(tmp_path / "model.safetensors", like=model).eval()
        torch.testing.assert_close(loaded(X), expected)
        assert own is not wide or same_values(loaded, wide)


def test_an_adapter_itself_is_left_alone_with_the_reason_unless_it_is_named():
    model = built(lambda: Net(LoRA))
    plan = fpe.plan(model, example_inputs=X)
    (reason,) = (skip.reason for skip in plan.skipped if skip.name == "fc1.lora_A.default")
    assert "low rank of an adapter" in reason
    named = fpe.plan(model, layers=["fc1.lora_A.default"], example_inputs=X)
    assert named.layers[0].group.consumers == ("fc1.lora_B.default",)


@pytest.mark.parametrize("inputs", [torch.ones(2, 16), None], ids=["followed", "symbolic"])
def test_the_rank_of_a_factorized_layer_is_left_alone_but_no_bottleneck_with_an_activation(inputs):
    linear = nn.Sequential(nn.Linear(16, 4), nn.Dropout(), nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    plan = fpe.plan(linear, example_inputs=inputs)
    assert [layer.group.name for layer in plan.layers] == ["2"]
    assert "low rank" in next(skip.reason for skip in plan.skipped if skip.name == "0")
    bent = nn.Sequential(nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    assert [layer.group.name for layer in fpe.plan(bent, example_inputs=inputs).layers] == ["0"]
    wide = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 2))
    assert [layer.group.name for layer in fpe.plan(wide, example_inputs=inputs).layers] == ["0"]


def test_a_frozen_base_is_left_alone_though_its_adapters_are_trained_unless_it_is_named():
    model = built(lambda: Net(LoRA, LoRA))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora" in name)
    with pytest.raises(ModelError, match="it is frozen"):
        fpe.plan(model, example_inputs=X)
    wide = fpe.expand(model, layers=["fc1.base_layer"], example_inputs=X)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    assert not wide.fc1.base_layer.weight.requires_grad
    assert wide.fc1.lora_B["default"].weight.requires_grad


def test_an_adapter_that_is_merged_keeps_the_masks():
    model = built(lambda: Net(LoRA, LoRA))
    wide = fpe.expand(model, layers=["fc1.base_layer"], example_inputs=X)
    base = wide.fc1.base_layer
    masked = base.fpe_mask == 0
    inside = (
        base.weight + 2 * wide.fc1.lora_B["default"].weight @ wide.fc1.lora_A["default"].weight
    ).detach()
    wide.fc1, wide.fc2 = wide.fc1.merge(), wide.fc2.merge()
    assert wide.fc1.weight[masked].count_nonzero() > 0
    assert fpe.project_(wide) > 0
    assert torch.equal(wide.fc1.weight, inside * ~masked)
    free = sum(int(m.fpe_mask.sum()) + len(m.bias) for m in (wide.fc1, wide.fc2))
    assert fpe.count_nonzero(wide) == free


def test_dora_is_left_alone_and_says_why():
    model = built(lambda: Net(DoRA))
    with pytest.raises(ModelError, match="as a layer"):
        fpe.plan(model, layers=["fc1.base_layer"], example_inputs=X)


def test_an_adapter_of_rank_one_cannot_be_split():
    model = built(lambda: Net(lambda layer: LoRA(layer, rank=1)))
    with pytest.raises(fpe.errors.FPEError, match="factor 2 is larger than the 1 inputs"):
        fpe.plan(model, layers=["fc1.base_layer"], example_inputs=X)


class TimeBlock(nn.Module):
    """A block of a diffusion U-Net: a convolution and the projection of a time meet in a sum."""

    def __init__(self, combine=lambda h, t: h + t, after=lambda block, x, h: block.shortcut(x) + h):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.time, self.shortcut, self.out = nn.Linear(5, 8), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1)
        self.norm, self.combine, self.after = nn.GroupNorm(4, 8), combine, after

    def forward(self, x, t):
        h = self.combine(self.conv1(x), self.time(F.silu(t))[:, :, None, None])
        h = self.conv2(F.silu(self.norm(h)))
        return self.out(F.silu(self.after(self, x, h)))


#: Name → model, its batch, and the producers of each group.
SUMS = {
    "a U-Net's block": (TimeBlock, "image", [["conv1", "time"], ["conv2", "shortcut"]]),
    "a difference by a factor": (
        lambda: TimeBlock(lambda h, t: torch.add(t, h, alpha=-0.5)),
        "image",
        [["conv1", "time"], ["conv2", "shortcut"]],
    ),
    "two activations": (
        lambda: Net2(lambda m, x: m.c(F.gelu(m.a(x)) + m.b(x).tanh())),
        "vector",
        [["a", "b"]],
    ),
    "three layers": (
        lambda: Net2(lambda m, x: m.c(F.gelu(m.a(x) + m.b(-x) + m.d(x)))),
        "vector",
        [["a", "b", "d"]],
    ),
    "a sum and a product": (
        lambda: Net2(lambda m, x: m.c(F.gelu(m.a(x) + m.b(-x)) * m.d(x))),
        "vector",
        [["a", "b", "d"]],
    ),
    "a norm on one side": (
        lambda: Net2(lambda m, x: m.c(F.gelu(m.norm(m.a(x)) + m.b(-x)))),
        "vector",
        [["a", "b"]],
    ),
    "halves of two layers": (
        lambda: Net2(lambda m, x: m.halves(F.glu(m.a(x) + m.b(-x), -1))),
        "vector",
        [["a", "b"]],
    ),
}


class Net2(nn.Module):
    def __init__(self, follow):
        super().__init__()
        self.a, self.b, self.d = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(16, 8)
        self.c, self.halves, self.square, self.norm = (
            nn.Linear(8, 2),
            nn.Linear(4, 2),
            nn.Linear(8, 8),
            nn.LayerNorm(8),
        )
        self.follow = follow

    def forward(self, x):
        return self.follow(self, x)


def batch_of(kind):
    generator = torch.Generator().manual_seed(2)
    if kind == "vector":
        return (torch.randn(5, 16, dtype=torch.float64, generator=generator),)
    shapes = (2, 4, 6, 6), (2, 5)
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)


@pytest.mark.parametrize("name", SUMS)
def test_layers_side_by_side_that_meet_in_a_sum_are_one_group(name):
    make, kind, producers = SUMS[name]
    model, batch = built(make), batch_of(kind)
    groups = find_groups(model, batch).groups
    assert [[*group.producers] for group in groups] == producers
    verify(model, groups, batch)
    wide = fpe.expand(model, 2, layers=[group.name for group in groups], example_inputs=batch)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    check_copies(model, groups, batch)


def test_what_is_concatenated_before_it_meets_in_a_product_is_found():
    """The consumer has the neurons twice, at the places of both layers."""

    def follow(m, x):
        a, b = m.a(x), m.b(-x)
        both = torch.cat([a, b], -1)
        return m.c(a * b) + m.both(both.tanh())

    model = built(lambda: Net2(follow))
    model.both = nn.Linear(16, model.c.out_features).double()
    (group,) = find_groups(model, X).groups
    assert group.input_layouts == ((1,), (1, 1))
    verify(model, group, X)


#: Name → forward pass of `Net2`, and a part of the reason why "a" stays dense.
RESIDUAL = {
    "a residual sum": (
        lambda m, x: (lambda h: m.c(h + m.square(F.gelu(h))))(m.a(x)),
        "meet other neurons in 'add'",
    ),
    "a residual sum through others": (
        lambda m, x: (lambda h: m.c(h + m.square(m.square2(F.gelu(h)))))(m.a(x)),
        "meet other neurons in 'add'",
    ),
    "a sum of sums": (
        lambda m, x: (lambda h: m.c(h + m.square(F.gelu(h))))(m.a(x) + m.b(-x)),
        "meet other neurons in 'add'",
    ),
    "a sum beside an output": (
        lambda m, x: (lambda h: (m.c(m.a(x) + h), h))(m.b(x)),
        "outputs of the network",
    ),
    "a sum with the input": (lambda m, x: m.c(m.a(x) + x[:, :8]), "meet another tensor in 'add'"),
    "a sum in another order": (lambda m, x: m.c(m.a(x) + m.b(x).flip(-1)), "meet another tensor in 'add'"),
    "a sum with a softmax": (lambda m, x: m.c(m.a(x) + m.b(x).softmax(-1)), "meet another tensor in 'add'"),
    "a sum over all pairs": (
        lambda m, x: m.c((m.a(x)[:, :, None] + m.b(x)[:, None]).tanh().sum(-1)),
        "meet other neurons in 'add'",
    ),
}


@pytest.mark.parametrize("name", RESIDUAL)
def test_other_sums_are_refused(name):
    follow, reason = RESIDUAL[name]
    model = built(lambda: Net2(follow))
    model.square2 = nn.Linear(8, 8).double()
    before = snapshot(model)
    with pytest.raises(ModelError) as error:
        fpe.plan(model, layers=["a"], example_inputs=X)
    assert reason in str(error.value)
    assert_unchanged(model, before)


def test_children_of_a_sum_add_up_to_their_parent():
    """Without an activation, and with enough zeros to prune, the expansion computes what the layers do."""
    model = built(lambda: Net2(lambda m, x: m.c(m.a(x) + m.b(-x))))
    with torch.no_grad():
        for layer in (model.a, model.b):
            layer.bias.zero_()
            layer.weight[:, :12] = 0
    wide = fpe.expand(model, 2, example_inputs=X, budget="network")
    assert [layer.group.producers for layer in wide.fpe_plan.layers] == [("a", "b")]
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    torch.testing.assert_close(wide(X), model(X))
