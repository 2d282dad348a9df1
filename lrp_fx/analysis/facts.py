"""The facts that analysis attaches to a graph. Rules are not known here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch.fx import Node

from lrp_fx.graph.operands import Slot
from lrp_fx.operators.table import OpSpec, OpTable


@dataclass(frozen=True)
class Source:
    """A tensor at which relevance of a user input is collected.

    Attributes:
        node: the tensor: a floating placeholder, or the rows that a lookup picked.
        input: the placeholder it belongs to.
        indices: for a lookup, the integer node that picked the rows; None for a floating input.
        name: display name of the tensor ("inputs_embeds", or the parameter path of the table).
        dim: of a lookup, the dimension at which those of the indices begin.
        depth: of a lookup, how many dimensions its indices have together; all others are features.
        further: (input, indices) of what else picked the rows: relevance is shared evenly among all of them.
    """

    node: Node
    input: Node
    indices: Node | None
    name: str
    dim: int = 0
    depth: int = 0
    further: tuple[tuple[Node, Node], ...] = ()

    @property
    def picks(self) -> tuple[tuple[Node, Node], ...]:
        """(input, indices) of everything that picked the rows; empty for a floating input."""
        return () if self.indices is None else ((self.input, self.indices), *self.further)


@dataclass(frozen=True)
class Lookup:
    """How a node reads entries of a table.

    Attributes:
        indices: nodes that say which entries; of several, each counts along a dimension of the table.
        dim: dimension of the result at which those of the indices begin.
        depth: how many dimensions the indices have together, broadcast.
    """

    indices: tuple[Node, ...]
    dim: int
    depth: int


@dataclass(frozen=True)
class Layer:
    """A product of one carrying tensor and one constant: a linear layer, a convolution, an expert.

    Attributes:
        roles: what rule sets may call it, the narrowest first; the last is "linear".
        input: slot of the carrying operand.
        weight: slot of the constant.
        biases: slots of what is added.
        channels: dimension of the weight that counts output channels, None where it is not known.
    """

    roles: tuple[str, ...]
    input: Slot
    weight: Slot
    biases: tuple[Slot, ...]
    channels: int | None


@dataclass(frozen=True)
class Shift:
    """A factor that is a constant plus a signal, f = a c + b s.

    Attributes:
        sum: the node that adds the two.
        signal: slot of s in that node.
        weight: b.
        constant: c, a number or a node without relevance.
        constant_weight: a.
    """

    sum: Node
    signal: Slot
    weight: float
    constant: Node | float
    constant_weight: float


@dataclass(frozen=True)
class Leaf:
    """A factor of a chain of products.

    Attributes:
        way: (product, slot) from the end of the chain to the product that reads it.
        shift: what it is the sum of; None for a signal alone.
    """

    way: tuple[tuple[Node, Slot], ...]
    shift: Shift | None

    @property
    def owner(self) -> Node:
        """The product that reads it."""
        return self.way[-1][0]

    @property
    def slot(self) -> Slot:
        """Its slot there."""
        return self.way[-1][1]


@dataclass(frozen=True)
class Expansion:
    """A product of factors some of which are shifted.

    Attributes:
        leaves: its factors.
        inside: the products that go into it.
    """

    leaves: tuple[Leaf, ...]
    inside: frozenset[Node]


@dataclass
class Mixing:
    """A softmax in running form: (e_1 v_1 + e_2 v_2 + ...) / (e_1 + e_2 + ...), the values mixed before the division.

    Attributes:
        contractions: of exponentials with values.
        slots: these, the products that rescale a part of the sum, and the division -> the slot of the exponentials.
        exponentials: all of them.
        weights: they, and what is made of them.
        inside: nodes from the contractions to the division.
    """

    contractions: list[Node] = field(default_factory=list)
    slots: dict[Node, Slot] = field(default_factory=dict)
    exponentials: set[Node] = field(default_factory=set)
    weights: set[Node] = field(default_factory=set)
    inside: set[Node] = field(default_factory=set)


@dataclass
class Facts:
    """What is known about every node of a captured graph.

    Attributes:
        ops: the op table used.
        specs: declaration of every node that carries relevance.
        sources: where relevance of the inputs is collected.
        masks: floating inputs that only say what others may see.
        held: nodes whose entries are values of inputs, moved, rounded or shifted -> the placeholders.
        indicators: rows of zeros and a one that say which, as moved, cast or weighed.
        operands: carrying operands of every carrying node.
        origin: the tensor of which a node is an elementwise function (itself where it is of none, or of several).
        parent: nearest tensor that alone determines the node by elementwise, reducing or moving operators.
        depth: length of the chain of parents.
        leap: an ancestor further up that chain, so that it can be climbed in few steps.
        affine: the furthest ancestor of which a node is an affine image.
        reduced_from: tensor on which the node depends only through a reduction, or absent: a *statistic* of it.
        manual_softmax: nodes that together spell a softmax (exp, and the division by its sum), or its logarithm.
        softmaxes: those at the end of a softmax -> its exponential.
        log_sum_exp: those at the end of the logarithm of a total of exponentials -> the exponential.
        log_softmax: those at the end of the logarithm of one.
        mixing: of a softmax in running form, the products and the division that values pass.
        positive: tensors that can only weigh a signal: sigmoids, exponentials, sums and products of such.
        shifted: products with factors that are a constant plus a signal.
        nonnegative: tensors without a negative entry.
        decays: those of them with an exponential in them.
        states: sums that hold a product with a positive tensor, and what carries them on.
        recurrent: products of a positive tensor with a state that is carried from step to step.
        carried: states, by the recurrent products in them, and what carries them on.
        written: products of several signed tensors that are added to such a state.
        read_sizes: sizes of the dimensions of states that reads sum over.
        layers: nodes that multiply one carrying tensor by weights.
        fed_back: layers with a recurrent weight, one that is applied to what it made of earlier steps, and what moves,
            adds or weighs what they compute.
        folded: normalization over the batch -> the layer that it scales and shifts, for rules that see them as one.
        thresholds: layer -> the normalization over the batch in front of it, with nothing but a ReLU between the two.
        selective: slots of a product whose operands say what a state takes in or what is read from it.
        tables: cosines and sines of constants, moved, cast and scaled at most.
        positions: tables of cosines and sines of positions, which a rule set can treat as inputs.
        positional: products that such a table multiplies -> its slots.
        tabled: nodes on the way from those tables to those products.
        detached: where the model's author held a signal constant: the nodes that detach one.
        seen_through: where its author did, and relevance is followed nevertheless.
        continued: nodes whose functions go on in an elementwise nonlinearity, as 1 + exp(-x) does in its reciprocal.
        contraction: the nearest contraction of two carrying tensors behind a node, through masks and scalings.
    """

    ops: OpTable
    specs: dict[Node, OpSpec] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    masks: set[Node] = field(default_factory=set)
    held: dict[Node, tuple[Node, ...]] = field(default_factory=dict)
    indicators: set[Node] = field(default_factory=set)
    operands: dict[Node, dict[Slot, Node]] = field(default_factory=dict)
    origin: dict[Node, Node] = field(default_factory=dict)
    parent: dict[Node, Node] = field(default_factory=dict)
    depth: dict[Node, int] = field(default_factory=dict)
    leap: dict[Node, Node] = field(default_factory=dict)
    affine: dict[Node, Node] = field(default_factory=dict)
    reduced_from: dict[Node, Node] = field(default_factory=dict)
    manual_softmax: set[Node] = field(default_factory=set)
    softmaxes: dict[Node, Node] = field(default_factory=dict)
    log_sum_exp: dict[Node, Node] = field(default_factory=dict)
    log_softmax: set[Node] = field(default_factory=set)
    mixing: dict[Node, Mixing] = field(default_factory=dict)
    positive: set[Node] = field(default_factory=set)
    shifted: dict[Node, Expansion] = field(default_factory=dict)
    nonnegative: set[Node] = field(default_factory=set)
    decays: set[Node] = field(default_factory=set)
    states: set[Node] = field(default_factory=set)
    recurrent: set[Node] = field(default_factory=set)
    carried: set[Node] = field(default_factory=set)
    written: set[Node] = field(default_factory=set)
    read_sizes: set[int] = field(default_factory=set)
    selective: dict[Node, set[Slot]] = field(default_factory=dict)
    layers: dict[Node, Layer] = field(default_factory=dict)
    fed_back: set[Node] = field(default_factory=set)
    folded: dict[Node, Node] = field(default_factory=dict)
    thresholds: dict[Node, Node] = field(default_factory=dict)
    tables: set[Node] = field(default_factory=set)
    positions: list[Source] = field(default_factory=list)
    positional: dict[Node, dict[Slot, Node]] = field(default_factory=dict)
    tabled: set[Node] = field(default_factory=set)
    detached: list[Node] = field(default_factory=list)
    seen_through: list[Node] = field(default_factory=list)
    continued: set[Node] = field(default_factory=set)
    contraction: dict[Node, Node] = field(default_factory=dict)

    def carries(self, node: Node) -> bool:
        """Whether relevance can reach ``node``."""
        return node in self.operands

    def root(self, node: Node) -> None:
        """Begin at ``node``: nothing that is known determines it."""
        self.origin[node] = self.affine[node] = self.leap[node] = node
        self.depth[node] = 0

    def descend(self, node: Node, parent: Node) -> None:
        """Note that ``parent`` determines ``node``."""
        self.parent[node] = parent
        self.depth[node] = self.depth[parent] + 1
        over = self.leap[parent]
        even = self.depth[parent] - self.depth[over] == self.depth[over] - self.depth[self.leap[over]]
        self.leap[node] = self.leap[over] if even else parent
        if self._is_affine(node) and all(self._begins_above(n, parent) for n in self.operands[node].values()):
            self.affine[node] = self.affine[parent]

    def common_ancestor(self, nodes: Sequence[Node]) -> Node | None:
        """Nearest tensor that determines all of ``nodes`` through their parents, or None."""
        ancestor: Node | None = nodes[0]
        for node in nodes[1:]:
            ancestor = None if ancestor is None else self._meet(ancestor, node)
        return ancestor

    def _meet(self, a: Node, b: Node) -> Node | None:
        """Climb parents, by leaps where these do not overshoot: the logarithm of the depth in steps."""
        if self.depth[a] < self.depth[b]:
            a, b = b, a
        while self.depth[a] > self.depth[b]:
            a = self.leap[a] if self.depth[self.leap[a]] >= self.depth[b] else self.parent[a]
        while a is not b:
            if a not in self.parent:
                return None
            leaps = self.leap[a] is not self.leap[b]
            a, b = (self.leap[a], self.leap[b]) if leaps else (self.parent[a], self.parent[b])
        return a

    def is_affine_image(self, node: Node, of: Node) -> bool:
        """Whether ``node`` is an affine function of ``of``, by linear, moving and constant-scaling operators alone."""
        return self._meet(node, of) is of and self._begins_above(node, of)

    def _begins_above(self, node: Node, ancestor: Node) -> bool:
        """Whether ``node`` is an affine image of its ``ancestor``: parents determine it, so every way leads through."""
        return self.depth[self.affine[node]] <= self.depth[ancestor]

    def _is_affine(self, node: Node) -> bool:
        spec, operands = self.specs[node], self.operands[node]
        kind = spec.kind
        scaling = kind == "product" or (kind == "quotient" and Slot(spec.args[1]) not in operands)
        return kind in ("linear", "movement") or (scaling and len(operands) == 1)

    def is_statistic_of(self, statistic: Node, signal: Node) -> bool:
        """Whether ``statistic`` depends only through reductions on a tensor of which ``signal`` is an affine image.

        A product or quotient of the two is then a normalization: RMSNorm, LayerNorm, cosine attention, however spelled.
        """
        through = self.reduced_from.get(statistic)
        if through is None or statistic is signal:
            return False
        ancestor = self.common_ancestor((signal, through))
        if ancestor is None or not self.is_affine_image(signal, ancestor):
            return False
        reduced = self.reduced_from.get(signal)  # the signal itself must not be a statistic of the same tensor
        return reduced is None or self.depth[reduced] < self.depth[ancestor]
