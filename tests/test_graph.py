"""Which neurons can be expanded: what is followed, what is refused with its reason, what is verified."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import fpe
from fpe.errors import ModelError
from fpe.graph import NeuronGroup, find_groups, operations, verify
from models import MODELS, assert_unchanged, snapshot

HEAD = "it is a head: its neurons are outputs of the network"


def reasons(model):
    return {skipped.name: skipped.reason for skipped in find_groups(model).skipped}


class Net(nn.Module):
    """Two layers of equal width and a head; `follow` is what happens to the neurons of `a`."""

    def __init__(self, follow=None):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.wide_head = nn.Linear(12, 2)
        self.follow = follow

    def forward(self, x):
        return self.follow(self, F.relu(self.a(x)), x)


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("mlp", [NeuronGroup("0", ("2",))]),
        ("layer_norm", [NeuronGroup("0", ("3",), ("1",))]),
        ("prelu", [NeuronGroup("0", ("2",), ("1",))]),
        ("two_hidden", [NeuronGroup("0", ("2",)), NeuronGroup("2", ("4",))]),
        ("functional", [NeuronGroup("hidden", ("head",))]),
        ("skip", [NeuronGroup("first", ("hidden", "short")), NeuronGroup("hidden", ("last",))]),
        ("nested", [NeuronGroup("0.0", ("2",))]),
    ],
)
def test_neurons_are_followed_to_all_their_consumers(name, groups):
    assert list(find_groups(MODELS[name]()[0]).groups) == groups


@pytest.mark.parametrize("name", MODELS)
def test_what_is_found_is_verified_by_permutation(name):
    model, x = MODELS[name]()
    before = snapshot(model)
    groups = find_groups(model).groups
    assert groups
    for group in groups:
        verify(model, group, x)
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("follow", "reason"),
    [
        (
            lambda net, h, x: net.head(h.softmax(-1)),
            "its neurons are passed to 'softmax', which is not known",
        ),
        (lambda net, h, x: net.head(torch.cumsum(h, 1)), "its neurons are passed to 'cumsum', which is not"),
        (lambda net, h, x: net.head(h.sort().values), "its neurons are passed to 'sort', which is not known"),
        (
            lambda net, h, x: net.head(F.layer_norm(h, (4,))),
            "its neurons are passed to 'layer_norm', which is",
        ),
        (lambda net, h, x: net.wide_head(torch.cat([h, x], 1)), "its neurons meet another tensor in 'cat'"),
        (
            lambda net, h, x: net.head(h / h.norm()),
            "its neurons are passed to 'norm', which is not known to treat each neuron alone",
        ),
        (lambda net, h, x: net.head(h * net.head.bias.sum()), "its neurons meet another tensor in 'mul'"),
        (lambda net, h, x: net.head(h[:, [1, 0, 3, 2]]), "its neurons are passed to 'getitem', which is not"),
        (lambda net, h, x: (net.head(h), h), "it is a head: its neurons are outputs of the network"),
        (lambda net, h, x: net.head(net.b(net.b(h))), "'b' is used 2 times in one forward pass"),
        (lambda net, h, x: F.linear(h, net.head.weight), "its neurons meet another tensor in 'linear'"),
        (lambda net, h, x: x, "no layer consumes its neurons"),
        (lambda net, h, x: net.head(h.view(-1, 2, 2).flatten(1)), "its neurons are passed to 'view', which"),
    ],
)
def test_what_may_mix_neurons_is_refused_with_the_reason(follow, reason):
    assert reasons(Net(follow))["a"].startswith(reason)


@pytest.mark.parametrize(
    "follow",
    [
        lambda net, h, x: net.head(torch.max(h, torch.zeros(()))),
        lambda net, h, x: net.head(torch.max(torch.zeros(()), h)),
        lambda net, h, x: net.head(torch.min(h, other=torch.ones(()))),
        lambda net, h, x: net.head(h.clamp(min=torch.zeros(()), max=torch.ones(4, 1))),
        lambda net, h, x: net.head(torch.where(h > 1, h, torch.zeros(()))),
        lambda net, h, x: net.head(torch.where(x[:, :1] > 0, h, -h)),
        lambda net, h, x: net.head(h[:, None].max(1).values + h[:, None].amin(dim=1)),
        lambda net, h, x: net.head((h[:, None] * torch.arange(3.0)[:, None]).std(1, unbiased=False)),
        lambda net, h, x: net.head(h.split([1, 3])[1]),
        lambda net, h, x: net.head(h.tensor_split((2,))[0]),
        lambda net, h, x: net.head(h.swapaxes(0, 1).swapdims(0, 1)),
        lambda net, h, x: net.head(torch.cat(tensors=[h, h], dim=0)),
    ],
)
def test_the_overloads_of_an_operation_are_told_apart(follow):
    model, x = Net(follow), torch.randn(4, 8)
    assert find_groups(model, x).groups == (NeuronGroup("a", ("head",)),)
    verify(model, NeuronGroup("a", ("head",)), x * 3)


class Branch(nn.Module):
    """Something is done to the neurons of `a`; those of `b` are expandable in any case."""

    def __init__(self, between):
        super().__init__()
        self.a, self.b, self.c, self.head = (nn.Linear(*n) for n in ((8, 8), (8, 8), (8, 6), (6, 2)))
        self.between = between

    def forward(self, x):
        h = F.relu(self.a(x))
        return self.head(F.relu(self.c(self.b(h + self.between(h, x)))))


@pytest.mark.parametrize(
    "between",
    [
        lambda h, x: torch.max(h, x),
        lambda h, x: h.var(True),
        lambda h, x: h.max(),
        lambda h, x: h.norm(dim=-1, keepdim=True),
        lambda h, x: torch.where(h > 0)[0].sum(),
        lambda h, x: h[x > 0].sum(),
        lambda h, x: h[x[:, 0] > 0].sum(),
        lambda h, x: torch.clamp(h, max=h[:, :1]),
    ],
)
def test_an_operation_that_is_not_understood_costs_only_the_neurons_in_it(between):
    model, x = Branch(between), torch.randn(4, 8)
    plan = fpe.plan(model, example_inputs=x)
    assert "b" in {layer.group.name for layer in plan.layers}
    reason = {skipped.name: skipped.reason for skipped in plan.skipped}["a"]
    assert "neurons" in reason
    assert "cannot be followed" not in reason


def test_an_operation_that_no_rule_expects_is_named_and_costs_only_its_neurons(monkeypatch):
    def fails(*given):
        raise TypeError("'Node' object is not iterable")

    monkeypatch.setitem(operations._RULES, "squeeze", fails)
    plan = fpe.plan(Branch(lambda h, x: h.squeeze(1)), example_inputs=torch.randn(4, 8))
    assert "b" in {layer.group.name for layer in plan.layers}
    reason = {skipped.name: skipped.reason for skipped in plan.skipped}["a"]
    assert "'squeeze' in a way that fpe does not understand (TypeError" in reason


def test_scalar_arithmetic_and_known_activations_are_followed():
    net = Net(lambda net, h, x: net.head(torch.tanh(2 * h - 1).sigmoid() / 3))
    assert find_groups(net).groups == (NeuronGroup("a", ("head",)),)


def test_a_norm_over_another_width_is_refused():
    model = nn.Sequential(nn.Linear(8, 4), nn.LayerNorm((2, 4)), nn.Linear(4, 2))
    assert reasons(model)["0"] == (
        "its neurons pass through '1', which cannot widen: LayerNorm is over (2, 4), not over the 4 neurons"
    )


def test_a_consumer_of_another_width_is_refused():
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(6, 2))
    assert reasons(model)["0"] == "its consumer '2' has 6 inputs, not one for each of 4 neurons"


def tied(model):
    model[2].weight = model[0].weight


def twice(model):
    model.append(model[2])


def hooked(register):
    def spoil(model):
        getattr(model[2], register)(lambda *_: None)

    return spoil


def parametrized(model):
    parametrizations.weight_norm(model[2])


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) / x.norm()


def subclassed(model):
    model[2] = Scaled(4, 4)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (tied, "'0' shares its parameters with 2"),
        (twice, "'2' is used 2 times in one forward pass"),
        (
            hooked("register_forward_hook"),
            "'2' has hooks, which a masked layer would lose; remove them first",
        ),
        (
            hooked("register_forward_pre_hook"),
            "'2' has hooks, which a masked layer would lose; remove them first",
        ),
        (
            hooked("register_full_backward_hook"),
            "'2' has hooks, which a masked layer would lose; remove them first",
        ),
        (
            hooked("register_full_backward_pre_hook"),
            "'2' has hooks, which a masked layer would lose; remove them first",
        ),
        (
            parametrized,
            "'2' has a parametrization (WeightNorm), which a masked layer would lose; make it permanent "
            "first with torch.nn.utils.parametrize.remove_parametrizations",
        ),
        (subclassed, "'2' is a Scaled, of which only nn.Linear is known"),
    ],
)
def test_layers_that_are_more_than_linear_are_refused(spoil, reason):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    spoil(model)
    assert reasons(model)["0"] == reason


@pytest.mark.parametrize("spoil", [hooked("register_forward_hook"), subclassed, parametrized])
def test_a_group_by_hand_of_such_layers_is_refused_too(spoil):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    spoil(model)
    with pytest.raises(ModelError, match=r"'2' (has hooks|has a parametrization|is a Scaled)"):
        fpe.expand(model, layers=[NeuronGroup("0", ("2",))], example_inputs=torch.ones(2, 4))


def test_a_weight_that_forward_also_uses_directly_is_not_widened():
    """After a wider `head`, `y @ head.weight` would have another shape."""
    net = Net(lambda net, h, x: net.head(h) @ net.head.weight)
    try:
        wide = fpe.expand(net)
    except ModelError:
        return
    assert wide(torch.ones(3, 8)).shape == net(torch.ones(3, 8)).shape


def test_what_tracing_cannot_reach_is_listed():
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4), layer)
    found = reasons(model)
    out_of_reach = "it is not called as a layer where the forward pass could be followed"
    assert found["3.linear1"] == found["3.linear2"] == out_of_reach
    assert "only linear layers and convolutions" in found["3.self_attn.out_proj"]
    assert found["2"].startswith("its neurons are passed to '3' (TransformerEncoderLayer)")
    assert find_groups(model).groups == (NeuronGroup("0", ("2",)),)


class Branching(nn.Module):
    """The forward pass branches on the data."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 2)
        nn.init.uniform_(self.norm.weight)

    def forward(self, x):
        h = self.norm(self.a(x))
        return self.b(F.relu(h) if x.sum() > 0 else torch.tanh(h))


def test_data_dependent_control_flow_asks_for_a_batch():
    with pytest.raises(ModelError) as error:
        fpe.expand(Branching())
    assert str(error.value).startswith(
        "the forward pass of Branching cannot be followed symbolically (TraceError: symbolically traced "
        "variables cannot be used as inputs to control flow). Give example_inputs=…, one batch, on which it "
        "can be followed."
    )


def test_a_child_that_cannot_be_traced_leaves_the_rest_expandable():
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8), Branching())
    assert find_groups(model).groups == (NeuronGroup("0", ("2",)),)


def test_a_group_by_hand_is_verified_and_expanded():
    model, x = Branching(), torch.ones(3, 8)
    before = snapshot(model)
    wide = fpe.expand(model, layers=[NeuronGroup("a", ("b",), ("norm",))], example_inputs=x)
    assert_unchanged(model, before)
    assert wide.a.out_features == 8
    assert wide.norm.normalized_shape == (8,)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    assert wide(x).shape == wide(-x).shape == (3, 2)


@pytest.mark.parametrize("example", [(torch.ones(3, 8),), {"x": torch.ones(3, 8)}])
def test_a_batch_can_be_positional_or_named(example):
    verify(Branching(), NeuronGroup("a", ("b",), ("norm",)), example)
    with pytest.raises(ModelError, match="the output moves by"):
        verify(Branching(), NeuronGroup("a", ("b",)), example)


class Scale(nn.Module):
    """Hides, in its forward pass, something of each neuron's own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), nn.Linear(4, 2)
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]))

    def forward(self, x):
        return self.b(F.layer_norm(self.a(x), (4,), self.scale))


@pytest.mark.parametrize(
    ("model", "group"),
    [
        (Scale(), NeuronGroup("a", ("b",))),
        (Net(lambda net, h, x: net.head(h) + net.head(net.b(h))), NeuronGroup("a", ("head",))),
        (Net(lambda net, h, x: net.head(torch.cumsum(h, 1))), NeuronGroup("a", ("head",))),
        (MODELS["batch_norm"]()[0], NeuronGroup("0", ("3",))),
    ],
    ids=["hidden norm", "missed consumer", "cumsum", "forgotten norm"],
)
def test_a_wrong_group_by_hand_is_refused_before_anything_changes(model, group):
    before, state = snapshot(model), torch.get_rng_state()
    with pytest.raises(ModelError) as error:
        fpe.expand(model, layers=[group], example_inputs=torch.linspace(-1, 1, 24).view(3, 8))
    assert f"the neurons of {group.name!r} cannot be expanded" in str(error.value)
    assert "the output moves by" in str(error.value)
    assert_unchanged(model, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(8, 4), nn.PReLU(4), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
    ],
    ids=["LayerNorm", "PReLU", "BatchNorm1d"],
)
@pytest.mark.parametrize("bias", [-9.0, 0.0, 9.0])
def test_a_forgotten_norm_is_noticed_even_if_it_treats_all_neurons_alike(model, bias):
    """Untrained, its entries are all equal, so that no order of the neurons shows it."""
    nn.init.constant_(model[0].bias, bias)
    with pytest.raises(ModelError):
        fpe.expand(model, layers=[NeuronGroup("0", ("2",))], example_inputs=torch.ones(3, 8))


def test_a_verification_needs_an_output_that_could_move():
    """Class numbers hide that `b` was missed."""
    net = Net(lambda net, h, x: (net.head(h) + net.head(net.b(h))).argmax(1))
    with pytest.raises(ModelError):
        verify(net, NeuronGroup("a", ("head",)), torch.ones(3, 8))


@pytest.mark.parametrize("name", ["dropout", "batch_norm"])
def test_a_verification_leaves_model_modes_and_random_state_as_they_were(name):
    model, x = MODELS[name]()
    model.train()
    model[1].eval()
    before, state = snapshot(model), torch.get_rng_state()
    for group in find_groups(model).groups:
        verify(model, group, x)
    assert_unchanged(model, before)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ModelError, match="cannot be run on example_inputs"):
        verify(model, group, torch.ones(3, 5))
    assert_unchanged(model, before)


class Auxiliary(nn.Module):
    """In training mode there is a second head."""

    def __init__(self, mix=lambda h: h):
        super().__init__()
        self.a, self.norm, self.dropout = nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.1)
        self.head, self.aux, self.mix = nn.Linear(4, 2), nn.Linear(4, 3), mix

    def forward(self, x):
        h = self.dropout(F.relu(self.norm(self.a(x))))
        return (self.head(h), self.aux(self.mix(h))) if self.training else self.head(h)


@pytest.mark.parametrize("batch", [None, torch.randn(5, 8)], ids=["symbolic", "exported"])
def test_a_consumer_that_only_training_calls_is_found(batch):
    model = Auxiliary()
    assert find_groups(model, batch).groups == (NeuronGroup("a", ("head", "aux"), ("norm",)),)
    wide = fpe.expand(model, 2, example_inputs=batch)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    assert [tuple(y.shape) for y in wide.train()(torch.randn(5, 8))] == [(5, 2), (5, 3)]


@pytest.mark.parametrize("batch", [None, torch.randn(5, 8)], ids=["symbolic", "exported"])
def test_what_mixes_neurons_in_training_mode_only_is_refused(batch):
    found = find_groups(Auxiliary(lambda h: h.cumsum(-1)), batch)
    assert found.groups == ()
    assert "in training mode its neurons are passed to 'cumsum'" in found.skipped[-1].reason
