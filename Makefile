# `make` alone lists the targets. Everything runs from .venv, which holds exactly what requirements.lock says.
PYTHON ?= python3
BIN := .venv/bin

# A stamp's name carries the checksum of what was installed: a checkout that only touches times installs nothing, a
# changed file installs again. Stamps are written last, so a broken installation is never taken for a whole one.
LOCKED := .venv/.locked-$(shell cksum < requirements.lock | tr ' ' -)
INSTALLED := .venv/.installed-$(shell cksum < pyproject.toml | tr ' ' -)

# pip compiles to bytecode what it installs, whatever the user's environment says: `import tensorflow` takes 8 s with
# bytecode and 19 s without.
PIP_INSTALL := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pip install --quiet --compile

# What a lock file names is installed by uv, which takes half as long: the one that is there, else one from the index that
# pip is set to. Where there is none, or it fails, pip does it. Either compares every hash.
INDEX := $${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null || true)}}
UV_INSTALL := pip install --python $(BIN)/python --quiet --compile-bytecode --require-hashes
define install_lock
	@uv=$$(command -v uv) || { $(PIP_INSTALL) --require-hashes -r requirements-uv.lock && uv=$(BIN)/uv; }; \
	index=$(INDEX); [ -z "$$index" ] || export UV_DEFAULT_INDEX="$$index"; \
	[ -n "$$uv" ] && env -u PYTHONDONTWRITEBYTECODE "$$uv" $(UV_INSTALL) -r $(1) || $(PIP_INSTALL) --require-hashes -r $(1)
endef

.PHONY: help setup setup-ray setup-team train test test-slow coverage lint bench pictures ui lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: $(INSTALLED) ## build .venv from requirements.lock (another Python: make clean setup PYTHON=python3.12)

$(LOCKED):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "bestrun needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	    "Name another one: make setup PYTHON=python3.12" >&2; exit 1; }
	@echo "Building .venv from requirements.lock; this takes a few minutes, once."
	$(PYTHON) -m venv --clear .venv
	$(call install_lock,requirements.lock)
	@touch $@

$(INSTALLED): $(LOCKED)
	@rm -f .venv/.installed-*
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

setup-ray: setup ## add Ray to .venv, for sweep.backend=ray
	$(call install_lock,requirements-ray.lock)

setup-team: setup ## add to .venv what PostgreSQL and S3 need, and what the tests of real servers start
	$(call install_lock,requirements-team.lock)

train: setup ## train with the tutorial's settings, or with others: make train ARGS="optimizer.learning_rate=1e-3"
	$(BIN)/bestrun train $(ARGS)

test: setup ## the quick tests, two files at a time (ten to fifteen minutes on two cores); of one package: make test PKG=storage
	$(BIN)/python -m pytest tests/$(PKG) -m "not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: setup ## kills, outages and sweeps, many times over (an hour, more on a busy machine)
	$(BIN)/python -m pytest -m slow

coverage: setup ## which lines the quick tests reach in their own process, one file after the other; no gate
	$(BIN)/coverage run --source=src/bestrun/$(PKG) -m pytest tests/$(PKG) -m "not slow"
	$(BIN)/coverage report --skip-covered --sort=cover

lint: setup ## style, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup ## measure against peers, and what safety costs, forty minutes; ARGS=PART: see tests/bench/__main__.py
	$(BIN)/python -m tests.bench $(ARGS)

pictures: setup ## make the pictures of README and docs anew, from real runs (about ten minutes; needs Chromium)
	$(BIN)/python -m tests.pictures

ui: setup ## the MLflow page, on 127.0.0.1
	$(BIN)/bestrun ui

LOCK := uv pip compile pyproject.toml --extra dev --generate-hashes --universal --python-version 3.11 --no-header

# What is in a file already stays, where it can: boto3 wants an older python-dateutil than the others take.
lock: ## resolve pyproject.toml anew into requirements.lock, and with Ray or for a team into two more (needs uv)
	$(LOCK) --output-file requirements.lock
	$(LOCK) --extra ray --constraints requirements.lock --output-file requirements-ray.lock
	cp requirements.lock requirements-team.lock
	$(LOCK) --extra team --extra servers --output-file requirements-team.lock
	echo uv | uv pip compile - --generate-hashes --universal --python-version 3.11 --no-header --output-file requirements-uv.lock

clean: ## remove .venv and caches, never mlruns
	rm -rf .venv .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -path ./mlruns -prune -o -name __pycache__ -prune -exec rm -rf {} +
