"""The rules of the house: who imports whom, how large things are, what is shipped."""

import ast
import io
import os
import re
import statistics
import subprocess
import sys
import tokenize
import tomllib
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# From the bottom up: a module imports from its own layer and from those before it.
LAYERS = (
    ("backends",),
    ("autograd", "dtypes", "interop", "random", "suggestion", "atomic", "state"),
    ("tensor",),
    ("creation", "ops", "functional", "graph", "gradcheck"),
    ("nn", "testing", "selftest"),
    ("models", "data", "optim", "summary"),
    ("",),  # tinygrad_cnn itself, the public face
    ("train", "report", "diagnose", "explain"),
    ("cli", "__main__"),
)
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
CORE = (
    *("tinygrad_cnn/autograd.py", "tinygrad_cnn/tensor.py", "tinygrad_cnn/ops/"),
    *("backends/base.py", "backends/geometry.py", "backends/numpy_backend.py"),
)
HEAVY = {
    *("PIL", "cupy", "hypothesis", "matplotlib", "numba", "pooch", "requests", "rich", "torch"),
    "typer",
}
SOLD_AS = {"cupy": "cupy-cuda12x", "cupyx": "cupy-cuda12x", "llvmlite": "numba", "PIL": "pillow"}

LAYOUT_TOKENS = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)  # a lambda is part of its function


def dotted(path):
    """Name the module in a file: backends/base.py is tinygrad_cnn.backends.base."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return name if name.startswith("tinygrad_cnn") else f"tinygrad_cnn.{name}"


# rglob follows no links, so tinygrad_cnn/backends is not read a second time
MODULES = {dotted(p): p for top in ("tinygrad_cnn", "backends") for p in (ROOT / top).rglob("*.py")}


@cache
def parse(path):
    """Parse a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def code_lines(path):
    """Return the numbers of the lines that hold code: no blank, no comment, no docstring."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    code = [range(t.start[0], t.end[0] + 1) for t in tokens if t.type not in LAYOUT_TOKENS]
    documented = (ast.Module, ast.ClassDef, *FUNCTIONS)
    docs = [
        range(node.body[0].lineno, node.body[0].end_lineno + 1)
        for node in ast.walk(parse(path))
        if isinstance(node, documented) and ast.get_docstring(node) is not None
    ]
    return frozenset().union(*code) - frozenset().union(*docs)


def imports(name):
    """Yield what a module imports, at its top or in a function, except for type hints alone."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    hints = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            hints.update(ast.walk(node))
        elif isinstance(node, ast.Import) and node not in hints:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node not in hints:
            source = resolve_name("." * node.level + (node.module or ""), package)
            names = {f"{source}.{alias.name}" for alias in node.names}
            yield from (name if name in MODULES else source for name in names)


def internal_imports():
    """Map every module to the modules of this project that it imports."""
    return {name: {*imports(name)} & MODULES.keys() - {name} for name in MODULES}


def rank(name):
    """Return how high a module stands."""
    return RANK[name.partition(".")[2].partition(".")[0]]


def function_lengths():
    """Map every function to its lines of code, its `def` included."""
    return {
        f"{name}:{node.lineno} {node.name}": sum(
            node.lineno <= line <= node.end_lineno for line in code_lines(path)
        )
        for name, path in MODULES.items()
        for node in ast.walk(parse(path))
        if isinstance(node, FUNCTIONS)
    }


def test_imports_point_down():
    ranks = {name: rank(name) for name in MODULES}  # a KeyError: give the new module a layer
    edges = [(a, b) for a, found in internal_imports().items() for b in found]
    assert not [f"{a} imports {b}" for a, b in edges if ranks[a] < ranks[b]]


def test_imports_have_no_cycle():
    TopologicalSorter(internal_imports()).prepare()  # raises CycleError, naming the cycle


def test_what_is_imported_is_declared():
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = sum(extras, PROJECT["project"]["dependencies"])
    declared = {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in wanted}
    roots = {found.partition(".")[0] for name in MODULES for found in imports(name)}
    third_party = roots - sys.stdlib_module_names - {"tinygrad_cnn"}
    assert {SOLD_AS.get(root, root) for root in third_party} <= declared


# 10,000 until the GPU's other precisions came, 10,400 until batch norm was written in vectors,
# 10,450 until a convolution's taps were kept and few channels had tiles of their own, 10,600 until
# steps were CUDA graphs
@pytest.mark.parametrize(("folder", "limit"), [(CORE, 1200), ("", 11_050)], ids=["core", "all"])
def test_the_code_is_small(folder, limit):
    paths = [p for p in MODULES.values() if p.relative_to(ROOT).as_posix().startswith(folder)]
    assert sum(len(code_lines(path)) for path in paths) < limit


def test_functions_are_short():
    lengths = function_lengths()
    assert statistics.median(lengths.values()) <= 5
    assert statistics.quantiles(lengths.values(), n=10)[-1] < 17
    assert not [f for f, length in lengths.items() if length > 40 and "numba_backend" not in f]


def test_import_is_light_and_silent():
    """Nothing heavy is loaded, seeded, printed or read from the environment."""
    probe = f"""
import random, sys
import numpy
state = repr((random.getstate(), numpy.random.get_state()))
import tinygrad_cnn
assert repr((random.getstate(), numpy.random.get_state())) == state, "seeded"
assert not sys.modules.keys() & {HEAVY}, sys.modules.keys() & {HEAVY}
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", probe],
        cwd=ROOT,
        env={**os.environ, "TINYGRAD_CNN_BACKEND": "nonsense"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout + result.stderr == ""


def test_backends_is_no_package_of_its_own(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    with pytest.raises(ImportError, match=r"import tinygrad_cnn\.backends"):
        import_module("backends")


def test_the_tests_run_on_the_backend_that_a_user_would_get(started_with):
    """Nothing that pytest imports to look for tests may set it."""
    assert os.environ.get("TINYGRAD_CNN_BACKEND") == started_with


def test_every_package_is_shipped():
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert {*PROJECT["tool"]["setuptools"]["packages"]} == packages


def test_the_recipes_are_shipped():
    """As package data, which setuptools takes by pattern, one for all packages."""
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["*"]
    recipes = {*(ROOT / "tinygrad_cnn" / "train").rglob("*.toml")}
    shipped = {p for pattern in patterns for p in (ROOT / "tinygrad_cnn" / "train").glob(pattern)}
    assert len(recipes) >= 2
    assert recipes <= shipped


def test_the_link_to_backends_is_relative():
    link = ROOT / "tinygrad_cnn" / "backends"  # where a checkout has no links, a file that names it
    target = link.readlink().as_posix() if link.is_symlink() else link.read_text(encoding="utf-8")
    assert target == "../backends"
