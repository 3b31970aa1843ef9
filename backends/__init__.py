"""The registry of backends: which there are, which can run here, which is the default.

>>> get("numpy")
<backend numpy>
>>> get("numpyy")
Traceback (most recent call last):
ValueError: no backend 'numpyy'; did you mean 'numpy'? There are: cupy, numba, numpy
"""

from __future__ import annotations

if __name__ == "backends":  # the folder's own name: a second registry beside the real one
    raise ImportError("import tinygrad_cnn.backends, not backends: this folder is that package")

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from importlib import import_module

from .base import Array, Backend, BackendUnavailable

__all__ = [
    "Array", "Backend", "BackendUnavailable", "available", "current", "default", "get", "register",
    "set_backend", "use_backend",
]  # fmt: skip

VARIABLE = "TINYGRAD_CNN_BACKEND"
PREFERENCE = ("cupy", "numba", "numpy")  # what "auto" tries, in this order
NICKNAMES = {"cuda": "cupy", "gpu": "cupy", "cpu": "numba", "np": "numpy", "jit": "numba"}


def _numpy() -> Backend:
    from .numpy_backend import NumpyBackend

    return NumpyBackend()


_factories: dict[str, Callable[[], Backend]] = {
    "numpy": _numpy,
    "numba": lambda: import_module(".numba_backend", __name__).load(),
    "cupy": lambda: import_module(".cupy_backend", __name__).load(),
}
_made: dict[str, Backend] = {}


def register(name: str, factory: Callable[[], Backend]) -> None:
    """Add a backend; `factory` is called on first use and may raise BackendUnavailable."""
    _factories[name] = factory
    _made.pop(name, None)


def get(name: str | Backend) -> Backend:
    """Look a backend up by name ("auto" is the best that can run here); made once, then shared.

    Raises ValueError for an unknown name, BackendUnavailable for one that can't run here.
    """
    if isinstance(name, Backend):
        return name
    if not isinstance(name, str):
        raise TypeError(f"a backend is named by a string, got {name!r}; dtypes: use .astype(...)")
    if name == "auto":
        return get(next(n for n in PREFERENCE if why_not(n) is None))
    if name not in _factories:
        near = NICKNAMES.get(name) or next(iter(get_close_matches(name, _factories)), None)
        hint = f"; did you mean {near!r}?" if near else "."
        hint = "; for a dtype use .astype(...)." if name.startswith(("float", "int")) else hint
        raise ValueError(f"no backend {name!r}{hint} There are: {', '.join(sorted(_factories))}")
    if name not in _made:
        _made[name] = _factories[name]()
    return _made[name]


def why_not(name: str) -> BackendUnavailable | None:
    """Tell why a registered backend can't run here; None if it can."""
    try:
        get(name)
    except BackendUnavailable as reason:
        return reason
    return None


def available() -> dict[str, BackendUnavailable | None]:
    """Map every registered name to None if it can run here, else to the reason why not."""
    return {name: why_not(name) for name in sorted(_factories)}


def default() -> Backend:
    """Give the backend named by TINYGRAD_CNN_BACKEND, or the best that can run here."""
    name = os.environ.get(VARIABLE) or "auto"
    try:
        return get(name)
    except (ValueError, BackendUnavailable) as error:
        error.add_note(f"(the environment variable {VARIABLE} is {name!r})")
        raise


# ---- the backend on which new tensors are made ----

_chosen: Backend | None = None  # set when the first tensor is made, never at import
_within: ContextVar[Backend | None] = ContextVar("use_backend", default=None)


def set_backend(name: str | Backend) -> None:
    """Choose the backend of all tensors that are made from now on."""
    global _chosen
    _chosen = get(name)


@contextmanager
def use_backend(name: str | Backend) -> Iterator[None]:
    """Choose the backend of the tensors made inside a `with` block; existing ones stay put."""
    token = _within.set(get(name))
    try:
        yield
    finally:
        _within.reset(token)


def current() -> Backend:
    """Give the backend on which a new tensor is made."""
    within = _within.get()
    if within is None and _chosen is None:
        set_backend(default())
    return within or _chosen  # type: ignore[return-value]
