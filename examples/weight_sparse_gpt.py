"""Train a small transformer most of whose weights are zero, and find the neurons that a prediction needs.

The recipe is that of weight-sparse transformers (Gao et al., 2025): of each matrix the largest weights stay,
their number falls linearly over the first half of the training, and each neuron keeps four inputs at least.
Every part of the network that one may want to look at passes through a module of its own, so forward hooks
read it and change it.

Run: python examples/weight_sparse_gpt.py [STEPS]
"""

import argparse
import math
import string
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import fpe

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 600
WIDTH, NEURONS, HEADS, BLOCKS, CONTEXT, BATCH = 96, 256, 6, 2, 64, 16

# Text that every machine has: some modules of Python's own library.
root = Path(argparse.__file__).parent
text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(root.glob("[a-d]*.py")))
text = "".join(c for c in text if c in string.printable)
place = {c: i for i, c in enumerate(string.printable)}
numbers = torch.tensor([place[c] for c in text])


class Block(nn.Module):
    """Attention and an MLP; the modules named ``hook_…`` do nothing but pass on what hooks may see.

    They see what heads give, what neurons give, and the residual sum: (samples, places, channels).
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.output, self.up, self.down = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, NEURONS),
            nn.Linear(NEURONS, WIDTH),
        )
        self.hook_z, self.hook_neurons, self.hook_residual = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the residual sum, (samples, places, channels)."""
        own = self.norm1(x)
        parts = [
            layer(own).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        heads = F.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.output(self.hook_z(heads.transpose(1, 2).flatten(2)))
        x = x + self.down(self.hook_neurons(F.gelu(self.up(self.norm2(x)))))
        return self.hook_residual(x)


class GPT(nn.Module):
    """A decoder of characters."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(len(place), WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, len(place))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits, (samples, places, characters)."""
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


torch.manual_seed(0)
model = fpe.with_masks(GPT())
optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
layers = [module for module in model.modules() if isinstance(module, fpe.MaskedLayer)]
weights = sum(layer.weight.numel() for layer in layers)
budget = fpe.count_nonzero(model) - weights * 15 // 16  # a sixteenth of the weights stays
schedule = fpe.PruningSchedule(begin=0, end=0.5, every=max(1, STEPS // 100), shape="linear")
how = {"score": "magnitude", "scope": "layer", "least": 4, "schedule": schedule}
pruner = fpe.GradualPruner(model, optimizer, budget=budget, steps=STEPS, **how)
for step in range(STEPS):
    start = torch.randint(len(numbers) - CONTEXT - 1, (BATCH, 1))
    windows = numbers[start + torch.arange(CONTEXT + 1)]
    loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:  # up over the first tenth, down over the last half
        group["lr"] = 4e-3 * min(1.0, (step + 1) / (STEPS / 10), (STEPS - step) / (STEPS / 2))
    optimizer.step()
    pruner.step()
count = fpe.count_nonzero(model)
print(f"{count:,} non-zeros, budget {budget:,} non-zeros; loss {loss.item():.2f} nats per character")

# Which neurons does the model need to know that a dot follows "self"? Each is set to its mean in turn.
model.eval()
prompt = torch.tensor([[place[c] for c in "    def close(self):\n        self"]])


def dot(prompt: torch.Tensor) -> float:
    """Return the logarithm of the probability of a dot after a prompt."""
    with torch.no_grad():
        return float(model(prompt)[0, -1].log_softmax(-1)[place["."]])


class Mean:
    """A hook that sets one neuron to its mean, over the batch that it saw first."""

    def __init__(self) -> None:
        self.means: torch.Tensor | None = None
        self.neuron = 0

    def __call__(self, module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        """Change what the neurons give."""
        if self.means is None:
            self.means = output.mean((0, 1))
        output = output.clone()
        output[..., self.neuron] = self.means[self.neuron]
        return output


before, effects = dot(prompt), []
print(f"the probability of a dot after 'self' is {math.exp(before):.2f}")
for number, block in enumerate(model.blocks):
    hook = Mean()
    with block.hook_neurons.register_forward_hook(hook):
        dot(windows[:, :-1])
        for hook.neuron in range(NEURONS):
            effects.append((dot(prompt) - before, number, hook.neuron))
for effect, number, neuron in sorted(effects)[:5]:
    block = model.blocks[number]
    inputs, outputs = int(block.up.fpe_mask[neuron].sum()), int(block.down.fpe_mask[:, neuron].sum())
    print(
        f"without neuron {neuron} of block {number}: {effect:+.2f} nats; "
        f"it reads {inputs} and writes {outputs} of {WIDTH} channels"
    )
