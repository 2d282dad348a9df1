"""A section of a model card: how to explain the model, and the checks that passed or failed."""

from __future__ import annotations

from collections.abc import Mapping

from lrp_fx.testing import Check
from lrp_fx.version import VERSION

_USE = """\
```python
import lrp_fx
xmodel = lrp_fx.from_pretrained("{name}")
attribution = xmodel.explain({example})
attribution.show()
```"""


def card_section(
    check: Check,
    results: Mapping[str, Mapping[str, float]] | None = None,
    *,
    name: str = "path/to/this/model",
    example: str = '"a text"',
) -> str:
    """The section "Explanations" of a model card, in Markdown.

    Args:
        check: result of :func:`lrp_fx.testing.check`.
        results: rule set -> metric -> value, measured on the model.
        name: name of the model in the example code.
        example: arguments of ``explain`` in the example code.
    """
    lines = [
        "## Explanations",
        "",
        "Layer-wise Relevance Propagation with [lrp_fx](https://pypi.org/project/lrp_fx/).",
        "",
    ]
    lines += [_USE.format(name=name, example=example), "", f"Checked with lrp_fx {VERSION}:", "", check.to_markdown()]
    if results:
        metrics = list(dict.fromkeys(metric for values in results.values() for metric in values))
        lines += ["", "### Faithfulness", "", f"| rules | {' | '.join(metrics)} |", "|---" * (len(metrics) + 1) + "|"]
        for rules, values in results.items():
            shown = (f"{values[metric]:.4g}" if metric in values else "" for metric in metrics)
            lines.append(f"| {rules} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"
