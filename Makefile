# The only vocabulary; CI says the same words.
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
SERVE := .venv-serve
DEV := .venv
PIP := -m pip --disable-pip-version-check --no-input install --quiet

.PHONY: help serve test check fmt bench docs artifacts clean

help:  ## these lines
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

serve: $(SERVE)/.done  ## set up and serve the shipped models on HOST:PORT (127.0.0.1:8000)
	ANOMALY_HOST=$(HOST) ANOMALY_PORT=$(PORT) $(SERVE)/bin/python -m service

test: $(DEV)/.done  ## set up and run every test
	$(DEV)/bin/python -m pytest

check: $(DEV)/.done  ## formatting, lint, types, import rules
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/ruff check .
	$(DEV)/bin/mypy
	$(DEV)/bin/lint-imports

fmt: $(DEV)/.done  ## format and fix what can be fixed
	$(DEV)/bin/ruff format .
	$(DEV)/bin/ruff check --fix .

bench: $(DEV)/.done  ## measure the shipped models through HTTP (ANOMALY_DATA_DIR)
	$(DEV)/bin/python benchmarks/quality.py

docs: $(DEV)/.done  ## write what the pages of docs/ take from the code
	$(DEV)/bin/python docs/generate.py

artifacts: $(DEV)/.done  ## train and publish every shipped model anew (ANOMALY_DATA_DIR)
	for config in training/configs/*.toml; do \
	  $(DEV)/bin/python -m training fit $$config --resume --publish || exit 1; done

clean:  ## remove environments and caches; runs/ and models/ stay
	rm -rf $(SERVE) $(DEV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(SERVE)/.done: pyproject.toml
	$(PYTHON) -m venv $(SERVE) || { echo "install venv first: apt install python3-venv"; exit 1; }
	$(SERVE)/bin/python $(PIP) --no-compile -e .[cpu]
	touch $@

$(DEV)/.done: pyproject.toml
	$(PYTHON) -m venv $(DEV) || { echo "install venv first: apt install python3-venv"; exit 1; }
	$(DEV)/bin/python $(PIP) torch==2.13.0
	$(DEV)/bin/python $(PIP) -e .[cpu,training,dev]
	touch $@
