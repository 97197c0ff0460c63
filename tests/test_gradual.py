"""Gradual pruning to a budget: exact counts at each step, for all models and optimizers; resuming."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

import fpe
from fpe.errors import ArgumentError, BudgetError, CheckpointError, ModelError
from fpe.masked import MaskedLayer
from fpe.rewiring.gradual import Link, Prunable, prune_to
from fpe.training import Cosine, adam, ensemble, train
from fpe.training.losses import Objective
from zoo import ZOO, answer

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
}
MODELS = {
    "mlp": lambda: fpe.mlp(8, 16, 3, seed=0),
    "direct": lambda: fpe.mlp(8, 16, 3, seed=0, direct=True),
    "linear": lambda: fpe.mlp(8, 0, 3, seed=0),
    "deep": lambda: fpe.mlp(8, [12, 12], 3, seed=0),
    "expanded": lambda: fpe.open_masks_(fpe.expand(fpe.mlp(8, 6, 3, seed=0), 3)),
}


def run(model, optimizer, pruner, steps, after=None):
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(X), Y).backward()
        optimizer.step()
        pruner.step()
        if after is not None:
            after()


def masked_model(name="mlp"):
    return fpe.with_masks(MODELS[name]())


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(sorted(MODELS)),
    st.sampled_from(sorted(OPTIMIZERS)),
    st.sampled_from(["network", "group", "layer", "neuron"]),
    st.sampled_from(["magnitude", "moment", "fisher", 0.1]),
    st.sampled_from(["cubic", "linear", "once"]),
    st.sampled_from([None, "rigl"]),
    st.floats(0.55, 1.0),
)
def test_the_count_is_the_schedules_at_each_step(name, optimizer, scope, score, shape, then, share):
    model = masked_model(name)
    optimizer, start = OPTIMIZERS[optimizer](model.parameters()), fpe.count_nonzero(model)
    budget = int(share * start)
    schedule = fpe.PruningSchedule(begin=0.1, end=0.6, every=3, shape=shape)
    how = {"budget": budget, "steps": 30, "scope": scope, "score": score, "schedule": schedule, "then": then}
    pruner = fpe.GradualPruner(model, optimizer, **how)
    counts = [start]
    run(model, optimizer, pruner, 30, lambda: counts.append(fpe.count_nonzero(model)))
    assert counts == [pruner.count_at(step) for step in range(31)]
    assert (max(counts), set(counts[18:])) == (start, {budget})
    assert pruner.start == start
    assert fpe.project_(model) == 0


def test_resumed_equals_uninterrupted():
    def make():
        torch.manual_seed(0)
        model = masked_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # the pruner keeps the second moments
        return model, optimizer, fpe.GradualPruner(model, optimizer, budget=60, steps=40, then="accumulated")

    whole = make()
    run(*whole, 40)
    for stop in (7, 30):
        first, second = make(), make()
        run(*first, stop)
        file = io.BytesIO()
        torch.save([part.state_dict() for part in first], file)
        file.seek(0)
        for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
            part.load_state_dict(state)
        run(*second, 40 - stop)
        for a, b in zip(whole[0].state_dict().values(), second[0].state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_a_neuron_without_inputs_or_consumers_gives_its_bias_to_other_weights():
    """Neuron 1 loses its only input, of the lowest score, and its bias and outgoing weight with it."""
    first = Prunable(torch.tensor([[[9.0, 8.0], [0.1, 0.0]]]), torch.tensor([[[True, True], [True, False]]]))
    first.bias_mask = torch.tensor([[True, True]])
    second = Prunable(torch.tensor([[[5.0, 4.0]]]), torch.tensor([[[True, True]]]))
    link = Link((0,), (1,), (torch.arange(2),))
    (mask, bias), (outgoing, none) = prune_to([first, second], [link], [4], [[0, 1]])
    assert (mask.tolist(), bias.tolist()) == ([[[True, True], [False, False]]], [[True, False]])
    assert (outgoing.tolist(), none) == ([[[True, False]]], None)
    assert int(mask.sum() + bias.sum() + outgoing.sum()) == 4


def test_of_equal_scores_the_first_is_pruned():
    layer = Prunable(torch.ones(1, 2, 3), torch.ones(1, 2, 3, dtype=torch.bool))
    ((mask, _),) = prune_to([layer], [], [4], [[0]])
    assert mask.tolist() == [[[False, False, True], [True, True, True]]]


def test_each_neuron_keeps_a_least_count_or_equally_many():
    for how, allowed in (({"least": 2}, range(2, 9)), ({"scope": "neuron"}, None)):
        model = masked_model("linear")
        optimizer = OPTIMIZERS["adam"](model.parameters())
        run(model, optimizer, fpe.GradualPruner(model, optimizer, budget=14, steps=20, **how), 20)
        inputs = model[0].fpe_mask.sum(1).int().tolist()
        assert sum(inputs) == 11
        assert set(inputs) <= set(allowed) if allowed else sorted(inputs) == [3, 4, 4]


def test_the_score_takes_the_optimizers_second_moment_or_its_own():
    for name, key in (
        ("adam", "exp_avg_sq"),
        ("adamw", "exp_avg_sq"),
        ("rmsprop", "square_avg"),
        ("sgd", None),
    ):
        model = masked_model("linear")
        optimizer = OPTIMIZERS[name](model.parameters())
        pruner = fpe.GradualPruner(model, optimizer, budget=14, steps=20)
        run(model, optimizer, pruner, 3)
        weight = model[0].weight
        if key is None:
            model2 = masked_model("linear")
            other = OPTIMIZERS[name](model2.parameters())
            expected = torch.zeros_like(weight)
            for _ in range(3):
                other.zero_grad()
                cross_entropy(model2(X), Y).backward()
                expected = 0.999 * expected + 0.001 * model2[0].weight.grad ** 2
                other.step()
            torch.testing.assert_close(
                pruner.second_moment(0) * (model[0].fpe_mask), expected * model[0].fpe_mask
            )
        else:
            assert torch.equal(pruner.second_moment(0), optimizer.state[weight][key])


@pytest.mark.parametrize("objective", ["classes", "labels", "squared"])
@pytest.mark.parametrize("sizes", [{"hidden": 12}, {"hidden": 0}, {"hidden": 9, "direct": True}])
def test_an_ensemble_prunes_as_the_plain_loop(sizes, objective):
    y = Y if objective == "classes" else nn.functional.one_hot(Y, 3).float()
    how = {"epochs": 6, "decay": Cosine(6), "objective": Objective(objective, 0.1 * (objective != "squared"))}

    def members():
        networks = [fpe.with_masks(fpe.mlp(8, outputs=3, seed=s, **sizes)) for s in range(3)]
        optimizers = [adam(network, 1e-2) for network in networks]
        pruners = [
            fpe.GradualPruner(n, o, budget=20 + i, steps=24)
            for i, (n, o) in enumerate(zip(networks, optimizers, strict=True))
        ]
        generators = [torch.Generator().manual_seed(5) for _ in networks]
        return networks, optimizers, pruners, generators

    networks, optimizers, pruners, generators = members()
    batches = {"batch_size": 16}
    own = {"optimizers": optimizers, "rewirers": pruners, "generators": generators}
    ensemble.train(networks, X, y, **own, **how, **batches)
    for network, single, optimizer, pruner, generator in zip(networks, *members(), strict=True):
        train(single, X, y, optimizer=optimizer, rewirer=pruner, generator=generator, **how, **batches)
        assert fpe.count_nonzero(network) == fpe.count_nonzero(single) == pruner.budget
        for a, b in zip(network.parameters(), single.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert pruners[0].taken == 24


def test_masked_biases_are_saved_loaded_and_copied(tmp_path):
    model = masked_model()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    run(model, optimizer, fpe.GradualPruner(model, optimizer, budget=30, steps=20), 20)
    assert model[0].fpe_bias_mask is not None
    fpe.save(model, tmp_path / "model.safetensors")
    for other in (fpe.load(tmp_path / "model.safetensors"), copy.deepcopy(model)):
        assert fpe.count_nonzero(other) == 30
        assert torch.equal(other(X), model(X))
        assert torch.equal(other[0].fpe_bias_mask, model[0].fpe_bias_mask)
    fresh = masked_model()
    fresh.load_state_dict(model.state_dict())
    assert fpe.count_nonzero(fresh) == 30
    fresh.load_state_dict(masked_model().state_dict())
    assert fresh[0].fpe_bias_mask is None


def test_a_compiled_model_is_pruned_alike():
    models = []
    for compiled in (False, True):
        model = masked_model()
        optimizer = OPTIMIZERS["adam"](model.parameters())
        run_as = torch.compile(model, backend="aot_eager") if compiled else model
        run(run_as, optimizer, fpe.GradualPruner(run_as, optimizer, budget=40, steps=12), 12)
        models.append(model)
    for a, b in zip(*(model.state_dict().values() for model in models), strict=True):
        torch.testing.assert_close(a, b)


def test_with_masks_computes_the_same_and_leaves_the_model_alone():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2, bias=False)).eval()
    image, before = torch.randn(2, 1, 3, 3), copy.deepcopy(model.state_dict())
    wide = fpe.with_masks(model)
    assert torch.equal(wide(image), model(image))
    assert not wide[0].training
    assert [isinstance(m, MaskedLayer) for m in wide] == [True, False, False, True]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not isinstance(fpe.with_masks(model, "3")[0], MaskedLayer)
    with pytest.raises(ModelError, match="nose"):
        fpe.with_masks(model, "nose")


@pytest.mark.parametrize("name", ZOO)
def test_with_masks_every_model_computes_the_same_and_counts_the_same(name):
    model, batch = ZOO[name]()
    wide = fpe.with_masks(model)
    torch.testing.assert_close(answer(wide.eval(), batch), answer(model.eval(), batch))
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)


@pytest.mark.parametrize(
    ("name", "layer", "why"),
    [
        ("GPT-2", "lm_head", "shares its parameters with transformer.wte"),
        ("ConvNeXt-style block", "body.0.depthwise", "convolution in 6 groups"),
    ],
)
def test_a_layer_that_cannot_be_masked_is_left_and_if_asked_for_refused(name, layer, why):
    model, _ = ZOO[name]()
    assert type(fpe.with_masks(model).get_submodule(layer)) is type(model.get_submodule(layer))
    with pytest.raises(ModelError, match=why):
        fpe.with_masks(model, layer)


@pytest.mark.parametrize(
    ("how", "error", "match"),
    [
        ({"budget": 0}, ArgumentError, "budget is 0"),
        ({"budget": 10**6}, BudgetError, "smaller budget"),
        ({"budget": 5, "least": 2}, BudgetError, "cannot be pruned"),
        ({"score": "size"}, ArgumentError, "magnitude"),
        ({"score": 2.0}, ArgumentError, "power"),
        ({"scope": "model"}, ArgumentError, "network"),
        ({"steps": 0}, ArgumentError, "steps is 0"),
        ({"schedule": "cubic"}, ArgumentError, "PruningSchedule"),
        ({"then": "rigel"}, ArgumentError, "rigl"),
    ],
)
def test_bad_arguments(how, error, match):
    model = masked_model()
    with pytest.raises(error, match=match):
        fpe.GradualPruner(model, adam(model), **{"budget": 60, "steps": 10, **how})


def test_bad_models_states_and_schedules():
    model = masked_model()
    optimizer = adam(model)
    with pytest.raises(ModelError, match="with_masks"):
        fpe.GradualPruner(fpe.mlp(8, 4, 3), optimizer, budget=20, steps=10)
    with pytest.raises(ArgumentError, match="does not train"):
        fpe.GradualPruner(masked_model(), optimizer, budget=60, steps=10)
    pruner = fpe.GradualPruner(model, optimizer, budget=60, steps=10)
    with pytest.raises(ModelError, match="no gradient"):
        [pruner.step() for _ in range(10)]
    other = fpe.GradualPruner(model, optimizer, budget=70, steps=10)
    with pytest.raises(CheckpointError, match="budget is 60"):
        other.load_state_dict(pruner.state_dict())
    for how in ({"begin": 0.7}, {"end": 2}, {"every": 0}, {"shape": "round"}):
        with pytest.raises(ArgumentError, match=next(iter(how))):
            fpe.PruningSchedule(**how)
