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

bench: .venv/installed-dev ## the figures of speed: make bench PHOTOS=photographs.zip CIFAR=cifar10.zip
	$(if $(and $(PHOTOS),$(CIFAR)),,$(error Name two archives: PHOTOS=photographs.zip CIFAR=cifar10.zip))
	rm -rf .bench && mkdir .bench
	$(BIN)/python -m zipfile -e $(PHOTOS) .bench/photos
	$(BIN)/python -m zipfile -e $(CIFAR) .bench/cifar
	$(BIN)/python benchmarks/startup.py --json .bench/startup.json
	$(BIN)/python benchmarks/views.py --images .bench/photos --json .bench/views.json
	$(BIN)/python benchmarks/views.py --images .bench/cifar --small --json .bench/views-small.json
	$(BIN)/python benchmarks/scan.py --archive $(PHOTOS) --json .bench/scan.json
	$(BIN)/python benchmarks/step.py --rounds 3 --json .bench/step.json
	$(BIN)/python benchmarks/fuzz.py --json .bench/fuzz.json

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
