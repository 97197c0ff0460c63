"""Expand a model in a training script with accelerate: two more lines.

Run: python examples/accelerate_digits.py   or   accelerate launch --cpu examples/accelerate_digits.py
"""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fpe  # the first line

X, y = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(X, dtype=torch.float32) / 16, torch.tensor(y))

accelerator = Accelerator(cpu=True)
model = fpe.mlp(64, 8, 10, seed=0)
before = fpe.count_nonzero(model)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, 64, shuffle=True))

for epoch in range(4):
    if epoch == 2:  # with several processes: before `prepare`, which wraps the model
        fpe.expand_(accelerator.unwrap_model(model), optimizer=optimizer, factor=2)  # the second line
    for inputs, labels in loader:
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()

after = fpe.count_nonzero(accelerator.unwrap_model(model))
accelerator.print(f"{before:,} non-zeros before, {after:,} after")
