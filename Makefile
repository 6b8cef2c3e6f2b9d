# `make` lists what there is. Everything is installed into .venv and .local; `make clean` removes both.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CHECKED := streams models export deploy tests

# Stamps: a file's date says when its step was last done, so that a second run does nothing.
VENV := .venv/.stamp
DEMO := .venv/.stamp-demo
DEV := .venv/.stamp-dev
JARS := .local/kafka-libs/.stamp

.PHONY: help demo test check format stack bench fuzz faults soak schemas constraints clean prerequisites

help: ## list these commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

demo: $(DEMO) ## the whole engine in one terminal; installs neither torch nor Java. ARGS="--output json"
	@$(BIN)/driftline demo $(ARGS)

test: $(DEV) $(JARS) ## every test, against a real Kafka and a real Redis. ARGS="-k window"
	$(BIN)/python -m pytest $(ARGS)

check: $(DEV) ## lint, formatting, types, import rules, known vulnerabilities
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CHECKED)
	$(BIN)/lint-imports
	$(BIN)/python -m tests.audit

format: $(DEV) ## format the code and fix what can be fixed
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

stack: $(DEMO) $(JARS) ## a real Kafka and a real Redis on this machine until Ctrl-C; prints their addresses
	@$(BIN)/python -m deploy.local.stack

bench: $(DEV) $(JARS) ## the benchmarks. ARGS names which
	$(BIN)/python -m tests.benchmarks $(ARGS)

fuzz: $(DEV) $(JARS) ## a million hostile messages through ingest, every one accounted for. ARGS="--events 20000 --seed 7"
	$(BIN)/python -m tests.fuzz $(ARGS)

faults: $(DEV) $(JARS) ## kills and every other fault on the real thing, and an oracle. ARGS="--kills 1000 --seed 7"
	@$(BIN)/python -m tests.faults $(ARGS)

soak: $(DEV) $(JARS) ## 30 minutes at 70 % of the top rate: memory, lag, freshness, a plot. ARGS="--minutes 2 --out DIR"
	@$(BIN)/python -m tests.faults.soak $(ARGS)

schemas: $(DEV) ## write the JSON Schemas of everything that goes over the wire
	$(BIN)/python -m streams.contracts.schemas

constraints: $(DEV) ## pin what is installed in .venv in constraints.txt
	@{ echo '# What `make constraints` found installed: the versions that the tests passed with.'; \
	   $(BIN)/python -m pip --disable-pip-version-check freeze --exclude-editable --exclude driftline; \
	} > .venv/constraints.txt
	@if grep -n ' @ ' .venv/constraints.txt; then \
	   echo 'These come from a file or an address and cannot be pinned; install them by name first.' >&2; exit 1; fi
	@mv .venv/constraints.txt constraints.txt
	@touch $(VENV) $(DEMO) $(DEV)

clean: ## remove the environment, the Kafka jars, the stack's data and all caches
	rm -rf .venv .local .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find $(CHECKED) -name __pycache__ -type d -prune -exec rm -rf {} +

# Installing prints to standard error only: `make demo ARGS="--output json"` is meant to be piped.
$(VENV):
	@python=$$(deploy/local/prerequisites.sh --python); \
	 echo "Making .venv with $$($$python --version)" >&2; \
	 $$python -m venv .venv >&2
	@touch $@

$(DEMO): pyproject.toml constraints.txt | $(VENV)
	@echo 'Installing what serving needs into .venv' >&2
	@$(PIP) install --editable '.[demo]' --constraint constraints.txt >&2
	@touch $@

# The stamp of the demo is set too: this installation contains that one.
$(DEV): pyproject.toml constraints.txt | $(VENV)
	@echo 'Installing what development needs into .venv; torch alone is some gigabytes' >&2
	@$(PIP) install --editable '.[dev]' --constraint constraints.txt >&2
	@touch $(DEMO) $@

$(JARS): deploy/local/pom.xml | prerequisites
	@echo 'Fetching Apache Kafka into .local/kafka-libs' >&2
	@rm -rf $(@D)
	@mvn -q -B -Dstyle.color=never -f $< dependency:copy-dependencies -DoutputDirectory='$(CURDIR)/$(@D)' >&2
	@touch $@

prerequisites:
	@deploy/local/prerequisites.sh
