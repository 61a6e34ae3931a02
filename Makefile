# `make` lists the tasks; each one sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
export MPLBACKEND := Agg
export NO_MKDOCS_2_WARNING := 1
BENCH := $(BIN)/python benchmarks
told = --json .bench/$(1).json --plot .bench/$(1).png

.PHONY: help demo test test-slow check bench docs notebooks site

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## / \t/' | expand -t 12

demo: .venv/installed ## the main job on handwritten digits: pretrain, transfer, report
	$(BIN)/unfreeze demo

test: .venv/installed-dev ## the test suite
	$(BIN)/python -m pytest -n auto --dist loadfile

test-slow: .venv/installed-dev ## the proofs that take minutes
	$(BIN)/python -m pytest -m "slow and not alone" -n auto --dist loadfile --timeout 2400
	$(BIN)/python -m pytest -m "slow and alone" --timeout 2400

check: .venv/installed-dev ## lint, format, types, floors, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=benchmarks $(BIN)/mypy benchmarks
	$(BIN)/python -m pytest -q tests/test_floors.py
	$(BIN)/mkdocs build --strict --quiet

bench: .venv/installed-dev ## the figures of speed: make bench PHOTOS=photographs.zip CIFAR=cifar10.zip
	$(if $(and $(PHOTOS),$(CIFAR)),,$(error Name two archives: PHOTOS=photographs.zip CIFAR=cifar10.zip))
	rm -rf .bench && mkdir .bench && date +%s > .bench/began
	$(BIN)/python -m zipfile -e $(PHOTOS) .bench/photos
	$(BIN)/python -m zipfile -e $(CIFAR) .bench/cifar
	$(BENCH)/startup.py --rounds 3 $(call told,startup)
	$(BENCH)/views.py --images .bench/photos $(call told,views)
	$(BENCH)/views.py --images .bench/cifar --small $(call told,views-small)
	$(BENCH)/scan.py --archive $(PHOTOS) $(call told,scan)
	$(BENCH)/step.py $(call told,step)
	$(BENCH)/end_to_end.py --images .bench/photos --peer plain --count 32 $(call told,end-to-end)
	$(BENCH)/growth.py --starts 2 --scratch .bench $(call told,growth)
	$(BENCH)/fuzz.py --json .bench/fuzz.json
	$(BENCH)/damage.py --json .bench/damage.json
	$(BENCH)/names.py --json .bench/names.json
	@echo "All in $$(( $$(date +%s) - $$(cat .bench/began) )) s; figures and images are in .bench."

docs: .venv/installed ## write docs/SETTINGS.md and the types of `import unfreeze` from the settings
	$(BIN)/python -m unfreeze.cli.settings_page > docs/SETTINGS.md
	$(BIN)/python -m unfreeze.cli.stub > .stub.pyi
	mv .stub.pyi src/unfreeze/__init__.pyi

notebooks: .venv/installed-dev ## execute examples/*.ipynb: make notebooks DATA=FOLDER of data and weights
	$(BIN)/python examples/run_notebooks.py --data $(or $(DATA),.)

site: .venv/installed-dev ## the documentation as a site, in site/: python -m http.server -d site shows it
	$(BIN)/mkdocs build --strict

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install -c constraints.txt -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@
