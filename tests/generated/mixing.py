"""Parts in which positions of a sequence see one another: attention and recurrences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generated.part import Form, Forms, Part


class Attention(Part):
    takes = ("sequence", "sequence")
    alike = True
    choices = (
        *(
            f"{how}, {mask}"
            for how in ("fused", "grouped", "written", "cosine")
            for mask in ("full", "causal", "padding")
        ),
        *("fused, additive", "written, additive", "fused, square", "written, both"),
        *("module, full", "module, padding", "linear, full"),
    )

    @classmethod
    def gives(cls, forms: Forms, choice: str) -> Form | None:
        return None if forms[0].width % 4 else forms[0]

    @classmethod
    def needs(cls, choice: str) -> tuple[str, ...]:
        return ("mask",) if choice.split(", ")[1] in ("padding", "additive", "both") else ()

    def __init__(self, forms: Forms, choice: str) -> None:
        super().__init__(forms, choice)
        self.how, self.mask = choice.split(", ")
        self.heads, kept = 4, 2 if self.how == "grouped" else 4
        self.size = self.width // 4
        self.query = nn.Linear(self.width, self.width)
        self.key, self.value = (nn.Linear(self.width, kept * self.size) for _ in range(2))
        self.out = nn.Linear(self.width, self.width)
        self.whole = nn.MultiheadAttention(self.width, 4, batch_first=True) if self.how == "module" else None

    def forward(self, given: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        if self.whole is not None:
            absent = given["mask"] == 0 if self.mask == "padding" else None
            return self.whole(x, y, y, key_padding_mask=absent, need_weights=False)[0]
        q, k, v = (
            f(t).unflatten(-1, (-1, self.size)).transpose(1, 2)
            for f, t in ((self.query, x), (self.key, y), (self.value, y))
        )
        mixed = self.mix(q, k, v, self.allowed(given, x))
        return self.out(mixed.transpose(1, 2).reshape(x.shape))

    def allowed(self, given: Mapping[str, Tensor], x: Tensor) -> Tensor | None:
        length = x.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        if self.mask == "causal":
            return None if self.how in ("fused", "grouped") else causal
        if self.mask == "square":
            return causal
        if self.mask == "full":
            return None
        present = given["mask"][:, None, None, :] != 0
        if self.mask == "both":
            return causal & present
        return present if self.mask == "padding" else (1.0 - present.to(x.dtype)) * torch.finfo(x.dtype).min

    def mix(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
        if self.how in ("fused", "grouped"):
            grouped = self.how == "grouped"
            return F.scaled_dot_product_attention(q, k, v, allowed, is_causal=self.mask == "causal", enable_gqa=grouped)
        if self.how == "linear":
            q, k = F.elu(q) + 1, F.elu(k) + 1
            return q @ (k.transpose(-1, -2) @ v) / (q @ k.sum(-2).unsqueeze(-1))
        if self.how == "cosine":
            q, k = F.normalize(q, dim=-1), 4 * F.normalize(k, dim=-1)
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) if self.how == "cosine" else q @ k.mT / self.size**0.5
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf) if allowed.dtype is torch.bool else scores + allowed
        return scores.softmax(-1) @ v


class Recurrence(Part):
    choices = ("gru", "lstm", "rnn", "both ways", "gru cell", "lstm cell", "average", "decay", "cumsum", "delta")

    @classmethod
    def gives(cls, forms: Forms, choice: str) -> Form | None:
        return Form(forms[0].kind, 2 * forms[0].width) if choice == "both ways" else forms[0]

    def __init__(self, forms: Forms, choice: str) -> None:
        super().__init__(forms, choice)
        kinds = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN, "both ways": nn.GRU}
        cells = {"gru cell": nn.GRUCell, "lstm cell": nn.LSTMCell}
        self.layer: Any = nn.Linear(self.width, self.width)
        if choice in kinds:
            self.layer = kinds[choice](self.width, self.width, batch_first=True, bidirectional=choice == "both ways")
        elif choice in cells:
            self.layer = cells[choice](self.width, self.width)

    def forward(self, given: Mapping[str, Tensor], x: Tensor) -> Tensor:
        if self.choice == "cumsum":
            return x.cumsum(1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        if self.choice.endswith("cell"):
            return self.cells(x)
        if self.choice in ("average", "decay", "delta"):
            return self.states(x)
        return self.layer(x)[0]

    def cells(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], self.width)
        out = []
        for step in x.unbind(1):
            if self.choice == "lstm cell":
                h, c = self.layer(step, (h, c))
            else:
                h = self.layer(step, h)
            out.append(h)
        return torch.stack(out, 1)

    def states(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            step = x[:, t]
            if self.choice == "average":
                h = 0.9 * h + 0.1 * step
            elif self.choice == "decay":
                h = torch.sigmoid(self.layer(step)) * h + step
            else:
                gate = torch.sigmoid(self.layer(step))
                h = h + gate * (step - h)
            out.append(h)
        return torch.stack(out, dim=1)
