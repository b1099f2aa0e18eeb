# make demo   the whole path on generated videos, offline      make check   lint, types, layers
# make test   the tests                                        make bench   this project beside its peers
# make gpu    what needs a CUDA device, as one table; without a device a dry run at small size
# make stats  files, lines, long functions, circles of the code
# make docs   docs/cli.md and docs/config.md from the code
# Each target makes the virtual environment in .venv first, if it is not there yet.

PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed

export MLFLOW_DISABLE_TELEMETRY = true
export BENTOML_DO_NOT_TRACK = True

.PHONY: setup demo check test stats docs bench gpu
.DELETE_ON_ERROR:

setup: $(STAMP)

# torch goes in first, by pip: a plain version lets pip take a CPU build where the machine offers one. uv installs the rest
# in a third of the time. It does not read pip's settings: where it fails without them, pip installs the rest, too.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt torch uv
	UV_COMPILE_BYTECODE_TIMEOUT=600 $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt -e '.[dev]' || \
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/vb2 demo

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(STAMP)
	$(BIN)/pytest -n 2

stats: $(STAMP)
	PYTHONPATH=. $(BIN)/python tools/stats.py

docs: $(STAMP)
	$(BIN)/python tools/docs.py

bench: $(STAMP)
	$(BIN)/python benchmarks/captions.py --quick
	$(BIN)/python benchmarks/scst.py --quick
	$(BIN)/python benchmarks/loading.py --quick
	$(BIN)/python benchmarks/features.py --quick

# No .venv is made: a machine with a GPU has its own torch, and transformers and peft beside it are enough.
gpu:
	$(or $(wildcard $(BIN)/python),python3) benchmarks/gpu.py
