# Two commands do everything from a fresh clone: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# Data sets that are not downloaded, where a folder of them lies beside this one.
ifneq ($(wildcard ../shared/data),)
export FPE_DATA ?= $(abspath ../shared/data)
endif

.PHONY: help setup demo test lint docs dist bench zoo results evidence clean

help:  ## List the targets.
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/'

setup: $(READY)  ## Make .venv and install fpe in it, with what its tests need.

$(READY): pyproject.toml reproduction/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]' --editable ./reproduction
	@touch $(READY)

demo: setup  ## Find the best networks of 150, 300 and 600 weights for handwritten digits.
	$(BIN)/fpe fit digits --budget 600

test: setup  ## Run all tests.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: setup  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: setup  ## Execute the tutorials, and make the documentation site in build/site.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	OMP_NUM_THREADS=1 NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: setup  ## Build the wheel and the source distribution in dist, and check their metadata.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build twine
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

bench: setup  ## Measure speed and memory against named alternatives.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt jax emlearn==0.23.2 m2cgen==0.10.0
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt sparselab==0.2.2
	$(BIN)/python reproduction/benchmarks/expand.py
	$(BIN)/python reproduction/benchmarks/expand.py --model bert
	$(BIN)/python reproduction/benchmarks/ensemble.py
	$(BIN)/python reproduction/benchmarks/rewiring.py
	$(BIN)/python reproduction/benchmarks/pruning.py
	$(BIN)/python reproduction/benchmarks/alternatives.py
	$(BIN)/fpe bench

# timm and torchvision, in a folder of their own: beside torch for CPUs, torchvision would break transformers.
build/zoo/.ready: $(READY) constraints.txt
	rm -rf build/zoo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps --target build/zoo timm torchvision
	@touch $@

zoo: build/zoo/.ready  ## Take more than 120 tiny models through all steps, and make the page of what works.
	OMP_NUM_THREADS=1 $(BIN)/python reproduction/pages/make.py models

results: build/zoo/.ready  ## Make the tables and figures of docs/results again (about five hours).
	$(BIN)/python reproduction/pages/make.py all

evidence: setup  ## Make docs/evidence again (about ten hours; with QUICK=1 a small copy in fpe-out/quick).
	$(BIN)/python reproduction/pages/make.py evidence $(if $(QUICK),--quick)

clean:  ## Remove .venv and caches; results stay.
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist src/*.egg-info reproduction/src/*.egg-info
