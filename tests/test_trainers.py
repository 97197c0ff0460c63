"""Lightning, the Trainer of transformers, accelerate: the examples run, and checkpoints resume."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch

import fpe
from fits import Module, data, fitted, trainer_for
from fpe.errors import ArgumentError, CheckpointError, ModelError
from fpe.integrations import huggingface
from fpe.integrations.lightning import Expand, Rewire
from models import same_state
from zoo import ZOO

ROOT = Path(__file__).parent.parent
# The other two have tests of their own: one needs several processes, the other hls4ml.
ELSEWHERE = {"distributed.py", "fpga.py"}
EXAMPLES = sorted(p.name for p in (ROOT / "examples").glob("*.py") if p.name not in ELSEWHERE)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_keeps_the_count(name, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = [line for line in done.stdout.splitlines() if "non-zeros" in line]
    assert counts
    if "before" in counts[-1]:
        before, after = counts[-1].split(" non-zeros before, ")
        assert after.startswith(f"{before} after")
    elif "budget" in counts[-1]:
        assert len(set(re.findall(r"[\d,]+(?= non-zeros)", counts[-1]))) == 1
    else:
        assert len({line.split(", ")[1] for line in counts if line.startswith("epoch")}) == 1


def test_the_plain_loop_resumes_before_and_after_the_expansion(tmp_path, monkeypatch):
    """Stopped before epochs 3 and 7, it prints what it prints in one run; the last part is a new process."""
    text = (ROOT / "examples" / "plain_loop.py").read_text(encoding="utf-8")
    printed = {}
    for name, stops in (("whole", [10]), ("stopped", [3, 7])):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        out = io.StringIO()
        for stop in stops:
            torch.manual_seed(stop)  # no run may take over the random state of another
            with contextlib.redirect_stdout(out):
                exec(text.replace("range(first, 10)", f"range(first, {stop})"), {"__name__": "__main__"})
        printed[name] = out.getvalue().splitlines()
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert printed["stopped"] + done.stdout.splitlines() == printed["whole"]


@pytest.mark.parametrize("epoch", [0, 2])
def test_lightning_expands_at_the_epoch_and_trains_on(epoch, tmp_path):
    module = fitted(tmp_path, Expand(epoch, factor=2))
    assert module.network[0].out_features == 8
    assert fpe.count_nonzero(module) == fpe.count_nonzero(Module())
    assert (module.network[0].weight[module.network[0].fpe_mask == 0] == 0).all()
    assert module.losses[-1] < module.losses[0]


@pytest.mark.parametrize(("epoch", "stop"), [(2, 1), (2, 3), (0, 2)])
def test_lightning_resumes_before_and_after_the_expansion(epoch, stop, tmp_path):
    whole = fitted(tmp_path, Expand(epoch, factor=2))
    fitted(tmp_path, Expand(epoch, factor=2), epochs=stop)
    resumed = fitted(tmp_path, Expand(epoch, factor=2), ckpt_path=tmp_path / f"after-{stop}.ckpt")
    assert same_state(resumed.network, whole.network)
    assert resumed.network.fpe_plan == whole.network.fpe_plan


@pytest.mark.parametrize("policy", ["rigl", "accumulated", "set"])
def test_lightning_lets_masks_move_and_resumes(policy, tmp_path):
    """Four epochs of four steps, two before the expansion; stopped in between or not."""

    def callbacks():
        return Expand(1, factor=2), Rewire(
            policy, schedule=fpe.RewiringSchedule(every=3, until=0.75), steps=12
        )

    expanding, rewiring = callbacks()
    whole = fitted(tmp_path, expanding, rewiring)
    assert (rewiring.rewirer.taken, rewiring.rewirer.rewirings) == (12, 2)
    assert sum(rewiring.rewirer.grown.values()) > 0
    assert fpe.count_nonzero(whole) == fpe.count_nonzero(Module())
    for stop in (1, 2):
        fitted(tmp_path, *callbacks(), epochs=stop)
        resumed = fitted(tmp_path, *callbacks(), ckpt_path=tmp_path / f"after-{stop}.ckpt")
        assert same_state(resumed.network, whole.network)


def test_lightning_counts_steps_and_not_batches(tmp_path):
    rewiring = Rewire("set")
    trainer = L.Trainer(
        max_epochs=2, callbacks=[Expand(0), rewiring], accelerator="cpu", logger=False,
        accumulate_grad_batches=2, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Module(), data())
    assert (rewiring.rewirer.steps, rewiring.rewirer.taken) == (4, 4)


def test_lightning_asks_which_network_is_meant(tmp_path):
    class Two(Module):
        def __init__(self):
            super().__init__()
            self.other = fpe.mlp(8, 4, 2)

    trainer = L.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    with pytest.raises(ModelError, match=r"2 children .*'network', 'other'.*Expand\(network="):
        Expand().setup(trainer, Two(), "fit")
    module = Two()
    Expand(network="other").setup(trainer, module, "fit")
    assert (module.network[0].out_features, module.other[0].out_features) == (4, 8)


@pytest.mark.parametrize("make", [Expand, huggingface.Expand])
def test_bad_arguments_are_refused_at_once(make):
    with pytest.raises(ArgumentError, match="epoch is -1"):
        make(-1)
    with pytest.raises(ArgumentError, match="moments is 'old'; give 'fresh' or 'kept'"):
        make(1, moments="old")


@pytest.mark.parametrize("moments", ["fresh", "kept"])
def test_the_trainer_of_transformers_expands_and_resumes(moments, tmp_path):
    whole, _ = ZOO["GPT-2"]()
    before = fpe.count_nonzero(whole)
    trainer_for(whole, tmp_path / "a", moments=moments).train()
    assert fpe.count_nonzero(whole) == before
    assert whole.transformer.h[0].mlp.c_fc.out_features == 128

    for step, expanded in ((3, False), (6, True)):
        again, _ = ZOO["GPT-2"]()
        folder = tmp_path / "a" / f"checkpoint-{step}"
        assert huggingface.restore_shape(again, folder) is again
        assert hasattr(again, "fpe_plan") is expanded
        trainer_for(again, tmp_path / "b", moments=moments).train(resume_from_checkpoint=str(folder))
        for name, tensor in whole.state_dict().items():
            torch.testing.assert_close(again.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["accumulated", "set"])
def test_the_trainer_of_transformers_lets_masks_move_and_resumes(policy, tmp_path):
    """Three steps an epoch, expanded after one; resumed before the expansion, and after a rewiring."""
    whole, _ = ZOO["GPT-2"]()
    before = fpe.count_nonzero(whole)
    schedule = fpe.RewiringSchedule(every=2, until=0.75)
    rewiring = huggingface.Rewire(policy, schedule=schedule)
    trainer_for(whole, tmp_path / "a", rewiring, epochs=4).train()
    assert (rewiring.rewirer.taken, rewiring.rewirer.rewirings) == (9, 3)
    assert fpe.count_nonzero(whole) == before
    for step in (3, 6):
        again, _ = ZOO["GPT-2"]()
        folder = tmp_path / "a" / f"checkpoint-{step}"
        huggingface.restore_shape(again, folder)
        resumed = huggingface.Rewire(policy, schedule=schedule, resume_from_checkpoint=folder)
        trainer_for(again, tmp_path / "b", resumed, epochs=4).train(resume_from_checkpoint=str(folder))
        assert resumed.rewirer.grown == rewiring.rewirer.grown
        for name, tensor in whole.state_dict().items():
            torch.testing.assert_close(again.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match="there is no folder"):
        huggingface.Rewire(resume_from_checkpoint=tmp_path / "c")


def test_the_shape_of_another_model_is_refused(tmp_path):
    model, _ = ZOO["GPT-2"]()
    trainer_for(model, tmp_path, epochs=2).train()
    other, _ = ZOO["BERT"]()
    with pytest.raises(CheckpointError, match="architecture than this BertForSequenceClassification"):
        huggingface.restore_shape(other, tmp_path / "checkpoint-6")
    with pytest.raises(CheckpointError, match="there is no folder"):
        huggingface.restore_shape(other, tmp_path / "checkpoint-7")
