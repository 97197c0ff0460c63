"""Models of ``make zoo`` that are written by hand: each stands for an architecture that people train."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo_images import HAND, hand, sequence

# Modules that are called several times.


@hand("RNN cell", (3, 4, 5))
class Cell(nn.Module):
    """A recurrent network whose cell has a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.lower, self.head = nn.Linear(11, 12), nn.Linear(12, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 6)
        for step in x.unbind(1):
            state = torch.tanh(self.lower(F.relu(self.lift(torch.cat([step, state], -1)))))
        return self.head(state)


# Graphs, and other operations along other axes.


@hand("GCN", (5, 6), (5, 5))
class GCN(nn.Module):
    """Graph convolutions: a normalized adjacency matrix times the features of nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = F.relu(adjacency @ self.first(x))
        return adjacency @ self.head(F.relu(adjacency @ self.second(x)))


class GraphSAGE(nn.Module):
    """Sums over neighbours, which a list of edges names."""

    def __init__(self) -> None:
        super().__init__()
        self.own1, self.other1 = nn.Linear(6, 12), nn.Linear(6, 12)
        self.own2, self.other2, self.head = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        for own, other in ((self.own1, self.other1), (self.own2, self.other2)):
            mean = torch.zeros_like(x).index_add(0, edges[0], x[edges[1]])
            x = F.relu(own(x) + other(mean))
        return self.head(x)


HAND["GraphSAGE"] = lambda: (GraphSAGE(), (torch.randn(5, 6), torch.randint(0, 5, (2, 12))))


@hand("rolled MLP", (3, 5, 6))
class Rolled(nn.Module):
    """Tokens are shifted inside an MLP, and flipped."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 12), nn.Linear(12, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.first(x))
        return self.head(x + self.second(h.roll(1, 1) + h.flip(1)))


# What stands between.


class ReGLU(nn.Module):
    """A pre-norm block of FT-Transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm2, self.linear1, self.linear2 = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        a, b = self.linear1(self.norm2(x)).chunk(2, dim=-1)
        return x + self.linear2(a * F.relu(b))


@hand("FT-Transformer", (3, 5))
class FTTransformer(nn.Module):
    """Each number of a table row is a token."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(5, 8))
        self.cls, self.blocks = nn.Parameter(torch.randn(8)), nn.Sequential(ReGLU(), ReGLU())
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x[..., None] * self.weight + self.bias
        tokens = torch.cat([self.cls.expand(len(x), 1, 8), tokens], 1)
        return self.head(F.relu(self.norm(self.blocks(tokens)[:, 0])))


class Cast(nn.Module):
    """Another precision and back."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x.to(torch.float64)).to(torch.float32)


HAND["casts between"] = lambda: sequence(
    nn.Linear(6, 12), Cast(), nn.Dropout(0.1), nn.Linear(12, 8), Cast(), nn.Linear(8, 3), x=torch.randn(4, 6)
)


class RMS(nn.Module):
    """LLaMA's norm."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        dtype, x = x.dtype, x.to(torch.float32)
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)).to(dtype)


HAND["RMSNorm by hand"] = lambda: sequence(
    nn.Linear(6, 12), RMS(12), nn.SiLU(), nn.Linear(12, 8), RMS(8), nn.SiLU(), nn.Linear(8, 3),
    x=torch.randn(4, 6),
)  # fmt: skip


class Snake(nn.Module):
    """x + sin²(ax) / a, with an `a` for each neuron."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.a * x).sin().square() / self.a


HAND["Snake activations"] = lambda: sequence(
    nn.Linear(6, 12), Snake(12), nn.Linear(12, 8), Snake(8), nn.Linear(8, 3), x=torch.randn(4, 6)
)


@hand("TabM", (5, 6))
class TabM(nn.Module):
    """An ensemble that shares its weights: members scale inputs and hidden neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.r, self.s = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4, 12))
        self.hidden, self.head = nn.Linear(6, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(x[:, None] * self.r) * self.s))


class Autocast(nn.Module):
    """An MLP that always computes in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.fc2(F.relu(self.fc1(x))).float()


HAND["MLP under autocast"] = lambda: sequence(
    nn.Linear(6, 8), nn.ReLU(), Autocast(), nn.Linear(8, 3), x=torch.randn(4, 6)
)


class Up(nn.Module):
    """The first half of an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(6, 12)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


@hand("two modules that cannot be exported", (4, 6))
class Apart(nn.Module):
    """An MLP in two modules; the forward pass looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = Up(), nn.Linear(12, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().max().item() > 1e6:
            x = x / 2
        return self.head(x + self.second(self.first(x)))
