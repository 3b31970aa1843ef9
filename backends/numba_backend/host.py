"""What this CPU has: how many float32 fill a vector register, and how many registers there are.

LLVM is asked, by letting it compile an addition of 16 floats: the names of the registers tell. So
Numba's environment variables count: NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES= makes an AVX2
machine of an AVX-512 one, which is how the narrower code is tested.
"""

from __future__ import annotations

from llvmlite import binding
from numba.core.registry import cpu_target

ADDITION = """
define void @add(ptr %p) {
  %v = load <16 x float>, ptr %p
  %w = fadd <16 x float> %v, %v
  store <16 x float> %w, ptr %p
  ret void
}
"""


def _assembly() -> str:
    machine = cpu_target.target_context.codegen()._tm
    module = binding.parse_assembly(ADDITION)
    module.triple = machine.triple
    text: str = machine.emit_assembly(module)
    return text


def _isa() -> tuple[str, int, int]:
    """Give (instruction set, float32 in a register, registers)."""
    assembly = _assembly()
    if "zmm" in assembly:
        return "AVX-512", 16, 32
    if "ymm" in assembly:
        return "AVX", 8, 16
    return ("NEON", 4, 32) if ".4s" in assembly else ("SSE", 4, 16)


ISA, LANES, REGISTERS = _isa()
# A tile of a matrix product is at least 16 floats wide on every CPU. Its ROWS x COLUMNS sums need a
# quarter to a half of the registers: about enough in flight to hide a multiply-add's latency.
WIDTH = 16
COLUMNS = WIDTH // LANES
ROWS = min(8, REGISTERS // (2 * COLUMNS))
HALF = ROWS // 2  # the rows of a tile at an end, where fewer are left
# Where rows are what a kernel reads, a narrow tile may be taller: 3x3 colours, 9 floats, are one.
TALL = min(9, (REGISTERS - 1) // COLUMNS - 1)  # and a row of b, and an element of a
# Where that leaves room for twice as many, channels that are a multiple of 32 are in broad tiles:
# what is loaded for a row is used twice, and two multiply-adds a cycle find enough sums to go on.
BROAD = 2 * WIDTH if 4 * ROWS * COLUMNS <= REGISTERS else WIDTH
