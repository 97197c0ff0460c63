"""Weights written past their masks are counted, refused where they would be lost, and set to zero."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fpe
from fpe.errors import ArgumentError, ModelError
from old_files import save_as

DENSE = fpe.mlp(8, 4, 2, seed=0)


def expanded():
    return fpe.expand(DENSE, 2, seed=1)


def train(model, optimizer, steps=3, after=lambda: None):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 8, generator=generator)).square().mean().backward()
        optimizer.step()
        after()


def averaged_while_masks_move():
    wide = expanded()
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.1)
    schedule = fpe.RewiringSchedule(every=2, share=0.5, until=1.0)
    rewirer = fpe.Rewirer(wide, optimizer, "set", steps=6, schedule=schedule)
    average = AveragedModel(wide, multi_avg_fn=get_ema_multi_avg_fn(0.9))

    def after():
        rewirer.step()
        average.update_parameters(wide)

    train(wide, optimizer, 6, after)
    return average.module


def with_lora_merged():
    wide = expanded()
    with torch.no_grad():
        wide[0].weight.add_(torch.ones(8, 1) @ torch.ones(1, 8))
    return wide


def initialized():
    wide = expanded()
    nn.init.xavier_uniform_(wide[0].weight, generator=torch.Generator().manual_seed(0))
    return wide


def trained_by_muon():
    model = nn.Sequential(nn.Linear(8, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    wide = fpe.expand(model, 2, seed=1)
    train(wide, torch.optim.Muon(wide.parameters(), lr=0.1))
    return wide


def made_nan():
    wide = expanded()
    wide[2].weight.data.fill_(float("nan"))
    return wide


def packed_and_written():
    packed = fpe.pack(fpe.expand(fpe.mlp(20, 6, 3, seed=0), 2, seed=1), format="dense")
    packed[0].weight.data.fill_(0.5)
    return packed


PAST = [averaged_while_masks_move, with_lora_merged, initialized, made_nan, packed_and_written]
if hasattr(torch.optim, "Muon"):
    PAST.append(trained_by_muon)


def really_there(model):
    """Count what is free or not zero, entry by entry."""
    count = 0
    for layer in model.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            mask = layer.free(name) if hasattr(layer, "free") else None
            free = torch.ones_like(parameter) if mask is None else mask
            count += sum(m or w for m, w in zip(free.flatten().bool(), parameter.flatten() != 0, strict=True))
    return int(count)


@pytest.mark.parametrize("written", PAST)
def test_weights_past_the_mask_are_counted_refused_and_projected(written, tmp_path):
    model = written()
    before = copy.deepcopy(model.state_dict())
    count = fpe.count_nonzero(model)
    assert count == really_there(model)
    refusals = [lambda: fpe.summary(model, model), lambda: fpe.save(model, tmp_path / "wide.safetensors")]
    if written is not packed_and_written:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        refusals += [lambda: fpe.pack(model), lambda: fpe.plan(model)]
        refusals += [lambda: fpe.Rewirer(model, optimizer, steps=10)]
    for refused in refusals:
        with pytest.raises(ModelError, match=r"not zero: .* in '[02]'.*Call fpe.project_\(model\)"):
            refused()
    assert not (tmp_path / "wide.safetensors").exists()
    after = model.state_dict()
    assert all(torch.equal(after[k].nan_to_num(7), value.nan_to_num(7)) for k, value in before.items())

    past = fpe.project_(model)
    assert 0 < past == count - fpe.count_nonzero(model)
    assert fpe.project_(model) == 0
    for layer in model:
        mask = layer.free("weight") if hasattr(layer, "free") else None
        if mask is not None:
            assert (layer.weight[mask == 0] == 0).all()
            was = before[f"{next(n for n, m in model.named_modules() if m is layer)}.weight"]
            assert torch.equal(layer.weight[mask != 0].nan_to_num(7), was[mask != 0].nan_to_num(7))


@pytest.mark.parametrize("written", PAST[:3])
def test_what_is_saved_after_projecting_answers_the_same_when_loaded(written, tmp_path):
    model = written()
    fpe.project_(model)
    assert fpe.summary(DENSE, model).total.nonzero == (46, 46)
    fpe.save(model, tmp_path / "wide.safetensors")
    again = fpe.load(tmp_path / "wide.safetensors", like=DENSE)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(x), model(x))
    torch.testing.assert_close(fpe.pack(model)(x), model(x))


def test_an_averaged_model_is_saved_and_summarised_as_the_model_in_it(tmp_path):
    wide = expanded()
    average = AveragedModel(torch.compile(wide))
    fpe.save(average, tmp_path / "wide.safetensors")
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fpe.load(tmp_path / "wide.safetensors", like=DENSE)(x), wide(x))
    assert str(fpe.summary(DENSE, average)) == str(fpe.summary(DENSE, wide))
    torch.testing.assert_close(fpe.pack(average)(x), wide(x))


def test_projecting_a_model_within_its_masks_changes_nothing():
    wide = expanded()
    before = copy.deepcopy(wide.state_dict())
    assert fpe.project_(wide) == 0
    assert fpe.project_(nn.Linear(2, 2)) == 0
    assert all(torch.equal(wide.state_dict()[k], value) for k, value in before.items())
    with pytest.raises(ArgumentError, match="model is a OrderedDict"):
        fpe.project_(wide.state_dict())


@pytest.mark.parametrize("fused", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_fused_optimizers_with_weight_decay_write_nothing_past_the_mask(fused):
    wide = expanded()
    train(wide, fused(wide.parameters(), lr=0.1, weight_decay=0.1, fused=True))
    assert fpe.count_nonzero(wide) == 46
    assert fpe.project_(wide) == 0


def test_a_mask_of_more_than_zeros_and_ones_is_refused_by_name():
    wide = expanded()
    average = AveragedModel(wide, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    average.update_parameters(wide)
    wide[0].fpe_mask.copy_(1 - wide[0].fpe_mask)
    fpe.project_(wide)
    average.update_parameters(wide)
    with pytest.raises(ModelError, match=r"mask of layer '0' holds more .*use_buffers=False"):
        fpe.project_(average.module)


def test_a_loaded_state_past_its_masks_is_projected_with_a_warning():
    wide, written = expanded(), initialized()
    with pytest.warns(UserWarning, match=r"40 weights in '0'"):
        wide.load_state_dict(written.state_dict())
    assert fpe.project_(wide) == 0


def pruned(wide):
    prune.l1_unstructured(wide[0], "weight", 0.75)
    return wide


def test_torchs_pruning_of_masked_layers_keeps_masks_count_and_gradients():
    wide = expanded()
    masked = wide[0].fpe_mask == 0
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    mask = wide[0].fpe_mask.clone()
    prune.l1_unstructured(wide[0], "weight", 0.25)  # as many as are zero already: none of the others
    assert torch.equal(wide[0].fpe_mask, mask)
    assert torch.equal(wide(x), expanded()(x))
    assert fpe.count_nonzero(wide) == 46
    prune.remove(wide[0], "weight")
    pruned(wide)
    train(wide, torch.optim.Adam(wide.parameters(), lr=0.1))
    assert fpe.count_nonzero(wide) == 46
    assert (wide[0].weight_orig[masked] == 0).all()
    answers = wide(x)
    prune.remove(wide[0], "weight")
    assert torch.equal(wide(x), answers)
    assert (wide[0].weight[masked] == 0).all()
    assert int((wide[0].weight != 0).sum()) == 16  # a quarter
    assert fpe.count_nonzero(wide) == 46


def test_a_weight_that_is_computed_is_masked_and_refused_where_it_would_be_lost(tmp_path):
    class Low(nn.Module):
        def __init__(self):
            super().__init__()
            self.b, self.a = nn.Parameter(torch.ones(8, 1)), nn.Parameter(torch.ones(1, 8))

        def forward(self, weight):
            return weight + self.b @ self.a

    lora = expanded()
    parametrize.register_parametrization(lora[0], "weight", Low())
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    for wide, message in ((lora, "parametrization"), (pruned(expanded()), "pruning")):
        optimizer = torch.optim.SGD(wide.parameters(), lr=0.1)
        for refused in (
            lambda wide=wide: fpe.save(wide, tmp_path / "wide.safetensors"),
            lambda wide=wide: fpe.pack(wide),
            lambda wide=wide, optimizer=optimizer: fpe.Rewirer(wide, optimizer, steps=10),
        ):
            with pytest.raises(ModelError, match=rf"weight of layer '0' is computed by .*{message}"):
                refused()
    train(lora, torch.optim.SGD(lora.parameters(), lr=0.1))
    answers = lora(x)
    parametrize.remove_parametrizations(lora[0], "weight")  # merges the product, dense as it is
    assert fpe.project_(lora) == 40
    assert torch.equal(lora(x), answers)


class Noted(nn.Module):
    """Buffers of a user's own, with the endings of names that masks have."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        self.register_buffer("weight_mask", torch.tensor([1, 5, 0.2]))
        self.register_buffer("fpe_mask", torch.tensor([float("-inf"), 2.0]))
        self.register_buffer("causal_mask", torch.tensor([[True, False]]))
        self.register_buffer("my_fpe_mask", torch.tensor([3, 4], dtype=torch.int16))
        self.register_buffer("count_mask", torch.zeros(()))

    def forward(self, x):
        self.count_mask += 1
        return self.net(x)


def test_buffers_of_users_come_back_as_they_were_whatever_their_names(tmp_path):
    model = Noted()
    wide = fpe.expand(model, example_inputs=torch.randn(2, 8))
    assert model.count_mask == wide.count_mask == 0  # what analysing the model counted is taken back
    for saved in (wide, fpe.pack(wide)):
        fpe.save(saved, tmp_path / "wide.safetensors")
        again = fpe.load(tmp_path / "wide.safetensors", like=Noted())
        for name, buffer in Noted().named_buffers():
            assert torch.equal(again.get_buffer(name), buffer)
            assert again.get_buffer(name).dtype == buffer.dtype


def with_old_names(state):
    return {k.replace("fpe_mask", "weight_mask"): v for k, v in state.items()}


def test_states_files_and_pickles_from_before_masks_had_their_name_are_loaded(tmp_path):
    wide = expanded()
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    other = fpe.expand(DENSE, 2, seed=5)
    other.load_state_dict(with_old_names(wide.state_dict()))
    assert torch.equal(other(x), wide(x))

    save_as(wide, tmp_path / "old.safetensors", 2)
    assert torch.equal(fpe.load(tmp_path / "old.safetensors", like=DENSE)(x), wide(x))

    old = copy.deepcopy(wide)
    for layer in (old[0], old[2]):
        layer._buffers["weight_mask"] = layer._buffers.pop("fpe_mask")
    torch.save(old, tmp_path / "old.pt")
    for again in (pickle.loads(pickle.dumps(old)), torch.load(tmp_path / "old.pt", weights_only=False)):
        assert torch.equal(again(x), wide(x))
        assert again.state_dict().keys() == wide.state_dict().keys()
        assert fpe.count_nonzero(again) == 46
