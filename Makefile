# One command each: `make quickstart` does the main job, `make test` passes the tests. Both set up what they need.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)
RUN := $(VENV)/.installed-run
READY := $(VENV)/.installed
DOCS := $(VENV)/.installed-docs
# Test files side by side; and where a folder of REPORTS is given, the slowest tests and a junit file for each part.
WORKERS ?= 2
REPORTS ?=
report = $(if $(REPORTS),--durations=40 --junitxml=$(REPORTS)/$(1).xml)
# Two parts, the second of what must have the machine to itself: only files that have such tests are read for it. Both are run,
# and both must pass.
ALONE = $(shell grep -rlE --include='test_*.py' 'mark\.alone\b' tests)
pytest = $(BIN)/python -m pytest tests -m "$(1) and not alone" -n $(WORKERS) --dist loadgroup --no-loadscope-reorder \
	$(2) $(call report,beside); first=$$?; \
	$(BIN)/python -m pytest $(ALONE) -m "$(1) and alone" $(2) $(call report,alone) && exit $$first

.PHONY: help install quickstart test style check chaos long acceptance parity docs format lock bench clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

install: $(READY)  ## make .venv with pinned versions

$(RUN): pyproject.toml $(CONSTRAINTS)
	@echo "installing what a run needs into $(VENV): about 2 GB and two to five minutes, this once"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $(RUN)

$(READY): $(RUN)
	@echo "installing what the tests need as well: another 0.7 GB and one to five minutes, this once"
	$(INSTALL) -e ".[dev]"
	touch $(READY)

$(DOCS): $(RUN)
	@echo "installing what the documentation needs as well: another 70 MB and a minute, this once"
	$(INSTALL) -e ".[docs]"
	touch $(DOCS)

quickstart: $(RUN)  ## train LeNet-5 on real digits with two Ray workers under DeepSpeed
	@echo "training LeNet-5 on 1,797 digits: about a minute on two cores, most of it Ray's start"
	$(BIN)/distdl train configs/quickstart.yaml --fresh

test: $(READY)  ## all tests
	@echo "running all tests, two files at a time: about 35 minutes on two cores; 'make check' is the three-minute inner loop"
	$(call pytest,not chaos and not long)

style: $(READY)  ## what is read and not run: lints, form, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: style  ## the inner loop, three minutes: style, types, architecture, fast tests
	$(call pytest,not slow and not chaos and not long,-x)

docs: $(DOCS)  ## the documentation site, into dist/site; a warning is an error
	$(BIN)/python docs/site/build.py dist/site

format: $(READY)  ## put the code into the project's form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## microseconds a step over bare loops, peers beside it (installs the peers)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[bench]"
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/step.py

chaos: $(READY)  ## the long forms: clusters that lose nodes, jobs that are requeued again and again
	$(BIN)/python -m pytest tests -m chaos

long: $(READY)  ## every family on every layout, and other long forms of what `make test` shows in part
	$(BIN)/python -m pytest tests -m long

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
