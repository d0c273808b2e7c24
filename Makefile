# `make demo` and `make test` do everything on a fresh machine; each makes .venv and installs once.
# Another interpreter: make demo PYTHON=python3.12
# Without CUDA: make venv, install the CPU build of torch and torchvision into .venv as pytorch.org/get-started says, in
# the versions of constraints.txt, then make demo, which keeps them. pip's own variables (PIP_EXTRA_INDEX_URL) work, too.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
VERSION_OF := -c 'import sys; print("Python %d.%d" % sys.version_info[:2])'
JOBS ?= 2
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-unit bench lint clean venv same-python

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

venv: .venv/bin/python

.venv/bin/python: | same-python
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' \
	  || { echo "error: Python 3.10 to 3.13 is needed, $$($(PYTHON) --version) was found: make PYTHON=python3.x" >&2; exit 2; }
	@$(PYTHON) -m venv .venv \
	  || { echo "error: python -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 2; }

# PYTHON=... on the command line or in the environment must name the version that .venv has.
same-python:
ifneq ($(origin PYTHON),file)
	@if [ -x $(BIN)/python ] && [ "$$($(BIN)/python $(VERSION_OF))" != "$$($(PYTHON) $(VERSION_OF))" ]; then \
	  echo "error: .venv has $$($(BIN)/python $(VERSION_OF)), PYTHON=$(PYTHON) is $$($(PYTHON) $(VERSION_OF)):" \
	    "remove .venv first (rm -r .venv), or do not set PYTHON" >&2; exit 2; fi
endif

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing into .venv (torch is large; a few minutes, once)"
	@$(PIP) --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	@echo "installing the development tools"
	@$(PIP) --editable '.[dev]'
	@touch $@
