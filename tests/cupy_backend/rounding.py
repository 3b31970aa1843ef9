"""What a precision makes of a float32, said in arithmetic, where kernels and emulation use bits."""

import numpy as np

MANTISSA = {"tf32": 11, "bf16": 8, "fp16": 11}  # bits, the leading one included


def rounded(a, precision):
    """Give float32 values that the precision can hold; fp16 also as to range."""
    if precision == "fp32":
        return a
    mantissa, exponent = np.frexp(a.astype(np.float64))  # 0.5 <= |mantissa| < 1
    bits = np.full(a.shape, MANTISSA[precision])
    if precision == "fp16":
        bits = np.minimum(bits, exponent + 24)  # its last bit is never worth less than 2**-24
    whole = np.ldexp(mantissa, bits)
    away = np.trunc(whole + np.copysign(0.5, whole))
    nearest = away if precision == "tf32" else np.rint(whole)
    value = np.ldexp(nearest, exponent - bits)
    with np.errstate(over="ignore"):
        most = np.float32(65504) if precision == "fp16" else np.finfo(np.float32).max
        return np.where(np.abs(value) > most, np.copysign(np.inf, value), value).astype(np.float32)
