# The front door. Needs make and Python 3.11 or newer; everything else is installed into .venv.

PYTHON ?= python3
ARGS ?=

VENV := .venv/bin/python
NEXT := .venv-next/bin/python
GPU := .venv-gpu/bin/python
WHEEL := .venv-wheel/bin/python
PIP_INSTALL := -m pip install -qq --disable-pip-version-check --no-input
# What the wheel is made of; the folders too, for files that went.
SHIPPED := $(shell find nbmap $(wildcard jupyter-config) -name __pycache__ -prune -o -print)

.DEFAULT_GOAL := help
.PHONY: help demo lab test test-main test-lab test-cuda test-next check lint chaos bench pictures chromium clean gpu-test
.DELETE_ON_ERROR:

help:
	@echo 'make demo    run the grid search of notebooks/01-grid-search.ipynb on a local cluster'
	@echo 'make lab     open the same notebook in JupyterLab'
	@echo 'make test    format, lint, types, and all tests'
	@echo 'make check   the fast part of it'
	@echo 'make chaos   long runs of the tests that look for new faults'
	@echo 'make gpu-test  tests on real GPUs, for a machine that has one'
	@echo 'make bench   measure against a process pool and plain Dask (ARGS=... are passed on)'
	@echo 'make pictures  take the pictures of JupyterLab that the README shows'
	@echo 'make clean   remove the environments and what was built'
	@echo 'make PYTHON=python3.12 demo   with another Python than python3'

demo: .venv/.demo
	@$(VENV) tests/demo.py notebooks/01-grid-search.ipynb build/01-grid-search.ipynb

# JupyterLab's own choice of kernel is this environment's, so nothing is installed for the user.
lab: .venv/.lab
	@$(VENV) -m jupyterlab notebooks/01-grid-search.ipynb $(ARGS)

# Two at a time, for tests mostly wait. Not by the shell's "&", whose processes take no interrupt.
test: .venv/.test
	@$(MAKE) --no-print-directory --jobs=2 lint test-main test-lab test-cuda test-next

check: lint
	$(VENV) -m pytest -m 'not slow and not chaos' tests/test_*.py tests/engine $(ARGS)

lint: .venv/.test
	$(VENV) -m ruff format --check .
	$(VENV) -m ruff check .
	$(VENV) -m mypy

test-main: .venv-bare/.test .venv-wheel/.test .venv-wheel/ipykernel-7.3/.test .venv-next/.test | lint
	$(VENV) -m pytest -m 'not chaos' --ignore tests/lab --ignore tests/gpus/cuda --ignore tests/gpus/real $(ARGS)

# In the browser, with kernels of all environments.
test-lab: .venv-wheel/.test .venv-wheel/ipykernel-7.3/.test .venv-gpu/.test | lint chromium
	$(in-own-tmp) $(VENV) -m pytest -p no:cacheprovider tests/lab $(ARGS)

# The real dask-cuda, with the Dask that it pins, over libraries that stand for NVIDIA's. They are
# built by the machine's C compiler; without one these tests fail.
test-cuda: .venv-gpu/.test | test-lab
	$(in-own-tmp) $(GPU) -m pytest -p no:cacheprovider tests/gpus/cuda

# On the GPUs that this machine really has; without one they fail.
gpu-test: .venv-gpu/.test
	$(GPU) -m pytest -p no:cacheprovider tests/gpus/real

# A shorter set on a newer CPython, where the machine has one, with the oldest Dask that we support.
test-next: .venv-next/.test | test-cuda
	@if [ -e .venv-next/.test ]; then \
		echo "$$($(NEXT) -V) with dask 2026.7.1:"; \
		$(in-own-tmp) $(NEXT) -m pytest -p no:cacheprovider -m 'not chaos' tests/engine tests/surface; \
	else \
		echo 'No CPython newer than that of .venv was found: the tests ran on one version only.'; \
	fi

chaos: .venv/.test
	$(VENV) -m pytest -m chaos --ignore tests/gpus/cuda --ignore tests/gpus/real $(ARGS)

bench: .venv/.test .venv-gpu/.test .venv-wheel/.test | chromium
	$(VENV) tests/bench/run.py --json tests/bench/results.json $(ARGS)
	$(VENV) tests/bench/streams.py --json tests/bench/streams.json
	$(VENV) tests/bench/view.py --json tests/bench/view.json
	$(VENV) tests/bench/frames.py --json tests/bench/frames.json
	$(VENV) tests/bench/startup.py --json tests/bench/startup.json
	$(VENV) tests/bench/faults.py --json tests/bench/faults.json

pictures: .venv/.test | chromium
	$(VENV) tests/pictures.py notebooks/pictures

clean:
	rm -rf .venv .venv-next .venv-gpu .venv-bare .venv-wheel build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find nbmap tests notebooks -name __pycache__ -type d -prune -exec rm -rf {} +

# A test looks at what another user can reach of what was put into the temporary folder meanwhile.
in-own-tmp = tmp="$$(mktemp -d)" && trap 'rm -rf "$$tmp"' EXIT && TMPDIR="$$tmp"

# Environments are made once, and brought up to date when pyproject.toml changes.
.venv/.demo: pyproject.toml
	@$(call make-venv,$(PYTHON),.venv)
	@echo 'Installing nbmap and what the demo needs into .venv (a minute or two, once)'
	@$(VENV) $(PIP_INSTALL) -e '.[demo]'
	@touch $@

.venv/.lab: pyproject.toml
	@$(call make-venv,$(PYTHON),.venv)
	@echo 'Installing nbmap and JupyterLab into .venv (a minute or two, once)'
	@$(VENV) $(PIP_INSTALL) -e '.[lab]'
	@touch .venv/.demo $@

.venv/.test: pyproject.toml
	@$(call make-venv,$(PYTHON),.venv)
	@echo 'Installing nbmap and what the tests need into .venv (a minute or two, once)'
	@$(VENV) $(PIP_INSTALL) -e '.[test]'
	@touch .venv/.demo .venv/.lab $@

# A worker's environment that has no nbmap, with the same Python; and an older cloudpickle, to be
# put before its own by PYTHONPATH.
.venv-bare/.test: pyproject.toml | .venv/.test
	@$(call make-venv,$(VENV),.venv-bare)
	@.venv-bare/bin/python $(PIP_INSTALL) distributed cloudpickle
	@rm -rf .venv-bare/cloudpickle-2
	@$(VENV) $(PIP_INSTALL) --no-deps --target .venv-bare/cloudpickle-2 'cloudpickle==2.*'
	@touch $@

# A kernel's environment as users have it: nbmap from its wheel, and the oldest ipykernel that we
# support. The second step is for a wheel whose version pip believes to be there already.
.venv-wheel/.test: pyproject.toml $(SHIPPED) | .venv/.test
	@$(call make-venv,$(VENV),.venv-wheel)
	@echo 'Installing the wheel of nbmap into .venv-wheel'
	@rm -rf build/wheel
	@$(VENV) -m pip wheel -qq --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	@$(WHEEL) $(PIP_INSTALL) build/wheel/*.whl 'ipykernel==6.31.*'
	@$(WHEEL) $(PIP_INSTALL) --no-deps --force-reinstall build/wheel/*.whl
	@touch $@

# The last ipykernel that hears comms on a subshell, to be put before the newest by PYTHONPATH.
# The other two are its dependencies that the newest has not.
.venv-wheel/ipykernel-7.3/.test: pyproject.toml | .venv-wheel/.test
	@rm -rf $(@D)
	@$(VENV) $(PIP_INSTALL) --no-deps --target $(@D) 'ipykernel==7.3.*' nest-asyncio2 psutil
	@touch $@

.venv-gpu/.test: pyproject.toml | .venv/.test
	@$(call make-venv,$(VENV),.venv-gpu)
	@echo 'Installing nbmap, dask-cuda and what the tests need into .venv-gpu (a minute or two, once)'
	@$(GPU) $(PIP_INSTALL) -e '.[cuda12,gpu-test]'
	@touch $@

# JupyterLab is tested in the system's browser, so that no test downloads one.
chromium:
	@$(find-chromium) || { $(install-chromium); } || { \
		echo 'The tests need one of chromium, chromium-browser and google-chrome: please install it.' >&2; \
		exit 1; \
	}

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

define find-chromium
{ command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null
endef

# Only on Debian: the package of that name in Ubuntu is a snap, which containers cannot run.
define install-chromium
grep -qs '^ID=debian$$' /etc/os-release && \
echo 'Installing Chromium, which the tests of JupyterLab need, with apt-get (a minute, once)' && \
root="$$(test "$$(id -u)" = 0 || echo sudo)" && \
$$root apt-get -qq update && \
$$root env DEBIAN_FRONTEND=noninteractive \
	apt-get -qq install --no-install-recommends chromium >/dev/null
endef
