# serve: run the service   check: lint, types, import contracts   format: fix what ruff can fix
# test: what must pass before a change lands   test-fast: without processes and training   test-all: also what takes long
# opensearch: run a node to try it with   versions-table: which test runs on which OpenSearch, for the documentation
# image-check: build the container image and try it   k8s-check: ask a real Kubernetes API server about k8s/
# docs: the documentation as a site in build/site
# lock: hashes of what constraints.txt names   audit: known holes in it   wheelhouse: what a network without any needs
# demo-swap: train, publish and serve a new pair of words while a client asks (without --train: by a table of related words)
# Each action makes the environment it needs; serving needs a small one, the others everything.

PYTHON ?= python3
VENV ?= .venv
PORT ?= 8080
VERSION ?= 3.6.0
OPENSEARCH_PORT ?= 9200
# Of a wheelhouse: extras of pyproject.toml, the machine and the Python that it is for.
EXTRAS ?= opensearch
MACHINE ?= x86_64
PYTHON_VERSION ?= 3.11
# Tests share the processors; those that need the same thing that takes long to make run in one process (tests/conftest.py).
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 4 --dist loadgroup
WHEELHOUSE ?= dist/wheelhouse-$(MACHINE)-py$(PYTHON_VERSION)

PIP_INSTALL = $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable

.PHONY: serve opensearch test test-fast test-all check format docs versions-table demo-swap image-check k8s-check lock audit wheelhouse

serve: $(VENV)/.serving
	exec $(VENV)/bin/python -m app --port $(PORT)

opensearch: | $(VENV)/bin/python
	exec $(VENV)/bin/python -m scripts.opensearch_node $(VERSION) --port $(OPENSEARCH_PORT)

test-fast: $(VENV)/.everything
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) -m "not slow and not soak"

test: $(VENV)/.everything
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) -m "not soak"

test-all: test
	$(VENV)/bin/python -m pytest -m soak

check: $(VENV)/.everything
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/python -m pytest --quiet tests/test_architecture.py

format: $(VENV)/.everything
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

docs: $(VENV)/.everything
	$(VENV)/bin/python -m scripts.reference docs/reference
	$(VENV)/bin/zensical build --clean --strict

versions-table: $(VENV)/.everything
	rm -f tests/figures/opensearch_versions.md
	$(VENV)/bin/python -m pytest tests/opensearch --versions-table tests/figures/opensearch_versions.md
	$(VENV)/bin/python -m scripts.figures

image-check: $(VENV)/.everything
	$(VENV)/bin/python scripts/image_check.py

k8s-check: $(VENV)/.everything
	$(VENV)/bin/python scripts/k8s_check.py

# The hashes of all files of each version, so that they hold for every machine and Python that has wheels.
LOCK = $(VENV)/bin/uv pip compile --quiet --universal --generate-hashes --no-annotate --python-version 3.11 \
	--constraint constraints.txt --custom-compile-command "make lock" pyproject.toml

lock: $(VENV)/.supply
	$(LOCK) --output-file hashes/service.txt $(addprefix --extra ,client s3 opensearch hub otel supply)
	$(LOCK) --output-file hashes/training.txt $(addprefix --extra ,train torch convert quantise bulk ray)

audit: $(VENV)/.supply
	$(VENV)/bin/python -m scripts.audit

wheelhouse: $(VENV)/.supply
	$(VENV)/bin/python -m scripts.wheelhouse $(WHEELHOUSE) --machine $(MACHINE) --python-version $(PYTHON_VERSION) \
		--extras "$(EXTRAS)"

demo-swap: $(VENV)/.everything
	$(VENV)/bin/python -m scripts.demo_swap --train

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The stamps are older than pyproject.toml or constraints.txt when an installation is due.
$(VENV)/.serving: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) '.[opensearch]'
	touch $@

$(VENV)/.supply: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) '.[supply]'
	touch $@

$(VENV)/.everything: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) '.[bulk,hub,opensearch,otel,ray,s3,train,dev]'
	touch $@ $(VENV)/.serving
