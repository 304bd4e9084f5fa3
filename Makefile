# Two commands: `make demo` and `make test`. `make help` lists the rest.

PYTHON ?= $(shell for name in python3.12 python3.11 python3 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test install clean goldens
.DEFAULT_GOAL := help

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 18

demo: install  ## train on the phrasebook and translate (minutes; afterwards seconds)
	@$(BIN)/transformer-jax demo

# What is compared with other libraries is type-checked where they are installed (extra
# `compare`). The tests run in the order of collection, which has the longest first.
HAS_TORCH := import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)
OURS_ALONE := transformer_jax configs train.py tests/*.py tests/system

test: install  ## ruff, pyright and pytest
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright $$($(BIN)/python -c '$(HAS_TORCH)' || echo $(OURS_ALONE))
	$(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist loadfile \
		--no-loadscope-reorder

install: $(STAMP)  ## make .venv with the package and its dev extra

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { \
		echo "Python 3.11 or newer is needed, and none of python3.12, python3.11," \
			"python3 and python is one. Install it, or say where it is:" \
			"make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Installing into $(VENV): once, a few minutes with the downloads"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

clean:  ## remove .venv, caches and built files; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -not -path './runs/*' -exec rm -rf {} +

goldens:  ## remake the golden files of tests/parity with the other libraries
	tests/parity/goldens/remake.sh build/venvs
