# Everything here runs in .venv, which the first target that needs it creates. Another Python: make demo PYTHON=python3.12
PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Small networks on few cores: one thread per process is fastest.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow conformance mctx browser docs lint format bench clean

help: ## list what make can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## create .venv with the pinned set (the other targets do it by themselves)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "sb3-mbrl needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned set into $(VENV); this takes some minutes"
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(INSTALLED) ## train MBPO next to SAC on Pendulum-v1: a table and a plot, under 5 minutes
	$(BIN)/python examples/demo.py

test: $(INSTALLED) ## the tests without the learning tests, under 15 minutes
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS)

test-slow: $(INSTALLED) ## small learning tests
	$(BIN)/python -m pytest -m slow -n $(WORKERS)

conformance: $(INSTALLED) ## SB3's and sb3-contrib's own tests on our classes, and rl-zoo3's commands
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[dev,conformance]"
	$(BIN)/python -m pytest -q tests/test_zoo.py tests/algorithms/muzero/test_muzero_atari.py
	$(BIN)/python -m tests.conformance --workers $(WORKERS)

mctx: ## the tree search against DeepMind's mctx, in an environment of its own (.venv-mctx)
	test -x .venv-mctx/bin/python || $(PYTHON) -m venv .venv-mctx
	.venv-mctx/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[jit,mctx]" pytest
	.venv-mctx/bin/python -c "import mctx"
	.venv-mctx/bin/python -m pytest -q tests/planners/tree_search/test_search_mctx.py

browser: $(INSTALLED) ## the page of a search tree in Chromium, where there is one
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[browser]"
	$(BIN)/python -m pytest -q tests/diagnostics/test_tree_page_in_a_browser.py

docs: $(INSTALLED) ## build the site in build/docs, every warning an error
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[docs]"
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "Open build/docs/index.html"

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED) ## let ruff mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(INSTALLED) ## measure speed (tests/benchmarks); leave the machine alone meanwhile
	$(BIN)/python -m tests.benchmarks

clean: ## remove .venv and caches
	rm -rf $(VENV) .venv-mctx .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
