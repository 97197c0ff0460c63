"""What a plan says of the layers that are not expanded, and of the share that is."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fpe

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


class Regions(nn.Module):
    """Two layers in a region that an export keeps apart, then two that are followed."""

    def __init__(self, region):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(8, 6), nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 2)
        self.region = region

    def forward(self, x):
        with self.region():
            x = self.b(F.relu(self.a(x)))
        return self.d(F.relu(self.c(x.to(self.c.weight.dtype))))


@pytest.mark.parametrize(
    ("region", "name"),
    [(torch.no_grad, "torch.no_grad"), (lambda: torch.autocast("cpu", torch.bfloat16), "torch.autocast")],
)
def test_layers_without_gradients_or_in_another_type_are_named_with_the_reason(region, name):
    plan = fpe.plan(Regions(region), example_inputs=X)
    reasons = {skip.name: skip.reason for skip in plan.skipped}
    assert [layer.group.name for layer in plan.layers] == ["c"]
    assert f"called under {name}" in reasons["a"]
    assert f"called under {name}" in reasons["b"]


def test_a_plan_counts_the_weights_of_the_layers_that_are_expanded():
    model = Regions(torch.no_grad)
    plan = fpe.plan(model, example_inputs=X)
    assert plan.weights == (5 * 4 + 4 * 2, 8 * 6 + 6 * 5 + 5 * 4 + 4 * 2)
    assert "28 of 106 (26%)" in str(plan)
    assert fpe.Plan.from_dict(plan.to_dict()) == plan


def test_a_group_that_cannot_be_afforded_is_left_out_unless_it_is_asked_for():
    """Of the first group more biases are copied than there are weights that could be pruned."""
    depthwise = nn.Conv2d(6, 6, 5, padding=2, groups=6)
    model = nn.Sequential(
        *(nn.Conv2d(2, 6, 1), depthwise, nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(100, 20)),
        *(nn.ReLU(), nn.Linear(20, 2)),
    )
    x = torch.randn(2, 2, 5, 5)
    plan = fpe.plan(model, example_inputs=x)
    assert [layer.group.name for layer in plan.layers] == ["5"]
    assert "can prune only" in {skip.name: skip.reason for skip in plan.skipped}["0"]
    for layers in (["0"], ["0", "5"]):
        with pytest.raises(fpe.errors.BudgetError, match=r"'0'.*can prune only"):
            fpe.plan(model, layers=layers, example_inputs=x)
