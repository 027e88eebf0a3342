# Needs Python 3.11 or later, pip, make and a C++ compiler; everything else goes into $(VENV).
#   make serve MODEL=./my-model ARGS="--port 9000 --max-model-len 256"
#   make test ARGS="tests/cli -x"
#   make test ARGS="-m gpu" JOBS=0
#   make install TORCH="torch==2.11.0" PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
MODEL ?= demo
ARGS ?=
JOBS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
WHEELS := $(foreach name,kernels engine server cli bench,packages/vllm-$(name))
# One stamp per torch requirement, so that another TORCH=... installs again.
STAMP := $(VENV)/.installed-$(shell printf %s '$(TORCH)' | tr -c 'A-Za-z0-9.' '_')

.DEFAULT_GOAL := help
.PHONY: help install native serve test simulated-gpu aot soak soak-long fuzz fuzz-engine bench lint docs format types contracts check demo-model clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

install: $(STAMP) ## the five wheels and the developer tools in .venv (again only after a change)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11; name another one: make PYTHON=python3.12 ..."; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(STAMP): $(BIN)/python pyproject.toml $(WHEELS:%=%/pyproject.toml)
	@rm -f $(VENV)/.installed-*
	@echo "installing the developer tools"
	@$(PIP) install --upgrade 'pip>=25.1'
	@$(PIP) install --group dev
	@echo "installing $(TORCH) and the five wheels; the first time this takes a minute or two"
	@$(PIP) install '$(TORCH)'
	@# One command with all five folders: a sibling is never looked for on an index.
	@$(PIP) install --no-build-isolation --check-build-dependencies '$(TORCH)' $(WHEELS:%=--editable ./%)
	@touch $@

# The native kernels again, after a change of their sources; silent when there is nothing to do.
native: $(STAMP) ## the C++ kernels, after a change of csrc
	@$(BIN)/python packages/vllm-kernels/build_native.py

# When it is ready, the server itself prints the line to try it with.
serve: install native ## start the server on port 8000 with the demo model
	@exec $(BIN)/vllm serve $(MODEL) $(ARGS)

# Triton interprets and compiles GPU kernels on any machine; only their tests need it.
$(STAMP).triton: $(STAMP)
	@echo "installing Triton"
	@$(PIP) install --group triton
	@touch $@

# Many tests wait for a server or a clock: two processes share the files, each on its own (JOBS=0: none but this one).
test: install native $(STAMP).triton ## every quick test
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

SIMULATED := $(BIN)/python -m pytest -p tests.simulated_gpu.plugin --numprocesses $(JOBS) --dist loadfile

simulated-gpu: install native $(STAMP).triton ## the engine's tests, and those of Triton's kernels, on a GPU that is simulated
	@$(SIMULATED) $(or $(ARGS),tests/engine tests/simulated_gpu)
	@$(if $(ARGS),,SIMULATED_GPU_KERNELS=all $(SIMULATED) tests/kernels -k triton)

aot: install $(STAMP).triton ## compile the GPU kernels without a GPU: a subset with every value of every parameter
	@$(BIN)/python -m vllm_kernels.aot --cover $(ARGS)

soak: install native ## one minute of load on a real server
	@$(BIN)/python -m pytest -m soak tests/e2e/test_soak.py $(ARGS)

soak-long: install native ## 20,000 short requests of all kinds, with aborts: does anything grow?
	@$(BIN)/python -m pytest -m soak -s tests/e2e/test_soak_long.py $(ARGS)

fuzz: install native ## ten thousand requests made from our OpenAPI page, against a real server
	@$(BIN)/python -m pytest -m fuzz -s tests/server/test_schema_fuzz.py $(ARGS)

fuzz-engine: install native ## random models, settings and requests against transformers (ARGS="--seconds 3600")
	@$(BIN)/python -m tools.fuzz_engine $(ARGS)

bench: install native ## figures of our engine: latency, throughput, start-up (ARGS="--model qwen3-0.6b")
	@$(BIN)/python tools/bench_engine.py $(ARGS)

lint: install ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

docs: install ## docs/configuration.md, from the declared settings
	@$(BIN)/python tools/write_configuration_page.py

format: install ## ruff: mend what can be mended
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: install ## mypy, strict, over the five wheels
	@$(BIN)/mypy

contracts: install ## import-linter: who may import whom
	@$(BIN)/lint-imports --no-logo

check: lint types contracts ## all three

demo-model: install ## train the demo model again (some minutes)
	@$(BIN)/python tools/train_demo_model.py $(ARGS)

clean: ## remove what was built, and the caches
	@rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find packages tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
