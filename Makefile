# `make demo` and `make test` need Python >= 3.10, a C++17 compiler and nothing else: they install the rest into .venv.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -qq
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadgroup
SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)

.PHONY: demo demo-multimodal test coverage test-transformers4 test-transformers test-triton-oldest sanitize sanitize-calls test-gpu gpu-suite lint bench quality plus plus-pictures tiny tiny-mmada build clean

demo: $(VENV)/installed-decode
	$(BIN)/wino demo

demo-multimodal: $(VENV)/installed-multimodal
	$(BIN)/wino demo --multimodal

test: $(VENV)/installed-dev test-transformers4 test-transformers test-triton-oldest
	$(PYTEST) --durations=15

# Apart from the tests: tracing doubles the time of interpreted kernels.
coverage: $(VENV)/installed-dev
	$(PYTEST) --cov=wino_kernels --cov=wino --cov-report=term:skip-covered

test-transformers4: $(VENV)/installed-dev build/transformers4/installed
	PYTHONPATH=build/transformers4 $(PYTEST) tests/models tests/test_generation.py

# Each minor version of the claimed range decodes the same tokens.
test-transformers: $(VENV)/installed-dev
	$(PYTEST) tests/versions/transformers_range.py

# Whether every kernel is right under the oldest Triton too; what only tries more numbers or sizes runs under the newest.
WIDE := shadow_trunk or dtype2 or dtype3 or decodes_the_same or bits_do_not or exact_logits or many_small or extreme_scales or neighbours or several_chunks or random_ or follow_softmax or every_ or full_vocabulary or test_any or nan_thresholds or gradcheck or one_bad_logit or banned or draws_are or large_vocabulary or those_of_the_definition or whole_decodes or stay_together or tiles_of or does_not_see or leading3 or 2-7 or 3-7 or test_lengths or many_rows or are_independent
test-triton-oldest: $(VENV)/installed-dev build/triton-oldest/installed
	PYTHONPATH=build/triton-oldest $(PYTEST) tests/kernels -k 'triton and not ($(WIDE))'

# The CPU kernels under the address and undefined-behaviour sanitizers, their scratch memory of its exact size: random
# calls on every instruction set of the machine, then their tests. Apart from `make test`, which has no time for all.
CALLS ?= 5000
ISAS ?= $$($(BIN)/python -c 'from wino_kernels import backends as b; \
	print(*[i for i in b.CPU_ISAS if b.why_not_cpu_isa(i) is None], sep=";")')
SANITIZED := LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitize
sanitize: sanitize-calls
	$(SANITIZED) $(BIN)/python -m pytest -q tests/kernels -k 'cpu and not opcheck and not compile'

sanitize-calls: $(VENV)/installed-dev
	$(BIN)/cmake -S . -B build/sanitize/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DWINO_SANITIZE=ON -DWINO_CUDA=OFF -DWINO_ISAS="$(ISAS)" \
		-DWINO_VERSION="$$($(BIN)/python -c 'print(__import__("wino_kernels").__version__)')" \
		-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) \
		-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/build/sanitize/wino_kernels
	$(BIN)/cmake --build build/sanitize/cmake
	cp -r wino_kernels/*.py wino_kernels/cpu wino_kernels/eager wino_kernels/triton wino_kernels/cuda build/sanitize/wino_kernels/
	$(SANITIZED) $(BIN)/python tests/native/fuzz_calls.py --calls $(CALLS)

# The kernels' own tests on the GPU at hand, not interpreted.
test-gpu: $(VENV)/installed-dev
	WINO_TEST_DEVICE=cuda CUBLAS_WORKSPACE_CONFIG=:4096:8 $(PYTEST) tests/kernels -k 'triton or cuda'

# Checks every kernel on the GPU at hand and times it; without a GPU only the dry checks.
gpu-suite: $(VENV)/installed-dev
	$(BIN)/python benchmarks/gpu_suite.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')
	$(BIN)/mypy

bench: $(VENV)/installed-dev
	rm -f build/bench.jsonl
	$(BIN)/python -m pytest benchmarks --rows build/bench.jsonl
	mv build/bench.jsonl docs/bench_$$($(BIN)/python -c 'from wino_kernels import backends; print(backends.cpu_isa())').jsonl
	$(BIN)/python benchmarks/plots.py
	$(BIN)/python benchmarks/tables.py

quality: $(VENV)/installed-dev
	$(BIN)/python benchmarks/quality.py report
	$(BIN)/python benchmarks/pictures.py report
	$(BIN)/wino demo --multimodal --no-animation --record docs/pictures_sheet.png
	$(BIN)/python benchmarks/tables.py

# Collect, filter, train, merge, evaluate: an hour to two on two cores with the ablations.
plus: $(VENV)/installed-dev
	$(BIN)/python benchmarks/plus.py --bundle python/wino/assets/wino-tiny-plus
	$(BIN)/python benchmarks/tables.py

# The same with pictures.
plus-pictures: $(VENV)/installed-dev
	$(BIN)/python benchmarks/plus.py pictures

tiny: $(VENV)/installed-dev
	$(BIN)/python -m wino.pretrain --out build/wino-tiny --work build/wino-tiny-run

tiny-mmada: $(VENV)/installed-dev
	$(BIN)/python -m wino.multimodal.pretrain --out build/wino-tiny-mmada --work build/wino-tiny-mmada-run

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

build/triton-oldest/installed: | $(VENV)/torch
	$(PIP) --target build/triton-oldest 'triton==3.4.0' 'numpy<2.4' setuptools
	touch $@

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	@echo "Installing $(TORCH) into $(VENV) ..."
	@$(PIP) --upgrade pip
	@$(PIP) '$(TORCH)'
	touch $@

$(VENV)/installed-decode: $(VENV)/torch $(SOURCES)
	@echo "Building the kernels and installing what the demo needs; one to four minutes, the longer with nvcc ..."
	@$(PIP) --editable '.[decode]'
	touch $@

$(VENV)/installed-multimodal: $(VENV)/installed-decode
	@$(PIP) --editable '.[multimodal]'
	touch $@

$(VENV)/installed-dev: $(VENV)/torch $(SOURCES)
	@echo "Building the kernels and installing what the tests need; one to four minutes, the longer with nvcc ..."
	@$(PIP) --editable '.[decode,test,lint,bench]'
	touch $@ $(VENV)/installed-decode $(VENV)/installed-multimodal
