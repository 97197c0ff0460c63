"""Callbacks act in every fit, and say so where they cannot, or will not, act."""

import warnings

import pytest
import torch
from torch.utils.data import IterableDataset

import fpe
from fits import Module, data, lightning, transformers
from fpe.errors import ArgumentError, CheckpointError, ModelError
from fpe.integrations import huggingface
from fpe.integrations.lightning import Expand, Prune, Rewire
from zoo import ZOO

SCHEDULE = fpe.RewiringSchedule(every=2)


def gpt2():
    return ZOO["GPT-2"]()[0]


def hidden(model):
    return model.transformer.h[0].mlp.c_fc


def masks(model):
    return [m.fpe_mask.clone() for m in model.modules() if isinstance(m, fpe.MaskedLayer)]


def test_lightning_callbacks_serve_one_fit_after_another(tmp_path):
    """As in k-fold cross-validation: each fold's network is expanded, and its masks move."""
    callbacks = [Expand(1, factor=2), Rewire("set", schedule=SCHEDULE)]
    ends = []
    for _ in range(2):
        module = Module()
        lightning(tmp_path, *callbacks, epochs=3, enable_checkpointing=False).fit(module, data())
        assert module.network[0].out_features == 8
        assert callbacks[1].rewirer.rewirings > 0
        ends.append(masks(module))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    still = fpe.expand(Module().network, 2)
    assert not torch.equal(ends[0][0], masks(still)[0])


def test_the_trainers_callbacks_serve_one_training_after_another(tmp_path):
    callbacks = [huggingface.Expand(1, factor=2), huggingface.Rewire("set", schedule=SCHEDULE)]
    for _ in range(2):
        model = gpt2()
        transformers(model, tmp_path, *callbacks, epochs=2, save_strategy="no").train()
        assert hidden(model).out_features == 128
        assert callbacks[1].rewirer.model is model
        assert callbacks[1].rewirer.rewirings > 0


@pytest.mark.parametrize("stop", [2, 3])
def test_a_lightning_network_borrows_weights_and_repays_them_also_when_it_resumes(stop, tmp_path):
    """Expanded at epoch 1, opened, and pruned back to the dense count; a stopped fit resumes the same."""

    def fit(epochs, **how):
        module, prune = Module(), Prune(steps=9, shrink=0.3)
        trainer = lightning(tmp_path, Expand(1, factor=2), prune, epochs=epochs)
        trainer.fit(module, data(), **how)
        return module.network, prune.rewirer, trainer

    with pytest.raises(fpe.FPEError, match="shrink is 2; give"):
        Prune(shrink=2)
    dense = fpe.count_nonzero(Module().network)
    network, pruner, _ = fit(4)
    assert pruner.start > fpe.count_nonzero(network) == pruner.budget == dense
    *_, stopped = fit(stop)
    stopped.save_checkpoint(tmp_path / "half.ckpt")
    again, resumed, _ = fit(4, ckpt_path=tmp_path / "half.ckpt")
    assert resumed.taken == pruner.taken
    for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_trainer_prunes_to_a_budget_and_resumes(tmp_path):
    def pruned(folder, budget, **how):
        model = fpe.with_masks(gpt2(), "*.mlp.*")
        prune = huggingface.Prune(budget, **how)
        trainer = transformers(model, folder, prune, max_steps=6, save_strategy="steps", save_steps=3)
        return model, prune, trainer

    start = fpe.count_nonzero(gpt2())
    model, prune, trainer = pruned(tmp_path / "a", start - 1000)
    trainer.train()
    assert prune.rewirer.start == start
    assert fpe.count_nonzero(model) == start - 1000
    half = tmp_path / "a" / "checkpoint-3"
    other, again, trainer = pruned(tmp_path / "b", start - 1000, resume_from_checkpoint=half)
    trainer.train(resume_from_checkpoint=half)
    assert again.rewirer.taken == 6
    assert all(torch.equal(a, b) for a, b in zip(masks(model), masks(other), strict=True))


@pytest.mark.parametrize("train", ["lightning", "transformers"])
def test_a_network_that_is_expanded_already_is_left_with_a_warning(train, tmp_path):
    if train == "lightning":
        module = Module()
        model = module.network = fpe.expand(module.network, 2)
        trainer = lightning(tmp_path, Expand(0, factor=2), epochs=1, enable_checkpointing=False)
        with pytest.warns(UserWarning, match="expanded already"):
            trainer.fit(module, data())
        assert model[0].out_features == 8
    else:
        model = fpe.expand(gpt2(), 2)
        trainer = transformers(model, tmp_path, huggingface.Expand(0, factor=2), max_steps=1)
        with pytest.warns(UserWarning, match="expanded already"):
            trainer.train()
        assert hidden(model).out_features == 128


@pytest.mark.parametrize("train", ["lightning", "transformers"])
def test_an_expanded_part_counts_as_expanded(train, tmp_path):
    """A plan that only a part of the network has is seen, and the shapes of the part are stored."""
    if train == "lightning":
        module = Module()
        module.network = torch.nn.Sequential(fpe.expand(module.network, 2))
        trainer = lightning(tmp_path, Expand(0, factor=2), epochs=1, enable_checkpointing=False)
        with pytest.warns(UserWarning, match="expanded already"):
            trainer.fit(module, data())
        assert module.network[0][0].out_features == 8
    else:
        model = gpt2()
        model.transformer = fpe.expand(model.transformer, 2)
        trainer = transformers(model, tmp_path, huggingface.Expand(0, factor=2), max_steps=1)
        with pytest.warns(UserWarning, match="expanded already"):
            trainer.train()
        assert hidden(model).out_features == 128
        restored = huggingface.restore_shape(gpt2(), tmp_path / "checkpoint-1")
        assert hidden(restored).out_features == 128


class Stop(huggingface.TrainerCallback):
    """Stops a training at its first step."""

    def on_step_begin(self, *args, **kwargs):
        raise RuntimeError("the first step")


@pytest.mark.parametrize(("epoch", "steps"), [(2.9, {}), (2, {"max_steps": 6})])
def test_the_trainer_warns_at_the_start_of_an_epoch_that_never_comes(epoch, steps, tmp_path):
    """Three epochs of three steps: the last step begins at epoch 2.67."""
    trainer = transformers(gpt2(), tmp_path, huggingface.Expand(epoch), Stop(), save_strategy="no", **steps)
    with pytest.warns(UserWarning, match="does not expand"), pytest.raises(RuntimeError, match="first step"):
        trainer.train()


@pytest.mark.parametrize(("epoch", "seen"), [(0.5, 2), (1 / 3, 1), (2.6, 8)])
def test_the_trainer_expands_within_an_epoch(epoch, seen, tmp_path):
    """Before the first step that begins at the epoch or later."""
    model, widths = gpt2(), []

    class Watch(huggingface.TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            widths.append(kwargs["model"].transformer.h[0].mlp.c_fc.weight.numel())

    trainer = transformers(model, tmp_path, huggingface.Expand(epoch), Watch(), save_strategy="no")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Expand")
        trainer.train()
    assert widths == [1024] * seen + [2048] * (9 - seen)


class Stream(IterableDataset):
    """Has no length."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def test_the_trainer_warns_at_the_end_of_a_stream_of_unknown_length(tmp_path):
    w = torch.arange(8)
    trainer = transformers(
        gpt2(), tmp_path, huggingface.Expand(1), windows=Stream([{"input_ids": w, "labels": w}] * 90),
        max_steps=2, save_strategy="no",
    )  # fmt: skip
    with pytest.warns(UserWarning, match="does not expand .* ended at epoch"):
        trainer.train()


@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_steps": 12, "max_epochs": -1}])
def test_lightning_warns_at_the_start_of_an_epoch_that_never_comes(limit, tmp_path):
    class Stopping(Module):
        def training_step(self, batch):
            raise RuntimeError("the first step")

    trainer = lightning(tmp_path, Expand(3), enable_checkpointing=False, **limit)
    with pytest.warns(UserWarning, match="does not expand"), pytest.raises(RuntimeError, match="first step"):
        trainer.fit(Stopping(), data())


def test_lightning_warns_at_the_end_of_a_stream_of_unknown_length(tmp_path):
    stream = torch.utils.data.DataLoader(Stream(list(data().dataset)), 16)
    trainer = lightning(tmp_path, Expand(5), max_epochs=-1, max_steps=6, enable_checkpointing=False)
    with pytest.warns(UserWarning, match="does not expand .* ended in epoch"):
        trainer.fit(Module(), stream)


@pytest.mark.parametrize("epoch", [-1, float("nan"), float("inf"), "1", True, None])
@pytest.mark.parametrize("make", [Expand, huggingface.Expand])
def test_epochs_that_no_training_has_are_refused(make, epoch):
    with pytest.raises(ArgumentError, match="epoch is"):
        make(epoch)


def test_lightning_expands_between_epochs_only():
    with pytest.raises(ArgumentError, match=r"epoch is 0\.5; give an integer"):
        Expand(0.5)


def test_the_trainer_keeps_no_gradients_to_rank_by():
    with pytest.raises(ArgumentError, match="clears the gradients"):
        huggingface.Expand(1, split="shared", prune=fpe.InputPruning(by="gradient"))


def test_what_cannot_be_expanded_is_refused_when_training_begins(tmp_path):
    model = gpt2()
    trainer = transformers(model, tmp_path, huggingface.Expand(2, layers=["nowhere"]), save_strategy="no")
    with pytest.raises(ModelError, match="nowhere"):
        trainer.train()
    assert trainer.state.global_step == 0
    module = Module()
    trainer = lightning(tmp_path, Expand(2, layers=["nowhere"]), enable_checkpointing=False)
    with pytest.raises(ModelError, match="nowhere"):
        trainer.fit(module, data())
    assert module.losses == []


def test_the_trainer_expands_in_mixed_precision(tmp_path):
    """Accelerate puts a forward of its own before the model's, which is looked through and stays."""
    model = gpt2()
    before = fpe.count_nonzero(model)
    trainer = transformers(model, tmp_path, huggingface.Expand(1, factor=2), bf16=True, save_strategy="no")
    trainer.train()
    assert hidden(model).out_features == 128
    assert fpe.count_nonzero(model) == before
    assert hasattr(model.forward, "__wrapped__")


@pytest.mark.parametrize("train", ["lightning", "transformers"])
def test_masks_that_do_not_move_are_told(train, tmp_path):
    rare = fpe.RewiringSchedule(every=100)

    def run(*callbacks):
        if train == "lightning":
            lightning(tmp_path, *callbacks, epochs=1, enable_checkpointing=False).fit(Module(), data())
        else:
            transformers(gpt2(), tmp_path, *callbacks, max_steps=2, save_strategy="no").train()

    expand, rewire = (
        (Expand(0), Rewire) if train == "lightning" else (huggingface.Expand(0), huggingface.Rewire)
    )
    with pytest.warns(UserWarning, match="no layer of the model has"):
        run(rewire("set"))
    with pytest.warns(UserWarning, match=r"every 100 steps"):
        run(expand, rewire("set", schedule=rare))


def test_a_rewirer_that_does_not_resume_with_its_training_is_told(tmp_path):
    rewiring = huggingface.Rewire("set", schedule=SCHEDULE)
    transformers(gpt2(), tmp_path, huggingface.Expand(0), rewiring, epochs=1).train()
    folder = tmp_path / "checkpoint-3"
    model = huggingface.restore_shape(gpt2(), folder)
    trainer = transformers(model, tmp_path / "b", huggingface.Rewire("set", schedule=SCHEDULE), epochs=2)
    with pytest.warns(UserWarning, match="begins again"):
        trainer.train(resume_from_checkpoint=str(folder))
    resuming = huggingface.Rewire("set", schedule=SCHEDULE, resume_from_checkpoint=folder)
    trainer = transformers(gpt2(), tmp_path / "c", huggingface.Expand(0), resuming, epochs=2)
    with pytest.warns(UserWarning, match="is not used"):
        trainer.train()


@pytest.mark.parametrize("average", ["SWA", "EMA"])
def test_averages_of_weights_grow_with_the_network_or_are_refused(average, tmp_path):
    from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging

    def made():
        return StochasticWeightAveraging(1e-2, 1) if average == "SWA" else EMAWeightAveraging(decay=0.5)

    for callbacks in ([Expand(1), made()], [made(), Expand(0)], [Expand(0), Rewire("set"), made()]):
        module = Module()
        trainer = lightning(tmp_path, *callbacks, epochs=3, enable_checkpointing=False)
        with pytest.raises(ModelError, match="Averaging"):
            trainer.fit(module, data())
        assert module.losses == []
    module = Module()
    before = fpe.count_nonzero(module)
    lightning(tmp_path, Expand(0), made(), epochs=3, enable_checkpointing=False).fit(module, data())
    assert fpe.count_nonzero(module) == before
    assert (module.network[0].weight[module.network[0].fpe_mask == 0] == 0).all()


def test_what_has_no_shape_to_restore_is_told_and_an_expanded_one_without_is_refused(tmp_path):
    gpt2().save_pretrained(tmp_path / "dense")
    with pytest.warns(UserWarning, match="no shape to restore"):
        assert not hasattr(huggingface.restore_shape(gpt2(), tmp_path / "dense"), "fpe_plan")
    fpe.expand(gpt2(), 2).save_pretrained(tmp_path / "wide")
    with pytest.raises(CheckpointError, match=r"no fpe\.json"):
        huggingface.restore_shape(gpt2(), tmp_path / "wide")
