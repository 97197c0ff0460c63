"""Each thing that expand refuses: what the message says, and the model as it was."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import fpe
from fpe.errors import ArgumentError, BudgetError, ModelError
from models import MODELS, assert_unchanged, snapshot

SPLITS = "'random', 'shared', 'gram', '2:4', 'shared-N' (N groups)"
PRUNES = "'magnitude', 'balanced', 'columns', 'children'"
HINT = (
    "Expandable are neurons that a linear layer or convolution makes and another consumes, with activations, "
    "norms and dropout between."
)


def assert_refused(model, kind, message, **arguments):
    """Expand, and plan, a model that must be refused with these lines in the message and stay as it was."""
    before = snapshot(model)
    for call in (fpe.plan, fpe.expand):
        with pytest.raises(kind) as error:
            call(model, **arguments)
        for part in message.split("\n"):
            assert part in str(error.value)
        assert type(error.value) is kind
        assert isinstance(error.value, fpe.FPEError)
        assert isinstance(error.value, ValueError)
    assert_unchanged(model, before)


@pytest.mark.parametrize("factor", [0, -1, 1.5, 2.0, "2", True, None])
def test_a_factor_that_is_no_positive_integer(factor):
    message = f"factor is {factor!r}; give an integer of at least 1 (2 doubles the neurons)."
    assert_refused(MODELS["mlp"]()[0], ArgumentError, message, factor=factor)


@pytest.mark.parametrize("seed", [-1, 0.5, "0", None, True])
def test_a_seed_that_is_no_integer_from_0(seed):
    message = f"seed is {seed!r}; give an integer of at least 0."
    assert_refused(MODELS["mlp"]()[0], ArgumentError, message, seed=seed)


def test_a_factor_larger_than_the_inputs():
    message = (
        "factor 9 is larger than the 8 inputs of layer '0', so that some child would have none; give a "
        "factor from 1 to 8."
    )
    assert_refused(MODELS["mlp"]()[0], ModelError, message, factor=9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"split": "clause"},
            f"unknown split 'clause'; allowed are {SPLITS} and fpe.LabelSplit(labels).",
        ),
        (
            {"split": "ramdom"},
            f"unknown split 'ramdom'; allowed are {SPLITS}",
        ),
        ({"split": 2}, f"split is 2; give one of {SPLITS}"),
        (
            {"prune": "column"},
            f"unknown prune 'column'; allowed are {PRUNES}. Did you mean 'columns'?",
        ),
        ({"prune": None}, f"prune is None; give one of {PRUNES}"),
        (
            {"prune": "columns"},
            "needs one partition for all neurons of a layer, which split RandomSplit() does not give",
        ),
        (
            {"prune": "columns", "split": fpe.LabelSplit([0, 0, 1, 1, 2, 2, 3, 3])},
            "needs one partition for all neurons of a layer, which split LabelSplit(4 labels of 8 inputs)",
        ),
    ],
)
def test_an_unknown_split_or_pruning(arguments, message):
    assert_refused(MODELS["mlp"]()[0], ArgumentError, message, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"split": fpe.LabelSplit([0, 1, 2])},
            "layer '0': LabelSplit has 3 labels, but the layer has 8 inputs",
        ),
        (
            {"split": fpe.LabelSplit([0, 0, 0, 0, 1, 1, 1, 1]), "factor": 3},
            "layer '0': LabelSplit has 2 different labels, too few for 3 children",
        ),
        ({"split": "2:4", "factor": 3}, "layer '0': split '2:4' needs factor 2, not 3."),
        (
            {"split": fpe.GramSplit(clusters=9)},
            "layer '0': GramSplit asks for 9 clusters; allowed are 2",
        ),
    ],
)
def test_a_split_that_does_not_fit_the_layer(arguments, message):
    assert_refused(MODELS["mlp"]()[0], ModelError, message, **arguments)


def test_what_is_no_module():
    with pytest.raises(ArgumentError) as error:
        fpe.expand([1, 2])
    assert str(error.value) == "model is a list; give a torch.nn.Module."


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (
            nn.Sequential(nn.Linear(4, 2)),
            "Sequential: '0': it is a head: its neurons are outputs of the network",
        ),
        (nn.Sequential(nn.ReLU()), "Sequential: it has no linear layer"),
        (
            nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 2)),
            "Sequential: '0': its neurons are passed to '1' (Softmax), which is not known to treat each "
            "neuron alone; '2': it is a head: its neurons are outputs of the network",
        ),
        (
            nn.Sequential(nn.Conv1d(4, 4, 1), nn.Flatten()),
            "Sequential: '0': it is a Conv1d, which is followed only with example_inputs=…, a batch",
        ),
    ],
)
def test_nothing_to_expand(model, why):
    assert_refused(model, ModelError, f"there is nothing to expand in this {why}. {HINT}")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["hiden"], "the model has no layer 'hiden'. Did you mean 'hidden'? Expandable: 'first', 'hidden'."),
        (["x"], "the model has no layer 'x'. Expandable: 'first', 'hidden'."),
        (
            ["last"],
            "layer 'last' cannot be expanded: its neurons meet another tensor in 'add'.",
        ),
        (
            "last",
            "layer 'last' cannot be expanded: its neurons meet another tensor in 'add'.",
        ),
        ([], "layers is empty; name at least one layer, or leave it out."),
        (
            ["last", "hidden", "y"],
            "2 problems with the layers to expand:\n"
            "  - layer 'last' cannot be expanded: its neurons meet another tensor in 'add'.\n"
            "  - the model has no layer 'y'. Expandable: 'first', 'hidden'.",
        ),
    ],
)
def test_layers_that_are_not_there_or_cannot_be_expanded(layers, message):
    assert_refused(MODELS["skip"]()[0], ModelError, message, layers=layers)


def test_a_named_module_without_neurons():
    message = "layer '1' is a ReLU, which has no neurons of its own. Expandable: '0'."
    assert_refused(MODELS["mlp"]()[0], ModelError, message, layers=["1"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("layer", ["0", "2"])
def test_weights_that_are_no_numbers(value, layer):
    model, _ = MODELS["mlp"]()
    with torch.no_grad():
        model.get_submodule(layer).weight[1, 1] = value
    message = f"the weight of layer '{layer}' has NaN or infinite entries; repair it first."
    assert_refused(model, ModelError, message)


def test_weights_on_the_meta_device():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 1))
    with pytest.raises(ModelError) as error:
        fpe.expand(model)
    assert str(error.value) == (
        "2 problems with the layers to expand:\n"
        "  - layer '0' is on the meta device; load its weights first.\n"
        "  - layer '2' is on the meta device; load its weights first."
    )


def test_more_copies_than_weights_that_can_be_pruned():
    """Four copies for each neuron (bias, scale, shift, slope), and three weights that can be pruned."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.PReLU(3), nn.Linear(3, 1))
    assert_refused(model, BudgetError, "layer '0': factor 2 makes 15 copies\nonly 12 weights")


def test_more_copies_than_whole_columns_have():
    message = "layer '0': factor 2 makes 44 copies\nonly 24 weights\nanother prune"
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 10))
    assert_refused(model, BudgetError, message, split="shared", prune="columns")


def test_columns_that_are_pruned_already_cannot_be_pruned_again():
    """What the plan cannot know fails later; the model stays as it was."""
    once = fpe.expand(MODELS["mlp"]()[0], split="shared", prune="columns")
    before = snapshot(once)
    with pytest.raises(BudgetError, match="only"):
        fpe.expand(once, 4, split="shared", prune="columns")
    assert_unchanged(once, before)


def test_several_bad_arguments_are_reported_at_once():
    message = (
        "4 problems with the arguments:\n"
        "  - factor is 0; give an integer of at least 1 (2 doubles the neurons).\n"
        "  - seed is -1; give an integer of at least 0.\n"
        f"  - unknown split 'share'; allowed are {SPLITS}\n"
        f"  - unknown prune 'x'; allowed are {PRUNES}."
    )
    assert_refused(MODELS["mlp"]()[0], ArgumentError, message, factor=0, split="share", prune="x", seed=-1)


def test_several_layers_with_problems_are_reported_at_once():
    model, _ = MODELS["three_hidden"]()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    message = (
        "3 problems with the layers to expand:\n"
        "  - the weight of layer '2' has NaN or infinite entries; repair it first.\n"
        "  - layer '0': LabelSplit has 2 labels, but the layer has 8 inputs; give one for each.\n"
        "  - layer '4': LabelSplit has 2 labels, but the layer has 8 inputs; give one for each."
    )
    assert_refused(model, ModelError, message, split=fpe.LabelSplit([0, 1]))


def test_a_group_by_hand_without_a_batch_to_verify_it_on():
    message = (
        "the group of '0' is given by hand; give example_inputs=… too, a batch on which it can be verified."
    )
    assert_refused(MODELS["mlp"]()[0], ArgumentError, message, layers=[fpe.NeuronGroup("0", ("2",))])


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (fpe.NeuronGroup("hiden", ("last",)), "the model has no layer 'hiden'. Did you mean 'hidden'?"),
        (
            fpe.NeuronGroup("hidden", ()),
            "the group of 'hidden' has no consumers; name the layers that consume it.",
        ),
        (fpe.NeuronGroup("first", ("last",)), "'last' has 4 inputs, but 'first' has 6 neurons."),
        (
            fpe.NeuronGroup("hidden", ("last",), ("short",)),
            "'short' is a Linear; between are norms",
        ),
    ],
)
def test_a_group_by_hand_that_cannot_be_one(group, message):
    model, x = MODELS["skip"]()
    assert_refused(model, ModelError, message, layers=[group], example_inputs=x)


def test_several_problems_of_a_group_by_hand_are_reported_at_once():
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.LayerNorm(3), nn.Linear(5, 2))
    message = (
        "2 problems with the layers to expand:\n"
        "  - '3' has 5 inputs, but '0' has 4 neurons.\n"
        "  - '2': LayerNorm is over (3,), not over the 4 neurons."
    )
    group = fpe.NeuronGroup("0", ("3",), ("2",))
    assert_refused(model, ModelError, message, layers=[group], example_inputs=torch.ones(1, 8))


def four_layers(spoil=lambda layer: None):
    model = nn.Sequential(*(m for n in (8, 8, 8) for m in (nn.Linear(8, n), nn.ReLU())), nn.Linear(8, 2))
    spoil(model[0])
    return model


CALLS = [fpe.plan, fpe.expand, lambda model, **how: fpe.expand_(model, optimizer=None, **how)]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("batch", [None, torch.ones(3, 8)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("script", [torch.jit.script, lambda model: torch.jit.trace(model, torch.ones(3, 8))])
def test_a_scripted_model_is_refused_as_such(script, batch, call):
    with pytest.raises(ArgumentError, match=r"torch\.jit\.script"):
        call(script(four_layers()), example_inputs=batch)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_part_is_named():
    model = nn.Sequential(torch.jit.script(four_layers()), nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 2)))
    with pytest.raises(ArgumentError, match=r"'0' in the model is a ScriptModule"):
        fpe.plan(model, example_inputs=torch.randn(3, 8))


@pytest.mark.parametrize("batch", [None, torch.linspace(-1, 1, 24).view(3, 8)])
def test_of_a_compiled_model_the_model_in_it_is_expanded(batch):
    model = four_layers()
    compiled = torch.compile(model)
    assert fpe.plan(compiled, example_inputs=batch) == fpe.plan(model, example_inputs=batch)
    wide, expected = (fpe.expand(m, example_inputs=batch) for m in (compiled, model))
    assert type(wide) is nn.Sequential
    assert all(torch.equal(a, b) for a, b in zip(wide.parameters(), expected.parameters(), strict=True))
    assert compiled._orig_mod is model


class Quantized(torch.Tensor):
    """A tensor of its own kind, as those of quantized layers are."""


def quantized(layer):
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Quantized))


@pytest.mark.parametrize("batch", [None, torch.linspace(-1, 1, 24).view(3, 8)])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (nn.utils.weight_norm, "computed by hooks"),
        (nn.utils.spectral_norm, "computed by hooks"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.2), "computed by hooks"),
        (nn.utils.parametrizations.weight_norm, "arametriz"),
        (nn.utils.parametrizations.spectral_norm, "arametriz"),
        (nn.utils.parametrizations.orthogonal, "arametriz"),
        (quantized, "Quantized"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_layer_whose_weight_is_computed_is_left_out_by_name(spoil, reason, batch):
    plan = fpe.plan(four_layers(spoil), example_inputs=batch)
    assert [layer.group.name for layer in plan.layers] == ["2"]
    assert reason in {skip.name: skip.reason for skip in plan.skipped}["0"]
    with pytest.raises(ModelError, match="'0'"):
        fpe.plan(four_layers(spoil), layers=["0"], example_inputs=batch)


@pytest.mark.parametrize("batch", [None, torch.ones(3, 8)])
@pytest.mark.parametrize("call", CALLS)
def test_a_layer_alone_is_called_the_model_itself(call, batch):
    with pytest.raises(ModelError, match="the model itself: it is a head") as error:
        call(nn.Linear(8, 2), example_inputs=batch)
    assert "''" not in str(error.value)
