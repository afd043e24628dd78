# `make demo` and `make test` are all a newcomer needs; both make the environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := -m pip install --quiet --disable-pip-version-check
STAMP := $(VENV)/.installed

.PHONY: env demo test test-system lint stop peer bench clean

env: $(STAMP)

# The stamp holds what was installed from: nothing happens until one of the two files changes in content. Dates do not count,
# a fresh clone or a checkout touches them.
$(STAMP): FORCE
	@if cat constraints.txt pyproject.toml | cmp -s - $(STAMP); then exit 0; fi; set -e; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name it: make PYTHON=python3.11"; exit 2; }; \
	echo "installing into $(VENV) (a few minutes the first time)"; \
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	$(BIN)/python $(PIP) -c constraints.txt torch==2.13.0; \
	$(BIN)/python $(PIP) -c constraints.txt -e '.[dev]'; \
	cat constraints.txt pyproject.toml > $(STAMP)

demo: env
	$(BIN)/python -m deployments.demo $(ARGS)

test: env
	PREFECT_PLUGINS_ENABLED=0 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# Runs that are cancelled, killed or watched, a week of nights, a browser: alone, as they wait for what other tests would slow down.
test-system: env
	PREFECT_PLUGINS_ENABLED=0 $(BIN)/python -m pytest -m system $(ARGS)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

stop:
	$(BIN)/python -m deployments.server

# The peer's own environment, for goldens and side-by-side runs; never a dependency of ours.
peer: .venv-peer/.installed

.venv-peer/.installed:
	test -x .venv-peer/bin/python || $(PYTHON) -m venv .venv-peer
	.venv-peer/bin/python $(PIP) torch==2.13.0 'numpy<2.4' setuptools wheel
	.venv-peer/bin/python $(PIP) 'numpy<2.4' torch==2.13.0 --no-build-isolation torch-harmonics==0.8.0
	.venv-peer/bin/python $(PIP) 'numpy<2.4' torch==2.13.0 fme==2026.10.0
	touch $@

bench: env
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean: stop
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

FORCE:
