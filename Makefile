# What a newcomer and CI run. Needs Python 3.11+ and make; everything else goes into .venv, once.
PYTHON = python3
WORKERS = 2

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --constraint constraints.txt --editable
# One thread a process: the workers already fill the cores. A file stays on one worker, with what its fixtures built.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile

.PHONY: demo demo-full test test-fast test-all test-kill lint types format

demo: .venv/installed
	@$(BIN)/stillhouse demo

# With the methods that take longer.
demo-full: .venv/installed
	@$(BIN)/stillhouse demo --full=true

test: .venv/installed-dev
	@$(PYTEST)

test-fast: .venv/installed-dev
	@$(PYTEST) -m "not slow"

# Every case of the grids of which `make test` takes a sample.
test-all: .venv/installed-dev
	@STILLHOUSE_GUARD=all STILLHOUSE_KERNELS=all STILLHOUSE_LAYOUTS=all STILLHOUSE_ORDERS=all STILLHOUSE_PAIRS=all $(PYTEST)

# 200 kills, of which `make test` does 20; each is a test of its own.
test-kill: .venv/installed-dev
	@STILLHOUSE_KILLS=200 $(PYTEST) --dist=load tests/kill/test_kills.py

lint: .venv/installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: .venv/installed-dev
	@$(BIN)/pyright --pythonpath $(BIN)/python

format: .venv/installed-dev
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

.venv/bin/pip:
	@command -v $(PYTHON) >/dev/null || { echo "stillhouse needs Python 3.11 or newer; there is no '$(PYTHON)' here: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("stillhouse needs Python 3.11 or newer and %s is %d.%d: make PYTHON=python3.11 or a newer one" % (sys.executable, sys.version_info[0], sys.version_info[1]))'
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/pip
	$(INSTALL) .
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/pip
	$(INSTALL) '.[dev]'
	@touch .venv/installed $@
