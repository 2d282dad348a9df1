"""Training jobs: one function per model, from its data to its accuracy on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrp_fx.cli import spoken_digits
from training import images, networks, phonemes, planted, prose, questions, speech, words
from training.loop import train

Report = Callable[[int, float], None]


@dataclass(frozen=True)
class Trained:
    """A trained model and a line of the report."""

    model: nn.Module
    data: str
    steps: int
    seconds: float
    held_out: str


@dataclass(frozen=True)
class Job:
    """The training of a model: ``run(steps, report)``."""

    what: str
    steps: int
    run: Callable[[int, Report], Trained]


def learn_planted(name: str, draw: planted.Planted, steps: int, report: Report, size: int = 64) -> Trained:
    """A model of two layers for one of the planted tasks, trained on sequences of ``draw``; other sequences are held out."""
    torch.manual_seed(0)
    generator = networks.seeded()
    model = networks.planted(planted.VOCABULARY[name])
    pool = draw(40 * 1024, generator)

    def error(_: float) -> Tensor:
        rows = torch.randint(len(pool.ids), (size,), generator=generator)
        logits = model(input_ids=pool.ids[rows]).logits
        return F.cross_entropy(logits.flatten(0, 1), pool.answers[rows].flatten())

    seconds = train(model, error, steps=steps, rate=2e-3, report=report)
    test = planted.TASKS[name](1000, generator)
    with torch.no_grad():
        guess = model(input_ids=test.ids).logits.argmax(-1)
    asked = test.answers != -100
    accuracy = float((guess == test.answers)[asked].float().mean())
    return Trained(model, "drawn at random", steps, seconds, f"accuracy {accuracy:.2%}")


def learn_questions(steps: int, report: Report, size: int = 32) -> Trained:
    """The question answering model, on contexts of two to five sentences; held out are entities, with their real codes."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = networks.questions(len(questions.vocabulary()))

    def answers(data: Mapping[str, Tensor]) -> Tensor:
        length = int(data["mask"].sum(1).max())
        inputs = {"input_ids": data["ids"][:, :length], "attention_mask": data["mask"][:, :length]}
        return model(**inputs, decoder_input_ids=questions.begun(data["answer"])).logits

    def error(_: float) -> Tensor:
        data = questions.batch(size, rng, False, int(rng.integers(2, questions.SENTENCES + 1)))
        return F.cross_entropy(answers(data).flatten(0, 1), data["answer"].flatten())

    # positions need a high rate; word embeddings keep their random values, so that unseen words are as good as others
    rates = {"relative_attention_bias": 2e-2, "shared": 0.0}
    seconds = train(model, error, steps=steps, rate=1e-3, rates=rates, report=report)
    data = questions.batch(1000, rng, True)
    with torch.no_grad():
        right = (answers(data).argmax(-1) == data["answer"])[:, -1]
    what = "pycountry: codes of countries, currencies, languages; shuffled to learn from, real to test"
    return Trained(model, what, steps, seconds, f"accuracy {float(right.float().mean()):.2%} (entities never seen)")


def learn_language(
    build: Callable[[int], nn.Module], steps: int, report: Report, folder: Path, size: int = 16
) -> Trained:
    """A language model on windows of 128 tokens, some of them blanked; some documents are held out."""
    torch.manual_seed(0)
    generator = networks.seeded()
    windows, test = prose.corpus(folder, 128, 64)
    model = build(prose.WORDS)

    def error(_: float) -> Tensor:
        rows = windows[torch.randint(len(windows), (size,), generator=generator)]
        return model(input_ids=prose.blanked(rows, generator), labels=rows).loss

    seconds = train(model, error, steps=steps, rate=3e-3, decay=0.1, report=report)
    with torch.no_grad():
        logits = torch.cat([model(input_ids=rows).logits[:, :-1] for rows in test[:512].split(64)])
    wanted = test[:512, 1:]
    loss = float(F.cross_entropy(logits.flatten(0, 1), wanted.flatten()))
    accuracy = float((logits.argmax(-1) == wanted).float().mean())
    data = f"language reference and docstrings of Python, {', '.join(prose.PACKAGES)}: {windows.numel():,} tokens"
    return Trained(model, data, steps, seconds, f"loss {loss:.2f} per token, top-1 accuracy {accuracy:.2%}")


def learn_digits(build: Callable[[], nn.Module], rate: float, steps: int, report: Report, size: int = 64) -> Trained:
    """An image classifier on the digits of scikit-learn, moved about at random."""
    torch.manual_seed(0)
    generator = networks.seeded()
    pictures, labels = images.digits()
    model = build()

    def guess(batch: Tensor) -> Tensor:
        output = model(batch)
        return output if isinstance(output, Tensor) else output.logits

    def error(_: float) -> Tensor:
        rows = torch.randint(images.TRAIN, (size,), generator=generator)
        return F.cross_entropy(guess(images.shifted(pictures[rows], generator)), labels[rows], label_smoothing=0.05)

    seconds = train(model, error, steps=steps, rate=rate, report=report)
    with torch.no_grad():
        right = guess(pictures[images.TRAIN :]).argmax(-1) == labels[images.TRAIN :]
    return Trained(
        model, "scikit-learn's digits, 32 x 32", steps, seconds, f"accuracy {float(right.float().mean()):.2%}"
    )


def learn_phonemes(kind: type[nn.RNNBase], steps: int, report: Report, size: int = 128) -> Trained:
    """Letters to phonemes; held out are words, of which every phoneme has to be right when the model reads its own."""
    torch.manual_seed(0)
    batches = phonemes.batches(size, networks.seeded())
    model = phonemes.network(kind)

    def error(_: float) -> Tensor:
        spoken = next(batches)
        return F.cross_entropy(model(spoken.letters, spoken.given).flatten(0, 1), spoken.said.flatten())

    seconds = train(model, error, steps=steps, rate=4e-3, report=report)
    right = torch.cat([phonemes.right(model, spoken) for spoken in phonemes.by_length(True).values()])
    words = f"{phonemes.source()}: {len(phonemes.words()):,} words"
    return Trained(model, words, steps, seconds, f"{float(right.float().mean()):.2%} of words whole")


def learn_words(steps: int, report: Report, size: int = 32) -> Trained:
    """A text recogniser on rendered words of random letters; held out are fonts.

    The loss is CTC; early in training the cross-entropy of the letter at each step is added, which aligns steps and letters.
    """
    torch.manual_seed(0)
    generator = networks.seeded()
    draw = np.random.default_rng(0)
    pool = words.render(16_000, words.fonts(words.LEARNT), draw)
    model = networks.CRNN()

    def error(progress: float) -> Tensor:
        rows = torch.randint(len(pool.images), (size,), generator=generator)
        part = pool.part(rows)
        scores = F.log_softmax(model(part.images), -1)
        lengths = torch.full((size,), scores.shape[1])
        ctc = F.ctc_loss(scores.transpose(0, 1), part.letters, lengths, part.lengths, words.BLANK, zero_infinity=True)
        return ctc + max(0.0, 1 - 3 * progress) * F.nll_loss(scores.flatten(0, 1), part.steps().flatten())

    seconds = train(model, error, steps=steps, rate=4e-3, report=report)
    test = words.render(1000, words.fonts(words.HELD_OUT), draw)
    with torch.no_grad():
        guess, _ = words.read(model(test.images))
    right = [g == w[w != words.BLANK].tolist() for g, w in zip(guess, test.letters, strict=True)]
    data = f"random letters in {len(words.LEARNT)} fonts, 32 x {words.WIDTH}"
    held_out = f"{sum(right) / len(right):.2%} of words read rightly ({len(words.HELD_OUT)} fonts never seen)"
    return Trained(model, data, steps, seconds, held_out)


def learn_speech(steps: int, report: Report, folder: Path, size: int = 32) -> Trained:
    """A speech recogniser on spoken digits in noise; held out are voices."""
    torch.manual_seed(0)
    generator = networks.seeded()
    draw = np.random.default_rng(0)
    pool = speech.pool(8000, speech.bank(folder, speech.LEARNT), draw)
    model = networks.speech(spoken_digits.MELS, spoken_digits.FRAMES, speech.VOCABULARY)

    def error(_: float) -> Tensor:
        part = pool.part(torch.randint(len(pool.mels), (size,), generator=generator))
        logits = model(input_features=part.mels, decoder_input_ids=part.given).logits
        return F.cross_entropy(logits.flatten(0, 1), part.wanted.flatten())

    seconds = train(model, error, steps=steps, rate=2e-3, report=report)
    test = speech.record(500, speech.bank(folder, speech.HELD_OUT), draw)
    with torch.no_grad():
        guess = model(input_features=test.mels, decoder_input_ids=test.given).logits.argmax(-1)
    asked = test.wanted != -100
    accuracy = float((guess == test.wanted)[asked].float().mean())
    voices = f"{len(speech.LEARNT)} voices of espeak-ng"
    held_out = f"accuracy {accuracy:.2%} per word ({len(speech.HELD_OUT)} voices never heard)"
    return Trained(model, f"digits spoken by {voices}, in noise", steps, seconds, held_out)


def jobs(folder: Path) -> dict[str, Job]:
    """Every model by name, the slowest first; ``folder`` caches the prose."""
    language, text = networks.language, folder / "prose"
    return {
        "lm": Job("LLaMA-like language model", 1400, lambda n, r: learn_language(language, n, r, text)),
        "moe": Job("Mixtral-like language model", 1000, lambda n, r: learn_language(networks.experts, n, r, text)),
        "qa": Job("T5-like, extractive question answering", 2000, learn_questions),
        "vit": Job("ViT, digits", 1500, lambda n, r: learn_digits(networks.vision, 1e-3, n, r)),
        "recall": Job(
            "LLaMA-like, associative recall", 2500, partial(learn_planted, "recall", partial(planted.recall, fewest=1))
        ),
        "brackets": Job("LLaMA-like, bracket matching", 1500, partial(learn_planted, "brackets", planted.brackets)),
        "addition": Job("LLaMA-like, addition with carry", 5000, partial(learn_planted, "addition", planted.addition)),
        "phonemes-gru": Job("GRU encoder and decoder, letters to phonemes", 9000, partial(learn_phonemes, nn.GRU)),
        "phonemes-lstm": Job("LSTM encoder and decoder, letters to phonemes", 9000, partial(learn_phonemes, nn.LSTM)),
        "speech": Job("Whisper-like, spoken digits", 3000, lambda n, r: learn_speech(n, r, folder / "spoken")),
        "crnn": Job("CRNN (convolutions, LSTM in both directions), rendered words", 1800, learn_words),
        "cnn": Job("CNN with batch normalization, digits", 600, lambda n, r: learn_digits(networks.CNN, 4e-3, n, r)),
    }
