"""Explained generations as results of inseq, for its tables, aggregations and files."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lrp_fx.errors import InputError
from lrp_fx.extras import require
from lrp_fx.results.context import Tokens
from lrp_fx.version import VERSION


def to_inseq(generation: Any) -> Any:
    """A :class:`lrp_fx.Generation` as inseq's ``FeatureAttributionOutput`` (:meth:`lrp_fx.Generation.to_inseq`)."""
    data: Any = require("inseq.data", "inseq")
    typing: Any = require("inseq.utils.typing", "inseq")
    name, end = generation.generated, generation.start + generation.count
    sources = [n for n in generation.token_inputs if n != name]
    if len(sources) > 1:
        raise InputError(f"inseq takes one source text, and there are {len(sources)}: {', '.join(sources)}")

    def with_ids(tokens: Tokens, ids: Tensor) -> list[Any]:
        texts = zip(tokens.texts, ids.tolist(), tokens.padding, strict=True)
        return [typing.TokenWithId(text, number) for text, number, padding in texts if not padding]

    sequences = []
    for sample in range(len(generation)):
        target_tokens = generation.tokens(name)[sample].part(slice(0, end))
        rows = [i for i in range(end) if not target_tokens.padding[i]]
        start = sum(i < generation.start for i in rows)
        columns = [i - generation.start for i in rows if i >= generation.start]
        target = with_ids(target_tokens, generation.sequences[sample])
        target_scores = generation.relevance[name][sample][columns][:, rows].T.float().cpu()
        later = torch.arange(len(rows))[:, None] >= torch.arange(start, len(rows))[None]
        target_scores = target_scores.masked_fill(later, torch.nan)  # inseq's mark of positions from the token on
        source, source_scores = target[:start], None
        if sources:
            tokens, ids = generation.tokens(sources[0])[sample], generation.inputs[sources[0]][sample]
            unpadded = [i for i, padding in enumerate(tokens.padding) if not padding]
            source = with_ids(tokens, ids)
            source_scores = generation.relevance[sources[0]][sample][columns][:, unpadded].T.float().cpu()
        sequences.append(
            data.CoarseFeatureAttributionSequenceOutput(
                source=source, target=target, source_attributions=source_scores, target_attributions=target_scores,
                step_scores={"target": generation.target[sample, columns].float().cpu()},
                attr_pos_start=start, attr_pos_end=len(target),
            )
        )  # fmt: skip
    texts = [["".join(t.token for t in part) for part in (s.source, s.target)] for s in sequences]
    info = {
        "attribution_method": f"lrp_fx {generation.ruleset}", "lrp_fx": VERSION, "attribute_target": True,
        "input_texts": [source for source, _ in texts], "generated_texts": [target for _, target in texts],
        "attr_pos_start": generation.start, "attr_pos_end": end, "step_scores": ["target"],
    }  # fmt: skip
    return data.FeatureAttributionOutput(sequence_attributions=sequences, info=info)
