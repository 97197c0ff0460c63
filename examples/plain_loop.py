"""Expand a CNN halfway through a plain PyTorch loop. After an interruption, the same command resumes it.

Run: python examples/plain_loop.py
"""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import fpe

X, y = load_digits(return_X_y=True)
X, y = torch.tensor(X, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(y)

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10),
)  # fmt: skip

weights, state = Path("cnn.safetensors"), Path("cnn-training.pt")
first = 0
if state.exists():  # resume: the file of weights records whether and how the model was expanded
    model = fpe.load(weights, like=model)
    stored = torch.load(state)
    first = stored["epoch"] + 1
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
if first:
    optimizer.load_state_dict(stored["optimizer"])
    torch.set_rng_state(stored["random"])

for epoch in range(first, 10):
    if epoch == 5:
        plan = fpe.expand_(model, optimizer=optimizer, factor=2, example_inputs=X[:2])
        print(plan)
    for batch in torch.randperm(len(X)).split(64):
        loss = nn.functional.cross_entropy(model(X[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.3f}, {fpe.count_nonzero(model):,} non-zeros")
    fpe.save(model, weights)
    random = torch.get_rng_state()
    torch.save({"epoch": epoch, "optimizer": optimizer.state_dict(), "random": random}, state)
