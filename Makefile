# SPDX-License-Identifier: Apache-2.0
# `make test` and `make demo` need nothing done before them. `make help` lists the rest.

PYTHON ?= python3
# Test files are shared out to the cores: much of the fleet's tests is waiting for processes.
PYTEST ?= -n auto --maxprocesses 4 --dist loadfile
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DELETE_ON_ERROR:
.PHONY: help test demo setup lint ctest pytest bench bench-full dist portable asan-python cross-arm64 \
	profile instructions clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

test: setup ## everything that must hold: C tests, lint, types, Python tests
	$(MAKE) --no-print-directory ctest lint pytest

demo: setup ## what upseal does, in a minute and a half
	$(BIN)/upseal demo

setup: .venv/core ## the environment in .venv, with the C core built into it

# ---- the environment ---------------------------------------------------------

# The tools, and what building needs: so that the C core is rebuilt without fetching it again.
.venv/tools: pyproject.toml scripts/system-packages
	scripts/system-packages $(PYTHON)
	$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	$(PIP) install --upgrade 'pip>=25.1'
	$(PIP) install --group test --group lint
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' > .venv/build-requirements.txt
	$(PIP) install --upgrade -r .venv/build-requirements.txt
	touch $@

# Rebuilt when a source, or what the environment says about the build, changes. Where everything
# the C core needs is here, a failing build of it is an error.
.venv/core: .venv/tools .venv/build-settings setup.py $(wildcard native/*.c native/*.h native/*.py)
	rm -rf build/lib* build/temp* build/bdist* src/upseal/engine/_native*.so
	@if [ -z "$$UPSEAL_BUILD" ] && scripts/system-packages --check $(BIN)/python; then \
		export UPSEAL_BUILD=native; fi; \
	echo "$(PIP) install --no-build-isolation --editable .[demo]"; \
	$(PIP) install --no-build-isolation --editable '.[demo]'
	$(BIN)/upseal --version
	touch $@

SETTINGS := $(if $(filter default,$(origin CC)),,$(CC)) $(CFLAGS) build=$(UPSEAL_BUILD) \
	ippcp=$(UPSEAL_IPPCP) werror=$(UPSEAL_WERROR) sanitize=$(UPSEAL_SANITIZE) \
	profile=$(UPSEAL_PROFILE) probes=$(UPSEAL_PROBES)
.venv/build-settings: .venv/tools FORCE
	@echo '$(SETTINGS)' | cmp -s - $@ || echo '$(SETTINGS)' > $@
FORCE:

.venv/bench-tools: .venv/core
	$(PIP) install --group bench
	$(PIP) install --group bench-peers || echo "some peers cannot be installed here: they are left out"
	touch $@

.venv/dist-tools: .venv/tools
	$(PIP) install --group build
	touch $@

# ---- checks ------------------------------------------------------------------

lint: .venv/core ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

ctest: .venv/tools ## the C core's own tests, under sanitizers
	scripts/ctest $(BIN)/python

pytest: .venv/core ## the Python tests; PYTEST='-k name' chooses
	$(BIN)/python -m pytest $(PYTEST)

bench: .venv/bench-tools ## benchmarks, in under three minutes: .benchmarks/results/report.html
	$(BIN)/python benchmarks/run.py

bench-full: .venv/bench-tools ## all of them, half an hour; let nothing else run meanwhile
	$(BIN)/python benchmarks/run.py --full

dist: .venv/dist-tools ## sdist and wheel in dist/, audited and tried
	scripts/dist $(BIN)/python

portable: .venv/dist-tools ## installs and tries upseal without the C core
	scripts/portable $(BIN)/python

asan-python: .venv/tools ## the Python tests on a C core built with sanitizers
	scripts/asan-python $(BIN)/python $(PYTEST)

cross-arm64: ## the C core's tests built for arm64, run by qemu (needs root)
	scripts/cross-arm64

profile: .venv/tools ## a C core for profilers, in build/profile; WORK=seal draws a flame graph
	scripts/profile $(BIN)/python $(WORK) $(if $(WORK),$(ENGINE))

instructions: .venv/core ## counts the hot paths' instructions, fails on a rise; UPDATE=1 takes them as right
	scripts/instructions $(BIN)/python $(if $(UPDATE),--update)

clean: ## removes all that make made
	rm -rf .venv build dist src/upseal.egg-info src/upseal/engine/_native.c src/upseal/engine/_native*.so \
		.mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find src tests native benchmarks scripts -name __pycache__ -prune -exec rm -rf {} +
