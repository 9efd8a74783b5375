# Needs only Python >= 3.11, make and pip. Every target creates the environment it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM_SHORT := checks congruence scheduler server
PACKAGES := $(patsubst %/pyproject.toml,%,$(wildcard integrations/*/pyproject.toml))

.PHONY: help install demo test test-vllm test-vllm-short soak lint format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

install: $(READY)  ## .venv with the library and everything for development

$(READY): pyproject.toml constraints.txt $(PACKAGES:%=%/pyproject.toml)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]" $(PACKAGES:%=-e "%[test]")
	touch $@

demo: $(READY)  ## embed Python's own documentation, store it in Qdrant, ask it instructed questions
	$(BIN)/python examples/demo.py

test: $(READY)  ## all tests; the first run fetches the model (93 MB)
	$(BIN)/python -m pytest
	set -e; for package in $(PACKAGES); do $(BIN)/python -m pytest $$package; done
	$(BIN)/python -m pytest $(wildcard integrations/test_*.py)

test-vllm:  ## the vLLM suite, in .venv-vllm (3.4 GB, made on first use; CPU)
	$(PYTHON) scripts/vllm_environment.py $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pytest tests/vllm --durations=10

test-vllm-short:  ## a part of it: vectors, preemption and aborts, the server, the checks at start
	$(PYTHON) scripts/vllm_environment.py $(VENV)-vllm
	GIRCSE_VLLM_TEXTS=45 $(VENV)-vllm/bin/python -m pytest $(VLLM_SHORT:%=tests/vllm/test_%.py) --durations=10

soak: $(READY)  ## 100 kills of an ingest on every kind of store, 5 with the real model (half an hour)
	GIRCSE_SOAK=1 $(BIN)/python -m pytest tests/soak -s

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	set -e; for package in $(PACKAGES); do (cd $$package && $(CURDIR)/$(BIN)/mypy); done

format: $(READY)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and what the demo stored
	rm -rf $(VENV) $(VENV)-vllm .demo
