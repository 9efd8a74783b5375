# Needs only Python >= 3.11, make and pip. Every target creates the environment it needs in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
KILLS ?= 334
SEED ?= 1
REQUESTS ?= 100000
# Where `make lock` finds torch without CUDA. Offline: make lock TORCH="--find-links FOLDER", with its wheel in FOLDER.
TORCH ?= --torch-backend cpu
VLLM_SHORT := checks congruence scheduler server
PACKAGES := $(patsubst %/pyproject.toml,%,$(wildcard integrations/*/pyproject.toml))
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
# One thread per worker: two OpenMP threads on a busy 2-core machine run ten times slower. Compiled modules are kept,
# because the tests start hundreds of processes.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
XDIST := --dist loadgroup -n

.PHONY: help install demo unit test test/integrations one coverage test-vllm test-vllm-short soak lint lock docs format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

install: $(READY)  ## .venv with the library and everything for development

$(READY): pyproject.toml constraints.txt $(PACKAGES:%=%/pyproject.toml)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]" $(PACKAGES:%=-e "%[test]")
	touch $@

demo: $(READY)  ## embed Python's own documentation, store it in Qdrant, ask it instructed questions
	$(BIN)/python examples/demo.py

unit: $(READY)  ## the fast tests: no model, nothing that starts or kills processes
	$(PYTEST) $(XDIST) $$(($(WORKERS) + 1)) tests/unit -m "not model and not slow and not gpu"

test: $(READY)  ## all tests but vLLM's; the first run fetches the model (93 MB)
	$(PYTEST) $(XDIST) $$(($(WORKERS) + 1)) tests --durations=15  # one more worker, because many tests wait for processes
	$(MAKE) --no-print-directory --jobs=$(WORKERS) $(SYNC) $(PACKAGES:%=test/%) test/integrations

# One process per package, WORKERS at a time: workers of one run would each load the model.
test/integrations: $(READY)
	$(PYTEST) $(wildcard integrations/test_*.py)

test/%: $(READY)
	$(PYTEST) $*

one: $(READY)  ## one file or test: make one T=tests/unit/test_spec.py, or T="tests/unit -k fingerprint"
	$(BIN)/python -m pytest $(T)

coverage: $(READY)  ## the tests with a coverage report, in build/coverage
	$(PYTEST) $(XDIST) $(WORKERS) tests --cov gircse_rag --cov-report term:skip-covered --cov-report html:build/coverage

test-vllm:  ## the vLLM suite, in .venv-vllm (3.4 GB, created on first use; CPU)
	$(PYTHON) scripts/vllm_environment.py $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pytest tests/vllm --durations=10

test-vllm-short:  ## a part of it: vectors, preemption and aborts, the server, the checks at start
	$(PYTHON) scripts/vllm_environment.py $(VENV)-vllm
	GIRCSE_VLLM_TEXTS=45 $(VENV)-vllm/bin/python -m pytest $(VLLM_SHORT:%=tests/vllm/test_%.py) --durations=10

soak: $(READY)  ## 1,000 kills of an ingest over all kinds of stores, 100,000 requests to a server (KILLS= per store, SEED=, REQUESTS=)
	GIRCSE_SOAK_REQUESTS=$(REQUESTS) GIRCSE_SOAK_KILLS=$(KILLS) GIRCSE_SOAK_SEED=$(SEED) $(BIN)/python -m pytest tests/soak tests/unit/cli/test_signals.py -s

lint: $(READY)  ## ruff, mypy and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	set -e; for package in $(PACKAGES); do (cd $$package && $(CURDIR)/$(BIN)/mypy); done

lock:  ## requirements-cpu.txt: the versions of constraints.txt with hashes, for Linux without a GPU (needs uv)
	echo hatchling | uv pip compile pyproject.toml - --extra readers --extra edge --extra eval --extra train -c constraints.txt $(TORCH) \
	  --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes --no-annotate \
	  --custom-compile-command "make lock" --quiet -o requirements-cpu.txt

docs: $(READY)  ## the documentation site in build/site; a broken link is an error
	$(BIN)/mkdocs build --strict --quiet

format: $(READY)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environments, build results and what the demo stored
	rm -rf $(VENV) $(VENV)-vllm build .demo
