"""A result holds no more memory than its tensors: no graph of autograd, no logits of all positions, no activations."""

import gc
import pickle

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import lrp_fx
from lrp_fx.errors import LatentError

WORDS, LENGTH, WIDTH = 2000, 40, 16


class Language(nn.Module):
    """A language model whose logits are far larger than its inputs."""

    def __init__(self):
        super().__init__()
        self.embedding, self.inner, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 64), nn.Linear(64, WORDS)

    def forward(self, input_ids):
        return self.head(self.inner(self.embedding(input_ids)).relu())


@pytest.fixture(scope="module")
def xmodel():
    torch.manual_seed(0)
    converted = lrp_fx.convert(Language().eval())
    converted.explain(ids())  # captured and checked
    return converted


def ids():
    return torch.arange(2 * LENGTH).reshape(2, LENGTH)


def newer():
    """Bytes of all storages that tensors refer to which were made since the collector was last told to freeze."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, nn.Parameter) and not each.is_meta]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.fixture
def nothing_else(xmodel):
    """What other tests left alive is not looked at: it holds kinds of tensors that have no storage."""
    gc.collect()
    gc.freeze()


def size(result):
    """Bytes of the tensors of a result: relevance of inputs, latents and sources (elementwise), targets, inputs."""
    parts = [result.relevance, result.latents, result.inputs, result.target, result._sources]
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(parts) if isinstance(leaf, torch.Tensor))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("target", [None, 7])
def test_an_explanation(xmodel, nothing_else, keep, target):
    inputs, before = ids(), newer()
    result = xmodel.explain(inputs, target=target, keep_inputs=keep)
    rows = 2 * WORDS * 4 if keep else 0  # the logits at the explained positions
    assert newer() - before <= size(result) + rows
    assert not any(
        t.requires_grad or t.grad_fn is not None for t in pytree.tree_leaves(vars(result)) if hasattr(t, "grad_fn")
    )


def test_a_slice_and_a_copy_are_as_small_as_they_look(xmodel):
    result = xmodel.explain(ids(), keep_inputs=False)
    one = result[0]
    assert all(r.untyped_storage().nbytes() == r.nbytes for r in one.relevance.values())
    copied = pickle.dumps(one)
    assert len(copied) < 20_000
    with pytest.raises(LatentError, match="dropped"):
        pickle.loads(copied).output  # noqa: B018


def test_what_is_computed_on_demand_needs_the_inputs(xmodel):
    result = xmodel.explain(ids(), keep_inputs=False)
    for read in (lambda: result.output, lambda: result.ledger, lambda: result.sources):
        with pytest.raises(LatentError, match="keep_inputs=True, read it, then"):
            read()
    whole = xmodel.explain(ids())
    ledger, output = whole.ledger, whole.output
    small = whole.without_inputs()
    assert small.ledger is ledger and torch.equal(small.output, output) and not small.inputs


def test_ledgers_and_checks_give_back_what_their_sweeps_computed(xmodel, nothing_else):
    left = []
    for _ in range(2):
        xmodel.explain(ids(), check="always")[1].ledger  # noqa: B018
        left.append(newer())
    assert left[1] == left[0] < LENGTH * WORDS * 4, left


def test_a_sweep_that_fails_gives_back_what_it_computed(xmodel, nothing_else):
    def once():
        calls = []

        def target(output):
            calls.append(1)
            if len(calls) == 2:
                raise ArithmeticError
            return output[:, -1, 3]

        result = xmodel.explain(ids(), target=target, check=False)
        with pytest.raises(ArithmeticError):
            result.ledger  # noqa: B018
        return newer()

    assert once() == once()
