# Every target sets up what it needs when it is missing or stale. VENV may be shared by several clones.
VENV ?= .venv
PYTHON3 ?= python3
BIN := $(VENV)/bin
EXTRAS ?= dali,ray,tensorboard,examples,dev
CONSTRAINTS ?= constraints.txt
# What an environment must have been installed from to be up to date for this clone.
WANTED := $(CURDIR) $(EXTRAS) $(shell cat setup.py $(CONSTRAINTS) | sha256sum | cut -c1-16)
STAMP := $(VENV)/.lion-fast
# The oldest torch and Triton that are supported, in an environment of their own; no DALI, no Ray.
VENV_OLDEST ?= .venv-oldest
OLDEST := VENV=$(VENV_OLDEST) CONSTRAINTS=constraints-oldest.txt EXTRAS=tensorboard,dev
OLDEST_TESTS := heads heads_op pooled_heads augment muon dense_kernels dense_reference \
	fused_backbone engine models rivals cli stand_in_rules stand_in_runs stand_in_launches \
	stand_in_study

MAKEFLAGS += --no-print-directory
.PHONY: setup ready run check checked-tests test test-exhaustive test-oldest lint format bench bench-report \
	studies-report bench-compare gpu gpu-pack clean

setup:
	test -x $(BIN)/python || $(PYTHON3) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[$(EXTRAS)]'
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

# Everything, but once: not on every card, nor at full size.
test: ready
	$(PYTEST) -m 'not exhaustive' --benchmark-disable tests bench

# The same on every card, at full size, at random moments, and every committed table made again.
test-exhaustive: ready
	$(PYTEST) -m exhaustive

# What an older torch or Triton can break: every kernel compiled for the GPUs that run them all, the
# kernels in the interpreter, engines and a study on the stand-in, and the CLI.
test-oldest:
	$(MAKE) $(OLDEST) ready
	$(VENV_OLDEST)/bin/python -m lion_fast.kernels.aot --capability 80 90
	OMP_NUM_THREADS=1 $(VENV_OLDEST)/bin/python -m pytest --numprocesses 2 --dist worksteal \
		-m 'not exhaustive' $(OLDEST_TESTS:%=tests/test_%.py)

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
	cd bench && $(abspath $(BIN))/python -m report results/*.json --counts results/counts/[AHV]100.json \
		--cards results/gpu/*/

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

# A few minutes on a GPU: `make gpu MINUTES=12` (or 25, 40) runs what is most worth knowing in so many
# minutes, a JSON line a finding, into bench/results/gpu/DATE-CARD. Without MINUTES it runs whole stages
# of the suite: STAGE. Uses the interpreter it is given, installs nothing, needs no network. REHEARSE=1
# measures nothing: it shows that every stage runs, and writes to rehearsal/.
PYTHON ?= $(BIN)/python
STAGE ?= all
OUT ?= $(if $(MINUTES),,$(if $(REHEARSE),rehearsal,bench/results))
GPU_OPTIONS = $(if $(OUT),--out $(OUT)) $(if $(DATA_DIR),--data-dir $(DATA_DIR)) \
	$(if $(COMMIT),--commit $(COMMIT)) $(if $(REHEARSE),--rehearse)
gpu:
	$(PYTHON) bench/gpu/$(if $(MINUTES),card.py --minutes $(MINUTES),suite.py --stage $(STAGE)) $(GPU_OPTIONS)

# What travels to a GPU that is reached by calls alone, in carry/: code, wheels (WHEELS="NAME==VERSION ..."),
# and half of DATA_DIR's CIFAR-10 a call; prints the calls of a plan of MINUTES.
gpu-pack: ready
	$(BIN)/python bench/gpu/pack.py --minutes $(or $(MINUTES),12) \
		$(if $(DATA_DIR),--data-dir $(DATA_DIR)) $(if $(WHEELS),--wheels $(WHEELS))

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
