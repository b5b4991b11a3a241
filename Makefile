# `make help` lists the targets. Needs Python 3.11, 3.12 or 3.13 and make; PYTHON chooses the interpreter of a new .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help venv run demo test lint format protos bench

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

venv: $(STAMP) ## create .venv with the product (editable) and the test extras

define CHECK_PYTHON
@command -v $(PYTHON) >/dev/null || { echo "make: there is no $(PYTHON); name another: make venv PYTHON=python3.12" >&2; exit 1; }
@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	echo "make: $(PYTHON) is $$($(PYTHON) -V 2>/dev/null || echo no Python that runs); 3.11, 3.12 or 3.13 is needed: make venv PYTHON=python3.12" >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	echo "make: $(PYTHON) has no venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
endef

$(STAMP): pyproject.toml
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,bench]'
	@touch $@

run: venv ## run the daemon on the embedded default in ./data
	$(BIN)/llm-optimizer

demo: venv ## about a minute: real prompts, a learning daemon, a report in build/demo
	$(BIN)/python -m benchmarks.demo

test: venv ## run all tests
	$(BIN)/python -m pytest

lint: venv ## ruff, mypy strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: venv ## lay out the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: venv ## regenerate optimizer/pb from protos/
	$(BIN)/python protos/generate.py

bench: venv ## performance by ratio against floors, in one run
	$(BIN)/python -m benchmarks

SECONDS ?= 220
RESTARTS ?= 5000
.PHONY: soak
soak: venv ## SECONDS= RESTARTS=: about five minutes of kills and reloads under load, then thousands of restarts
	PYTHONPATH=tests $(BIN)/python -m soak --seconds $(SECONDS) --restarts $(RESTARTS)

.PHONY: install uninstall
install: ## DESTDIR= PREFIX=/usr/local: the product, its unit, configuration, completions
	DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' PYTHON='$(PYTHON)' systemd/install.sh

uninstall: ## what install put there, but no data and no configuration
	DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' systemd/install.sh --remove
