"""Models with convolutions in groups, and with norms over a concatenation."""

import torch
from torch import nn
from torch.nn import functional as F

IMAGE, SEQUENCE = (2, 3, 7, 7), (3, 3, 9)


class Net(nn.Module):
    """Layers for all models; `follow` is the forward pass."""

    def __init__(self, follow, **modules):
        super().__init__()
        self.follow = follow
        self.a, self.a2, self.out = nn.Conv2d(3, 12, 3), nn.Conv2d(3, 12, 3), nn.Conv2d(12, 2, 1)
        self.grouped, self.grouped4 = nn.Conv2d(12, 18, 3, groups=3), nn.Conv2d(18, 12, 1, groups=2)
        self.norm, self.norm18, self.out18 = nn.BatchNorm2d(12), nn.BatchNorm2d(18), nn.Conv2d(18, 2, 1)
        self.more, self.norm24, self.out24 = (
            nn.Conv2d(12, 24, 3, groups=12),
            nn.BatchNorm2d(24),
            nn.Conv2d(24, 2, 1),
        )
        self.group_norm, self.layer_norm = nn.GroupNorm(4, 12), nn.LayerNorm(7)
        self.squeeze, self.excite = nn.Conv2d(18, 4, 1), nn.Conv2d(4, 18, 1)
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.follow(self, x)


class Dense(nn.Module):
    """A block of DenseNet and the transition behind it."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * n) for n in range(3))
        self.squeezes = nn.ModuleList(nn.Conv2d(6 + 4 * n, 8, 1, bias=False) for n in range(3))
        self.inner = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.grows = nn.ModuleList(nn.Conv2d(8, 4, 3, padding=1, bias=False) for _ in range(3))
        self.transition, self.pool, self.last = nn.BatchNorm2d(18), nn.Conv2d(18, 9, 1), nn.BatchNorm2d(9)
        self.head = nn.Linear(9, 2)

    def forward(self, x):
        found = [F.max_pool2d(F.relu(self.norm0(self.stem(x))), 2)]
        for norm, squeeze, inner, grow in zip(self.norms, self.squeezes, self.inner, self.grows, strict=True):
            h = squeeze(F.relu(norm(torch.cat(found, 1))))
            found.append(grow(F.relu(inner(h))))
        h = self.pool(F.relu(self.transition(torch.cat(found, 1))))
        return self.head(F.relu(self.last(h)).mean((2, 3)))


def shuffled(t, x):
    """Shuffle channels over the groups, as ShuffleNet does."""
    return t.out18(F.relu(t.grouped(F.relu(t.a(x)).unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2))))


def gated(t, x):
    h = F.relu(t.norm18(t.grouped(F.relu(t.norm(t.a(x))))))
    return t.out18(h * t.excite(F.relu(t.squeeze(h.mean((2, 3), True)))).sigmoid())


#: Name → model, the shape of its input, and the producers of each group with the parts of their outputs.
FOUND = {
    "ResNeXt": (
        lambda: Net(lambda t, x: t.out18(F.relu(t.norm18(t.grouped(F.relu(t.norm(t.a(x)))))))),
        IMAGE,
        {"a": 3, "grouped": 3},
    ),
    "a residual sum": (
        lambda: Net(
            lambda t, x: t.out(t.stay(x) + t.end(F.relu(t.same(F.relu(t.a(x)))))),
            stay=nn.Conv2d(3, 12, 1),
            same=nn.Conv2d(12, 12, 3, padding=2, groups=2),
            end=nn.Conv2d(12, 12, 1),
        ),
        IMAGE,
        {"stay": 1, "end": 1, "a": 2, "same": 2},
    ),
    "other groups behind": (
        lambda: Net(lambda t, x: t.out(F.relu(t.norm(t.grouped4(F.relu(t.grouped(F.relu(t.a(x))))))))),
        IMAGE,
        {"a": 3, "grouped": 6, "grouped4": 2},
    ),
    "a norm of groups": (
        lambda: Net(lambda t, x: t.out18(F.relu(t.grouped(F.relu(t.group_norm(t.a(x))))))),
        IMAGE,
        {"a": 3, "grouped": 3},
    ),
    "one dimension": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 8, 3), nn.Tanh(), nn.Conv1d(8, 8, 3, groups=4), nn.PReLU(8), nn.Conv1d(8, 2, 1)
        ),
        SEQUENCE,
        {"0": 4, "2": 4},
    ),
    "flattened": (
        lambda: Net(lambda t, x: t.flat(F.relu(t.grouped(t.a(x))).flatten(1)), flat=nn.Linear(162, 2)),
        IMAGE,
        {"a": 3, "grouped": 3},
    ),
    "several kernels for each channel": (
        lambda: Net(lambda t, x: t.out24(F.relu(t.norm24(t.more(F.relu(t.norm(t.a(x)))))))),
        IMAGE,
        {"a": 1},
    ),
    "several kernels for each channel in groups": (
        lambda: Net(
            lambda t, x: t.end(F.relu(t.more(F.relu(t.a(x))))),
            end=nn.Conv2d(24, 4, 1, groups=2),
        ),
        IMAGE,
        {"a": 2},
    ),
    "side by side in each group": (
        lambda: Net(
            lambda t, x: t.end(torch.cat([t.a(x), -t.a(x).relu()], 1)), end=nn.Conv2d(24, 4, 1, groups=2)
        ),
        IMAGE,
        {"a": 1},
    ),
    "channels and gates": (lambda: Net(gated), IMAGE, {"a": 3, "grouped": 3, "excite": 3, "squeeze": 1}),
    "gate and up in groups": (
        lambda: Net(lambda t, x: t.out18(F.relu(t.grouped(F.silu(t.a(x)) * t.a2(x))))),
        IMAGE,
        {"a": 3, "a2": 3, "grouped": 3},
    ),
    "DenseNet": (Dense, IMAGE, None),
    "a norm over halves": (
        lambda: Net(lambda t, x: t.end(F.glu(t.norm(t.a(x)), 1)), end=nn.Conv2d(6, 2, 1)),
        IMAGE,
        {"a": 2},
    ),
    "a norm beside the input": (
        lambda: Net(
            lambda t, x: t.end(F.relu(t.wide(torch.cat([t.a(x), x[:, :, 2:, 2:]], 1)))),
            wide=nn.BatchNorm2d(15),
            end=nn.Conv2d(15, 2, 1),
        ),
        IMAGE,
        {"a": 1},
    ),
    "a norm of what is flattened": (
        lambda: Net(
            lambda t, x: t.flat(F.relu(t.wide(t.a(x).flatten(1)))),
            wide=nn.BatchNorm1d(300),
            flat=nn.Linear(300, 2),
        ),
        IMAGE,
        {"a": 1},
    ),
    "PReLU over two layers": (
        lambda: Net(lambda t, x: t.out24(t.bent(torch.cat([t.a(x), t.a2(x)], 1))), bent=nn.PReLU(24)),
        IMAGE,
        {"a": 1, "a2": 1},
    ),
    "kernels over two layers": (
        lambda: Net(
            lambda t, x: t.out24(t.each(torch.cat([t.a(x), t.a2(x)], 1)).relu()),
            each=nn.Conv2d(24, 24, 3, groups=24),
        ),
        IMAGE,
        {"a": 1, "a2": 1},
    ),
}
