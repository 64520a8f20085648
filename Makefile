# Everything a person, a pre-commit hook or CI does with this checkout. `make run` and `make test` need no set-up.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# What pip installs before the rest. A machine without an NVIDIA GPU needs no CUDA; where the plain index serves
# only CUDA builds, name PyTorch's own CPU index: make setup TORCH="--index-url URL torch==2.13.0"
TORCH ?= $(if $(shell nvidia-smi -L 2>/dev/null),'torch>=2.9$(COMMA)<2.14',torch==2.13.0)
COMMA := ,
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PROTOC := $(BIN)/python -m grpc_tools.protoc -Iprotos
PROTOS := $(wildcard protos/paceline/*/*.proto)

.PHONY: help chart setup run test test-long test-unit chaos parity fuzz soak alerts clients check format protos protos-check dashboards bench peers images images-check chart-check compose-check clean clean-kernels

help:  ## Show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: $(VENV)/.ready  ## Make the virtual environment (the other targets do it by themselves)

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $$($(PYTHON) --version) is too old: name a Python >= 3.11, as in make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "error: $(PYTHON) cannot make virtual environments: install its venv package (Debian: apt install python3-venv)"; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing $(subst ',,$(TORCH)) (a large download, once)"
	@$(PIP) $(TORCH)
	@echo "installing paceline and its tools"
	@$(PIP) --editable '.[dev]'
	@touch $@

run: setup  ## Start everything here and show it work; ARGS="--once --drafters 2" are passed on
	@$(BIN)/paceline up $(ARGS)

test: setup  ## Run all tests but the long ones; ARGS="-k words" are passed on
	@$(BIN)/python -m tests.run $(ARGS)

test-long: setup  ## Run the long tests: faults, soaks, benches; each says why it is long
	@$(BIN)/python -m tests.run --long $(ARGS)

test-unit: setup  ## Run the tests that start no process
	@$(BIN)/python -m tests.run tests/unit $(ARGS)

chaos: setup  ## Kill, pause and cut off services under load; ARGS="--faults 50 --seed 1" are passed on
	@$(BIN)/python -m tests.chaos.run $(ARGS)

parity: setup  ## Ask for every feature on every path of a real model; ARGS="--model FOLDER"
	@$(BIN)/python -m tests.parity $(ARGS)

fuzz: setup  ## Say 10,000 hostile things to every service; ARGS="--fuzz-seed 7" repeats what was found
	@$(BIN)/python -m pytest tests/fuzz --fuzz-cases 10000 --fuzz-seed $$RANDOM --timeout 7200 $(ARGS)

soak: setup  ## Serve 16 clients for 20 minutes and see that nothing grows; ARGS="--minutes 60"
	@$(BIN)/python -m tests.soak.run $(ARGS)

alerts: setup  ## Make the fault that each alert is for on a fleet that a real Prometheus scrapes
	@$(BIN)/python -m pytest tests/monitoring -rs $(ARGS)

clients: setup  ## Try every client of docs/clients.md, also those that take minutes to install; ARGS="-k litellm"
	@$(BIN)/python -m pytest tests/clients --all-clients -rs --timeout 1200 $(ARGS)

check: setup protos-check  ## Lint, format, types, import contracts, generated code
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup  ## Format the code and fix what ruff can fix
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

protos: setup  ## Generate paceline/v1 and paceline/keda from protos/
	@$(PROTOC) --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

chart: setup  ## Write the schema of the chart's values, from values.yaml and the services' settings
	@$(BIN)/python -m deploy.schema

protos-check: setup
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT \
		&& $(PROTOC) --python_out=$$fresh --pyi_out=$$fresh --grpc_python_out=$$fresh $(PROTOS) \
		&& diff -r -x __init__.py -x __pycache__ $$fresh/paceline/v1 paceline/v1 \
		&& diff -r -x __init__.py -x __pycache__ $$fresh/paceline/keda paceline/keda \
		|| { echo "error: paceline/v1 or paceline/keda is not what protos/ generates: run make protos"; exit 1; }

dashboards: setup  ## Write the chart's Grafana dashboards
	@$(BIN)/python -m deploy.dashboards

bench: setup  ## Measure; ARGS="decode --dataset FILE" says what
	@$(BIN)/paceline bench $(ARGS)

peers: setup  ## Install the servers that `paceline bench peers` compares with; ARGS="--index-url URL"
	@$(BIN)/python -m bench.peers.install $(ARGS)

images:  ## Build the images with docker, podman or buildah; deploy/build has the variables
	@deploy/build $(ARGS)

images-check: setup  ## Build the images and serve from them in podman, read-only and as nobody; ARGS="--base IMAGE"
	@$(BIN)/python -m tests.images.run $(ARGS)

chart-check: setup  ## Play the rendered chart in podman from those images, test it, kill its pods, upgrade it
	@$(BIN)/python -m tests.images.chart $(ARGS)

compose-check: setup  ## Run compose's own services in podman from those images
	@$(BIN)/python -m tests.images.compose $(ARGS)

clean:  ## Remove the environment and caches (not what is in ~/.cache/paceline)
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

clean-kernels:  ## Compile the CPU's kernels anew: after a change in what they import
	@find paceline/engine/cpu/kernels \( -name '*.nbi' -o -name '*.nbc' \) -delete
