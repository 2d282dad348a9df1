"""Parts that rearrange, join, index, mask and pool."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generated.part import Form, Forms, Part


class Rearrange(Part):
    choices = (
        "mix heads", "flip", "roll", "shift", "swap halves", "cat and cut", "drop first", "even and odd", "unfold",
        "rotate half", "repeat", "narrow", "unbind", "permute twice", "view as flat", "chunks of two", "tail padded",
    )  # fmt: skip

    @classmethod
    def gives(cls, forms: Forms, choice: str) -> Form | None:
        return (
            Form(forms[0].kind, forms[0].width // 2)
            if choice == "narrow"
            else forms[0]
            if forms[0].width % 2 == 0
            else None
        )

    def forward(self, given: Mapping[str, Tensor], x: Tensor) -> Tensor:
        batch, length, width = x.shape
        match self.choice:
            case "mix heads":
                return x.view(batch, length, 2, width // 2).transpose(2, 3).flatten(2)
            case "flip":
                return x.flip(1)
            case "roll":
                return torch.roll(x, 1, 1)
            case "shift":
                return F.pad(x, (0, 0, 1, 0))[:, :-1]
            case "swap halves":
                a, b = x.split(width // 2, -1)
                return torch.cat([b, a], -1)
            case "cat and cut":
                return torch.cat([x[:, -2:], x], 1)[:, :length]
            case "drop first":
                return torch.cat([x[:, 1:], x[:, :1]], dim=1)
            case "even and odd":
                return torch.cat([x[..., ::2], x[..., 1::2]], -1)
            case "unfold":
                return F.pad(x, (0, 0, 2, 0)).unfold(1, 3, 1).sum(-1)
            case "rotate half":
                a, b = x[..., : width // 2], x[..., width // 2 :]
                return torch.cat((-b, a), dim=-1)
            case "repeat":
                return x[:, :, None].expand(-1, -1, 3, -1).reshape(batch, -1, width)[:, 1::3]
            case "narrow":
                return x.narrow(-1, 1, width // 2)
            case "unbind":
                return torch.stack(x.unbind(-1)[::-1], -1)
            case "permute twice":
                return x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
            case "view as flat":
                return x.reshape(-1, width)[:].view(batch, -1, width)
            case "chunks of two":
                padded = F.pad(x, (0, 0, 0, length % 2))
                return padded.reshape(batch, -1, 2, width).flip(2).flatten(1, 2)[:, :length]
            case _:
                return F.pad(x[:, :-1], (0, 0, 0, 1), value=0.5)


class Join(Part):
    takes = ("sequence row", "sequence row")
    alike = False
    choices = ("features",)

    @classmethod
    def gives(cls, forms: Forms, choice: str) -> Form | None:
        a, b = forms
        return Form(a.kind, a.width + b.width) if a.kind == b.kind and a.width + b.width <= 24 else None

    def forward(self, given: Mapping[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b], dim=-1)


class Spread(Part):
    """A row to every position of a sequence."""

    takes = ("row", "sequence")
    alike = False
    choices = ("add", "multiply", "attend")

    @classmethod
    def gives(cls, forms: Forms, choice: str) -> Form | None:
        return forms[1] if forms[0].width == forms[1].width else None

    def forward(self, given: Mapping[str, Tensor], row: Tensor, x: Tensor) -> Tensor:
        if self.choice == "attend":
            return x * torch.bmm(x, row[:, :, None]).softmax(1)
        spread = row[:, None].expand_as(x)
        return spread + x if self.choice == "add" else spread * x


class Positions(Part):
    """Positions of a sequence by indices and masks."""

    choices = ("index_select", "gather", "fancy", "take", "masked", "masked fill", "where mask", "scatter", "index_add",
               "one-hot", "sort", "top two", "triangle")  # fmt: skip

    @classmethod
    def needs(cls, choice: str) -> tuple[str, ...]:
        if choice in ("masked", "masked fill", "where mask"):
            return ("mask",)
        return ("positions",) if choice in ("gather", "fancy", "scatter", "index_add", "one-hot") else ()

    def forward(self, given: Mapping[str, Tensor], x: Tensor) -> Tensor:
        batch, length, width = x.shape
        if self.needs(self.choice) == ("mask",):
            present = given["mask"][..., None]
            if self.choice == "masked":
                return x * present
            return (
                x.masked_fill(present == 0, 0.0)
                if self.choice == "masked fill"
                else torch.where(present.bool(), x, 0.1)
            )
        places = given.get("positions")
        rows = torch.arange(batch, device=x.device)[:, None]
        match self.choice:
            case "index_select":
                return x.index_select(1, torch.arange(length - 1, -1, -1, device=x.device))
            case "take":
                return x[:, torch.arange(length, device=x.device) // 2]
            case "gather":
                picked = x.gather(1, places[..., None].expand(-1, -1, width))
            case "fancy":
                picked = x[rows, places]
            case "one-hot":
                picked = F.one_hot(places, length).to(x.dtype) @ x
            case "scatter":
                return x + torch.zeros_like(x).scatter_add(
                    1, places[..., None].expand(-1, -1, width), x[:, : places.shape[1]]
                )
            case "index_add":
                return x.index_put((rows, places), x[:, : places.shape[1]], accumulate=True)
            case "sort":
                return x.sort(dim=1).values
            case "top two":
                return x + x.topk(2, dim=1).values.sum(1, keepdim=True)
            case _:
                return torch.ones(length, length, dtype=x.dtype).tril() @ x / length
        return x + picked.sum(1, keepdim=True)


class Pool(Part):
    """A sequence or an image to a row."""

    takes = ("sequence image",)
    choices = (
        "mean",
        "max",
        "last",
        "first",
        "indexed",
        "gathered",
        "masked mean",
        "weighed",
        "adaptive",
        "norm",
        "logsumexp",
    )

    @classmethod
    def gives(cls, forms: Forms, choice: str) -> Form | None:
        only = ("mean", "max", "adaptive", "norm", "logsumexp")
        return Form("row", forms[0].width) if forms[0].kind != "image" or choice in only else None

    @classmethod
    def needs(cls, choice: str) -> tuple[str, ...]:
        return {"indexed": ("index",), "gathered": ("index",), "masked mean": ("mask",)}.get(choice, ())

    def __init__(self, forms: Forms, choice: str) -> None:
        super().__init__(forms, choice)
        self.scorer = nn.Linear(self.width, 1)

    def forward(self, given: Mapping[str, Tensor], x: Tensor) -> Tensor:
        x = x if x.dim() == 3 else x.flatten(2).transpose(1, 2)
        match self.choice:
            case "mean":
                return x.mean(1)
            case "max":
                return x.max(dim=1).values
            case "last":
                return x[:, -1]
            case "first":
                return x.select(1, 0)
            case "indexed":
                return x[torch.arange(x.shape[0], device=x.device), given["index"]]
            case "gathered":
                return x.gather(1, given["index"][:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
            case "masked mean":
                present = given["mask"][..., None].to(x.dtype)
                return (x * present).sum(1) / present.sum(1).clamp(min=1e-9)
            case "weighed":
                return (self.scorer(x).softmax(1) * x).sum(1)
            case "adaptive":
                return F.adaptive_avg_pool1d(x.transpose(1, 2), 1).squeeze(-1)
            case "norm":
                return (x.pow(2).sum(1) + 1e-3).sqrt()
            case _:
                return x.logsumexp(1)


class Patches(Part):
    """An image to a sequence of its places."""

    takes = ("image",)
    choices = ("flat", "pooled", "max pooled", "window")

    @classmethod
    def gives(cls, forms: Forms, choice: str) -> Form | None:
        return Form("patches", forms[0].width)

    def forward(self, given: Mapping[str, Tensor], x: Tensor) -> Tensor:
        if self.choice == "window":
            x = x.unflatten(2, (2, -1)).flip(2).flatten(2, 3)
        if self.choice.endswith("pooled"):
            x = (F.avg_pool2d if self.choice == "pooled" else F.max_pool2d)(x, 3, 1, 1)
        return x.flatten(2).transpose(1, 2)
