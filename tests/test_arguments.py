"""What is given in the place of a model: each function names it, and what it takes."""

import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fpe
from fpe.errors import ArgumentError
from fpe.integrations import hub

WIDE = fpe.expand(fpe.mlp(8, 4, 2, seed=0))
#: Functions of a model alone, and those that also take an estimator.
OF_MODELS = {
    "plan": fpe.plan,
    "expand": fpe.expand,
    "expand_": fpe.expand_,
    "widen": fpe.widen,
    "pack": fpe.pack,
    "unpack": fpe.unpack,
    "fuse": lambda model: fpe.fuse(model, example_inputs=torch.zeros(2, 8)),
    "quantize": fpe.quantize,
    "count_nonzero": fpe.count_nonzero,
    "project_": fpe.project_,
    "enforce_masks_": lambda model: fpe.enforce_masks_(torch.optim.SGD(WIDE.parameters()), model),
    "summary of": lambda model: fpe.summary(model, WIDE),
    "summary and": lambda model: fpe.summary(WIDE, model),
    "reinitialize_": fpe.reinitialize_,
    "with_masks": fpe.with_masks,
    "open_masks_": fpe.open_masks_,
    "random_masks_": lambda model: fpe.random_masks_(model, 20),
    "Rewirer": lambda model: fpe.Rewirer(model, torch.optim.SGD(WIDE.parameters()), steps=9),
    "GradualPruner": lambda model: fpe.GradualPruner(
        model, torch.optim.SGD(WIDE.parameters()), budget=20, steps=9
    ),
    "BlockRewirer": lambda model: fpe.BlockRewirer(model, torch.optim.SGD(WIDE.parameters()), steps=9),
    "BlockPruner": lambda model: fpe.BlockPruner(
        model, torch.optim.SGD(WIDE.parameters()), budget=20, steps=9
    ),
    "load": lambda model: fpe.load("none.safetensors", like=model),
}
OF_ESTIMATORS = {
    "save": lambda model, folder: fpe.save(model, folder / "net.safetensors"),
    "onnx": lambda model, folder: fpe.export(model, folder / "net.onnx"),
    "c": lambda model, folder: fpe.export(model, folder / "net.c"),
    "hub": lambda model, folder: hub.save_pretrained(model, folder / "net"),
}
GIVEN = {
    "Pipeline": make_pipeline(StandardScaler(), fpe.FPEClassifier()),
    "FPEClassifier": fpe.FPEClassifier(),
    "str": "best.safetensors",
    "OrderedDict": WIDE.state_dict(),
    "NoneType": None,
}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("name", OF_MODELS)
def test_what_is_no_model_is_named(name, given):
    if (name, given) == ("load", "NoneType"):
        return  # which is its default
    with pytest.raises(ArgumentError, match=f"(model|packed|wide|like) is a {given}; give a ") as error:
        OF_MODELS[name](GIVEN[given])
    assert ("such as its model_" in str(error.value)) == (given == "FPEClassifier")


@pytest.mark.parametrize("given", [name for name in GIVEN if name != "FPEClassifier"])
@pytest.mark.parametrize("name", OF_ESTIMATORS)
def test_what_is_neither_a_model_nor_an_estimator_is_named_and_nothing_is_written(name, given, tmp_path):
    with pytest.raises(ArgumentError, match=f"model is a {given}; give a .*FPEClassifier"):
        OF_ESTIMATORS[name](GIVEN[given], tmp_path)
    assert list(tmp_path.iterdir()) == []
