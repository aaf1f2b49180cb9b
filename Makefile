# `make demo` or `make test` is all that a fresh machine needs: both make .venv and install into it.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The first of these that is 3.11 to 3.13 (TensorFlow has no later one) makes the environment.
# Name another with PYTHON=.
PYTHONS := $(PYTHON) python3.11 python3.12 python3.13 python3
# Extra arguments for pytest, for example: make test PYTEST_ARGS='-k geometry -x'
PYTEST_ARGS ?=
# Two test files at a time; the tests of one file share what they make.
IN_PARALLEL := --numprocesses 2 --dist loadfile
# Extra arguments for the demo, for example: make demo DEMO_ARGS='--seed 7 --run_dir demo_7'
DEMO_ARGS ?=

.PHONY: help install system demo test test-all engines lint format lock clean

help:  ## List these targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED)  ## Make .venv with the library (editable) and the test tools

demo: $(INSTALLED)  ## Make synthetic tissue, segment and score it (3 minutes): demo_run/report.html
	$(BIN)/python -m pipelines.demo $(DEMO_ARGS)

test: $(INSTALLED) system  ## Run the default tests (5 to 10 minutes on 2 cores)
	$(BIN)/pytest $(IN_PARALLEL) $(PYTEST_ARGS)

test-all: $(INSTALLED) system  ## Run all tests, the slow and engine ones too
	$(BIN)/pytest $(IN_PARALLEL) -m '' $(PYTEST_ARGS)

engines:  ## Fetch Flink (Maven) and Prism (Go), on which the engine tests run, into .engines
	deploy/engines/fetch

lint: $(INSTALLED)  ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## Format the code and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Beam requires one google-apitools before Python 3.13 and another from there on.
lock:  ## Resolve setup.py afresh and write the tested versions to constraints.txt
	rm -rf $(VENV) && $(MAKE) install CONSTRAINTS=
	{ sed -n '/^#/p' constraints.txt; $(BIN)/pip freeze --exclude-editable | \
	  sed 's/^google-apitools==.*/&; python_version < "3.13"/'; } > $(VENV)/pins
	mv $(VENV)/pins constraints.txt

clean:  ## Remove the environment and all caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

system:
	@PYTHON='$(PYTHON)' .ci/system_packages

CONSTRAINTS ?= --constraint constraints.txt

$(INSTALLED): setup.py pyproject.toml constraints.txt | system
	@test -x $(BIN)/python || for python in $(PYTHONS); do \
	  if $$python -c 'import ensurepip, sys; assert (3, 11) <= sys.version_info < (3, 14)' 2> /dev/null; \
	  then echo "Making $(VENV) with $$($$python --version)"; $$python -m venv $(VENV); break; fi; \
	done
	@echo 'Installing the library and the test tools (a few minutes, 3 GB)'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) --editable '.[test]'
	@touch $@
