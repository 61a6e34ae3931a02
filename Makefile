# `make` lists the tasks; each one sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
export MPLBACKEND := Agg

.PHONY: help demo test test-slow check bench docs

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## / \t/' | expand -t 12

demo: .venv/installed ## the main job on handwritten digits: pretrain, transfer, report
	$(BIN)/unfreeze demo

test: .venv/installed-dev ## the test suite
	$(BIN)/python -m pytest

test-slow: .venv/installed-dev ## the proofs that take minutes
	$(BIN)/python -m pytest -m slow --timeout 2400

check: .venv/installed-dev ## lint, format, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_floors.py

bench: .venv/installed-dev ## the figures of docs/RESULTS.md that need pictures: make bench ARCHIVE=cifar10.zip
	$(if $(ARCHIVE),,$(error Name the archive of pictures: make bench ARCHIVE=cifar10.zip))
	$(BIN)/python benchmarks/cifar.py --archive $(ARCHIVE) --seeds 0 1 2

docs: .venv/installed ## write docs/SETTINGS.md from the settings
	$(BIN)/python -m unfreeze.cli.reference > docs/SETTINGS.md

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install -c constraints.txt -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@
