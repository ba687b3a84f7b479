# `make demo`, `make demo-search` and `make test` do all their set-up themselves, in a virtual environment of the checkout.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
# One thread for each of as many test processes as there are cores (at most eight).
JOBS ?= $(shell $(PYTHON) -c "import os; print(min(os.cpu_count() or 1, 8))")

# The codebases of OpenMMLab need an older transformers, and operators that are built once; see docs/openmmlab.md.
MM_VENV ?= .venv-openmmlab
MM_PYTHON := $(MM_VENV)/bin/python
MM_STAMP := $(MM_VENV)/.installed

.PHONY: demo demo-search test lint docs check clean openmmlab test-openmmlab

$(STAMP): pyproject.toml
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 10), 'Strop needs Python 3.10 or newer'"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $(STAMP)

# Exit code 3 is a budget that was missed, as a time may be on a busy machine; the nearest model is in the folder.
demo: $(STAMP)
	$(BIN)/strop compress configs/compress/digits.yaml --output demo_output/digits || test $$? -eq 3

demo-search: $(STAMP)
	$(BIN)/strop demo --out demo_output/search

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -c "import sys; assert sys.version_info >= (3, 11), 'The documentation site needs Python 3.11 or newer.'"
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	touch $(DOCS_STAMP)

docs: $(DOCS_STAMP)
	$(BIN)/python tools/docs_site.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# Compiled files are kept: without them every process of every test compiles all that it imports anew.
test: lint
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

$(MM_STAMP): pyproject.toml requirements/openmmlab.txt requirements/openmmlab-codebases.txt tools/mmcv_wheel.py
	$(PYTHON) -m venv $(MM_VENV)
	$(MM_PYTHON) -m pip install --quiet --upgrade pip
	$(MM_PYTHON) -m pip install --quiet -e ".[vision,report,timm]" -r requirements/openmmlab.txt
	$(MM_PYTHON) -m pip install --quiet --no-deps -r requirements/openmmlab-codebases.txt
	wheel=$$($(PYTHON) tools/mmcv_wheel.py --python $(MM_PYTHON)) && \
		$(MM_PYTHON) -m pip install --quiet --no-deps --force-reinstall "$$wheel"
	touch $(MM_STAMP)

openmmlab: $(MM_STAMP)

test-openmmlab: $(MM_STAMP)
	OMP_NUM_THREADS=1 $(MM_PYTHON) benchmarks/openmmlab_environment.py --jobs $(JOBS)

clean:
	rm -rf $(VENV) $(MM_VENV) build demo_output work_dirs .pytest_cache .mypy_cache .ruff_cache .hypothesis
