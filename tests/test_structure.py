"""The architecture: imports point one way, rooms and functions stay within a budget of lines."""

import ast
import collections
import io
import pathlib
import re
import subprocess
import sys
import tokenize

import pytest

from vbon_jax.config import KEYS

ROOT = pathlib.Path(__file__).parents[1]
OURS = ("vbon_jax", "experiments", "configs")
FILES = sorted(
    path for folder in (*OURS, "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")
)
PACKAGE = [path for path in FILES if path.relative_to(ROOT).parts[0] == "vbon_jax"]
PROGRAMS = sorted((ROOT / "experiments").glob("*.py"))

# A room may import itself and the rooms that it names here.
LOW = {"types", "files", "interrupts", "config", "functional"}
MIDDLE = LOW | {"models", "data", "sampling"}
BELOW = {
    "types": set(),
    "files": {"types"},
    "interrupts": set(),
    "environment": set(),
    "config": {"types"},
    "cli": {"types", "files", "interrupts", "environment", "config"},
    "functional": {"types"},
    "models": LOW,
    "data": LOW,
    "sampling": LOW | {"models", "data"},
    "training": MIDDLE,
    "evaluation": MIDDLE,
    "workdir": LOW | {"evaluation", "sampling"},
    "study": MIDDLE | {"training", "evaluation", "workdir"},
    "report": MIDDLE | {"evaluation", "workdir"},
    "exact": MIDDLE | {"training", "evaluation", "workdir", "study", "report"},
}
LINES = {  # of Python in each room: a budget is raised on purpose, never by the way
    "types": 85,
    "files": 505,
    "interrupts": 100,
    "environment": 30,
    "config": 583,
    "cli": 277,
    "functional": 1205,
    "models": 3245,
    "data": 2294,
    "sampling": 1686,
    "training": 2219,
    "evaluation": 1685,
    "workdir": 460,
    "study": 1758,
    "report": 1560,
    "exact": 1190,
    "experiments": 564,
    "configs": 482,
    "tests": 17_700,
}


def room(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "vbon_jax" else parts[0]


def imported(path: pathlib.Path) -> set[str]:
    """Dotted names of everything that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def functions(path: pathlib.Path) -> list[ast.FunctionDef]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def length(node: ast.FunctionDef) -> int:
    return node.end_lineno - node.lineno + 1


def relative(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


# ------------------------------------------------------------------------------- imports


@pytest.mark.parametrize("path", PACKAGE, ids=relative)
def test_imports_point_one_way(path):
    names = imported(path)
    assert not [name for name in names if name.split(".")[0] in ("configs", "experiments", "tests")]
    own = room(path)
    if own == "__init__":
        return
    rooms = {name.split(".")[1] for name in names if name.startswith("vbon_jax.")}
    assert rooms <= BELOW[own] | {own}


def test_no_two_modules_share_a_name():
    names = collections.Counter(path.stem for path in PACKAGE if path.stem != "__init__")
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("path", PROGRAMS, ids=relative)
def test_a_program_is_flags_and_a_main(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 80
    if path.stem == "__init__":
        return
    assert not [name for name in imported(path) if name.split(".")[0] == "experiments"]
    assert f"python -m experiments.{path.stem}" in ast.get_docstring(ast.parse("\n".join(lines)))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=relative)
def test_recipes_import_the_table_of_keys_alone(path):
    names = {name for name in imported(path) if name.split(".")[0] not in sys.stdlib_module_names}
    allowed = r"ml_collections\..*|configs\..*|vbon_jax\.config\..*|vbon_jax\.exact\..*"
    assert [name for name in names if not re.fullmatch(allowed, name)] == []


def test_the_report_loads_no_trainer():
    code = (
        "import sys; import vbon_jax.report.outputs, vbon_jax.workdir.contests; "
        "print([name for name in sys.modules if name.startswith(('vbon_jax.training', "
        "'vbon_jax.study', 'flax', 'optax', 'orbax', 'torch'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------- sizes


def count(path: pathlib.Path) -> tuple[int, int, int]:
    """Lines of a file: all of them, those of code proper, those of docstrings."""
    text = path.read_text()
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    used: set[int] = set()
    idle = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in idle | {tokenize.ENDMARKER}:
            used |= set(range(token.start[0], token.end[0] + 1))
    return text.count("\n"), len(used - documented), len(documented)


def test_rooms_keep_to_their_budget_of_lines():
    lines = collections.Counter()
    for path in FILES:
        lines[room(path)] += path.read_text().count("\n")
    over = {name: (lines[name], most) for name, most in LINES.items() if lines[name] > most}
    assert over == {}
    own = [path for path in FILES if path.relative_to(ROOT).parts[0] in OURS]
    whole, code, documented = map(sum, zip(*map(count, own), strict=True))
    assert whole <= 19_911
    assert code <= 13_409
    assert documented >= 2_200


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_functions_are_short(path):
    for node in functions(path):
        loop = path.name == "loop.py" and node.name == "_train"
        recipe = path.parent.name == "configs"  # a page of a paper
        assert recipe or length(node) <= (120 if loop else 60), node.name


def test_few_functions_are_long():
    own = [path for path in FILES if path.relative_to(ROOT).parts[0] in ("vbon_jax", "experiments")]
    long = [f"{relative(path)}:{node.name}" for path in own for node in functions(path)
            if length(node) > 45]  # fmt: skip
    assert len(long) <= 10, long


@pytest.mark.parametrize("path", PACKAGE + PROGRAMS, ids=relative)
def test_functions_take_few_parameters(path):
    if room(path) == "functional" or path.parts[-2] == "models":  # mathematics
        return
    for node in functions(path):
        given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        names = [argument.arg for argument in given if argument.arg not in ("self", "cls")]
        assert len(names) <= 8, f"{node.name} has {len(names)}"


# ------------------------------------------------------------------------------- what is written


def test_every_key_of_the_configuration_is_read():
    code = "".join(
        path.read_text()
        for folder in ("vbon_jax", "experiments")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name != "config.py"
    )
    for key in (key.name for key in KEYS):
        name = key.rsplit(".", maxsplit=1)[-1]
        assert re.search(rf"\.{name}\b|[\"'][\w.]*\b{name}[\"']", code), f"nothing reads {key}"


TEXT = ("open", "read_text", "write_text", "fdopen", "TextIOWrapper", "NamedTemporaryFile")


@pytest.mark.parametrize(
    "path",
    [ROOT / "setup.py"]
    + [path for path in FILES if path.relative_to(ROOT).parts[0] in (*OURS, "benchmarks")],
    ids=relative,
)
def test_text_is_utf8_whatever_the_locale(path):
    """Every text file that is opened, read or written names its encoding."""
    for node in ast.walk(ast.parse(path.read_text())):
        called = getattr(node, "func", None)
        name = getattr(called, "attr", getattr(called, "id", None))
        owner = getattr(getattr(called, "value", None), "id", "")
        if name not in TEXT or owner in ("os", "files") or ast.unparse(called) == "write_text":
            continue
        given = [*node.args, *(word.value for word in node.keywords)]
        words = " ".join(ast.unparse(value) for value in given)
        assert re.search(r"utf-8|'[rwax]?b[+]?'|'a[+]b'", words), f"line {node.lineno}"


# Whatever else writes: its rows, its answers or its text as they come, and folders of models.
WRITERS = {"files", "logs", "answer_log", "generation", "safe_files", "style"}
WRITING = re.compile(
    r"write_text\(|write_bytes\(|write_table\(|os\.replace|\.mkdir\(|mkstemp|mkdtemp|"
    r"open\([^)]*[\"'][wax]b?[+]?[\"']"
)


@pytest.mark.parametrize("path", PACKAGE + PROGRAMS, ids=relative)
def test_files_are_written_in_one_place(path):
    """Whole or not at all, by a temporary name, and refused in one line: `vbon_jax/files.py`."""
    if path.stem not in WRITERS:
        lines = path.read_text().splitlines()
        found = [line for line in lines if WRITING.search(line) and "files.write_" not in line]
        assert found == []


@pytest.mark.parametrize("path", PACKAGE + PROGRAMS, ids=relative)
def test_public_functions_are_documented(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


NAMED = re.compile(
    r"`((?:vbon_jax|experiments|configs|tests|benchmarks|docs)/[\w./]+?)(?::(\w+))?`"
)


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))],
                         ids=relative)  # fmt: skip
def test_documents_name_files_and_functions_that_exist(path):
    for name, function in NAMED.findall(path.read_text()):
        place = ROOT / name
        assert place.exists(), f"{name} does not exist"
        if function and not name.startswith("configs/"):  # there it is a recipe's argument
            defined = ast.walk(ast.parse(place.read_text()))
            named = {getattr(node, "name", None) for node in defined}
            named |= {
                target.id
                for node in ast.parse(place.read_text()).body
                if isinstance(node, ast.Assign | ast.AnnAssign)
                for target in ([node.target] if isinstance(node, ast.AnnAssign) else node.targets)
                if isinstance(target, ast.Name)
            }
            assert function in named, f"{name} has no {function}"
