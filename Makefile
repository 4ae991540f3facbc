# One file, three commands: `make run`, `make test`, `make check`. Each installs what it needs.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
UV_VERSION := 0.13.9
# How many test processes run at once; much of the tests' time is waiting.
TEST_PROCESSES ?= 3
BIN := .venv/bin
UV := $(BIN)/uv
PACKAGES := packages/state-tracking-api packages/claude-projects
MANIFESTS := $(addsuffix /pyproject.toml,$(PACKAGES))
# The server's and the client's dependencies are in requirements.lock; what development adds is in requirements-dev.lock.
EXTRAS := --extra serve --extra embedded --extra redis --extra srv --extra lambda
COMPILE := $(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-annotate --no-header --python-version 3.11

# A file's tests stay together: many share a server.
PYTEST := $(BIN)/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --quiet

# Parts that bring targets of their own add what `make check` and `make test` call for them.
PART_CHECKS :=
PART_TESTS :=
include $(wildcard infra/targets.mk packages/*/targets.mk docs/targets.mk)

.PHONY: help
help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: run
run: .venv/.run ## Serve the API and the dashboard on http://127.0.0.1:3000, on a real MongoDB
	@exec $(BIN)/state-tracking-api dev

.PHONY: test
test: .venv/.dev node_modules/.installed ## Run every test: server, client, dashboard, deployment, extension
	@.ci/system-packages chromium redis-server promtool faketime
	$(PYTEST) $(PYTEST_ARGS)
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target $(PART_TESTS)

.PHONY: test-fast
test-fast: .venv/.dev ## Run the Python tests that take no longer than a few seconds each
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

.PHONY: faults
faults: .venv/.dev node_modules/.installed ## Rounds of random faults for MINUTES=5; SEED=n repeats one (docs/RELIABILITY.md)
	@.ci/system-packages faketime
	$(BIN)/python tests/faults/faults.py --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED)) $(FAULTS_ARGS)

.PHONY: check
check: .venv/.dev $(PART_CHECKS) ## Formatting, lint, types and import rules; starts no service
	.ci/check-locks
	$(if $(ADVISORIES),$(BIN)/python .ci/audit-locks $(ADVISORIES))
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports
	$(BIN)/basedpyright

.PHONY: audit
audit: .venv/.dev node_modules/.installed ## Ask the advisory databases about every locked version; ADVISORIES=directory asks them on disk
ifdef ADVISORIES
	$(BIN)/python .ci/audit-locks $(ADVISORIES)
else
	for lock in *.lock infra/*.lock; do \
	    $(BIN)/pip-audit --strict --require-hashes --disable-pip --progress-spinner off --requirement $$lock || exit; done
	$(PNPM) audit
endif

.PHONY: fuzz
fuzz: .venv/.dev ## Ask the API thousands of questions that nobody would ask: make fuzz EXAMPLES=200
	FUZZ_EXAMPLES=$(or $(EXAMPLES),200) $(BIN)/pytest --quiet --timeout 0 \
	    packages/state-tracking-api/tests/properties packages/state-tracking-api/tests/contract/test_openapi.py

.PHONY: format
format: .venv/.dev ## Put the code into shape
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

.PHONY: lock
lock: $(UV) ## Resolve the newest versions that the manifests allow
	$(COMPILE) --upgrade $(MANIFESTS) $(EXTRAS) --output-file requirements.lock
	$(COMPILE) --upgrade --group dev --constraint requirements.lock --output-file requirements-dev.lock

.PHONY: clean
clean: ## Remove what the commands above have made, the data excepted
	rm -rf .venv .cache dist .pytest_cache .ruff_cache .hypothesis

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); set PYTHON=/path/to/a/newer/python3" >&2; exit 1; }
	@echo "Setting up .venv (once)" >&2
	@$(PYTHON) -m venv .venv || { echo "$(PYTHON) cannot make a virtual environment; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

# The packages are installed in place, so that an edit counts at once; the stamps follow locks and manifests.
.venv/.run: requirements.lock $(MANIFESTS) | $(UV)
	@VIRTUAL_ENV=$(CURDIR)/.venv $(UV) pip install --quiet --require-hashes --requirement requirements.lock
	@VIRTUAL_ENV=$(CURDIR)/.venv $(UV) pip install --quiet --no-deps $(addprefix --editable ,$(PACKAGES))
	@touch $@

.venv/.dev: requirements-dev.lock .venv/.run
	@VIRTUAL_ENV=$(CURDIR)/.venv $(UV) pip install --quiet --require-hashes --requirement requirements-dev.lock
	@touch $@
