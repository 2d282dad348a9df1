"""The rooms of the package: each imports only what stands below it, without circles, and no file is too long to read."""

import ast
import functools
from pathlib import Path

import networkx
import pytest

import lrp_fx

PACKAGE = Path(lrp_fx.__file__).parent
FILES = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in sorted(PACKAGE.rglob("*.py"))}
#: from the ground up, as the package's own docstring has them
ORDER = [
    room.strip() for part in lrp_fx.__doc__.partition("errors,")[1:] for room in part.replace("->", ",").split(",")
]
ORDER = [room for room in ORDER if room]
FORBIDDEN = {"utils", "util", "helpers", "helper", "common", "misc"}


@functools.cache
def tree(name):
    return ast.parse(FILES[name].read_text())


def modules(node):
    """Modules of the package that an import statement reads, and where it names a submodule, that one."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "lrp_fx":
        base = node.module.partition(".")[2]
        for alias in node.names:
            longer = f"{base}.{alias.name}".strip(".")
            yield longer if longer in FILES or f"{longer}.__init__" in FILES else base
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.partition(".")[0] == "lrp_fx":
                yield alias.name.partition(".")[2]


def imported(name):
    return {m for node in ast.walk(tree(name)) for m in modules(node)}


def room(name):
    return name.partition(".")[0]


def test_a_room_imports_only_what_stands_below_it():
    wrong = {}
    for name in FILES.keys() - {"__init__"}:
        below = ORDER[: ORDER.index(room(name))]
        wrong[name] = {m for m in imported(name) if m and room(m) != room(name) and room(m) not in below}
    assert not {name: found for name, found in wrong.items() if found}


def test_modules_import_each_other_without_circles():
    graph = networkx.DiGraph()
    for name in FILES:
        for module in imported(name):
            graph.add_edge(name.removesuffix(".__init__"), module)
    packages = {name.removesuffix(".__init__") for name in FILES if name.endswith("__init__")}
    inside = [c for c in networkx.strongly_connected_components(graph) if len(c) > 1]
    # a package's face imports its modules, which may ask it for another module of theirs
    assert not [c for c in inside if len(c - packages) > 1]


def test_no_import_hides_in_a_function_or_under_a_condition():
    hidden = [
        f"{name}: {ast.unparse(inner)}"
        for name in FILES
        for node in tree(name).body
        if not isinstance(node, (ast.Import, ast.ImportFrom))
        for inner in ast.walk(node)
        if list(modules(inner))
    ]
    assert not hidden


def test_files_are_short_and_named_for_what_they_hold():
    long = {name: n for name, path in FILES.items() if (n := len(path.read_text().splitlines())) > 400}
    assert not long
    assert not [name for name in FILES if FORBIDDEN & set(name.split("."))]
    for name in [n for n in FILES if n.endswith("__init__")]:
        logic = [n for n in tree(name).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        assert sum(n.end_lineno - n.lineno + 1 for n in logic) <= 40, name


@pytest.mark.slow
def test_importing_the_package_loads_no_evaluation_concepts_or_tuning(in_two_processes):
    printed = in_two_processes("import lrp_fx, sys\nprint(sorted(sys.modules))")
    assert not [room for room in ("evaluate", "concepts", "tuning", "cli") if f"'lrp_fx.{room}" in printed[0]]
    optional = ("matplotlib", "pandas", "jinja2", "safetensors", "PIL")
    assert not [package for package in optional if f"'{package}'" in printed[0]]
