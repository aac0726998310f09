# Every target does its own set-up: Python 3.11 or newer is all that has to be there.
# `make` alone lists the targets. Extra arguments go in ARGS: make demo ARGS=--once

VENV := .venv
BIN := $(VENV)/bin
# Packages are installed from the lock files alone, each checked by its hash.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes
LOCK := env --unset PIP_FIND_LINKS CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe \
	--strip-extras --no-emit-options
CODE := shim demo tests

.PHONY: help demo run test lint format bench docs lock clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    play an edge, an intruder, a spoofer and an honest user; ARGS=--once leaves after it"
	@echo "make run     run the shim with the settings of the environment and of .env"
	@echo "make test    run the tests; ARGS='-k name' for some of them"
	@echo "make lint    check style and types; make format puts the style right"
	@echo "make bench   measure the shim beside nginx, HAProxy, Traefik and Caddy"
	@echo "make docs    write .env.example and docs/settings.md anew"
	@echo "make lock    work the lock files out anew; ARGS=--upgrade for newer packages"
	@echo "make clean   remove what make made"

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

# Worked out with the oldest Python, whose needs hold those of the newer ones.
lock: $(VENV)/dev.stamp
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and \
		"the lock files are made with Python 3.11: make clean lock PYTHON=python3.11")'
	@$(LOCK) $(ARGS) --output-file requirements/run.txt pyproject.toml
	@$(LOCK) $(ARGS) --constraint requirements/run.txt --extra postgres \
		--output-file requirements/postgres.txt pyproject.toml
	@$(LOCK) $(ARGS) --constraint requirements/postgres.txt --extra postgres --extra dev \
		--output-file requirements/dev.txt pyproject.toml
	@$(LOCK) $(ARGS) --constraint requirements/dev.txt \
		--output-file requirements/build.txt requirements/build.in

clean:
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist

# The interpreter: `make test PYTHON=python3.13` names one, else the first that is new enough.
$(BIN)/python:
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python; do \
		if command -v "$$python" > /dev/null && "$$python" -c \
			'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then \
			"$$python" -m venv $(VENV) && exit 0; \
			rm -rf $(VENV); \
			echo "$$python cannot make a virtual environment (on Debian: apt install python3-venv)" >&2; \
		fi; \
	done; \
	echo "Python 3.11 or newer with its venv module is needed" >&2; exit 1

# The stamps tell which lock file the environment was filled from.
$(VENV)/run.stamp: requirements/run.txt | $(BIN)/python
	@$(PIP) --requirement requirements/run.txt
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt pyproject.toml | $(BIN)/python
	@$(PIP) --requirement requirements/dev.txt
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation \
		--no-index --editable .
	@touch $@ $(VENV)/run.stamp
