"""What a precision makes of a float32, said in arithmetic, where kernels and emulation use bits."""

import numpy as np

BITS = {"tf32": 11, "bf16": 8, "fp16": 11}  # of the mantissa, the leading one included
LEAST = {"tf32": -136, "bf16": -133, "fp16": -24}  # the last bit is worth 2**LEAST or more
MOST = {"tf32": np.finfo("f").max, "bf16": np.finfo("f").max, "fp16": 65504}


def rounded(a, precision):
    """Give the float32 values nearest to these that a precision can hold."""
    if precision == "fp32":
        return a
    mantissa, exponent = np.frexp(a.astype(np.float64))  # 0.5 <= |mantissa| < 1
    bits = np.minimum(BITS[precision], exponent - LEAST[precision])
    whole = np.ldexp(mantissa, bits)
    halves_away = np.trunc(whole + np.copysign(0.5, whole))
    value = np.ldexp(halves_away if precision == "tf32" else np.rint(whole), exponent - bits)
    infinite = np.copysign(np.inf, value)
    return np.where(np.abs(value) > MOST[precision], infinite, value).astype(np.float32)
