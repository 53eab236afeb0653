# Two commands for everybody, from a bare clone, with Python (3.10 or newer, with its venv module and headers), a C compiler and make:
#
#   make demo     trains a knowledge-graph model on two nodes of this machine
#   make test     runs the tests, the linter, the type checker and the layer check
#
# PYTHON=python3.12 and CC=clang choose others than python3 and cc. Everything is made below .venv and .tox; `make clean` removes it again.

PYTHON ?= python3
export CC
export PIP_DISABLE_PIP_VERSION_CHECK = 1

SOURCES := pyproject.toml setup.py $(wildcard adapm/*.py adapm/*/*.py transports/*.py native/*.py native/*.[ch])

.PHONY: help demo test docs clean check-tools

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

demo: .venv/demo/installed
	.venv/demo/bin/adapm run --nodes 2 --workers 1 examples/knowledge_graph.py --data umls

test: .venv/test/installed
	.venv/test/bin/tox run -e lint,types,layers,py,torch

docs: .venv/demo/installed
	.venv/demo/bin/adapm config --reference > docs/configuration.md

clean:
	rm -rf .venv/demo .venv/test .tox build adapm.egg-info .mypy_cache .ruff_cache .pytest_cache

.venv/demo/installed: $(SOURCES) | check-tools
	@echo "Installing adapm into .venv/demo; this compiles its kernel."
	@$(PYTHON) -m venv .venv/demo
	@.venv/demo/bin/python -m pip install --quiet .
	@touch $@

.venv/test/installed: | check-tools
	@echo "Installing tox into .venv/test."
	@$(PYTHON) -m venv .venv/test
	@.venv/test/bin/python -m pip install --quiet 'tox>=4.21'
	@touch $@

check-tools:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "There is no $(PYTHON): install Python 3.10 or newer, or name yours with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) -V): adapm needs Python 3.10 or newer; name one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments: install its venv module (Debian, Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@command -v $(firstword $(CC)) >/dev/null || \
	  { echo "There is no C compiler $(firstword $(CC)): install one (Debian, Ubuntu: apt install gcc libc6-dev), or name yours with make CC=..." >&2; exit 1; }
	@echo 'int main(void) { return 0; }' | $(CC) -xc - -o /dev/null 2>/dev/null || \
	  { echo "The C compiler $(CC) cannot build a program: install the C library's headers (Debian, Ubuntu: apt install libc6-dev)." >&2; exit 1; }
	@echo '#include <Python.h>' | $(CC) -I"$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')" -fsyntax-only -xc - 2>/dev/null || \
	  { echo "Python.h of $(PYTHON) is missing: install Python's headers (Debian, Ubuntu: apt install python3-dev)." >&2; exit 1; }
