# Every target sets up what it needs when it is missing or stale. VENV may be shared by several clones.
VENV ?= .venv
PYTHON3 ?= python3
BIN := $(VENV)/bin
EXTRAS ?= dali,ray,tensorboard,dev
# What an environment must have been installed from to be up to date for this clone.
WANTED := $(CURDIR) $(EXTRAS) $(shell cat setup.py constraints.txt | sha256sum | cut -c1-16)
STAMP := $(VENV)/.lion-fast

MAKEFLAGS += --no-print-directory
.PHONY: setup ready run check checked-tests test lint format bench bench-report studies-report bench-compare gpu clean

setup:
	test -x $(BIN)/python || $(PYTHON3) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@printf '%s\n' '$(WANTED)' > $(STAMP)

ready:
	@test "$$(cat $(STAMP) 2>/dev/null)" = '$(WANTED)' || $(MAKE) setup

run: ready
	$(BIN)/lion-fast study quickstart --jobs 2
	$(BIN)/lion-fast report quickstart

# Two processes of one thread each: two of two threads would wait for each other on two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal
# What changes most: kernels in the interpreter at small size, init, config, data and structure.
CHECKED := structure config init lion_dg odd_heads lsuv heads augment muon dispatch \
	dense_reference kernel_rules plan loaders images own_data subset cifar decode resolve \
	history losses weight_casts figures

# Before a commit: under two minutes on two cores.
check: ready
	$(MAKE) --jobs 2 --output-sync=target lint checked-tests

checked-tests: ready
	$(PYTEST) --quiet -m 'not slow' $(CHECKED:%=tests/test_%.py)

# Everything.
test: ready
	$(PYTEST)
	$(BIN)/python -m pytest bench --benchmark-disable --quiet

lint: ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: ready
	$(BIN)/python -m pytest bench --benchmark-only

# Renders every committed result.
bench-report: ready
	cd bench && $(abspath $(BIN))/python -m report results/*.json --counts results/counts/[AHV]100.json

# Renders every committed study, and what of the paper has not been run.
studies-report: ready
	$(BIN)/python bench/report/studies.py

# BASE=<commit> measures it and this tree by turns, several rounds, and fails where the interval of a
# ratio of medians lies wholly above 1.05. BASE=FILE.json compares with another hour of this machine.
# BENCH names the files of both, all by default.
BENCH ?=
ROUNDS ?= 6
bench-compare: ready
	@test -n '$(BASE)' || { echo 'give BASE=<commit> or BASE=FILE.json'; exit 2; }
	$(BIN)/python bench/compare.py $(BASE) $(BENCH) --rounds $(ROUNDS) \
		$(if $(DATA_DIR),--data-dir $(DATA_DIR))

# Uses the interpreter it is given, installs nothing, needs no network. REHEARSE=1 measures nothing:
# it shows in minutes that every stage runs, and writes to rehearsal/.
PYTHON ?= $(BIN)/python
STAGE ?= all
OUT ?= $(if $(REHEARSE),rehearsal,bench/results)
gpu:
	$(PYTHON) bench/gpu/suite.py --stage $(STAGE) --out $(OUT) \
		$(if $(DATA_DIR),--data-dir $(DATA_DIR)) $(if $(COMMIT),--commit $(COMMIT)) \
		$(if $(REHEARSE),--rehearse)

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
