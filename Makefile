# `make serve` and `make test` work on a machine that has Python 3.11+ and make. `make help` lists the rest.
VENV ?= .venv
EXTRAS ?= cpu,dev
MODEL ?= smollm2-135m
HOST ?= 127.0.0.1
PORT ?= 8000
# Further options, such as: make serve ARGS="--kv-cache-memory 1GiB"   make test ARGS="-k scheduler"
ARGS ?=

BIN := $(VENV)/bin
comma := ,
STAMP := $(VENV)/.setup-$(subst $(comma),-,$(EXTRAS))
export VENV EXTRAS PYTHON

.DEFAULT_GOAL := help
.PHONY: help setup serve test lint format types imports unit matrix tables bench clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# The stamp makes the second time instant; a change of the pins or of the project's metadata installs again.
$(STAMP): pyproject.toml constraints.txt scripts/setup.sh
	@scripts/setup.sh
	@touch $@

setup: $(STAMP) ## make .venv and install the package with its CPU and development extras

serve: setup ## get MODEL (default: smollm2-135m) and serve it on HOST:PORT
	@$(BIN)/parhelion serve $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

test: setup lint types imports unit ## linter, types, import contracts and all tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

unit: setup
	@# One process more than two cores have, for many tests wait for what they have started. Threads that wait for work
	@# must not keep a core busy meanwhile.
	@# Files are taken in the order of tests/conftest.py, the longest first.
	@# Processes that tests start read compiled modules, also where the environment keeps Python from writing them.
	@# Each compiles by itself: TorchInductor's own pool would be one more for each of them.
	PYTHONDONTWRITEBYTECODE= OMP_WAIT_POLICY=passive TORCHINDUCTOR_COMPILE_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

format: setup ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## measure the figures that README.md shows (minutes; leave the machine alone meanwhile)
	$(BIN)/python benchmarks/cpu_vs_transformers.py --compile
	$(BIN)/python benchmarks/scheduler_overhead.py
	$(BIN)/python benchmarks/host_overhead.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/inductor.py
	$(BIN)/python benchmarks/speculation.py
	$(BIN)/python benchmarks/tables.py

matrix: setup ## build the tile programs for every target, as far as they are said to build (minutes; needs no GPU)
	$(BIN)/parhelion build --check --model qwen3-8b --quick --expect tests/tuning/expected_matrix.json

tables: setup ## write the tables of README.md and docs/ again from benchmarks/results/
	$(BIN)/python benchmarks/tables.py

clean: ## remove the environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
