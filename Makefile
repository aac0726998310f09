# Each target sets up what it needs. Only Python 3.11 or newer is required.
# `make` lists the targets. Pass more arguments in ARGS: make demo ARGS=--once

VENV := .venv
BIN := $(VENV)/bin
# Packages come from the lock files only, and pip checks their hashes.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes
LOCK := env --unset PIP_FIND_LINKS CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe \
	--strip-extras --no-emit-options
CODE := shim demo tests

.PHONY: help demo run test lint format bench docs lock clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    run attackers and users against a stand-in Navidrome; ARGS=--once exits at the end"
	@echo "make run     run the shim with the settings in the environment and in .env"
	@echo "make test    run the tests; ARGS='-k name' runs some of them"
	@echo "make lint    check style and types"
	@echo "make format  correct the style"
	@echo "make bench   compare the shim with nginx, HAProxy, Traefik and Caddy"
	@echo "make docs    generate .env.example, docs/settings.md and the reference of the events"
	@echo "make lock    update the lock files; ARGS=--upgrade for newer packages"
	@echo "make clean   remove generated files"

demo: $(VENV)/run.stamp
	@$(BIN)/python -m demo $(ARGS)

run: $(VENV)/run.stamp
	@$(BIN)/python -m shim serve $(ARGS)

test: $(VENV)/dev.stamp
	@$(BIN)/python -m pytest --numprocesses auto $(ARGS)

lint: $(VENV)/dev.stamp
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/mypy

format: $(VENV)/dev.stamp
	@$(BIN)/ruff format $(CODE)
	@$(BIN)/ruff check --fix $(CODE)

bench: $(VENV)/dev.stamp
	@$(BIN)/python -m tests.bench $(ARGS)

docs: $(VENV)/dev.stamp
	@mkdir -p docs
	@$(BIN)/python -m shim.settings.reference env > .env.example
	@$(BIN)/python -m shim.settings.reference markdown > docs/settings.md
	@$(BIN)/python -m shim.audit.events.schema markdown > docs/events.md
	@$(BIN)/python -m shim.audit.events.schema json > docs/events.schema.json

# Lock with the oldest Python: its requirements include those of newer versions.
lock: $(VENV)/dev.stamp
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and \
		"Lock with Python 3.11: make clean lock PYTHON=python3.11")'
	@$(LOCK) $(ARGS) --output-file requirements/run.txt pyproject.toml
	@$(LOCK) $(ARGS) --constraint requirements/run.txt --extra postgres \
		--output-file requirements/postgres.txt pyproject.toml
	@$(LOCK) $(ARGS) --constraint requirements/postgres.txt --extra postgres --extra dev \
		--output-file requirements/dev.txt pyproject.toml
	@$(LOCK) $(ARGS) --constraint requirements/dev.txt \
		--output-file requirements/build.txt requirements/build.in

clean:
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist

# `make test PYTHON=python3.13` chooses the interpreter; the default is the first that is new enough.
$(BIN)/python:
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python; do \
		if command -v "$$python" > /dev/null && "$$python" -c \
			'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then \
			"$$python" -m venv $(VENV) && exit 0; \
			rm -rf $(VENV); \
			echo "$$python cannot create a virtual environment (on Debian: apt install python3-venv)" >&2; \
		fi; \
	done; \
	echo "Python 3.11 or newer with the venv module is required" >&2; exit 1

# A stamp shows which lock file was installed.
$(VENV)/run.stamp: requirements/run.txt | $(BIN)/python
	@$(PIP) --requirement requirements/run.txt
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt pyproject.toml | $(BIN)/python
	@$(PIP) --requirement requirements/dev.txt
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation \
		--no-index --editable .
	@touch $@ $(VENV)/run.stamp
