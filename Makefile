# Every target is a `python -m` call; `make help` lists them.
PYTHON  ?= python3
SUITE   ?= quick
RESULTS ?= results
CELL    ?= toy/toy-reach/qc_fql
PY      := MUJOCO_GL=disable .venv/bin/python
CHOSEN   = $(if $(filter file,$(origin SUITE)),,$(SUITE))
ON_SLURM = $(filter-out 0 no,$(SLURM))
ARCHIVED = $(filter-out 0 no,$(REFERENCE))
SELECT   = $(if $(AGENTS),--agents $(AGENTS)) $(if $(TASKS),--tasks $(TASKS)) $(if $(SEEDS),--seeds $(SEEDS))

# Extras: the suites' own needs, or those asked for; `video` writes MP4; the tests cover all.
EXTRAS  ?= $(filter robomimic minari bullet,$(firstword $(subst -, ,$(SUITE)))) $(if $(filter scratch-sparse,$(SUITE)),robomimic)
ALL_EXTRAS := robomimic minari bullet tensorboard wandb video browser

UNKNOWN_EXTRA := $(firstword $(filter-out $(ALL_EXTRAS),$(EXTRAS)))
ifneq ($(UNKNOWN_EXTRA),)
$(error EXTRAS has '$(UNKNOWN_EXTRA)'; the extras are $(ALL_EXTRAS), with blanks between them)
endif

# Steps of the set-up: pip shows its bar on a terminal, and is quiet elsewhere. Sizes are of what lies on the disk then.
PIP      = .venv/bin/python -m pip install $$(test -t 1 || echo --quiet) --disable-pip-version-check
# Elsewhere than on Linux, torch has no CUDA anyway.
CPU_INDEX = $(if $(filter Linux,$(shell uname -s)),--index-url https://download.pytorch.org/whl/cpu)
CHECK_PYTHON = import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else \
    "error: $(PYTHON) is Python %d.%d; 3.11 to 3.13 are supported: name one, as in make PYTHON=python3.12" % sys.version_info[:2])
SIZE_robomimic := 0.9 GB
SIZE_minari := 80 MB
SIZE_bullet := 0.3 GB
SIZE_tensorboard := 50 MB
SIZE_wandb := 75 MB
SIZE_video := 0.1 GB
SIZE_browser := 0.2 GB

# Variables that a target reads. Any other on the command line is an error; those below become the environment.
READS_setup   := SUITE EXTRAS TORCH
READS_bench   := SUITE EXTRAS AGENTS TASKS SEEDS SLURM RESULTS ARGS
READS_plan    := SUITE EXTRAS AGENTS TASKS SEEDS RESULTS ARGS
READS_status  := SUITE EXTRAS RESULTS ARGS
READS_figures := EXTRAS REFERENCE $(if $(ARCHIVED),,SUITE RESULTS ARGS)
READS_verify-reference := EXTRAS CELL SEEDS ARGS
READS_report  := SUITE EXTRAS RESULTS ARGS
READS_parity  := EXTRAS ARGS
READS_check   := EXTRAS
READS_test    := ARGS
READS_test-all := ARGS
READS_test-slurm := ARGS
READS_test-gpu := ARGS
ENVIRONMENT   := O2O_BENCH_% MINARI_% D4RL_% WANDB_% CUDA_% OMP_% PARITY_DIR HOME PATH TMPDIR SHELL MAKEFLAGS

READS   := PYTHON $(sort $(foreach goal,$(or $(MAKECMDGOALS),help),$(READS_$(goal))))
GIVEN   := $(foreach name,$(filter-out -%,$(.VARIABLES)),$(if $(filter command,$(origin $(name))),$(name)))
UNREAD  := $(firstword $(filter-out $(READS) $(ENVIRONMENT),$(sort $(GIVEN))))
ifneq ($(UNREAD),)
UPPER   := $(shell printf %s '$(UNREAD)' | tr a-z- A-Z_)
NEAREST := $(firstword $(filter $(UPPER)%,$(READS)) $(foreach name,$(READS),$(if $(filter $(name)%,$(UPPER)),$(name))))
$(error make $(or $(MAKECMDGOALS),help) does not read $(UNREAD)$(if $(NEAREST), (did you mean $(NEAREST)?)); it reads $(READS))
endif

CPU_TORCH := $(filter command,$(origin TORCH))
ifneq ($(CPU_TORCH),)
ifneq ($(TORCH),cpu)
$(error TORCH is '$(TORCH)'; it may be cpu, for a torch without CUDA)
endif
ifneq ($(and $(wildcard .venv/.complete),$(if $(wildcard .venv/.torch-cpu),,other)),)
$(error .venv was installed without TORCH=cpu; remove it first: make clean)
endif
endif

.PHONY: help setup bench plan status figures verify-reference report test test-all test-slurm test-gpu parity check clean

help:     ## list the targets
	@sed -n 's/^\([a-z-]*\): .*## /\1\t/p' Makefile | expand -t 18

setup: .venv/.complete $(EXTRAS:%=.venv/.extra-%) ## install the pinned environment into .venv, once [TORCH=cpu] [EXTRAS="robomimic minari bullet tensorboard wandb video browser"]

# The lock is whole, so pip need not ask for more: dm_control wants labmaze, which has no wheel for Python 3.13 or for a
# Mac, and which nothing here imports.
.venv/.complete: requirements.lock
	@$(PYTHON) -c '$(CHECK_PYTHON)'
	@echo "set-up, step 1 of 3: .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@echo "set-up, step 2 of 3: torch, $(if $(CPU_TORCH),0.8 GB,0.8 GB; 5 GB where it brings CUDA, which TORCH=cpu leaves out)"
	@$(PIP) torch==2.13.0 $(if $(CPU_TORCH),$(CPU_INDEX))
	@echo "set-up, step 3 of 3: $$(grep -c == requirements.lock) packages, 0.9 GB"
	@$(PIP) --no-deps -r requirements.lock
	@$(if $(CPU_TORCH),touch .venv/.torch-cpu)
	@touch $@

.venv/.extra-%: requirements-%.lock | .venv/.complete
	@echo "set-up of the extra $*: $$(grep -c == $<) packages, $(SIZE_$*)"
	@$(PIP) --no-deps -r $<
	@touch $@

bench: setup ## run a suite and draw it, or submit it to Slurm: make bench [SUITE=…] [AGENTS=…] [TASKS=…] [SEEDS=…] [SLURM=1] [ARGS=…]
	@$(PY) -m bench launch $(SUITE) $(if $(ON_SLURM),--slurm,--local) $(SELECT) --results $(RESULTS) $(ARGS)
	@$(if $(ON_SLURM),:,$(PY) -m bench status $(SUITE) --running --results $(RESULTS) || $(PY) -m analysis --results $(RESULTS) --suite $(SUITE))

plan: setup ## what a suite would run, what is complete, what it costs here
	@$(PY) -m bench plan --suite $(SUITE) $(SELECT) --results $(RESULTS) $(ARGS)

status: setup ## how the runs under results/ fare: make status [SUITE=…]
	@$(PY) -m bench status $(CHOSEN) --results $(RESULTS) $(ARGS)

figures: setup ## draw everything under results/, or one suite: make figures [SUITE=…] [ARGS=…]; REFERENCE=1: the archive, compared with its record
	@$(PY) -m analysis $(if $(ARCHIVED),reference,--results $(RESULTS) $(if $(CHOSEN),--suite $(CHOSEN)) $(ARGS))

verify-reference: setup ## train runs of the archive again, and compare: make verify-reference [CELL=suite/task/agent] [SEEDS=0..2] [ARGS=…]
	@$(PY) -m bench repeat $(CELL) --seeds $(or $(SEEDS),0..2) $(ARGS)
	@$(PY) -m analysis verify $(CELL)

report: setup ## one HTML page of everything under results/, or of one suite: make report [SUITE=…] [ARGS=…]
	@$(PY) -m analysis report --results $(RESULTS) $(if $(CHOSEN),--suite $(CHOSEN)) $(ARGS)

test: .venv/.complete ## the tests, in minutes: no extras, no GPU, no network
	@$(PY) -m pytest -n 2 --dist worksteal $(ARGS)

test-all: .venv/.complete $(ALL_EXTRAS:%=.venv/.extra-%) ## these and the thorough ones: extras, simulators, compilers, a Slurm of its own (Debian, root)
	@$(PY) -m pytest -n 2 --dist worksteal --all $(if $(shell command -v apt-get),--slurm) $(ARGS)

test-slurm: .venv/.complete ## the tests on a real, throw-away Slurm of this machine (Debian; root installs it)
	@$(PY) -m pytest --all --slurm -m slurm $(ARGS)

test-gpu: .venv/.complete ## the first command on a GPU: ten minutes of checks and rates, one file to send [ARGS=…]
	@$(PY) -m tests.benchmarks.gpu $(ARGS)

parity: setup ## agents against numbers of the official JAX code: [PARITY_DIR=folder] make parity
	@$(PY) -m pytest tests/test_parity.py tests/test_parity_ppo.py tests/test_parity_scratch.py $(ARGS)

check: setup ## linter and type checker
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/pyright

clean: ## remove the environment and caches (results and data stay)
	@rm -rf .venv .pytest_cache .hypothesis .ruff_cache
