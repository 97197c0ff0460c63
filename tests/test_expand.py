"""expand over the table of models: exact counts, an untouched model, and what becomes of each layer."""

import itertools
import json

import pytest
import torch
from torch import nn

import fpe
from fpe.expansion.plan import Plan
from models import LABELS, MODELS, assert_unchanged, same_bits, same_state, snapshot

SPLITS = ["random", "shared", "gram", "2:4", fpe.LabelSplit(LABELS), fpe.LabelSplit(LABELS, shared=True)]
#: Models with one small head, so that the columns of the hidden layer can be pruned.
COLUMNS = ["mlp", "without_biases", "dropout", "functional", "nested", "prelu"]
CASES = [
    *((name, s, "magnitude", f) for name, s, f in itertools.product(MODELS, SPLITS, (1, 2, 3))),
    *((name, s, "columns", f) for name, s, f in itertools.product(COLUMNS, ("shared", SPLITS[-1]), (1, 2))),
]


def masks(model):
    return {name: t for name, t in model.named_buffers() if name.endswith("fpe_mask")}


@pytest.mark.parametrize(
    ("name", "split", "prune", "factor"), [case for case in CASES if case[1] != "2:4" or case[3] < 3], ids=str
)
def test_the_count_is_exact_and_the_model_untouched(name, split, prune, factor):
    model, x = MODELS[name]()
    model.eval()
    model(x).sum().backward()
    before = snapshot(model)
    wide = fpe.expand(model, factor, split=split, prune=prune, example_inputs=x)
    assert_unchanged(model, before)
    assert type(wide) is type(model)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model) == wide.fpe_plan.nonzero
    for module in wide.modules():
        if isinstance(module, fpe.MaskedLinear):
            assert (module.weight[module.fpe_mask == 0] == 0).all()
            assert ((module.fpe_mask == 0) | (module.fpe_mask == 1)).all()
    for layer in wide.fpe_plan.layers:
        assert wide.get_submodule(layer.group.name).out_features == factor * layer.neurons
        for consumer in layer.group.consumers:
            assert wide.get_submodule(consumer).in_features == factor * layer.neurons
    assert wide(x).shape == model(x).shape
    assert wide(x).isfinite().all()
    if factor == 1:
        assert same_bits(wide(x), model(x))


@pytest.mark.parametrize("name", MODELS)
def test_the_new_model_shares_no_memory_with_the_old_one(name):
    model, _ = MODELS[name]()
    before = snapshot(model)
    for factor in (1, 2):
        wide = fpe.expand(model, factor)
        with torch.no_grad():
            for tensor in (*wide.parameters(), *wide.buffers()):
                tensor.fill_(1)
        wide.eval()
        assert_unchanged(model, before)


@pytest.mark.parametrize("name", MODELS)
def test_children_are_a_partition_of_their_parent_and_only_lose_weights(name):
    model, _ = MODELS[name]()
    wide = fpe.expand(model, 3, seed=5)
    consumers = {consumer for layer in wide.fpe_plan.layers for consumer in layer.group.consumers}
    for layer in wide.fpe_plan.layers:
        if layer.group.name in consumers:
            continue
        parent = model.get_submodule(layer.group.name)
        child = wide.get_submodule(layer.group.name)
        kept = child.fpe_mask.view(layer.neurons, 3, layer.inputs).sum(1)
        assert kept.max() <= 1
        added_up = child.weight.view(layer.neurons, 3, layer.inputs).sum(1)
        assert torch.equal(added_up, parent.weight * kept)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_model_and_another_one_another(name):
    model, _ = MODELS[name]()
    state = torch.get_rng_state()
    first, again, other = (fpe.expand(model, seed=seed) for seed in (1, 1, 2))
    assert same_state(first, again)
    assert not same_state(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("split", ["random", "shared", fpe.LabelSplit(LABELS)], ids=str)
def test_an_expanded_model_can_be_expanded_again(name, split):
    """Doubled twice: four children for each first neuron, still disjoint, still at the count."""
    model, x = MODELS[name]()
    once = fpe.expand(model, split=split)
    before = snapshot(once)
    twice = fpe.expand(once, split=split, seed=1, example_inputs=x)
    assert_unchanged(once, before)
    assert fpe.count_nonzero(twice) == fpe.count_nonzero(model)
    layer = twice.fpe_plan.layers[0]
    assert layer.neurons_after == 2 * layer.neurons
    final = twice.get_submodule(layer.group.name).fpe_mask
    assert final.view(-1, 4, layer.inputs).sum(1).max() <= 1
    parent = once.get_submodule(layer.group.name).fpe_mask
    assert (final.view(-1, 2, layer.inputs).sum(1) <= parent).all()
    assert twice(x).shape == model(x).shape


def test_hidden_layers_1_3_5_are_expanded_and_the_head_never():
    wide = fpe.expand(MODELS["three_hidden"]()[0], 3)
    assert [m.out_features for m in wide if isinstance(m, nn.Linear)] == [18, 8, 15, 2]
    assert {s.name: s.reason for s in wide.fpe_plan.skipped} == {
        "2": "it consumes '0', which is expanded (every second hidden layer is)",
        "6": "it is a head: its neurons are outputs of the network",
    }
    assert type(wide[6]) is fpe.MaskedLinear  # consumes children, so it is pruned too


def test_a_layer_that_reads_an_expanded_one_keeps_its_width():
    wide = fpe.expand(MODELS["skip"]()[0])
    assert wide.first.out_features == 12
    assert (wide.hidden.in_features, wide.hidden.out_features) == (12, 4)
    assert wide.short.in_features == 12
    assert type(wide.last) is nn.Linear


@pytest.mark.parametrize(
    ("layers", "widths"),
    [
        ("2", [6, 16, 5, 2]),
        (["0"], [12, 8, 5, 2]),
        (["4", "0"], [12, 8, 10, 2]),
        (["0", "2", "4"], [12, 16, 10, 2]),
    ],
)
def test_only_the_layers_asked_for_are_expanded(layers, widths):
    model, x = MODELS["three_hidden"]()
    wide = fpe.expand(model, layers=layers, example_inputs=x)
    assert [m.out_features for m in wide if isinstance(m, nn.Linear)] == widths
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    assert wide(x).shape == (5, 2)
    left = {s.name for s in wide.fpe_plan.skipped}
    assert left == {"0", "2", "4", "6"} - set(layers)


def test_groups_that_fit_each_layer_fit_them_also_when_they_follow_each_other():
    """Two layers of eight inputs each, the second of which reads the first."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    labels = fpe.LabelSplit(LABELS)
    try:
        planned = fpe.plan(model, split=labels, layers=["0", "2"])
    except fpe.FPEError:
        return  # refused by the plan, in words: as good
    wide = fpe.expand(model, split=labels, layers=["0", "2"])
    assert wide.fpe_plan == planned


@pytest.mark.parametrize("frozen", ["0.weight", "0.bias", "1.weight", "3.weight", "3.bias"])
def test_frozen_parameters_stay_frozen(frozen):
    model, _ = MODELS["batch_norm"]()
    model.get_parameter(frozen).requires_grad_(False)
    wide = fpe.expand(model)
    assert {name for name, p in wide.named_parameters() if not p.requires_grad} == {frozen}


@pytest.mark.parametrize("training", [True, False])
def test_training_modes_are_kept_module_by_module(training):
    model, _ = MODELS["batch_norm"]()
    model.train(training)
    model[1].train(not training)
    wide = fpe.expand(model)
    assert [m.training for m in wide.modules()] == [m.training for m in model.modules()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_the_type_is_kept_and_the_count_exact_in_it(name, dtype):
    model, x = MODELS[name]()
    model.to(dtype)
    wide = fpe.expand(model)
    tensors = [t for t in (*wide.parameters(), *wide.buffers()) if t.is_floating_point()]
    assert {t.dtype for t in tensors} == {dtype}
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    assert wide(x.to(dtype)).dtype == dtype


def test_weights_stored_column_by_column_expand_like_any_others():
    model, _ = MODELS["mlp"]()
    expected = fpe.expand(model)
    for layer in (model[0], model[2]):
        layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
    assert same_state(fpe.expand(model), expected)


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_survives_json_and_foretells_the_expansion(name):
    model, x = MODELS[name]()
    planned = fpe.plan(model, 2, split=fpe.LabelSplit(LABELS), example_inputs=x, seed=3)
    assert Plan.from_dict(json.loads(json.dumps(planned.to_dict()))) == planned
    assert fpe.expand(model, 2, split=fpe.LabelSplit(LABELS), example_inputs=x, seed=3).fpe_plan == planned


def test_a_plan_prints_what_will_be_done_and_what_is_left_alone():
    expected = """\
Expansion by 2: split RandomSplit(), prune MagnitudePruning(), seed 0
layer  consumers  between    splits  neurons  after  non-zeros  copies
-----  ---------  -------  --------  -------  -----  ---------  ------
0      3          1        8 inputs        4      8         54      20
between: modules that widen with a layer; copies: weights that children copy, as many as are pruned
left unchanged:
  3: it is a head: its neurons are outputs of the network
weights of linear layers and convolutions in expanded layers: 40 of 40 (100%)
non-zero parameters of the network, before and after: 54"""
    assert str(fpe.plan(MODELS["layer_norm"]()[0])) == expected


def test_a_summary_prints_dense_and_wide_side_by_side():
    model, _ = MODELS["mlp"]()
    expected = """\
layer  kind          neurons  non-zeros  density      bytes
-----  ------------  -------  ---------  -------  ---------
0      MaskedLinear    4 → 8    36 → 32    44.4%  144 → 544
2      MaskedLinear        2    10 → 14    77.8%   40 → 136
total                 6 → 10         46    51.1%  184 → 680
left unchanged:
  2: it is a head: its neurons are outputs of the network
bytes are in memory: weights, zeros among them, biases, buffers, masks; files have no zeros"""
    assert str(fpe.summary(model, fpe.expand(model))) == expected


@pytest.mark.parametrize("name", MODELS)
def test_a_summary_adds_up(name):
    model, _ = MODELS[name]()
    wide = fpe.expand(model, 2)
    summary = fpe.summary(model, wide)
    assert summary.total.nonzero == (fpe.count_nonzero(model), fpe.count_nonzero(wide))
    assert summary.total.stored == sum(p.numel() for p in wide.parameters())
    tensors = [[*m.parameters(), *m.buffers()] for m in (model, wide)]
    assert summary.total.bytes == tuple(sum(t.nbytes for t in ts) for ts in tensors)
    assert summary.skipped == wide.fpe_plan.skipped
    assert json.loads(json.dumps(summary.to_dict()))["rows"][-1]["nonzero"] == list(summary.total.nonzero)


def test_a_summary_of_models_that_do_not_belong_together_is_refused():
    with pytest.raises(fpe.FPEError) as error:
        fpe.summary(MODELS["mlp"]()[0], MODELS["functional"]()[0])
    assert str(error.value) == (
        "the two models do not belong together: only one of them has '0', '2', 'head', 'hidden'; give a "
        "model and what fpe.expand made of it."
    )
