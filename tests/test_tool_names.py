"""Tools use names that exist: long ones are seldom run, and a name that moved would be missed for weeks."""

import ast
import importlib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = (ROOT / "tools", ROOT / "tools/zoology", ROOT / "tests", ROOT / "tests/capture", ROOT)
FILES = sorted((ROOT / "tools").rglob("*.py"))


def module_file(name, beside):
    """The file of a module of this repository, in the folder of the file that imports it or in a place of the path."""
    path = Path(*name.split("."))
    files = [
        file for place in (beside, *PLACES) for file in (place / path.with_suffix(".py"), place / path / "__init__.py")
    ]
    return next((file for file in files if file.is_file()), None)


@cache
def defined(file):
    """Names at the top of a module, wherever they are assigned, and its submodules."""
    tree = ast.parse(file.read_text())
    names = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names |= {(alias.asname or alias.name).split(".")[0] for node in imports for alias in node.names}
    return names | ({path.stem for path in file.parent.iterdir()} if file.name == "__init__.py" else set())


def has(name, attribute, beside):
    """Whether a module has a name; True for modules that are not of this repository."""
    if name.partition(".")[0] == "lrp_fx":
        module = importlib.import_module(name)
        return hasattr(module, attribute) or module_file(f"{name}.{attribute}", ROOT) is not None
    file = module_file(name, beside)
    folder = next((place / Path(*name.split(".")) for place in (beside, *PLACES) if (place / name).is_dir()), None)
    if file is None and folder is not None:  # a folder without an __init__
        return any(path.stem == attribute for path in folder.iterdir())
    return file is None or attribute in defined(file)


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(ROOT)) for file in FILES])
def test_names_that_a_tool_uses_exist(file):
    tree = ast.parse(file.read_text())
    modules, missing = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names if "." not in alias.name}
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            missing += [f"{node.module}.{a.name}" for a in node.names if not has(node.module, a.name, file.parent)]
            inner = {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            modules |= {alias: name for alias, name in inner.items() if module_file(name, file.parent)}
    stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    stored |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id not in stored:
            name = modules.get(node.value.id)
            if name is not None and not has(name, node.attr, file.parent):
                missing.append(f"{name}.{node.attr} (line {node.lineno})")
    assert not missing
