"""Columns of two models of chemical reactions, on reactions made from templates."""

from __future__ import annotations

from itertools import product

import pretrained
import torch
from torch import Tensor

from columns import weights
from lrp_fx.evaluate.task import Task, Tokens

# (substituent at the beginning of a SMILES, the same in brackets behind its atom)
SUBSTITUENTS = [
    ("C", "C"), ("CC", "CC"), ("CO", "OC"), ("F", "F"), ("N#C", "C#N"), ("CC(C)", "C(C)C"), ("FC(F)(F)", "C(F)(F)F"),
    ("CN(C)", "N(C)C"), ("CC(=O)", "C(C)=O"),
]  # fmt: skip
AMINES = ["C1CCNC1", "C1COCCN1", "NCc1ccccc1", "NC1CCCCC1", "CNC", "CC(C)N", "NCC1CC1"]
AMIDES = ["N1CCCC1", "N1CCOCC1", "NCc1ccccc1", "NC1CCCCC1", "N(C)C", "NC(C)C", "NCC1CC1"]
ALKYLS = ["C", "CC", "CCC", "Cc1ccccc1", "CC1CC1", "CCOC"]

# {a}, {b}: first and second form of a substituent; {x}, {y}, {z} take the lists beside a template
TEMPLATES: dict[str, tuple[str, dict[str, list[str]]]] = {
    "Suzuki coupling": ("{a}c1ccc({x})cc1.OB(O)c1ccc({d})cc1>>{a}c1ccc(-c2ccc({d})cc2)cc1", {"x": ["Br", "I", "Cl"]}),
    "amide coupling": ("{a}c1ccc(C(=O)O)cc1.{x}>>{a}c1ccc(C(=O){y})cc1", {"x": AMINES, "y": AMIDES}),
    "ester hydrolysis": ("{x}OC(=O)c1ccc({b})c({d})c1.O[Na]>>O=C(O)c1ccc({b})c({d})c1", {"x": ["C", "CC"]}),
    "Williamson ether synthesis": ("{a}c1ccc(O)cc1.Br{x}>>{a}c1ccc(O{x})cc1", {"x": ALKYLS}),
    "Boc deprotection": ("CC(C)(C)OC(=O)N{x}c1ccc({b})cc1>>N{x}c1ccc({b})cc1", {"x": ["C", "CC", "C(C)", "CCC"]}),
    "nitro reduction": ("{a}c1ccc([N+](=O)[O-])c({d})c1>>{a}c1ccc(N)c({d})c1", {}),
    "sulfonamide formation": ("{a}c1ccc(S(=O)(=O)Cl)cc1.{x}>>{a}c1ccc(S(=O)(=O){y})cc1", {"x": AMINES, "y": AMIDES}),
    "esterification": ("{a}c1ccc(C(=O)O)cc1.O{x}>>{a}c1ccc(C(=O)O{x})cc1", {"x": ALKYLS}),
    "ketone reduction": ("O=C({x})c1ccc({b})c({d})c1>>OC({x})c1ccc({b})c({d})c1", {"x": ["C", "CC", "C1CC1"]}),
}  # fmt: skip


def reactions(count: int, generator: torch.Generator) -> list[tuple[str, str]]:
    """``count`` different reactions as (name of the template, SMILES), equally many of each template as far as they go."""
    drawn = []
    for name, (template, lists) in TEMPLATES.items():
        first = range(len(SUBSTITUENTS))
        second = first if "{d}" in template else [0]
        others = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)] if "y" in lists else [{"x": x} for x in lists.get("x", [""])]  # fmt: skip
        rows = [
            (name, template.format(a=SUBSTITUENTS[i][0], b=SUBSTITUENTS[i][1], d=SUBSTITUENTS[j][1], **other))
            for i, j, other in product(first, second, others)
        ]
        order = torch.randperm(len(rows), generator=generator).tolist()
        drawn.append([rows[i] for i in order])
    each = -(-count // len(drawn))
    chosen = [row for rows in drawn for row in rows[:each]]
    order = torch.randperm(len(chosen), generator=generator).tolist()
    return [chosen[i] for i in order][:count]


def _ordinary(ids: Tensor, smiles: pretrained.Smiles) -> Tensor:
    special = torch.tensor([smiles.vocabulary[t] for t in ("[PAD]", "[CLS]", "[SEP]", "[MASK]")])
    return ~torch.isin(ids, special)


def classes() -> Task:
    """The reaction classifier on 200 reactions of nine kinds, its own guess among 50 classes."""
    model, smiles = pretrained.reaction_classifier(pretrained.find("rxnfp"))
    samples = reactions(weights.SAMPLES, torch.Generator().manual_seed(weights.SEED))
    ids, mask = smiles.batch([reaction for _, reaction in samples])
    inputs = {"input_ids": ids, "attention_mask": mask}
    target = weights.logits(model, inputs).argmax(-1)
    replacement = Tokens(smiles.vocabulary["[MASK]"])
    return Task("reactions", model, inputs, target, replacement, _ordinary(ids, smiles))


def mapper() -> Task:
    """The masked language model of rxnmapper: one atom of a product masked, and rightly predicted by it."""
    model, smiles = pretrained.atom_mapper(pretrained.find("rxnmapper"))
    generator = torch.Generator().manual_seed(weights.SEED)
    samples = reactions(3 * weights.SAMPLES // 2, generator)
    ids, mask = smiles.batch([reaction for _, reaction in samples])
    arrow = (ids == smiles.vocabulary[">>"]).cumsum(-1).bool()
    atoms = torch.tensor(smiles.ids(["C", "c", "N", "n", "O", "S", "F", "B"]))
    position = torch.multinomial((arrow & torch.isin(ids, atoms)).float(), 1, generator=generator)
    answer = ids.gather(1, position)[:, 0]
    masked = ids.scatter(1, position, smiles.vocabulary["[MASK]"])
    inputs = {"input_ids": masked, "attention_mask": mask}
    guess = weights.logits(model, inputs)[torch.arange(len(ids)), position[:, 0]].argmax(-1)
    right = (guess == answer).nonzero()[: weights.SAMPLES, 0]
    inputs = {name: value[right] for name, value in inputs.items()}
    eligible = _ordinary(masked, smiles)[right]
    return Task(
        "mapper", model, inputs, (position[right, 0], answer[right]), Tokens(smiles.vocabulary["[MASK]"]), eligible
    )
