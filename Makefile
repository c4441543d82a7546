# SPDX-License-Identifier: Apache-2.0
# `make test` and `make demo` need nothing done before them. `make help` lists the rest.

PYTHON ?= python3
# Test files are shared out to the cores, in their order: much of the fleet's tests, which begin, is waiting for processes.
PYTEST ?= -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
BIN := .venv/bin
# Seconds for each target that is fuzzed.
T ?= 30
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Nothing is installed but what a lock names, with its hashes. `make lock` writes the locks.
LOCKED := $(PIP) install --no-compile --require-hashes --requirement requirements

.DELETE_ON_ERROR:
.PHONY: help test demo setup lint ctest pytest bench bench-full dist reproducible portable lock \
	asan-python tsan-python memcheck-python check-c constant-time fuzz mutations defects faults slow cross-arm64 \
	analytics deb docs wheels \
	profile instructions clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' Makefile | expand -t 26

test: setup ## everything that must hold: C tests, lint, types, Python tests
	$(MAKE) --no-print-directory ctest lint pytest

demo: setup ## what upseal does, in a minute and a half
	$(BIN)/upseal demo

setup: .venv/core ## the environment in .venv, with the C core built into it

# ---- the environment ---------------------------------------------------------

# The tools, and what building needs: so that the C core is rebuilt without fetching it again.
.venv/tools: requirements/pip.txt requirements/setup.txt scripts/system-packages
	scripts/system-packages $(PYTHON)
	$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	$(LOCKED)/pip.txt
	$(LOCKED)/setup.txt
	touch $@

# Rebuilt when a source, or what the environment says about the build, changes. Where everything
# the C core needs is here, a failing build of it is an error.
.venv/core: .venv/tools .venv/build-settings pyproject.toml setup.py $(wildcard native/*.c native/*.h native/*.py)
	rm -rf build/lib* build/temp* build/bdist* src/upseal/engine/_native*.so
	@if [ -z "$$UPSEAL_BUILD" ] && scripts/system-packages --check $(BIN)/python; then \
		export UPSEAL_BUILD=native; fi; \
	echo "$(PIP) install --no-deps --no-build-isolation --editable ."; \
	$(PIP) install --no-deps --no-build-isolation --editable .
	$(BIN)/upseal --version
	touch $@

SETTINGS := $(if $(filter default,$(origin CC)),,$(CC)) $(CFLAGS) build=$(UPSEAL_BUILD) \
	ippcp=$(UPSEAL_IPPCP) werror=$(UPSEAL_WERROR) sanitize=$(UPSEAL_SANITIZE) \
	profile=$(UPSEAL_PROFILE) probes=$(UPSEAL_PROBES)
.venv/build-settings: .venv/tools FORCE
	@echo '$(SETTINGS)' | cmp -s - $@ || echo '$(SETTINGS)' > $@
FORCE:

.venv/bench-tools: .venv/core requirements/bench.txt requirements/bench-peers.txt
	$(LOCKED)/bench.txt
	$(LOCKED)/bench-peers.txt || echo "some peers cannot be installed here: they are left out"
	touch $@

.venv/dist-tools: .venv/tools requirements/build.txt
	$(LOCKED)/build.txt
	touch $@

.venv/lock-tools: .venv/tools requirements/lock.txt
	$(LOCKED)/lock.txt
	touch $@

# ---- checks ------------------------------------------------------------------

lint: .venv/core ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

ctest: .venv/tools ## the C core's own tests, under sanitizers
	scripts/ctest $(BIN)/python

# pyspark comes as source alone; it is built by the setuptools that is locked.
.venv/analytics: .venv/core requirements/analytics.txt
	$(LOCKED)/analytics.txt --no-build-isolation
	touch $@

analytics: .venv/analytics ## the tests with Spark and Ray, which are 600 MB; needs Java 17
	$(BIN)/python -m pytest $(PYTEST) tests/integrations/test_spark.py tests/integrations/test_ray.py

pytest: .venv/core ## the Python tests; PYTEST='-k name' chooses
	$(BIN)/python -m pytest $(PYTEST)

bench: .venv/bench-tools ## benchmarks, in under three minutes: .benchmarks/results/report.html
	$(BIN)/python benchmarks/run.py

bench-full: .venv/bench-tools ## all of them, half an hour; let nothing else run meanwhile
	$(BIN)/python benchmarks/run.py --full

dist: .venv/dist-tools ## sdist and wheel in dist/, audited and tried
	scripts/dist $(BIN)/python

docs: .venv/core ## the site of docs/, in build/site; warnings are errors
	scripts/docs-site $(BIN)/python

deb: .venv/dist-tools ## a Debian package in build/, of this tree and the locked versions
	scripts/deb $(BIN)/python

wheels: .venv/dist-tools ## wheels for manylinux, musl and arm64 by zig, tried as far as that can be done here
	scripts/wheels $(BIN)/python

reproducible: .venv/dist-tools ## builds both twice, in different surroundings, and compares them
	scripts/reproducible $(BIN)/python

lock: .venv/lock-tools ## the locks in requirements/ by pyproject.toml; UPGRADE=1 takes newest versions
	$(BIN)/python scripts/lock.py $(if $(UPGRADE),--upgrade)

portable: .venv/dist-tools ## installs and tries upseal without the C core
	scripts/portable $(BIN)/python

# ---- hardening: docs/security.md says what each shows -------------------------

asan-python: .venv/tools ## the Python tests on a C core built with sanitizers
	scripts/asan-python $(BIN)/python $(PYTEST)

tsan-python: .venv/core ## sealers and openers shared by many threads, under ThreadSanitizer
	scripts/tsan-python $(BIN)/python $(TSAN)

memcheck-python: .venv/core ## the same under valgrind: no uninitialised memory is used
	scripts/memcheck-python $(BIN)/python

.venv/check-tools: .venv/tools requirements/check.txt
	$(LOCKED)/check.txt || echo "no clang-tidy or cppcheck to install here: the system's, if any"
	touch $@

check-c: .venv/check-tools ## the C code by warnings, -fanalyzer, clang-tidy and cppcheck
	scripts/check-c $(BIN)/python

constant-time: .venv/tools ## no branch or address of the C core depends on a secret
	scripts/constant-time $(BIN)/python

.venv/fuzz-tools: .venv/core requirements/fuzz.txt
	$(LOCKED)/fuzz.txt || echo "no atheris here: the Python parsers are mutated without coverage"
	touch $@

fuzz: .venv/fuzz-tools ## every parser and opener, T=seconds for each of 37 targets: fuzz/README.md
	scripts/fuzz-native $(BIN)/python $(T)
	scripts/fuzz-python $(BIN)/python $(T)

mutations: .venv/core ## takes each check away, and demands that a test fails; M='--sample 10' for some
	scripts/mutations $(BIN)/python $(M)

slow: .venv/core ## the long tests: kills, leaks, gigabytes
	$(BIN)/python -m pytest -m slow --ignore=tests/faults

faults: .venv/core ## every call for disk, memory or random numbers fails in turn: hours
	$(BIN)/python -m pytest -m slow tests/faults

defects: .venv/fuzz-tools .venv/check-tools ## plants defects, and demands that sanitizers, checkers and fuzzers see them
	$(BIN)/python scripts/sanitizer_defects.py
	scripts/fuzz-native $(BIN)/python --defects
	$(BIN)/python fuzz/python/defects.py

cross-arm64: ## the C core's tests built for arm64, run by qemu (needs root)
	scripts/cross-arm64

profile: .venv/tools ## a C core for profilers, in build/profile; WORK=seal draws a flame graph
	scripts/profile $(BIN)/python $(WORK) $(if $(WORK),$(ENGINE))

instructions: .venv/core ## counts the hot paths' instructions, fails on a rise; UPDATE=1 takes them as right
	scripts/instructions $(BIN)/python $(if $(UPDATE),--update)

clean: ## removes all that make made
	rm -rf .venv build dist src/upseal.egg-info src/upseal/engine/_native.c src/upseal/engine/_native*.so \
		.mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find src tests native benchmarks scripts fuzz -name __pycache__ -prune -exec rm -rf {} +
