"""The disk cache of compiled kernels: a folder named by all that the machine code depends on.

Numba's own cache looks at the file a function is written in. A kernel also contains what it calls
from other modules, so after an edit there the old machine code would run. Here the folder's name is
a hash of all sources of this backend, of Python's, Numba's and llvmlite's versions and of the CPU:
an edit gives a new folder. Several processes may share it: a version of a kernel has its own
files, whoever writes them writes the same, and they are renamed into place.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import platformdirs
from numba.core import caching
from numba.core.registry import cpu_target

KEPT = 8  # folders, the last used ones: of other checkouts, environments, machines with this home
SOURCES = Path(__file__).parent

_signatures: dict[Callable[..., None], str] = {}  # of the version that is being compiled


def compiled(body: Callable[..., None], signature: str, **options: Any) -> Callable[..., None]:
    """Give the machine code of a kernel for one signature, from the cache if it is there."""
    dispatcher = numba.njit(**options)(body)
    if folder():
        _signatures[body] = signature
        dispatcher._cache = _Cache(body)
    else:
        announce()
    dispatcher.compile(signature)
    dispatcher.disable_compile()
    return dispatcher


@cache
def folder() -> Path | None:
    """Make the cache folder and give it; None if it can't be written."""
    path = parent_folder() / fingerprint()
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
        os.utime(path)  # it was used now
    except OSError:
        return None
    _remove_old(path.parent)
    return path


def parent_folder() -> Path:
    """Name the folder of the cache folders, in NUMBA_CACHE_DIR or the user's cache."""
    if numba.config.CACHE_DIR:
        return Path(numba.config.CACHE_DIR) / "tinygrad_cnn"
    return Path(platformdirs.user_cache_dir("tinygrad_cnn", appauthor=False)) / "kernels"


def fingerprint() -> str:
    """Hash the sources, the versions and the CPU (as NUMBA_CPU_NAME may have changed it)."""
    cpu = cpu_target.target_context.codegen().magic_tuple()  # triple, name, features
    versions = (platform.python_version(), sys.implementation.cache_tag)
    facts = repr((cpu, numba.__version__, llvmlite.__version__, versions))
    digest = hashlib.sha256(facts.encode())
    for path in sorted(SOURCES.rglob("*.py")):
        digest.update(path.relative_to(SOURCES).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _remove_old(parent: Path) -> None:
    """Keep the folders used last. One removed in use costs its users a compilation, no more."""
    found = []
    for path in filter(Path.is_dir, parent.iterdir()):
        with contextlib.suppress(OSError):  # another process may have just removed it
            found.append((path.stat().st_mtime, path))
    for _, path in sorted(found, reverse=True)[KEPT:]:
        shutil.rmtree(path, ignore_errors=True)


@cache
def announce() -> None:
    """Say, once, that something is being compiled, which happens only if it is in no cache."""
    reason = "once" if folder() else f"and again in each process: can't write {parent_folder()}"
    print(
        f"tinygrad_cnn: compiling kernels for this CPU, {reason} ...", file=sys.stderr, flush=True
    )


class _Locator(caching._CacheLocator):
    """Tell Numba where to keep a version of a kernel."""

    def __init__(self, body: Callable[..., None]) -> None:
        self.body = body

    @classmethod
    def from_function(cls, py_func: Callable[..., None], py_file: str) -> _Locator:
        return cls(py_func)

    def get_cache_path(self) -> str:
        return str(folder())

    def get_source_stamp(self) -> str:
        return folder().name  # type: ignore[union-attr]

    def get_disambiguator(self) -> str:
        return hashlib.sha256(_signatures[self.body].encode()).hexdigest()[:8]


class _Implementation(caching.CompileResultCacheImpl):
    _locator_classes = (_Locator,)


class _Cache(caching.FunctionCache):
    """Numba's cache of a function, which tells the user when it has nothing."""

    _impl_class = _Implementation

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Load a version, or None."""
        found = super().load_overload(sig, target_context)
        if found is None:
            announce()
        return found
