"""Products in canonical form: whatever the association, spelling or casts, a list of factors with shares.

``a * (b * c)``, ``x.pow(2) * z``, ``x * rsqrt(mean(x * x)) * w``, ``x * (sigmoid(x) * z)`` and ``a / b`` are trees of
elementwise products, quotients, casts and constant scalings. Flattened, each has factors; factors that are functions of
the same tensor form one group (``x * sigmoid(x)`` is one nonlinearity); a factor that is a statistic of another one
makes the product a normalization.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch.fx import Node

from lrp_fx.analysis import Facts, Slot
from lrp_fx.optable import OpSpec, bind, op_name

Live = Mapping[Node, Mapping[Slot, Node]]

DENOMINATOR = Slot("other")
#: rules of nonlinearities that leave spelled-out ones their gradient
NATURAL = ("gradient", "guided-backprop", "deconvnet")


@dataclass(frozen=True)
class Factor:
    """One factor of a flattened product.

    Attributes:
        node: the tensor whose share is decided (for ``x.pow(3)`` the power itself).
        count: as how many factors it counts: its degree of homogeneity in the tensor it is a function of, times the
            factors of that tensor where it is itself a product; None for a function that is not homogeneous.
        edges: the (product node, slot) edges from the top of the tree down to it.
        inverse: whether it divides.
        selective: whether it only says what a state takes in or gives out.
    """

    node: Node
    count: float | None
    edges: tuple[tuple[Node, Slot], ...]
    inverse: bool
    selective: bool = False


@dataclass
class Product:
    """A flattened product: its factors by group, its statistics, and which groups are gates or selective."""

    top: Node
    factors: list[Factor] = field(default_factory=list)
    statistics: list[Factor] = field(default_factory=list)
    groups: list[list[Factor]] = field(default_factory=list)
    gates: list[bool] = field(default_factory=list)
    selective: list[bool] = field(default_factory=list)
    recurrent: bool = False

    @property
    def role(self) -> str:
        """The role of the product, decided by what is most particular about it."""
        if len(self.groups) > 1:
            if not any(self.gates) or all(self.gates):
                return "selective" if any(self.selective) else "bilinear"
            return "recurrent-gate" if self.recurrent else "gate"
        if self.statistics:
            return "normalization"
        return "nonlinearity" if len(self.factors) > 1 or self.factors[0].inverse else "linear"


def is_product(facts: Facts, node: Node) -> bool:
    """Whether ``node`` is an elementwise product or quotient."""
    spec = facts.specs.get(node)
    return spec is not None and spec.kind in ("product", "quotient") and spec.elementwise and not spec.terms


def _passes(facts: Facts, node: Node, live: Live) -> bool:
    """Whether a node belongs inside the tree of the product that uses it, and has no other user."""
    if len(node.users) != 1 or node not in live or node in facts.manual_softmax:
        return False
    spec = facts.specs.get(node)
    if spec is None:
        return False
    cast_or_sign = len(live[node]) == 1 and spec.elementwise and _is_cast_or_sign(node)
    return is_product(facts, node) or cast_or_sign


def _is_cast_or_sign(node: Node) -> bool:
    return op_name(node).rpartition(".")[2] in ("to", "_to_copy", "type_as", "neg", "exact_value")


def is_top(facts: Facts, node: Node, live: Live) -> bool:
    """Whether ``node`` is the outermost node of its product tree."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    while user is not None and user in live:
        if is_product(facts, user) and user not in facts.manual_softmax:
            return False
        if not _passes(facts, user, live):
            return True
        user = next(iter(user.users))
    return True


def flatten(facts: Facts, top: Node, live: Live) -> Product:
    """Flatten the product tree under ``top`` and group its factors."""
    product = Product(top)

    def visit(node: Node, edges: tuple[tuple[Node, Slot], ...], inverse: bool) -> None:
        for slot, operand in live[node].items():
            path, divides = (*edges, (node, slot)), inverse != is_denominator(facts, node, slot)
            if _passes(facts, operand, live):
                visit(operand, path, divides)
            else:
                selective = any(s in facts.selective.get(n, ()) for n, s in path)
                product.factors.append(Factor(operand, _count(facts, operand, live), path, divides, selective))

    visit(top, (), False)
    _group(facts, product, live)
    return product


def is_denominator(facts: Facts, node: Node, slot: Slot) -> bool:
    """Whether ``slot`` of ``node`` divides."""
    spec = facts.specs[node]
    return spec.kind == "quotient" and slot.name == spec.args[1]


def _count(facts: Facts, node: Node, live: Live) -> float | None:
    """Number of factors that ``node`` stands for: x.pow(3) three, relu(x) one, sigmoid(x) none that can be counted."""
    spec = facts.specs.get(node)
    if spec is None or node not in live or not spec.elementwise or node in facts.manual_softmax:
        return 1
    if is_product(facts, node):
        return sum(_group_weight(group) for group in flatten(facts, node, live).groups)
    operands = list(live[node].values())
    if spec.kind == "homogeneous":
        inner = _count(facts, operands[0], live)
        return None if inner is None else degree(node, spec) * inner
    if len(operands) == 1 and _is_cast_or_sign(node):
        return _count(facts, operands[0], live)
    return 1 if facts.origin[node] is node else None


def degree(node: Node, spec: OpSpec) -> float:
    """Degree of homogeneity of a homogeneous operator, 0 where it is not a number."""
    value = bind(node)[spec.degree] if isinstance(spec.degree, str) else spec.degree
    return float(value) if isinstance(value, (int, float)) else 0.0


def _group(facts: Facts, product: Product, live: Live) -> None:
    factors = product.factors
    signals = [f for f in factors if not any(facts.is_statistic_of(f.node, g.node) for g in factors if g is not f)]
    product.statistics = [f for f in factors if f not in signals]
    groups: dict[Node, list[Factor]] = {}
    for factor in signals:
        groups.setdefault(facts.origin.get(factor.node, factor.node), []).append(factor)
    product.groups = list(groups.values())
    nonlinear = [any(is_nonlinear(facts, f.node, live) for f in group) for group in product.groups]
    positive = [all(f.node in facts.positive for f in group) for group in product.groups]
    # of sigmoid(a) * tanh(c) the sigmoid is the gate
    product.gates = positive if any(positive) and not all(positive) else nonlinear
    product.selective = [all(f.selective for f in group) for group in product.groups]
    product.recurrent = any(node in facts.recurrent for f in factors for node, _ in f.edges)


def is_nonlinear(facts: Facts, node: Node, live: Live) -> bool:
    """Whether ``node`` is a nonlinearity's output, through movement, casts, added constants, scalings and powers."""
    while node in live and node in facts.specs:
        spec, operands = facts.specs[node], list(dict.fromkeys(live[node].values()))
        if spec.kind == "nonlinearity":
            return True
        if spec.kind == "homogeneous" and not (spec.elementwise and degree(node, spec) in (2, 3, 4, 5, 6)):
            return spec.elementwise
        if len(operands) > 1:
            same = len({facts.origin[n] for n in operands}) == 1 and is_product(facts, node)
            return same and any(is_nonlinear(facts, n, live) for n in operands)
        if spec.kind not in ("movement", "linear", "product", "quotient", "homogeneous") or spec.terms or spec.reduces:
            return False
        if any(is_denominator(facts, node, slot) for slot in live[node]):
            return True
        node = operands[0]
    return False


def _group_weight(group: list[Factor]) -> float:
    """A homogeneous function counts as often as it is multiplied, x * x * relu(x) three times; any other one once."""
    counts = [f.count for f in group]
    total = sum(c for c in counts if c is not None)
    return total if None not in counts and total >= 1 and float(total).is_integer() else 1


def shares(facts: Facts, product: Product, live: Live, rule: Callable[[str], str]) -> dict[Factor, float]:
    """Share of the product's relevance that each factor receives (AttnLRP prop. 3.3, generalised to n factors).

    Args:
        rule: name of the rule for a role ("bilinear", "gate", "nonlinearity", "normalization").

    Returns:
        A share per factor; under conserving rules they add up to 1. Under ``gradient`` every share is 1.
    """
    groups = list(range(len(product.groups)))
    split = rule(product.role) if len(groups) > 1 else "uniform"
    weights = [_group_weight(group) for group in product.groups]
    if split == "signal-takes-all":
        weights = [0 if gate else w for w, gate in zip(weights, product.gates, strict=True)]
    if split != "gradient" and any(product.selective) and rule("selective") == "signal-takes-all":
        weights = [0 if minor else w for w, minor in zip(weights, product.selective, strict=True)]
    total = sum(weights)
    result: dict[Factor, float] = {}
    for index, group in zip(groups, product.groups, strict=True):
        whole = 1.0 if split == "gradient" else weights[index] / total
        result |= _within_group(facts, group, whole, split, rule)
    for statistic in product.statistics:
        result[statistic] = 1.0 if rule("normalization") == "gradient" else 0.0
    return result


def _within_group(
    facts: Facts, group: list[Factor], whole: float, split: str, rule: Callable[[str], str]
) -> dict[Factor, float]:
    natural = split == "gradient" or rule("nonlinearity") in NATURAL
    if len(group) == 1 or natural:
        return {f: whole for f in group}
    counts = {f: f.count or 0.0 for f in group}
    if all(count > 0 for count in counts.values()):
        return {f: whole * n / sum(counts.values()) for f, n in counts.items()}
    # f(x) = x h(x): the slope f(x)/x is h(x) in closed form when x takes all and h is a constant
    origin = facts.origin[group[0].node]
    carrier = next((f for f in group if f.node is origin), None) or min(group, key=lambda f: facts.depth.get(f.node, 0))
    return {f: whole if f is carrier else 0.0 for f in group}
