# `make` builds .venv and runs the pipeline on the embedded data; `make test` runs every test; `make help` lists the rest.
PY ?= python3
PIP_ARGS ?=
PROFILE ?= demo
DEVICE ?= auto
SEEDS ?=
EXPERIMENTS ?=
EDGENES_DATA ?=
RESULTS ?=
EXTRAS ?=

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
BIN := .venv/bin
# Runs and reports need less than tests, the site and an editor. EXTRAS, where given, takes the place of both.
READY := .venv/.ready-$(or $(EXTRAS),notebooks)
READY_DEV := .venv/.ready-$(or $(EXTRAS),dev)
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Notebooks run in their own folders: a relative path is made absolute.
ifneq ($(EDGENES_DATA),)
override EDGENES_DATA := $(if $(filter /%,$(EDGENES_DATA)),,$(CURDIR)/)$(EDGENES_DATA)
export EDGENES_DATA
endif

.PHONY: all gpu report release test readme site venv lock clean help

all: $(READY) ## run the pipeline of PROFILE (demo, cpu, cpu-long or paper) into results/PROFILE/
	$(BIN)/python -m edgenes run $(PROFILE) --device $(DEVICE) $(if $(SEEDS),--seeds '$(SEEDS)') $(if $(EXPERIMENTS),--experiments '$(EXPERIMENTS)') $(if $(RESULTS),--results '$(RESULTS)')

gpu: $(READY) ## compare a GPU with the CPU and measure it, within 9 minutes, into results/gpu/; again to go on
	$(BIN)/python -m edgenes gpu-check --out results/gpu --minutes 9

report: $(READY) ## rebuild the tables, figures and report of PROFILE from its records
	$(BIN)/python -m edgenes report $(PROFILE) $(if $(RESULTS),--results '$(RESULTS)')

release: $(READY) ## train the small ensemble of results/release anew
	$(BIN)/python results/release/train.py

# One thread a process: the tests are small, and threads of several processes would only wait for each other.
test: export OMP_NUM_THREADS = 1
test: BY_HAND = nbs tests docs setup.py edgenes/__init__.py edgenes/__main__.py
test: $(READY_DEV) ## format and lint, run the notebooks of the library as tests, then pytest
	$(BIN)/ruff format --check $(BY_HAND)
	$(BIN)/ruff check $(BY_HAND)
	$(BIN)/nbdev-test --n-workers 2 --do-print --skip-folder-re '^[_.]'
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

readme: $(READY_DEV) ## write README.md and README.ru.md from nbs/index.ipynb and nbs/index_ru.ipynb, whose links are relative to nbs/
	for lang in '' _ru; do $(BIN)/jupyter nbconvert --log-level WARN --to markdown --no-input --stdout nbs/index$$lang.ipynb | sed 's|](\.\./|](|g' | cat -s > README.part || { rm README.part; exit 1; }; mv README.part README$${lang/_/.}.md; done

site: $(READY_DEV) ## write all notebooks, reports and docstrings as HTML with search into _site/, without running them
	rm -rf _site
	$(BIN)/sphinx-build -q -W --keep-going -j auto -c docs . _site
	@echo "wrote the site: open _site/index.html"

venv: $(READY_DEV) ## build .venv for development from the lock; EXTRAS=dev,scale adds what a cluster needs (Python 3.11 or newer)

# setuptools comes first and from the lock, so that the build of the package itself is pinned as well.
# --no-compile: Python compiles a module when it is first imported, and most of what is installed never is.
.venv/.ready-%: requirements.lock settings.ini pyproject.toml setup.py
	$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "edgenes needs Python 3.10 or newer, for instance: make PY=python3.11")'
	test -x $(BIN)/pip || $(PY) -m venv .venv
	@echo "installing into .venv: minutes, about 6 GB on Linux, where torch brings CUDA; PIP_ARGS can name an index of CPU wheels"
	$(PIP) install --quiet --no-compile $(PIP_ARGS) -c requirements.lock setuptools
	$(PIP) install --quiet --no-compile $(PIP_ARGS) -c requirements.lock --no-build-isolation -e '.[$*]'
	touch $@ $(if $(findstring dev,$*),.venv/.ready-notebooks)

lock: ## pin the requirements of settings.ini anew; present pins stay unless UPGRADE=--upgrade is given
	test -x $(BIN)/uv || { $(PY) -m venv .venv && $(PIP) install $(PIP_ARGS) uv; }
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra onnx --extra scale --universal --python-version 3.10 --python $(BIN)/python \
	    --no-python-downloads --no-annotate --custom-compile-command 'make lock' $(UPGRADE) --quiet --output-file requirements.lock

clean: ## remove .venv, builds and caches; results/ stays
	rm -rf .venv _site docs/api build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

help: ## this list; variables: PY PIP_ARGS PROFILE DEVICE SEEDS EXPERIMENTS EDGENES_DATA RESULTS EXTRAS
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 10
