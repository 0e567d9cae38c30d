# `make lab` and `make test` each do everything on a fresh machine with Python 3.11 or newer.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

VERSION ?=
OTHER := .venv-torch-$(VERSION)

# Many tests start Python anew. Where a container image forbids bytecode, each of them would compile the library again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup lab pdf test test-full test-torch check format docs release-check release clean

help:            ## list the targets
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

setup: $(READY)  ## make .venv with everything the other targets need

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "TightGrad needs Python 3.11 or newer; run make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[lab,dev,field]'
	touch $(READY)

lab: $(READY)    ## train the case studies on the embedded data and build the report
	$(BIN)/tightgrad lab

pdf: $(READY)    ## print the book and the slides of report/ to PDF; needs Chromium
	$(BIN)/python -m tightgrad_lab.report.pdf report

test: $(READY)   ## the tests that take seconds each (10 minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n 3 --dist loadfile

test-full: $(READY)  ## every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile

test-torch:      ## smoke, parity and unit tests on another torch, as in make test-torch VERSION=2.9.1
	test -n "$(VERSION)" || { echo "name a torch, as in make test-torch VERSION=2.9.1"; exit 2; }
	test -x $(OTHER)/bin/python || $(PYTHON) -m venv $(OTHER)
	grep -v '^torch==' constraints.txt > $(OTHER)/constraints.txt
	$(OTHER)/bin/python -m pip install --quiet --disable-pip-version-check -c $(OTHER)/constraints.txt 'torch==$(VERSION)' -e '.[dev]'
	OMP_NUM_THREADS=1 $(OTHER)/bin/python -m pytest -p no:cacheprovider -m 'not slow' -n 2 --dist loadfile \
		tests/smoke tests/parity tests/tightgrad --ignore=tests/tightgrad/integrations

check: $(READY)  ## ruff, mypy (strict on src), import contracts, links, spelling, prose
	$(BIN)/ruff check src tests packages tools
	$(BIN)/ruff format --check src tests packages tools
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell *.md docs src tests packages tools examples benchmarks
	$(BIN)/python tools/check_prose.py
	OMP_NUM_THREADS=1 $(BIN)/python tools/check_links.py

format: $(READY) ## format the code
	$(BIN)/ruff check --fix src tests packages tools
	$(BIN)/ruff format src tests packages tools

docs: $(READY)   ## build the documentation site in site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo site/index.html

release-check: $(READY)  ## build the wheels, install them anew; print sizes, import time and what came of it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[release]'
	$(BIN)/python packages/release.py check

release: $(READY)  ## build and check what is uploaded, in dist/; CONTRIBUTING.md has the steps
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[release]'
	$(BIN)/python packages/release.py build

clean:           ## remove what the targets made
	rm -rf $(VENV) .venv-torch-* dist runs report site .pytest_cache .mypy_cache .ruff_cache .hypothesis
