# Needs only Python >= 3.11, make and pip. Every target creates the environment it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PACKAGES := $(patsubst %/pyproject.toml,%,$(wildcard integrations/*/pyproject.toml))

.PHONY: help install demo test lint format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(READY)  ## .venv with the library and everything for development

$(READY): pyproject.toml constraints.txt $(PACKAGES:%=%/pyproject.toml)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]" $(PACKAGES:%=-e "%[test]")
	touch $@

demo: $(READY)  ## embed Python's own documentation, store it in Qdrant, ask it instructed questions
	$(BIN)/python examples/demo.py

test: $(READY)  ## all tests; the first run fetches the model (93 MB)
	$(BIN)/python -m pytest
	set -e; for package in $(PACKAGES) integrations/test_one_collection.py; do $(BIN)/python -m pytest $$package; done

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	set -e; for package in $(PACKAGES); do (cd $$package && $(CURDIR)/$(BIN)/mypy); done

format: $(READY)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and what the demo stored
	rm -rf $(VENV) .demo
