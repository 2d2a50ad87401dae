# serve: run the service   test: run the tests   check: lint, types, import rules   format: fix what ruff can fix
# demo-swap: train, publish and serve a new pair of words while a client asks
# Each action makes the environment it needs; serving needs a small one, the others everything.

PYTHON ?= python3
VENV ?= .venv
PORT ?= 8080

PIP_INSTALL = $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable

.PHONY: serve test check format demo-swap

serve: $(VENV)/.serving
	exec $(VENV)/bin/python -m app --port $(PORT)

test: $(VENV)/.everything
	$(VENV)/bin/python -m pytest

check: $(VENV)/.everything
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest --quiet tests/test_architecture.py

format: $(VENV)/.everything
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

demo-swap: $(VENV)/.everything
	PYTHONPATH=. $(VENV)/bin/python scripts/demo_swap.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The stamps are older than pyproject.toml or constraints.txt when an installation is due.
$(VENV)/.serving: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) .
	touch $@

$(VENV)/.everything: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) '.[train,dev]'
	touch $@ $(VENV)/.serving
