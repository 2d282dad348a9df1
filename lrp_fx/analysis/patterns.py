"""The pattern table: how attention, normalizations, nonlinearities and all other roles are recognised.

The first pattern with a role that matches a node decides its role (:func:`recognise`); a rule set has a rule for each
role. Patterns without a role consist of several nodes, which have roles by other entries. Analysis matches these first
and stores facts, which conditions of later entries read. No condition depends on a name, only on the kinds of operators
(``rules/ops.toml``) and on the data flow.

An entry has a list of conditions for each spelling of the pattern. A condition is a small function
(``analysis.conditions``); its docstring is the condition in words. The first condition that fails is the reason why a
node does not match (``xmodel.report().why(...)``). Tests capture the examples of every entry, which must match, and its
counterexample, which must not. In these x, y, z (2, 5, 6) and image (2, 3, 8, 8) are signals; w (6), W (6, 6), angles
(5, 6), kernel (4, 3, 3, 3), and means and variances of channels (m3 and v3, m4 and v4, m6 and v6) are constants.
"""

from __future__ import annotations

from dataclasses import dataclass

from lrp_fx.analysis.conditions import (
    attention,
    layers,
    operators,
    positions,
    products,
    recurrences,
    selective,
    shifted,
    softmax,
    systems,
)
from lrp_fx.analysis.matching import Candidate, Pattern

_ATTNLRP = "Achtibat et al. 2024 (AttnLRP, arXiv:2402.05602)"

SOFTMAX_WRITTEN_OUT = Pattern(
    "softmax written out", "",
    {"exponential over its total": (
        softmax.divides_tensors, softmax.has_an_exponential, softmax.divides_by_its_sum, softmax.is_the_only_reader,
        softmax.is_the_only_reader_of_the_sum,
    ),
     "mixture over its total": (
        softmax.divides_tensors, softmax.has_a_mixture, softmax.divides_by_their_total,
        softmax.is_the_only_reader_of_the_sum,
    ),
     "logarithm of a total": (softmax.is_a_logarithm, softmax.reads_a_total, softmax.is_the_only_reader_of_the_sum),
     "subtrahend added back": (softmax.adds, softmax.adds_the_subtrahend),
     "logarithm of a softmax": (softmax.is_a_logarithm, softmax.reads_a_softmax),
     "less its log-sum-exp": (softmax.subtracts, softmax.less_its_log_sum_exp),
     "exponential of its logarithm": (softmax.is_an_exponential, softmax.reads_a_log_softmax)},
    "All its nodes keep their plain gradient; together it is that of a softmax.", f"{_ATTNLRP}, prop. 3.1",
    ("(e := x.exp()) / e.sum(-1, keepdim=True)",
     "(e := (x - x.amax(-1, keepdim=True)).exp()) / e.sum(-1, keepdim=True)",
     "(e := x.exp()) * (e @ torch.ones(6, 1).to(e)).reciprocal()",
     "(e := x.exp()) / torch.zeros(2, 3, 6).to(e).index_add(1, i := torch.tensor([0, 1, 0, 2, 1]), e)[:, i]",
     "(e := torch.exp(x @ y.mT)) @ z / e.sum(-1, keepdim=True)", "x.exp().sum(-1).log()",
     "(m := x.amax(-1)) + (x - m[..., None]).exp().sum(-1).log()",
     "(e := x.exp()) / (e + y.exp())", "(x.exp() + y.exp()).log()", "x - torch.logaddexp(x, y)",
     "torch.softmax(x, -1).log()", "x - torch.logsumexp(x, -1, keepdim=True)", "torch.log_softmax(x, -1).exp()"),
    "(e := x.exp()) / e.sum(-1, keepdim=True) + e", softmax.is_the_only_reader,
)  # fmt: skip

ATTENTION_WRITTEN_OUT = Pattern(
    "attention written out", "",
    {"softmax of scores, times values": (attention.is_softmax, attention.mixes_values, attention.reads_scores)},
    "Two products of two signals around a softmax: each has its own law. Its tensors have names in explain(at=...).",
    f"{_ATTNLRP}, section 3.3",
    ("torch.softmax(x @ y.mT / 6**0.5, -1) @ z",
     "(e := torch.einsum('bqd,bkd->bqk', x, y).exp()) / e.sum(-1, keepdim=True) @ z"),
    "torch.softmax(x, -1) @ y.mT", attention.reads_scores,
)  # fmt: skip

RECURRENCE = Pattern(
    "recurrence", "",
    {"weighs a state": (
        recurrences.multiplies_signals, recurrences.has_a_weight, recurrences.has_a_signal, recurrences.weighs_a_state,
    ),
     "weighs by a decay": (
        recurrences.multiplies_signals, recurrences.has_a_weight, recurrences.has_a_signal,
        recurrences.weighs_by_a_decay,
    ),
     "contracts with decays": (
        recurrences.contracts_signals, recurrences.has_a_weight, recurrences.has_a_signal,
        recurrences.weighs_by_a_decay,
    ),
     "goes into a state": (
        recurrences.multiplies_signals, recurrences.has_a_weight, recurrences.has_a_signal,
        recurrences.goes_into_a_state,
    )},
    "c' = f c + i g is linear in the state c and in g. A uniform rule would halve relevance at every step.",
    "Arras et al. 2017 (arXiv:1706.07206)",
    ("h = torch.sigmoid(x[:, 0]) * y[:, 0]\nfor t in (1, 2):\n    h = torch.sigmoid(x[:, t]) * h + y[:, t]\nh",
     "h = y[:, 0]\nfor t in (1, 2):\n    h = torch.exp(-x[:, t]) * h + y[:, t]\nh",
     "torch.exp(x @ y.mT) @ z"),
    "torch.sigmoid(x) * y + x", recurrences.weighs_a_state,
)  # fmt: skip

SELECTIVE = Pattern(
    "selective parameters", "",
    {"reads a state": (selective.multiplies_signed, selective.has_one_state, selective.sums_over_the_state),
     "mixes by decays": (selective.multiplies_signed, selective.has_no_state, selective.has_one_decayed),
     "writes to a state": (
        selective.multiplies_signed, selective.is_added_to_a_state, selective.has_one_along_what_is_read,
    )},
    "In h' = a h + B x, y = C h the tensors B and C steer a state like gates, though they have both signs.",
    "Jafari et al. 2024 (MambaLRP, arXiv:2406.07592)",
    ("h, B = 0 * x[:, 0, :, None], z @ W[:, :4]\nfor t in (1, 2):\n"
     "    h = torch.exp(y[:, t, :, None]) * h + x[:, t, :, None] * B[:, t, None]\n(h * B[:, 0, None]).sum(-1)",
     "h = 0 * x[:, 0, :, None]\nfor t in (1, 2):\n    h = torch.exp(y[:, t, :, None]) * h + x[:, t, :, None] * w[:4]\n"
     "h @ z[:, 0, :4, None]",
     "((x @ y.mT) * torch.exp(x @ z.mT)) @ z"),
    "x * y", selective.has_one_decayed,
)  # fmt: skip

THRESHOLD = Pattern(
    "normalization over the batch before a layer", "",
    {"with a ReLU between": (
        layers.is_a_layer, layers.reads_a_relu, layers.behind_a_normalization, layers.normalizes_any_sign,
        layers.has_one_group,
    )},
    "relu(a z + b) is a threshold at -b/a, scaled by a, and a constant: rules on parts of the layer start from z.",
    "Pahde et al. 2022 (arXiv:2211.17174)",
    ("F.conv2d(F.relu(F.batch_norm(image, m3, v3)), kernel)", "F.linear(F.relu(F.batch_norm(x[:, 0], m6, v6)), W)"),
    "F.conv2d(F.gelu(F.batch_norm(image, m3, v3)), kernel)", layers.reads_a_relu,
)  # fmt: skip

SHIFTED = Pattern(
    "constant plus a signal, as a factor", "",
    {"product": (
        shifted.multiplies_two_signals, shifted.goes_into_no_product, shifted.has_a_shifted_factor,
        shifted.has_independent_factors,
    )},
    "x (c + s) is c x + x s: each term is divided by the number of signals in it.", f"{_ATTNLRP}, prop. 3.3",
    ("x * (1 + y)", "x * (1 + y) * (2 - z)", "(1 + x) * (1 + y)", "(torch.eye(5).to(x) + x @ y.mT) @ z"),
    "x * (1 + torch.tanh(x))", shifted.has_independent_factors,
)  # fmt: skip

TRIANGULAR_SYSTEM = Pattern(
    "triangular system", "",
    {"solved": (systems.solves_a_system, systems.reads_a_signal, systems.has_a_constant_diagonal),
     "inverse times a signal": (systems.multiplies_matrices, systems.multiplies_an_inverse)},
    "(C + S) Y = B is Y = (B - S Y) / C, row by row: each product of S and Y gives half to S and half to Y.",
    f"{_ATTNLRP}, prop. 3.3",
    ("torch.linalg.solve_triangular(x @ x.mT, y, upper=False, unitriangular=True)",
     "torch.linalg.solve(torch.eye(5).to(x) - (x @ x.mT).tril(-1), y)",
     "torch.linalg.inv(torch.eye(5).to(x) + (x @ x.mT).triu(1)) @ y"),
    "torch.linalg.solve(torch.eye(5).to(x) + x @ x.mT, y)", systems.has_a_constant_diagonal,
)  # fmt: skip

POSITION_TABLE = Pattern(
    "position table", "",
    {"multiplies a signal": (positions.multiplies, positions.has_one_signal, positions.has_a_table)},
    "A table of cosines and sines is a constant, or a source under a rule set with a rule for the role position.",
    "Bakish et al. 2025 (PA-LRP, arXiv:2506.02138)",
    ("x * torch.cos(angles)", "torch.cat([-x[..., 3:], x[..., :3]], -1) * torch.sin(angles).unsqueeze(0)"),
    "x * torch.cos(y)", positions.has_one_signal,
)  # fmt: skip

SOFTMAX = Pattern(
    "softmax", "softmax",
    {"written out": (softmax.is_part_of_a_softmax,), "fused": (operators.is_softmax,)},
    "It has no degree: input times gradient, its first-order Taylor expansion. The remainder is booked.",
    f"{_ATTNLRP}, prop. 3.1",
    ("torch.softmax(x, -1)", "(e := x.exp()) / e.sum(-1, keepdim=True)"),
    "x.exp() / y.exp().sum(-1, keepdim=True)", softmax.is_part_of_a_softmax,
)  # fmt: skip

MOVEMENT = Pattern(
    "movement", "movement",
    {"operator": (operators.moves,)},
    "Every entry keeps its relevance; the gradient carries it back to its place.", f"{_ATTNLRP}, eq. 8",
    ("x.transpose(1, 2)", "torch.cat([x, y], -1)"),
    "x.cumsum(1)", operators.moves,
)  # fmt: skip

ATTENTION = Pattern(
    "attention", "attention",
    {"fused": (operators.is_attention,)},
    "Two products of two signals around a softmax: half to values, a quarter each to queries and keys.",
    f"{_ATTNLRP}, section 3.3",
    ("F.scaled_dot_product_attention(x, y, z)", "F.scaled_dot_product_attention(x, x, x, is_causal=True)"),
    "torch.softmax(x @ y.mT, -1) @ z", operators.is_attention,
)  # fmt: skip

NORMALIZATION = Pattern(
    "normalization", "normalization",
    {"fused": (operators.is_normalization,),
     "written out": (products.is_elementwise, products.has_one_function, products.has_a_statistic)},
    "x / s(x) has degree 0; with its statistic s held constant it has degree 1, and the gradient conserves.",
    f"{_ATTNLRP}, eq. 9; Ali et al. 2022 (arXiv:2202.07304)",
    ("F.layer_norm(x, (6,), w)", "x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w",
     "(x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt()", "x / x.norm(dim=-1, keepdim=True)"),
    "x / y.norm(dim=-1, keepdim=True)", products.has_one_function,
)  # fmt: skip

RECURRENT_GATE = Pattern(
    "recurrent gate", "recurrent-gate",
    {"product": (
        products.is_elementwise, products.has_several_functions, products.weighs, products.weighs_a_state,
    ),
     "contraction": (products.contracts, products.has_several_live_factors, products.contracts_a_state)},
    "A gate or decay of a recurrence (see there) is held constant: the product is linear in the state.",
    "Arras et al. 2017 (arXiv:1706.07206), 2019",
    ("c = torch.sigmoid(y[:, 0]) * torch.tanh(z[:, 0])\nfor t in (1, 2):\n"
     "    c = torch.sigmoid(x[:, t]) * c + torch.sigmoid(y[:, t]) * torch.tanh(z[:, t])\nc",
     "torch.exp(x @ y.mT) @ z"),
    "torch.sigmoid(x) * torch.tanh(y) + x", products.weighs_a_state,
)  # fmt: skip

SELECTIVE_PRODUCT = Pattern(
    "selective product", "selective",
    {"product": (
        products.is_elementwise, products.has_several_functions, products.weighs_nothing, products.is_steered,
    ),
     "contraction": (products.contracts, products.has_several_live_factors, products.contracts_a_steering_factor)},
    "A product with selective parameters (see there): a rule set may hold them constant.",
    "Jafari et al. 2024 (MambaLRP, arXiv:2406.07592)",
    SELECTIVE.examples, "(x * y).sum(-1)", products.is_steered,
)  # fmt: skip

GATE = Pattern(
    "gate", "gate",
    {"product": (products.is_elementwise, products.has_several_functions, products.weighs),
     "mixture": (
        products.contracts, products.has_several_live_factors, products.mixes_by_weights, products.is_no_attention,
    )},
    "A product of two functions has degree 2: half to each, or all to the signal, in which it is linear.",
    f"{_ATTNLRP}, eq. 7; Arras et al. 2019; Ali et al. 2022",
    ("F.silu(x) * y", "torch.sigmoid(x) * y", "torch.sigmoid(x) @ y.mT"),
    "x * y", products.weighs,
)  # fmt: skip

BILINEAR = Pattern(
    "product of signals", "bilinear",
    {"product": (products.is_elementwise, products.has_several_functions),
     "contraction": (products.contracts, products.has_several_live_factors),
     "along a dimension": (operators.is_homogeneous, operators.multiplies_along_dimension)},
    "A product of n factors has degree n: the gradient divided by n, which is 1/n to each factor.",
    f"{_ATTNLRP}, eq. 7 and prop. 3.3",
    ("x * y", "x @ y.mT", "x.prod(-1)"),
    "x * w", products.has_several_functions,
)  # fmt: skip

HOMOGENEOUS = Pattern(
    "homogeneous function", "nonlinearity",
    {"operator": (operators.is_homogeneous, operators.has_a_degree),
     "solved for its matrix": (products.contracts, products.has_one_live_factor, products.divides_by_a_signal)},
    "f(t x) = t^k f(x), so that input times gradient is k f(x) (Euler): the gradient divided by k.",
    f"{_ATTNLRP}, eq. 9",
    ("F.relu(x)", "x.pow(3)", "torch.linalg.solve(x @ y.mT, torch.eye(5).to(x))"),
    "F.gelu(x)", operators.is_homogeneous,
)  # fmt: skip

NONLINEARITY = Pattern(
    "elementwise nonlinearity", "nonlinearity",
    {"operator": (operators.is_nonlinearity, operators.is_real),
     "written out": (products.is_elementwise, products.has_one_function, products.is_not_linear),
     "function of one operand": (operators.is_function, operators.has_one_live_operand),
     "number inside one": (
        operators.is_linear, operators.has_a_literal, operators.goes_on, operators.comes_from_a_nonlinearity,
    )},
    "f(x) = x h(x) with its slope h = f(x)/x held constant has degree 1: the cotangent times f(x)/x.",
    f"{_ATTNLRP}, eq. 9",
    ("F.gelu(x)", "x * torch.sigmoid(x)", "1 / (1 + torch.exp(-x))", "torch.atan2(x, w)"),
    "3 * x", products.is_not_linear,
)  # fmt: skip

FUNCTION = Pattern(
    "function of several numbers", "nonlinearity",
    {"operator": (operators.is_function, operators.mixes_numbers),
     "of complex numbers": (operators.is_nonlinearity, operators.is_of_complex_numbers)},
    "It has no slope and no degree: input times gradient, its first-order Taylor expansion. The remainder is booked.",
    f"{_ATTNLRP}, prop. 3.1",
    ("torch.atan2(x, y)", "torch.view_as_complex(x.unflatten(-1, (3, 2))).exp().real"),
    "torch.atan2(x, w)", operators.mixes_numbers,
)  # fmt: skip

SELECTION = Pattern(
    "selection", "selection",
    {"operator": (operators.selects,)},
    "Degree 1 in the picked entries: they take all, or relevance is divided among their window.",
    f"{_ATTNLRP}, section 3; Montavon et al. 2019",
    ("x.amax(-1)", "F.max_pool2d(image, 2)"),
    "x.mean(-1)", operators.selects,
)  # fmt: skip

FOLDED = Pattern(
    "normalization over the batch behind a layer", "linear",
    {"stored statistics": (layers.scales_channels, layers.follows_a_layer, layers.is_the_only_reader)},
    "It scales and shifts the layer's output channels: it is folded into the layer, whose rule applies to its output.",
    "Pahde et al. 2022 (arXiv:2211.17174)",
    ("F.batch_norm(F.conv2d(image, kernel), m4, v4)", "F.batch_norm(F.linear(x[:, 0], W), m6, v6)"),
    "F.batch_norm(h := F.conv2d(image, kernel), m4, v4) + h", layers.is_the_only_reader,
)  # fmt: skip

LAYER = Pattern(
    "layer with weights", "linear",
    {"contraction": (layers.sums_products, layers.has_one_signal, layers.has_one_weight, operators.is_real)},
    "Linear in its input: the gradient, stabilised; or rules on parts of input and weights.",
    f"{_ATTNLRP}, eq. 8; Bach et al. 2015",
    ("F.linear(x, W, w)", "x @ W", "torch.einsum('bij,kj->bik', x, W)", "F.conv2d(image, kernel)"),
    "x @ y.mT", layers.has_one_signal,
)  # fmt: skip

RECURRENT_LAYER = Pattern(
    "layer over an input and a state", "",
    {"side by side": (recurrences.has_a_recurrent_weight, recurrences.reads_tensors_side_by_side)},
    "W [x, h] = U x + V h: a recurrent sum (see there), written as one layer.", f"{_ATTNLRP}, eq. 8",
    ("h = y[:, 0]\nfor t in (1, 2):\n    h = F.linear(torch.cat([x[:, t], h], -1), torch.cat([W, W], -1)).tanh()\nh",
     "h = y[:, 0]\nfor t in (1, 2):\n    h = torch.relu(torch.cat([h, x[:, t]], -1) @ torch.cat([W, W]))\nh"),
    "h = y[:, 0]\nfor t in (1, 2):\n    h = torch.tanh(F.linear(x[:, t] + h, W))\nh",
    recurrences.reads_tensors_side_by_side,
)  # fmt: skip

RECURRENT_SUM = Pattern(
    "recurrent sum", "linear",
    {"in front of a nonlinearity": (
        recurrences.adds_signals, recurrences.adds_a_weighted_state, recurrences.goes_into_nonlinearities,
    )},
    "W x + U h is linear in both; where they nearly cancel, proportional shares grow at every step of the recurrence.",
    "Andeol et al. 2021 (the rule); this package (its place)",
    ("h = y[:, 0]\nfor t in (1, 2):\n    h = torch.tanh(x[:, t] + F.linear(h, W))\nh",
     "h = y[:, 0]\nfor t in (1, 2):\n    h = F.relu(F.linear(h, W) - x[:, t] + w)\nh"),
    "h = y[:, 0]\nfor t in (1, 2):\n    h = x[:, t] + F.linear(h, W)\nh", recurrences.goes_into_nonlinearities,
)  # fmt: skip

LINEAR = Pattern(
    "linear", "linear",
    {"operator": (operators.is_linear,),
     "scaled by constants": (products.is_elementwise, products.has_one_function),
     "contracted with constants": (products.contracts, products.has_one_live_factor)},
    "Degree 1 in all its operands together: the gradient, stabilised. Added constants keep their share.",
    f"{_ATTNLRP}, eq. 8",
    ("x + y", "x.mean(-1)", "x * w", "torch.einsum('bij,kj,j->bik', x, W, w)"),
    "x * y", products.has_one_function,
)  # fmt: skip

#: the table; the first pattern with a role that matches decides
PATTERNS: tuple[Pattern, ...] = (
    SOFTMAX_WRITTEN_OUT, ATTENTION_WRITTEN_OUT, RECURRENCE, SELECTIVE, SHIFTED, TRIANGULAR_SYSTEM,
    THRESHOLD, RECURRENT_LAYER, POSITION_TABLE,
    SOFTMAX, MOVEMENT, ATTENTION, NORMALIZATION, RECURRENT_GATE, SELECTIVE_PRODUCT, GATE, BILINEAR, HOMOGENEOUS,
    NONLINEARITY, FUNCTION, SELECTION, FOLDED, LAYER, RECURRENT_SUM, LINEAR,
)  # fmt: skip


@dataclass(frozen=True)
class Match:
    """The pattern that a node matches, and the variant."""

    pattern: Pattern
    variant: str


def recognise(candidate: Candidate) -> Match:
    """The pattern that gives a node its role: the first one with a role that matches. There is always one."""
    for pattern in PATTERNS:
        if pattern.role and (variant := pattern.match(candidate)) is not None:
            return Match(pattern, variant)
    raise AssertionError(f"no pattern for {candidate.node} ({candidate.spec.kind})")
