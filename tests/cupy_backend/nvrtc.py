"""Compile every kernel for every GPU of the list, as CuPy would; no GPU is needed.

pip install 'tinygrad_cnn[cuda-check]'
python tests/cupy_backend/nvrtc.py       # registers, spills and shared memory of each
"""

import ctypes
import re
import sys
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import NamedTuple

from tinygrad_cnn.backends.cupy_backend import PATHS
from tinygrad_cnn.backends.cupy_backend.launch import OPTIONS, Program, source

GPUS = ("sm_75", "sm_80", "sm_89", "sm_90", "sm_120")  # from the T4 of free notebooks on

CUPYS = ("--device-as-default-execution-space", "-ftz=true")  # what CuPy 14 adds


class Usage(NamedTuple):
    """What an instance of a kernel takes of the GPU: registers a thread, bytes."""

    kernel: str
    registers: int
    spilled: int
    shared: int


def programs():
    """List every program of the backend."""
    for paths in PATHS.values():
        for path in paths:
            import_module(f"tinygrad_cnn.backends.cupy_backend.{path.module}")
    return Program.all


@cache
def library():
    """Load NVRTC from NVIDIA's wheel; None where it is not installed."""
    for place in sys.path:
        for file in sorted(Path(place).glob("nvidia/*/lib/libnvrtc.so.*")):
            for builtins in file.parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins))  # which it doesn't find by itself everywhere
            return ctypes.CDLL(str(file))
    return None


def compile_for(gpu, program, dtype):
    """Compile a program's instances for a GPU; give each one's usage, and what else was said."""
    nvrtc, handle = library(), ctypes.c_void_p()
    text = source(program.file).encode()
    status = nvrtc.nvrtcCreateProgram(
        ctypes.byref(handle), text, program.file.encode(), 0, None, None
    )
    assert status == 0
    for name in program.expressions(dtype):
        assert nvrtc.nvrtcAddNameExpression(handle, name.encode()) == 0
    options = [*OPTIONS, *CUPYS, f"--gpu-architecture={gpu}", "--ptxas-options=-v"]
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = nvrtc.nvrtcCompileProgram(handle, len(options), given)
    log = read_log(nvrtc, handle)
    names = {lowered(nvrtc, handle, name): name for name in program.expressions(dtype)}
    nvrtc.nvrtcDestroyProgram(ctypes.byref(handle))
    return [] if status else list(usages(log, names)), complaints(log)


def serves(gpu, program):
    """Tell whether a GPU has a program's instructions."""
    return int(gpu.removeprefix("sm_")) >= program.capability


def read_log(nvrtc, handle):
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(handle, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(handle, log)
    return log.value.decode()


def lowered(nvrtc, handle, name):
    """Give a kernel's name in the binary."""
    found = ctypes.c_char_p()
    nvrtc.nvrtcGetLoweredName(handle, name.encode(), ctypes.byref(found))
    return (found.value or b"").decode()


def usages(log, names):
    """Read what ptxas -v says of each kernel."""
    for part in log.split("Compiling entry function '")[1:]:
        shared = re.search(r"(\d+) bytes smem", part)
        yield Usage(
            names[part.partition("'")[0]],
            int(re.search(r"Used (\d+) registers", part)[1]),
            int(re.search(r"(\d+) bytes spill stores", part)[1]),
            int(shared[1]) if shared else 0,
        )


def complaints(log):
    """Give the lines that are no statistics."""
    lines = (line for line in log.splitlines() if line.strip())
    return [line for line in lines if not line.startswith("ptxas")]


def main(gpus):
    """Print a line for each kernel and GPU; give the number of complaints."""
    wrong = 0
    print(f"{'GPU':<8}{'registers':>10}{'spilled':>9}{'shared':>8}  kernel")
    for program, gpu in product(programs(), gpus):
        for dtype in program.dtypes if serves(gpu, program) else ():
            found, said = compile_for(gpu, program, dtype)
            for line in said:
                print(f"{program.file}: {line}")
            for use in found:
                print(f"{gpu:<8}{use.registers:>10}{use.spilled:>9}{use.shared:>8}  {use.kernel}")
            wrong += len(said)
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or GPUS) > 0)
