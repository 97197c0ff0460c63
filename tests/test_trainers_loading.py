"""What trainers load: weights from before and after the expansion of the model that they meet."""

import copy
import pickle

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

import fpe
from fits import Module, data, fitted, lightning, transformers
from fpe.errors import CheckpointError, ModelError
from fpe.expansion.index_maps import groups_in
from fpe.integrations import huggingface
from fpe.integrations.base import reversible
from fpe.integrations.lightning import Expand, restore_shape
from zoo import ZOO, answer


def gpt2():
    return ZOO["GPT-2"]()[0]


def hidden(model):
    return model.transformer.h[0].mlp.c_fc


def same(a, b):
    """Tell whether two models have the same parameters and buffers, by name and value."""
    return equal(a.state_dict(), b.state_dict())


def equal(a, b):
    """Tell whether two state dicts have the same names and values."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def choosing(model, folder, *callbacks, scores, **settings):
    """Return a Trainer of transformers that loads the best of its epochs at the end; each gets a score."""
    best = {"eval_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "score"}
    held_out = [{"input_ids": w, "labels": w} for w in torch.arange(3, 19).view(2, 8)]
    trainer = transformers(model, folder, *callbacks, held_out=held_out, **best, **settings)
    trainer.compute_metrics = lambda predictions: {"score": scores.pop(0)}
    return trainer


@pytest.mark.parametrize("settings", [{}, {"bf16": True}])
def test_the_best_model_is_restored_as_the_dense_one_that_it_was(settings, tmp_path):
    model = gpt2()
    trainer = choosing(model, tmp_path, huggingface.Expand(1, factor=2), scores=[3, 1, 2], **settings)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-3")
    assert not groups_in(model)
    assert type(hidden(model)) is type(hidden(gpt2()))
    before = gpt2()
    before.load_state_dict(load_file(tmp_path / "checkpoint-3" / "model.safetensors"), strict=False)
    assert same(model, before)
    assert hidden(model).weight.requires_grad
    trainer.save_model(tmp_path / "best")
    assert not (tmp_path / "best" / "fpe.json").exists()
    with pytest.raises(ModelError, match="new Trainer"):
        trainer.train()


def test_the_best_model_is_the_expanded_one_if_that_is_best(tmp_path):
    model = gpt2()
    choosing(model, tmp_path, huggingface.Expand(1, factor=2), scores=[1, 3, 2]).train()
    wide = huggingface.restore_shape(gpt2(), tmp_path / "checkpoint-6")
    wide.load_state_dict(load_file(tmp_path / "checkpoint-6" / "model.safetensors"), strict=False)
    assert groups_in(model)
    assert same(model, wide)


def test_a_resumed_training_restores_a_best_model_from_before_the_expansion(tmp_path):
    choosing(gpt2(), tmp_path, huggingface.Expand(1, factor=2), scores=[3, 1], epochs=2).train()
    model = huggingface.restore_shape(gpt2(), tmp_path / "checkpoint-6")
    trainer = choosing(model, tmp_path, huggingface.Expand(1, factor=2), scores=[2], epochs=3)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-3")
    assert not groups_in(model)
    assert hidden(model).weight.shape == hidden(gpt2()).weight.shape


def test_a_model_that_a_trainer_expanded_is_copied_and_pickled_with_its_dense_shape(tmp_path):
    model, dense = gpt2(), gpt2().state_dict()
    transformers(model, tmp_path, huggingface.Expand(0), max_steps=1, save_strategy="no").train()
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert groups_in(copied)
        assert same(copied, model)
        copied.load_state_dict(dense)
        assert not groups_in(copied)
        assert same(copied, gpt2())
    assert groups_in(model)


def test_only_all_of_the_dense_weights_make_the_model_dense(tmp_path):
    """As one file of several holds a part of them; a part that fits the expanded model is loaded into it."""
    model, dense = gpt2(), gpt2().state_dict()
    transformers(model, tmp_path, huggingface.Expand(0), max_steps=1, save_strategy="no").train()
    name = "transformer.h.0.mlp.c_proj.bias"
    model.load_state_dict({name: dense[name]}, strict=False)
    assert torch.equal(model.state_dict()[name], dense[name])
    with pytest.raises(CheckpointError, match="all files"):
        model.load_state_dict({k: v for k, v in dense.items() if k != name}, strict=False)
    assert groups_in(model)


def test_norms_without_any_tensor_become_as_narrow_as_they_were():
    def made():
        norm = torch.nn.BatchNorm1d(4, affine=False, track_running_stats=False)
        return torch.nn.Sequential(torch.nn.Linear(8, 4), norm, torch.nn.ReLU(), torch.nn.Linear(4, 2))

    model, dense = made(), made()
    with reversible(model, ""):
        fpe.expand_(model, factor=2)
    assert model[1].num_features == 8
    model.load_state_dict(dense.state_dict())
    x = torch.randn(5, 8)
    assert model[1].num_features == 4
    assert torch.equal(model(x), dense(x))


def test_a_saved_model_has_its_shapes_beside_its_weights(tmp_path):
    model = gpt2()
    trainer = transformers(model, tmp_path, huggingface.Expand(0, factor=2), max_steps=1, save_strategy="no")
    trainer.train()
    trainer.save_model(tmp_path / "trainer")
    model.save_pretrained(tmp_path / "model")
    huggingface.save_pretrained(fpe.expand(gpt2(), 2), tmp_path / "function")
    for folder in ("trainer", "model", "function"):
        wide = huggingface.restore_shape(gpt2(), tmp_path / folder)
        wide.load_state_dict(load_file(tmp_path / folder / "model.safetensors"), strict=False)
        assert hidden(wide).out_features == 128
        assert folder == "function" or same(wide, model)
    huggingface.save_pretrained(gpt2(), tmp_path / "function")
    assert not (tmp_path / "function" / "fpe.json").exists()


def test_resuming_without_the_shape_says_what_to_do(tmp_path):
    transformers(gpt2(), tmp_path, huggingface.Expand(0, factor=2), epochs=1).train()
    trainer = transformers(gpt2(), tmp_path, huggingface.Expand(0, factor=2), epochs=2)
    with pytest.raises(CheckpointError, match="restore_shape"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


class Scored(Module):
    """Logs a score for each epoch."""

    def __init__(self, *scores):
        super().__init__()
        self.scores = scores

    def on_train_epoch_end(self):
        self.log("score", float(self.scores[self.current_epoch]))

    def test_step(self, batch):
        self.network(batch[0])


class Restoring(Module):
    """Restores the shape of a checkpoint by itself."""

    def on_load_checkpoint(self, checkpoint):
        restore_shape(self, checkpoint)


@pytest.mark.parametrize("epoch", [1, 2])
def test_lightnings_best_checkpoint_is_loaded_as_what_it_was(epoch, tmp_path):
    """The best is that of epoch 1: before an expansion at 2, after one at 1. Then another is loaded."""
    module = Scored(1, 3, 2)
    keeping = ModelCheckpoint(tmp_path, "{epoch}", monitor="score", mode="max", save_top_k=-1)
    trainer = lightning(tmp_path, Expand(epoch, factor=2), keeping, epochs=3)
    trainer.fit(module, data())
    best = torch.load(keeping.best_model_path)
    for path, wide in [("best", epoch == 1), (tmp_path / "epoch=2.ckpt", True), ("best", epoch == 1)]:
        trainer.test(module, data(), ckpt_path=path, verbose=False)
        assert module.network[0].out_features == (8 if wide else 4)
        assert bool(groups_in(module)) == wide
        trainer.save_checkpoint(tmp_path / "again.ckpt")
        again = torch.load(tmp_path / "again.ckpt")
        assert (again["callbacks"]["fpe.Expand()"]["shapes"] is not None) == wide
    assert equal(again["state_dict"], best["state_dict"])


def test_lightning_expands_a_dense_checkpoint_that_is_resumed_with_epoch_0(tmp_path):
    fitted(tmp_path, epochs=1)
    module = fitted(tmp_path, Expand(0, factor=2), epochs=2, ckpt_path=tmp_path / "after-1.ckpt")
    assert module.network[0].out_features == 8
    before = Module()
    before.load_state_dict(torch.load(tmp_path / "after-1.ckpt")["state_dict"])
    assert fpe.count_nonzero(module) == fpe.count_nonzero(before)


def test_lightning_modules_load_an_expanded_checkpoint_by_restoring_its_shape(tmp_path):
    module = fitted(tmp_path, Expand(0, factor=2), epochs=1)
    wide = Restoring.load_from_checkpoint(tmp_path / "after-1.ckpt")
    assert groups_in(wide)
    assert same(wide, module)
    resumed = Restoring()
    trainer = lightning(tmp_path, Expand(0, factor=2), epochs=2, enable_checkpointing=False)
    trainer.fit(resumed, data(), ckpt_path=tmp_path / "after-1.ckpt")
    assert len(resumed.losses) == 4


def test_expanded_weights_without_a_shape_are_refused_in_words(tmp_path):
    module = Module()
    trainer = lightning(tmp_path, Expand(0, factor=2), epochs=1, enable_checkpointing=False)
    trainer.fit(module, data())
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    with pytest.raises(CheckpointError, match="restore_shape"):
        Restoring.load_from_checkpoint(tmp_path / "weights.ckpt")
    dense = Scored()
    with pytest.raises(CheckpointError, match="restore_shape"):
        lightning(tmp_path, Expand(1), epochs=1).test(dense, data(), ckpt_path=tmp_path / "weights.ckpt")


@pytest.mark.parametrize("name", ["GPT-2", "LLaMA", "ViT"])
def test_a_wide_model_is_read_by_transformers_alone(name, tmp_path):
    model, batch = ZOO[name]()
    wide = fpe.expand(model, 2, layers="all").eval()
    huggingface.save_pretrained(wide, tmp_path)
    read = type(model).from_pretrained(tmp_path)
    assert not any(isinstance(module, fpe.MaskedLayer) for module in read.modules())
    assert torch.equal(answer(read, batch), answer(wide, batch))
    assert sum(int(p.count_nonzero()) for p in read.parameters()) <= fpe.count_nonzero(model)
