"""Sparse autoencoders as dictionaries of a latent: its relevance divided among features, error and bias.

A dictionary writes a latent as x = decode(f) + error with f = encode(x), and decode(f) = sum_i f_i d_i + b. With g the
cotangent of x (its relevance is x * g), the relevance of x is exactly

    sum_i f_i <d_i, g>  +  error * g  +  b * g:

feature i has f_i <d_i, g>; the rest belongs to the reconstruction error and to the decoder's bias. The cotangent comes
from the sweep; nothing is divided by x. (Marks et al. 2024, arXiv:2403.19647, insert dictionaries and their errors in
the same way, for gradients.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lrp_fx.concepts.cut import CutRun, cut_forward
from lrp_fx.concepts.features import DictionaryError, FeatureAttribution
from lrp_fx.convert import convert
from lrp_fx.converted import RuleSource
from lrp_fx.encode import Encoded
from lrp_fx.errors import LatentError
from lrp_fx.explain import Target
from lrp_fx.explain.target_types import spoken
from lrp_fx.module import ExplainableModule
from lrp_fx.results import Context, Tokens
from lrp_fx.results.weights_digest import model_fingerprint
from lrp_fx.rules.functions import relevance_of


class Dictionary(Protocol):
    """Interface of a sparse autoencoder; features are the last dimension of x and of f."""

    def encode(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., N) features."""

    def decode(self, f: Tensor) -> Tensor:
        """(..., N) -> (..., D), affine."""


class _Encoder(nn.Module):
    """The encoder as a module, so that it can be converted."""

    def __init__(self, dictionary: Dictionary) -> None:
        super().__init__()
        self.dictionary = dictionary
        self.train(getattr(dictionary, "training", False))

    def forward(self, x: Tensor) -> Tensor:
        return self.dictionary.encode(x)


@dataclass(frozen=True)
class FeatureExplainer:
    """A dictionary at a latent of a model: explains many inputs with one conversion of its encoder.

    Attributes:
        xmodel: the converted model.
        dictionary: the dictionary.
        at: name of the latent.
        encoder: the converted encoder.
    """

    xmodel: ExplainableModule
    dictionary: Dictionary
    at: str
    encoder: ExplainableModule = field(repr=False)

    @classmethod
    def place(cls, xmodel: ExplainableModule, dictionary: Dictionary, at: str) -> FeatureExplainer:
        """Place a dictionary at a latent; its encoder is converted with the model's rule set."""
        return cls(xmodel, dictionary, at, convert(_Encoder(dictionary), rules=xmodel.ruleset))

    def explain(
        self, *args: Any, target: Target = None, rules: RuleSource | None = None, **kwargs: Any
    ) -> FeatureAttribution:
        """Relevance of every feature; see :func:`explain_features`."""
        args, kwargs, encoded = self.xmodel.encoded(args, kwargs)
        run = cut_forward(self.xmodel, args, kwargs, (self.at,), target, rules)
        places = [cut for cut in run.cuts if cut.kind == "latent"]
        if len(places) != 1:
            raise LatentError(f"at={self.at!r} names {len(places)} latents: a dictionary has one place")
        (g,) = run.send(run.chosen, torch.ones_like(run.chosen), places)
        value = places[0].after.detach()
        x, g = (_features_last(t) for t in (value, torch.zeros_like(value) if g is None else g))
        f, decoded, back, offset = _decoded(self.dictionary, x, g, self.at)

        def pull(mask: Tensor | None) -> dict[str, Tensor]:
            relevant = back if mask is None else back * mask.to(back)
            encoding = cut_forward(self.encoder, (x,), {}, (), lambda encoded: (encoded * relevant).sum(), rules)
            (sent,) = encoding.send(encoding.chosen, torch.ones_like(encoding.chosen), encoding.cuts)
            sent = torch.zeros_like(x) if sent is None else sent
            return run.to_inputs(places[0].before, _features_first(g - sent if mask is None else sent, value))

        error, bias, whole = (relevance_of(part, g) for part in (x - decoded, offset, x))
        output = pytree.tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, run.output)
        return FeatureAttribution(
            relevance={"features": relevance_of(f, back), "error": error, "bias": bias},
            latents={places[0].name: whole},
            target=run.chosen.detach(),
            ruleset=run.sweeper.rewritten.plan.ruleset.name,
            inputs={"features": f, "reconstruction": decoded},
            context=Context(
                question=spoken(target),
                fingerprint=partial(model_fingerprint, self.xmodel.model),
                tokens=_tokens_of_positions(self.xmodel, run, encoded, x),
            ),
            output=output,
            _pull=pull,
        )


def explain_features(
    xmodel: ExplainableModule,
    dictionary: Dictionary,
    *args: Any,
    at: str,
    target: Target = None,
    rules: RuleSource | None = None,
    **kwargs: Any,
) -> FeatureAttribution:
    """Relevance of every feature of a dictionary (a sparse autoencoder) placed at a latent.

    The dictionary does not change the model: its output and the relevance of the latent stay the same; the latter is
    divided among features. For many inputs, :class:`FeatureExplainer` converts the encoder once.

    Args:
        xmodel: the converted model.
        dictionary: anything with ``encode`` and an affine ``decode``, in the precision of the model.
        *args: inputs of the model.
        at: name of one latent, as in ``explain``.
        target: as in ``explain``.
        rules: another rule set than the one of the conversion.
        **kwargs: inputs of the model by keyword.

    Raises:
        LatentError: if ``at`` does not name exactly one latent.
        DictionaryError: if the dictionary does not fit the latent, or its decoder is not affine.
    """
    return FeatureExplainer.place(xmodel, dictionary, at).explain(*args, target=target, rules=rules, **kwargs)


def _tokens_of_positions(
    xmodel: ExplainableModule, run: CutRun, encoded: Encoded | None, x: Tensor
) -> dict[str, tuple[Tokens, ...]]:
    """Tokens of the positions of the latent, under "features": of the first input of ids with as many positions."""
    arrived = run.sweeper.inputs
    inputs = dict(zip(arrived.captured.names, run.leaves, strict=True))
    listed = dict.fromkeys(arrived.name(source.input) for source in arrived.facts.sources)
    names = [name for name in listed if not inputs[name].is_floating_point() and inputs[name].shape == x.shape[:-1]]
    if not names or x.dim() != 3:
        return {}
    texts = {} if encoded is None else encoded.tokens
    ids = tuple(Tokens.plain([str(i) for i in row]) for row in inputs[names[0]].tolist())
    return {"features": texts.get(names[0]) or xmodel.described(names[0], names, inputs) or ids}


def _decoded(dictionary: Dictionary, x: Tensor, g: Tensor, at: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(features, their reconstruction, the cotangent of the features, the decoder's output for zeros).

    Raises:
        DictionaryError: as :func:`explain_features`.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad():
            f = dictionary.encode(x).detach().requires_grad_()
            decoded = dictionary.decode(f)
            if decoded.shape != x.shape:
                raise DictionaryError(
                    f"the dictionary decodes to {tuple(decoded.shape)}, {at!r} has {tuple(x.shape)} (features last)"
                )
            (back,) = torch.autograd.grad(decoded, f, g)
    except RuntimeError as error:
        raise DictionaryError(
            f"the dictionary cannot read {at!r}, {x.dtype} of shape {tuple(x.shape)} (features last): "
            f"{str(error).splitlines()[0]}. Remedy: give one trained on this latent, in the precision of the model."
        ) from error
    with torch.no_grad():
        offset = dictionary.decode(torch.zeros_like(f))
        _check_affine(dictionary, f.detach(), decoded.detach(), offset)
    return f.detach(), decoded.detach(), back, offset


def _check_affine(dictionary: Dictionary, f: Tensor, decoded: Tensor, offset: Tensor) -> None:
    """Compare decode(2 f - 3 p) with 2 decode(f) - 3 decode(p) + 2 decode(0), for random p on the scale of f."""
    generator = torch.Generator().manual_seed(0)  # (the global state is not touched)
    p = torch.randn(f.shape, generator=generator, dtype=torch.float64).to(f) * f.abs().amax().clamp(min=1)
    actual = dictionary.decode(2 * f - 3 * p)
    expected = 2 * decoded - 3 * dictionary.decode(p) + 2 * offset
    scale = float(expected.abs().max()) or 1.0
    defect = float((actual - expected).abs().max()) / scale
    if not defect < torch.finfo(f.dtype).eps ** 0.5:
        raise DictionaryError(
            f"the decoder is not affine (off by {defect:.2g} of its largest output): relevance of features would not "
            "add up. Remedy: remove the operators that are not affine (a final nonlinearity, an undone normalization) "
            "from decode, or put them in a module of the model."
        )


def _features_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1) if tensor.dim() > 3 else tensor


def _features_first(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.movedim(-1, 1) if like.dim() > 3 else tensor
