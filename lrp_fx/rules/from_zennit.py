"""Composites of zennit as rule sets: their rules for layers and activations are read, everything else is an error.

zennit attaches hooks to modules by type or name; here, rules belong to roles. A type becomes the role of its modules, a
name becomes an override. Modules without a hook, which zennit leaves to autograd, get the rule of a base rule set.
"""

from __future__ import annotations

import glob
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lrp_fx.errors import RuleSetError
from lrp_fx.rules.table import ROLES

Table = dict[str, Any]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_SMOOTH = (nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.Softplus, nn.LeakyReLU, nn.ReLU6)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

#: kind -> (its module types, roles of their nodes)
KINDS: Mapping[str, tuple[tuple[type[nn.Module], ...], tuple[str, ...]]] = {
    "convolution": (_CONVOLUTIONS, ("convolution",)),
    "dense": ((nn.Linear,), ("dense", "attention-projection")),
    "pool": (_POOLS, ("linear",)),
    "activation": (_SMOOTH, ("nonlinearity",)),
    "relu": ((nn.ReLU,), ("op:aten.relu",)),
    "normalization": (_NORMS, ("normalization",)),
}


def _closed(function: Any, name: str) -> Any:
    return inspect.getclosurevars(function).nonlocals[name]


def _number(value: Any, what: str) -> float:
    tensor = torch.as_tensor(value)
    if not bool((tensor == tensor.flatten()[0]).all()):
        raise RuleSetError(f"{what} differs from entry to entry; rules of lrp_fx take one number")
    return float(tensor.flatten()[0])


def _stabiliser(hook: Any) -> float:
    fn = _closed(hook.gradient_mapper, "stabilizer_fn")
    if type(fn).__name__ != "Stabilizer" or fn.clip or fn.norm_scale:
        raise RuleSetError("a stabiliser other than a number to add has no counterpart")
    return float(fn.epsilon)


def _stabilised(name: str, **parameters: Callable[[Any], float]) -> Callable[[Any], Table]:
    return lambda hook: {"rule": name, **{k: get(hook) for k, get in parameters.items()}, "epsilon": _stabiliser(hook)}


#: class of a hook -> (hook -> its rule in a rule set's notation)
_READ: Mapping[str, Callable[[Any], Table]] = {
    "Epsilon": _stabilised("epsilon"),
    "Norm": _stabilised("epsilon"),
    "Gamma": _stabilised("generalised-gamma", gamma=lambda h: float(_closed(h.param_modifiers[0].modifier, "gamma"))),
    "ZPlus": _stabilised("z-plus"),
    "AlphaBeta": _stabilised(
        "alpha-beta", alpha=lambda h: float(_closed(h.reducer, "alpha")),
        beta=lambda h: float(_closed(h.reducer, "beta")),
    ),
    "ZBox": _stabilised(
        "z-box", low=lambda h: _number(_closed(h.input_modifiers[1], "low"), "low"),
        high=lambda h: _number(_closed(h.input_modifiers[2], "high"), "high"),
    ),
    "WSquare": _stabilised("w-square"),
    "Flat": _stabilised("flat"),
    "Pass": lambda hook: {"rule": "identity"},
    "ReLUGuidedBackprop": lambda hook: {"rule": "guided-backprop"},
    "ReLUDeconvNet": lambda hook: {"rule": "deconvnet"},
}  # fmt: skip
_GRADIENTS = {"guided-backprop", "deconvnet"}  #: rules of composites that leave all other modules to the gradient


def read_composite(composite: Any, base: str | None = None) -> dict[str, Any]:
    """A composite as the document of a rule set (:meth:`lrp_fx.RuleSet.from_zennit`)."""
    foreign = [c for c in composite.canonizers if not type(c).__module__.startswith("zennit.")]
    if foreign:
        raise RuleSetError(
            f"{type(foreign[0]).__name__} is a canonizer of your own and cannot be read. Remedy: apply it to the model "
            "before convert()."
        )
    rules: Table = {}
    overrides: dict[str, Table] = {}
    seen_layers = False
    for part in _parts(composite):
        if hasattr(part, "name_map"):
            if seen_layers:
                raise RuleSetError("names behind module types in a MixedComposite: put the NameMapComposite first")
            for names, hook in part.name_map:
                overrides |= {glob.escape(n): _of_module(hook, n) for n in names if glob.escape(n) not in overrides}
            continue
        seen_layers = True
        by_role, by_operator = _of_layers(part)
        rules = by_role | rules
        overrides = by_operator | overrides
    gradients = any(rule.get("rule") in _GRADIENTS for table in (rules, *overrides.values()) for rule in table.values())
    chosen = base or ("gradient" if gradients else "cp_lrp")
    return {"name": type(composite).__name__, "base": chosen, "rules": rules, "overrides": overrides}


def _parts(composite: Any) -> Iterator[Any]:
    """The name maps and type maps inside a composite, in zennit's order of precedence."""
    if hasattr(composite, "composites"):
        for part in composite.composites:
            yield from _parts(part)
    elif hasattr(composite, "layer_map") or hasattr(composite, "name_map"):
        yield composite
    else:
        raise RuleSetError(
            f"{type(composite).__name__} maps modules by a function of its own, which cannot be read. Remedy: use a "
            "LayerMapComposite, SpecialFirstLayerMapComposite, NameMapComposite or MixedComposite."
        )


def _rule(hook: Any, where: str) -> Table:
    kind = type(hook)
    if not kind.__module__.startswith("zennit.") or kind.__name__ not in _READ:
        raise RuleSetError(
            f"{where}: the hook {kind.__name__} has no counterpart; hooks with one: {', '.join(_READ)}. Remedy: "
            "declare a rule of your own with lrp_fx.register_rule."
        )
    modifiers = getattr(hook, "param_modifiers", None) or ()
    if modifiers and not hasattr(modifiers[0], "zero_params"):
        raise RuleSetError(
            f"{where}: {kind.__name__}: rules of zennit before 0.5 do not keep their parameters. Remedy: give the rule "
            "set as a table (rules={...}), or read the composite with zennit 0.5."
        )
    zeroed = modifiers[0].zero_params if modifiers else None
    if zeroed and kind.__name__ != "Flat":
        raise RuleSetError(
            f"{where}: zero_params={zeroed} of {kind.__name__} has no counterpart: biases always get their share"
        )
    try:
        return _READ[kind.__name__](hook)
    except RuleSetError as error:
        raise RuleSetError(f"{where}: {kind.__name__}: {error}") from error
    except (KeyError, AttributeError, TypeError) as error:
        raise RuleSetError(f"{where}: {kind.__name__} of this version of zennit cannot be read ({error})") from error


def _of_module(hook: Any, name: str) -> Table:
    rule = _rule(hook, f"name {name!r}")
    table = {role: rule for role, rules in ROLES.items() if rule["rule"] in rules}
    if not table:
        raise RuleSetError(f"name {name!r}: no role has the rule {rule['rule']!r}")
    return table


def _of_layers(composite: Any) -> tuple[Table, dict[str, Table]]:
    """(rules by role, overrides by operator) of a composite that maps module types."""
    by_kind = _by_kind(composite.layer_map)
    if by_kind.get("relu") == by_kind.get("activation"):
        by_kind.pop("relu", None)
    rules: Table = {}
    overrides: dict[str, Table] = {}
    for kind, rule in by_kind.items():
        for role in KINDS[kind][1]:
            if role.startswith("op:"):
                overrides[role] = {"nonlinearity": rule}
            else:
                rules[role] = _fitting(role, rule)
    first = _by_kind(getattr(composite, "first_map", []))
    narrow = ("patch-embedding", "first-convolution")
    if "dense" in first:
        rules["first-layer"] = first["dense"]
    if "convolution" in first or "dense" in first:
        rule = first.get("convolution", by_kind.get("convolution"))
        rules |= {} if rule is None else dict.fromkeys(narrow, rule)
    return rules, overrides


def _by_kind(layer_map: Sequence[tuple[Any, Any]]) -> Table:
    """The rule of each kind of module in a map; the first match counts, as in zennit."""
    by_kind: Table = {}
    for types, hook in layer_map:
        kinds = [k for k, (stand_ins, _) in KINDS.items() if any(issubclass(module, types) for module in stand_ins)]
        if getattr(types, "__module__", "") == "zennit.layer":  # its module for sums
            rule = _rule(hook, "sum")
            if by_kind.setdefault("pool", rule) != rule:
                raise RuleSetError("sums and average pooling share one rule here; the composite has two")
        elif not kinds:
            names = getattr(types, "__name__", None) or ", ".join(getattr(t, "__name__", str(t)) for t in types)
            raise RuleSetError(f"modules of the type {names} have no role with a rule to choose")
        by_kind |= {kind: _rule(hook, kind) for kind in kinds if kind not in by_kind}
    return by_kind


def _fitting(role: str, rule: Table) -> Table:
    if rule["rule"] not in ROLES[role]:
        raise RuleSetError(f"{role} has no rule {rule['rule']!r}; it has {', '.join(ROLES[role])}")
    return rule
