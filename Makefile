# SPDX-License-Identifier: Apache-2.0
# The commands of this repository. `make` alone lists them. Everything runs inside .venv, which `setup` builds and keeps fresh.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PROMPT ?= What is the capital of France?
MODEL  ?= smolmoe-exact
PORT   ?= 8000

# To the commands through the environment, as they were typed: neither make nor the shell reads their quotes, $ or `.
override PROMPT := $(value PROMPT)
override MODEL := $(value MODEL)
export PROMPT MODEL

.DEFAULT_GOAL := help
.PHONY: help setup run serve test test-fast test-sanitize test-mutation kernel-selftest check format bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## build .venv: compile the kernels, install everything (fast when nothing changed)
	@$(PYTHON) tools/setup_env.py

run: setup ## ask the demo model one question over HTTP and stream the answer (PROMPT="…", MODEL=…)
	@$(PY) tools/ask_once.py --model="$$MODEL" --prompt="$$PROMPT"

serve: setup ## serve MODEL (smolmoe-exact) on PORT (8000) until Ctrl-C
	@$(VENV)/bin/kt serve --port "$(PORT)" -- "$$MODEL"

test: setup ## all tests, time printed per package
	@$(PY) tools/run_tests.py

test-fast: setup ## tests without the slow and end-to-end ones (at most 5 minutes)
	@$(PY) tools/run_tests.py --fast

test-sanitize: setup ## tests of kernels and kt-kvcache in builds with ASan + UBSan and with TSan (minutes; GCC)
	@$(PY) tools/run_sanitize.py

test-mutation: setup ## break one primitive of the kernels at a time: their tests must notice (minutes)
	@$(PY) tools/run_mutations.py

kernel-selftest: setup ## build a static binary that prints what every kernel of every target computes, as hashes
	@build=$$(ls -td packages/kt-kernel/build/cp*/ | head -1) && $(PY) -m cmake --build "$$build" --target kernel-selftest && \
		echo "$${build}kernel-selftest"

check: setup ## lint, types, import contracts, formatting, file sizes (at most 2 minutes)
	@$(PY) tools/run_checks.py

format: setup ## rewrite the sources in the project's format
	@$(PY) tools/run_checks.py --fix

bench: setup ## measure every public kernel op, the store and the engine with asv (results under .asv/)
	@$(VENV)/bin/asv machine --yes >/dev/null
	@$(VENV)/bin/asv run --show-stderr HEAD^!

clean: ## remove .venv and everything built here (not the cached demo models)
	rm -rf $(VENV) .asv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	rm -rf packages/*/build packages/*/dist tools/*/build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
