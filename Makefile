# Every target makes its own .venv: a machine needs Python >= 3.11, git and make, nothing else.
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif

.PHONY: train test test-cuda-host check-cuda test-gpu lint bench coverage mutants clean
.NOTPARALLEL:

train: .venv/with-test  ## a short training on the built-in shapes, no download
	$(BIN)/python -m tinygrad_cnn train

# Two processes with one thread each, of BLAS and of kernels: threads that wait for each other spin, and the
# tests' arrays are too small to share. (Tests about threads start processes of their own.)
test test-cuda-host coverage: export OPENBLAS_NUM_THREADS = 1
test test-cuda-host coverage: export NUMBA_NUM_THREADS = 1
test: .venv/with-test  ## make test PYTEST="-m 'not slow' -k conv"
	$(BIN)/python -m pytest --numprocesses 2 $(PYTEST)

# Without a GPU: its kernels compiled for this CPU (`make test` has these tests too), and, by NVRTC,
# for GPUs: make check-cuda GPUS="sm_75 sm_120"
test-cuda-host: .venv/with-test
	$(BIN)/python -m pytest --numprocesses 2 -m emulated $(PYTEST)
check-cuda: .venv/with-cuda-check
	$(BIN)/python tests/cupy_backend/nvrtc.py $(GPUS)

# With one: all that wants it, in ten minutes, with the Python that has CuPy and PyTorch; nothing is
# installed. make test-gpu GPU="--only kernels,layers --minutes 4"
test-gpu:
	$(PYTHON) benchmarks/gpu.py $(GPU)

lint: .venv/with-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

BENCHMARKS := backends layers memory_passes steps inference scaling checkpointing
bench: .venv/with-peers  ## all benchmarks in their short form, against PyTorch
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py --quick || exit 1; done
	@echo "the long forms, and what the figures mean: benchmarks/README.md"

# Every line and branch of the core, by the tests that are about it.
CORE := tinygrad_cnn/autograd.py,tinygrad_cnn/tensor.py,tinygrad_cnn/ops/*,backends/base.py,$\
	backends/geometry.py,backends/numpy_backend.py
coverage: .venv/with-test
	$(BIN)/python -m coverage run -m pytest --quiet tests/test_*.py -m "not slow and not emulated"
	$(BIN)/python -m coverage report --fail-under 100 --include "$(CORE)"

mutants: .venv/with-test  ## break the engine on purpose; make mutants MUTANTS=--all
	$(BIN)/python tests/mutants.py $(MUTANTS)

clean:
	rm -rf .venv .coverage .hypothesis .*_cache build dist htmlcov *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

# .venv/with-EXTRA is a stamp: EXTRA is installed as pyproject.toml now has it.
.venv/with-%: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@
