# The front door. Needs make and Python 3.11 or newer; everything else is installed into .venv.

PYTHON ?= python3
ARGS ?=

VENV := .venv/bin/python
NEXT := .venv-next/bin/python
PIP_INSTALL := -m pip install -qq --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.PHONY: help demo test test-main test-next check lint chaos bench clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo    run the grid search of notebooks/01-grid-search.ipynb on a local cluster'
	@echo 'make test    format, lint, types, and all tests'
	@echo 'make check   the fast part of it'
	@echo 'make chaos   long runs of the tests that look for new faults'
	@echo 'make bench   measure against a process pool and plain Dask (ARGS=... are passed on)'
	@echo 'make clean   remove the environments and what was built'
	@echo 'make PYTHON=python3.12 demo   with another Python than python3'

demo: .venv/.demo
	@$(VENV) tests/demo.py notebooks/01-grid-search.ipynb build/01-grid-search.ipynb

test: test-main test-next

check: lint
	$(VENV) -m pytest -m 'not slow and not chaos' tests/test_*.py tests/engine $(ARGS)

lint: .venv/.test
	$(VENV) -m ruff format --check .
	$(VENV) -m ruff check .
	$(VENV) -m mypy

test-main: lint .venv-bare/.test
	$(VENV) -m pytest -m 'not chaos' $(ARGS)

# A shorter set on a newer CPython, where the machine has one, with the oldest Dask that we support.
test-next: .venv-next/.test | test-main
	@if [ -e .venv-next/.test ]; then \
		echo "$$($(NEXT) -V) with dask 2026.7.1:"; \
		$(NEXT) -m pytest -p no:cacheprovider -m 'not chaos' tests/engine tests/surface; \
	else \
		echo 'No CPython newer than that of .venv was found: the tests ran on one version only.'; \
	fi

chaos: .venv/.test
	$(VENV) -m pytest -m chaos $(ARGS)

bench: .venv/.test
	$(VENV) tests/bench/run.py --json tests/bench/results.json $(ARGS)

clean:
	rm -rf .venv .venv-next .venv-bare build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find nbmap tests notebooks -name __pycache__ -type d -prune -exec rm -rf {} +

# Environments are made once, and brought up to date when pyproject.toml changes.
.venv/.demo: pyproject.toml
	@$(call make-venv,$(PYTHON),.venv)
	@echo 'Installing nbmap and what the demo needs into .venv (a minute or two, once)'
	@$(VENV) $(PIP_INSTALL) -e '.[demo]'
	@touch $@

.venv/.test: pyproject.toml
	@$(call make-venv,$(PYTHON),.venv)
	@echo 'Installing nbmap and what the tests need into .venv (a minute or two, once)'
	@$(VENV) $(PIP_INSTALL) -e '.[test]'
	@touch .venv/.demo $@

# A worker's environment that has no nbmap, with the same Python.
.venv-bare/.test: pyproject.toml | .venv/.test
	@$(call make-venv,$(VENV),.venv-bare)
	@.venv-bare/bin/python $(PIP_INSTALL) distributed cloudpickle
	@touch $@

.venv-next/.test: pyproject.toml | .venv/.test
	@python="$$($(find-newer-python))"; \
	if [ -n "$$python" ]; then \
		$(call make-venv,$$python,.venv-next) && \
		echo "Installing nbmap and what the tests need into .venv-next ($$python)" && \
		$(NEXT) $(PIP_INSTALL) -e '.[test]' dask==2026.7.1 distributed==2026.7.1 && \
		touch $@; \
	fi

# $(call make-venv,PYTHON,FOLDER): a working environment in FOLDER, kept if there is one.
define make-venv
if ! $(2)/bin/python -m pip --version >/dev/null 2>&1; then \
	"$(1)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'nbmap needs Python 3.11 or newer, and $(1) is not; name one: make PYTHON=python3.12 ...' >&2; exit 1; }; \
	"$(1)" -m venv --clear $(2) || exit 1; \
fi
endef

# Prints the newest released CPython with a newer minor version than .venv's, if there is one.
define find-newer-python
minor=$$($(VENV) -c 'import sys; print(sys.version_info[1])'); \
for python in python3.14 python3.13 python3.12 \
		$$(ls -d "$$HOME"/.pyenv/versions/3.*/bin/python 2>/dev/null | sort -rV); do \
	if "$$python" -c "import ensurepip, sys, sysconfig, venv; sys.exit(not ( \
			sys.implementation.name == 'cpython' and sys.version_info[:2] > (3, $$minor) \
			and sys.version_info.releaselevel == 'final' \
			and not sysconfig.get_config_var('Py_GIL_DISABLED')))" >/dev/null 2>&1; then \
		echo "$$python"; break; \
	fi; \
done
endef
