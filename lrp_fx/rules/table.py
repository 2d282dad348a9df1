"""The rule table: one entry for each rule and the roles that can have it.

The law: a function f is homogeneous of degree k if f(t x) = t^k f(x). Then, by Euler's theorem, input times gradient is
k times the output: sum_i x_i df/dx_i = k f(x). LRP asks each operator to conserve relevance, sum_i R_i = R with R = y g
(g: the cotangent of y) and R_i = x_i g_i. So all of LRP in one sentence:

    for a map homogeneous of degree k, divide the gradient by k.

- A linear layer has k = 1: its gradient is its rule, up to a stabiliser (epsilon).
- A product of n factors has k = n: each factor gets a share of 1/n (uniform).
- A nonlinearity has no degree. y = h x with its slope h = f(x)/x held constant has k = 1 (identity). If f(0) is
  not 0, this slope has a pole at 0. f(x) is then the constant f(0) plus the signal f(x) - f(0) (centred-identity).
- A normalization x / s(x) has k = 0. With its statistic s held constant it has k = 1 (identity).
- A softmax has no degree, and no slope that would be fair to all its inputs: it keeps its gradient, and the ledger
  books the remainder under a category of its own (taylor).
- Rules on parts of a layer (gamma, alpha-beta, ...) divide by the sum of some contributions in place of all.

Readers: ``plan`` reads the splits, ``rewrite`` and the ledger the forms (each form is one row of ``rewrite.emit.EMIT``
and of ``explain.bookings.BOOK``), the passes read the traits of a form's functions, rule sets the names, parameters
and roles. A new rule is an entry here, and a line in a TOML file to use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lrp_fx.rules import functions, layer_rules
from lrp_fx.rules.layer_rules import Parameters, Share

#: narrower roles of layers with weights; without a rule of its own, a layer has that of "linear"
LAYERS = ("first-layer", "patch-embedding", "first-convolution", "attention-projection", "convolution", "dense")
#: sums of the new input and the carried state in a recurrence; without a rule they have that of "linear"
SUMS = ("recurrent-sum",)
#: roles of linear maps
LINEAR = ("linear", *LAYERS, *SUMS)
#: roles of products
PRODUCTS = ("bilinear", "gate", "recurrent-gate", "selective", "positive-gate", "step-size")
#: gates that are never negative (sigmoid, softplus, ...), and among these the step size of a state space model, which
#: also makes its decays; without a rule they have that of the broader role
GATES = ("positive-gate", "step-size")


@dataclass(frozen=True)
class Split:
    """How the relevance of an output is divided among the operands.

    Attributes:
        divided: whether the gradient is divided by the degree, so that the shares add up to the relevance of the
            output. Otherwise every operand has its plain gradient.
        signals_only: whether factors that only weigh a signal get no relevance.
    """

    divided: bool
    signals_only: bool = False


BY_DEGREE, TO_SIGNALS, UNDIVIDED = Split(True), Split(True, signals_only=True), Split(False)


@dataclass(frozen=True)
class Form:
    """How a rule changes the backward of a node.

    Attributes:
        name: its name in tables.
        says: the cotangent of the operands, given the cotangent g of the output y.
        functions: the rule functions (``rules.functions``) that the rewrite emits.
    """

    name: str
    says: str
    functions: tuple[Callable[..., Any], ...] = ()

    @property
    def commutes(self) -> frozenset[str]:
        """The selections that all its functions commute with (:data:`lrp_fx.rules.functions.TRAITS`)."""
        traits = [functions.TRAITS[function] for function in self.functions]
        return frozenset.intersection(*traits) if traits else functions.EVERYTHING


STOPPED = Form("stopped", "g ends here")
PLAIN = Form("plain", "g goes through the operator's own gradient")
STABILISED = Form("stabilised", "g y / (y + epsilon sign y)", (functions.epsilon_rule,))
SCALED = Form("scaled", "g times a constant for each operand", (functions.scale_relevance,))
DISTRIBUTED = Form(
    "distributed", "g to c x, g times the factors to x s, for y = x (c + s)", (functions.scale_relevance,)
)
SOLVED = Form("solved", "u = (C + S/2)^-T g to B, -u Y^T/2 to S, for (C + S) Y = B", (functions.identity_rule,))
COUNTED = Form("counted", "g / n, n the number of live factors of each output", (functions.identity_rule,))
SLOPE = Form("slope", "g f(x)/x", (functions.identity_rule, functions.closed_identity_rule))
CENTRED = Form("centred", "g (f(x) - f(0))/x", (functions.identity_rule, functions.closed_identity_rule))
STATISTIC = Form("statistic", "g through y = (x - mean) / s with s constant", (functions.normalization_rule,))
NATURAL = Form("natural", "g f'(x); the remainder of R is booked")
REMAINDER = Form("remainder", "g through the gradient of all inputs; the remainder of R is booked")
RECTIFIED = Form("rectified", "max(g, 0), then the gradient or 1", (functions.rectified_rule,))
SUMMED = Form("summed", "g to the addends, and to their magnitudes", (functions.favour_sign,))
RUNS = Form("runs", "R of an output, divided among runs of the layer on parts", (functions.share_relevance,))
FAVOURED = Form("favoured", "g to the layer, and to the layer on magnitudes", (functions.favour_sign,))
WINDOWS = Form("windows", "R of a maximum, divided among its window", (functions.share_relevance,))
ATTENTION = Form("attention", "two products around a softmax, fused", (functions.scale_relevance,))


@dataclass(frozen=True)
class Entry:
    """One rule of the table.

    Attributes:
        rule: its name in rule sets.
        roles: the roles that can have it.
        split: how relevance is divided among the operands.
        forms: kind of operator -> form. Kinds are those of the op table, "counted" for products along a dimension,
            "sum" for sums of several tensors, "system" for triangular systems, "one sign" for layers with nonnegative
            inputs of which only positive outputs have relevance, and "" for all others.
        equation: relevance of input i.
        source: the paper that proposed it.
        books: ledger categories of relevance that it does not pass on, besides that of added constants.
        parameters: its parameters with their defaults.
        shares: for rules on parts of a layer: the shares of relevance and their runs.
        window: for selections: the function of the window's positive part that is the divisor.
        natural: for rules that cut negative cotangents: whether the others are multiplied by the gradient.
        feeds_zeros: whether an input of 0 can have relevance.
        chosen: whether rule sets may name it; the plan derives the others.
    """

    rule: str
    roles: tuple[str, ...]
    split: Split
    forms: Mapping[str, Form]
    equation: str
    source: str
    books: tuple[str, ...] = ()
    parameters: Parameters = field(default_factory=dict)
    shares: Callable[[Parameters], tuple[Share, ...]] | None = None
    window: str = ""
    natural: bool = False
    feeds_zeros: bool = False
    chosen: bool = True

    @property
    def on_parts(self) -> bool:
        """Whether it runs a layer again on parts of its input and weights."""
        return self.forms.get("") in (RUNS, FAVOURED)

    @property
    def changes_gradient(self) -> bool:
        """Whether operands get another cotangent than their gradient gives them."""
        return self.split.divided or RECTIFIED in self.forms.values()

    def form(self, kind: str) -> Form:
        """Its form at an operator of ``kind``."""
        return self.forms.get(kind, self.forms[""])


_DEGREES = {"product": SCALED, "quotient": SCALED, "homogeneous": SCALED, "several": NATURAL}
_LAW = {**_DEGREES, "counted": COUNTED, "system": SOLVED, "": PLAIN}
_ONE_NUMBER = ("nonlinearity", "function", "linear")
_UNDIVIDED = dict.fromkeys(("counted", "system", "nonlinearity", "function", "normalization"), NATURAL)
_GRADIENT = {**_DEGREES, **_UNDIVIDED, "": PLAIN}
_ATTNLRP, _MONTAVON = "Achtibat et al. 2024 (AttnLRP)", "Montavon et al. 2019"


def _layer(rule: str, shares: Any, equation: str, source: str, *, zeros: bool = False, **constants: float) -> Entry:
    """A rule on parts of a layer with weights."""
    books, defaults = ("bias", "stabiliser"), {**constants, "epsilon": 1e-6}
    return Entry(rule, LAYERS, BY_DEGREE, {"": RUNS}, equation, source, books, defaults, shares, feeds_zeros=zeros)


RULES: tuple[Entry, ...] = (
    # Layers and other linear maps: degree 1. "sum" runs over the inputs of output j.
    Entry(
        "epsilon", LINEAR, BY_DEGREE, {"": STABILISED},
        "R_i = sum_j x_i w_ij / (z_j + epsilon sign z_j) R_j", f"{_ATTNLRP}, eq. 8; Bach et al. 2015",
        books=("stabiliser",), parameters={"epsilon": 0.0},
    ),
    _layer("gamma", layer_rules.gamma, "R_i = sum_j x_i (w_ij + gamma w_ij+) / sum(...) R_j", _MONTAVON, gamma=0.25),
    Entry(
        "generalised-gamma", (*LAYERS, *SUMS), BY_DEGREE, {"sum": SUMMED, "one sign": RUNS, "": FAVOURED},
        "R_i = sum_j (c_ij + gamma c_ij+) / sum(...) R_j with c_ij = x_i w_ij for z_j > 0; c_ij- for z_j < 0",
        "Andeol et al. 2021", books=("bias", "stabiliser"), parameters={"gamma": 0.25, "epsilon": 1e-6},
        shares=layer_rules.gamma,  # what is left of it for nonnegative inputs and positive outputs
    ),
    _layer(
        "alpha-beta", layer_rules.alpha_beta,
        "R_i = sum_j (alpha (x_i w_ij)+ / sum(...)+ - beta (x_i w_ij)- / sum(...)-) R_j, alpha - beta = 1",
        "Bach et al. 2015", alpha=2.0, beta=1.0,
    ),
    _layer("z-plus", layer_rules.z_plus, "R_i = sum_j (x_i w_ij)+ / sum(...)+ R_j", "Montavon et al. 2017"),
    _layer("flat", layer_rules.flat, "R_i = sum_j R_j / number of inputs of j", "Lapuschkin et al. 2019", zeros=True),
    _layer("w-square", layer_rules.w_square, "R_i = sum_j w_ij^2 / sum(w^2) R_j", "Montavon et al. 2017", zeros=True),
    _layer(
        "z-box", layer_rules.z_box, "R_i = sum_j (x_i w_ij - low w_ij+ - high w_ij-) / sum(...) R_j",
        "Montavon et al. 2017", zeros=True, low=0.0, high=1.0,
    ),
    # Selections: degree 1 in the picked entries.
    Entry(
        "winner-takes-all", ("selection",), BY_DEGREE, {"": PLAIN},
        "R_i = R for the entry that was picked, 0 for others", f"{_ATTNLRP}, section 3.3",
    ),
    Entry(
        "proportional", ("selection",), BY_DEGREE, {"": WINDOWS}, "R_i = x_i+ / sum(x+) R over the window", _MONTAVON,
        books=("stabiliser",), window="positive",
    ),
    Entry(
        "even", ("selection",), BY_DEGREE, {"": WINDOWS}, "R_i = [x_i > 0] / sum([x > 0]) R over the window", _MONTAVON,
        books=("stabiliser",), window="sign",
    ),
    # Products of n factors: degree n.
    Entry("uniform", PRODUCTS, BY_DEGREE, _LAW, "R_i = R / n", f"{_ATTNLRP}, eq. 7 and prop. 3.3"),
    Entry(
        "signal-takes-all", PRODUCTS[1:], TO_SIGNALS, _LAW,
        "R_i = R / m for each of m signals, 0 for factors that only weigh them", "Arras et al. 2017, 2019",
    ),
    # Functions without a degree: y = h x with h held constant has degree 1.
    Entry(
        "identity", ("nonlinearity",), BY_DEGREE, {**_LAW, **dict.fromkeys(_ONE_NUMBER, SLOPE)},
        "R_i = R, as g_x = g f(x)/x", f"{_ATTNLRP}, eq. 9", books=("stabiliser",),
    ),
    Entry(
        "centred-identity", ("nonlinearity",), BY_DEGREE, {**_LAW, **dict.fromkeys(_ONE_NUMBER, CENTRED)},
        "R_i = R (f(x) - f(0)) / f(x), as g_x = g (f(x) - f(0))/x", f"{_ATTNLRP}, eq. 9, for f - f(0)",
        books=("constant", "stabiliser"),
    ),
    Entry(
        "taylor", ("nonlinearity",), BY_DEGREE, {"": REMAINDER},
        "R_i = x_i df/dx_i g, for functions of several numbers at once", f"{_ATTNLRP}, prop. 3.1",
        books=("taylor",), chosen=False,
    ),
    Entry(
        "guided-backprop", ("nonlinearity",), UNDIVIDED, {"": RECTIFIED}, "R_i = x_i f'(x_i) max(g, 0)",
        "Springenberg et al. 2015", books=("rule",), natural=True,
    ),
    Entry(
        "deconvnet", ("nonlinearity",), UNDIVIDED, {"": RECTIFIED}, "R_i = x_i max(g, 0)", "Zeiler and Fergus 2014",
        books=("rule",),
    ),
    # Normalizations: degree 0; with the statistic s held constant, degree 1.
    Entry(
        "identity", ("normalization",), BY_DEGREE, {**_LAW, "normalization": STATISTIC}, "R_i = x_i w / s g",
        f"{_ATTNLRP}, eq. 9 and section 3.3.2",
    ),
    # Softmax: its first-order Taylor expansion.
    Entry(
        "taylor", ("softmax",), BY_DEGREE, {"": REMAINDER}, "R_i = x_i (R'_i - s_i sum(R'))", f"{_ATTNLRP}, prop. 3.1",
        books=("softmax",),
    ),
    Entry(
        "gradient", ("softmax",), UNDIVIDED, {"": REMAINDER}, "R_i = x_i ds/dx_i g", "input x gradient",
        books=("softmax",),
    ),
    # Everywhere.
    Entry(
        "gradient", (*LINEAR, "selection", *PRODUCTS, "normalization"), UNDIVIDED, _GRADIENT,
        "R_i = x_i dy/dx_i g", "input x gradient", books=("rule",),
    ),
    Entry(
        "gradient", ("nonlinearity",), UNDIVIDED, {**_GRADIENT, "linear": NATURAL}, "R_i = x_i dy/dx_i g",
        "input x gradient", books=("rule",),
    ),
    Entry(
        "stop", (*LINEAR, "selection", *PRODUCTS, "nonlinearity", "normalization", "softmax", "position"),
        BY_DEGREE, {"": STOPPED}, "R_i = 0", "Ali et al. 2022", books=("stopped",),
    ),
    # Tables of positions (rotary embeddings) are inputs of their own, or constants.
    Entry("uniform", ("position",), BY_DEGREE, _LAW, "R_i = R / n", "arXiv:2506.02138 (PA-LRP)", books=("position",)),
    # Derived by the plan.
    Entry("exact", ("movement",), BY_DEGREE, {"": PLAIN}, "R_i = R", "every entry keeps its own", chosen=False),
    Entry(
        "attention", ("attention",), BY_DEGREE, {"": ATTENTION},
        "half of R to values, a quarter each to queries and keys, less the remainder of the softmax",
        f"{_ATTNLRP}, section 3.3",
        books=("softmax", "rule"), chosen=False,
    ),
)  # fmt: skip

_BY_ROLE: dict[tuple[str, str], Entry] = {(role, entry.rule): entry for entry in RULES for role in entry.roles}

#: role -> names of its rules, for rule sets
ROLES: dict[str, tuple[str, ...]] = {
    role: tuple(e.rule for e in RULES if role in e.roles and e.chosen)
    for role in (*LINEAR, "selection", *PRODUCTS, "nonlinearity", "normalization", "softmax", "position")
}


def entry(role: str, rule: str) -> Entry:
    """The entry of a rule at a node of ``role``; "linear", the role of any layer, has the rules of all layers."""
    if role == "attention":
        rule = role
    exact = _BY_ROLE.get((role, rule))
    return _BY_ROLE[LAYERS[0], rule] if exact is None else exact


def parameters(entry: Entry, values: Parameters) -> dict[str, float]:
    """The parameters of a rule: its defaults, updated with ``values``.

    Raises:
        ValueError: if the rule has no such parameter, or a value is out of range.
    """
    rule, defaults = entry.rule, entry.parameters
    if unknown := set(values) - set(defaults):
        allowed = f"the parameters {', '.join(defaults)}" if defaults else "no parameters"
        raise ValueError(f"{rule} has {allowed}, not {', '.join(sorted(unknown))}")
    chosen = {**defaults, **values}
    if negative := [k for k, v in chosen.items() if v < 0 and k not in ("low", "high")]:
        raise ValueError(f"{rule}: {', '.join(negative)} must not be negative")
    if "beta" in chosen and abs(chosen["alpha"] - chosen["beta"] - 1) > 1e-12:
        raise ValueError(f"{rule} conserves relevance only where alpha - beta = 1")
    if "low" in chosen and not chosen["low"] <= 0 <= chosen["high"]:
        raise ValueError(f"{rule}: low must be <= 0 and high >= 0")
    return chosen
