"""Compiling, caching, threads and memory of the Numba backend, each in processes of its own."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinygrad_cnn.backends.numba_backend import allocator, disk_cache, threads
from tinygrad_cnn.backends.numba_backend.compiler import kernel, versions
from tinygrad_cnn.backends.numba_backend.parts import bounds, number_of_parts

BACKENDS = Path(disk_cache.__file__).resolve().parents[1]
COMPILING = "tinygrad_cnn: compiling kernels for this CPU, once ...\n"

PROBE = """
from numba import prange

from .compiler import kernel
from .factors import factor


@kernel("void(T[::1], intp)")
def scale(x, parts):
    for part in prange(parts):
        x[part] = factor() * x[part]
"""
FACTORS = """
from numba import njit


@njit
def factor():
    return 2.0
"""
USE = """
import numpy
from engine.numba_backend.probe import scale
x = numpy.ones(3, numpy.float32)
scale(x, 3)
print(*x)
"""


@pytest.fixture
def engine(tmp_path):
    """Copy the backends to a package of their own, with a kernel that calls another module."""
    shutil.copytree(BACKENDS, tmp_path / "engine", ignore=shutil.ignore_patterns("__pycache__"))
    home = tmp_path / "engine" / "numba_backend"
    (home / "probe.py").write_text(PROBE)
    (home / "factors.py").write_text(FACTORS)
    return home


def start(program, folder, **environment):
    """Start a Python program whose kernels are cached in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache"), **environment},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Give what it printed and what it said."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out, err


def run(program, folder, **environment):
    return finish(start(program, folder, **environment))


# ---- the disk cache ----


CONVOLVE = """
import hashlib
import numpy as np
from tinygrad_cnn.backends import get
from tinygrad_cnn.testing import channels_last

rng, numba = np.random.default_rng(0), get("numba")
x, w = (rng.standard_normal(shape, "float32") for shape in ((8, 16, 32, 32), (16, 16, 3, 3)))
at = dict(stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1)
y = numba.conv2d(channels_last(x), w, **at)
dx = numba.conv2d_input_grad(y, w, x_shape=x.shape, **at)
dw = numba.conv2d_weight_grad(y, channels_last(x), w_shape=w.shape, **at)
print(*(hashlib.sha256(np.ascontiguousarray(a)).hexdigest() for a in (y, dx, dw)))
"""


def test_kernels_compiled_and_kernels_loaded_give_the_same_bits(tmp_path):
    """LLVM once fused multiply-adds of a shared function in one kernel and not in another."""
    (compiled, said), (loaded, nothing) = run(CONVOLVE, tmp_path), run(CONVOLVE, tmp_path)
    assert (said, nothing) == (COMPILING, "")
    assert compiled == loaded


def test_an_edit_in_an_imported_module_is_seen(engine, tmp_path):
    """Numba's own cache would go on with the old machine code."""
    assert run(USE, tmp_path) == ("2.0 2.0 2.0\n", COMPILING)
    assert run(USE, tmp_path) == ("2.0 2.0 2.0\n", "")
    (engine / "factors.py").write_text(FACTORS.replace("2.0", "3.0"))
    assert run(USE, tmp_path) == ("3.0 3.0 3.0\n", COMPILING)
    assert run(USE, tmp_path) == ("3.0 3.0 3.0\n", "")
    assert len([*(tmp_path / "cache" / "tinygrad_cnn").iterdir()]) == 2


def test_processes_share_a_cache(engine, tmp_path):
    double = USE.replace("float32", "float64")
    first = [start(program, tmp_path) for program in (USE, double, USE, double)]
    assert [finish(process)[0] for process in first] == ["2.0 2.0 2.0\n"] * 4
    assert run(USE, tmp_path) == run(double, tmp_path) == ("2.0 2.0 2.0\n", "")


def test_another_cpu_has_its_own_folder(engine, tmp_path):
    program = USE + "from engine.numba_backend.disk_cache import folder; print(folder())"
    here, there = (
        run(program, tmp_path, **cpu)[0].splitlines()
        for cpu in ({}, {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""})
    )
    assert here[0] == there[0] == "2.0 2.0 2.0"
    assert here[1] != there[1]


def test_where_nothing_can_be_written_there_is_no_cache(engine, tmp_path):
    (tmp_path / "cache").write_text("a file, where a folder is wanted")
    for _ in range(2):
        out, err = run(USE, tmp_path)
        assert out == "2.0 2.0 2.0\n"
        assert err == (
            "tinygrad_cnn: compiling kernels for this CPU, and again in each process: "
            f"can't write {tmp_path / 'cache' / 'tinygrad_cnn'} ...\n"
        )


def test_the_folders_used_last_are_kept(tmp_path):
    for age in range(disk_cache.KEPT + 3):
        folder = tmp_path / f"{age:02}"
        folder.mkdir()
        (folder / "kernel").touch()
        os.utime(folder, (1e9 - age, 1e9 - age))
    (tmp_path / "file").touch()
    disk_cache._remove_old(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [*(f"{age:02}" for age in range(disk_cache.KEPT)), "file"]


def test_another_process_may_remove_a_folder_first(tmp_path, monkeypatch):
    for i in range(disk_cache.KEPT + 2):
        (tmp_path / f"{i}").mkdir()

    def is_dir(path):
        if path.name == "0":
            path.rmdir()  # between the look and the question for its age
        return True

    monkeypatch.setattr(Path, "is_dir", is_dir)
    disk_cache._remove_old(tmp_path)
    left = [path.name for path in tmp_path.iterdir()]
    assert "0" not in left
    assert len(left) == disk_cache.KEPT


def test_making_the_backend_imports_no_numba(tmp_path):
    program = """
import sys
import tinygrad_cnn as tg
x = tg.ones(2, 3, 4, 4, backend="numba")
assert "numba" not in sys.modules
assert x.backend.choose("relu", shapes=(x.shape,), dtype=x.dtype) == "compiled"
assert "numba" not in sys.modules
x.relu()
assert "numba" in sys.modules
"""
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


# ---- kernels ----


def body(x):
    x[0] = 1


def test_a_kernel_names_the_dtypes_that_it_has():
    floats = kernel("void(T[::1])", parallel=False)(body)
    assert [str(dtype) for k, dtype in versions() if k is floats] == ["float32", "float64"]
    with pytest.raises(
        TypeError, match=r"^body: got an array of int64; expected float32 or float64$"
    ):
        floats(np.zeros(1, int))


def test_a_kernel_without_t_has_one_version():
    integers = kernel("void(int64[::1])", parallel=False)(body)
    x = np.zeros(1, np.int64)
    integers(x)
    assert x == 1
    assert [dtype for k, dtype in versions() if k is integers] == [None]
    with pytest.raises(TypeError, match="No matching definition"):  # it compiles no other
        integers(np.zeros(1, np.float32))


@pytest.mark.parametrize("rows", [0, 1, 2, 31, 32, 33, 1000])
def test_parts_cover_all_rows_evenly(rows):
    parts = number_of_parts(10**6, rows)
    pieces = [bounds(rows, parts, part) for part in range(parts)]
    assert [i for a, b in pieces for i in range(a, b)] == [*range(rows)]
    assert max(b - a for a, b in pieces) - min(b - a for a, b in pieces) <= 1


# ---- threads ----


@pytest.mark.parametrize("n", [0, -1, threads.available() + 1])
def test_a_wrong_number_of_threads_is_refused(n):
    message = rf"^set_threads: got {n}; expected 1 to {threads.available()}, the cores"
    with pytest.raises(ValueError, match=message):
        threads.set_threads(n)


THREADS = """
import os
import threading
import numpy as np
import tinygrad_cnn as tg
from tinygrad_cnn.backends.numba_backend import threads

x = tg.ones(8, 16, 32, 32, backend="numba")
x.relu()
import numba
print(numba.get_num_threads(), end=" ")
threads.set_threads(2)
x.relu()
print(numba.get_num_threads(), end=" ")
errors, seen = [], []
def work():
    for _ in range(20):
        if not (x.relu().numpy() == 1).all():
            errors.append("wrong")
    seen.append(numba.get_num_threads())
workers = [threading.Thread(target=work) for _ in range(3)]
for worker in workers: worker.start()
for worker in workers: worker.join()
assert not errors
print(*seen, end=" ")  # not by the threads, whose words could mix
import threadpoolctl
pools = threadpoolctl.threadpool_info()
pools = [pool for pool in pools if "scipy.libs" not in pool["filepath"]]  # Numba may load it later
blas = [pool["num_threads"] for pool in pools if pool["user_api"] == "blas"]
print(numba.threading_layer(), *blas)
"""


PRIORITIES = {"omp": "omp workqueue tbb", "workqueue": "workqueue omp tbb"}


@pytest.mark.parametrize("layer", PRIORITIES)
def test_threads_take_turns(layer, tmp_path):
    """Two threads that enter Numba's workqueue at once would abort the process."""
    environment = {
        "NUMBA_NUM_THREADS": "3",
        "NUMBA_THREADING_LAYER_PRIORITY": PRIORITIES[layer],
        "OMP_WAIT_POLICY": "passive",
    }
    out, _ = run(THREADS, tmp_path, NUMBA_CACHE_DIR="", **environment)
    numbers = out.split()
    assert numbers[:5] == ["3", "2", "2", "2", "2"]
    assert numbers[5] in (layer, "workqueue")  # there is no OpenMP everywhere
    assert {*numbers[6:]} <= {"1"}


FORK = """
import os
import sys
import warnings
import tinygrad_cnn as tg

x = tg.ones(8, 16, 32, 32, backend="numba")
x.relu()
warnings.simplefilter("ignore")  # from Python 3.12 on, of a fork with threads
sys.stdout.flush()
if os.fork() == 0:
    try:
        x.relu()
    except RuntimeError as error:
        print(error)
    sys.stdout.flush()
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_is_told(tmp_path):
    out, _ = run(FORK, tmp_path, NUMBA_CACHE_DIR="", NUMBA_NUM_THREADS="2")
    assert out.startswith("this process was forked from process ")
    assert out.endswith("use multiprocessing's 'spawn' method\n")


# ---- memory ----

FAULTS = """
import resource
import numpy as np
from tinygrad_cnn.backends import get

get("numba")

def use_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(8 << 20, np.uint8) for _ in range(10)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

use_memory()
print(use_memory())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept(tmp_path):
    kept, returned = (
        int(run(FAULTS, tmp_path, **{allocator.VARIABLE: value})[0]) for value in ("1", "0")
    )
    assert kept < 50  # page faults; to map 80 MB anew takes 20,000, or 40 of huge pages
    assert returned > kept + 20


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not allocator.keep_freed_memory()
