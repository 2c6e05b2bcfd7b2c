# Everything this project does by command. Each target is a few `python -m` lines; README.md lists them for use without make.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?=
ARGS ?=
WORKERS ?= 2
NOTEBOOKS ?= $(wildcard notebooks/*.ipynb)
RESULTS ?= experiments/benchmarks/results

PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest -n $(WORKERS)
# One cache of compiled programs for tests, tour, benchmarks and notebooks; nothing in it is ever needed.
export JAX_COMPILATION_CACHE_DIR ?= $(HOME)/.cache/jaxkit/xla
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.2

.PHONY: help venv run test test-slow test-all lint format bench notebooks gpu lock clean clean-cache

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "PYTHON=python3.12 chooses the Python, VENV=folder the virtual environment (.venv), ARGS='...' is passed on."

venv: ## the virtual environment with the locked versions; made once, and again when its inputs change
	@bash .ci/venv "$(VENV)" "$(PYTHON)"

run: venv ## the tour: every study in small, and a report
	$(PY) -m experiments.tour $(ARGS)

test: venv ## the fast tests
	$(PYTEST) -m "not slow and not gpu" $(ARGS)

test-slow: venv ## the tests that take longer than five seconds each
	$(PYTEST) -m "slow and not gpu" $(ARGS) || test $$? -eq 5  # 5: no test has the marker

test-all: venv ## every test that needs no GPU
	$(PYTEST) -m "not gpu" $(ARGS)

lint: venv ## style, types and the direction of imports
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-logo

format: venv ## rewrite the files as lint wants them
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: venv ## the benchmarks on this machine
	@set -e; for file in $(wildcard experiments/benchmarks/[a-z]*.py); do \
	  name=$$(basename $$file .py); echo "$(PY) -m experiments.benchmarks.$$name $(ARGS)"; \
	  $(PY) -m experiments.benchmarks.$$name $(ARGS); done

notebooks: venv ## execute every notebook (the files stay as they are)
	@set -e; for file in $(NOTEBOOKS); do \
	  echo "$(PY) -m jupyter execute $$file"; $(PY) -m jupyter execute --timeout=600 $$file; done

gpu: venv ## GPU tests and benchmarks (installs JAX for CUDA 13; GPU=gpu-cuda12 for CUDA 12)
	$(PY) -m pip install -q -c requirements.lock -e ".[$(or $(GPU),gpu)]"
	$(PY) -m pytest -m gpu $(ARGS) || test $$? -eq 5
	@mkdir -p $(RESULTS)
	$(MAKE) bench ARGS="--out $(RESULTS)"

lock: venv ## remake requirements.lock with the newest versions
	$(PY) -m pip install -q uv
	$(PY) -m uv pip compile --universal --upgrade --no-header --no-annotate --no-emit-index-url --quiet \
	  pyproject.toml --extra dev --extra notebooks -o requirements.lock

clean: ## remove the virtual environment and what tools left behind
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

clean-cache: ## remove the cache of compiled programs
	rm -rf $(JAX_COMPILATION_CACHE_DIR)
