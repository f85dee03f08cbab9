# Everything sets itself up: a fresh clone and Python >= 3.11 are enough.
#   make demo    a small study of tiny models in a generated world, from random weights to its report (CPU, minutes)
#   make test    the tests that need no torch
#   make long    a training run of every method, where make test has one of each kind
#   make judge   the tests that compare with torch and transformers
#   make trl     the tests that compare with TRL
#   make ahead   the tests that compile for TPUs, without one
#   make check   lint + types + imports + shell
#   make docs    write the pages of the methods and the table in README.md
# PYTHON=python3.12 picks an interpreter, VENV=path another environment, JOBS=4 more test processes.

VENV ?= .venv
JOBS ?= 2
WORKDIR ?= workdir/quickstart
PYTEST_ARGS ?=
# Each process takes neighbouring tests, which share fixtures and programs, and a process that is done helps another.
PARALLEL = -n $(JOBS) --dist=worksteal
PIP_INSTALL ?= install --quiet

# The newest Python here that the dependencies support and that can make an environment.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 \
	&& { echo $$python; break; }; done)
BIN := $(VENV)/bin

.PHONY: demo test long judge trl ahead check lint types imports shell format docs wheel clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/jaxalign quickstart --workdir=$(WORKDIR) --open

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "not judge and not long" $(PARALLEL) $(PYTEST_ARGS)

long: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m long $(PARALLEL) $$(grep -rl "mark\.long" tests) $(PYTEST_ARGS)

judge: $(VENV)/.installed-test $(VENV)/.installed-judge
	$(BIN)/python -m pytest -m "judge and not trl" $(PARALLEL) $$(grep -rl "mark\.judge" tests) $(PYTEST_ARGS)

trl: $(VENV)/.installed-test $(VENV)/.installed-trl
	$(BIN)/python -m pytest -m trl $(PARALLEL) tests/objectives $(PYTEST_ARGS)

ahead: $(VENV)/.installed-test $(VENV)/.installed-plan
	$(BIN)/python -m pytest -m plan $(PARALLEL) $$(grep -rl "mark\.plan" tests) $(PYTEST_ARGS)

check: lint types imports shell

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

imports: $(VENV)/.installed-dev
	$(BIN)/lint-imports

shell: $(VENV)/.installed-dev
	$(BIN)/shellcheck .ci/run launch/*.sh launch/*.sbatch

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed
	JAX_PLATFORMS=cpu $(BIN)/python docs/generate.py

wheel: $(VENV)/.made
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for the package and one for each extra; pip installs again when the dependencies change.
$(VENV)/.installed: pyproject.toml | $(VENV)/.made
	@echo "installing jaxalign into $(VENV)"
	@$(BIN)/python -m pip $(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-%: pyproject.toml | $(VENV)/.made
	@echo "installing jaxalign[$*] into $(VENV)"
	@$(BIN)/python -m pip $(PIP_INSTALL) -e '.[$*]'
	@touch $@

$(VENV)/.made:
	@if [ -z "$(PYTHON)" ]; then echo "jaxalign needs Python 3.11, 3.12 or 3.13 with venv; set PYTHON=..." >&2; exit 1; fi
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip $(PIP_INSTALL) --upgrade pip
	@touch $@
