# make demo, make test and make lint set up .venv by themselves; nothing else on the machine is touched.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint clean

help:
	@echo 'make demo    draw a catalogue with planted copies, screen it, say how many were found'
	@echo 'make test    run the whole test suite'
	@echo 'make lint    check style and types'
	@echo 'make clean   remove .venv and the caches; runs/ stays'
	@echo
	@echo 'The first of them installs the pinned packages into .venv (about two minutes).'
	@echo 'PYTHON=/path/to/python3.11 chooses another Python than the first one found.'

demo: $(INSTALLED)
	$(BIN)/psnet demo --out runs/demo

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) *.egg-info build dist .mypy_cache .ruff_cache .pytest_cache

# Rewritten only when the pins or the project's own description change. The project itself is installed in place.
$(INSTALLED): pyproject.toml constraints.txt
	@set -e; \
	python=; \
	for candidate in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
		if $$candidate -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info < (3, 15) and sys.version_info[:3] != (3, 14, 1)))' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "psnet needs Python 3.11 to 3.14 (not 3.14.1), and $$(python3 --version 2>/dev/null || echo no Python) is what is here; install one and name it: make PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	if ! $$python -c 'import venv, ensurepip' 2>/dev/null; then \
		echo "$$python has no venv module; install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; \
	fi; \
	[ -x $(BIN)/python ] && $(BIN)/python -c '' 2>/dev/null || $$python -m venv --clear $(VENV); \
	echo "installing the pinned packages into $(VENV) (about two minutes)"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt setuptools; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable '.[dev,train]'; \
	touch $@
