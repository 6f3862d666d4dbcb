# Everything runs in .venv. `make demo` and `make test` set up what is missing; `make help` lists the rest.
# `make setup-light` is enough for `make lint` and `make test-fast`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
LIGHT := .venv/.installed-light
DOCS := .venv/.installed-docs
DEMO := .venv/.installed-demo
HAS_ALL = $(wildcard $(STAMP))

# `make demo` shows the demo signer; with your own: make demo CHECKPOINT=... LABELS=... VIDEOS=...
CHECKPOINT ?= demo
LABELS ?=
VIDEOS ?= build/demo/clips
PRECISION ?= auto

# Tests side by side, each with one thread: the threads of several Tritons on the same cores would spin against each
# other. Three, because tests wait much of their time. What shares a server stays in one process (tests/conftest.py).
JOBS ?= 3
FAST_JOBS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

.PHONY: help setup setup-light demo test test-fast lint types format docs wheel next-commands demo-checkpoint bench \
	bench-gpu image-requirements audit clean
.DEFAULT_GOAL := help

help: ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

setup: $(STAMP) ## Make .venv and install everything into it

.venv:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, and this is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv .venv

$(STAMP): pyproject.toml | .venv
	@echo 'Installing everything into .venv: about 4 GB, or 10 GB with the CUDA build of PyTorch. This takes minutes.'
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $(LIGHT) $(DOCS) $(DEMO) $(STAMP)

setup-light: $(LIGHT) ## Make .venv for `make lint` and `make test-fast` alone: no torch, no Triton, no Gradio, no Ray

$(LIGHT): pyproject.toml | .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[dev-light]'
	touch $(LIGHT)

$(DOCS): pyproject.toml | .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[docs]'
	touch $(DOCS)

$(DEMO): pyproject.toml | .venv
	@$(BIN)/python -c 'import sys; sys.exit("make demo needs Python 3.10 to 3.12: its Triton needs NumPy 1, which has no packages for newer Pythons. Remove .venv and run: make demo PYTHON=python3.12" if sys.version_info >= (3, 13) else 0)'
	@echo 'Installing what the demo needs into .venv: about 2 GB, or 8 GB with the CUDA build of PyTorch. This takes minutes.'
	@echo 'To choose the CPU build, see docs/getting-started.md.'
	$(BIN)/python -m pip install --editable '.[demo]'
	touch $(DEMO)

demo: $(DEMO) ## Clips -> model -> Triton -> glosses, in one go
	@test '$(VIDEOS)' != build/demo/clips || $(BIN)/python -m asl_triton_demo.signer build/demo/clips
	$(BIN)/asl-triton export '$(CHECKPOINT)' $(if $(LABELS),--labels '$(LABELS)') --name demo \
		--precision $(PRECISION) --repository build/demo/model_repository --force
	$(BIN)/asl-triton batch '$(VIDEOS)' --local --repository build/demo/model_repository \
		--output build/demo/results --format txt,csv,jsonl,parquet
	@$(MAKE) --silent next-commands

# What to try after the demo: tests/live/test_demo.py runs these lines.
DEMO_MODELS := --repository build/demo/model_repository
next-commands:
	@echo
	@echo 'Next, from this folder:'
	@echo
	@echo '# a clip of yours instead of the demo clip'
	@echo '$(BIN)/asl-triton recognize build/demo/clips/book_2000000.mp4 --local $(DEMO_MODELS)'
	@echo
	@echo '# the page in your browser; Ctrl-C stops it'
	@echo '$(BIN)/asl-triton ui --local $(DEMO_MODELS) --open'
	@echo
	@echo '# Python, with a server that keeps running; asl-triton serve --stop stops it'
	@echo '$(BIN)/asl-triton serve --detach $(DEMO_MODELS)'
	@echo '$(BIN)/python -c "from asl_triton import Recognizer; print(Recognizer().recognize('"'build/demo/clips/book_2000000.mp4'"').gloss)"'

test: $(STAMP) ## Every test; live ones start a real Triton
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadscope --no-loadscope-reorder

test-fast: $(LIGHT) ## What needs neither torch nor Triton nor a browser, in a minute
	$(BIN)/python -m pytest --numprocesses $(FAST_JOBS) -m 'not (live or browser or slow)' tests/client tests/ui

lint: $(LIGHT) ## ruff, mypy, import-linter, codespell; mypy reads the client alone after `make setup-light`
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell
	$(MAKE) --no-print-directory types

types: $(LIGHT)
	$(BIN)/mypy $(if $(HAS_ALL),,--package asl_triton)

format: $(LIGHT) ## Let ruff rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DOCS) ## Build the documentation into build/docs: strictly, so that a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo build/docs/index.html

wheel: | .venv ## Build the wheel into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

demo-checkpoint: $(STAMP) ## Train the demo checkpoint from nothing: an hour or two on two cores
	$(BIN)/python -m asl_triton_demo.training --to export/asl_triton_export/demo_checkpoint --held-out 20

bench: $(STAMP) ## Speed and memory, as ratios in one run
	$(BIN)/python -m tests.benchmarks

# No setup: a machine with a GPU may have PyTorch and nothing else. `make bench-gpu OUTPUT=...` writes elsewhere.
bench-gpu: ## Speed, memory and parity on a GPU, which settings follow: docs/gpu.md
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m tests.benchmarks.gpu $(if $(OUTPUT),--output '$(OUTPUT)')

image-requirements: $(STAMP) ## Lock what the images of deploy/ install, again
	@for set in 'build deploy/requirements/build.in' \
		'triton pyproject.toml deploy/requirements/triton.in deploy/requirements/tested.in' \
		'ui pyproject.toml deploy/requirements/tested.in --extra ui --extra parquet --extra elan --extra reports --extra monitoring --extra tracing' \
		'ray pyproject.toml deploy/requirements/ray.in deploy/requirements/tested.in --extra ray'; do \
		set -- $$set; name=$$1; shift; \
		$(BIN)/uv pip compile --quiet --upgrade --python-version 3.12 --python-platform x86_64-manylinux_2_28 \
			--generate-hashes --no-annotate --custom-compile-command 'make image-requirements' \
			"$$@" --output-file deploy/requirements/$$name.txt || exit 1; \
	done

audit: $(STAMP) ## checkov over the images and what is deployed; it installs itself, for this once
	rm -rf build/audit && mkdir -p build/audit
	cp deploy/*.Dockerfile deploy/kubernetes/model-loader.yaml build/audit
	for overlay in gpu cpu kserve; do \
		$(BIN)/kubectl kustomize deploy/kubernetes/overlays/$$overlay > build/audit/$$overlay.yaml || exit 1; \
	done
	$(BIN)/uv tool run --from 'checkov==3.3.30' checkov --config-file deploy/.checkov.yaml --directory build/audit

clean: ## Remove what the demo and the tests wrote
	rm -rf build/demo .pytest_cache .mypy_cache .ruff_cache
