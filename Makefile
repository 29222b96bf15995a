# make demo and make test need python 3.11 or newer, make and git; they build .venv themselves.
PYTHON ?= python3
PYTEST_ARGS ?=
ASV_ARGS ?=
# As many tests at a time as there are cores, up to four: each may take 1.3 GB.
JOBS ?= $(shell n=$$(nproc 2> /dev/null || echo 2); echo $$((n < 4 ? n : 4)))
SECONDS ?= 120
SEED ?=

VENV := .venv
BIN := $(VENV)/bin
# Files in their order: by their number of tests, those with few long ones would come last.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder
PYTEST_SERVING = OMP_NUM_THREADS=1 $(SERVING)/bin/python -m pytest -q -n $(JOBS) --dist worksteal tests/serving
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Of what pip says, what it fetches, of what size, and when it begins to install.
FETCHED := sed -u -n -e 's/^ *Downloading \([^ ]*\/\)*/  /p' -e 's/^ *Using cached \([^ ]*\/\)*/  /p' -e 's/^Installing collected.*/  installing .../p'

SERVING := .venv-serving
# transformers from the oldest release that attachments support to the newest there is.
RELEASES := .venv-oldest .venv-newest
ATTACHED := tests/integrations/test_contract.py tests/integrations/test_attach.py tests/integrations/test_inside.py tests/integrations/test_observation.py tests/integrations/test_cuts.py tests/integrations/test_stages.py tests/integrations/test_copies.py tests/integrations/test_threads.py tests/integrations/test_linear.py tests/integrations/test_chat.py

# A release is looked at with the usual families; the newest, in its first sentences, with every
# other too. All of all: make test-all.
USUAL := not slow and not families
FIRST := not slow and families and first
# A transformers newer than that of $(VENV), where the index has one.
NEWER = $(PIP) install --dry-run --no-deps --upgrade transformers | sed -n 's/^Would install transformers-//p'

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

.PHONY: help demo fuzz audit lock newer test test-all test-serving test-serving-all test-newest test-oldest coverage check lint format types layers doctests docs tables speed bench evidence dist clean

help:
	@echo "make demo      ask a small model with all tokens and with 16, write demo.png"
	@echo "make test      run the tests             (PYTEST_ARGS=... is passed on, JOBS=$(JOBS) at a time)"
	@echo "make speed     time ten operations beside the parent commit"
	@echo "make test-all  run the slow tests too, and every test on JAX arrays"
	@echo "make test-serving  test the vLLM plug-in, in an environment of its own (3.5 GB)"
	@echo "make test-serving-all  its slow tests too, such as two tensor-parallel ranks"
	@echo "make test-newest  test attachments with the newest transformers, in an environment of its own"
	@echo "                  where make test runs with an older one"
	@echo "make test-oldest  the same with the oldest that is supported"
	@echo "make fuzz      call everything with arguments of every kind (SECONDS=120, SEED=... is passed on)"
	@echo "make audit     ask pip-audit about all that is installed in .venv"
	@echo "make lock      write locks/: what the demo and the tests install, with hashes"
	@echo "make coverage  run the tests, measure branch coverage of secateur/core"
	@echo "make check     lint, format, types, layers and doctests, each a target of its own"
	@echo "make docs      build the site into site/"
	@echo "make tables    write the tables of README and docs/methods/published.md"
	@echo "make bench     time this commit with asv"
	@echo "make dist      build sdist and wheel into dist/, and try both where nothing else is installed"
	@echo "make evidence  measure on weights that others trained (hours; goes on where it stopped)"
	@echo "make clean     remove what these made, .venv included"

demo: $(VENV)/.demo
	@$(BIN)/python -m secateur.demo

test: $(VENV)/.dev
	@echo "== tests (without those marked slow or families) =="
	@$(PYTEST) -m "not slow and not families" $(PYTEST_ARGS)

test-all: $(VENV)/.dev $(VENV)/.jax
	@$(PYTEST) $(PYTEST_ARGS)

fuzz: $(VENV)/.dev
	@OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

# An environment of its own: what asks is not among what is asked about.
audit: $(VENV)/.dev
	@[ -x .venv-audit/bin/pip-audit ] || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip --disable-pip-version-check install --quiet pip-audit; }
	@$(PIP) freeze --exclude-editable | grep -v ' @ ' | sed 's/+.*//' > .venv-audit/installed.txt
	@.venv-audit/bin/pip-audit --disable-pip --no-deps --requirement .venv-audit/installed.txt

# For every platform and Python, by the index that pip is set up to use.
lock:
	@[ -x .venv-lock/bin/uv ] || { $(PYTHON) -m venv .venv-lock && .venv-lock/bin/python -m pip --disable-pip-version-check install --quiet uv; }
	@for extra in demo dev; do .venv-lock/bin/uv pip compile --quiet pyproject.toml --extra $$extra --constraint constraints.txt --generate-hashes --universal --python-version 3.11 --custom-compile-command "make lock" --output-file locks/$$extra.txt || exit 1; done

coverage: $(VENV)/.dev
	@$(PYTEST) -m "not slow and not families" --cov=secateur/core --cov-fail-under=95 $(PYTEST_ARGS)

test-serving: $(SERVING)/.installed
	@echo "== tests of the vLLM plug-in =="
	@$(PYTEST_SERVING) -m "not slow and not families" $(PYTEST_ARGS)

test-serving-all: $(SERVING)/.installed
	@$(PYTEST_SERVING) $(PYTEST_ARGS)

newer: $(VENV)/.dev
	@$(NEWER)

test-newest: $(VENV)/.dev
	@newer=$$($(NEWER)); if [ -n "$$newer" ]; \
	then $(MAKE) --no-print-directory test-in-newest LOOKED_AT="$(USUAL) or $(FIRST)"; \
	else echo "== $(VENV) has the newest transformers: what make test leaves out of it =="; \
	$(PYTEST) $(ATTACHED) -m "$(FIRST)" $(PYTEST_ARGS); fi

test-oldest:
	@$(MAKE) --no-print-directory test-in-oldest LOOKED_AT="$(USUAL)"

test-in-%: .venv-%/.installed
	@echo "== attachments with transformers $$(.venv-$*/bin/python -c 'import transformers; print(transformers.__version__)') =="
	@OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest -q -n $(JOBS) --dist worksteal $(ATTACHED) -m "$(LOOKED_AT)" $(PYTEST_ARGS)

check: lint format types layers doctests

lint: $(VENV)/.dev
	@echo "== lint =="
	@$(BIN)/ruff check .

format: $(VENV)/.dev
	@echo "== format =="
	@$(BIN)/ruff format --check .

types: $(VENV)/.dev
	@echo "== types =="
	@$(BIN)/mypy

layers: $(VENV)/.dev
	@echo "== layers =="
	@$(BIN)/lint-imports --no-cache

doctests: $(VENV)/.dev
	@echo "== doctests =="
	@$(BIN)/python -m pytest -q --doctest-modules secateur --ignore=secateur/backends/cupy --ignore-glob='secateur/integrations/vllm/[!_]*.py'

docs: $(VENV)/.docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir site
	@echo "The site is in site/: open site/index.html."

tables: $(VENV)/.dev
	@$(BIN)/python docs/tables.py

speed: $(VENV)/.dev
	@echo "== speed beside the parent commit =="
	@$(BIN)/python benchmarks/against.py

bench: $(VENV)/.bench
	@git diff --quiet HEAD -- secateur benchmarks/suite || { echo "Times are stored under the commit's hash: commit your changes first." >&2; exit 1; }
	@$(BIN)/python benchmarks/record.py $(ASV_ARGS)

dist: $(VENV)/.dist $(VENV)/.dev
	@PYTHON=$(BIN)/python .ci/dist

evidence: $(VENV)/.dev
	@for part in packages photographs sheet views molecules settings halves report; do echo "== $$part =="; OMP_NUM_THREADS=1 $(BIN)/python benchmarks/real/$$part.py; done

clean:
	rm -rf $(VENV) $(SERVING) $(RELEASES) .venv-audit build dist site demo.png .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find secateur tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2> /dev/null || true

# One environment; each stamp is newer than pyproject.toml once that group is installed in it.
$(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	@echo "Installing secateur[$*] into $(VENV) ..."
	@$(PIP) install --progress-bar off -c constraints.txt -e '.[$*]' | $(FETCHED)
	@touch $@

# vLLM for the CPU; the audio libraries it brings are built for CUDA and do not load beside it.
$(SERVING)/.installed: pyproject.toml constraints-serving.txt
	@echo "Installing secateur[test-serving] into $(SERVING) ..."
	@[ -f $(SERVING)/pyvenv.cfg ] || $(PYTHON) -m venv $(SERVING)
	@$(SERVING)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints-serving.txt -e '.[test-serving]'
	@$(SERVING)/bin/python -m pip --disable-pip-version-check uninstall --quiet --yes torchaudio torchcodec
	@touch $@

# Of what the tests were run with, all but what is here to differ.
.venv-oldest/.installed: RELEASE = transformers==5.17.*
.venv-newest/.installed: RELEASE = transformers
.venv-oldest/.installed .venv-newest/.installed: pyproject.toml constraints.txt
	@echo "Installing secateur[numba,transformers] with $(RELEASE) into $(@D) ..."
	@[ -f $(@D)/pyvenv.cfg ] || $(PYTHON) -m venv $(@D)
	@grep -Ev '^(transformers|tokenizers|huggingface-hub|safetensors|accelerate)==' constraints.txt > $(@D)/constraints.txt
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --upgrade -c $(@D)/constraints.txt '$(RELEASE)' array-api-strict hypothesis pytest pytest-cov pytest-xdist -e '.[numba,transformers]'
	@touch $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "secateur needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Choose another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(VENV)
