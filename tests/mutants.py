"""Test the tests: break the engine on purpose, one place at a time, and see that they notice.

    python tests/mutants.py [--sample N | --all] [--seed S] [--only TEXT]

A mutant is a copy of the project with one change: a `+` for a `-`, a condition turned round, a vjp
scaled by 1.01. It is killed if a test fails or time runs out. What survives is listed and wants a
test, or a line in EQUIVALENT that says why nothing can tell it from the original. Exit status 1
below 95 %. Each mutant runs in a process forked from this one, which has the large libraries loaded
already; so this needs Linux or macOS.
"""

import argparse
import ast
import contextlib
import copy
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # forked, threads are lost
os.environ |= {"TINYGRAD_CNN_BACKEND": "numpy", "HYPOTHESIS_PROFILE": "mutants"}

import hypothesis
import pytest

with contextlib.suppress(ImportError):
    import torch  # noqa: F401

hypothesis.settings.register_profile(
    "mutants", max_examples=10, deadline=None, derandomize=True, database=None
)

ROOT = Path(__file__).resolve().parents[1]
PASSING_SCORE, WORKERS, SECONDS, BYTES = 0.95, 2, 120, 16 << 30

# The tests that watch a file, the likeliest killers first.
TESTS = {
    "tinygrad_cnn/autograd.py": "autograd errors gradcheck tensor ops",
    "tinygrad_cnn/tensor.py": "tensor errors autograd backends ops",
    "tinygrad_cnn/ops/*.py": "ops errors against_torch autograd tensor convolution",
    "backends/base.py": "backends convolution ops against_torch",
    "backends/geometry.py": "errors convolution against_torch",
}

# Changes that no test can see: a pattern for "the line: original -> mutant", and why.
EQUIVALENT = {
    r": strict=True -> ": "stands beside a check of the lengths",
    r"d = scores\.constant\(d\) -> pass": "only CuPy's arrays need it",
    r"\(y\.size or 1\).*: 1 -> 2": "of an empty result's sum, any share is 0",
}
COMMUTATIVE = {"add", "maximum", "max", "min", "swapaxes"}

SWAPPED = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
SIMPLE_STATEMENTS = (ast.Expr, ast.Assign, ast.AugAssign, ast.Raise, ast.Continue)


def mutations(node):
    """Yield what may stand in a node's place."""

    def but(**changes):
        new = copy.copy(node)
        new.__dict__.update(changes)
        return new

    match node:
        case ast.BinOp(op=op) | ast.AugAssign(op=op) | ast.BoolOp(op=op) if type(op) in SWAPPED:
            yield but(op=SWAPPED[type(op)]())
        case ast.Compare(ops=[op]):
            yield but(ops=[SWAPPED[type(op)]()])
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            yield node.operand
        case ast.Constant(value=bool(value)):
            yield but(value=not value)
        case ast.Constant(value=int(value)):
            yield but(value=value + 1)
        case ast.Constant(value=float(value)):
            yield but(value=value * 1.01 + (value == 0))
        case ast.If() | ast.IfExp():
            yield but(test=ast.UnaryOp(ast.Not(), node.test))
        case ast.Lambda(args=ast.arguments(args=[ast.arg("g" | "h"), *_])):
            yield but(body=ast.BinOp(node.body, ast.Mult(), ast.Constant(1.01)))
            yield but(body=ast.UnaryOp(ast.USub(), node.body))
        case ast.Call(func=f, args=[a, b, *rest]) if ast.Starred not in (type(a), type(b)):
            if ast.unparse(f).rpartition(".")[2] not in COMMUTATIVE:
                yield but(args=[b, a, *rest])
    if isinstance(node, SIMPLE_STATEMENTS):
        yield ast.Pass()


def places(node):
    """Yield (parent, field, index) of all that may be changed below a node."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "exc"):  # types, and the text of errors
            continue
        for i, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST) and not left_alone(child):
                yield node, field, i
                yield from places(child)


def left_alone(node):
    """Tell docstrings, imports, names for types and the looks of things."""
    match node:
        case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom() | ast.JoinedStr():
            return True
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name[:1].isupper() or name == "__slots__"
        case ast.FunctionDef(name="__repr__"):
            return True
    return False


class Mutant:
    """One change to one file."""

    def __init__(self, path, tree, place, new):
        self.path, self.tree, self.place, self.new = path, tree, place, new
        old, parent = child_at(place), place[0]
        self.text = f"{shown(old, parent)} -> {shown(new, parent)}"
        self.name = f"{path.relative_to(ROOT)}:{old.lineno} {self.text}"

    def excused(self):
        """Tell whether the change makes no difference."""
        line = self.path.read_text(encoding="utf-8").splitlines()[child_at(self.place).lineno - 1]
        return any(re.search(pattern, f"{line}: {self.text}") for pattern in EQUIVALENT)

    def source(self):
        """Write the changed file."""
        parent, field, i = self.place
        value = getattr(parent, field)
        new = [*value[:i], self.new, *value[i + 1 :]] if isinstance(value, list) else self.new
        setattr(parent, field, new)
        try:
            return ast.unparse(ast.fix_missing_locations(self.tree))
        finally:
            setattr(parent, field, value)


def child_at(place):
    """Give the node at (parent, field, index)."""
    parent, field, i = place
    value = getattr(parent, field)
    return value[i] if isinstance(value, list) else value


def shown(node, parent):
    """Write a node in one short line; a keyword with its name."""
    name = f"{parent.arg}=" if isinstance(parent, ast.keyword) else ""
    return name + " ".join(ast.unparse(node).split())[:100]


def mutants_of(path):
    """List all mutants of a file that should be killed."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [
        Mutant(path, tree, place, new)
        for place in places(tree)
        for new in mutations(child_at(place))
    ]
    return [mutant for mutant in found if not mutant.excused()]


class NoKernels:
    """A plugin: the reference under Numba's name, for its kernels are not what is tested."""

    def pytest_configure(self):
        from tinygrad_cnn import backends
        from tinygrad_cnn.backends.numpy_backend import NumpyBackend

        backends.register("numba", type("Twin", (NumpyBackend,), {"name": "numba"}))


def run_tests(folder, names, log):
    """Run tests in a copy of the project, in a process of its own; never returns."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    for stream in 1, 2:
        os.dup2(log.fileno(), stream)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True  # a mutant may be as old and as long as its original
    tests = [f"tests/test_{name}.py" for name in names]
    options = [
        "-x",
        "-q",
        "--assert=plain",
        "-p",
        "no:cacheprovider",
        "-k",
        "not numba and not emulated",
    ]
    os._exit(pytest.main([*options, *tests], plugins=[NoKernels()]))


class Worker:
    """A copy of the project in which one mutant after another is tested."""

    def __init__(self, home, number):
        self.folder, self.log = home / str(number), (home / f"{number}.log").open("w+")
        for name in "tinygrad_cnn", "backends", "tests":
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, self.folder / name, symlinks=True, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", self.folder)
        self.mutant = self.pid = None

    def start(self, mutant, names):
        """Put a mutant (None: nothing) in place and start its tests."""
        self.mutant, self.deadline = mutant, time.monotonic() + SECONDS
        self.log.seek(0), self.log.truncate()
        if mutant:
            self.path = self.folder / mutant.path.relative_to(ROOT)
            self.original = self.path.read_text(encoding="utf-8")
            self.path.write_text(mutant.source(), encoding="utf-8")
        self.pid = os.fork()
        if not self.pid:
            run_tests(self.folder, names, self.log)

    def stop(self):
        """End the tests, with all processes that they have started."""
        if self.pid:
            os.killpg(self.pid, signal.SIGKILL)

    def finished(self):
        """Give the tests' exit status if they are done; past the deadline, end them."""
        if time.monotonic() > self.deadline:
            self.stop()
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return None
        if self.mutant:
            self.path.write_text(self.original, encoding="utf-8")
        self.pid = None
        return os.waitstatus_to_exitcode(status)


def survivors(mutants, workers):
    """Test all mutants, as many at a time as there are workers; yield those that pass."""
    waiting = mutants[::-1]
    while waiting or any(worker.pid for worker in workers):
        for worker in workers:
            if not worker.pid and waiting:
                worker.start(*waiting.pop())
            elif worker.pid and (status := worker.finished()) is not None and not status:
                yield worker.mutant
        time.sleep(0.02)


def check_originals(worker):
    """Demand that the tests pass where nothing is broken."""
    worker.start(None, sorted(set(" ".join(TESTS.values()).split())))
    while (status := worker.finished()) is None:
        time.sleep(0.02)
    if status:
        worker.log.seek(0)
        sys.exit(f"the tests fail without any mutant:\n{worker.log.read()[-5000:]}")


def main():
    """Read the command line, test the mutants and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sample", type=int, default=150, help="how many mutants (150)")
    parser.add_argument("--all", action="store_true", help="all of them: hours")
    parser.add_argument("--seed", type=int, default=0, help="which sample")
    parser.add_argument("--only", default="", help="those whose name has this text")
    args = parser.parse_args()

    paths = [(path, names) for glob, names in TESTS.items() for path in sorted(ROOT.glob(glob))]
    mutants = [(mutant, names.split()) for path, names in paths for mutant in mutants_of(path)]
    mutants = [pair for pair in mutants if args.only in pair[0].name]
    n = len(mutants) if args.all else min(args.sample, len(mutants))
    print(f"{len(mutants)} mutants, {n} to be tested", flush=True)
    with tempfile.TemporaryDirectory() as home:
        workers = [Worker(Path(home), i) for i in range(WORKERS)]
        survived, start = 0, time.monotonic()
        try:
            check_originals(workers[0])
            for mutant in survivors(random.Random(args.seed).sample(mutants, n), workers):
                survived += 1
                print(f"survived: {mutant.name}", flush=True)
        finally:
            for worker in workers:
                worker.stop()
    score = 1 - survived / max(n, 1)
    seconds = time.monotonic() - start
    print(f"{n - survived} killed, {survived} survived: {score:.1%} in {seconds:.0f} s")
    sys.exit(score < PASSING_SCORE)


if __name__ == "__main__":
    main()
