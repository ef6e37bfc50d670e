# make run     install, fetch the default model, compile its kernels once, stream an answer
# make test    everything that CI runs: make check, then all tests
# make test-fast  make check and the quick tests, in a minute and a half: what to run while working
# make test-python  the tests alone; PYTHON=python3.13 VENV=.venv-3.13: on another Python
# make test-tokenizers   ids and offsets beside those of tokenizers, sentencepiece and tiktoken, on 90 MB of text
# make test-constraints  10,000 texts under schemas and grammars, each valid?
# make test-templates    texts of seventy published chat templates beside those of transformers
# make fuzz    damaged files, patterns, templates: for an hour; FUZZ='NAME --seed 2 --count 1000': one, for less
# make check   formatting, lint, types, the order of imports between folders
# make bench   speed beside that of the peers that are there (make bench-peers sets them up); BENCH=--quick: in short
# make bench-encode   encoding speed beside tokenizers, tiktoken and sentencepiece
# make bench-sampling  what the sampler chain costs, and constraints
# make bench-agreement   how far Pellucid and llama.cpp are from the float32 run of the same file

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: run test test-python test-fast test-tokenizers test-constraints test-templates fuzz check bench bench-encode bench-sampling bench-agreement bench-peers clean

run: $(VENV)/installed
	@$(BIN)/pellucid run smollm2 "The capital of France is" --temperature 0 --max-new-tokens 40

test: check test-python

test-python: $(VENV)/dev
	$(BIN)/python -m pytest

test-fast: check
	$(BIN)/python -m pytest -m "not slow" -x

test-tokenizers: $(VENV)/oracles
	$(BIN)/python tests/oracles/tokenizers_long.py $(TOKENIZERS)

test-constraints: $(VENV)/dev
	$(BIN)/python tests/oracles/constraints_long.py $(CONSTRAINTS)

test-templates: $(VENV)/oracles
	$(BIN)/python tests/oracles/templates_long.py $(TEMPLATES)

fuzz: $(VENV)/dev
	$(BIN)/python tests/fuzz/run.py $(FUZZ)

check: $(VENV)/dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/dev
	$(BIN)/python bench/compare.py $(BENCH)

bench-encode: $(VENV)/oracles
	$(BIN)/python tests/oracles/tokenizers_long.py fetch
	$(BIN)/python tests/oracles/tokenizers_long.py train
	$(BIN)/python bench/encode.py $(BENCH)

bench-sampling: $(VENV)/dev
	$(BIN)/python bench/sampling.py $(BENCH)

bench-agreement: $(VENV)/dev
	$(BIN)/python bench/agreement.py $(BENCH)

bench-peers:
	$(PYTHON) bench/peers.py $(PEERS)

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(VENV)/oracles: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[oracles]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
