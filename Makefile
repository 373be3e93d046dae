# `make demo` and `make test` need Python >= 3.10, a C++17 compiler and nothing else: they install the rest into .venv.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -qq
SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)

.PHONY: demo test test-transformers4 lint bench quality tiny build clean

demo: $(VENV)/installed-decode
	$(BIN)/wino demo

test: $(VENV)/installed-dev test-transformers4
	$(BIN)/python -m pytest --cov=wino_kernels --cov=wino --cov-report=term:skip-covered

test-transformers4: $(VENV)/installed-dev build/transformers4/installed
	PYTHONPATH=build/transformers4 $(BIN)/python -m pytest -q tests/models tests/test_generation.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -name '*.h' -o -name '*.cpp')
	$(BIN)/mypy

bench: $(VENV)/installed-dev
	rm -f build/bench.jsonl
	$(BIN)/python -m pytest benchmarks --rows build/bench.jsonl
	mv build/bench.jsonl docs/bench.jsonl
	$(BIN)/python benchmarks/tables.py

quality: $(VENV)/installed-dev
	$(BIN)/python benchmarks/quality.py report
	$(BIN)/python benchmarks/tables.py

tiny: $(VENV)/installed-dev
	$(BIN)/python -m wino.pretrain --out build/wino-tiny --work build/wino-tiny-run

# Builds sdist and wheel, and runs the wheel where only Torch is installed.
build: $(VENV)/installed-dev
	rm -rf dist build/wheel-check
	$(BIN)/python -m build --outdir dist
	$(PIP) --no-deps --target build/wheel-check dist/*.whl
	cd build && PYTHONPATH=wheel-check ../$(BIN)/python -m wino_kernels.env_report

clean:
	rm -rf build dist $(VENV)

build/transformers4/installed: | $(VENV)/torch
	$(PIP) --target build/transformers4 'transformers==4.46.3'
	touch $@

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	@echo "Installing $(TORCH) into $(VENV) ..."
	@$(PIP) --upgrade pip
	@$(PIP) '$(TORCH)'
	touch $@

$(VENV)/installed-decode: $(VENV)/torch $(SOURCES)
	@echo "Building the kernels and installing what the demo needs; about a minute ..."
	@$(PIP) --editable '.[decode]'
	touch $@

$(VENV)/installed-dev: $(VENV)/torch $(SOURCES)
	@echo "Building the kernels and installing what the tests need; about a minute ..."
	@$(PIP) --editable '.[decode,test,lint,bench]'
	touch $@ $(VENV)/installed-decode
