"""Parts with weights, norms, functions of one value and of two."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generated.part import Form, Forms, Part

HEADS = 2


class Linear(Part):
    takes = ("sequence row",)
    choices = ("same", "wider", "narrower", "no bias")

    @classmethod
    def gives(cls, forms: Forms, choice: str) -> Form | None:
        return Form(forms[0].kind, {"wider": 12, "narrower": 4}.get(choice, forms[0].width))

    def __init__(self, forms: Forms, choice: str) -> None:
        super().__init__(forms, choice)
        self.layer = nn.Linear(self.width, self.gives(forms, choice).width, bias=choice != "no bias")

    def forward(self, given: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return self.layer(x)


class Convolution(Part):
    takes = ("sequence image",)
    choices = ("same", "depthwise", "causal", "strided", "transposed")

    @classmethod
    def gives(cls, forms: Forms, choice: str) -> Form | None:
        return None if choice == "causal" and forms[0].kind == "image" else forms[0]

    def __init__(self, forms: Forms, choice: str) -> None:
        super().__init__(forms, choice)
        sequence = forms[0].kind != "image"
        groups = self.width if choice == "depthwise" else 1
        kind = nn.Conv1d if sequence else nn.Conv2d
        self.layer = kind(self.width, self.width, 3, padding=0 if choice == "causal" else 1, groups=groups)
        self.other = None
        if choice in ("strided", "transposed"):
            back = nn.ConvTranspose1d if sequence else nn.ConvTranspose2d
            self.other = back(self.width, self.width, 3, padding=1, stride=1)

    def forward(self, given: Mapping[str, Tensor], x: Tensor) -> Tensor:
        sequence = x.dim() == 3
        x = x.transpose(1, 2) if sequence else x
        x = self.layer(F.pad(x, (2, 0)) if self.choice == "causal" else x)
        x = x if self.other is None else self.other(F.relu(x))
        return x.transpose(1, 2) if sequence else x


class TokenEmbedding(Part):
    takes = ()
    choices = ("module", "functional", "scaled")

    @classmethod
    def gives(cls, forms: Forms, choice: str) -> Form | None:
        return Form("sequence", 8)

    @classmethod
    def needs(cls, choice: str) -> tuple[str, ...]:
        return ("ids",)

    def __init__(self, forms: Forms, choice: str) -> None:
        super().__init__(forms, choice)
        self.table = nn.Embedding(20, 8)

    def forward(self, given: Mapping[str, Tensor]) -> Tensor:
        if self.choice == "functional":
            return F.embedding(given["ids"], self.table.weight)
        rows = self.table(given["ids"])
        return rows * 8**0.5 if self.choice == "scaled" else rows


class PositionEmbedding(Part):
    choices = ("arange", "buffer", "sinusoidal")

    def __init__(self, forms: Forms, choice: str) -> None:
        super().__init__(forms, choice)
        self.table = nn.Embedding(64, self.width)
        self.register_buffer("places", torch.arange(64)[None], persistent=False)

    def forward(self, given: Mapping[str, Tensor], x: Tensor) -> Tensor:
        if self.choice == "arange":
            return x + self.table(torch.arange(x.shape[1], device=x.device))
        if self.choice == "buffer":
            return x + self.table(self.places[:, : x.shape[1]])
        angles = torch.arange(x.shape[1], dtype=x.dtype)[:, None] / torch.arange(1, x.shape[2] + 1, dtype=x.dtype)
        return x + angles.sin()


class Norm(Part):
    takes = ("sequence row",)
    choices = (
        "layer",
        "layer spelled",
        "layer plain",
        "rms",
        "rms spelled",
        "rms float32",
        "euclidean",
        "batch",
        "group",
    )

    @classmethod
    def gives(cls, forms: Forms, choice: str) -> Form | None:
        return None if choice == "group" and forms[0].width % HEADS else forms[0]

    def __init__(self, forms: Forms, choice: str) -> None:
        super().__init__(forms, choice)
        if choice == "batch":
            self.norm: nn.Module = nn.BatchNorm1d(self.width)
        elif choice == "group":
            self.norm = nn.GroupNorm(HEADS, self.width)
        elif choice.startswith("rms"):
            self.norm = nn.RMSNorm(self.width, eps=1e-6)
        else:
            self.norm = nn.LayerNorm(self.width, elementwise_affine=choice != "layer plain")

    def forward(self, given: Mapping[str, Tensor], x: Tensor) -> Tensor:
        if self.choice == "layer spelled":
            centred = x - x.mean(-1, keepdim=True)
            return (
                centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5) * self.norm.weight + self.norm.bias
            )
        if self.choice == "rms spelled":
            return self.norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        if self.choice == "rms float32":
            return (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * (1 + self.norm.weight)
        if self.choice == "euclidean":
            return F.normalize(x, dim=-1)
        if self.choice in ("batch", "group") and x.dim() == 3:
            return self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.norm(x)


class ImageNorm(Part):
    takes = ("image",)
    choices = ("batch", "group", "instance", "channels last")

    def __init__(self, forms: Forms, choice: str) -> None:
        super().__init__(forms, choice)
        self.norm: nn.Module = {
            "batch": lambda: nn.BatchNorm2d(self.width),
            "group": lambda: nn.GroupNorm(HEADS, self.width),
            "instance": lambda: nn.InstanceNorm2d(self.width, affine=True),
            "channels last": lambda: nn.LayerNorm(self.width),
        }[choice]()

    def forward(self, given: Mapping[str, Tensor], x: Tensor) -> Tensor:
        if self.choice == "channels last":
            return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.norm(x)


class Elementwise(Part):
    FUNCTIONS: ClassVar[Mapping[str, Any]] = {
        "relu": F.relu,
        "gelu": F.gelu,
        "gelu by tanh": functools.partial(F.gelu, approximate="tanh"),
        "silu": F.silu,
        "silu spelled": lambda x: x * torch.sigmoid(x),
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "softplus": F.softplus,
        "elu": F.elu,
        "celu": functools.partial(F.celu, alpha=0.7),
        "leaky": functools.partial(F.leaky_relu, negative_slope=0.1),
        "relu6": F.relu6,
        "hardtanh": functools.partial(F.hardtanh, min_val=-0.5, max_val=1.5),
        "hardswish": F.hardswish,
        "mish": F.mish,
        "clamp": lambda x: x.clamp(-1.0, 2.0),
        "clamp above zero": lambda x: x.clamp(min=0.1),
        "square": lambda x: x**2 / 4,
        "cube": lambda x: 0.1 * x.pow(3),
        "root": lambda x: (x.abs() + 0.1).sqrt(),
        "exponential": lambda x: torch.exp(-x.abs()),
        "logarithm": lambda x: torch.log1p(x.abs()),
        "sine": torch.sin,
        "soft cap": lambda x: 3 * torch.tanh(x / 3),
        "shift": lambda x: x + 0.5,
        "negative": lambda x: 1 - x,
        "softmax": functools.partial(torch.softmax, dim=-1),
        "log softmax": functools.partial(torch.log_softmax, dim=-1),
        "dropout": functools.partial(F.dropout, training=False),
        "squared product": lambda x: (t := x * torch.sigmoid(x)) * t,
    }
    takes = ("sequence row image",)
    choices = tuple(FUNCTIONS)

    def forward(self, given: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return self.FUNCTIONS[self.choice](x)


class Pairwise(Part):
    FUNCTIONS: ClassVar[Mapping[str, Any]] = {
        "add": lambda a, b: a + b,
        "subtract": lambda a, b: a - b,
        "average": lambda a, b: torch.lerp(a, b, 0.25),
        "multiply": lambda a, b: a * b,
        "product used twice": lambda a, b: (t := a * b) * t,
        "product of three": lambda a, b: a * b * a,
        "silu gate": lambda a, b: F.silu(a) * b,
        "sigmoid gate": lambda a, b: torch.sigmoid(a) * b,
        "highway": lambda a, b: (g := torch.sigmoid(a)) * a + (1 - g) * b,
        "tanh and sigmoid": lambda a, b: torch.tanh(a) * torch.sigmoid(b),
        "modulate": lambda a, b: a * (1 + b),
        "divide": lambda a, b: a / (1 + b.abs()),
        "maximum": torch.maximum,
        "where": lambda a, b: torch.where(a > b, a, 0.5 * b),
        "stack": lambda a, b: torch.stack([a, b], 1).mean(1),
        "stack and weigh": lambda a, b: torch.einsum("nb...,n->b...", torch.stack([a, b]), a.new_tensor([0.3, 0.7])),
        "difference of gates": lambda a, b: (torch.sigmoid(a) - torch.sigmoid(b)) * a,
        "distance": lambda a, b: ((a - b) ** 2 + 0.1).sqrt(),
    }
    takes = ("sequence row image", "sequence row image")
    choices = tuple(FUNCTIONS)

    def forward(self, given: Mapping[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
        return self.FUNCTIONS[self.choice](a, b)


class Residual(Part):
    takes = ("sequence row",)
    choices = ("plain", "gated", "scaled", "in place")

    def __init__(self, forms: Forms, choice: str) -> None:
        super().__init__(forms, choice)
        self.up, self.down = nn.Linear(self.width, 2 * self.width), nn.Linear(self.width, self.width)
        self.scale = nn.Parameter(torch.ones(self.width))

    def forward(self, given: Mapping[str, Tensor], x: Tensor) -> Tensor:
        a, b = self.up(x).chunk(2, dim=-1)
        if self.choice == "gated":
            return x + self.down(F.silu(a) * b)
        if self.choice == "scaled":
            return x + self.scale * self.down(F.glu(torch.cat([a, b], -1), dim=-1))
        if self.choice == "in place":
            y = self.down(F.relu(a * 1.5, inplace=True))
            y += x
            return y
        return x + self.down(F.gelu(a) + b)
