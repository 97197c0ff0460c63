"""Expand a model for DDP or FSDP2: on every process with the same seed, before wrapping it.

Run: torchrun --nproc-per-node 2 examples/distributed.py ddp wide.safetensors
     torchrun --nproc-per-node 2 examples/distributed.py fsdp wide.safetensors
"""

import gc
import sys

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fpe

method, path = sys.argv[1], sys.argv[2]
dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()


def train() -> None:
    """Expand, wrap, train and save; what it makes is gone when it returns."""
    X, y = load_digits(return_X_y=True)
    X, y = torch.tensor(X, dtype=torch.float32)[rank::ranks] / 16, torch.tensor(y)[rank::ranks]

    dense = fpe.mlp(64, (16, 12), 10, seed=0)
    wide = fpe.expand(dense, factor=2, seed=1)  # the same masks on every process
    if method == "fsdp":
        for layer in wide:
            if isinstance(layer, fpe.MaskedLayer):
                fully_shard(layer)
        model = fully_shard(wide)
    else:
        model = DistributedDataParallel(wide)

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(20):
        batch = torch.randperm(len(X), generator=torch.Generator().manual_seed(step))[:64]
        loss = nn.functional.cross_entropy(model(X[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    fpe.save(model, path)  # on every process, since each may have a shard
    if rank == 0:
        counts = f"{fpe.count_nonzero(dense):,} non-zeros dense, {fpe.count_nonzero(model):,} wide"
        print(f"loss {loss.item():.3f}, {counts}")


train()
gc.collect()  # gloo's threads must hold no tensor when Python ends
dist.barrier()  # no process exits while gloo still sends tensors of another
dist.destroy_process_group()
