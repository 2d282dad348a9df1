"""Data of the faithfulness study: the annotated features hold the answer; columns are well-formed tasks."""

import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import columns
import identity
from columns import chemistry, genera, pictures, weights
from training import images, networks, planted, prose, questions, speech, words
from training.loop import train

import lrp_fx
from lrp_fx.cli.spoken_digits import MELS
from lrp_fx.evaluate import Patches, Task, evaluate, find_methods


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


@pytest.mark.slow
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
    attribution = lrp_fx.convert(task.model, rules="attnlrp").explain(**batch.inputs, target=batch.target)
    torch.testing.assert_close(attribution.target, score, atol=1e-4, rtol=1e-4)
    relevance = task.features.pool(attribution.relevance[task.features.input])
    assert relevance.shape == batch.eligible.shape and bool(batch.eligible.any(-1).all())
    order = relevance.masked_fill(~batch.eligible, -torch.inf).argsort(-1, descending=True)
    flipped = torch.zeros_like(batch.eligible).scatter(1, order[:, :5], True)
    assert (task.score(task.features.perturb(batch.inputs, flipped), batch.target) < score).all()


def test_planted_columns_are_columns():
    assert set(columns.PLANTED) < set(columns.COLUMNS)
    assert set(columns.PLANTED) == set(planted.TASKS)


@pytest.fixture
def rendered():
    """Words in the font that matplotlib carries."""
    font = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    return words.render(40, [font], np.random.default_rng(0))


def test_letters_stand_where_it_is_said(rendered):
    """Ink lies in the columns of letters, and each of them has some of its own."""
    columns_ = torch.arange(words.WIDTH)
    of_letters = (columns_ >= rendered.begin[..., None]) & (columns_ < rendered.end[..., None])
    inked = rendered.ink.any(1)
    assert torch.equal(inked, (of_letters & (rendered.letters != words.BLANK)[..., None]).any(1) & inked)
    assert (inked[:, None] & of_letters).any(-1)[rendered.letters != words.BLANK].all()
    assert rendered.images[:, 0][rendered.ink].mean() < 0.3 < rendered.images[:, 0][~rendered.ink].mean()
    assert set(rendered.lengths.tolist()) <= set(range(words.LENGTHS[0], words.LENGTHS[1] + 1))


def test_steps_are_read_as_the_letters_they_show(rendered):
    logits = torch.nn.functional.one_hot(rendered.steps(), 27).float()
    read, places = words.read(logits)
    for row, (letters, at) in enumerate(zip(read, places, strict=True)):
        shown = rendered.steps()[row].tolist()
        assert letters == [c for i, c in enumerate(shown) if c != words.BLANK and (i == 0 or c != shown[i - 1])]
        for step, letter in zip(at, letters, strict=True):
            middle = step * words.STEP + words.STEP // 2
            over = (rendered.begin[row] <= middle) & (middle < rendered.end[row])
            assert letter in rendered.letters[row][over].tolist()
    assert sum(map(len, read)) > 0.8 * int(rendered.lengths.sum())  # (an "i" may lie between the middles of steps)


def test_words_are_the_same_for_the_same_seed(rendered):
    font = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    again = words.render(40, [font], np.random.default_rng(0))
    assert torch.equal(again.images, rendered.images)
    with pytest.raises(FileNotFoundError, match="tools/train"):
        words.fonts(["nowhere/None.ttf"])


@pytest.fixture
def recordings():
    """Tones in place of voices: digit d is a tone of 300 + 200 d Hz."""
    time = torch.arange(speech.RATE // 4) / speech.RATE
    return speech.record(
        30, {d: [torch.sin(2 * torch.pi * (300 + 200 * d) * time)] for d in range(10)}, np.random.default_rng(0)
    )


def test_digits_are_spoken_when_it_is_said(recordings):
    assert recordings.mels.shape == (30, MELS, speech.FRAMES)
    assert recordings.mels.amax() == 1 and recordings.mels.amin() >= -1
    edges = 700 * (10 ** (torch.linspace(50, 2595 * np.log10(1 + speech.RATE / 1400), MELS + 2) / 2595) - 1)
    for mels, digits, begin, end in zip(
        recordings.mels, recordings.digits, recordings.begin, recordings.end, strict=True
    ):
        assert begin[0] >= speech.RATE // 5 // speech.HOP
        silence = mels[:, : begin[0] - 1]
        assert silence.mean() < mels[:, begin[0] : end[0]].mean()
        for digit, first, last in zip(digits.tolist(), begin, end, strict=True):
            if digit == speech.END:
                continue
            loudest = int(mels[:, first + 2 : last - 2].mean(1).argmax())
            assert edges[loudest] <= 300 + 200 * (digit - speech.FIRST) <= edges[loudest + 2]
    assert ((recordings.end[:, :2] <= recordings.begin[:, 1:]) | (recordings.digits[:, 1:] == speech.END)).all()


def test_decoder_is_given_what_it_has_to_say_one_step_before(recordings):
    given, wanted = recordings.given, recordings.wanted
    assert (given[:, 0] == speech.START).all()
    for before, after, digits in zip(given.tolist(), wanted.tolist(), recordings.digits.tolist(), strict=True):
        said = [d for d in digits if d != speech.END]
        assert after[: len(said) + 1] == [*said, speech.END] and set(after[len(said) + 1 :]) <= {-100}
        assert before[1 : len(said) + 1] == said


def remembering(patch, module, name, draw):
    """``module.name`` draws as ``draw`` and leaves what it drew last in the list that is returned."""
    last = []

    def drawing(*args):
        last[:] = [draw(*args)]
        return last[0]

    patch.setattr(module, name, drawing)
    return last


def test_column_of_rendered_words_annotates_the_letter_that_is_read(monkeypatch):
    font = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    last = remembering(monkeypatch, words, "render", words.render)
    monkeypatch.setattr(words, "fonts", lambda names: [font])
    monkeypatch.setattr(weights, "state", lambda name: networks.CRNN().state_dict())
    monkeypatch.setattr(
        weights, "logits", lambda model, inputs: torch.nn.functional.one_hot(last[0].steps(), 27).float()
    )
    task = columns.COLUMNS["crnn"](20)
    step, letter = task.target
    assert len(task) == 20 and task.annotated.shape == task.blank.shape == (20, 8 * 56)
    inked = task.features.pool((task.inputs["x"] < 0.5).float()).bool()
    assert not (inked & task.blank).any() and (inked & task.annotated).any(1).all()
    read_at = step * words.STEP + words.STEP // 2
    assert task.annotated.view(20, 8, 56)[torch.arange(20), :, read_at // 2].all()
    assert (task.annotated.view(20, 8, 56).any(1).sum(1) < 20).all()  # one letter, of three or more
    output = task.model(task.inputs["x"][:2])
    assert output.shape == (2, words.WIDTH // words.STEP, 27) and ((letter > 0) & (letter < 27)).all()
    more = columns.COLUMNS["crnn"](25)
    assert torch.equal(more.inputs["x"][:20], task.inputs["x"]) and torch.equal(more.target[0][:20], step)


def test_column_of_spoken_digits_annotates_the_time_of_the_digit(monkeypatch, recordings):
    time = torch.arange(speech.RATE // 4) / speech.RATE
    tones = {d: [torch.sin(2 * torch.pi * (300 + 200 * d) * time)] for d in range(10)}
    last = remembering(monkeypatch, speech, "record", speech.record)
    monkeypatch.setattr(speech, "bank", lambda folder, voices: tones)
    monkeypatch.setattr(weights, "load", lambda name, kind: torch.nn.Identity())
    monkeypatch.setattr(weights, "folder", Path)
    monkeypatch.setattr(
        weights, "logits", lambda model, inputs: torch.nn.functional.one_hot(last[0].wanted.clamp(min=0), 12).float()
    )
    task = columns.COLUMNS["speech"](20)
    place, digit = task.target
    given = task.inputs["decoder_input_ids"]
    assert torch.equal(given[torch.arange(20), place + 1], digit)
    loud = task.features.pool(task.inputs["input_features"] + 1).view(20, 4, 48).sum(1)
    annotated, blank = task.annotated.view(20, 4, 48)[:, 0], task.blank.view(20, 4, 48)[:, 0]
    assert not (annotated & blank).any() and torch.equal(annotated.flatten(1).any(1), torch.ones(20, dtype=torch.bool))
    assert ((annotated.sum(1) >= 5) & (annotated.sum(1) <= 6)).all()  # a quarter of a second, in patches of 50 ms
    for row in range(20):
        assert loud[row][annotated[row]].max() > 2 * loud[row][blank[row]].mean()
        assert blank[row].int().diff().abs().sum() == 1 and blank[row, 0]  # from the start to the first digit


def test_results_are_of_their_samples_weights_and_rules(tmp_path):
    """Other samples, weights or rules are measured anew; what did not change is kept."""

    def task(scale=1.0, shift=0.0):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        with torch.no_grad():
            model[1].weight.mul_(scale)
        x = torch.rand(4, 1, 4, 4) + shift
        return Task("t", model, {"input": x}, torch.zeros(4, dtype=torch.long), Patches(2, (0.0,), "input"))

    same, again = identity.Identity.of(task(), 1), identity.Identity.of(task(), 1)
    assert same == again
    weighed, moved = identity.Identity.of(task(scale=2.0), 1), identity.Identity.of(task(shift=0.1), 1)
    assert weighed.samples == same.samples and weighed.weights != same.weights
    assert moved.samples != same.samples and moved.weights == same.weights
    rules = tmp_path / "mine.toml"
    rules.write_text('base = "attnlrp"\n')
    results = evaluate(task(), find_methods(["random", "attnlrp", str(rules)]), ("abpc",), progress=False)
    folder = same.folder(tmp_path, "t")
    identity.save(results, same, folder)
    assert identity.latest(tmp_path, "t") == folder and identity.latest(tmp_path, "other") is None
    assert identity.load(weighed.folder(tmp_path, "t")) is None
    assert set(identity.load(folder).cost["method"]) == set(results.cost["method"])
    record = identity.read(folder)
    assert (record["samples"], record["seed"]) == (4, 1)
    record["rules"]["attnlrp"] = "older"
    (folder / "record.json").write_text(json.dumps(record))
    assert "attnlrp" not in set(identity.load(folder).cost["method"])
    assert "random" in set(identity.load(folder).values["method"])
