"""Read pickles that strangers wrote.

The CIFAR archives are pickles, and a pickle is a program: the ordinary reader would run it. This
one knows no function and no class. What a pickle names, calls or builds becomes a Thing, which only
remembers what was said about it; cifar.py finds the pixels in what was remembered.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

# All that the files name: how NumPy's arrays and Python 3's byte strings are written.
NAMES = {
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",
}

# What plain data is written with. The others make instances, sets, buffers of any claimed size.
OPCODES = [
    ord(getattr(pickle, name))
    for name in """
    PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT
    BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINUNICODE SHORT_BINUNICODE
    EMPTY_DICT SETITEM SETITEMS EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD
    """.split()
]


class Thing:
    """Stand for what a pickle named, called with `args` and gave a `state`."""

    def __init__(self, name: str, *args: Any) -> None:
        self.name, self.args, self.state = name, args, ()

    def __call__(self, *args: Any) -> Any:
        if self.name == "_codecs.encode":  # bytes, as Python 3 writes them in protocol 2
            return args[0].encode("latin1")
        return Thing(self.name, *args)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Fields(dict[bytes, Any]):
    """A dictionary of names: to hash a tuple nested a million deep would crash the process."""

    def __setitem__(self, key: bytes, value: Any) -> None:
        if not isinstance(key, bytes):
            raise pickle.UnpicklingError(f"it has a {type(key).__name__} for a name")
        super().__setitem__(key, value)


class _Reader(pickle._Unpickler):  # the C one sets aside whatever memory a memo index claims
    def load_empty_dict(self) -> None:
        self.append(_Fields())  # type: ignore[attr-defined]

    dispatch = {code: pickle._Unpickler.dispatch[code] for code in OPCODES}  # noqa: RUF012
    dispatch[ord(pickle.EMPTY_DICT)] = load_empty_dict  # type: ignore[assignment]

    def find_class(self, module: str, name: str) -> Thing:
        if f"{module}.{name}" not in NAMES:
            raise pickle.UnpicklingError(f"it names {f'{module}.{name}'[:80]!r}, which is refused")
        return Thing(f"{module}.{name}")


def load(raw: bytes) -> Any:
    """Rebuild what `raw` holds out of numbers, strings, lists, tuples, dictionaries and Things.

    Raises pickle.UnpicklingError where it holds anything else, is cut short or makes no sense.
    """
    try:
        return _Reader(io.BytesIO(raw), encoding="bytes").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # damage makes nearly every kind of error, MemoryError among them
        kind = type(error).__name__
        raise pickle.UnpicklingError(f"it is cut short or damaged ({kind})") from error
