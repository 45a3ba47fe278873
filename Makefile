# Two commands from a bare clone: `make repro` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
SUITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(firstword $(foreach p,python3.12 python3.11 python3.13 python3.14 python3,$(if $(shell $(p) -c '$(SUITS)' 2>/dev/null && echo ok),$(p))))
VENV := .venv
BIN := $(VENV)/bin
PIP_ARGS ?=
WORKERS ?= -n auto --dist loadfile --no-loadscope-reorder
ARGS ?=
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup repro test check report clean requirements wheels
.DEFAULT_GOAL := help

help: ## list the verbs
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 14

setup: $(VENV)/.ready ## make .venv with the pinned requirements (PIP_ARGS=… goes to `uv pip install`)

$(VENV)/.ready: requirements/all.txt pyproject.toml
	@$(or $(PYTHON),false) -c '$(SUITS)' 2>/dev/null || { \
		echo "error: $(or $(PYTHON:%=% is not),found no) Python 3.11, 3.12, 3.13 or 3.14; try: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^uv==' requirements/all.txt)
	@# uv takes a fifth of pip's time, but knows nothing of pip's settings: where pip is set to another index or
	@# to none, and where uv does not get through (a certificate, a password), pip does it.
	@echo "installing requirements/all.txt $(PIP_ARGS)"; \
	{ ! $(BIN)/python -m pip config list | grep -E '\.(no-)?index' >/dev/null && \
		$(BIN)/uv pip install --quiet --python $(BIN)/python $(PIP_ARGS) -r requirements/all.txt; } || { \
		echo "pip installs them, with its own settings; this takes minutes"; \
		$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check $(PIP_ARGS) -r requirements/all.txt; }
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --offline -e .
	@# Compiled here, on every core: where PYTHONDONTWRITEBYTECODE is set, each stage would compile all that it
	@# imports again. A file that does not compile is a template of some package.
	@$(BIN)/python -m compileall -q -j 0 -x '/(tests?|\.mim)/' $(VENV)/lib >/dev/null 2>&1 || true
	@# DVC starts each stage as `python …`: with this line `.venv/bin/dvc repro` works without activating.
	@echo 'import os, sys; os.environ["PATH"] = os.path.join(sys.prefix, "bin") + os.pathsep + os.environ.get("PATH", "")' \
		> $$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')/own_path.pth
	@touch $@

repro: setup ## the whole road: data, training, engines, scores, timings, report
	@# DVC itself, killed in the middle of its bookkeeping, leaves an empty lock file and then refuses to start.
	@find .dvc/tmp -name rwlock -empty -delete 2>/dev/null || true
	dvc repro $(ARGS)
	@echo "the page is metrics/report/report.html; \`make report\` prints the table again"

test: setup ## all tests (ARGS="-k name" goes to pytest)
	python -m pytest $(WORKERS) $(ARGS)

check: setup ## ruff and mypy --strict; edits nothing
	ruff check . && ruff format --check . && mypy && mypy stages

report: setup ## print the table and the path of the page
	python stages/report.py

requirements: setup ## pin requirements/all.txt anew from pyproject.toml, one list for every Python
	@# Pinned for the oldest Python: numpy, scipy, contourpy and networkx have later releases that refuse it.
	uv pip compile --quiet --python-version 3.11 --extra dev --extra mmseg --no-header --no-annotate --upgrade \
		--output-file requirements/.all.txt pyproject.toml
	@# torch pins its own CUDA packages; left out here, a CPU build of torch stays small.
	{ echo "# Made by \`make requirements\` from pyproject.toml; do not edit."; \
		grep -vP '^(--|nvidia-(?!ml-py)|cuda-|triton==|$$)' requirements/.all.txt; } > requirements/all.txt
	@rm requirements/.all.txt
	@$(MAKE) --no-print-directory wheels

wheels: ## see that each pin has a wheel for Python 3.11 to 3.14; installs nothing
	@# antlr4-python3-runtime, plain Python, comes as source only.
	@for version in 3.11 3.12 3.13 3.14; do \
		uv pip compile --quiet --python-version $$version --python-platform x86_64-manylinux_2_28 \
			--only-binary :all: --no-binary antlr4-python3-runtime requirements/all.txt >/dev/null || exit; \
		echo "Python $$version: each pin of requirements/all.txt has a wheel"; \
	done

clean: ## remove everything that stages and setup made (data, models, report, .venv)
	rm -rf $(VENV) data models metrics/report/report.html .dvc/cache .dvc/tmp .pytest_cache .mypy_cache .ruff_cache
