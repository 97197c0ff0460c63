"""DDP and FSDP2 on two real processes: one set of masks, an exact count, one file, any number of readers."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fpe
from models import same_state

ROOT = Path(__file__).parent.parent

#: Saves, on each rank, what it sees; then loads the file again on however many ranks there are.
CHECK = """
import gc, sys, torch, torch.distributed as dist, fpe
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

way, folder = sys.argv[1], sys.argv[2]
dist.init_process_group("gloo")
rank = dist.get_rank()
dense = fpe.mlp(64, (16, 12), 10, seed=0)
if way == "load":
    wide = fpe.load(f"{folder}/wide.safetensors", like=dense)
    model = fully_shard(wide) if dist.get_world_size() > 1 else DistributedDataParallel(wide)
else:
    wide = fpe.expand(dense, 2, seed=1)
    if way == "fsdp":
        for layer in wide:
            if isinstance(layer, fpe.MaskedLayer):
                fully_shard(layer)
        model = fully_shard(wide)
    else:
        model = DistributedDataParallel(wide)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    fpe.enforce_masks_(optimizer, model)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(5):
        loss = model(torch.randn(16, 64, generator=generator)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fpe.save(model, f"{folder}/wide.safetensors")
    fpe.save(model, f"{folder}/own-{rank}.safetensors")
    dist.barrier()
    del optimizer, loss
x = torch.ones(4, 64)
with torch.no_grad():
    output = model(x)
weights = {n: getattr(p.data, "full_tensor", lambda p=p: p.data)() for n, p in wide.named_parameters()}
seen = {
    "masks": {n: b.clone() for n, b in wide.named_buffers()},
    "weights": {n: w.clone() for n, w in weights.items()},
    "output": output.detach(), "count": fpe.count_nonzero(model),
}
if way == "fsdp":  # one process alone writes past a mask
    piece = wide[0].weight.to_local()
    with torch.no_grad():
        piece.add_(rank)
    try:
        fpe.save(model, f"{folder}/past.safetensors")
    except fpe.FPEError as error:
        seen["refused"] = "project_" in str(error)
    seen["past"] = (fpe.count_nonzero(model) - seen["count"], fpe.project_(model), fpe.project_(model))
    del piece
torch.save(seen, f"{folder}/{way}-{dist.get_world_size()}-{rank}.pt")
del model, wide, weights  # gloo's threads must hold no tensor when Python ends
gc.collect()
dist.barrier()
dist.destroy_process_group()
"""


def torchrun(processes, script, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
         script, *map(str, arguments)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_all_ranks_have_the_same_masks_and_what_one_saved_any_number_can_load(way, tmp_path):
    script = tmp_path / "check.py"
    script.write_text(CHECK)
    torchrun(2, script, way, tmp_path)
    torchrun(1, script, "load", tmp_path)
    torchrun(2, script, "load", tmp_path)
    names = [f"{way}-2-0", f"{way}-2-1", "load-1-0", "load-2-0", "load-2-1"]
    seen = [torch.load(tmp_path / f"{name}.pt") for name in names]
    dense = fpe.mlp(64, (16, 12), 10, seed=0)
    for one in seen:
        assert one["count"] == fpe.count_nonzero(dense)
        assert one["masks"].keys() == seen[0]["masks"].keys()
        assert all(torch.equal(mask, seen[0]["masks"][n]) for n, mask in one["masks"].items())
        assert all(torch.equal(w, seen[0]["weights"][n]) for n, w in one["weights"].items())
        for name, mask in one["masks"].items():
            assert (one["weights"][name.replace("fpe_mask", "weight")][mask == 0] == 0).all()
        torch.testing.assert_close(one["output"], seen[0]["output"])
    for rank in range(2):
        own = fpe.load(tmp_path / f"own-{rank}.safetensors", like=dense)
        assert all(torch.equal(w, seen[0]["weights"][n]) for n, w in own.named_parameters())
    if way == "fsdp":
        assert all(one["refused"] for one in seen[:2])
        assert not (tmp_path / "past.safetensors").exists()
        assert seen[0]["past"] == (0, 0, 0)
        assert seen[1]["past"][0] == seen[1]["past"][1] > seen[1]["past"][2] == 0
    alone = fpe.load(tmp_path / "wide.safetensors", like=dense)
    assert same_state(alone, fpe.load(tmp_path / "wide.safetensors", like=fpe.mlp(64, (16, 12), 10)))
    assert not same_state(alone, fpe.expand(dense, 2, seed=1))


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_the_example_runs_on_two_processes(way, tmp_path):
    output = torchrun(2, ROOT / "examples" / "distributed.py", way, tmp_path / "wide.safetensors")
    assert "1,430 non-zeros dense, 1,430 wide" in output
    like = fpe.mlp(64, (16, 12), 10)
    assert fpe.count_nonzero(fpe.load(tmp_path / "wide.safetensors", like=like)) == 1430


def test_a_sharded_model_is_not_expanded(tmp_path):
    script = tmp_path / "late.py"
    script.write_text(
        "import torch.distributed as dist, fpe\n"
        "from torch.distributed.fsdp import fully_shard\n"
        "dist.init_process_group('gloo')\n"
        "try:\n"
        "    fpe.expand(fully_shard(fpe.mlp(8, 4, 2, seed=0)))\n"
        "except fpe.FPEError as error:\n"
        "    print(error, flush=True)\n"
        "dist.destroy_process_group()\n"
    )
    assert "model is a FSDPModule; expand the model first, and wrap it then." in torchrun(2, script)


#: Trains and rewires on each rank with data of its own; the ranks must agree on masks all the same.
REWIRE = """
import gc, sys, torch, torch.distributed as dist, fpe
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

way, policy, folder = sys.argv[1:]
if way != "alone":
    dist.init_process_group("gloo")
rank, world = (dist.get_rank(), dist.get_world_size()) if way != "alone" else (0, 1)
wide = fpe.expand(fpe.mlp(64, (16, 12), 10, seed=0), 2, seed=1)
if way == "fsdp":
    for layer in wide:
        if isinstance(layer, fpe.MaskedLayer):
            fully_shard(layer)
    model = fully_shard(wide)
else:
    model = DistributedDataParallel(wide) if way == "ddp" else wide
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
schedule = fpe.RewiringSchedule(every=3, until=1.0)
rewirer = fpe.Rewirer(model, optimizer, policy, steps=10, schedule=schedule)
x = torch.randn(2, 10, 16, 64, generator=torch.Generator().manual_seed(0))
parts = x.chunk(world)[rank].flatten(0, 0)
for step in range(10):
    optimizer.zero_grad()
    model(parts[:, step].flatten(0, 1)).square().mean().backward()
    optimizer.step()
    rewirer.step()
state = rewirer.state_dict()
weights = {n: getattr(p.data, "full_tensor", lambda p=p: p.data)() for n, p in wide.named_parameters()}
moments = [next(iter(getattr(v, "full_tensor", lambda v=v: v)() for v in [optimizer.state[p]["exp_avg"]]))
           for n, p in wide.named_parameters()]
torch.save({"masks": {n: b.clone() for n, b in wide.named_buffers()}, "count": fpe.count_nonzero(model),
            "weights": {n: w.detach().clone() for n, w in weights.items()}, "moved": rewirer.moved,
            "moments": dict(zip(weights, moments))}, f"{folder}/{way}-{rank}.pt")
if way != "alone":
    del model, wide, weights, moments, rewirer, optimizer
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
"""


@pytest.mark.parametrize("policy", ["rigl", "paper"])
def test_all_ranks_move_the_same_weights_as_one_process_that_sees_all_samples(policy, tmp_path):
    script = tmp_path / "rewire.py"
    script.write_text(REWIRE)
    for way in ("ddp", "fsdp"):
        torchrun(2, script, way, policy, tmp_path)
    subprocess.run([sys.executable, script, "alone", policy, tmp_path], check=True)
    alone, *others = (
        torch.load(tmp_path / f"{name}.pt") for name in ("alone-0", "ddp-0", "ddp-1", "fsdp-0", "fsdp-1")
    )
    for one in others:
        assert one["count"] == alone["count"] == fpe.count_nonzero(fpe.mlp(64, (16, 12), 10))
        assert one["moved"] == alone["moved"]
        assert all(torch.equal(mask, alone["masks"][n]) for n, mask in one["masks"].items())
        for name, mask in one["masks"].items():
            weight = name.replace("fpe_mask", "weight")
            assert (one["weights"][weight][mask == 0] == 0).all()
            assert (one["moments"][weight][mask == 0] == 0).all()
            torch.testing.assert_close(one["weights"][weight], alone["weights"][weight])
