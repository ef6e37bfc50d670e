# make run     install, fetch the default model, compile its kernels once, stream an answer
# make test    make check and all tests but the long ones, in groups: a failed group does not stop the others, and the last
#              lines name the failed groups
# make test-fast   make check and the quick tests, for use while working
# make test-long   kernels of other instruction sets, and long sweeps; .ci/run runs them where kernels change
# make test-python   the tests of make test, without make check; test-quick: the quick ones. PYTHON=python3.13
#                    VENV=.venv-3.13 runs them on another Python. WORKERS processes share the files of tests: 2, or 0 for none
# make test-tokenizers   compare ids and offsets with tokenizers, sentencepiece and tiktoken, on 90 MB of text
# make test-constraints  generate 10,000 texts under schemas and grammars, and validate each
# make test-templates    compare the texts of seventy published chat templates with those of transformers
# make test-oracles  make the goldens of the tiny models and of their points again, with transformers
# make test-defaults  what a config.json does not state, against the defaults of transformers
# make test-orders   orders of documents for 200 queries, against transformers' float32 run
# make test-greedy   greedy texts of the two Qwen models, precise, against transformers' float32 run
# make test-trace  the points of four real models, against transformers' float32 run; TRACE=--float32 adds a run of the
#                  weights in float32, without rounded activations
# make test-transformer-lens  names, shapes and values of TransformerLens on the tiny models, and its driver
# make test-interp-engine  values at the points of interp-engine on the tiny models; INTERP='llama gemma2' compares two
# make test-gguf  compare GGUF files of llama.cpp's converter with transformers; LLAMA_CPP=FOLDER is llama.cpp's source.
#                 GGUF='--library FOLDER' compares with llama.cpp too: the folder of libllama.so, built from that source
# make test-clients  real clients of all APIs against a server: Python's, and JavaScript's where npm is; CLIENTS='agent_client'.
#                    The recipes of docs/recipes run too, each in an environment of its own: CLIENTS='recipe-langchain'
# make test-deploy  the files of deploy/ with the tools that read them: hadolint, Helm, schemas of Kubernetes, systemd
# make test-web   the page in a real Chromium (Debian's, installed if there is none): what is drawn, keyboard, axe-core on
#                 three widths; pictures of every stop of the tour and an animation go to .screenshots
# make test-widgets  widgets in the real JupyterLab and marimo, in a real Chromium; WIDGETS='marimo' runs one
# make test-mutants  change one operator of the source at a time; which changes do the quick tests notice? MUTANTS='--seed 1'
# make test-soak  200 clients that behave badly, for ten minutes: no answer differs, nothing is left; SOAK='--minutes 1'
# make test-edits  edits by functions beside static edits, 2 to 4 threads, beside busy processes: no bit differs
# make test-wheel   a wheel with a few kernels from a clone of the last commit, installed without a compiler, generates text
# make test-emulated  tiny models on an emulated AArch64 processor give the bits of this machine; EMULATED='--cpu cortex-a72'
# make fuzz    damaged files, random tokenizers, patterns, templates, for an hour; FUZZ='NAME --seed 2 --count 1000' runs one fuzzer, shorter
# make wheel   dist/: a wheel with compiled kernels, which needs no compiler; SYSTEM=linux-aarch64 for another system
# make kernels   compile the kernels of a wheel: an hour on two cores, then only what has changed
# make notebooks   run docs/notebooks again and store their output; NOTEBOOKS='logit-lens truth' runs two
# make docs    the documentation as a site in build/docs/html; a warning or a broken link is an error
# make dist    sdist and wheel in dist/, checked by twine
# make check   formatting, lint, types, import order between folders
# make check-platforms   types of the source on Windows and macOS, where other functions of Python exist
# make bench   speed beside the installed peers (make bench-peers installs them); BENCH=--quick is short
# make bench-encode   encoding and decoding speed beside tokenizers, tiktoken and sentencepiece
# make bench-sampling  cost of the sampler chain and of constraints
# make bench-constraints  what costly grammars take from other streams
# make bench-tracing   cost of recording and editing a run; BENCH='--peers PYTHON' measures nnsight and TransformerLens
#                too, with an interpreter that has them
# make bench-encoders   sentence encoders beside sentence-transformers, ONNX Runtime, OpenVINO and llama.cpp
# make bench-page   first paint, updates of the picture, zooming, and decode with the page open (after make test-web)
# make bench-receipts   decode with and without receipts, and the time of a replay
# make bench-agreement   divergence of Pellucid and llama.cpp from the float32 run of the same file

# Tests and programs that they start would compile all changed sources again.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
SYSTEM ?= linux-$(shell uname -m)
BIN := $(VENV)/bin
QUICK := -m "not slow" --hypothesis-profile=quick

# Servers, replicas and machines, whose waits should be their own; and tests that measure steps, which run alone.
CLUSTER := tests/unit/cluster
ALONE := $(addprefix tests/unit/capacity/test_,step_costs.py server_costs.py search.py)
PYTEST := $(BIN)/python -m pytest
AT_ONCE := --numprocesses $(WORKERS) --dist loadfile

GROUPS := test-most test-cluster test-alone budget
TESTS ?= -m "not long"

# Run targets one after the other, with the variables $(2), and fail at the end if one failed.
define each
+@failed=; for target in $(1); do $(MAKE) --no-print-directory $$target $(2) || failed="$$failed $$target"; done; \
[ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }
endef

.PHONY: run test test-groups test-most test-cluster test-alone test-python test-quick test-fast test-long test-tokenizers test-constraints test-templates test-oracles test-defaults test-orders test-greedy test-trace test-transformer-lens test-interp-engine test-gguf test-clients test-deploy test-mutants test-soak test-edits test-web test-wheel test-widgets budget fuzz docs notebooks dist kernels wheel test-emulated check check-platforms bench bench-encode bench-sampling bench-constraints bench-tracing bench-page bench-encoders bench-agreement bench-receipts bench-peers clean

run: $(VENV)/installed
	@$(BIN)/pellucid run smollm2 "Why is the sky blue?" --temperature 0 --max-new-tokens 40

test: $(VENV)/dev
	$(call each,check $(GROUPS))

test-groups:
	@echo check $(GROUPS)

test-most: $(VENV)/dev
	$(PYTEST) $(AT_ONCE) $(addprefix --ignore=,tests/web $(CLUSTER) $(ALONE)) $(TESTS)

test-cluster: $(VENV)/dev
	$(PYTEST) $(AT_ONCE) $(CLUSTER) $(TESTS)

test-alone: $(VENV)/dev
	$(PYTEST) $(ALONE) $(TESTS)

test-python: $(VENV)/dev
	$(call each,$(GROUPS))

test-long: $(VENV)/dev
	$(PYTEST) $(AT_ONCE) -m long

test-quick: $(VENV)/dev
	$(call each,$(GROUPS),TESTS='$(QUICK)')

test-fast: $(VENV)/dev
	$(call each,check $(GROUPS),TESTS='$(QUICK)')

test-tokenizers: $(VENV)/oracles
	$(BIN)/python tests/oracles/tokenizers_long.py $(TOKENIZERS)

test-constraints: $(VENV)/dev
	$(BIN)/python tests/oracles/constraints_long.py $(CONSTRAINTS)

test-templates: $(VENV)/oracles
	$(BIN)/python tests/oracles/templates_long.py $(TEMPLATES)

test-oracles: $(VENV)/oracles
	$(BIN)/python tests/oracles/tiny_oracle.py --out tests/goldens/model/tiny $(ORACLES)
	$(BIN)/python tests/oracles/trace_oracle.py --out tests/goldens/trace $(ORACLES)

test-defaults: $(VENV)/oracles
	$(BIN)/python tests/oracles/defaults_oracle.py

test-orders: $(VENV)/oracles
	$(BIN)/python tests/oracles/orders_long.py

test-greedy: $(VENV)/oracles
	$(BIN)/python tests/oracles/greedy_long.py $(GREEDY)

test-trace: $(VENV)/oracles
	$(BIN)/python tests/oracles/trace_real.py $(TRACE)

test-transformer-lens:
	$(PYTHON) -m venv $(VENV)-transformer-lens
	$(VENV)-transformer-lens/bin/python -m pip install --quiet --editable '.[compile,test,transformer-lens]'
	$(VENV)-transformer-lens/bin/python -m pytest tests/unit/integrations
	$(VENV)-transformer-lens/bin/python tests/oracles/hooks_oracle.py $(HOOKS)

test-interp-engine:
	$(PYTHON) -m venv $(VENV)-interp-engine
	$(VENV)-interp-engine/bin/python -m pip install --quiet --editable '.[compile]' 'interp-engine>=1.14,<2'
	$(VENV)-interp-engine/bin/python tests/oracles/interp_engine_oracle.py $(INTERP)

test-gguf: $(VENV)/oracles
	$(BIN)/python tests/oracles/gguf_oracle.py --llama-cpp $(LLAMA_CPP) $(GGUF)

test-clients: $(VENV)/dev
	$(PYTHON) -m venv $(VENV)-clients
	$(VENV)-clients/bin/python -m pip install --quiet --requirement tests/clients/requirements.txt
	$(BIN)/python tests/clients/run.py $(VENV)-clients/bin/python $(CLIENTS)

test-deploy:
	$(PYTHON) -m venv $(VENV)-deploy
	$(VENV)-deploy/bin/python -m pip install --quiet --requirement tests/deploy/requirements.txt
	$(VENV)-deploy/bin/python tests/deploy/check.py

test-web: $(VENV)/dev
	$(BIN)/python -m pip install --quiet --editable '.[dev,web]'
	command -v chromium chromium-browser google-chrome >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium; }
	$(PYTEST) --numprocesses $(WORKERS) --dist worksteal tests/web
	$(BIN)/python tests/web/screenshots.py .screenshots

test-widgets:
	$(PYTHON) -m venv $(VENV)-widgets
	$(VENV)-widgets/bin/python -m pip install --quiet --editable '.[notebook]' playwright jupyterlab marimo
	$(VENV)-widgets/bin/python tests/web/notebook_apps.py $(WIDGETS)

test-mutants: $(VENV)/dev
	$(BIN)/python tests/mutants.py $(MUTANTS)

test-soak: $(VENV)/dev
	$(BIN)/python tests/soak.py $(SOAK)

test-edits: $(VENV)/dev
	$(BIN)/python tests/edits_under_load.py $(EDITS)

test-emulated: $(VENV)/dev
	$(BIN)/python tests/emulated.py $(EMULATED)

budget: $(VENV)/dev
	$(BIN)/python tests/budget.py

test-wheel:
	$(PYTHON) tests/wheel.py $(PYTHON)

fuzz: $(VENV)/dev
	$(BIN)/python tests/fuzz/run.py $(FUZZ)

kernels: $(VENV)/installed
	$(BIN)/python packaging/build_kernels.py $(SYSTEM) $(KERNELS)

wheel: kernels
	PELLUCID_WHEEL=$(SYSTEM) $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

docs: $(VENV)/docs
	PYTHONPATH=docs $(BIN)/python -m website

notebooks: $(VENV)/dev
	PYTHONPATH=docs $(BIN)/python -m website.notebooks $(NOTEBOOKS)

dist: $(VENV)/release
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*

check: $(VENV)/dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

check-platforms: $(VENV)/dev
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 src/pellucid
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin src/pellucid

bench: $(VENV)/dev
	$(BIN)/python bench/compare.py $(BENCH)

bench-encode: $(VENV)/oracles
	$(BIN)/python tests/oracles/tokenizers_long.py fetch
	$(BIN)/python tests/oracles/tokenizers_long.py train
	$(BIN)/python bench/encode.py $(BENCH)
	$(BIN)/python bench/offsets.py $(BENCH)

bench-sampling: $(VENV)/dev
	$(BIN)/python bench/sampling.py $(BENCH)

bench-constraints: $(VENV)/dev
	$(BIN)/python bench/constraints.py $(BENCH)

bench-tracing: $(VENV)/dev
	$(BIN)/python bench/tracing.py $(BENCH)
	$(BIN)/python bench/activation_datasets.py
	$(BIN)/python bench/lens.py

bench-page: $(VENV)/dev
	$(BIN)/python bench/page.py $(BENCH)

bench-encoders: $(VENV)/dev
	$(BIN)/python bench/encoders.py $(BENCH)

bench-receipts: $(VENV)/dev
	$(BIN)/python bench/receipts.py $(BENCH)

bench-agreement: $(VENV)/dev
	$(BIN)/python bench/agreement.py $(BENCH)

bench-peers:
	$(PYTHON) bench/peers.py $(PEERS)

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	@$(BIN)/python -m compileall -q src/pellucid  # many containers forbid Python to do so by itself
	@touch $@

$(VENV)/dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(VENV)/docs $(VENV)/oracles $(VENV)/release: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[$(notdir $@)]'
	@touch $@

clean:
	rm -rf build dist $(VENV) .venv-* .screenshots .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
