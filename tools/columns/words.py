"""Columns of rendered and of spoken words: the place of the letter, or the time of the word, is known."""

from __future__ import annotations

import numpy as np
import torch
import transformers
from torch import Tensor
from training import networks, speech
from training import words as rendered

from columns import weights
from lrp_fx.cli import spoken_digits
from lrp_fx.evaluate.task import Patches, Task

PIXELS = (4, 2)  #: height and width of a patch of a rendered word
MELS_FRAMES = (10, 4)  #: of a spectrogram


def _between(begin: Tensor, end: Tensor, patch: int, count: int) -> Tensor:
    """(N, count) bool: patches along an axis that overlap with ``begin`` to ``end`` (exclusive)."""
    first = torch.arange(count) * patch
    return (first + patch > begin[:, None]) & (first < end[:, None])


def crnn(samples: int = weights.SAMPLES) -> Task:
    """CRNN on rendered words in held-out fonts that it reads correctly: the logit of one letter at its step.

    Patches are 4 pixels high and 2 wide, removed by white paper. The columns of the letter's ink are annotated; paper
    without ink is blank.
    """
    model = networks.CRNN()
    model.load_state_dict(weights.state("crnn"))
    model.eval()
    draw = np.random.default_rng(weights.SEED)
    files = rendered.fonts(rendered.HELD_OUT)
    chosen, steps, places = [], [], []
    while len(steps) < samples:
        drawn = rendered.render(weights.SAMPLES, files, draw)
        guessed, at = rendered.read(weights.logits(model, {"x": drawn.images}))
        for row, (letters, position) in enumerate(zip(guessed, at, strict=True)):
            place = int(draw.integers(int(drawn.lengths[row])))
            if letters == drawn.letters[row, : len(letters)].tolist() and len(letters) == int(drawn.lengths[row]):
                chosen.append(drawn.part(torch.tensor([row])))
                steps.append(position[place])
                places.append(place)
    word = rendered.join(chosen[:samples])
    place = torch.tensor(places[:samples])[:, None]
    begin, end, letter = (label.gather(1, place)[:, 0] for label in (word.begin, word.end, word.letters))
    rows, across = rendered.HEIGHT // PIXELS[0], rendered.WIDTH // PIXELS[1]
    annotated = _between(begin, end, PIXELS[1], across)[:, None].expand(-1, rows, -1)
    patches = Patches(PIXELS, (rendered.PAPER,))
    blank = patches.pool(word.ink.float()) == 0
    target = (torch.tensor(steps[:samples]), letter)
    return Task("crnn", model, {"x": word.images}, target, patches, annotated=annotated.flatten(1), blank=blank)


def spoken(samples: int = weights.SAMPLES) -> Task:
    """Whisper-like recogniser on spoken digits of held-out voices that it recognises correctly: the logit of one digit.

    The decoder reads all digits, and each logit depends on the digits before it. Patches of the log-mel are 10 bands by
    4 frames (50 ms), removed by silence. The time of the digit is annotated; silence before the first digit is blank.
    """
    model = weights.load("speech", transformers.WhisperForConditionalGeneration)
    draw = np.random.default_rng(weights.SEED)
    voices = speech.bank(weights.folder("spoken"), speech.HELD_OUT)
    batches, places, total = [], [], 0
    while total < samples:
        drawn = speech.record(weights.SAMPLES, voices, draw)
        place = torch.from_numpy(draw.integers(0, (drawn.digits != speech.END).sum(1).numpy()))
        inputs = {"input_features": drawn.mels, "decoder_input_ids": drawn.given}
        guess = weights.logits(model, inputs).argmax(-1)
        right = ((guess == drawn.wanted) | (drawn.wanted == -100)).all(1).nonzero()[:, 0]
        batches.append(drawn.part(right))
        places.append(place[right])
        total += len(right)
    said, place = speech.join(batches).part(torch.arange(samples)), torch.cat(places)[:samples, None]
    begin, end, digit = (label.gather(1, place)[:, 0] for label in (said.begin, said.end, said.digits))
    rows, across = spoken_digits.MELS // MELS_FRAMES[0], spoken_digits.FRAMES // MELS_FRAMES[1]
    annotated = _between(begin, end, MELS_FRAMES[1], across)
    before = ~_between(said.begin[:, 0], torch.full((samples,), spoken_digits.FRAMES), MELS_FRAMES[1], across)
    labels = (label[:, None].expand(-1, rows, -1).flatten(1) for label in (annotated, before))
    inputs = {"input_features": said.mels, "decoder_input_ids": said.given}
    patches = Patches(MELS_FRAMES, (-1.0,), "input_features")
    return Task("speech", model, inputs, (place[:, 0], digit), patches, None, *labels)
