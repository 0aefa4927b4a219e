# Everything runs from .venv, which `make setup` creates from pyproject.toml and constraints.txt.
# PYTHON: the first of these that is new enough; name another with `make PYTHON=... setup`.
NEW_ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Once --quiet: it still says why an index cannot be reached.
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PINNED := --constraint constraints.txt
SDKS := 1.109 2.54 3.52

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-sdks test-upstream check bench bench-plan bench-polling pins clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(STAMP) ## Create .venv with all extras

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(NEW_ENOUGH)' || { \
		echo "Runbell needs Python 3.11 or newer, with venv; name one: make PYTHON=/path/to/python setup"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing into $(VENV) ..."
	@$(PIP) install $(PINNED) pip
	@$(PIP) install $(PINNED) --build-constraint constraints.txt --editable '.[all]' --group dev
	@touch $(STAMP)

demo: setup ## Start the service and await five runs with the stock openai SDK
	@$(BIN)/runbell demo

test: setup ## Run the tests
	@$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

test-sdks: setup $(SDKS:%=.venv-sdk-%/.installed) ## Run the scenarios with every SDK that matters
	@$(BIN)/python -m tests.sdks $(SDKS)

.venv-sdk-%/.installed: tests/sdks/constraints-%.txt
	@echo "Installing the openai SDK $* into .venv-sdk-$* ..."
	@$(PYTHON) -m venv --clear .venv-sdk-$*
	@.venv-sdk-$*/bin/python -m pip --disable-pip-version-check --quiet install \
		--constraint $< openai
	@touch $@

# LiteLLM's proxy pins much of what we use to other versions: it has an environment of its own.
UPSTREAM := .venv-upstream
UPSTREAM_STAMP := $(UPSTREAM)/.installed

test-upstream: setup $(UPSTREAM_STAMP) ## Test real models against LiteLLM's proxy
	@RUNBELL_TEST_LITELLM=$(CURDIR)/$(UPSTREAM)/bin/litellm \
		$(BIN)/python -m pytest tests/independent --session-timeout 300 $(ARGS)

$(UPSTREAM_STAMP): constraints-upstream.txt
	@test -x $(UPSTREAM)/bin/pip || $(PYTHON) -m venv --clear $(UPSTREAM)
	@echo "Installing LiteLLM's proxy into $(UPSTREAM) ..."
	@$(UPSTREAM)/bin/python -m pip --disable-pip-version-check --quiet install \
		--constraint constraints-upstream.txt 'litellm[proxy]'
	@touch $(UPSTREAM_STAMP)

check: setup ## Lint, types, import contracts, and the files in deploy/
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python deploy/lint.py

bench: setup ## Measure CPU per operation, delays and memory; prints JSON
	@$(BIN)/python -m bench $(ARGS)

bench-plan: setup ## Hold the plan against the real waiter on a real service; prints a table
	@$(BIN)/python -m bench.planning $(ARGS)

bench-polling: setup ## Hold polling policies against the exact optimum; prints tables
	@$(BIN)/python -m bench.polling $(ARGS)

pins: ## Renew constraints.txt with the newest versions of everything
	@$(PYTHON) -m venv --clear build/pins
	@build/pins/bin/python -m pip install --quiet --upgrade pip
	@build/pins/bin/python -m pip install --quiet '.[all]' --group dev hatchling editables
	@{ grep '^#' constraints.txt; build/pins/bin/python -m pip freeze --quiet --all \
		--exclude runbell --exclude setuptools; } > build/constraints.txt
	@mv build/constraints.txt constraints.txt && rm -rf build/pins

clean: ## Remove .venv and caches
	rm -rf $(VENV) .venv-sdk-* $(UPSTREAM) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
