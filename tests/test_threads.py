"""The number of threads reaches BLAS, and Numba where it is used."""

from __future__ import annotations

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from tinygrad_cnn import backends
from tinygrad_cnn.backends.threads import set_threads


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_threads_are_set(name):
    if backends.why_not(name):
        pytest.skip(f"{name} can't run here")
    with threadpool_limits():  # puts back what was
        set_threads(1, backends.get(name))
        assert blas_threads() == {1}
        if name == "numba":
            import numba

            assert numba.get_num_threads() == 1
            set_threads(10_000, backends.get(name))  # as many as there are
            assert numba.get_num_threads() > 0


def test_no_threads_are_refused():
    with pytest.raises(ValueError, match="threads is 0; expected at least 1"):
        set_threads(0, backends.get("numpy"))
