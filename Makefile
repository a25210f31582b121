# Two commands are the whole set-up: `make demo` and `make test`. `make help` lists the rest.
VENV   ?= .venv
DEVICE ?= auto
PYTHON ?=
VLLM   ?= yes
EXTRAS ?=
ARGS   ?=
SEED   ?= 1
KILLS  ?= 300
FAULTS ?= 60
BIN    := $(VENV)/bin
comma  := ,
STAMP  := $(VENV)/.installed-$(DEVICE)-$(VLLM)$(addprefix -,$(subst $(comma),-,$(EXTRAS)))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long chaos families check docs-check bench dashboard clean

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  variables: DEVICE=auto|cpu|cuda  PYTHON=python3.11  VENV=.venv  VLLM=yes|no"
	@echo "             EXTRAS=bench,gguf,nvml,qlora,ray,tensorboard  ARGS='more arguments'"

setup: $(STAMP) ## Make the environment (again after pyproject.toml changed)

$(STAMP): pyproject.toml scripts/setup_env.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" DEVICE="$(DEVICE)" VLLM="$(VLLM)" EXTRAS="$(EXTRAS)" bash scripts/setup_env.sh
	@touch $@

demo: $(STAMP) ## Run PCO, 2 iterations, on the built-in world; the same command resumes after a crash
	$(BIN)/align run recipe=pco run=demo $(ARGS)
	@echo "next:     $(BIN)/align plan recipe=iterative_dpo    what another recipe would reuse of it"

# Two processes on two cores, so one thread each; what each command holds: tests/README.md.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --no-loadscope-reorder --durations=20

test: $(STAMP) ## Run the tests, a quarter of an hour on two cores; ARGS="tests/objectives -k dpo" runs some
	$(PYTEST) -m "not gpu and not long" $(ARGS)

test-long: $(STAMP) ## Run the large matrices that `make test` leaves out; adds a line to docs/test-long.md
	$(PYTEST) -m "long and not gpu" --record=docs/test-long.md $(ARGS)

chaos: $(STAMP) ## Kill runs, and fail their disks: SEED=1 KILLS=300 FAULTS=60; kills go on where build/chaos/ledger.jsonl ends
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.kills --seed $(SEED) --kills $(KILLS) $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.disk --seed $(SEED) --faults $(FAULTS)

families: $(STAMP) ## Prove every family of models in every column of docs/models.md, and write its table
	$(BIN)/python -m pytest tests/lm/test_families.py tests/engines/vllm/test_families.py \
		tests/flows/test_families.py --families=docs/models.md $(ARGS)

check: $(STAMP) ## Run the linters (ruff, mypy) and the audit of what is installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python scripts/audit.py

docs-check: $(STAMP) ## Check README and docs: commands, links, files, options and settings they name
	$(BIN)/python -m pytest tests/test_docs.py $(ARGS)

bench: $(STAMP) ## Run the benchmarks, scripts/bench_*.py; ARGS=--quick for a first look
	@set -e; for file in $(wildcard scripts/bench_*.py); do echo "== $$file"; $(BIN)/python $$file $(ARGS); done

dashboard: $(STAMP) ## Show all runs in the browser: one page over the workspace, live
	$(BIN)/align dashboard $(ARGS)

clean: ## Remove caches and build leftovers; keeps the environment and the workspace
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
