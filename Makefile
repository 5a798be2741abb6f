# The one door: `make help` lists what can be done. CI calls the same targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTO_VENV := .venv-proto
SUPPLY_VENV := .venv-supply
DEPLOYED_VENV := .venv-deployed
PROTOS := $(wildcard protos/memory_service/v1/*.proto)

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp for each, so that `make serve` does not install what only developers need.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing the service into $(VENV) (a minute, once) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[all]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "Installing the service and its development tools into $(VENV) (a minute, once) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml | $(BIN)/python
	@echo "Installing the service and what its benchmark needs into $(VENV) (a minute, once) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

.PHONY: install
install: $(VENV)/.installed ## Create .venv with the service and all extras

.PHONY: tools
tools: $(VENV)/.installed-dev ## Add the development tools to .venv, buf among them

.PHONY: serve
serve: $(VENV)/.installed ## Run the service on 127.0.0.1:50051 with an embedded PostgreSQL
	$(BIN)/memory-service serve

.PHONY: demo
demo: $(VENV)/.installed ## Store a few hundred texts for several users and search them
	$(BIN)/python examples/demo.py

.PHONY: test
test: $(VENV)/.installed-dev ## Run the tests, but for those that take longest (under 5 minutes)
	$(BIN)/python -m pytest -n 4 --dist worksteal -m "not long" $(ARGS)

.PHONY: test-all
test-all: $(VENV)/.installed-dev ## Run all tests
	$(BIN)/python -m pytest -n 4 --dist worksteal $(ARGS)

.PHONY: coverage
coverage: $(VENV)/.installed-dev ## Run all tests and demand coverage (half as long again)
	$(BIN)/python -m pytest -n 3 --dist loadfile --cov --cov-report=term $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.installed-dev ## Fuzz a running service, 50,000 inputs (15 minutes); ARGS="--seed N --seconds S"
	$(BIN)/python -m tests.fuzz $(ARGS)

.PHONY: bench
bench: $(VENV)/.installed-bench ## Measure against plain psycopg, small (under 6 minutes on 2 quiet cores)
	$(BIN)/python -m benchmarks --mode quick $(ARGS)

.PHONY: bench-full
bench-full: $(VENV)/.installed-bench ## The same in full (about an hour); ARGS="--only NAME" or ARGS=--resume in steps
	$(BIN)/python -m benchmarks --mode full $(ARGS)

.PHONY: eval
eval: $(VENV)/.installed-bench ## Measure how well searches find what is asked for (ARGS="--only NAME")
	$(BIN)/python -m evaluation $(ARGS)

.PHONY: faults
faults: $(VENV)/.installed-dev ## Kill, freeze and starve what the service stands on (ARGS="--only NAME")
	$(BIN)/python -m faults $(ARGS)

.PHONY: lint
lint: $(VENV)/.installed-dev ## Check style (ruff) and the contract (buf)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code

.PHONY: types
types: $(VENV)/.installed-dev ## Check types (mypy strict)
	$(BIN)/mypy

.PHONY: format
format: $(VENV)/.installed-dev ## Format the code and sort its imports
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .
	$(BIN)/buf format --write

# Code made by grpcio-tools 1.81.1 loads on protobuf 6.33.5 and 7.x; newer generators shut out protobuf 6 clients.
# That generator needs protobuf 6 itself, hence an environment of its own.
$(PROTO_VENV)/.installed: Makefile
	$(PYTHON) -m venv $(PROTO_VENV)
	@$(PROTO_VENV)/bin/pip install --quiet --disable-pip-version-check 'grpcio-tools==1.81.1' 'mypy-protobuf==5.1.0' 'protobuf==6.33.5'
	@touch $@

.PHONY: proto
proto: $(PROTO_VENV)/.installed ## Generate the stubs in memory_service/v1 from protos/
	$(PROTO_VENV)/bin/python scripts/generate_stubs.py

.PHONY: proto-check
proto-check: $(PROTO_VENV)/.installed ## Fail when the committed stubs are stale
	$(PROTO_VENV)/bin/python scripts/generate_stubs.py --check

# An environment of their own: what they need is no part of what they judge.
$(SUPPLY_VENV)/.installed: Makefile
	$(PYTHON) -m venv $(SUPPLY_VENV)
	@$(SUPPLY_VENV)/bin/pip install --quiet --disable-pip-version-check 'pip-audit>=2.10,<3' 'cyclonedx-bom>=7.5,<8'
	@touch $@

.PHONY: audit
audit: $(VENV)/.installed-dev $(SUPPLY_VENV)/.installed ## Look for known vulnerabilities in what is installed (needs the network)
	$(SUPPLY_VENV)/bin/python scripts/audit_dependencies.py $(ARGS)

# Without the development tools that are in .venv.
$(DEPLOYED_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DEPLOYED_VENV)
	@$(DEPLOYED_VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[all]'
	@touch $@

.PHONY: sbom
sbom: $(DEPLOYED_VENV)/.installed $(SUPPLY_VENV)/.installed ## List what a deployment consists of as CycloneDX, in dist/sbom.json
	@mkdir -p dist
	$(SUPPLY_VENV)/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application \
		--output-reproducible --output-file dist/sbom.json $(DEPLOYED_VENV)/bin/python

.PHONY: docs
docs: $(VENV)/.installed-dev ## Write the generated parts of the documentation
	$(BIN)/python scripts/generate_docs.py
	$(BIN)/python -m benchmarks.page
	$(BIN)/python -m evaluation.page
	$(BIN)/python -m faults.page

.PHONY: docs-check
docs-check: $(VENV)/.installed-dev ## Fail when the generated parts of the documentation are stale
	$(BIN)/python scripts/generate_docs.py --check
	$(BIN)/python -m benchmarks.page --check
	$(BIN)/python -m evaluation.page --check
	$(BIN)/python -m faults.page --check

.PHONY: check
check: lint types proto-check docs-check test ## Everything CI runs

.PHONY: image
image: ## Build the container image
	docker build --tag memory-service:dev .

.PHONY: clean
clean: ## Remove environments, caches and build products (not your data)
	rm -rf $(VENV) $(PROTO_VENV) $(SUPPLY_VENV) $(DEPLOYED_VENV) .fuzz .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* dist build
