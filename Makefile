# Everything a person types. `make help` lists it.
#
# `make env` makes .venv from the lock files. PyTorch comes first, from wherever pip is configured to look: to get the small CPU
# build where the default index serves the CUDA one, set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels.

DEMO ?= smollm2-arithmetic
DEMO_ARGS ?=
TEST_ARGS ?=
CLAIMS_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PEERS_VENV := .venv-peers
VLLM_VENV := .venv-vllm
CONTROL_VENV := .venv-control-peers
FACTORY_VENV := .venv-sample-factory
LOCKS := requirements-torch.lock requirements.lock
# The first that runs and is new enough; a name on the PATH alone proves nothing.
PYTHON ?= $(firstword $(foreach python,python3.11 python3.12 python3.13 python3,$(shell \
	$(python) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $(python))))
# One thread each: two processes that spin on the same cores are slower than one.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= passive
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help env demo test test-slow test-gpu test-dist test-peers chaos fuzz soak claims claims-quick check format bench bench-peers-env bench-vllm-env bench-control-env bench-sample-factory-env docs lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-16s %s\n", $$1, $$2}'

env: $(VENV)/.stamp ## the environment in .venv, from the lock files

$(VENV)/.stamp: $(LOCKS) pyproject.toml
	@test -n "$(PYTHON)" || { echo "make env: found no Python 3.11, 3.12 or 3.13 on the PATH; install one or say PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements-torch.lock -c requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: env ## train a small language model on this computer and watch it learn (DEMO=recipe)
	$(BIN)/freerun run $(DEMO) $(DEMO_ARGS)

test: env ## the default test suite
	$(BIN)/python -m pytest $(TEST_ARGS)

test-slow: env ## learning tests and others that take minutes
	$(BIN)/python -m pytest -m slow $(TEST_ARGS)

test-gpu: env ## what needs a CUDA device
	$(BIN)/python -m pytest -m gpu $(TEST_ARGS)

test-dist: env ## only the tests that spawn processes
	$(BIN)/python -m pytest -m "dist and not gpu" $(TEST_ARGS)

chaos: env ## hurt runs in every known way, audit them, and enter the result in docs/guarantees.md (an hour or more)
	$(BIN)/freerun chaos tiny-faults --minutes 600 --cycles 200 --out docs/guarantees/faults.json
	$(BIN)/python tools/faults_table.py

fuzz: env ## ten thousand inputs for every reader of files; counts go into docs/guarantees.md
	$(BIN)/python tools/fuzz.py
	$(BIN)/python tools/faults_table.py

soak: env ## run for twenty minutes and record the memory of every process
	$(BIN)/python tools/soak.py
	$(BIN)/python tools/faults_table.py

claims: env ## every small experiment on what a paper claims; writes docs/claims (hours; what was run before is kept)
	$(BIN)/freerun claims $(CLAIMS_ARGS)
	$(BIN)/python tools/claims_table.py

claims-quick: env ## the quick ones; fails if a verdict is not the one on record
	$(BIN)/freerun claims --quick --check $(CLAIMS_ARGS)

test-peers: env bench-peers-env ## our losses against those of TRL's own trainers
	PEERS_PYTHON=$${PEERS_PYTHON:-$(CURDIR)/$(PEERS_VENV)/bin/python} $(BIN)/python -m pytest -m peers $(TEST_ARGS)

check: env ## lint, format, types, layers, budgets, generated docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/arch

format: env ## rewrite the code the way `make check` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env ## every benchmark of bench/ that needs nothing else installed
	@set -e; for script in bench/*.py; do echo "== $$script"; $(BIN)/python $$script $(BENCH_ARGS); done

bench-peers-env: $(PEERS_VENV)/.stamp ## the environment of the systems that bench/peers compares with, in .venv-peers

$(PEERS_VENV)/.stamp: bench/peers/requirements-trl.lock requirements-torch.lock
	$(PEERS_VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(PEERS_VENV)
	$(PEERS_VENV)/bin/python -m pip install --quiet -r requirements-torch.lock -c bench/peers/requirements-trl.lock
	$(PEERS_VENV)/bin/python -m pip install --quiet --no-deps -r bench/peers/requirements-trl.lock
	@touch $@

bench-vllm-env: $(VLLM_VENV)/.stamp ## the environment of vLLM's CPU build for bench/generation.py, in .venv-vllm

$(VLLM_VENV)/.stamp: bench/peers/requirements-vllm.lock requirements-torch.lock
	$(VLLM_VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet -r requirements-torch.lock -c bench/peers/requirements-vllm.lock
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps -r bench/peers/requirements-vllm.lock
	@touch $@

bench-control-env: $(CONTROL_VENV)/.stamp ## the environment of the peers of bench/control_*.py, in .venv-control-peers

$(CONTROL_VENV)/.stamp: bench/peers/requirements-control.lock requirements-torch.lock
	$(CONTROL_VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(CONTROL_VENV)
	$(CONTROL_VENV)/bin/python -m pip install --quiet -r requirements-torch.lock -c bench/peers/requirements-control.lock
	$(CONTROL_VENV)/bin/python -m pip install --quiet --no-deps -r bench/peers/requirements-control.lock
	@touch $@

bench-sample-factory-env: $(FACTORY_VENV)/.stamp ## the environment of Sample Factory for bench/control_throughput.py, in .venv-sample-factory

$(FACTORY_VENV)/.stamp: bench/peers/requirements-sample-factory.lock requirements-torch.lock
	$(FACTORY_VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(FACTORY_VENV)
	$(FACTORY_VENV)/bin/python -m pip install --quiet -r requirements-torch.lock -c bench/peers/requirements-sample-factory.lock
	$(FACTORY_VENV)/bin/python -m pip install --quiet --no-deps -r bench/peers/requirements-sample-factory.lock
	@touch $@

docs: env ## write the generated pages and tables
	@set -e; for script in tools/*_table.py; do if [ -e "$$script" ]; then $(BIN)/python $$script; fi; done

lock: env ## write the lock files from what is installed in .venv
	$(BIN)/python tools/lock.py

clean: ## remove environments and caches; keeps runs/
	rm -rf $(VENV) $(PEERS_VENV) $(VLLM_VENV) $(CONTROL_VENV) $(FACTORY_VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
