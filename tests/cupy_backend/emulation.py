"""The GPU backend without a GPU: its kernels compiled for the CPU, its arrays NumPy's.

`HostModule` has the call surface of cupy.RawModule, so everything above it is what runs on a GPU.
What it watches for stands at the top of cuda_on_host.h.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from tinygrad_cnn.backends.cupy_backend import CupyBackend
from tinygrad_cnn.backends.cupy_backend.launch import Launcher

SHIM = Path(__file__).with_name("cuda_on_host.h")
COMPILER = shutil.which(os.environ.get("CXX", "g++")) if sys.platform == "linux" else None
CHECKS = "-fsanitize=bounds,signed-integer-overflow,integer-divide-by-zero,shift"
FLAGS = (
    *("-std=c++17", "-O1", "-fPIC", "-w", "-U_FORTIFY_SOURCE", "-fno-strict-aliasing"),
    *(CHECKS, "-fno-sanitize-recover=all", "-ffp-contract=off"),
    "-fvisibility=hidden",  # or libraries of one process would share what has equal names
)


class EmulationError(AssertionError):
    """A kernel did what it must not."""


class Argument(ctypes.Structure):
    """An argument of a launch, as cuda_on_host.h reads it."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("item", ctypes.c_size_t),
        ("kind", ctypes.c_char),
        ("array", ctypes.c_bool),
    )


class HostModule:
    """Compile kernels for this CPU; called as cupy.RawModule is."""

    def __init__(self, code, *, options, name_expressions, folder=None):
        self.names = {name: f"kernel_{i}" for i, name in enumerate(name_expressions)}
        exports = "".join(f"KERNEL({alias}, {name})\n" for name, alias in self.names.items())
        text = SHIM.read_text(encoding="utf-8") + code + exports
        self.library = ctypes.CDLL(str(build(text, folder or Path(tempfile.mkdtemp()))))

    def get_function(self, name):
        """Give a kernel, to be called as a CuPy kernel is."""
        run = getattr(self.library, self.names[name])
        run.restype = ctypes.c_char_p

        def call(grid, block, args, *, shared_mem=0):
            held = [as_argument(a) for a in args]
            arguments = (Argument * len(held))(*(argument for argument, _ in held))
            sizes = [(ctypes.c_uint * 3)(*(*size, 1, 1)[:3]) for size in (grid, block)]
            failure = run(*sizes, ctypes.c_size_t(shared_mem), arguments, len(held))
            if failure:
                raise EmulationError(f"{name}: {failure.decode()}")

        return call


def as_argument(a):
    """Describe an argument, and give what keeps its memory alive."""
    if a is None:
        return Argument(None, 0, 0, b"V", True), None
    array = isinstance(a, np.ndarray) and a.ndim > 0
    values = a if array else np.array(a)
    kind = values.dtype.kind.encode()
    return Argument(values.ctypes.data, values.nbytes, values.itemsize, kind, array), values


def build(text, folder):
    """Compile, unless a library of the same text lies there already."""
    digest = hashlib.sha256(repr((text, FLAGS, COMPILER)).encode()).hexdigest()[:20]
    library = folder / f"{digest}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as part:
            file = Path(part) / "kernels.cpp"
            file.write_text(text, encoding="utf-8")
            # in two steps: linked with -fsanitize, a library would answer in the shim's place
            for command in (
                [COMPILER, *FLAGS, "-c", file, "-o", file.with_suffix(".o")],
                [COMPILER, "-shared", file.with_suffix(".o"), "-o", file.with_suffix(".so")],
            ):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise EmulationError(f"{COMPILER} refuses the kernels:\n{done.stderr[:4000]}")
            file.with_suffix(".so").rename(library)
    return library


class EmulatedBackend(CupyBackend):
    """CupyBackend on NumPy's arrays; fresh ones hold NaN, or -1."""

    name = "emulated"
    capability = 90

    def __init__(self, folder=None):
        self.xp = np
        self.module = partial(HostModule, folder=folder)
        self.launch = Launcher(self.module)

    def to_numpy(self, a):
        return a

    def synchronize(self):
        pass

    def compute_capability(self):
        return self.capability

    def empty(self, shape, dtype):
        a = super().empty(shape, dtype)
        a[...] = np.nan if a.dtype.kind == "f" else np.array(-1).astype(a.dtype)
        return a

    def erf(self, x):
        return super(CupyBackend, self).erf(x)
