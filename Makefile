# `make demo`: the pipeline end to end on the embedded phantom (FROM=scratch: without the model that ships). `make test`: lint, format and the suite.
# Each sets up .venv first, from constraints.txt; UV=... and PYTHON=... choose the tools.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PARITY := $(VENV)/.parity
DOCS := $(VENV)/.docs
UV ?= $(shell command -v uv 2>/dev/null || echo $(BIN)/uv)
# Tests at once: each may start processes of its own, and takes about 2 GiB.
CORES = $(shell nproc 2>/dev/null || echo 2)
GIB_FREE = $(shell awk '/^MemAvailable/ {print int($$2 / 2^20)}' /proc/meminfo 2>/dev/null || echo 4)
JOBS ?= $(shell jobs=$(CORES); free=$$(( $(GIB_FREE) / 2 )); \
  [ $$jobs -le 4 ] || jobs=4; [ $$jobs -le $$free ] || jobs=$$free; [ $$jobs -ge 1 ] || jobs=1; echo $$jobs)

.PHONY: setup demo demo-check test lint wheel-check oldest kernel-report-36 audit docs docs-check clean
.DEFAULT_GOAL := setup

setup: $(READY)

$(READY): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: MedSora needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	@if [ -x "$(UV)" ]; then "$(UV)" venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" $(VENV); \
	  else $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet uv; fi
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[test]'
	@touch $@
	@echo "ready: activate with 'source $(BIN)/activate'"

# mamba-ssm as pure Python, without nvcc: its own Triton kernels then run on a CPU, as what ours must equal.
# An environment that has the compiled packages keeps them.
$(PARITY): $(READY)
	@$(BIN)/python -c 'import causal_conv1d_cuda' 2>/dev/null || \
	  env MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE CAUSAL_CONV1D_SKIP_CUDA_BUILD=TRUE \
	  CAUSAL_CONV1D_FORCE_BUILD=TRUE "$(UV)" pip install --quiet --python $(BIN)/python --no-build-isolation \
	  --no-deps mamba-ssm==2.3.2.post1 causal-conv1d==1.7.0
	@touch $@

demo: $(READY)
	$(BIN)/python -m medsora.demo $(if $(FROM),--from $(FROM))

# The demo with three seeds; every criterion must be met.
demo-check: $(READY)
	for seed in 0 1 2; do $(BIN)/python -m medsora.demo --check $(if $(FROM),--from $(FROM)) \
	  run.seed=$$seed run.name=demo-$$seed || exit 1; done

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint $(PARITY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

# The wheel in an environment of its own, beside Hugging Face's `kernels`, used from an empty folder; needs the
# network. Then the whole matrix of import names.
FRESH := build/wheel-check
SHORT := phantom.videos=5 data.holdout=0.4 train_vae.max_steps=2 train_vae.eval_every=2 train_dit.max_steps=2 \
  train_dit.sample_videos=1 train_dit.sample_steps=2 train_dit.eval_every=2
IN_EMPTY := cd $(FRESH)/empty && PATH="$(CURDIR)/$(FRESH)/venv/bin:$$PATH" &&
wheel-check: $(READY)
	rm -rf build/lib build/bdist.* $(FRESH) && mkdir -p $(FRESH)/empty
	"$(UV)" build --quiet --wheel --out-dir $(FRESH) .
	"$(UV)" venv --quiet --python "$$(command -v $(PYTHON))" $(FRESH)/venv
	"$(UV)" pip install --quiet --python $(FRESH)/venv/bin/python --constraint constraints.txt \
	  "$$(echo $(CURDIR)/$(FRESH)/*.whl)[train,eval]" kernels
	$(IN_EMPTY) medsora demo --from scratch --videos 2 $(SHORT)
	$(IN_EMPTY) python -m medsora.data phantom my-videos --videos 6 --frames 40 --size 64
	$(IN_EMPTY) medsora new mine --data my-videos --memory 0
	$(IN_EMPTY) medsora train-vae --config mine/config.yaml $(SHORT)
	$(IN_EMPTY) accelerate launch -m medsora train-dit --config mine/config.yaml $(SHORT)
	$(IN_EMPTY) medsora sample --model runs/mine/dit-tiny --num-videos 2 --steps 2 --out videos
	MEDSORA_ALL_INSTALLATIONS=1 $(BIN)/python -m pytest tests/repository/test_import_names.py

# The suite with the oldest versions that pyproject.toml allows; needs the network.
OLDEST := build/oldest
oldest: $(READY)
	"$(UV)" venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" $(OLDEST)
	"$(UV)" pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct '.[train,eval,app]'
	"$(UV)" pip install --quiet --python $(OLDEST)/bin/python pytest pytest-xdist focal-frequency-loss ninja \
	  packaging pip selenium setuptools wheel
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n $(JOBS)

# The Triton kernels with the versions of the GPU machine that is to be measured on (PYTHON=python3.12 as there):
# their tests in the interpreter, then what they compile to; needs the network. Its interpreter takes no newer NumPy.
KERNELS36 := build/kernels-36
kernel-report-36: $(READY)
	"$(UV)" venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" $(KERNELS36)
	"$(UV)" pip install --quiet --python $(KERNELS36)/bin/python --editable . 'torch==2.11.*' 'numpy<2.4' pytest
	OMP_NUM_THREADS=1 $(KERNELS36)/bin/python -m pytest tests/kernels/fused tests/kernels/test_block_steps.py
	$(KERNELS36)/bin/python -m tools.kernel_report

# Advisories against the pinned versions: ADVISORIES=PATH is OSV's PyPI dump; without it pip-audit is asked.
audit: $(READY)
	$(BIN)/python -m tools.audit $(if $(ADVISORIES),--advisories $(ADVISORIES))

# The pages in build/docs, links and anchors checked; then every command that they and README show, run.
$(DOCS): $(READY)
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[docs]'
	@touch $@

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "the pages: build/docs/index.html (their search needs a server: python -m http.server -d build/docs)"

docs-check: docs
	$(BIN)/python -m tools.run_docs_commands

clean:
	rm -rf $(VENV) build *.egg-info
