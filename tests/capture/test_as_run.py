"""Modules that write out a loop only for an export are captured as they run."""

import pytest
import torch
from torch import nn

import lrp_fx
from lrp_fx.capture.export import exports
from lrp_fx.capture.request import Request
from lrp_fx.capture.run_effects import RunEffects
from lrp_fx.capture.signature import read_call

N = 20
CHUNKS = torch.randn(3, N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Solver(nn.Module):
    """(I + S)^-1 B, by rows if it is exported."""

    def __init__(self):
        super().__init__()
        self.size = N

    def forward(self, x):
        return solution(x, 0.3 * (x @ x.mT).tril(-1))


def solution(x, s):
    if not torch.compiler.is_exporting():
        return torch.linalg.solve_triangular(s, x, upper=False, unitriangular=True)
    inverse = -s
    for i in range(1, s.shape[-1]):
        row, above = inverse[..., i, :i].clone(), inverse[..., :i, :i].clone()
        inverse[..., i, :i] = row + (row.unsqueeze(-1) * above).sum(-2)
    return (inverse + torch.eye(s.shape[-1]).to(s)) @ x


class Unexportable(Solver):
    """Reads a value where it is not exported."""

    def forward(self, x):
        if not torch.compiler.is_exporting() and bool(x.isnan().any()):
            return x
        return super().forward(x)


class Model(nn.Module):
    def __init__(self, solver):
        super().__init__()
        torch.manual_seed(0)
        self.before, self.solver, self.after = nn.Linear(4, 4), solver, nn.Linear(4, 2)

    def forward(self, x):
        return self.after(self.solver(self.before(x))).sum(1)


def model(solver):
    return Model(solver()).double().eval()


def names(xmodel):
    return [str(n.target) for n in xmodel.graph_module.graph.nodes]


@pytest.fixture(scope="module")
def solved():
    return lrp_fx.convert(model(Solver), CHUNKS, rules="attnlrp")


def test_a_loop_for_exporters_is_not_captured(solved):
    expected = lrp_fx.convert(solved.model, CHUNKS, rules="attnlrp", capture="trace").explain(CHUNKS, target=1)
    found = solved.explain(CHUNKS, target=1)
    torch.testing.assert_close(found.relevance["x"], expected.relevance["x"], rtol=1e-10, atol=1e-12)
    assert any("solve_triangular" in name for name in names(solved)) and len(names(solved)) < 60


def test_sizes_stay_free(solved):
    assert solved.explain(torch.cat([CHUNKS, CHUNKS]), target=1).ledger.balance < 1e-12
    assert len(solved.captures) == 1


def test_a_lowered_graph_has_free_sizes(solved):
    lowered = solved.lower(CHUNKS, target=1)
    other = torch.cat([CHUNKS, CHUNKS[:1]])
    expected = solved.explain(other, target=1).relevance["x"]
    torch.testing.assert_close(lowered(other).relevance["x"], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_a_module_that_can_only_be_exported_by_its_loop_is():
    xmodel = lrp_fx.convert(model(Unexportable), CHUNKS, rules="attnlrp")
    assert xmodel.captures()[0].captured.route == "export"
    assert xmodel.explain(CHUNKS, target=1).ledger.balance < 1e-12
    assert not any("solve_triangular" in name for name in names(xmodel))


def test_a_loop_for_exporters_is_seen_once(monkeypatch):
    calls, export = [], torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *args, **kwargs: calls.append(1) or export(*args, **kwargs))
    solver = model(Solver)
    args = (CHUNKS[:1],)
    request = Request(solver, args, {}, read_call(solver, args, {}), RunEffects(solver))
    programs = [program for program, _ in exports(request)]
    assert len(programs) == 3 and len(calls) == 1 + len(programs)
    assert all("solve_triangular" in str(program.graph) for program in programs)


def test_the_flags_of_export_are_as_before(solved):
    assert not torch.compiler.is_exporting() and not torch.compiler.is_compiling()
