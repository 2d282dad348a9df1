"""The facts of a graph, independent of rules."""

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
        node: the tensor: a floating-point placeholder, or the rows of a lookup.
        input: the placeholder it belongs to.
        indices: for a lookup, the integer node that indexes the table; None for a floating-point input.
        name: display name of the tensor ("inputs_embeds", or the parameter path of the table).
        dim: for a lookup, the first dimension of the indices in ``node``.
        depth: for a lookup, the number of dimensions of the indices; all others are features.
        further: (input, indices) of further indices of the lookup; relevance is shared evenly among all.
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
        """(input, indices) of all indices of the lookup; empty for a floating-point input."""
        return () if self.indices is None else ((self.input, self.indices), *self.further)


@dataclass(frozen=True)
class Lookup:
    """How a node reads entries of a table.

    Attributes:
        indices: the index nodes; of several, each indexes one dimension of the table.
        dim: first dimension of the indices in the result.
        depth: number of dimensions of the indices, broadcast together.
    """

    indices: tuple[Node, ...]
    dim: int
    depth: int


@dataclass(frozen=True)
class Layer:
    """A product of one carrying tensor and one constant: a linear layer, a convolution, an expert.

    Attributes:
        roles: its roles, the narrowest first; the last is "linear".
        input: slot of the carrying operand.
        weight: slot of the constant.
        biases: slots of added terms.
        channels: dimension of the weight: the output channels; None if unknown.
    """

    roles: tuple[str, ...]
    input: Slot
    weight: Slot
    biases: tuple[Slot, ...]
    channels: int | None


Parts = frozenset[Node]  #: parts of a tensor: the nodes that take them
_MOST_PARTS = 16  #: a node that depends on more of them counts as one that depends on the whole


@dataclass(frozen=True)
class Shift:
    """A factor that is a constant plus a signal, f = a c + b s, or a sum of several of both; also moved.

    Attributes:
        sums: the nested sums, the outermost first: the factor, if nothing moves it.
        signals: (node that adds s, slot of s there, b) of each signal s.
        constants: (c, a) of each constant c, a number or a node without relevance.
        moved: (node that moves entries of the sum, slot of its operand), in graph order.
    """

    sums: tuple[Node, ...]
    signals: tuple[tuple[Node, Slot, float], ...]
    constants: tuple[tuple[Node | float, float], ...]
    moved: tuple[tuple[Node, Slot], ...] = ()

    @property
    def number(self) -> float | None:
        """The sum of the constants if all are numbers, else None."""
        numbers = [weight * c for c, weight in self.constants if isinstance(c, float)]
        return sum(numbers) if len(numbers) == len(self.constants) else None


@dataclass(frozen=True)
class Leaf:
    """A factor of a chain of products.

    Attributes:
        way: (product, slot) from the end of the chain to the product that reads the factor.
        shift: its constant and its signal; None if it is a signal alone.
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
    """A product with factors of the form constant + signal.

    Attributes:
        leaves: its factors.
        inside: the inner products of the chain.
    """

    leaves: tuple[Leaf, ...]
    inside: frozenset[Node]


@dataclass(frozen=True)
class System:
    """A linear system (C + S) Y = B: C a constant diagonal, S a signal in one triangle.

    Attributes:
        reader: the node that reads C + S: the solver, or the inverse that is multiplied by B.
        matrix: slot of C + S in that node.
        right: slot of B in the node that returns Y; None for an identity matrix (an inverse).
        left: whether the matrix is on the left of Y.
        upper: whether S is the upper triangle.
        unit: whether the solver assumes a diagonal of ones.
        vector: whether B is a vector, without a dimension for its column.
    """

    reader: Node
    matrix: Slot
    right: Slot | None
    left: bool
    upper: bool
    unit: bool
    vector: bool = False


@dataclass
class Mixing:
    """A running softmax: (e_1 v_1 + e_2 v_2 + ...) / (e_1 + e_2 + ...), with values mixed before the division.

    Attributes:
        contractions: the products of exponentials with values.
        slots: contraction, product that rescales a part of the sum, or division -> its slot for the exponentials.
        exponentials: all exponentials.
        weights: the exponentials and the nodes computed from them alone.
        inside: the nodes from the contractions to the division.
    """

    contractions: list[Node] = field(default_factory=list)
    slots: dict[Node, Slot] = field(default_factory=dict)
    exponentials: set[Node] = field(default_factory=set)
    weights: set[Node] = field(default_factory=set)
    inside: set[Node] = field(default_factory=set)


@dataclass
class Facts:
    """The facts of a captured graph.

    Attributes:
        ops: the op table.
        specs: declaration of every node that carries relevance.
        sources: the tensors at which relevance of the inputs is collected.
        masks: floating-point inputs that only mask other tensors.
        input_values: nodes whose entries are values of inputs, moved, rounded or shifted -> the placeholders.
        indicators: one-hot rows, moved, cast or weighed.
        operands: carrying operands of every carrying node.
        origin: the tensor of which a node is an elementwise function (itself if of none, or of several).
        parent: nearest tensor that alone determines the node by elementwise, reducing or moving operators.
        depth: length of the chain of parents.
        leap: an ancestor further up that chain, for climbing it in few steps.
        affine: the furthest ancestor of which a node is an affine image.
        partial: the nearest node up that chain, or the node itself, that depends on parts of a tensor (slices, pieces).
        parts: these parts of such a node.
        reduced_from: the tensor of which the node is a *statistic*, as it depends on it only through a reduction.
        manual_softmax: the nodes of written-out softmaxes (exp, and the division by its sum) and their logarithms.
        softmaxes: last node of a written-out softmax -> its exponential.
        log_sum_exp: last node of the logarithm of a total of exponentials -> the exponentials.
        log_softmax: last nodes of the logarithm of a softmax.
        mixing: product or division of a running softmax that values pass -> the softmax.
        positive: tensors without sign changes (all entries positive, or all negative), which can only weigh a signal:
            sigmoids, exponentials, sums and products of these.
        shifted: products with factors of the form constant + signal -> their expansion.
        systems: linear systems whose matrix is a constant diagonal plus a signal in one triangle.
        nonnegative: tensors without a negative entry.
        rectifiers: functions that are 0 wherever their operand is negative.
        decays: positive tensors with an exponential in them.
        step_sizes: positive tensors in the exponents of decays.
        states: sums with a product with a positive tensor, and the nodes that carry them on.
        recurrent: products of a positive tensor with a state that is carried from step to step.
        carried: sums with a recurrent product in them, and the nodes that carry them on.
        written: products of several signed tensors that are added to a carried state.
        read_sizes: sizes of the dimensions of states that are summed over when a state is read.
        layers: nodes that multiply one carrying tensor by weights.
        fed_back: layers with a recurrent weight, which is applied to its own results of earlier steps, and nodes that
            move, add or weigh the outputs of these layers.
        folded: batch norm -> the layer in front of it, into which it is folded.
        thresholds: layer -> the batch norm in front of it, with only a ReLU in between.
        selective: product -> slots of its selective parameters, which steer what is written to or read from a state.
        tables: cosines and sines of constants, also moved, cast and scaled.
        positions: position tables (cosines and sines), which a rule set can treat as sources.
        positional: products that a position table multiplies -> slots of the table.
        tabled: nodes from these tables to these products.
        detached: nodes at which the model detaches a signal.
        seen_through: detaches that relevance passes nevertheless.
        continued: nodes that are an inner part of an elementwise nonlinearity, as 1 + exp(-x) is of its reciprocal.
        contraction: the nearest contraction of two carrying tensors behind a node, through masks and scalings.
    """

    ops: OpTable
    specs: dict[Node, OpSpec] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    masks: set[Node] = field(default_factory=set)
    input_values: dict[Node, tuple[Node, ...]] = field(default_factory=dict)
    indicators: set[Node] = field(default_factory=set)
    operands: dict[Node, dict[Slot, Node]] = field(default_factory=dict)
    origin: dict[Node, Node] = field(default_factory=dict)
    parent: dict[Node, Node] = field(default_factory=dict)
    depth: dict[Node, int] = field(default_factory=dict)
    leap: dict[Node, Node] = field(default_factory=dict)
    affine: dict[Node, Node] = field(default_factory=dict)
    partial: dict[Node, Node] = field(default_factory=dict)
    parts: dict[Node, Parts] = field(default_factory=dict)
    reduced_from: dict[Node, Node] = field(default_factory=dict)
    manual_softmax: set[Node] = field(default_factory=set)
    softmaxes: dict[Node, Node] = field(default_factory=dict)
    log_sum_exp: dict[Node, frozenset[Node]] = field(default_factory=dict)
    log_softmax: set[Node] = field(default_factory=set)
    mixing: dict[Node, Mixing] = field(default_factory=dict)
    positive: set[Node] = field(default_factory=set)
    shifted: dict[Node, Expansion] = field(default_factory=dict)
    systems: dict[Node, System] = field(default_factory=dict)
    nonnegative: set[Node] = field(default_factory=set)
    rectifiers: set[Node] = field(default_factory=set)
    decays: set[Node] = field(default_factory=set)
    step_sizes: set[Node] = field(default_factory=set)
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
        """Make ``node`` the root of a chain of parents: no other tensor determines it."""
        self.origin[node] = self.affine[node] = self.leap[node] = node
        self.depth[node] = 0

    def descend(self, node: Node, parent: Node) -> None:
        """Note that ``parent`` determines ``node``."""
        self.parent[node] = parent
        self.depth[node] = self.depth[parent] + 1
        if parts := self._own_parts(node, parent):
            self.parts[node] = parts
        if (partial := node if parts else self.partial.get(parent)) is not None:
            self.partial[node] = partial
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
        """Nearest common ancestor, in O(log depth) steps: climb by leaps if they do not overshoot, else by parents."""
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
        """Whether ``node`` is an affine function of ``of``: by linear operators, movement and scaling by constants."""
        return self._meet(node, of) is of and self._begins_above(node, of)

    def _begins_above(self, node: Node, ancestor: Node) -> bool:
        """Whether ``node`` is an affine image of its ``ancestor``, which every path to ``node`` passes."""
        return self.depth[self.affine[node]] <= self.depth[ancestor]

    def _is_affine(self, node: Node) -> bool:
        spec, operands = self.specs[node], self.operands[node]
        kind = spec.kind
        scaling = kind == "product" or (kind == "quotient" and Slot(spec.args[1]) not in operands)
        return kind in ("linear", "movement") or (scaling and len(operands) == 1)

    def _own_parts(self, node: Node, parent: Node) -> Parts:
        """The parts of ``parent`` that a node takes, or that its operands are; none if it depends on the whole."""
        if self.specs[node].extra.get("part"):
            return frozenset({node})
        operands = self.operands[node].values()
        each = [self.parts_of(parent, n) for n in operands] if parent not in operands else []
        joined: Parts = frozenset().union(*each)
        return joined if all(each) and len(joined) <= _MOST_PARTS else frozenset()

    def parts_of(self, ancestor: Node, node: Node) -> Parts:
        """The parts of an ancestor that a node depends on; none if it depends on the whole."""
        first, partial = None, self.partial.get(node)
        while partial is not None and self.depth[partial] > self.depth[ancestor]:
            first, partial = partial, self.partial.get(self.parent[partial])
        return frozenset() if first is None else self.parts[first]
