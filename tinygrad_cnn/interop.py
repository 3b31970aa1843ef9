"""How a Tensor meets other libraries: NumPy functions are refused, DLPack and pickle served."""

from __future__ import annotations

from typing import Any, NoReturn

_REFLECTED = {
    "add": "__radd__", "subtract": "__rsub__", "multiply": "__rmul__", "divide": "__rtruediv__",
    "matmul": "__rmatmul__", "less": "__gt__", "less_equal": "__ge__", "greater": "__lt__",
    "greater_equal": "__le__", "equal": "__eq__", "not_equal": "__ne__",
}  # fmt: skip


class ForeignLibraries:
    """The part of Tensor that other libraries call."""

    __slots__ = ()
    data: Any
    backend: Any
    requires_grad: Any

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("asarray")

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> NoReturn:
        self._refuse(func.__name__)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        reflected = _REFLECTED.get(ufunc.__name__)  # array + tensor arrives here as numpy.add
        if method == "__call__" and reflected and not kwargs and inputs[1] is self:
            return getattr(self, reflected)(inputs[0])
        self._refuse(ufunc.__name__)

    def _refuse(self, function: str) -> NoReturn:
        raise TypeError(
            f"numpy.{function} got a Tensor, and would lose its gradient; use the Tensor's own "
            f"methods or tinygrad_cnn.functional, or {function}(t.numpy()) to leave the graph"
        )

    def __dlpack__(self, **kwargs: Any) -> Any:
        """Hand the memory to another library; a tensor that requires a gradient is refused."""
        if self.requires_grad:
            raise TypeError("__dlpack__: this tensor requires a gradient; use .detach() first")
        return self.data.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        """Tell where the memory is."""
        return self.data.__dlpack_device__()

    def __reduce__(self) -> Any:
        """Copy and pickle the values, as a leaf."""
        values = self.backend.to_numpy(self.data)
        return type(self), (values, self.requires_grad, None, self.backend.name)
