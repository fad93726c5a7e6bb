# Two commands matter: `make demo` and `make test`. Both set everything up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all test-paper lint docs bench clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23.2" "setuptools>=77" wheel
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[train,tabular,export,dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/bayesprune demo --out demo

test: $(STAMP)  # two processes of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(STAMP)  # with Lightning, transformers and accelerate: 235 MB more
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[integrations]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m ""

test-paper: $(STAMP)  # the paper's own runs, beside the library
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile paper

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks paper
	$(BIN)/ruff format --check src tests benchmarks paper
	$(BIN)/mypy

docs: $(VENV)/.documented  # into site/; a broken link or reference is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/.documented: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt mkdocs-material "mkdocstrings[python]"
	touch $@

bench: demo  # README's table comes from the demo's own metrics.json
	$(BIN)/python -m benchmarks.stationary_law
	$(BIN)/python -m benchmarks.optimizer_step
	cp demo/metrics.json benchmarks/results/demo.json
	$(BIN)/python -m benchmarks.tables

clean:
	rm -rf $(VENV) build dist site *.egg-info src/*.egg-info .pytest_cache .ruff_cache .mypy_cache
