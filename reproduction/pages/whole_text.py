"""Small GPT-2s of text: dense ones, and whole networks wider that are pruned to the count of a small one.

They learn Python's own library, as characters or as byte pairs. Each network has its own learning rate,
chosen by the validation part's loss; the test part is measured once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fpe
from fpe.compare.runner import one_thread
from fpe.masked import MaskedLayer
from fpe_reproduction.text import CHARACTERS, PAIRS, byte_pairs, library

#: The small GPT-2; all have as many heads and, but for ``blocks4-1`` and ``blocks8-1``, as many blocks.
WIDTH, HEADS, BLOCKS, CONTEXT, BATCH, STEPS = 64, 4, 3, 64, 32, 1500
#: Of AdamW.
DECAY = 0.01
VOCABULARY = {"characters": len(CHARACTERS), "pairs": PAIRS}
#: Dense networks, by their count as multiples of the small one's, and pruned ones, by their share of zeros.
NETWORKS = (
    *(f"dense-{size:g}" for size in (1, 1.5, 2, 3)),
    *(f"zeros-{share:g}" for share in (0.5, 0.75, 0.875)),
)
#: Dense networks of about the small one's count, with more blocks.
DEEPER = ("blocks4-1", "blocks8-1")


def data_of(text: str) -> dict[str, Tensor]:
    """Return the numbers of each part of a text."""
    return library() if text == "characters" else byte_pairs()


def gpt(width: int, seed: int, text: str = "characters", blocks: int = BLOCKS) -> nn.Module:
    """Return an untrained GPT-2 whose MLPs are as wide as its residual sums."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY[text], n_positions=CONTEXT, n_embd=width, n_layer=blocks, n_head=HEADS,
        n_inner=width, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        use_cache=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def sizes(width: int, text: str = "characters", blocks: int = BLOCKS) -> tuple[int, int]:
    """Return the count of a GPT-2's parameters, and of the weights of its blocks, which can be pruned."""
    weights = blocks * 6 * width * width
    rest = (VOCABULARY[text] + CONTEXT + 2) * width + blocks * (4 + 3 + 1 + 1 + 1) * width
    return weights + rest, weights


def blocks_of(network: str) -> int:
    """Return how many blocks a network has."""
    kind = network.rsplit("-", 1)[0]
    return int(kind.removeprefix("blocks")) if kind.startswith("blocks") else BLOCKS


def width_of(network: str, text: str = "characters") -> int:
    """Return the width of a network: that of a count, or of a share of zeros at the small one's count."""
    kind, value = network.rsplit("-", 1)
    budget = sizes(WIDTH, text)[0]

    def miss(width: int) -> float:
        total, weights = sizes(width, text, blocks_of(network))
        if kind == "zeros":
            return abs((total - budget) / weights - float(value))
        return abs(total / budget - float(value))

    return min(range(HEADS, 8 * WIDTH, HEADS), key=miss)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    learned: Tensor,
    steps: int,
    seed: int,
    after: Callable[[int], None] | None = None,
    teacher: nn.Module | None = None,
) -> None:
    """Train with rates that rise over 100 steps and fall over the last fifth; call `after` after each step.

    A group's ``share`` multiplies its rate. A teacher's probabilities are half of what is learned.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    model.train()
    for step in range(steps):
        for group, lr in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = (
                lr * group.get("share", 1.0) * min(1.0, (step + 1) / 100, (steps - step) / (steps / 5))
            )
        drawn = np.random.default_rng((seed, step)).integers(0, len(learned) - CONTEXT - 1, BATCH)
        windows = torch.stack([learned[i : i + CONTEXT + 1] for i in drawn]).long()
        logits = model(windows[:, :-1]).logits.flatten(0, 1)
        loss = F.cross_entropy(logits, windows[:, 1:].flatten())
        if teacher is not None:
            with torch.no_grad():
                known = teacher(windows[:, :-1]).logits.flatten(0, 1).softmax(-1)
            loss = (loss + F.cross_entropy(logits, known)) / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if after is not None:
            after(step)
    for group, lr in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = lr


@torch.no_grad()
def mean_loss(model: nn.Module, text: Tensor) -> float:
    """Return the mean loss in windows that do not overlap."""
    model.eval()
    count = (len(text) - 1) // CONTEXT
    x = text[: count * CONTEXT].view(count, CONTEXT).long()
    y = text[1 : count * CONTEXT + 1].view(count, CONTEXT).long()
    total = sum(
        F.cross_entropy(model(a).logits.flatten(0, 1), b.flatten(), reduction="sum").item()
        for a, b in zip(x.split(256), y.split(256), strict=True)
    )
    return total / y.numel()


def adamw(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=DECAY, fused=True)


@contextmanager
def measured(model: nn.Module, budget: int, steps: int) -> Iterator[dict[str, Any]]:
    """Yield a record, and add what training took; ``counts`` in it are those before each step."""
    start, found = time.process_time(), {}
    total = sum(p.numel() for p in model.parameters())
    with one_thread():
        yield found
    nonzero = fpe.count_nonzero(model)
    prunable = sum(m.weight.numel() for m in model.modules() if isinstance(m, MaskedLayer))
    average = float(np.mean(found.pop("counts", [nonzero])))
    tokens = steps * BATCH * CONTEXT
    found |= {
        "budget": budget,
        "nonzero": nonzero,
        "zeros": (total - nonzero) / prunable,
        "total": total,
        "average": average,
        "flops": 6.0 * total * tokens,  # as computed: masked weights, too
        "flops_of_nonzeros": 6.0 * average * tokens,
        "bytes": 16 * total,  # weights, gradients and two moments, while it is dense
        "process_seconds": time.process_time() - start,
    }


def measure(network: str, lr: float, seed: int, length: int = 1, text: str = "characters") -> dict[str, Any]:
    """Train a GPT-2; return its losses in nats per character or byte pair, and what training took."""
    data, steps, budget = data_of(text), STEPS * length, sizes(WIDTH, text)[0]
    model = fpe.with_masks(gpt(width_of(network, text), seed, text, blocks_of(network)), "transformer.h.*")
    optimizer = adamw(model, lr)
    with measured(model, budget, steps) as found:
        after = None
        if network.startswith("zeros"):
            pruner = fpe.GradualPruner(model, optimizer, budget=budget, steps=steps)
            found["counts"] = [pruner.count_at(step) for step in range(steps)]

            def after(step: int) -> None:
                pruner.step()

        train(model, optimizer, data["learn"], steps, seed, after)
        found |= {part: mean_loss(model, data[part]) for part in ("validation", "test")}
    return found
