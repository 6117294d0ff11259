# Every target is a `python -m` call; `make help` lists them.
PYTHON  ?= python3
SUITE   ?= quick
RESULTS ?= results
PY      := MUJOCO_GL=disable .venv/bin/python
CHOSEN   = $(if $(filter file,$(origin SUITE)),,$(SUITE))
ON_SLURM = $(filter-out 0 no,$(SLURM))
SELECT   = $(if $(AGENTS),--agents $(AGENTS)) $(if $(TASKS),--tasks $(TASKS)) $(if $(SEEDS),--seeds $(SEEDS))

# Extras: the suites' own needs, or those asked for; `video` writes MP4; the tests cover all.
EXTRAS  ?= $(filter robomimic minari bullet,$(firstword $(subst -, ,$(SUITE))))
ALL_EXTRAS := robomimic minari bullet tensorboard wandb video browser

# Variables that a target reads. Any other on the command line is an error; those below become the environment.
READS_setup   := SUITE EXTRAS
READS_bench   := SUITE EXTRAS AGENTS TASKS SEEDS SLURM RESULTS ARGS
READS_plan    := SUITE EXTRAS AGENTS TASKS SEEDS RESULTS ARGS
READS_status  := SUITE EXTRAS RESULTS ARGS
READS_figures := SUITE EXTRAS RESULTS ARGS
READS_report  := SUITE EXTRAS RESULTS ARGS
READS_parity  := EXTRAS ARGS
READS_check   := EXTRAS
READS_test    := ARGS
READS_test-all := ARGS
READS_test-slurm := ARGS
ENVIRONMENT   := O2O_BENCH_% MINARI_% D4RL_% WANDB_% CUDA_% OMP_% PARITY_DIR HOME PATH TMPDIR SHELL MAKEFLAGS

READS   := PYTHON $(sort $(foreach goal,$(or $(MAKECMDGOALS),help),$(READS_$(goal))))
GIVEN   := $(foreach name,$(filter-out -%,$(.VARIABLES)),$(if $(filter command,$(origin $(name))),$(name)))
UNREAD  := $(firstword $(filter-out $(READS) $(ENVIRONMENT),$(sort $(GIVEN))))
ifneq ($(UNREAD),)
UPPER   := $(shell printf %s '$(UNREAD)' | tr a-z- A-Z_)
NEAREST := $(firstword $(filter $(UPPER)%,$(READS)) $(foreach name,$(READS),$(if $(filter $(name)%,$(UPPER)),$(name))))
$(error make $(or $(MAKECMDGOALS),help) does not read $(UNREAD)$(if $(NEAREST), (did you mean $(NEAREST)?)); it reads $(READS))
endif

.PHONY: help setup bench plan status figures report test test-all test-slurm parity check clean

help:     ## list the targets
	@sed -n 's/^\([a-z-]*\): .*## /\1\t/p' Makefile | expand -t 12

setup: .venv/.complete $(EXTRAS:%=.venv/.extra-%) ## install the pinned environment into .venv (once, 2 minutes) [EXTRAS="robomimic minari bullet tensorboard wandb video browser"]

.venv/.complete: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name one: make PYTHON=python3.12")'
	@echo "Installing the pinned packages into .venv (once, about 2 minutes, 2 GB; more where torch brings CUDA)"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

.venv/.extra-%: requirements-%.lock | .venv/.complete
	@echo "Installing what the extra $* needs on top (once)"
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench: setup ## run a suite and draw it, or submit it to Slurm: make bench [SUITE=…] [AGENTS=…] [TASKS=…] [SEEDS=…] [SLURM=1] [ARGS=…]
	@$(PY) -m bench launch $(SUITE) $(if $(ON_SLURM),--slurm,--local) $(SELECT) --results $(RESULTS) $(ARGS)
	@$(if $(ON_SLURM),:,$(PY) -m analysis --results $(RESULTS) --suite $(SUITE))

plan: setup ## what a suite would run, what is complete, what it costs here
	@$(PY) -m bench plan --suite $(SUITE) $(SELECT) --results $(RESULTS) $(ARGS)

status: setup ## how the runs under results/ fare: make status [SUITE=…]
	@$(PY) -m bench status $(CHOSEN) --results $(RESULTS) $(ARGS)

figures: setup ## draw everything under results/, or one suite: make figures [SUITE=…] [ARGS=…]
	@$(PY) -m analysis --results $(RESULTS) $(if $(CHOSEN),--suite $(CHOSEN)) $(ARGS)

report: setup ## one HTML page of everything under results/, or of one suite: make report [SUITE=…] [ARGS=…]
	@$(PY) -m analysis report --results $(RESULTS) $(if $(CHOSEN),--suite $(CHOSEN)) $(ARGS)

test: .venv/.complete ## the tests, in minutes: no extras, no GPU, no network
	@$(PY) -m pytest -n 2 --dist worksteal $(ARGS)

test-all: .venv/.complete $(ALL_EXTRAS:%=.venv/.extra-%) ## these and the thorough ones: extras, simulators, compilers, a Slurm of its own (Debian, root)
	@$(PY) -m pytest -n 2 --dist worksteal --all $(if $(shell command -v apt-get),--slurm) $(ARGS)

test-slurm: .venv/.complete ## the tests on a real, throw-away Slurm of this machine (Debian; root installs it)
	@$(PY) -m pytest --all --slurm -m slurm $(ARGS)

parity: setup ## agents against numbers of the official JAX code: [PARITY_DIR=folder] make parity
	@$(PY) -m pytest tests/test_parity.py $(ARGS)

check: setup ## linter and type checker
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/pyright

clean: ## remove the environment and caches (results and data stay)
	@rm -rf .venv .pytest_cache .hypothesis .ruff_cache
