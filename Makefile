# One command each: `make quickstart` does the main job, `make test` passes the tests. Both set up what they need.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: help install quickstart test style check chaos acceptance parity format lock bench clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

install: $(READY)  ## make .venv with pinned versions

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[dev]"
	touch $(READY)

quickstart: $(READY)  ## train LeNet-5 on real digits with two Ray workers under DeepSpeed
	$(BIN)/distdl train configs/quickstart.yaml --fresh

test: $(READY)  ## all tests
	$(BIN)/python -m pytest tests -m "not chaos"

style: $(READY)  ## what is read and not run: lints, form, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: style  ## the inner loop, under two minutes: style, types, architecture, fast tests
	$(BIN)/python -m pytest tests -m "not slow and not chaos" -x

format: $(READY)  ## put the code into the project's form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## microseconds a step over bare loops, peers beside it (installs the peers)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[bench]"
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/step.py

chaos: $(READY)  ## the long forms: clusters that lose nodes, jobs that are requeued again and again
	$(BIN)/python -m pytest tests -m chaos

acceptance: $(READY)  ## train every family on real data and compare with what its paper or a peer reaches (an hour)
	$(BIN)/python -m benchmarks.acceptance

parity: $(READY)  ## every family on every layout against one process of plain PyTorch (half an hour)
	$(BIN)/python -m benchmarks.parity

lock: $(READY)  ## write the installed versions to constraints.txt
	sed -n '/^#/p' constraints.txt > constraints.new
	$(BIN)/python -m pip freeze --exclude-editable | grep -v '^distdl' | sed 's/+cpu//' >> constraints.new
	mv constraints.new constraints.txt

clean:  ## remove what was installed and written (runs and data stay)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
