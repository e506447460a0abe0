"""Small networks in the usual styles of PyTorch code, for images (1, 12, 12) and 3 classes."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

SHAPE, K = (1, 12, 12), 3
Output = namedtuple("Output", ["logits", "hidden"])


class Net(nn.Module):
    """Convolution, ReLU, pooling, ``middle`` (4, 6, 6), then ``view`` and a linear layer."""

    def __init__(self, middle: nn.Module | None = None, end: Callable[..., Any] | None = None):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.middle = middle if middle is not None else nn.Identity()
        self.fc = nn.Linear(144, K)
        self.end = end

    def forward(self, x):
        h = self.middle(F.max_pool2d(F.relu(self.conv(x)), 2))
        z = self.fc(h.view(-1, 144)) if h.is_contiguous() else self.fc(h.reshape(-1, 144))
        return z if self.end is None else self.end(z, h)


class Views(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 2)
        self.fc = nn.Linear(32, K)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        return self.fc(F.relu(F.max_pool2d(self.c2(x), 2)).view(-1, 32))


class Untraceable(Views):
    def forward(self, x):
        if float(x.detach().sum()) == 1e30:
            return x
        return super().forward(x)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(12), nn.Linear(12, K)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, x):
        h = self.norm(x.squeeze(1))
        return self.fc(self.attention(h, h, h, need_weights=False)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(12, 8, batch_first=True), nn.Linear(8, K)

    def forward(self, x):
        return self.fc(self.lstm(x.squeeze(1))[0][:, -1])


class Functional(Views):
    def forward(self, x):
        x = F.dropout(F.max_pool2d(F.relu(self.c1(x)), 2), 0.3, self.training)
        return self.fc(F.relu(F.max_pool2d(self.c2(x), 2)).view(x.size(0), -1))


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, K))

    def forward(self, x):
        return self.fc(x.view(x.shape[0], 144))


class Logits:
    def __init__(self, logits):
        self.logits = logits


class Auxiliary(Views):
    def forward(self, x):
        z = super().forward(x)
        return (z, z * 2) if self.training else z


def scripted() -> nn.Module:
    return nn.Sequential(
        torch.jit.script(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(100, K),
    )


def batch_norm() -> nn.Module:
    layers = (nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(100, K))
    norm: Any = network[1]
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "view": Views,
    "untraceable view": Untraceable,
    "batch norm": batch_norm,
    "group norm": lambda: Net(nn.GroupNorm(2, 4)),
    "layer norm": lambda: Net(nn.LayerNorm([4, 6, 6])),
    "attention": Attention,
    "dropout": lambda: Net(nn.Dropout(0.3)),
    "functional dropout": Functional,
    "lstm": Recurrent,
    "flatten": lambda: nn.Sequential(
        OrderedDict(
            c=nn.Conv2d(1, 4, 3),
            p=nn.MaxPool2d(2),
            r=nn.ReLU(inplace=True),
            f=nn.Flatten(),
            fc=nn.Linear(100, K),
        )
    ),
    "scripted": scripted,
    "mlp": Flat,
    "compiled": lambda: torch.compile(Views(), backend="eager"),  # type: ignore[return-value]
    "tuple": lambda: Net(end=lambda z, h: (z, h)),
    "named tuple": lambda: Net(end=lambda z, h: Output(z, h)),
    "dict": lambda: Net(end=lambda z, h: {"hidden": h, "logits": z}),
    "object": lambda: Net(end=lambda z, h: Logits(z)),
    "auxiliary": Auxiliary,
    "log probabilities": lambda: Net(end=lambda z, h: z.log_softmax(1)),
    "float64": lambda: Views().double(),
}


def make(name: str, num_classes: int = K) -> nn.Module:
    """The network, in train mode, always with the same weights."""
    torch.manual_seed(3)
    return NETWORKS[name]()
