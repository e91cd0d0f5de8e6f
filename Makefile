# make          what can be done
# make demo     the library alone, then one demonstration run
# make test     everything that must hold before a change is accepted
#
# PYTHON picks the Python that .venv is made with: make test PYTHON=python3.12

PYTHON  ?= python3
WORKERS ?= 2

VENV    := .venv
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check --quiet
INPUTS  := settings.ini setup.py pyproject.toml constraints.txt
say     := @printf '== %s\n'
patience := (the first time this takes minutes and several GB, most of it PyTorch)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory
.PHONY: help venv demo test docs lab export clean

help:
	@echo 'make venv     make .venv with the library, notebooks and tests, at the versions of constraints.txt'
	@echo 'make demo     train and compare small models on a sample image; the report is runs/demo/report.html'
	@echo 'make test     notebooks and library in sync, all notebooks run, all tests pass'
	@echo 'make docs     the site in _site/, from the notebooks; needs nothing but pip'
	@echo 'make lab      open the notebooks in JupyterLab, beginning with nbs/start.ipynb'
	@echo 'make export   write the library srdiag/ and the first pages from the notebooks nbs/'
	@echo 'make clean    remove what was built; .venv and runs/ stay'

venv: $(VENV)/.installed
	$(say) '$(VENV) is ready'

# The pinned versions in constraints.txt need Python 3.11.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'constraints.txt needs Python 3.11 or newer: make venv PYTHON=python3.11'; exit 1; }
	$(say) 'Making $(VENV)'
	@$(PYTHON) -m venv $(VENV)

# Two sentinels: the library alone is enough for the demo; what develops and tests it comes on top.
$(VENV)/.base: $(INPUTS) | $(BIN)/python
	$(say) 'Installing srdiag $(patience)'
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed: $(INPUTS) | $(BIN)/python
	$(say) 'Installing srdiag with notebooks and tests $(patience)'
	@$(PIP) install -c constraints.txt -e '.[dev,docs,all]'
	@touch $(VENV)/.base $@

demo: $(VENV)/.base
	$(say) 'Running the demonstration'
	@$(BIN)/srdiag demo --out runs/demo --overwrite

test: $(VENV)/.installed
	$(say) 'Is srdiag/ what the notebooks export?'
	@$(BIN)/python -m pytest -q -o addopts= tests/test_architecture.py -k in_sync
	$(say) 'Running all notebooks, $(WORKERS) at a time'
	@$(BIN)/python tools/run_notebooks.py --workers $(WORKERS)
	$(say) 'Running the tests, $(WORKERS) files at a time'
	@MPLBACKEND=agg OMP_NUM_THREADS=1 MALLOC_ARENA_MAX=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

docs: $(VENV)/.installed
	$(say) 'Making the site'
	@$(BIN)/python tools/docs.py

lab: $(VENV)/.installed
	$(say) 'Opening JupyterLab; Ctrl-C ends it'
	@$(BIN)/jupyter lab nbs/start.ipynb

export: $(VENV)/.installed
	$(say) 'Writing srdiag/ from nbs/'
	@$(BIN)/nbdev-export
	@$(BIN)/python tools/readme.py

clean:
	$(say) 'Removing what was built'
	@rm -rf build dist srdiag.egg-info _docs _proc _site .pytest_cache .ruff_cache
	@find . -path ./$(VENV) -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) \
	  -exec rm -rf {} +
