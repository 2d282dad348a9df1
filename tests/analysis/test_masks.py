"""Masks are told by what is done with them: their names mean nothing, and both conventions are read the right way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lrp_fx

D = torch.float64


class Named(nn.Module):
    """Two layers; an input whose name says mask is a signal like the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2, bias=False, dtype=D)

    def forward(self, x: Tensor, masked_image: Tensor) -> Tensor:
        return self.layer(x) + 2 * self.layer(masked_image)


def test_a_float_input_that_is_called_a_mask_is_a_signal() -> None:
    torch.manual_seed(0)
    model, x, image = Named().eval(), torch.randn(3, 4, dtype=D), torch.randn(3, 4, dtype=D)
    found = lrp_fx.convert(model, rules="attnlrp").explain(x, image, target=1)
    torch.testing.assert_close(found.relevance["x"], x * model.layer.weight[1])
    torch.testing.assert_close(found.relevance["masked_image"], 2 * image * model.layer.weight[1])
    assert set(found.ledger) == {"input"}


class Attends(nn.Module):
    """Attention spelled out over (B, S, 4), with a function of (scores, second input) in front of its softmax."""

    def __init__(self, hide, pool=lambda h, seen: h.sum(1)) -> None:
        super().__init__()
        self.hide, self.pool = hide, pool
        self.project = nn.Linear(4, 12, bias=False, dtype=D)
        self.last = nn.Linear(4, 2, bias=False, dtype=D)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = self.project(x).chunk(3, -1)
        weights = self.hide(q @ k.transpose(1, 2), seen).softmax(-1)
        return self.last(self.pool(weights @ v, seen))


def _mean(h: Tensor, seen: Tensor) -> Tensor:
    return (h * seen[..., None]).sum(1) / seen.sum(1, keepdim=True).clamp(min=1e-9)


MASKS = {
    "inverted": lambda s, m: s + (1 - m[:, None]) * -1e9,
    "least number": lambda s, m: s + (1.0 - m[:, None, :].to(s.dtype)) * torch.finfo(torch.float32).min,
    "scaled and shifted": lambda s, m: s + (m * 1e4 - 1e4)[:, None],
    "hidden ones": lambda s, m: s - 1e9 * (1 - m)[:, None],
    "compared": lambda s, m: s.masked_fill(m[:, None] == 0, -torch.inf),
    "booleans": lambda s, m: s.masked_fill(~m[:, None].bool(), -1e9),
    "filled": lambda s, m: s + (i := 1 - m[:, None]).masked_fill(i.bool(), -1e9),
}


#: compared and multiplied at once, it may be a signal
HIDING = [name for name in MASKS if name not in ("compared", "booleans")]


@pytest.mark.parametrize(("name", "pooled"), [(n, False) for n in MASKS] + [(n, True) for n in HIDING])
def test_what_hides_is_a_mask(name: str, pooled: bool) -> None:
    """Relevance is that under a boolean mask; none is at the mask, and the ledger balances."""
    torch.manual_seed(0)
    pool = _mean if pooled else lambda h, seen: h.sum(1)
    model = Attends(MASKS[name], pool).eval()
    plain = Attends(lambda s, m: s.masked_fill(~m[:, None], -torch.inf), pool).eval()
    plain.load_state_dict(model.state_dict())
    x, seen = torch.randn(2, 5, 4, dtype=D), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = lrp_fx.convert(model, rules="attnlrp").explain(x, seen.to(D), target=1)
    want = lrp_fx.convert(plain, rules="attnlrp").explain(x, seen.bool(), target=1)
    assert set(found.relevance) == {"x"}
    torch.testing.assert_close(found.relevance["x"], want.relevance["x"], rtol=1e-9, atol=1e-12)
    assert found.ledger.balance < 1e-9


@pytest.mark.parametrize("name", [*MASKS, "added"])
def test_verify_knows_masks(name: str) -> None:
    """A float mask changes the output and has no relevance by design: a note; so has one that is added as it is."""
    torch.manual_seed(0)
    model = Attends(MASKS.get(name, lambda s, m: s + m[:, None])).eval()
    x, seen = torch.randn(2, 5, 4, dtype=D), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=D)
    found = lrp_fx.convert(model, rules="attnlrp").verify(x, (1 - seen) * -1e9 if name == "added" else seen, target=1)
    assert found.passed and not found.failures
    (note,) = [text for text in found.notes if "'seen'" in text]
    assert ("0 wherever it has a gradient" if name == "added" else "is a mask") in note


def test_an_additive_mask_receives_nothing_and_a_bias_its_due() -> None:
    """Added to scores as it is, an input is one or the other; both follow from the values."""
    torch.manual_seed(0)
    model = Attends(lambda s, m: s + m[:, None]).eval()
    xmodel, x = lrp_fx.convert(model, rules="attnlrp"), torch.randn(2, 5, 4, dtype=D)
    for hidden in (-1e9, -torch.inf):
        mask = torch.zeros(2, 5, dtype=D)
        mask[0, 3:] = hidden
        found = xmodel.explain(x, mask, target=1)
        assert not found.relevance["seen"].any() and not found.relevance["x"][0, 3:].isnan().any()
        assert found.ledger.balance < 1e-9
    bias = torch.randn(2, 5, dtype=D)
    found = xmodel.explain(x, bias, target=1, rules="gradient")
    leaf = bias.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x, leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(found.relevance["seen"], bias * gradient)
    assert found.relevance["seen"].abs().sum() > 1e-3


SIGNALS = {  # (x, mask) -> (B, 4), both (B, 4)
    "multiplies": lambda x, m: x * m,
    "gates itself": lambda x, m: x + m * (m > 0),
    "compared and multiplies": lambda x, m: torch.where(m > 0, x * m, x),
    "another unit": lambda x, m: x + 1e6 * m,
    "divides": lambda x, m: x / (2 + m),
    "hides nothing": lambda x, m: x + (1 - m) * 100,
}


@pytest.mark.parametrize("name", SIGNALS)
def test_what_may_be_a_signal_is_one(name: str) -> None:
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2, bias=False, dtype=D)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.layer(SIGNALS[name](x, mask))

    model, x, mask = Model().eval(), torch.randn(3, 4, dtype=D), torch.randn(3, 4, dtype=D)
    found = lrp_fx.convert(model, rules="attnlrp").explain(x, mask, target=1, rules="gradient")
    leaves = [x.clone().requires_grad_(), mask.clone().requires_grad_()]
    grads = torch.autograd.grad(model(*leaves)[:, 1].sum(), leaves)
    for key, value, gradient in zip(("x", "mask"), (x, mask), grads, strict=True):
        torch.testing.assert_close(found.relevance[key], value * gradient)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(10, 4, dtype=D), nn.Linear(4, 10, dtype=D)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.last(self.words(input_ids))


@pytest.mark.parametrize(
    ("mask", "last"),
    [
        (torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]), (2, 3)),
        (torch.tensor([[1.0, 1, 1, 0], [1, 1, 1, 1]], dtype=D), (2, 3)),
        (torch.tensor([[0, 0, 0, -1e9], [0, 0, 0, 0]], dtype=D), (2, 3)),
        (torch.tensor([[0, 0, -torch.inf, -torch.inf], [0, 0, 0, 0]], dtype=D), (1, 3)),
        (torch.zeros(2, 4, dtype=D), (3, 3)),
        (torch.tensor([[0.3, 0.2, 0, 0], [0.1, 0.5, 0.2, 0]], dtype=D), (3, 3)),
    ],
)
def test_the_last_position_under_either_convention(mask: Tensor, last: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model, ids = Tokens().eval(), torch.randint(0, 10, (2, 4))
    xmodel = lrp_fx.convert(model, rules="attnlrp")
    want = model(ids, mask)[torch.arange(2), torch.tensor(last), 3]
    torch.testing.assert_close(xmodel.explain(ids, mask, target=3).target, want)
    torch.testing.assert_close(xmodel.lower(ids, mask, target=3)(ids, mask, target=3).target, want)
    torch.testing.assert_close(xmodel.explain(ids, mask, targets=[3]).target[0], want)
