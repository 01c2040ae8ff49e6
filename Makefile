# Everything runs in .venv, made by `make setup`; only Python 3.11+ with venv and pip must be there.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.setup-done
TORCH  ?= torch==2.13.0
EXTRAS := dev
STUB   :=
ifeq ($(shell uname -s),Linux)
EXTRAS := dev,torchrec
STUB   := ./packaging/fbgemm-gpu
endif

export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint format audit check clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

setup: $(STAMP) ## make .venv and install everything (again only when pyproject.toml changed)

$(STAMP): pyproject.toml packaging/fbgemm-gpu/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make setup: Python 3.11 or newer is needed, found: $$($(PYTHON) --version 2>&1). Mend: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "make setup: '$(PYTHON) -m venv' failed. Mend: install the venv package of your Python" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet $(STUB) -e '.[$(EXTRAS)]'
	$(BIN)/python -m pip check
	@touch $@

demo: setup ## train, evaluate, register and reload a model on synthetic data; ends with a table and a report
	$(BIN)/recsys demo

test: setup ## the test suite and the doctests
	$(BIN)/python -m pytest

test-all: setup ## the slow tests too
	$(BIN)/python -m pytest -m ""

lint: setup ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

audit: setup ## known vulnerabilities of what is installed; fails if they cannot be looked up
	$(BIN)/python packaging/audit.py --must

check: lint test ## what a commit must pass: lint, types, doctests, tests; and the audit, where there is a network
	$(BIN)/python packaging/audit.py

clean: ## remove the environment, caches and everything the jobs wrote under work/
	rm -rf $(VENV) work build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
