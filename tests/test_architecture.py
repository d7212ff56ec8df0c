"""The shape of the house: short files, short functions, and dependencies that point one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "slt_jax"

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40
MAX_PATH_LINES = 1000  # of code: docstrings, comments and blank lines are free

# A module imports only from layers above its own in this list, or from within its own package.
LAYERS = (
    ("_types", "persistence", "placement"),
    ("_tree", "storage"),  # what keeps runs knows arrays by name, and nothing of what made them
    ("_apart", "selection", "redefinition"),
    ("restriction", "dataset", "minibatch", "noise", "statistics"),
    ("posterior", "data", "grouping", "flops"),
    ("centers",),
    ("kernels", "observables", "inputs", "survey", "fingerprint"),
    ("carry",),
    ("run",),
    ("identity",),
    ("recording", "examples"),
    ("chunk", "start", "validation", "progress"),
    ("preparation",),
    ("sampling",),
    ("estimators", "analysis"),
    ("saving", "devinterp"),
    ("testing",),
    ("models",),  # so nothing that samples or estimates knows a model
    ("__init__",),
    ("quickstart",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}

# Nothing that samples or estimates knows where runs are kept: they are handed a store.
KNOW_STORAGE = ("storage", "saving", "devinterp", "__init__", "cli", "quickstart")

# What a kernel is told about the machine: nothing.
PURE = ("kernels", "posterior", "restriction")
IMPURE_IMPORTS = ("jax.sharding", "jax.experimental.mesh_utils", "numpy.random", "random")
IMPURE_CALLS = ("print", "open", "input")

PATH_OF_THE_LLC = (
    "estimators/llc.py",
    "sampling.py",
    "kernels/sgld.py",
    "posterior.py",
    "restriction.py",
)


DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def source_files(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path):
    return str(path.relative_to(ROOT))


def module_of(path):
    """The part of the package that a file belongs to: ``kernels`` for ``kernels/sgld.py``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def running_code(node):
    """Every node that is executed: all but what only a type checker reads."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from running_code(child)


def imports_of(path):
    """The full names of what a file imports, wherever in the file it does so."""
    for node in running_code(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import on line {node.lineno}"
            # What follows `from package import` may be a module or a name: both are given.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_imported(path):
    """The parts of the package that a file imports."""
    for name in imports_of(path):
        first, *rest = name.split(".")
        if first == "slt_jax":
            is_module = bool(rest) and rest[0] in RANK
            yield rest[0] if is_module else "__init__"


def docstring_lines(node):
    """The numbers of the lines of a node's own docstring."""
    if not isinstance(node, DOCUMENTED) or ast.get_docstring(node) is None:
        return set()
    return set(range(node.body[0].lineno, node.body[0].end_lineno + 1))


def code_lines(node, lines):
    """The number of lines of a function or class that are neither blank, comment nor docstring."""
    counted = set(range(node.lineno, node.end_lineno + 1))
    counted -= set().union(*(docstring_lines(inner) for inner in ast.walk(node)))
    texts = (lines[number - 1].strip() for number in counted)
    return sum(1 for text in texts if text and not text.startswith("#"))


def file_code_lines(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    return sum(
        code_lines(node, text.splitlines())
        for node in tree.body
        if docstring_lines(tree).isdisjoint(range(node.lineno, node.end_lineno + 1))
    )


@pytest.mark.parametrize("path", source_files("slt_jax", "tests", "benchmarks"), ids=name_of)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= MAX_FILE_LINES, f"{name_of(path)}: {len(lines)} lines; split it by noun"
    functions = (
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    lengths = {f"{node.name}, line {node.lineno}": code_lines(node, lines) for node in functions}
    assert {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES} == {}


@pytest.mark.parametrize("path", source_files("slt_jax"), ids=name_of)
def test_dependencies_point_one_way(path):
    module = module_of(path)
    assert module in RANK, f"{module} has no place in LAYERS yet"
    wrong = {
        imported
        for imported in modules_imported(path)
        if imported != module and RANK[imported] >= RANK[module]
    }
    assert wrong == set(), f"{name_of(path)} must not import {sorted(wrong)}"


def test_only_the_outside_knows_storage():
    knowing = {
        module_of(path)
        for path in source_files("slt_jax")
        if "storage" in set(modules_imported(path))
    }
    assert knowing - set(KNOW_STORAGE) == set()


@pytest.mark.parametrize(
    "path", [path for path in source_files("slt_jax") if module_of(path) in PURE], ids=name_of
)
def test_kernels_and_targets_know_nothing_of_the_machine(path):
    imported = [name for name in imports_of(path) if name.startswith(IMPURE_IMPORTS)]
    called = [
        node.func.id
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert imported == []
    assert sorted(set(called) & set(IMPURE_CALLS)) == []


@pytest.mark.parametrize("path", source_files("slt_jax"), ids=name_of)
def test_no_private_part_of_jax_is_used(path):
    assert [name for name in imports_of(path) if name.startswith(("jax._src", "jaxlib"))] == []


def test_path_from_the_question_to_the_number_is_short():
    lengths = {name: file_code_lines(PACKAGE / name) for name in PATH_OF_THE_LLC}
    assert sum(lengths.values()) <= MAX_PATH_LINES, lengths


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    '''One.\n\n    Two.'''\n    # why\n\n    return 1\n", 2),
        ("def f(\n    a,\n    b,\n):\n    return a\n", 5),
    ],
)
def test_lines_of_code_leave_out_docstrings_comments_and_blanks(source, expected):
    (function,) = ast.parse(source).body
    assert code_lines(function, source.splitlines()) == expected
