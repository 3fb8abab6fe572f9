# Set-up and everyday commands. Each target but bench-gpu and results-gpu installs what it needs into .venv, with the
# versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1# huge pages, see docs/performance_notes.md
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-long test-faults docs bench bench-gpu results-gpu help

help:  ## Lists the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/runs/demo/compiled
demo: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0# the second run shares the small programs of the first
demo: .venv/installed  ## Trains a companded ResNet-8 and its plain twin on digits, and compares them
	$(BIN)/python train.py --config configs/digits.py:resnet8,wc --workdir runs/demo/wc
	$(BIN)/python train.py --config configs/digits.py:resnet8,plain --workdir runs/demo/plain
	$(BIN)/python -m wcjax.analysis.compare runs/demo/wc runs/demo/plain --png runs/demo/weights.png

test: .venv/installed-test  ## Runs ruff, mypy and pytest; OPTIONS are more options of pytest
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist worksteal $(OPTIONS)

test-long: .venv/installed-test  ## Runs what `make test` omits: several processes, faults, docs, notebooks
	$(BIN)/pytest -m 'long and not faults' -n 2

test-faults: .venv/installed-test  ## 20 faults of each kind at random moments, bits compared; 5,000 examples of each fuzz test
	$(BIN)/pytest tests/faults -m faults -n 2
	WCJAX_FUZZ=long $(BIN)/pytest tests/fuzz -n 2

docs: .venv/installed-docs  ## Builds the documentation site in site/html, with the notebooks run
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs -d site/doctrees . site/html
	@echo "Open site/html/index.html in a browser."

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  (echo "wcjax needs Python 3.11 or newer; $(PYTHON) is older. Run: make PYTHON=python3.12" && exit 1)
	$(PYTHON) -m venv .venv || (rm -rf .venv; echo "On Debian and Ubuntu: apt install python3-venv" && exit 1)

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing into .venv (about 2 minutes the first time) ..."
	$(INSTALL) -e '.[train]'
	@touch $@

.venv/installed-test: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing into .venv with the test extras (about 3 minutes the first time) ..."
	$(INSTALL) -e '.[test]'
	@touch $@ .venv/installed

.venv/installed-docs: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing into .venv with the docs extras (about 3 minutes the first time) ..."
	$(INSTALL) -e '.[docs]'
	@touch $@ .venv/installed

bench: .venv/installed-test  ## Measures this machine for at most an hour, next to PyTorch if .venv has it
	$(BIN)/python -m benchmarks --out runs/benchmarks.json

bench-gpu: export JAX_COMPILATION_CACHE_DIR ?= $(or $(OUT),runs)/compiled# has what autotuning found for each operation
bench-gpu:  ## Measures a GPU in MINUTES (7), offline; PYTHON has the extras train and cuda
	$(PYTHON) -m benchmarks --out $(or $(OUT),runs)/benchmarks.json --minutes $(or $(MINUTES),7)

results-gpu:  ## The paper's ResNet18 on CIFAR-10, plain and WC, in MINUTES (60); DATA is the folder of cifar10.npz; PYTHON as above
	$(PYTHON) -m benchmarks.timed_runs --minutes $(or $(MINUTES),60) --out $(or $(OUT),runs)/paper \
	  --config.data_dir=$(DATA) --config.dtype=bfloat16
