"""The number of threads reaches BLAS or, where Numba runs the kernels, Numba."""

from __future__ import annotations

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from tinygrad_cnn import backends
from tinygrad_cnn.backends.threads import set_threads


def test_the_threads_of_blas_are_set():
    with threadpool_limits():  # puts back what was
        set_threads(1, backends.get("numpy"))
        assert {p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"} == {1}


def test_the_threads_of_numba_are_set(monkeypatch):
    if backends.why_not("numba"):
        pytest.skip("numba can't run here")
    from tinygrad_cnn.backends.numba_backend import threads

    monkeypatch.setattr(threads, "_wanted", None)
    set_threads(1, backends.get("numba"))
    assert threads._wanted == 1
    set_threads(10_000, backends.get("numba"))
    assert threads._wanted == threads.available()


def test_no_threads_are_refused():
    with pytest.raises(ValueError, match="threads is 0; expected at least 1"):
        set_threads(0, backends.get("numpy"))
