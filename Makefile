# Two targets do everything on a fresh machine: `make bench` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
JOBS ?= 2

# Hundreds of processes import the package and the tests: where this is set, each would compile them again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: bench test test-all test-values test-compiled lint types schema clean

bench: $(VENV)/.installed
	$(BIN)/gpubench compare-opts $(ARGS)

# Most tests share the cores, a file at a time in the order of their names: sorted by number, files of few and long
# tests would come last. Those that compare speeds come one after the other. ARGS may name tests that are all of one
# kind: pytest's 5 says that there is none of the other.
SHARED := -n $(JOBS) --dist loadfile --no-loadscope-reorder
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(SHARED) -m "not slow and not measures and not compiled and not values" $(ARGS) || [ $$? = 5 ]
	$(BIN)/python -m pytest -m "measures and not slow" $(ARGS) || [ $$? = 5 ]

test-all: test
	$(BIN)/python -m pytest $(SHARED) -m "slow and not measures" $(ARGS) || [ $$? = 5 ]
	$(BIN)/python -m pytest -m "slow and measures" $(ARGS) || [ $$? = 5 ]

# Every value of every toggle on every bundled workload: some 15 minutes on 2 cores. `make test` tries a sample.
test-values: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m values $(ARGS)

# Every bundled workload in every mode, compiled: some 10 minutes on 2 cores.
test-compiled: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m compiled $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("gpubench needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed
