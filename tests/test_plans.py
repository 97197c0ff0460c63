"""A plan is a value: it is applied without being made again, and refused for another model."""

import itertools
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import fpe
from fpe.errors import ArgumentError, ModelError
from fpe.expansion.index_maps import groups_in
from fpe.expansion.plan import Plan
from models import MODELS, assert_unchanged, same_state, snapshot

HOW = {
    "random": {},
    "shared inputs": {"split": "shared", "prune": "columns"},
    "activations": {"split": "shared", "prune": fpe.InputPruning("activation")},
    "correlations": {"split": fpe.CorrelationSplit()},
    "capacity": {"target_fraction": 0.5, "target": "capacity"},
    "children": {"split": "shared", "prune": "children"},
}


def mlp():
    x = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    return fpe.mlp(30, 6, 3, seed=0), x


class Counted(nn.Module):
    """Counts its own forward passes and those of its copies, where no analysis can undo it."""

    passes = itertools.count()

    def __init__(self):
        super().__init__()
        self.body, _ = mlp()

    def forward(self, x):
        next(Counted.passes)
        return self.body(x)


def passes_of(call):
    """Return how many forward passes a call takes."""
    before = next(Counted.passes)
    call()
    return next(Counted.passes) - before - 1


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_a_plan_is_applied_as_it_is_and_nothing_is_measured_again(how):
    model, x = mlp()
    before = snapshot(model)
    plan = fpe.plan(model, 2, **how, example_inputs=x, seed=3)
    wide = fpe.expand(model, plan=plan)
    assert_unchanged(model, before)
    assert same_state(wide, fpe.expand(model, 2, **how, example_inputs=x, seed=3))
    assert same_state(wide, fpe.expand(model, plan=plan))
    assert wide.fpe_plan.basis is None
    twin, _ = mlp()
    done = fpe.expand_(twin, plan=plan)
    assert same_state(twin, wide)
    assert done == twin.fpe_plan == wide.fpe_plan


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_an_expansion_runs_a_plan_once(how):
    """Applying a plan takes one forward pass, the check of the wide model."""
    model, (_, x) = Counted(), mlp()
    plan = fpe.plan(model, 2, **how, example_inputs=x)
    assert passes_of(lambda: fpe.expand(model, plan=plan)) == 1


def test_a_plan_for_another_model_is_refused():
    model, x = mlp()
    plan = fpe.plan(model, 2, example_inputs=x)
    others = {
        "width": fpe.mlp(30, 7, 3),
        "layers": fpe.mlp(30, (6, 6), 3),
        "count": fpe.expand(model, plan=plan),
    }
    for other in others.values():
        for call in (fpe.expand, fpe.expand_):
            with pytest.raises(ModelError, match="not the one that was planned"):
                call(other, plan=plan)
    masked = nn.Sequential(fpe.MaskedLinear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    of_masked = fpe.plan(masked)
    masked[0].fpe_mask[0, 0] = 0
    masked[0].project()
    with pytest.raises(ModelError, match="45 non-zero parameters, and had 46"):
        fpe.expand(masked, plan=of_masked)


def test_what_has_become_of_the_model_since_is_checked():
    model, x = mlp()
    plan = fpe.plan(model, 2, example_inputs=x)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="NaN or infinite"):
        fpe.expand(model, plan=plan)


def test_a_plan_from_a_file_is_only_read():
    model, x = mlp()
    plan = Plan.from_dict(json.loads(json.dumps(fpe.plan(model, 2, example_inputs=x).to_dict())))
    with pytest.raises(ArgumentError, match="read from a file"):
        fpe.expand(model, plan=plan)


def test_a_plan_beside_other_arguments_is_refused():
    model, x = mlp()
    plan = fpe.plan(model, 2, example_inputs=x)
    for call in (fpe.expand, fpe.expand_):
        with pytest.raises(ArgumentError, match=r"plan and split, seed are given|plan and seed, split"):
            call(model, plan=plan, split="shared", seed=1)
        with pytest.raises(ArgumentError, match="plan is a str"):
            call(model, plan="shared")


@pytest.mark.parametrize("name", ["mlp", "layer_norm", "three_hidden"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_of_an_earlier_version_has_its_groups_in_its_plans(name, packed, tmp_path):
    """Its plan names the dropped children otherwise, and the layers' own index maps are missing."""
    model, _ = MODELS[name]()
    once = fpe.expand(model, 2, split="shared", prune="children", layers=["0"], seed=1)
    wide = nn.Sequential(once)
    saved = fpe.pack(wide) if packed else wide
    fpe.save(saved, tmp_path / "new")
    with safe_open(tmp_path / "new", framework="pt") as file:
        metadata = file.metadata()
    manifest = json.loads(metadata["fpe"])
    del manifest["groups"]
    record = manifest["parts"]["0"]["plan"]
    record["earlier"] = None
    for layer in record["layers"]:
        layer["left"] = layer.pop("dropped")
    save_file(load_file(tmp_path / "new"), tmp_path / "old", {**metadata, "fpe": json.dumps(manifest)})
    old, new = (fpe.load(tmp_path / each, like=nn.Sequential(model)) for each in ("old", "new"))
    assert str(groups_in(old)) == str(groups_in(new)) == str(groups_in(wide))
    assert same_state(old, new)
    both = [fpe.unpack(each) if packed else fpe.pack(each) for each in (old, new)]
    assert same_state(*both)
