# `make demo` and `make test` do everything on a fresh machine; each makes .venv and installs once.
# Another interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
JOBS ?= 2
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-unit bench lint clean

demo: .venv/installed
	@printf '%s\n' model=detr_focal_tiny dynamic_scale=type1 dynamic_scale=type2 \
	  | xargs -P $(JOBS) -I{} $(BIN)/python run.py experiment=tiny study=demo {}
	@echo; $(BIN)/python analysis/collect.py demo

test: .venv/installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

test-unit: .venv/installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not slow and not slurm"

# make bench ARGS="--only core criterion --runs 9"
bench: .venv/installed-dev
	$(BIN)/python -m benchmarks.bench $(ARGS)

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

clean:
	rm -rf .venv .cache build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' \
	  || { echo "error: Python 3.10 to 3.13 is needed, $$($(PYTHON) --version) was found: make PYTHON=python3.x" >&2; exit 2; }
	@$(PYTHON) -m venv .venv \
	  || { echo "error: python -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 2; }

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing into .venv (torch is large; a few minutes, once)"
	@$(PIP) --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	@echo "installing the development tools"
	@$(PIP) --editable '.[dev]'
	@touch $@
