"""The GPU's kernels on a GPU, for tests whose arrays are NumPy's: `pytest --on-device`.

`DeviceModule` has the call surface of cupy.RawModule, as emulation.HostModule has, and runs the
real one: before a launch the arrays are copied to the device, afterwards back. So every test of the
emulation is one of a GPU too. There an array begins as far beyond a multiple of 256 bytes as here,
for a GPU, unlike the emulation, refuses misaligned access; and around it lie bytes that must stay.
"""

from functools import partial

import numpy as np
from cupy_backend.emulation import EmulatedBackend

from tinygrad_cnn import backends
from tinygrad_cnn.backends.cupy_backend.launch import Launcher

EDGE, UNTOUCHED = 256, 0xA5


class DeviceError(AssertionError):
    """A kernel did what it must not."""


class Copy:
    """A NumPy array's copy on the device; as an argument, its first byte there."""

    def __init__(self, cupy, a):
        begin = EDGE + a.ctypes.data % EDGE
        self.a, self.inside = a, slice(begin, begin + a.nbytes)
        held = np.full(begin + a.nbytes + EDGE, UNTOUCHED, np.uint8)
        held[self.inside] = a.reshape(-1).view(np.uint8)
        self.held = cupy.asarray(held)

    @property
    def argument(self):
        """What a kernel is given: CuPy passes the address of a view's first byte."""
        return self.held[self.inside]

    def copy_back(self, cupy, what):
        """Read the array back, and see whether anything was written around it."""
        held = cupy.asnumpy(self.held)
        around = np.ones(held.size, bool)
        around[self.inside] = False
        if (held[around] != UNTOUCHED).any():
            raise DeviceError(f"{what} was written beyond its ends")
        if self.a.flags.writeable:
            self.a[...] = held[self.inside].view(self.a.dtype).reshape(self.a.shape)


class DeviceModule:
    """Compile kernels for the GPU, and run them on arrays of NumPy."""

    def __init__(self, cupy, **module):
        self.cupy, self.module = cupy, cupy.RawModule(**module)

    def get_function(self, name):
        """Give a kernel, to be called as a CuPy kernel is."""
        function = self.module.get_function(name)

        def call(grid, block, args, *, shared_mem=0):
            copies = {}  # an array that is given twice, as when a sum goes into a term, is one
            for a in args:
                if key(a) and key(a) not in copies:
                    copies[key(a)] = Copy(self.cupy, a)
            passed = (copies[key(a)].argument if key(a) in copies else a for a in args)
            function(grid, block, tuple(passed), shared_mem=shared_mem)
            for i, a in enumerate(args):
                if key(a) in copies:
                    copies.pop(key(a)).copy_back(self.cupy, f"{name}: argument {i}")

        return call


def key(a):
    """Tell arrays apart by where they lie; None for what is no array."""
    return (a.ctypes.data, a.nbytes) if isinstance(a, np.ndarray) and a.ndim else None


class DeviceBackend(EmulatedBackend):
    """CupyBackend on NumPy's arrays; its kernels run on the GPU."""

    name = "on the device"

    def __init__(self):
        self.xp, cupy = np, backends.get("cupy").xp
        self.capability = int(cupy.cuda.Device().compute_capability)
        self.module = partial(DeviceModule, cupy)
        self.launch = Launcher(self.module)
