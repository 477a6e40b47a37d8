# Polygraft: every task a developer needs. `make` alone lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Why: with the checkout on sys.path, our kernels/ and adapters/ would shadow the libraries of those
# names. See CONTRIBUTING.md, "Traps".
export PYTHONSAFEPATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BIN := .venv/bin
BASE_STAMP := .venv/.installed-base
DEV_STAMP := .venv/.installed-dev
INSTALL_INPUTS := pyproject.toml constraints.txt scripts/install
PYTEST_ARGS ?=
BENCH_ARGS ?= --preset quick
BENCH_OUT ?= runs/benchmarks
SERVE_ARGS ?=
GPU_ARGS ?=

.PHONY: help setup demo test test-interpreter test-triton test-triton36 check check-kernels fmt protos serve bench bench-all gpu-check clean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BASE_STAMP): $(INSTALL_INPUTS)
	@scripts/install base

$(DEV_STAMP): $(INSTALL_INPUTS)
	@scripts/install dev

setup: $(DEV_STAMP) ## make .venv with every pinned dependency, for development

demo: $(BASE_STAMP) ## serve, train two adapters, swap them under load, show what happened
	@$(BIN)/polygraft demo

test: check check-kernels test-interpreter ## everything CI runs: check, then the tests
	@scripts/fetch-promtool
	@$(BIN)/pytest --durations=15 $(PYTEST_ARGS)

# Why a process of its own: Triton chooses its interpreter when a kernel is imported.
test-interpreter: $(DEV_STAMP) ## the Triton kernels against float64, in Triton's interpreter (no GPU)
	@TRITON_INTERPRET=1 $(BIN)/pytest -q --durations=3 tests/kernels/interpreted tests/server/engine/interpreted

check-kernels: $(DEV_STAMP) ## compile every shipped Triton kernel for sm_80, sm_90 and gfx942, and read the code
	@$(BIN)/python -m polygraft.kernels.fused.compile_check >/dev/null
	@$(BIN)/python -m polygraft.kernels.paged.compile_check >/dev/null

# Why another numpy: the interpreter of Triton 3.6 takes int() of arrays, which numpy 2.4 refuses.
TRITON ?= 3.9.0
TRITON_DIR = .venv/triton-$(TRITON)
TRITON_WITH = triton==$(TRITON) $(if $(filter 3.6.%,$(TRITON)),numpy==2.3.5)
test-triton: $(DEV_STAMP) ## the same under another Triton (TRITON=3.9.0), kept beside .venv
	@[ -f $(TRITON_DIR)/.installed ] || { $(BIN)/pip install --quiet --no-deps --target $(TRITON_DIR) $(TRITON_WITH) && touch $(TRITON_DIR)/.installed; }
	@TRITON_DEFAULT_FP_FUSION=1 PYTHONPATH=$(TRITON_DIR):src $(BIN)/python -m polygraft.kernels.fused.compile_check
	@TRITON_DEFAULT_FP_FUSION=1 PYTHONPATH=$(TRITON_DIR):src $(BIN)/python -m polygraft.kernels.paged.compile_check
	@PYTHONPATH=$(TRITON_DIR):src TRITON_INTERPRET=1 $(BIN)/pytest -q tests/kernels/interpreted tests/server/engine/interpreted

test-triton36: ## the same under the oldest Triton that is supported
	@$(MAKE) --no-print-directory test-triton TRITON=3.6.0

check: $(DEV_STAMP) ## formatting, lint, types, import directions, protos
	@scripts/check

fmt: $(DEV_STAMP) ## rewrite the code in the house format
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

protos: $(DEV_STAMP) ## regenerate the committed protobuf stubs
	@scripts/generate-protos

serve: $(BASE_STAMP) ## serve the bundled base on 127.0.0.1:50051 (SERVE_ARGS="--model DIR ...")
	@$(BIN)/polygraft serve $(SERVE_ARGS)

bench: $(DEV_STAMP) ## measure serving against PEFT (BENCH_ARGS="--preset full --json out.jsonl")
	@$(BIN)/python benchmarks/serving.py $(BENCH_ARGS)

bench-all: $(DEV_STAMP) ## every benchmark of the record: 30 minutes, and nothing else should run (BENCH_OUT=DIR)
	@$(BIN)/python benchmarks/all.py --out $(BENCH_OUT)

# Why no stamp: a GPU machine brings its own torch, which nothing here may replace.
gpu-check: ## prove and measure the kernels and the engine on one NVIDIA GPU: ten minutes (GPU_ARGS=)
	@scripts/gpu-check $(GPU_ARGS)
	@scripts/gpu-check tests

clean: ## remove .venv and everything generated
	@rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
