"""Rule sets: a rule (of ``rules.table``) for each role, with overrides by module path or operator."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from lrp_fx.errors import RuleSetError
from lrp_fx.files import read_toml, write_text
from lrp_fx.operators.table import rules_dir
from lrp_fx.rules.from_zennit import read_composite
from lrp_fx.rules.registry import REGISTERED, Backward, CustomRule
from lrp_fx.rules.table import GATES, LAYERS, ROLES, SUMS, entry, parameters

#: roles that need no rule: layers and sums then have that of "linear", gates that of "gate"; positions are constants
OPTIONAL = (*LAYERS, *SUMS, *GATES, "position")


def register_rule(name: str, *, base: str, backward: Backward) -> None:
    """Declare a custom rule; rule sets can use it wherever they can use ``base``.

    At a node with output y and cotangent g the rule replaces g by ``backward(g, y, **parameters)`` and then applies
    ``base``. The ledger books the relevance that this removes or adds under the category "rule".

    Args:
        name: its name in rule sets: ``linear = { rule = "damped", strength = 0.5 }``.
        base: an existing rule: "epsilon", "uniform", "identity", "gradient", ...
        backward: (g, y, **parameters) -> a tensor of the shape of g.

    Raises:
        RuleSetError: if there is no rule ``base``, or a built-in rule is called ``name``.
    """
    names = {rule for rules in ROLES.values() for rule in rules}
    if base not in names - {"stop"} or name in names:
        raise RuleSetError(
            f"register_rule({name!r}): choose a new name, and a base among {', '.join(sorted(names - {'stop'}))}"
        )
    REGISTERED[name] = CustomRule(base, backward)


@dataclass(frozen=True)
class Rule:
    """A rule's name with its parameters, ``Rule("epsilon", {"epsilon": 1e-6})``.

    Attributes:
        custom: name of the registered rule that extends this one, if any; the parameters are then those of that rule.
    """

    name: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    custom: str = ""

    def get(self, key: str) -> float:
        """Parameter ``key``; 0 without it. Rules of a rule set have all (:func:`lrp_fx.rules.table.parameters`)."""
        return float(self.parameters.get(key, 0.0))

    def __str__(self) -> str:
        shown = ", ".join(f"{k}={v:g}" for k, v in self.parameters.items() if v)
        name = self.custom or self.name
        return f"{name}({shown})" if shown else name


def _rule(role: str, value: Any, where: str) -> Rule:
    if role not in ROLES:
        raise RuleSetError(f"{where}: unknown role {role!r}; roles are {', '.join(ROLES)}")
    fields = dict(value) if isinstance(value, Mapping) else {"rule": value}
    name = fields.pop("rule", None)
    registered = REGISTERED.get(str(name))
    if registered is not None and registered.base in ROLES[role]:
        _check_custom(str(name), registered, fields, f"{where}: role {role!r}")
        return Rule(registered.base, fields, str(name))
    if name not in ROLES[role]:
        raise RuleSetError(
            f"{where}: role {role!r} has no rule {name!r}; choose one of {', '.join(ROLES[role])}, "
            "or declare it with lrp_fx.register_rule"
        )
    try:
        return Rule(name, parameters(entry(role, name), fields))
    except (ValueError, TypeError) as error:
        raise RuleSetError(f"{where}: role {role!r}: {error}") from error


def _check_custom(name: str, registered: CustomRule, fields: Mapping[str, Any], where: str) -> None:
    """Reject parameters that the function of a registered rule does not take, or that are no numbers."""
    try:
        inspect.signature(registered.backward).bind(None, None, **fields)
    except TypeError as error:
        raise RuleSetError(f"{where}: {name}: {error}") from error
    if other := {k: v for k, v in fields.items() if not isinstance(v, (int, float))}:
        raise RuleSetError(f"{where}: {name}: parameters are numbers, not {other}")


@dataclass(frozen=True)
class RuleSet:
    """A named mapping role -> rule, with overrides by module path or operator.

    Attributes:
        name: its name in reports.
        rules: one rule per role.
        overrides: glob of module paths, or ``"op:aten.name"``, -> role -> rule; later entries win.
        conserves: whether every role but softmax conserves relevance at its node.
    """

    name: str
    rules: Mapping[str, Rule]
    overrides: Mapping[str, Mapping[str, Rule]] = field(default_factory=dict)
    conserves: bool = False

    @classmethod
    def load(cls, source: RuleSet | str | Path | Mapping[str, Any]) -> RuleSet:
        """A rule set from its name (a file in ``rules/``), the path of a TOML file, or a dict of the same form.

        A document may start from another one: ``base = "attnlrp"``.

        Raises:
            RuleSetError: if there is no such rule set, or a role, rule or parameter in it does not exist.
        """
        if isinstance(source, RuleSet):
            return source
        if isinstance(source, Mapping):
            return cls._parse(source, "rules=")
        path = Path(source)
        if path.suffix != ".toml":
            path = rules_dir() / f"{source}.toml"
        if not path.is_file() or path.stem == "ops":
            raise RuleSetError(
                f"no rule set {str(source)!r}: give the path of a TOML file, a dict, or one of {available()}"
            )
        return cls._parse(read_toml(path), str(path))

    @classmethod
    def from_zennit(cls, composite: Any, base: str | None = None) -> RuleSet:
        """A composite of zennit as a rule set, for models of any kind.

        zennit's rules and their parameters are read from maps of module types and names. A rule for one class of
        convolution or dense layer holds for all classes; rules for the first layer hold for all layers that see the
        input. zennit's canonizers are not needed: batch normalization is folded into its layer here, too.

        Args:
            composite: a LayerMapComposite or SpecialFirstLayerMapComposite (as all composites that zennit ships), a
                NameMapComposite, NameLayerMapComposite or MixedComposite.
            base: the rule set for modules without a hook (attention, softmax, layer normalization); None for "cp_lrp",
                or for "gradient" if the composite modifies gradients.

        Raises:
            RuleSetError: naming the part without a counterpart: a hook, stabiliser or canonizer of your own, a module
                type without a role, parameters set to zero.
        """
        return cls.load(read_composite(composite, base))

    @classmethod
    def _parse(cls, document: Mapping[str, Any], where: str, base: RuleSet | None = None) -> RuleSet:
        unknown = set(document) - {"name", "base", "conserves", "rules", "overrides"}
        if unknown:
            raise RuleSetError(f"{where}: unknown keys {sorted(unknown)}")
        base = cls.load(document["base"]) if "base" in document else base
        rules = dict(base.rules) if base else {}
        rules |= {role: _rule(role, value, where) for role, value in document.get("rules", {}).items()}
        missing = [role for role in ROLES if role not in rules and role not in OPTIONAL]
        if missing:
            raise RuleSetError(
                f'{where}: no rule for role(s) {", ".join(missing)}; add them or start from base = "attnlrp"'
            )
        overrides = dict(base.overrides) if base else {}
        for pattern, table in document.get("overrides", {}).items():
            overrides[pattern] = {role: _rule(role, value, f"{where} [{pattern}]") for role, value in table.items()}
        default = base.conserves if base and "rules" not in document and not document.get("overrides") else False
        name = document.get("name", f"{base.name}+" if base else "custom")
        return cls(name, rules, overrides, bool(document.get("conserves", default)))

    def altered(
        self, rules: Mapping[str, Any], overrides: Mapping[str, Mapping[str, Any]] | None = None, name: str = ""
    ) -> RuleSet:
        """A copy with other rules for some roles and further overrides, both in the form of a document.

        Raises:
            RuleSetError: as :meth:`load`.
        """
        document = {"name": name or f"{self.name}+", "rules": rules, "overrides": overrides or {}}
        return self._parse(document, "altered", self)

    def document(self) -> dict[str, Any]:
        """The rule set as a dict for :meth:`load`."""

        def table(rules: Mapping[str, Rule]) -> dict[str, Any]:
            return {role: {"rule": rule.custom or rule.name, **rule.parameters} for role, rule in rules.items()}

        overrides = {pattern: table(rules) for pattern, rules in self.overrides.items()}
        return {"name": self.name, "conserves": self.conserves, "rules": table(self.rules), "overrides": overrides}

    def save(self, path: str | Path) -> Path:
        """Write the rule set to a TOML file, for ``convert(rules=path)``.

        Raises:
            RuleSetError: if the path does not end in .toml.
        """
        path = Path(path)
        if path.suffix != ".toml":
            raise RuleSetError(f"{str(path)!r}: the name of a rule set's file ends in .toml")
        document = self.document()
        lines = [f"name = {json.dumps(self.name)}", f"conserves = {json.dumps(self.conserves)}", ""]
        sections = {"rules": document["rules"]}
        sections |= {f"overrides.{json.dumps(pattern)}": rules for pattern, rules in document["overrides"].items()}
        for section, rules in sections.items():
            lines += [f"[{section}]", *(f"{json.dumps(role)} = {_inline(rule)}" for role, rule in rules.items()), ""]
        return write_text(path, "\n".join(lines))

    @cached_property
    def key(self) -> str:
        """A text that is equal for equal rule sets."""
        return repr(self)

    def rule(self, role: str | tuple[str, ...], path: str, op: str) -> Rule:
        """The rule for a node of ``role`` created in module ``path`` by operator ``op``.

        ``role`` may be several roles of a layer, narrowest first: the first one with a rule counts. Without any the
        rule is "stop".
        """
        roles = (role,) if isinstance(role, str) else role
        chosen = next((self.rules[r] for r in roles if r in self.rules), Rule("stop"))
        for pattern, table in self.overrides.items():
            matches = op == pattern[3:] if pattern.startswith("op:") else fnmatchcase(path, pattern)
            if matches and any(r in table for r in roles):
                chosen = next(table[r] for r in roles if r in table)
        return chosen


def _inline(rule: Mapping[str, Any]) -> str:
    """A rule as a TOML inline table; JSON and TOML write its numbers and strings alike."""
    return "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in rule.items()) + " }"


def available() -> list[str]:
    """Names of the rule sets in the package."""
    return sorted(p.stem for p in rules_dir().glob("*.toml") if p.stem != "ops")
