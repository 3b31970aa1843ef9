# Every target makes its own .venv: a machine needs Python >= 3.11, git and make, nothing else.
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif

.PHONY: train test lint bench mutants clean
.NOTPARALLEL:

train: .venv/with-test  ## a short training on the built-in shapes, no download
	$(BIN)/python examples/05_resnet_cifar10.py --images 5000 --epochs 5

# Two processes with one BLAS thread each: threads that wait for each other spin, and the tests' matrices
# are too small to share.
test: export OPENBLAS_NUM_THREADS = 1
test: .venv/with-test  ## make test PYTEST="-m 'not slow' -k conv"
	$(BIN)/python -m pytest --numprocesses 2 $(PYTEST)

lint: .venv/with-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv/with-peers  ## against PyTorch
	$(BIN)/python benchmarks/resnet_step.py

mutants: .venv/with-test  ## break the engine on purpose; the tests must notice
	$(BIN)/python tests/mutants.py

clean:
	rm -rf .venv .coverage .hypothesis .*_cache build dist htmlcov *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

# .venv/with-EXTRA is a stamp: EXTRA is installed as pyproject.toml now has it.
.venv/with-%: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@
