"""A model that is expanded in parts, or one part after another, is known as one that is expanded whole."""

import copy

import pytest
import torch
from torch import nn

import fpe
from fpe.expansion.index_maps import groups_in

SHARED = {"split": "shared", "prune": "columns"}


def inner(expand=True):
    dense = fpe.mlp(12, (8, 6), 4, seed=0)
    return fpe.expand(dense, 2, **SHARED, seed=1) if expand else dense


def outer(part):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 12), part, nn.Linear(4, 3))


def batch():
    return torch.randn(5, 12, generator=torch.Generator().manual_seed(0))


def test_packing_a_model_with_an_expanded_part_is_packing_the_part():
    alone, whole = fpe.pack(inner()), fpe.pack(outer(inner()))
    assert [str(m) for m in whole[1]] == [str(m) for m in alone]
    assert whole[1][0].restore is None  # its consumer follows the order of its blocks
    torch.testing.assert_close(whole(batch()), outer(inner())(batch()))
    again = fpe.unpack(whole)
    assert torch.equal(again[1][0].fpe_mask, inner()[0].fpe_mask)
    torch.testing.assert_close(again(batch()), outer(inner())(batch()))


def test_a_packed_part_is_unpacked_saved_and_loaded(tmp_path):
    whole = outer(fpe.pack(inner()))
    again = fpe.unpack(whole)
    assert all(torch.equal(a, b) for a, b in zip(again[1].buffers(), inner().buffers(), strict=True))
    torch.testing.assert_close(again(batch()), whole(batch()))
    assert not hasattr(again[1], "fpe_packing")
    fpe.save(whole, tmp_path / "packed.safetensors")
    loaded = fpe.load(tmp_path / "packed.safetensors", like=outer(inner(expand=False)))
    assert torch.equal(loaded(batch()), whole(batch()))
    assert loaded[1].fpe_packing == whole[1].fpe_packing
    assert str(fpe.unpack(loaded)) == str(again)


def test_a_part_keeps_its_plan_in_files_summaries_and_scopes(tmp_path):
    wide = outer(inner())
    fpe.save(wide, tmp_path / "wide.safetensors")
    loaded = fpe.load(tmp_path / "wide.safetensors", like=outer(inner(expand=False)))
    assert loaded[1].fpe_plan == wide[1].fpe_plan
    assert str(groups_in(loaded)) == str(groups_in(wide))
    left = fpe.summary(outer(inner(expand=False)), loaded).skipped
    assert [(one.name, one.reason) for one in left] == [
        (f"1.{one.name}", one.reason) for one in wide[1].fpe_plan.skipped
    ]
    for model in (wide, loaded):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        names = [site.name for site in fpe.Rewirer(model, optimizer, "set", steps=10).sites]
        scopes = fpe.Rewirer(
            model, optimizer, fpe.RewiringPolicy(scope="group", grow="random"), steps=10
        ).scopes
        assert [[names[i] for i in scope] for scope in scopes] == [["1.0", "1.3"]]
        assert len(fpe.Rewirer(model, optimizer, "columns", steps=10).scopes) == 1


def test_a_part_expanded_again_with_its_model_moves_by_the_later_plan():
    part = fpe.expand(inner(), 2, split="shared", layers=["3"], seed=2)
    wide = fpe.expand(outer(part), 2, split="shared", layers=["1.0"], seed=3)
    assert {g.producers[0]: len(g.index_map.parent) for g in groups_in(wide)} == {"1.0": 32, "1.3": 12}
    assert all(group.complete for group in groups_in(wide))
    torch.testing.assert_close(fpe.pack(wide)(batch()), wide(batch()))
    torch.testing.assert_close(fpe.unpack(fpe.pack(wide))(batch()), wide(batch()))


def test_layers_expanded_one_after_another_keep_both_plans(tmp_path):
    dense = inner(expand=False)
    wide = fpe.expand(fpe.expand(dense, 2, **SHARED, layers=["0"]), 2, **SHARED, layers=["3"])
    fpe.save(wide, tmp_path / "wide.safetensors")
    loaded = fpe.load(tmp_path / "wide.safetensors", like=dense)
    for model in (wide, loaded):
        assert [group.producers for group in groups_in(model)] == [["0"], ["3"]]
        assert [one.name for one in fpe.summary(dense, model).skipped] == ["6"]
        packed = fpe.pack(model)
        assert [packed[i].restore for i in (0, 3)] == [None, None]
        torch.testing.assert_close(packed(batch()), wide(batch()))
        torch.testing.assert_close(fpe.unpack(packed)(batch()), wide(batch()))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        assert len(fpe.Rewirer(model, optimizer, "columns", steps=10).scopes) == 2


class Joined(nn.Module):
    """One layer reads two others."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 6), nn.Linear(12, 4), nn.Linear(10, 2)

    def forward(self, x):
        return self.c(torch.cat([self.a(x).relu(), self.b(x).relu()], dim=1))


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_consumer_of_two_plans_has_the_right_inputs_when_packed(order):
    torch.manual_seed(0)
    wide = Joined()
    for name in order:
        wide = fpe.expand(wide, 2, **SHARED, layers=[name], example_inputs=batch())
    packed = fpe.pack(wide)
    torch.testing.assert_close(packed(batch()), wide(batch()))
    torch.testing.assert_close(fpe.unpack(packed)(batch()), wide(batch()))


def test_a_layer_that_was_replaced_is_in_no_group_and_its_neurons_keep_their_order():
    wide = inner()
    expected = fpe.expand(fpe.mlp(12, (8, 6), 4, seed=0), 2, **SHARED, seed=1)
    wide[3] = nn.Linear(16, 6)
    assert [(group.producers, group.complete) for group in groups_in(wide)] == [(["0"], False)]
    expected[3] = wide[3]
    torch.testing.assert_close(fpe.pack(wide)(batch()), expected(batch()))
    wide[0] = nn.Linear(12, 16)
    assert groups_in(wide) == []


def test_a_part_of_an_expanded_model_and_a_model_of_its_layers_know_their_groups():
    whole = fpe.expand(outer(inner(expand=False)), 2, **SHARED, layers=["1.0"], seed=1)
    for part in (whole[1], nn.Sequential(*whole[1])):
        (group,) = groups_in(part)
        assert group.producers == ["0"]
        assert group.complete
        packed = fpe.pack(part)
        assert packed[0].restore is None
        torch.testing.assert_close(packed(batch()), part(batch()))
        assert torch.equal(fpe.unpack(packed)[0].fpe_mask, whole[1][0].fpe_mask)


def test_a_copied_group_is_one_of_its_own():
    part = inner()
    both = nn.Sequential(part, nn.Linear(4, 12), copy.deepcopy(part))
    assert [group.producers for group in groups_in(both)] == [["0.0"], ["2.0"]]
