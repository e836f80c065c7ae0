"""The house: arrows run one way, functions are short, every configuration key is read."""

import ast
import pathlib
import re
import sys

import pytest

from vbon_jax.config import defaults, flat

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(
    path
    for folder in ("vbon_jax", "experiments", "configs", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
# A room may import itself and what it names.
BELOW = {
    "types": (),
    "files": ("types",),
    "config": ("types",),
    "cli": ("config", "files", "types"),
}
BELOW["functional"] = ("types",)
BELOW["models"] = (*BELOW["functional"], "functional", "files")
BELOW["data"] = (*BELOW["functional"], "functional", "files")
BELOW["sampling"] = (*BELOW["models"], "config", "models", "data")
BELOW["training"] = (*BELOW["sampling"], "sampling")


def room(path: pathlib.Path) -> str:
    return path.relative_to(ROOT / "vbon_jax").with_suffix("").parts[0]


def imported(path: pathlib.Path) -> set[str]:
    """Dotted names of everything a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", sorted((ROOT / "vbon_jax").rglob("*.py")), ids=str)
def test_the_package_imports_one_way(path):
    names = imported(path)
    assert not [name for name in names if name.split(".")[0] in ("configs", "experiments", "tests")]
    own = room(path)
    if own not in BELOW:
        return
    seen = {name.split(".")[1] for name in names if name.startswith("vbon_jax.")} - {own}
    assert seen <= set(BELOW[own]), f"{path.name} imports {seen - set(BELOW[own])}"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=str)
def test_configs_import_nothing_of_ours_but_configs(path):
    roots = {name.split(".")[0] for name in imported(path)} - sys.stdlib_module_names
    assert roots <= {"ml_collections", "configs", "vbon_jax"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            loop = path.name == "loop.py" and node.name == "run"
            config = (
                path.parent.name == "configs" or path.name == "config.py"
            )  # a list of keys, a page of a paper
            assert config or lines <= (120 if loop else 60), f"{node.name} has {lines} lines"


def test_every_key_of_the_configuration_is_read():
    code = "".join(
        path.read_text()
        for folder in ("vbon_jax", "experiments")
        for path in sorted((ROOT / folder).rglob("*.py"))
    )
    for key in flat(defaults()):
        name = key.rsplit(".", maxsplit=1)[-1]
        assert re.search(rf"\.{name}\b|\[\"{name}\"\]|\"{name}\"", code), f"nothing reads {key}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_functions_are_documented(path):
    if {"tests", "benchmarks"} & set(path.relative_to(ROOT).parts):
        return
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
