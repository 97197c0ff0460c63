"""Which layers, which neurons, who pays: the choices of plan and expand."""

import copy
import json
import warnings

import pytest
import torch
from torch import nn

import fpe
from fpe.errors import ArgumentError, BudgetError, ModelError
from fpe.expansion.plan import Plan
from fpe.metrics import crowding, participation_ratio
from models import MODELS, assert_unchanged, snapshot
from zoo import ZOO


def expanded_layers(plan):
    return {layer.group.name: layer.factor for layer in plan.layers}


def test_a_pattern_names_many_layers():
    model, batch = ZOO["GPT-2"]()
    planned = fpe.plan(model, 2, layers=["transformer.h.*.mlp.c_fc"], example_inputs=batch)
    assert list(expanded_layers(planned)) == [f"transformer.h.{i}.mlp.c_fc" for i in range(2)]
    planned = fpe.plan(model, 2, layers="*.1.mlp.*", example_inputs=batch)
    assert list(expanded_layers(planned)) == ["transformer.h.1.mlp.c_fc"]
    assert fpe.graph.Skipped("transformer.h.0.mlp.c_fc", "it was not asked for") in planned.skipped


def test_either_name_of_a_gated_pair_names_it():
    model, batch = ZOO["LLaMA"]()
    for name in ("gate_proj", "up_proj"):
        planned = fpe.plan(model, 2, layers=[f"*.0.mlp.{name}"], example_inputs=batch)
        pair = ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj")
        assert planned.layers[0].group.producers == pair


def test_each_layer_can_have_a_factor_of_its_own_and_the_last_pattern_counts():
    model, batch = ZOO["GPT-2"]()
    layers = {"*.c_fc": 2, "*.1.mlp.c_fc": 4}
    wide = fpe.expand(model, layers=layers, example_inputs=batch)
    assert expanded_layers(wide.fpe_plan) == {"transformer.h.0.mlp.c_fc": 2, "transformer.h.1.mlp.c_fc": 4}
    assert [len(block.mlp.c_fc.weight) for block in wide.transformer.h] == [128, 256]
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ModelError, match=r"matches 'h\*n\.\*'.* 'first', 'hidden'"):
        fpe.plan(MODELS["skip"]()[0], layers=["h*n.*"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": {"0": 0}}, r"layers\['0'\]: factor is 0"),
        ({"budget": "layer"}, "budget is 'layer'; give 'group' or 'network'"),
        ({"convolutions": "rows"}, "convolutions is 'rows'; give 'channels' or 'taps'"),
        ({"target": "size"}, "target is 'size'; give 'participation' or 'capacity'"),
        ({"target_fraction": 0}, "target_fraction is 0; give a number"),
        ({"target_fraction": 1.5}, "target_fraction is 1.5; give a number"),
        ({"budget": "network", "split": "shared", "prune": "columns"}, "prune.*budget='group'"),
        ({"target_fraction": 0.5, "split": "shared", "prune": "columns"}, "prune.*target_fraction"),
    ],
)
def test_bad_choices_are_refused_in_words(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        fpe.plan(MODELS["mlp"]()[0], **arguments)


def test_a_model_that_is_wrapped_for_several_processes_is_refused():
    class DistributedDataParallel(nn.parallel.DistributedDataParallel):
        def __init__(self):
            nn.Module.__init__(self)

    with pytest.raises(ArgumentError, match="expand the model first, and wrap it then"):
        fpe.plan(DistributedDataParallel())


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    ("name", "factor"), [("mlp", 3), ("two_hidden", 3), ("batch_norm", 2), ("prelu", 2), ("skip", 3)]
)
def test_a_part_of_the_neurons_is_expanded_at_the_same_count(name, fraction, factor):
    model, x = MODELS[name]()
    before = snapshot(model)
    wide = fpe.expand(model, factor, target_fraction=fraction, example_inputs=x)
    assert_unchanged(model, before)
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
    for layer in wide.fpe_plan.layers:
        chosen = max(1, round(fraction * layer.neurons))
        assert layer.neurons_after == layer.neurons + chosen * (factor - 1)
        assert layer.chosen is None or len(layer.chosen) == chosen
    once_more = fpe.expand(wide, 2, example_inputs=x)
    assert fpe.count_nonzero(once_more) == fpe.count_nonzero(model)


def test_the_neurons_that_read_most_are_expanded_and_the_others_keep_all_inputs():
    model = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[9.0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [2, 2, 2, 0, 0, 0]]))
        model[2].weight.fill_(5)
    assert participation_ratio(model[0].weight).tolist() == pytest.approx([1, 6, 3])
    wide = fpe.expand(model, 2, target_fraction=0.34)
    assert wide.fpe_plan.layers[0].chosen == (1,)
    assert wide[0].out_features == 4
    assert torch.equal(wide[0].weight[0], model[0].weight[0])
    assert torch.equal(wide[0].weight[3], model[0].weight[2])
    assert wide[0].bias.tolist() == model[0].bias[[0, 1, 1, 2]].tolist()
    assert wide[2].weight.tolist() == [[5, 5, 5, 5]]
    assert (wide[0].fpe_mask[1:3].sum(0) <= 1).all()


def test_the_neurons_of_the_most_crowded_features_of_the_data_are_expanded():
    """Features 0 and 1 share neurons 0 and 1; on the data feature 1 is never there."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.5, 0.0], [0.0, 1.0, 1.0]]))
    data = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 1.0]])
    scale = data.square().mean(0).sqrt()
    expected = int(crowding(model[0].weight * scale).argmax())
    planned = fpe.plan(model, 2, target_fraction=0.34, target="capacity", example_inputs=data)
    assert planned.layers[0].chosen == (expected,)
    with pytest.raises(ArgumentError, match="measures the features of the data; give example_inputs"):
        fpe.plan(model, 2, target_fraction=0.34, target="capacity")


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_a_norm_over_the_neurons_would_count_expanded_ones_twice(name):
    kind = "LayerNorm" if name == "layer_norm" else "RMSNorm"
    with pytest.raises(ModelError, match=f"layer '0'.*{kind} '1'.*target_fraction"):
        fpe.plan(MODELS[name]()[0], 2, target_fraction=0.5)


def test_a_group_pays_for_itself_or_the_network_pays_for_all():
    """With one layer's weights far smaller, it pays for both layers if the network pays."""
    model, batch = ZOO["GPT-2"]()
    with torch.no_grad():
        for parameter in model.transformer.h[0].mlp.parameters():
            parameter.mul_(1e-3)
    free = {}
    for budget in ("group", "network"):
        wide = fpe.expand(model, 2, example_inputs=batch, budget=budget)
        assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)
        free[budget] = [
            int(block.mlp.c_fc.fpe_mask.sum() + block.mlp.c_proj.fpe_mask.sum())
            for block in wide.transformer.h
        ]
    assert free["group"][0] == free["group"][1]
    assert free["network"][0] < free["group"][0] < free["network"][1]


def test_a_group_that_cannot_pay_can_be_paid_for_by_the_network():
    model = nn.Sequential(
        nn.Linear(2, 6), nn.BatchNorm1d(6), nn.PReLU(6), nn.Linear(6, 1), nn.Linear(1, 1),
        nn.Linear(1, 1), nn.Linear(1, 8), nn.Linear(8, 8), nn.Linear(8, 8),
    )  # fmt: skip
    with pytest.raises(BudgetError, match="can prune only"):
        fpe.plan(model, 2, layers=["0"])
    wide = fpe.expand(model, 2, layers=["0", "7"], budget="network")
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)


def test_a_frozen_layer_is_left_alone_unless_it_is_asked_for():
    model, x = MODELS["three_hidden"]()
    for layer in (model[0], model[2]):
        layer.requires_grad_(False)
    planned = fpe.plan(model, example_inputs=x)
    assert list(expanded_layers(planned)) == ["2"]
    frozen = {s.name: s.reason for s in planned.skipped}["0"]
    assert frozen.startswith("it is frozen, so that no training could make up for pruned weights")
    asked = fpe.plan(model, layers=["0"])
    assert list(expanded_layers(asked)) == ["0"]
    wide = fpe.expand(model, layers=["0"])
    for planned in (asked, wide.fpe_plan):
        assert planned.layers[0].frozen == ("0", "2")
        assert "frozen:\n  0: it is expanded and stays frozen" in str(planned)
    assert not wide[0].weight.requires_grad
    assert "frozen:" not in str(fpe.plan(MODELS["mlp"]()[0]))


def test_a_frozen_part_of_a_group_is_expanded_and_the_plan_says_so():
    model, x = MODELS["mlp"]()
    model[0].requires_grad_(False)
    planned = fpe.plan(model, example_inputs=x)
    assert [layer.frozen for layer in planned.layers] == [("0",)]
    assert Plan.from_dict(json.loads(json.dumps(planned.to_dict()))) == planned
    older = planned.to_dict()
    del older["layers"][0]["frozen"]
    assert Plan.from_dict(older).layers[0].frozen == ()


def test_convolutions_that_are_left_for_want_of_a_batch_are_warned_of():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.Flatten(),
        nn.Linear(64, 6),
        nn.ReLU(),
        nn.Linear(6, 2),
    )
    for call in (fpe.expand, lambda model: fpe.expand_(copy.deepcopy(model))):
        with pytest.warns(UserWarning, match=r"want of a batch: '0', '2'\. Give example_inputs=…"):
            call(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fpe.expand(model, example_inputs=torch.randn(2, 1, 8, 8))
        fpe.expand(model, layers=["4"])
        fpe.expand(model, plan=fpe.plan(model))


def test_the_head_of_a_transformer_is_left_alone_unless_it_is_asked_for():
    model, batch = ZOO["BERT"]()
    skipped = {s.name: s.reason for s in fpe.plan(model, example_inputs=batch).skipped}
    assert skipped["bert.pooler.dense"] == (
        "it belongs to the head of a transformer; name it in layers=… to expand it"
    )
    wide = fpe.expand(model, layers=["bert.pooler.dense"], example_inputs=batch)
    assert wide.bert.pooler.dense.out_features == 32
    assert fpe.count_nonzero(wide) == fpe.count_nonzero(model)


def test_equal_layers_of_a_stack_are_one_line_of_the_plan():
    model, batch = ZOO["LLaMA"]()
    text = str(fpe.plan(model, 2, example_inputs=batch))
    assert "model.layers.{0-1}.mlp.{gate_proj, up_proj}  model.layers.{0-1}.mlp.down_proj" in text
    assert "  model.layers.{0-1}.self_attn.q_proj: its neurons are split by 'view'" in text
    assert "numbers are of one layer" in text
    assert len(text.splitlines()) < 16
