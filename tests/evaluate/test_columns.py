"""Data of the faithfulness study: the annotated features hold the answer; columns are well-formed tasks."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import columns
from columns import chemistry, genera, pictures
from training import images, networks, planted, prose, questions
from training.loop import train

import lrp_fx


def drawn(name, count=300):
    return planted.TASKS[name](count, torch.Generator().manual_seed(3))


def test_recall_is_answered_by_the_value_behind_the_key_that_is_asked():
    sequences = drawn("recall")
    for position in range(1 + 2 * planted.PAIRS, sequences.ids.shape[1]):
        for ids, answers, truth in zip(sequences.ids, sequences.answers, sequences.truth, strict=True):
            key, value = truth[position].nonzero()[:, 0].tolist()
            assert value == key + 1
            assert ids[key] == ids[position]
            assert ids[value] == answers[position]
            assert (ids[: 1 + 2 * planted.PAIRS] == ids[key]).sum() == 1


def test_brackets_are_answered_by_the_one_opened_last():
    ids, answer, truth = drawn("brackets").cut(planted.LENGTH)
    for tokens, found, held in zip(ids.tolist(), answer.tolist(), truth, strict=True):
        opened = [i for i, token in enumerate(tokens[1:-1], 1) if 2 <= token < 2 + planted.KINDS]
        assert held.nonzero()[:, 0].tolist() == [opened[-1]]
        assert found == tokens[opened[-1]] + planted.KINDS
        assert not any(2 + planted.KINDS <= token < 2 + 2 * planted.KINDS for token in tokens)


@pytest.mark.parametrize("column", range(planted.DIGITS))
def test_addition_is_decided_by_the_truth_alone(column):
    """The answer is the digit of the sum, and that of the sum of the digits in the truth, all others being zero."""
    ids, answer, truth = drawn("addition").cut(1 + 2 * planted.DIGITS + column + 1)
    digits = (ids - 2)[:, 1 : 1 + 2 * planted.DIGITS]
    powers = 10 ** torch.arange(planted.DIGITS - 1, -1, -1).repeat(2)
    for kept in (torch.ones_like(digits), truth[:, 1 : 1 + 2 * planted.DIGITS].long()):
        total = (digits * kept * powers).sum(-1)
        assert torch.equal(total // 10**column % 10 + 2, answer)
    assert (truth.sum(-1) == (4 if column else 2)).all()


def test_answers_to_questions_stand_where_it_is_said_and_are_real():
    data = questions.batch(200, np.random.default_rng(0), True)
    words = list(questions.vocabulary())
    entities = {e.name: e for t in questions.tables().values() for e in t.held_out}
    value = data["answer"][:, -1]
    assert torch.equal(data["ids"].gather(1, data["position"][:, None])[:, 0], value)
    assert (data["ids"] == value[:, None]).sum(-1).eq(1).all()  # nowhere else
    assert torch.equal(questions.begun(data["answer"])[:, 1:], data["answer"][:, :-1])
    for ids, answer in zip(data["ids"], data["answer"], strict=True):
        text = " ".join(words[i] for i in answer)
        kind, code, _, entity, given = text.split()
        assert entities[entity].codes[f"{kind} {code}"] == given
        question = " ".join(words[i] for i in ids[:9])
        assert f"{kind} {code}" in question and f"{entity} ?" in question


def test_entities_held_out_are_not_learnt_from():
    for table in questions.tables().values():
        assert len(table.held_out) > 10
    rng = np.random.default_rng(0)
    learnt = {e.name for t in questions.tables().values() for e in t.train}
    held_out = {e.name for t in questions.tables().values() for e in t.held_out}
    assert held_out and not held_out & learnt
    for _ in range(200):
        assert not held_out & set(questions.sample(rng, False)[0])


def test_prose_is_cut_into_windows_that_begin_with_a_start_token():
    texts = [f"The statement number {i} is executed before the next one." * 9 for i in range(20)]
    tokenizer = prose.learn_tokenizer(texts)
    found = prose.windows(tokenizer, texts, 32)
    assert found.shape[1] == 32 and (found[:, 0] == prose.START).all() and (found[:, 1:] > prose.UNKNOWN).all()
    assert tokenizer.decode(found[0, 1:].tolist()) == texts[0][: len(tokenizer.decode(found[0, 1:].tolist()))]


def test_digits_are_moved_not_changed():
    pictures_, labels = images.digits()
    assert pictures_.shape == (1797, 1, 32, 32) and len(labels) == 1797
    moved = images.shifted(pictures_[:20], torch.Generator().manual_seed(0))
    assert not torch.equal(moved, pictures_[:20])
    torch.testing.assert_close(moved.sum((1, 2, 3)), pictures_[:20].sum((1, 2, 3)))


def test_the_loop_learns():
    torch.manual_seed(0)
    model, x = torch.nn.Linear(4, 1), torch.randn(64, 4)
    y = x @ torch.tensor([[1.0], [2.0], [-1.0], [0.5]])
    seen = []
    train(model, lambda _: (model(x) - y).square().mean(), steps=200, rate=0.1, report=lambda *news: seen.append(news))
    assert seen[0][0] == 1 and seen[-1][0] == 200 and not model.training
    assert float((model(x) - y).detach().square().mean()) < 1e-3


def test_reactions_are_different_and_of_all_kinds():
    made = chemistry.reactions(200, torch.Generator().manual_seed(0))
    assert len({reaction for _, reaction in made}) == 200
    assert {name for name, _ in made} == set(chemistry.TEMPLATES)
    for _, reaction in made:
        before, after = reaction.split(">>")
        assert "{" not in reaction and before and after
        for side in (before, after):
            assert side.count("(") == side.count(")") and all(side.count(n) % 2 == 0 for n in "12")


def test_crops_are_squares_of_the_photograph():
    image = torch.arange(3 * 60 * 80.0).view(1, 3, 60, 80) % 256
    assert pictures.crops(image, 5, torch.Generator().manual_seed(0), 32).shape == (5, 3, 32, 32)


def test_genera_are_drawn_once_each():
    model = networks.planted(40).eval()
    ids = genera.microbiomes(model, 6, 12, torch.Generator().manual_seed(0))
    assert (ids[:, 0] == genera.START).all() and (ids[:, 1:] >= genera.SPECIAL).all()
    assert all(len(set(row)) == 12 for row in ids.tolist())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "mapper"])
def test_columns_of_installed_models(name):
    """At least 200 samples, targets the model itself gives, and relevance of the features that the task names."""
    task = columns.COLUMNS[name]()
    assert task.name == name and len(task) >= 200
    batch = task.batch(slice(0, 4))
    score = task.score(batch.inputs, batch.target)
    with torch.no_grad():
        output = task.model(**batch.inputs)
    logits = output if isinstance(output, torch.Tensor) else output.logits[torch.arange(4), batch.target[0]]
    assert torch.equal(score, logits.amax(-1))
    attribution = lrp_fx.convert(task.model).explain(**batch.inputs, target=batch.target)
    torch.testing.assert_close(attribution.target, score, atol=1e-4, rtol=1e-4)
    relevance = task.features.pool(attribution.relevance[task.features.input])
    assert relevance.shape == batch.eligible.shape and bool(batch.eligible.any(-1).all())
    order = relevance.masked_fill(~batch.eligible, -torch.inf).argsort(-1, descending=True)
    flipped = torch.zeros_like(batch.eligible).scatter(1, order[:, :5], True)
    assert (task.score(task.features.perturb(batch.inputs, flipped), batch.target) < score).all()


def test_planted_columns_are_columns():
    assert set(columns.PLANTED) < set(columns.COLUMNS)
    assert set(columns.PLANTED) == set(planted.TASKS)
