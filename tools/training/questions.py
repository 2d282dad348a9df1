"""Extractive question answering over the tables of pycountry, set in prose.

A context has a few sentences about countries, currencies and languages; a question asks for one code, which is one token
of one sentence. In training the codes are shuffled, so that a model has to read them. It is tested on unseen entities with
their real codes. The answer repeats relation and entity, and ends with the code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pycountry
import torch
from torch import Tensor

PAD, END = 0, 1
LENGTH = 72
SENTENCES = 5
RELATIONS = {"alpha-2 code": "alpha_2", "alpha-3 code": "alpha_3", "numeric code": "numeric"}
STATEMENTS = [
    "The {relation} of {entity} is {value} .",
    "As its {relation} , {entity} has {value} .",
    "As the {relation} , {entity} uses {value} .",
    "Among all {relation} entries , {entity} got {value} .",
]
ANSWER = "{relation} of {entity}"  # and then the value
QUESTIONS = ["What is the {relation} of {entity} ?", "Which {relation} has {entity} ?"]


@dataclass(frozen=True)
class Entity:
    """A row of a table: its name, split into words, and its codes by relation."""

    table: str
    name: str
    codes: dict[str, str]


@dataclass(frozen=True)
class Table:
    """Entities to ask about, the held-out ones apart, and all values that a relation takes."""

    train: list[Entity]
    held_out: list[Entity]
    values: dict[str, list[str]]


def split(text: str) -> list[str]:
    """Words; punctuation stands alone."""
    return re.findall(r"[\w'’-]+|[^\w\s]", text)


def _prose() -> set[str]:
    return {w for text in [*STATEMENTS, *QUESTIONS, *RELATIONS, ANSWER] for w in re.sub(r"\{\w+\}", "", text).split()}


@cache
def tables() -> dict[str, Table]:
    """Countries, currencies, and the languages that have a code of two letters; every fifth entity is held out."""
    rows = {
        "country": list(pycountry.countries),
        "currency": list(pycountry.currencies),
        "language": [x for x in pycountry.languages if hasattr(x, "alpha_2")],
    }
    built, prose, taken = {}, _prose(), set[str]()
    for table, entries in rows.items():
        entities = []
        for entry in sorted(entries, key=lambda x: x.name):
            codes = {r: getattr(entry, field, "") for r, field in RELATIONS.items()}
            codes = {r: code for r, code in codes.items() if code and code not in prose}  # "is" is a language
            name = getattr(entry, "common_name", entry.name)
            if len(split(name)) == 1 and len(codes) > 1 and name not in taken:  # a name is one token
                taken.add(name)
                entities.append(Entity(table, name, codes))
        relations = {r for e in entities for r in e.codes}
        values = {r: sorted({e.codes[r] for e in entities if r in e.codes}) for r in sorted(relations)}
        held_out = entities[::5]
        built[table] = Table([e for e in entities if e not in held_out], held_out, values)
    return built


@cache
def vocabulary() -> dict[str, int]:
    """Every word of the templates, names and codes: its id."""
    words = _prose()
    for table in tables().values():
        words |= {w for e in table.train + table.held_out for w in e.name.split()}
        words |= {v for values in table.values.values() for v in values}
    return {w: i for i, w in enumerate(["<pad>", "</s>", *sorted(words)])}


def _fact(entity: Entity, relation: str, values: dict[str, str], rng: np.random.Generator) -> tuple[list[str], int]:
    """(words of a sentence that states a fact, position of the value)."""
    template = _one(STATEMENTS, rng)
    words: list[str] = []
    where = -1
    for part in template.split():
        if part == "{value}":
            where = len(words)
        words += part.format(relation=relation, entity=entity.name, value=values[relation]).split()
    return words, where


def _one(items: Sequence[str], rng: np.random.Generator) -> str:
    return items[rng.integers(len(items))]


def _codes(entity: Entity, real: bool, rng: np.random.Generator) -> dict[str, str]:
    if real:
        return entity.codes
    values = tables()[entity.table].values
    return {r: _one(values[r], rng) for r in entity.codes}


def sample(
    rng: np.random.Generator, real: bool, sentences: int = SENTENCES, same: float = 0.5
) -> tuple[list[str], list[str], int]:
    """(words of question and context, words of the answer, which ends with the value, position of the value).

    The other sentences are about other entities, most of them with the same kind of code; with probability ``same`` one
    of them is about the same entity with another code.
    """
    table = list(tables().values())[rng.integers(len(tables()))]
    pool = table.held_out if real else table.train
    while True:
        entities = [pool[i] for i in rng.choice(len(pool), sentences, replace=False)]
        codes = [_codes(e, real, rng) for e in entities]
        subject = entities[0]
        relation = _one(list(subject.codes), rng)
        facts = [(0, relation)]
        for i, entity in enumerate(entities[1:], 1):
            shared = relation in entity.codes and rng.random() < 0.7
            facts.append((i, relation if shared else _one(list(entity.codes), rng)))
        if sentences > 1 and rng.random() < same:
            facts[-1] = (0, _one([r for r in subject.codes if r != relation], rng))
        if len({codes[i][r] for i, r in facts}) == len(facts):
            break
    question = _one(QUESTIONS, rng).format(relation=relation, entity=subject.name).split()
    words, position = question, -1
    for index in rng.permutation(len(facts)):
        which, asked = facts[index]
        sentence, where = _fact(entities[which], asked, codes[which], rng)
        if index == 0:
            position = len(words) + where
        words = words + sentence
    answer = ANSWER.format(relation=relation, entity=subject.name).split()
    return words, [*answer, codes[0][relation]], position


def batch(
    count: int, rng: np.random.Generator, real: bool, sentences: int = SENTENCES, same: float = 0.5
) -> dict[str, Tensor]:
    """``count`` samples: ids (N, S), mask (N, S), answer (N, T), which ends with the value, position of the value (N,)."""
    index = vocabulary()
    ids, mask = torch.full((count, LENGTH), PAD), torch.zeros(count, LENGTH, dtype=torch.long)
    answers, positions = [], []
    for row in range(count):
        words, answer, position = sample(rng, real, sentences, same)
        encoded = [*(index[w] for w in words), END]
        ids[row, : len(encoded)] = torch.tensor(encoded)
        mask[row, : len(encoded)] = 1
        answers.append([index[w] for w in answer])
        positions.append(position)
    return {"ids": ids, "mask": mask, "answer": torch.tensor(answers), "position": torch.tensor(positions)}


def begun(answer: Tensor) -> Tensor:
    """(N, T) answers -> (N, T) inputs of the decoder: a start token, then the answer without the value."""
    return torch.nn.functional.pad(answer[:, :-1], (1, 0), value=PAD)
