"""CUDA graphs without a GPU: an emulated backend that can put off what it is asked to do.

While it records, no kernel runs and no array gets a value: what would have been done is listed,
and a replay does it, on the same arrays. As on a GPU, what goes to the host or comes from it in the
meantime is refused, and so is cuBLAS; and arrays that were allocated in the meantime, of which a
graph lets several share their memory, have no values when a replay begins. Arrays are `Held`, whose
NumPy functions know of the list.
"""

from contextlib import contextmanager
from functools import wraps
from types import SimpleNamespace

import numpy as np
from cupy_backend.emulation import EmulatedBackend

from tinygrad_cnn.backends.cupy_backend.launch import Launcher


class Captured(RuntimeError):
    """What CUDA refuses while a stream is captured."""


class Recorder:
    """Do things, or list them while a graph is recorded."""

    def __init__(self):
        self.listed, self.allocated, self.done = None, [], 0  # None: nothing is recorded

    def do(self, function, *args, **settings):
        """Do it now, or later."""
        self.check(args, settings)
        if self.listed is None:
            self.done += 1
            function(*plain(args), **plain(settings))
        else:
            self.listed.append(lambda: function(*plain(args), **plain(settings)))

    def compute(self, function, *args, **settings):
        """Give the array that a function makes; its values come when they can."""
        self.check(args, settings)
        if self.listed is None:
            self.done += 1
            return held(function(*plain(args), **plain(settings)))
        with np.errstate(all="ignore"):
            result = np.array(function(*plain(args), **plain(settings)))
        self.listed.append(lambda: put(result, function(*plain(args), **plain(settings))))
        return self.fresh(held(result))

    def fresh(self, a):
        """Take the values of a new array away, and note it where a graph allocates it."""
        if self.listed is not None:
            self.allocated.append(a)
        spoil(a)
        return a

    def check(self, *nests):
        """See that nothing of the host's is among the arguments, but numbers."""
        for a in nests:
            if isinstance(a, np.ndarray) and not isinstance(a, Held) and a.ndim:
                self.refuse("H2D transfers are disallowed")
            elif isinstance(a, tuple | list | dict):
                self.check(*(a.values() if isinstance(a, dict) else a))

    def refuse(self, why):
        """Refuse what can't be recorded."""
        if self.listed is not None:
            raise Captured(f"the current stream is capturing, so {why}")


RECORDER = Recorder()


def put(array, values):
    array[...] = values


def spoil(a):
    plain(a)[...] = np.nan if a.dtype.kind == "f" else np.array(-1).astype(a.dtype)


def held(a):
    """View an array as one of the device; a number becomes an array, as CuPy's reductions do."""
    return np.asarray(a).view(Held)


def plain(a):
    """View the device's arrays in a nest of arguments as NumPy's own."""
    if isinstance(a, Held):
        return a.view(np.ndarray)
    if isinstance(a, dict):
        return {name: plain(value) for name, value in a.items()}
    return type(a)(map(plain, a)) if isinstance(a, tuple | list) else a


LOOKING = (np.array_split, np.swapaxes, np.ndim, np.shape)  # which give views, or no array


class Held(np.ndarray):
    """An array on the device."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **settings):
        if ufunc is np.matmul:
            RECORDER.refuse("calling cuBLAS API is currently unsupported")
        function = getattr(ufunc, method)
        if out is None:
            return RECORDER.compute(function, *inputs, **settings)
        RECORDER.do(function, *inputs, out=out, **settings)
        return out[0]

    def __array_function__(self, function, types, args, settings):
        if function in LOOKING:
            return super().__array_function__(function, types, args, settings)
        if function in (np.dot, np.tensordot, np.einsum):
            RECORDER.refuse("calling cuBLAS API is currently unsupported")
        if function is np.copyto:
            return RECORDER.do(function, *args, **settings)
        return RECORDER.compute(function, *args, **settings)

    def __getitem__(self, index):
        places = index if isinstance(index, tuple) else (index,)
        if any(isinstance(place, np.ndarray | list) for place in places):
            return RECORDER.compute(np.ndarray.__getitem__, self, index)
        found = super().__getitem__(index)
        return found if isinstance(found, Held) else RECORDER.compute(lambda a: a[index], self)

    def __setitem__(self, index, values):
        RECORDER.do(np.ndarray.__setitem__, self, index, values)

    def fill(self, value):
        """Set all values."""
        RECORDER.do(np.ndarray.fill, self, value)

    def reshape(self, *shape):
        """Give a view, or a copy where there can be none."""
        new = super().reshape(*shape)
        if np.may_share_memory(plain(new), plain(self)):
            return new
        return RECORDER.compute(np.reshape, self, new.shape)

    def astype(self, dtype, *args, **settings):
        """Convert to a new array."""
        return RECORDER.compute(np.ndarray.astype, self, dtype, *args, **settings)

    def copy(self, order="C"):
        """Copy."""
        return RECORDER.compute(np.ndarray.copy, self, order)


def _computes(name):
    method = getattr(np.ndarray, name)

    @wraps(method)
    def compute(self, *args, **settings):
        return RECORDER.compute(method, self, *args, **settings)

    return compute


def _reads(name):
    method = getattr(np.ndarray, name)

    @wraps(method)
    def read(self, *args):
        RECORDER.refuse("D2H transfers are disallowed")
        return method(plain(self), *args)

    return read


for _name in ("sum", "mean", "max", "min", "argmax"):
    setattr(Held, _name, _computes(_name))
for _name in ("__bool__", "__float__", "__int__", "__index__", "item", "tolist"):
    setattr(Held, _name, _reads(_name))


class Arrays:
    """NumPy, as far as it makes arrays, which are the device's; and what CuPy has besides."""

    ndarray = Held

    def __init__(self):
        self.cuda = SimpleNamespace(
            Device=lambda: SimpleNamespace(id=0),
            Stream=Stream,
            using_allocator=using_allocator,
        )

    def __getattr__(self, name):
        function = getattr(np, name)
        if name in ("arange", "full", "ones", "ones_like", "zeros", "zeros_like", "where"):
            return lambda *args, **settings: RECORDER.compute(function, *args, **settings)
        return function

    def empty(self, shape, dtype):
        """Allocate."""
        return RECORDER.fresh(np.empty(shape, dtype).view(Held))

    def asarray(self, a, dtype=None):
        """Give an array of the device as it is, if it has the type; else a copy."""
        if not isinstance(a, Held):
            RECORDER.check(np.asarray(a))
            return held(np.array(a, dtype))
        return a if dtype in (None, a.dtype) else a.astype(dtype)

    def ascontiguousarray(self, a, dtype=None):
        """Give an array whose values lie in order."""
        a = self.asarray(a, dtype)
        return a if a.flags.c_contiguous else a.copy()

    def asnumpy(self, a):
        """Copy to the host."""
        RECORDER.refuse("D2H transfers are disallowed")
        return np.array(plain(a))

    def get_default_memory_pool(self):
        """Give what holds the arrays that a graph doesn't."""
        return SimpleNamespace(free_all_blocks=lambda: RECORDER.refuse("nothing is freed"))


class Stream:
    """A stream of the emulated device, as far as graph.py needs it."""

    def __init__(self, *, non_blocking):
        assert non_blocking  # or the default stream could not be used in the meantime
        self.open = False

    def __enter__(self):
        self.open = True

    def __exit__(self, *error):
        self.open = False

    def begin_capture(self):
        """Do nothing from now on."""
        assert self.open
        assert RECORDER.listed is None
        RECORDER.listed, RECORDER.allocated = [], []

    def end_capture(self):
        """Give what has been put off."""
        things, arrays, RECORDER.listed = RECORDER.listed, RECORDER.allocated, None

        def launch():
            RECORDER.done += len(things)
            for a in arrays:
                spoil(a)
            for thing in things:
                thing()

        return SimpleNamespace(launch=launch)


@contextmanager
def using_allocator(allocate):
    """Stand in for CuPy's: here arrays live as long as somebody holds them."""
    assert callable(allocate)
    yield


class RecordingBackend(EmulatedBackend):
    """The emulated GPU, which has CUDA graphs."""

    name = "recording"

    def __init__(self, folder=None):
        super().__init__(folder)
        self.xp = Arrays()
        self.launch = Launcher(self._module)

    def _module(self, **source):
        RECORDER.refuse("no module is loaded")
        module = self.module(**source)

        def get_function(name):
            function = module.get_function(name)

            def launch(grid, block, args, *, shared_mem=0):
                RECORDER.do(lambda *args: function(grid, block, args, shared_mem=shared_mem), *args)

            return launch

        return SimpleNamespace(get_function=get_function)

    def empty(self, shape, dtype):
        return super(EmulatedBackend, self).empty(shape, dtype)

    def to_numpy(self, a):
        return super(EmulatedBackend, self).to_numpy(a)
