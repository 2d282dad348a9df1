"""The list of mutations: each changes one line of the package, and names its effect and the tests that have to kill it."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

LIST = Path(__file__).with_name("mutations.toml")
ROOT = LIST.parents[2]


class StaleError(Exception):
    """Entries of the list that no longer fit the code: each has to name one existing line and existing tests."""


@dataclass(frozen=True)
class Mutation:
    """One mutation.

    Attributes:
        name: short and unique.
        file: file of the package, relative to the repository.
        old: the line, without surrounding space.
        new: the line in its place.
        why: the effect of the mutation.
        tests: pytest node ids, one of which has to fail.
        below: a line above the right one, if ``old`` occurs more than once.
    """

    name: str
    file: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...]
    below: str = ""

    @property
    def stage(self) -> str:
        """The room of its file."""
        return Path(self.file).parts[1].removesuffix(".py")

    def applied(self, root: Path = ROOT) -> str:
        """The file's text with the new line in place of the old one.

        Raises:
            StaleError: if the old line does not occur exactly once.
        """
        lines = (root / self.file).read_text().splitlines(keepends=True)
        marks = [i for i, line in enumerate(lines) if line.strip() == self.below] if self.below else [0]
        if len(marks) != 1:
            raise StaleError(f"{self.name}: {self.file} has {self.below!r} {len(marks)} times")
        places = [i for i, line in enumerate(lines) if i >= marks[0] and line.strip() == self.old]
        if not places or (len(places) > 1 and not self.below):
            raise StaleError(f"{self.name}: {self.file} has {self.old!r} {len(places)} times")
        lines[places[0]] = lines[places[0]].replace(self.old, self.new)
        return "".join(lines)


def mutations() -> list[Mutation]:
    """All mutations."""
    entries = tomllib.loads(LIST.read_text())["mutation"]
    return [Mutation(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def check(mutations: list[Mutation], root: Path = ROOT) -> None:
    """Check that every entry has a unique name, an existing line and existing tests.

    Raises:
        StaleError: naming every entry that has not.
    """
    stale = [
        f"{name}: several entries have this name" for name, n in Counter(m.name for m in mutations).items() if n > 1
    ]
    for mutation in mutations:
        try:
            compile(mutation.applied(root), mutation.file, "exec")
        except (StaleError, OSError, SyntaxError) as error:
            stale.append(str(error) if isinstance(error, StaleError) else f"{mutation.name}: {error}")
        if mutation.old == mutation.new or not mutation.tests:
            stale.append(f"{mutation.name}: it changes nothing, or names no test")
        for test in mutation.tests:
            file, _, function = test.partition("::")
            text = (root / file).read_text() if (root / file).is_file() else ""
            if not text or not re.search(rf"^def {re.escape(function.partition('[')[0])}\b", text, re.MULTILINE):
                stale.append(f"{mutation.name}: there is no test {test}")
    if stale:
        raise StaleError("\n".join(stale))
