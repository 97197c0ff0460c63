"""A plain PyTorch loop: the convolutions and the classifier of a CNN are expanded halfway.

Run: python examples/plain_loop.py
"""

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
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for epoch in range(10):
    if epoch == 5:
        plan = fpe.expand_(model, optimizer, factor=2, example_inputs=X[:2])
        print(plan)
    for batch in torch.randperm(len(X)).split(64):
        loss = nn.functional.cross_entropy(model(X[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.3f}, {fpe.count_nonzero(model):,} non-zeros")

fpe.save(model, "cnn.safetensors")
