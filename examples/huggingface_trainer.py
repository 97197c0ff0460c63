"""Expand a model in a script with the Trainer of transformers: two more lines.

Run: python examples/huggingface_trainer.py
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import fpe
from fpe.integrations.huggingface import Expand  # the first line

TEXT = "a neuron that serves two features serves neither well; give each of them a child. " * 40
characters = sorted(set(TEXT))
numbers = torch.tensor([characters.index(c) for c in TEXT])
windows = [{"input_ids": w, "labels": w} for w in numbers[: len(numbers) // 32 * 32].view(-1, 32)]

torch.manual_seed(0)
config = GPT2Config(
    vocab_size=len(characters), n_positions=32, n_embd=32, n_layer=2, n_head=2, n_inner=32,
    bos_token_id=0, eos_token_id=0,
)  # fmt: skip
model = GPT2LMHeadModel(config)
before = fpe.count_nonzero(model)
trainer = Trainer(
    model,
    TrainingArguments(
        "fpe-out/trainer", num_train_epochs=4, per_device_train_batch_size=8, learning_rate=3e-3,
        report_to=[], save_strategy="epoch", logging_steps=10, use_cpu=True, disable_tqdm=True,
    ),
    train_dataset=windows,
    callbacks=[Expand(epoch=2, factor=2)],  # the second line
)  # fmt: skip
trainer.train()
print(f"{before:,} non-zeros before, {fpe.count_nonzero(model):,} after")
