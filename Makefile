# `make` lists the targets. Needed on this machine: make, Python 3.11 or newer, a C++ compiler.

VENV   ?= .venv
BIN    := $(VENV)/bin
BUNDLE ?= tests/edge/data/bundle-0.1.0.zip
READY  := $(VENV)/.ready
SOURCES := minigpt_edge export runtime tests benchmarks tools

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-slow test-gpu lint type fmt check bench bench-methods bench-families bench-domains bench-sizes fuzz reliability docs sbom clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv and install everything, pinned (about 4 minutes the first time)

demo: $(READY) ## build the law model with the default settings (about 15 minutes)
	$(BIN)/minigpt-edge build --domain law --target gguf-q4

test: $(READY) ## run the tests that need no real model (about 5 minutes on two cores)
	$(BIN)/python -m pytest -n logical --dist loadfile

test-fast: $(READY) ## the edit loop: tests without whole builds, trainings, servers (under a minute on two cores)
	$(BIN)/python -m pytest -n logical --dist worksteal -m "not slow and not whole"

test-slow: $(READY) ## run the tests with real models and installations (minutes)
	$(BIN)/python -m pytest -m slow

test-gpu: $(READY) ## run the tests that need an accelerator, against the processor (minutes)
	$(BIN)/python -m pytest -m gpu

lint: $(READY) ## check style and formatting
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

type: $(READY) ## check the types
	$(BIN)/mypy

fmt: $(READY) ## put style and formatting right where that can be done automatically
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

check: lint type test ## everything a change has to pass

bench: $(READY) ## take the speed figures again (a quiet machine, about an hour)
	$(BIN)/python benchmarks/speed/calibration_speed.py
	$(BIN)/python benchmarks/speed/finetune_speed.py
	$(BIN)/python benchmarks/speed/busy_build.py
	$(BIN)/python benchmarks/tables/tables.py

bench-methods: $(READY) ## the tables of docs/evidence.md: methods, sizes, peers, questions (hours; resumes)
	$(BIN)/python benchmarks/experiments/front.py
	$(BIN)/python benchmarks/experiments/methods.py
	$(BIN)/python benchmarks/experiments/scores.py
	$(BIN)/python benchmarks/experiments/equal_time.py
	$(BIN)/python benchmarks/experiments/questions.py
	$(BIN)/python benchmarks/peers/pruning.py
	$(BIN)/python benchmarks/experiments/laser.py
	$(BIN)/python benchmarks/tables/tables.py

bench-families: $(READY) ## every architecture, trained small, through the whole build (about an hour)
	$(BIN)/python benchmarks/experiments/families.py
	$(BIN)/python benchmarks/tables/tables.py

bench-domains: $(READY) ## docs/results.md: five domains, text and questions (hours; resumes)
	$(BIN)/python benchmarks/experiments/domains.py
	$(BIN)/python benchmarks/experiments/every_domain.py
	$(BIN)/python benchmarks/tables/tables.py

bench-sizes: $(READY) ## time and memory of 0.1 to 7 billion parameters (hours, 60 GB of disk)
	$(BIN)/python benchmarks/experiments/sizes.py

fuzz: $(READY) ## read twenty thousand damaged files (about 10 minutes)
	$(BIN)/python tests/fuzz/fuzz.py --cases 20000 --out benchmarks/results/fuzz.json

reliability: $(READY) ## the figures of docs/reliability.md: kills, full disks, damaged files, memory, load on BUNDLE (under an hour)
	$(BIN)/python tests/reliability/kills.py --kills 50 --out benchmarks/results/reliability.json
	$(BIN)/python tests/fuzz/fuzz.py --cases 20000 --out benchmarks/results/fuzz.json
	$(BIN)/python benchmarks/speed/memory.py
	$(BIN)/python benchmarks/speed/serve_load.py $(BUNDLE)
	$(BIN)/python benchmarks/tables/tables.py

docs: $(READY) ## write docs/cli.md from the commands, and the tables from the results
	$(BIN)/python tools/cli_reference.py
	$(BIN)/python benchmarks/tables/tables.py

sbom: $(READY) ## sbom.json: every package in .venv with its version and licence (CycloneDX)
	$(BIN)/python -m venv $(VENV)/sbom
	$(VENV)/sbom/bin/pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
	$(VENV)/sbom/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-file sbom.json

clean: ## remove .venv and the tools' caches (built models stay)
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info sbom.json
	find minigpt_edge export runtime tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3 python; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "==> virtual environment $(VENV) with $$($$python --version)"; \
	    $$python -m venv $(VENV) && exit 0; \
	    echo "error: $$python can't make a virtual environment" >&2; \
	    echo "hint: on Debian and Ubuntu: apt-get install python3-venv" >&2; \
	    rm -rf $(VENV); exit 1; \
	  fi; \
	done; \
	echo "error: no Python 3.11 or newer found" >&2; \
	echo "hint: install one, or name it: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1

$(READY): pyproject.toml constraints.txt hashes.txt tools/install.py tools/llama_cpp.cmake | $(BIN)/python
	$(BIN)/python tools/install.py
	@touch $@
