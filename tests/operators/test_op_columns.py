"""Columns of the op table say of each operator what PyTorch does."""

import pytest
import torch
from torch import fx, nn

import lrp_fx
from lrp_fx.errors import RuleSetError
from lrp_fx.graph.dimensions import permutation
from lrp_fx.operators.table import OpTable, coefficients
from lrp_fx.passes.hoist_slices import positional

aten = torch.ops.aten
TABLE = OpTable.shipped()
X = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

#: arguments behind the operand, where there are any: of the form "operator" or "operator.overload"
FURTHER = {
    "aten.to.dtype": (torch.float32,), "aten._to_copy": (), "aten.type_as": (X.float(),),
    "aten.flatten.using_ints": (1,), "aten.reshape": ([8, 6],), "aten.view": ([8, 6],), "aten._unsafe_view": ([8, 6],),
    "aten.reshape_as": (X.view(8, 6),), "aten.view_as": (X.view(8, 6),), "aten.unflatten.int": (2, [2, 3]),
    "aten.squeeze.dim": (1,), "aten.unsqueeze": (1,),
    "aten.movedim.int": (0, 2), "aten.moveaxis.int": (0, 2), "aten.permute": ([2, 0, 1],), "aten.swapaxes": (0, 2),
    "aten.swapdims": (0, 2), "aten.transpose.int": (0, 2),
    "aten.chunk": (3, 2), "aten.split.Tensor": (2, 2), "aten.split_with_sizes": ([1, 5], 2),
    "aten.tensor_split.sections": (3, 2), "aten.unsafe_chunk": (3, 2), "aten.unsafe_split.Tensor": (2, 2),
    "aten.unsafe_split_with_sizes": ([1, 5], 2),
}  # fmt: skip
MATRIX = {"aten.t", "aten.numpy_T"}  #: of matrices only


def declared(column):
    return [name for name, spec in TABLE.specs.items() if column in spec.extra and name.startswith("aten.")]


def operator(name):
    """The overload that is tried, and what it takes behind its operand."""
    key = next((k for k in FURTHER if k == name or k.startswith(f"{name}.")), name)
    namespace, packet, *overload = key.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), *(overload or ["default"])), FURTHER.get(key, ())


def node_of(target, *args, **kwargs):
    """A node that calls ``target``; tensors among its arguments become inputs."""
    graph = fx.Graph()

    def read(value):
        if not isinstance(value, torch.Tensor):
            return value
        node = graph.placeholder(f"x{len(graph.nodes)}")
        node.meta["val"] = value
        return node

    node = graph.call_function(target, tuple(map(read, args)), kwargs)
    node.meta["val"] = target(*args, **kwargs)
    return node


@pytest.mark.parametrize("name", declared("form"))
def test_a_movement_has_the_form_that_is_declared(name):
    target, further = operator(name)
    x = X[0] if name in MATRIX else X
    result, form = target(x, *further), TABLE.specs[name].extra["form"]
    if form in ("copy", "detach"):
        assert torch.equal(result, x) and result.dtype is x.dtype
    elif form == "cast":
        assert torch.equal(result, x.to(result.dtype))
    elif form == "insert":
        assert torch.equal(result.squeeze(further[0]), x) and result.dim() == x.dim() + 1
    elif form == "reshape":
        assert torch.equal(result.flatten(), x.flatten())
    elif form == "permute":
        assert torch.equal(x.permute(permutation(node_of(target, x, *further))), result)
    else:
        assert form == "pieces" and torch.equal(torch.cat(result, 2), x)


@pytest.mark.parametrize("name", declared("coefficients"))
@pytest.mark.parametrize("alpha", [None, -3])
def test_a_sum_has_the_coefficients_that_are_declared(name, alpha):
    spec, y = TABLE.specs[name], X.flip(0)
    operands = dict(zip(spec.args, (X, y), strict=False))
    packet = getattr(aten, name.split(".")[1])
    target = packet.Tensor if "Tensor" in packet.overloads() else packet.default
    node = node_of(target, *operands.values(), **({} if alpha is None or len(operands) < 2 else {"alpha": alpha}))
    factors = coefficients(node, spec)
    assert set(factors) == set(operands)
    torch.testing.assert_close(node.meta["val"], sum(f * operands[k] for k, f in factors.items()))


def test_a_coefficient_that_is_computed_is_not_told():
    node = node_of(aten.add.Tensor, X, X)
    node.kwargs = {"alpha": node.args[0]}
    assert coefficients(node, TABLE.specs["aten.add"]) == {}


@pytest.mark.parametrize("name", declared("distribution"))
def test_a_distribution_adds_up_to_one(name):
    packet = getattr(aten, name.split(".")[1])
    target = packet.int if "int" in packet.overloads() else packet.default
    named = [a.name for a in target._schema.arguments]
    assert named.index(TABLE.specs[name].extra["distribution"]) == 1
    result = target(X, 1, *([False] if "half_to_float" in named else []))
    total = (result.exp() if "log" in name else result).sum(1)
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("name", declared("inert"))
def test_what_is_inert_hands_on_its_operand(name):
    target = getattr(aten, name.split(".")[1]).default
    arguments = [a.name for a in target._schema.arguments]
    assert arguments.index(TABLE.specs[name].extra["inert"]) == 2
    assert torch.equal(target(X, 0.5, False), X) and not torch.equal(target(X, 0.5, True), X)


@pytest.mark.parametrize(
    "name, result",
    [
        ("aten.constant_pad_nd", aten.constant_pad_nd(X * 0, [1, 1], 2.0)),
        ("aten.pad", aten.pad(X * 0, [1, 1], "constant", 2.0)),
        ("aten.scatter.value", aten.scatter.value(X * 0, 0, torch.zeros(1, 1, 1, dtype=torch.long), 2.0)),
        ("aten.nan_to_num", aten.nan_to_num(X * float("nan"), 2.0)),
    ],
)
def test_literals_are_in_results_of_zeros(name, result):
    assert name in declared("literals") and float(result.abs().sum()) > 0


def test_features_are_where_the_weights_yield_them():
    weights = {n: torch.randn(7, 3, *[1] * n, dtype=torch.float64) for n in range(1, 4)}
    found = {"aten.linear": aten.linear(torch.randn(2, 5, 3), torch.randn(7, 3))}
    for n, weight in weights.items():
        x = torch.randn(2, 3, *[2] * n, dtype=torch.float64)
        found[f"aten.conv{n}d"] = getattr(aten, f"conv{n}d")(x, weight)
        found[f"aten.conv_transpose{n}d"] = getattr(aten, f"conv_transpose{n}d")(x, weight.transpose(0, 1))
    for name, result in found.items():
        assert result.shape[TABLE.specs[name].extra["features"]] == 7, name
    assert set(found) == set(declared("features")) - {"aten.convolution"}
    node = node_of(aten.convolution.default, x, weight, None, [1] * 3, [0] * 3, [1] * 3, False, [0] * 3, 1)
    assert node.meta["val"].shape[-1 - len(node.args[3])] == 7
    assert TABLE.specs["aten.convolution"].extra["features"] == "stride"


@pytest.mark.parametrize("name", declared("matrices"))
def test_matrices_are_multiplied_row_by_column(name):
    batched = name in ("aten.bmm", "aten.baddbmm", "aten.matmul")
    a, b = (torch.randn(2, 3, 4), torch.randn(2, 4, 5)) if batched else (torch.randn(3, 4), torch.randn(4, 5))
    if name == "aten._grouped_mm":
        a, b = torch.randn(16, 16, dtype=torch.bfloat16), torch.randn(1, 16, 16, dtype=torch.bfloat16)
        ends = torch.tensor([16], dtype=torch.int32)
        torch.testing.assert_close(aten._grouped_mm(a, b, ends), a @ b[0], atol=0.1, rtol=0.1)
        return
    operands = dict(zip(TABLE.specs[name].args, (a, b), strict=True))
    packet = getattr(aten, name.split(".")[1])
    added = {term: torch.zeros(()) if not batched else torch.zeros(1, 1, 1) for term in TABLE.specs[name].terms}
    torch.testing.assert_close(packet(**operands, **added), a @ b)


def test_passes_know_an_operator_of_a_users_by_its_columns():
    @torch.library.custom_op("lrp_columns::keep", mutates_args=())
    def keep(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    node = node_of(torch.ops.lrp_columns.keep.default, X)
    assert positional(node, 2, OpTable.shipped()) is None
    table = OpTable.load({"movement": {"lrp_columns.keep": {"args": "x", "form": "copy"}}})
    assert [slot.name for slot in positional(node, 2, table)] == ["x"]


def test_an_unknown_form_is_refused():
    with pytest.raises(RuleSetError, match=r"did you mean 'reshape'\?"):
        lrp_fx.convert(nn.Linear(2, 2), ops={"movement": {"aten.view": {"args": "self", "form": "reshap"}}})


class Writes(nn.Module):
    """Writes through views of every form."""

    def forward(self, x):
        y = x * 1
        y.movedim(0, 2)[1] = 0.5
        y.mT[:, 2] *= 3
        y.swapaxes(0, 1)[0].add_(x[:, 1])
        y.chunk(2, dim=-1)[1].mul_(2)
        y.unsqueeze(1)[:, 0, 0] = x[:, 3]
        y.flatten(1)[:, 3] = 7.0
        y.detach().unbind(dim=1)[2].neg_()
        return y.sum((1, 2)) + y[:, 1].prod(-1)


@pytest.mark.slow
def test_writes_through_views_of_every_form_are_functional():
    xmodel = lrp_fx.convert(Writes(), x=X, check=False)
    assert torch.equal(xmodel(X), Writes()(X)) and torch.equal(xmodel(X[:1]), Writes()(X[:1]))
    assert xmodel.captures.latest.captured.route == "export"
    assert abs(xmodel.explain(X, target=lambda out: out).ledger.balance) < 1e-9


def moved(name, x):
    """A movement of x; of the last dimension where it has one."""
    indices = torch.tensor([2, 0])
    arguments = {
        "as_strided": ([2, 3], [24, 1]), "diagonal": (0, 1, 2), "gather": (2, indices.expand(2, 4, 2)),
        "index": ([None, None, indices],), "index_select": (2, indices), "masked_select": (x > 0,),
        "narrow": (2, 1, 3), "select": (2, 1), "slice": (2, 1, 3), "take": (indices,),
        "take_along_dim": (indices.expand(2, 4, 2), 2), "im2col": ([2, 2], [1, 1], [1, 1], [1, 1]),
        "max_unpool2d": (torch.arange(24).view(1, 4, 6).expand(2, 4, 6), [8, 6]),
        "max_unpool3d": (torch.arange(48).view(1, 2, 4, 6), [2, 8, 6], [1, 1, 1], [0, 0, 0]),
    }  # fmt: skip
    packet = getattr(aten, name.split(".")[1])
    overload = next(o for o in ("int", "default", "Tensor") if o in packet.overloads())
    operand = x[None] if name.split(".")[1] in ("im2col", "max_unpool3d") else x
    return getattr(packet, overload)(operand, *arguments.get(name.split(".")[1], ()))


@pytest.mark.parametrize("name", [n for n in declared("part") if n not in ("aten.real", "aten.imag")])
def test_a_part_has_entries_of_its_operand_alone(name):
    part = moved(name, X)
    assert part.numel() < X.numel() and bool(torch.isin(part, X).all())


@pytest.mark.parametrize("name", [n for n in declared("fills") if "pad" not in n])
def test_what_fills_adds_zeros(name):
    result = moved(name, X)
    assert int((result == 0).sum()) > 0 and bool(torch.isin(result[result != 0], X).all())
