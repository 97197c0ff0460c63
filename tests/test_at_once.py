"""All groups are verified in one wide model: few runs, and no wrong group passes."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fpe
from fpe.expansion.at_once import verified_at_once
from fpe.expansion.copies import Arrangement
from fpe.expansion.plan import LayerPlan
from fpe.graph import NeuronGroup
from test_verification import FORMS, RIGHT, Block, group_of

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def layer_of(group, factor, neurons=6):
    return LayerPlan(group, factor, 8, "inputs", neurons, factor * neurons, 0, 0)


def at_once(model, group, factor=2, batch=X, exported=False):
    return verified_at_once(model, [layer_of(group, factor)], batch, exported)


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("form", sorted(FORMS.keys() - RIGHT))
def test_no_wrong_group_passes_with_any_factor_in_any_mode(form, exported):
    for factor, dtype in ((2, torch.float32), (3, torch.bfloat16)):
        model, batch = Block(form, dtype=dtype), X.to(dtype)
        assert at_once(model, group_of(form), factor, batch, exported) is None


@pytest.mark.parametrize("missing", ["head", "second"])
def test_a_missing_consumer_does_not_pass(missing):
    for form in ("right", "gated"):
        consumer = "second" if missing == "head" else "head"
        assert at_once(Block(form), NeuronGroup(group_of(form).producers, (consumer,))) is None


@pytest.mark.parametrize("form", sorted(RIGHT))
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_right_group_passes(form, factor):
    for dtype in (torch.float32, torch.bfloat16):
        model, batch = Block(form, dtype=dtype), X.to(dtype)
        assert at_once(model, group_of(form), factor, batch) == [torch.Size([64, 3])]


def wide_only(change):
    """Return a change of the neurons that shows in a wide model alone."""
    return lambda t, h, gate: change(h) if h.shape[-1] > 6 else h


def one(place):
    return lambda h: torch.cat([h[..., :place], 2 * h[..., place : place + 1], h[..., place + 1 :]], -1)


@pytest.mark.parametrize("mode", ["training", "evaluation"])
@pytest.mark.parametrize("place", range(12))
def test_one_wide_neuron_that_is_treated_otherwise_in_one_mode_is_noticed(place, mode):
    def change(t, h, gate):
        return wide_only(one(place))(t, h, gate) if t.training == (mode == "training") else h

    FORMS["one place"] = change
    try:
        assert at_once(Block("one place"), group_of("right"), exported=True) is None
    finally:
        del FORMS["one place"]


WIDE = {
    "divided by their number": lambda h: h * 6 / h.shape[-1],
    "a scale for each parent": lambda h: h * torch.arange(1.0, 7).repeat_interleave(2).to(h),
    "only those before": lambda h: torch.cat([h[..., :6], 0 * h[..., 6:]], -1),
    "centered": lambda h: h - h.mean(-1, keepdim=True),
}


@pytest.mark.parametrize("form", sorted(WIDE))
def test_what_depends_on_the_number_of_neurons_is_noticed(form):
    FORMS["wide"] = wide_only(WIDE[form])
    try:
        assert at_once(Block("wide"), group_of("right")) is None
    finally:
        del FORMS["wide"]


class Noisy(nn.Module):
    """Adds its own noise where it fits, in one mode."""

    def __init__(self, training):
        super().__init__()
        self.when = training
        self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 3)
        self.noise = nn.Buffer(torch.linspace(-1, 1, 6))

    def forward(self, x):
        hidden = self.up(x)
        if self.training == self.when and hidden.shape[-1] == len(self.noise):
            hidden = hidden + self.noise
        return self.down(F.gelu(hidden))


@pytest.mark.parametrize("training", [True, False])
def test_what_only_the_dense_model_computes_is_noticed_in_each_mode(training):
    model, group = Noisy(training), NeuronGroup("up", "down")
    assert at_once(model, group) is None
    with pytest.raises(fpe.errors.ModelError, match="the output moves by"):
        fpe.plan(model, layers=group, example_inputs=X)
    with pytest.raises(fpe.errors.ModelError):  # an export shows it in evaluation mode
        fpe.plan(model, layers="up", example_inputs=X)


class Swapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(8, 6)
        self.c, self.d = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.c(F.gelu(self.a(x))) + self.d(F.gelu(self.b(x)))


def test_consumers_that_are_mistaken_for_each_other_are_noticed():
    right = [layer_of(NeuronGroup("a", "c"), 2), layer_of(NeuronGroup("b", "d"), 2)]
    wrong = [layer_of(NeuronGroup("a", "d"), 2), layer_of(NeuronGroup("b", "c"), 2)]
    assert verified_at_once(Swapped(), right, X, True) == [torch.Size([64, 3])]
    assert verified_at_once(Swapped(), wrong, X, True) is None


@pytest.mark.parametrize("factor", [2, 3, 5])
@pytest.mark.parametrize("neurons", [2, 3, 8])
def test_an_arrangement_has_one_copy_of_each_neuron_and_others_that_cancel(neurons, factor):
    layer = layer_of(NeuronGroup("a", "b"), factor, neurons)
    own = Arrangement.beside_others(layer, seed=0)
    others = torch.isin(own.like, own.fresh)
    assert own.parent[~others].sort().values.tolist() == list(range(neurons))
    assert (own.divisor[~others] == 1).all()
    assert (own.parent[~others] != layer.index_map.parent[~others]).all()
    assert others.sum() == neurons * (factor - 1)
    for place in own.fresh:
        pair = own.like == place
        assert (1 / own.divisor[pair]).sum() == 0
        assert (own.parent[pair] == own.parent[place]).all()


class Residual(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), norm(8), nn.GELU(), nn.Conv2d(8, 6, 3, padding=1))
            for _ in range(2)
        )

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


def plain():
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))


def transformer(name):
    transformers = pytest.importorskip("transformers")
    if name == "llama":
        config = transformers.LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=6,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=50,
        )
        return transformers.LlamaForCausalLM(config)
    config = transformers.BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=50
    )
    return transformers.BertForSequenceClassification(config)


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MODELS = {
    "mlp": (plain, X, 3),
    "dropout": (lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 4)), X, 3),
    "cnn": (lambda: Residual(nn.Identity), IMAGES, 3),
    # Batch norm computes something else in each mode, in which both sizes are run.
    "cnn with batch norm": (lambda: Residual(nn.BatchNorm2d), IMAGES, 4),
    "bert": (lambda: transformer("bert"), None, 3),
    "llama": (lambda: transformer("llama"), None, 3),
}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_plan_takes_one_export_and_three_runs(name, monkeypatch):
    build, batch, most = MODELS[name]
    model, runs, exports = build(), [], []
    forward, export = type(model).forward, torch.export.export

    def counted(self, *args, **kwargs):
        if not torch.compiler.is_exporting():
            runs.append(self.training)
        return forward(self, *args, **kwargs)

    def counted_export(*args, **kwargs):
        exports.append(args)
        return export(*args, **kwargs)

    batch = batch if batch is not None else {"input_ids": torch.arange(1, 17).view(2, 8)}
    monkeypatch.setattr(torch.export, "export", counted_export)
    own = type(type(model).__name__, (type(model),), {"forward": counted})
    model.__class__ = own
    plan = fpe.plan(model, example_inputs=batch)
    assert plan.layers
    assert len(exports) == 1
    assert len(runs) <= most
    assert {True, False} == set(runs)


def test_a_model_that_cannot_be_trained_is_judged_group_by_group():
    class Deployed(Block):
        def forward(self, x):
            if self.training:
                raise NotImplementedError("for inference only")
            return super().forward(x)

    assert at_once(Deployed(), group_of("right")) is None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(fpe.plan(Deployed(), layers=group_of("right"), example_inputs=X).layers) == 1
    assert any("training mode" in str(one.message) for one in caught)
