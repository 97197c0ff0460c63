"""DDP and FSDP2 on two processes: one set of masks, an exact count, one file for any number of processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fpe
from models import same_state

ROOT = Path(__file__).parent.parent

#: Everything that two processes do, in one start; each writes down what it sees.
CHECK = """
import gc, sys, torch, torch.distributed as dist, fpe
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

WAYS, POLICIES = ("ddp", "fsdp"), ("rigl", "paper")
WHOLE = ("GPT-2", "LLaMA", "ViT", "ResNet block")


def wrapped(wide, way):
    if way == "alone":
        return wide
    if way == "ddp":
        return DistributedDataParallel(wide)
    for layer in wide:
        if isinstance(layer, fpe.MaskedLayer):
            fully_shard(layer)
    return fully_shard(wide)


def whole(tensor):
    return getattr(tensor, "full_tensor", lambda: tensor)().detach().clone()


def look(wide, model):
    with torch.no_grad():
        output = model(torch.ones(4, 64)).detach()
    return {
        "masks": {n: b.clone() for n, b in wide.named_buffers()},
        "weights": {n: whole(p.data) for n, p in wide.named_parameters()},
        "output": output, "count": fpe.count_nonzero(model),
    }


def train_and_save(way, folder, rank):
    wide = fpe.expand(fpe.mlp(64, (16, 12), 10, seed=0), 2, seed=1)
    model = wrapped(wide, way)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    fpe.enforce_masks_(optimizer, model)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(5):
        loss = model(torch.randn(16, 64, generator=generator)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fpe.save(model, f"{folder}/{way}.safetensors")
    fpe.save(model, f"{folder}/{way}-own-{rank}.safetensors")
    dist.barrier()
    seen = look(wide, model)
    if way == "fsdp":  # one process alone writes past a mask
        with torch.no_grad():
            wide[0].weight.to_local().add_(rank)
        try:
            fpe.save(model, f"{folder}/past.safetensors")
        except fpe.FPEError as error:
            seen["refused"] = "project_" in str(error)
        seen["past"] = (fpe.count_nonzero(model) - seen["count"], fpe.project_(model), fpe.project_(model))
    return seen


def load(way, folder):
    wide = fpe.load(f"{folder}/{way}.safetensors", like=fpe.mlp(64, (16, 12), 10, seed=0))
    return look(wide, fully_shard(wide))


def rewire(way, policy, rank=0, world=1):
    wide = fpe.expand(fpe.mlp(64, (16, 12), 10, seed=0), 2, seed=1)
    model = wrapped(wide, way)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = fpe.RewiringSchedule(every=3, until=1.0)
    rewirer = fpe.Rewirer(model, optimizer, policy, steps=10, schedule=schedule)
    x = torch.randn(2, 10, 16, 64, generator=torch.Generator().manual_seed(0))
    own = x.chunk(world)[rank]
    for step in range(10):
        optimizer.zero_grad()
        model(own[:, step].flatten(0, 1)).square().mean().backward()
        optimizer.step()
        rewirer.step()
    rewirer.state_dict()
    moments = {n: whole(optimizer.state[p]["exp_avg"]) for n, p in wide.named_parameters()}
    return {**look(wide, model), "moved": rewirer.grown, "moments": moments}


def prune(way, rank=0, world=1):
    wide = fpe.with_masks(fpe.mlp(64, 16, 10, seed=0))
    model = wrapped(wide, way)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = fpe.PruningSchedule(begin=0, end=0.8, every=2)
    pruner = fpe.GradualPruner(model, optimizer, budget=200, steps=10, schedule=schedule, then="rigl")
    x = torch.randn(2, 10, 16, 64, generator=torch.Generator().manual_seed(0))
    own = x.chunk(world)[rank]
    for step in range(10):
        optimizer.zero_grad()
        model(own[:, step].flatten(0, 1)).square().mean().backward()
        optimizer.step()
        pruner.step()
    pruner.state_dict()
    return {**look(wide, model), "whole": pruner._count()}


def prune_whole(name, rank=0):
    # Each process has its own samples.
    from zoo import ZOO, answer

    model, batch = ZOO[name]()
    wide = fpe.widen(model, 2, example_inputs=batch)
    named = batch if isinstance(batch, dict) else {"x": batch}
    own = {key: tensor.roll(rank, -1) for key, tensor in named.items()}
    own = own if isinstance(batch, dict) else own["x"]
    ddp = DistributedDataParallel(wide)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-2)
    budget = fpe.count_nonzero(model) * 3 // 2
    pruner = fpe.GradualPruner(ddp, optimizer, budget=budget, steps=6)
    for _ in range(6):
        optimizer.zero_grad()
        answer(ddp, own).square().mean().backward()
        optimizer.step()
        pruner.step()
    masks = {n: b.clone() for n, b in wide.named_buffers() if n.endswith("mask")}
    return {"masks": masks, "count": fpe.count_nonzero(ddp), "budget": budget}


def refusal():
    try:
        fpe.expand(fully_shard(fpe.mlp(8, 4, 2, seed=0)))
    except fpe.FPEError as error:
        return str(error)


if __name__ == "__main__":
    folder = sys.argv[1]
    sys.path.append(sys.argv[2])
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    seen = {"refusal": refusal()}
    for way in WAYS:
        seen[way] = train_and_save(way, folder, rank)
        seen["load", way] = load(way, folder)
        seen["pruned", way] = prune(way, rank, world)
        for policy in POLICIES:
            seen[way, policy] = rewire(way, policy, rank, world)
    for name in WHOLE:
        seen["whole", name] = prune_whole(name, rank)
    torch.save(seen, f"{folder}/{rank}.pt")
    gc.collect()  # gloo's threads must have no tensor when Python ends
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def ranks(folder):
    """Return what each of two processes reports."""
    script = folder / "check.py"
    script.write_text(CHECK)
    torchrun(2, script, folder, Path(__file__).parent)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_all_ranks_have_the_same_masks_and_any_number_can_load_what_one_saved(way, ranks, folder):
    dense = fpe.mlp(64, (16, 12), 10, seed=0)
    alone = fpe.load(folder / f"{way}.safetensors", like=dense)
    seen = [rank[key] for key in (way, ("load", way)) for rank in ranks]
    for one in seen:
        assert one["count"] == fpe.count_nonzero(dense) == fpe.count_nonzero(alone)
        assert one["masks"].keys() == dict(alone.named_buffers()).keys()
        assert all(torch.equal(mask, one["masks"][n]) for n, mask in alone.named_buffers())
        assert all(torch.equal(w, one["weights"][n]) for n, w in alone.named_parameters())
        for name, mask in one["masks"].items():
            assert (one["weights"][name.replace("fpe_mask", "weight")][mask == 0] == 0).all()
        torch.testing.assert_close(one["output"], alone(torch.ones(4, 64)).detach())
    for rank in range(2):
        own = fpe.load(folder / f"{way}-own-{rank}.safetensors", like=dense)
        assert all(torch.equal(w, seen[0]["weights"][n]) for n, w in own.named_parameters())
    if way == "fsdp":
        assert all(one["refused"] for one in seen[:2])
        assert not (folder / "past.safetensors").exists()
        assert seen[0]["past"] == (0, 0, 0)
        assert seen[1]["past"][0] == seen[1]["past"][1] > seen[1]["past"][2] == 0
    assert same_state(alone, fpe.load(folder / f"{way}.safetensors", like=fpe.mlp(64, (16, 12), 10)))
    assert not same_state(alone, fpe.expand(dense, 2, seed=1))


@pytest.mark.parametrize("policy", ["rigl", "paper"])
def test_all_ranks_rewire_the_same_weights_as_one_process_with_all_samples(policy, ranks):
    script = {"__name__": "check"}
    exec(CHECK, script)
    alone = script["rewire"]("alone", policy)
    for one in [rank[way, policy] for way in ("ddp", "fsdp") for rank in ranks]:
        assert one["count"] == alone["count"] == fpe.count_nonzero(fpe.mlp(64, (16, 12), 10))
        assert one["moved"] == alone["moved"]
        assert all(torch.equal(mask, alone["masks"][n]) for n, mask in one["masks"].items())
        for name, mask in one["masks"].items():
            weight = name.replace("fpe_mask", "weight")
            assert (one["weights"][weight][mask == 0] == 0).all()
            assert (one["moments"][weight][mask == 0] == 0).all()
            torch.testing.assert_close(one["weights"][weight], alone["weights"][weight])


def test_all_ranks_prune_the_same_weights_as_one_process_with_all_samples(ranks):
    script = {"__name__": "check"}
    exec(CHECK, script)
    alone = script["prune"]("alone")
    for one in [rank["pruned", way] for way in ("ddp", "fsdp") for rank in ranks]:
        assert one["whole"] == alone["whole"] == 200
        kept, own = ({n: m for n, m in r["masks"].items() if (m == 0).any()} for r in (alone, one))
        assert own.keys() == kept.keys() != set()
        assert all(torch.equal(mask, kept[n]) for n, mask in own.items())
        for name, weight in one["weights"].items():
            torch.testing.assert_close(weight, alone["weights"][name])


@pytest.mark.parametrize("name", ["GPT-2", "LLaMA", "ViT", "ResNet block"])
def test_all_ranks_prune_the_same_weights_of_a_whole_model(name, ranks):
    one, other = (rank["whole", name] for rank in ranks)
    assert one["count"] == other["count"] == one["budget"]
    assert one["masks"].keys() == other["masks"].keys() != set()
    assert all(torch.equal(mask, other["masks"][key]) for key, mask in one["masks"].items())


def test_a_sharded_model_is_not_expanded(ranks):
    for rank in ranks:
        assert "model is a FSDPModule; expand the model first" in rank["refusal"]


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_the_example_runs_on_two_processes(way, tmp_path):
    output = torchrun(2, ROOT / "examples" / "distributed.py", way, tmp_path / "wide.safetensors")
    assert "1,430 non-zeros dense, 1,430 wide" in output
    like = fpe.mlp(64, (16, 12), 10)
    assert fpe.count_nonzero(fpe.load(tmp_path / "wide.safetensors", like=like)) == 1430
